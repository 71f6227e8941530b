"""Holm's correction: many tests at once, and still 5 % to claim anything wrongly."""

from collections.abc import Sequence


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p values (Holm 1979), in the order given.

    Claiming what is at most 0.05 claims anything wrong in at most 5 % of such reports,
    however the tests depend on each other.

    Args:
        p: None stands for a test that was not made; it does not count.
    """
    known = sorted((value, i) for i, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        adjusted[i] = largest
    return adjusted
