"""What is left out is shown: reasons, truncation, the score of guessing."""

from dataclasses import replace

import pytest
from joined import joined, rows, scored

from muscle.metrics.excluded import NO_REASON, chance_score, excluded_block


def test_unscored_and_truncated():
    errors = ["boom", "boom", None, "late", None, None]
    cut = ["prompt", None, "answer", "prompt", "prompt and answer", None]
    old = rows([None, None, None, None, 1.0, 1.0], error=errors, truncated=cut)
    new = rows([1.0, None, 1.0, 1.0, 1.0, 0.0])
    block = excluded_block(joined({"old": old, "new": new}))
    assert block["old"] == {
        "unscored": 4,
        "reasons": {"boom": 2, NO_REASON: 1, "late": 1},
        "truncated": {"prompt": 2, "answer": 1, "prompt and answer": 1},
    }
    assert next(iter(block["old"]["reasons"])) == "boom"
    nothing = {"prompt": 0, "answer": 0, "prompt and answer": 0}
    assert block["new"] == {"unscored": 1, "reasons": {NO_REASON: 1}, "truncated": nothing}


def test_five_commonest_reasons_and_all_seeds():
    errors = ["a"] * 6 + ["b"] * 5 + ["c"] * 4 + ["d"] * 3 + ["e"] * 2 + ["f"]
    old = rows([None] * 21 + [1.0], error=[*errors, None])
    fine = rows([1.0] * 22)
    block = excluded_block(joined({"old": old, "new": fine}, {"old": old, "new": fine}))
    assert block["old"]["unscored"] == 42
    assert block["old"]["reasons"] == {"a": 12, "b": 10, "c": 8, "d": 6, "e": 4}
    assert block["new"]["unscored"] == 0 and block["new"]["reasons"] == {}


def test_an_error_of_a_scored_row_is_no_exclusion():
    old = rows([1.0, None], error=["odd", "gone"])
    assert excluded_block(joined({"old": old, "new": rows([1.0, 1.0])}))["old"]["reasons"] == {
        "gone": 1
    }


def test_a_source_without_the_columns_is_unknown():
    task = joined({"old": rows([1.0, None]), "new": rows([1.0, 1.0])})
    side = task.sides[0, "old"]
    bare = {"truncated", "error"}
    read = side.read
    task.sides[0, "old"] = replace(side, read=lambda name: None if name in bare else read(name))
    assert excluded_block(task)["old"] == {
        "unscored": 1,
        "reasons": {NO_REASON: 1},
        "truncated": None,
    }


def test_the_second_old_is_shown_too():
    again = rows([None, 1.0], error="late")
    versions = {"old": rows([1.0, 1.0]), "new": rows([1.0, 1.0]), "again": again}
    assert excluded_block(joined(versions))["again"]["reasons"] == {"late": 1}


def test_chance_score():
    choices = [("a", "b"), ("a", "b", "c", "d")]
    assert chance_score(scored({"old": [1, 0], "new": [0, 0]}, choices=choices)) == 3 / 8
    assert chance_score(scored({"old": [1, 0], "new": [0, 0]})) is None
    for other in ([("a", "b"), None], [("a", "b"), ()]):
        assert chance_score(scored({"old": [1, 0], "new": [0, 0]}, choices=other)) is None
    graded = scored({"old": [0.5, 0], "new": [0, 0]}, choices=choices, metric="rouge1")
    assert chance_score(graded) is None


def test_chance_is_over_the_examples_that_count():
    choices = [("a", "b"), ("a", "b", "c", "d")]
    old = rows([1.0, None], choices=choices)
    new = rows([1.0, 1.0], choices=choices)
    assert chance_score(joined({"old": old, "new": new})) == pytest.approx(0.5)
