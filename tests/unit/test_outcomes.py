"""Answers counted by what their scorer says of them."""

import pytest

from muscle.metrics.outcomes import KNOWN, MOST, OTHERS, outcome_block, outcome_of
from muscle.metrics.pairing import join_predictions
from muscle.types import Prediction


def side(reasons: list[str | None]) -> list[Prediction]:
    return [
        Prediction("t", str(i), "q", "g", "a", "score", 1.0, reason=reason)
        for i, reason in enumerate(reasons)
    ]


def block(old: list[str | None], new: list[str | None], hidden: bool = False) -> object:
    joined = join_predictions({0: {"old": side(old), "new": side(new)}})
    return outcome_block(joined["t"], hidden)


def test_a_reason_is_counted_by_its_part_before_the_colon() -> None:
    found = block(
        ["right", "invalid JSON: x: y", None], ["other fields: a\nb", "other fields: c", "right"]
    )
    assert found == {
        "old": {"other fields": 0, "right": 1, "invalid JSON": 1},
        "new": {"other fields": 2, "right": 1, "invalid JSON": 0},
    }
    assert list(found["old"]) == ["other fields", "right", "invalid JSON"]


def test_without_reasons_there_is_nothing_to_count() -> None:
    assert block([None, None], [None, None]) is None


def test_a_scorer_of_many_words_is_cut() -> None:
    many: list[str | None] = [f"reason {i}" for i in range(MOST + 5)]
    found = block(many, many)
    assert len(found["old"]) == MOST + 1 and found["old"][OTHERS] == 5
    assert sum(found["new"].values()) == len(many)


def test_private_outcomes_are_not_named() -> None:
    found = block(["right", "Mira's address"], ["not a label: Mira", "right"], hidden=True)
    assert found["old"] == {"right": 1, "not a label": 0, OTHERS: 1}


@pytest.mark.parametrize("name", KNOWN)
def test_our_own_outcomes_are_whole(name: str) -> None:
    assert outcome_of(f"{name}: details") == outcome_of(name) == name
