"""What a loss needs: teachers and memory; no torch, so that a plan can ask it."""

from muscle.config import CompatibilityConfig, MaskName
from muscle.types import Version

READS_OLD: frozenset[MaskName] = frozenset({"old-right", "token-likelihood", "sequence-likelihood"})
"""Masks that look at the old teacher's logits on every token."""

CHUNK_LOGITS = {"cpu": 16 * 2**20, "cuda": 32 * 2**20}
"""Logits of one chunk: enough rows for a matrix product at full speed, and a bound on memory."""

BLOCK_LOGITS = {"cpu": 2**20, "cuda": 32 * 2**20}
"""Logits of what goes through the row formulas at a time: on a CPU they stay in its cache."""


def needed_teachers(settings: CompatibilityConfig) -> tuple[Version, ...]:
    """The names of the teacher signals a loss reads: a subset of ("old", "new")."""
    if settings.ce_weight == 1.0:
        return ()
    if settings.level == "choice":
        return _of_choices(settings)
    if settings.mask == "always-old":
        return ("old",)
    if settings.mask == "never-old":
        return ("new",)
    return ("old", "new")


def _of_choices(settings: CompatibilityConfig) -> tuple[Version, ...]:
    if settings.teacher == "old":
        return ("old",)
    # A right answer of old's gives its input more weight, whoever teaches.
    return ("new",) if settings.teacher == "new" and settings.focus == 0 else ("old", "new")


def aligns_tokens(settings: CompatibilityConfig) -> bool:
    """Whether old teaches token by token, which takes a vocabulary in common."""
    return settings.level == "token" and "old" in needed_teachers(settings)


def different_tokenizers(reason: str) -> str:
    """What to say when token-level distillation meets two tokenizers."""
    return (
        f"old and new have different tokenizers ({reason}), so token-level distillation is not "
        "possible: compatibility.level: choice distils whole answers, which need no common tokens, "
        "and compatibility.ce_weight: 1 trains on labels alone; evaluating and comparing "
        "old and new still work"
    )
