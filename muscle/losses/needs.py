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
