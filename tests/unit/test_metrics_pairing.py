"""Joins: what is paired, and what is refused with which words."""

from dataclasses import replace

import pytest

from muscle.errors import UserError
from muscle.metrics.flips import FlipCounts, ScoreCounts
from muscle.metrics.pairing import is_continuous, join_predictions
from muscle.types import Prediction


def rows(scores, task="t", metric="acc", **changes):
    return [
        replace(
            Prediction(task, str(i), f"q{i}", "a", "a" if s == 1 else f"w{i}", metric, s), **changes
        )
        for i, s in enumerate(scores)
    ]


def test_join_ignores_the_order_of_rows():
    old, new = rows([1.0, 0.0, 1.0]), rows([1.0, 1.0, 0.0])
    one = join_predictions({0: {"old": old, "new": new}})["t"]
    other = join_predictions({0: {"new": new[::-1], "old": old}})["t"]
    assert one.ids.to_pylist() == other.ids.to_pylist() == ["0", "1", "2"]
    assert one.versions == other.versions
    assert one.counts(0, "old", "new") == other.counts(0, "old", "new")
    assert one.counts(0, "old", "new") == FlipCounts(1, 1, 1, 0, 0, 0)
    assert one.pairs == (("old", "new"),)


def test_unscored_anywhere_is_left_out_everywhere():
    task = join_predictions(
        {
            0: {"old": rows([1.0, None, 1.0, 0.0]), "new": rows([1.0, 1.0, 0.0, 0.0])},
            7: {"old": rows([1.0, 1.0, 1.0, 0.0]), "new": rows([None, 1.0, 1.0, 0.0])},
        }
    )["t"]
    assert task.ids.to_pylist() == ["2", "3"] and task.unscored == 2 and task.seeds == (0, 7)
    assert {len(s) for s in task.scores.values()} == {2}


def test_continuous_is_decided_once():
    """Old has only 0 and 1, but one score of new is graded: both are continuous."""
    task = join_predictions({0: {"old": rows([1.0, 0.0]), "new": rows([0.5, 0.0])}})["t"]
    assert task.continuous
    assert task.counts(0, "old", "new") == ScoreCounts(1, 0, 1, 0.0, 0.5)
    assert is_continuous("rouge1", [0.0, 1.0]) and not is_continuous("exact_match", [0, 1])


def test_unknown_answers_are_not_compared():
    old, new = rows([0.0, 1.0], prediction=None), rows([0.0, 1.0])
    counts = join_predictions({0: {"old": old, "new": new}})["t"].counts(0, "old", "new")
    assert counts.both_wrong == 1 and counts.both_wrong_same is None


def test_tasks_are_sorted_and_separate():
    old = rows([1.0], task="b") + rows([0.0], task="a")
    assert list(join_predictions({0: {"old": old, "new": old}})) == ["a", "b"]


GOOD = rows([1.0, 0.0])


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ({}, "no seed"),
        ({0: {"old": [], "new": []}}, "every version is empty"),
        ({0: {"old": GOOD}}, "seed 0 has no predictions of new"),
        ({0: {"old": GOOD, "new": GOOD, "newer": GOOD}}, "version 'newer' is unknown"),
        (
            {0: {"old": GOOD, "new": GOOD}, 1: {"old": GOOD, "new": GOOD, "compat": GOOD}},
            "seed 0 has no predictions of compat",
        ),
        ({0: {"old": GOOD, "new": GOOD + rows([1.0], task="u")}}, "task 'u' is not in all"),
        ({0: {"old": GOOD, "new": GOOD[:1]}}, "1 only in old, 0 only in new (first '1')"),
        ({0: {"old": GOOD, "new": GOOD + GOOD[:1]}}, "id '0' comes twice in new"),
        ({0: {"old": GOOD, "new": rows([1.0, 0.0], gold="b")}}, "'0' has another gold in new"),
        (
            {0: {"old": GOOD, "new": rows([1.0, 0.0], metric="acc_norm")}},
            "metric 'acc' in old but 'acc_norm' in new",
        ),
        ({0: {"old": GOOD, "new": rows([1.0, float("nan")])}}, "score of '1' in new is nan"),
        (
            {0: {"old": GOOD, "new": GOOD}, 3: {"old": GOOD, "new": rows([1, 0], gold="b")}},
            "in new (seed 3) than in old (seed 0)",
        ),
    ],
)
def test_refused(predictions, message):
    with pytest.raises(UserError) as error:
        join_predictions(predictions)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_messages_stay_short_and_on_one_line():
    wild = rows([1.0, 0.0], task="x\n" * 500)
    with pytest.raises(UserError) as error:
        join_predictions({0: {"old": wild, "new": wild[:1]}})
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
