"""Whether both sides of a benchmark have said the same: speed at other answers is no speed."""

from collections.abc import Sequence
from typing import Any

# How far two right log-likelihoods may be apart, of their size: fp32's rounding over a
# forward, and 8 or 11 bits of the half precisions.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 4e-3}

SHOWN = 20


def agreement(
    questions: Sequence[dict[str, Any]], ours: Sequence[Any], theirs: Sequence[Any], dtype: str
) -> dict[str, Any]:
    """Choices that are the same, near ties that are not, and any other difference."""
    if ours and isinstance(ours[0], str):
        return _texts(questions, ours, theirs)
    tolerance = TOLERANCE[dtype]
    apart = max(abs(a - b) / max(abs(b), 1e-9) for (a, _), (b, _) in zip(ours, theirs, strict=True))
    ties: list[str] = []
    different: list[str] = []
    at = 0
    for question in questions:
        size = len(question["requests"])
        mine = [ll for ll, _ in ours[at : at + size]]
        other = [ll for ll, _ in theirs[at : at + size]]
        at += size
        if mine.index(max(mine)) != other.index(max(other)):
            first, second = sorted(other, reverse=True)[:2]
            near = first - second <= 2 * tolerance * abs(second)
            (ties if near else different).append(question["id"])
    greedy = sum(a == b for (_, a), (_, b) in zip(ours, theirs, strict=True))
    return {
        "rows": len(questions),
        "same_choice": len(questions) - len(ties) - len(different),
        "other_choice_at_a_near_tie": len(ties),
        "other_choice": len(different),
        "ids": {"near_ties": ties[:SHOWN], "other": different[:SHOWN]},
        "tolerance": tolerance,
        "largest_relative_difference": apart,
        "same_is_greedy": greedy / len(ours),
    }


def _texts(
    questions: Sequence[dict[str, Any]], ours: Sequence[str], theirs: Sequence[str]
) -> dict[str, Any]:
    different = [q["id"] for q, a, b in zip(questions, ours, theirs, strict=True) if a != b]
    return {
        "rows": len(questions),
        "same_text": len(questions) - len(different),
        "same_text_share": 1 - len(different) / len(questions),
        "ids": {"other": different[:SHOWN]},
        "characters": sum(map(len, ours)),
    }
