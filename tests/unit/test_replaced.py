"""Which answer replaced which: against a loop over examples."""

import numpy as np
import pytest
from joined import joined, rows, scored

from muscle.metrics.replaced import replaced

PAIR = ("old", "new")
YES_NO = ("yes", "no", "maybe")


def answered(choices, gold, picks, **columns):
    """One version that picks these choices."""
    answers = [c[k] for c, k in zip(choices, picks, strict=True)]
    scores = [float(k == g) for k, g in zip(picks, gold, strict=True)]
    golds = [c[g] for c, g in zip(choices, gold, strict=True)]
    return rows(scores, choices=choices, prediction=answers, gold=golds, **columns)


def loop(gold, old, new, size):
    negative, wrong = np.zeros((size, size), int), np.zeros((size, size), int)
    for g, a, b in zip(gold, old, new, strict=True):
        if a == g != b:
            negative[a, b] += 1
        elif a != g != b and a != b:
            wrong[a, b] += 1
    return negative.tolist(), wrong.tolist()


@pytest.mark.parametrize("kind", ["text", "shuffled", "ragged"])
def test_tables_against_a_loop(kind):
    rng = np.random.default_rng(8)
    n = 200
    if kind == "text":
        choices, size = [YES_NO] * n, 3
    elif kind == "shuffled":  # the same texts in another order are other positions
        choices, size = [tuple(rng.permutation(YES_NO).tolist()) for _ in range(n)], 3
    else:
        choices = [tuple("abcde"[: 2 + int(k)]) for k in rng.integers(0, 4, n)]
        size = 5
    gold, old, new = ([int(rng.integers(len(c))) for c in choices] for _ in range(3))
    task = joined({"old": answered(choices, gold, old), "new": answered(choices, gold, new)})
    found = replaced(task, 0, PAIR)
    assert (found["negative"], found["both_wrong"]) == loop(gold, old, new, size)
    assert np.sum(found["negative"]) == task.counts(0, *PAIR).negative > 0
    assert np.sum(found["both_wrong"]) == task.counts(0, *PAIR).both_wrong_different > 0
    if kind == "text":
        assert (found["labels"], found["by"]) == (list(YES_NO), "text")
    else:
        assert (found["labels"], found["by"]) == ([str(k + 1) for k in range(size)], "position")


def test_reversed_pair_is_of_the_positive_flips():
    choices, gold = [YES_NO] * 4, [0, 0, 1, 2]
    old, new = answered(choices, gold, [1, 0, 1, 2]), answered(choices, gold, [0, 2, 1, 2])
    task = joined({"old": old, "new": new})
    assert replaced(task, 0, PAIR)["negative"] == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert replaced(task, 0, ("new", "old"))["negative"] == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_equal_texts_count_as_the_first_of_them():
    """The second of two equal choices is right: a flip to the same text is on the diagonal."""
    columns = {"choices": ("same", "same"), "prediction": "same", "gold": "same"}
    task = joined({"old": rows([1.0], **columns), "new": rows([0.0], **columns)})
    assert replaced(task, 0, PAIR)["negative"] == [[1, 0], [0, 0]]


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"choices": ("a", "b"), "prediction": "c"},
        {"choices": ("a", "b"), "prediction": None},
        {"choices": tuple(str(i) for i in range(21)), "prediction": "3"},
        {"choices": (), "prediction": "a"},
        {"choices": [("a", "b"), None], "prediction": "a"},
        {"choices": ("a", "b"), "prediction": "a", "metric": "rouge1"},
    ],
)
def test_none_where_it_cannot_be_had(columns):
    assert replaced(scored({"old": [1, 1], "new": [0, 1]}, **columns), 0, PAIR) is None


def test_twenty_choices_are_few_enough_and_others_choices_are_not():
    twenty = {"choices": tuple(str(i) for i in range(20)), "prediction": "3"}
    found = replaced(scored({"old": [1], "new": [0]}, **twenty), 0, PAIR)
    assert len(found["labels"]) == 20 and found["negative"][3][3] == 1
    old = rows([1.0], choices=("a", "b"), prediction="a")
    new = rows([0.0], choices=("b", "a"), prediction="b")
    assert replaced(joined({"old": old, "new": new}), 0, PAIR) is None
