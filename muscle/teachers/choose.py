"""Whether the teachers are cached or run in every step: one rule for the plan and the run."""

from typing import NamedTuple

SPARE = 0.9
"""A cache may take this share of the free disk: the run writes more than the cache."""


class Choice(NamedTuple):
    """Whether the teachers are cached, and why, as a phrase."""

    cached: bool
    reason: str


def choose(
    setting: str,
    passes: int,
    bytes_needed: int,
    bytes_free: int | None,
    zero3: bool,
    mask: str,
) -> Choice:
    """Decide `resources.teachers` for the compat trainings that share one pair of teachers.

    Args:
        setting: `auto`, `cached` or `online`.
        passes: how often a training token meets its teachers: epochs x compat trainings.
        bytes_needed: of the cache, all teachers together; 0 when the loss reads none.
        bytes_free: of the disk that would hold it; None when it has no known bound.
        zero3: the student's parameters are partitioned.
        mask: of the compatibility loss.
    """
    if setting != "auto":
        return Choice(setting == "cached" and bytes_needed > 0, f"resources.teachers is {setting}")
    if bytes_needed == 0:
        return Choice(False, "the loss reads no teacher")
    if zero3:
        # A second forward through a partitioned base would gather all of it once more.
        return Choice(True, "ZeRO-3 wants its teachers cached")
    if mask == "never-old":
        # The only teacher is the student's own base; online, their difference is exactly 0.
        return Choice(False, "never-old reads the student's own base only")
    if passes < 2:
        return Choice(False, "one pass over the data: a cache would be read once")
    if bytes_free is not None and bytes_needed > SPARE * bytes_free:
        return Choice(False, f"the cache needs {_gb(bytes_needed)}, {_gb(bytes_free)} are free")
    return Choice(True, f"{passes} passes share it")


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
