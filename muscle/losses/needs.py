"""Which teachers a loss reads; no torch, so that a plan can ask it."""

from muscle.config import CompatibilityConfig
from muscle.types import Version


def needed_teachers(settings: CompatibilityConfig) -> tuple[Version, ...]:
    """The names of the teacher signals a loss reads: a subset of ("old", "new")."""
    if settings.ce_weight == 1.0:
        return ()
    if settings.mask == "always-old":
        return ("old",)
    if settings.mask == "never-old":
        return ("new",)
    return ("old", "new")


def different_tokenizers(reason: str) -> str:
    """What to say when token-level distillation meets two tokenizers."""
    return (
        f"old and new have different tokenizers ({reason}), so token-level distillation is not "
        "possible: compatibility.ce_weight: 1 trains on labels alone; evaluating and comparing "
        "old and new still work"
    )
