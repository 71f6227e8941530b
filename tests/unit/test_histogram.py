"""Histograms of D(x): every example in one bin, mirrored by swapping the versions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joined import scored

from muscle.metrics.histogram import histogram

PAIR = ("old", "new")


def of(old, new, *more):
    return scored({"old": old, "new": new}, *more, metric="rouge1")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=50))
def test_bins_against_a_loop(pairs):
    old, new = (np.array(x) / 30 for x in zip(*pairs, strict=True))
    found = histogram(of(old, new), (0,), PAIR)
    edges, counts = found["edges"], found["counts"]
    assert len(edges) == 42 and len(counts) == 41 and sum(counts) == len(pairs)
    assert (np.diff(edges) > 0).all() and edges == pytest.approx([-e for e in edges[::-1]])
    change = new - old
    assert counts[20] == sum(a == b for a, b in pairs)
    assert sum(counts[:20]) == (change < 0).sum() and sum(counts[21:]) == (change > 0).sum()
    back = histogram(of(new, old), (0,), PAIR)
    assert back == {"edges": edges, "counts": counts[::-1]}
    for k in (0, 7, 19):  # a bin's edge nearer to 0 is its own, the outermost bin has both
        inside = (-change >= -edges[k + 1]) & ((-change < -edges[k]) | (k == 0))
        assert counts[k] == inside.sum()


def test_rounding_is_no_change_and_nothing_moved():
    found = histogram(of([0.3, 0.5], [0.1 + 0.2, 0.5]), (0,), PAIR)
    assert found["counts"][20] == 2 and found["edges"][-1] == 1.0
    assert histogram(of([0.25, 0.5], [0.75, 0.5]), (0,), PAIR)["edges"][-1] == 0.5


def test_seeds_are_counted_together_and_right_or_wrong_has_none():
    second = {"old": [0.5, 0.5], "new": [0.5, 0.25]}
    task = of([0.5, 0.5], [0.75, 0.5], second)
    found = histogram(task, (0, 1), PAIR)
    assert sum(found["counts"]) == 4 and found["counts"][20] == 2
    assert histogram(scored({"old": [1, 0], "new": [0, 0]}), (0,), PAIR) is None


def test_what_differs_in_the_last_bit_is_no_flip() -> None:
    """2pr / (p + r) in another order: equal everywhere, in counts, outcomes and histogram."""
    from muscle.metrics.pairing import join_predictions
    from muscle.report.example_table import OUTCOMES, outcomes
    from muscle.types import Prediction

    def rows(scores: list[float]) -> list[Prediction]:
        return [Prediction("t", str(i), "q", "g", "a", "rouge1", s) for i, s in enumerate(scores)]

    old, new = [0.3, 0.5, 0.5, 0.2], [0.1 + 0.2, 0.5 - 1e-16, 0.4, 0.3]
    assert old[0] != new[0] and old[1] != new[1]
    task = join_predictions({0: {"old": rows(old), "new": rows(new)}})["t"]
    counts = task.counts(0, "old", "new")
    assert (counts.negative, counts.positive) == (1, 1)
    assert [OUTCOMES[c] for c in outcomes(task, 0, ("old", "new"))] == [
        "equal",
        "equal",
        "negative",
        "positive",
    ]
    found = histogram(task, (0,), ("old", "new"))
    assert found is not None and sum(found["counts"]) == 4
    assert found["counts"][len(found["counts"]) // 2] == 2
