"""How a candidate is measured, and when it is given up: against hand-made predictions."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from muscle.errors import UserError
from muscle.metrics.pairing import Predictions
from muscle.tuning.measure import is_continuous_task, measure, surely_infeasible
from muscle.tuning.records import Measured
from muscle.types import Prediction, Version

Scores = dict[Version, list[float | None]]


def rows(scores: list[float | None], metric: str) -> list[Prediction]:
    return [
        Prediction(
            task="t",
            id=f"{i:04d}",
            question=f"q{i}",
            gold="yes",
            prediction=None if score is None else ("yes" if score == 1 else "no"),
            metric=metric,
            score=score,
            error="too long" if score is None else None,
        )
        for i, score in enumerate(scores)
    ]


def predictions(*seeds: Scores, metric: str = "acc") -> Predictions:
    return {
        seed: {version: rows(values, metric) for version, values in scores.items()}
        for seed, scores in enumerate(seeds)
    }


def repeated(*cells: tuple[int, float, float, float]) -> Scores:
    """So many examples of each (old, new, compat)."""
    columns: Scores = {"old": [], "new": [], "compat": []}
    for count, *values in cells:
        for version, value in zip(columns, values, strict=True):
            columns[version] += [value] * count
    return columns


MIXED = repeated(
    (10, 1, 1, 1),
    (6, 1, 0, 1),  # a flip of new that compat doesn't have
    (3, 1, 0, 0),
    (2, 1, 1, 0),  # one of compat's own
    (5, 0, 1, 1),
    (1, 0, 1, 0),
    (4, 0, 0, 0),
    (1, 0, 0, 1),
)


def test_one_seed_by_hand() -> None:
    m = measure(predictions(MIXED), "half A")
    assert (m.n, m.unscored) == (32, 0)
    assert m.nfr == pytest.approx(5 / 32) and m.nfr_new == pytest.approx(9 / 32)
    assert m.score == pytest.approx(22 / 32) and m.new_score == pytest.approx(18 / 32)
    assert m.gain == pytest.approx(4 / 32)
    # Of flips only: 6 that only new has, 2 that only compat has.
    assert m.p == pytest.approx(binomtest(2, 8).pvalue)
    assert set(m.ci95) == {"nfr", "score", "gain", "reduction"}
    for name, value in {
        "nfr": m.nfr,
        "score": m.score,
        "gain": m.gain,
        "reduction": m.nfr - m.nfr_new,
    }.items():
        bounds = m.ci95[name]
        assert bounds is not None and bounds[0] <= value <= bounds[1], name


def test_the_gains_interval_is_that_of_paired_differences() -> None:
    """Near the normal one of the differences' mean, and so much narrower than unpaired scores'."""
    scores = repeated((180, 1, 1, 1), (180, 0, 0, 0), (25, 1, 0, 1), (15, 1, 1, 0))
    bounds = measure(predictions(scores), "half A").ci95["gain"]
    differences = np.array([0] * 360 + [1] * 25 + [-1] * 15)
    spread = 1.96 * differences.std() / np.sqrt(400)
    assert bounds == pytest.approx((0.025 - spread, 0.025 + spread), abs=0.004)


def test_seeds_are_averaged_and_have_no_p() -> None:
    other = repeated((20, 1, 1, 1), (4, 1, 0, 0), (4, 0, 1, 0), (2, 0, 0, 1), (2, 1, 1, 0))
    both = measure(predictions(MIXED, other), "half A")
    alone = [measure(predictions(one), "half A") for one in (MIXED, other)]
    for name in ("nfr", "nfr_new", "score", "gain"):
        mean = np.mean([getattr(m, name) for m in alone])
        assert getattr(both, name) == pytest.approx(mean)
    assert both.p is None and both.n == 32


def test_unscored_examples_count_for_nobody() -> None:
    holes: Scores = {version: list(values) for version, values in MIXED.items()}
    holes["old"].append(None)
    holes["new"].append(1)
    holes["compat"].append(0)
    holes["old"].append(1)
    holes["new"].append(0)
    holes["compat"].append(None)
    m, whole = (measure(predictions(s), "half A") for s in (holes, MIXED))
    assert m.unscored == 2
    assert (m.n, m.nfr, m.gain, m.p) == (whole.n, whole.nfr, whole.gain, whole.p)


def test_nothing_scored_says_where_and_why() -> None:
    nobody: Scores = {"old": [1, 1], "new": [None, None], "compat": [0, 1]}
    with pytest.raises(UserError, match=r"^half B: no example .*too long.*muscle evaluate"):
        measure(predictions(nobody), "half B")
    assert surely_infeasible(predictions(nobody), 0.0) is None


def test_graded_scores_are_measured_by_their_means() -> None:
    scores: Scores = {
        "old": [0.5, 0.2, 0.9, 0.4],
        "new": [0.4, 0.6, 0.9, 0.1],
        "compat": [0.6, 0.1, 0.9, 0.3],
    }
    found = predictions(scores, metric="rouge1")
    assert is_continuous_task(found) and not is_continuous_task(predictions(MIXED))
    m = measure(found, "half A")
    assert m.nfr == pytest.approx(2 / 4)  # 0.2 -> 0.1 and 0.4 -> 0.3
    assert m.nfr_new == pytest.approx(2 / 4)
    assert m.gain == pytest.approx(1.9 / 4 - 2.0 / 4) and m.p is None


def test_equal_models_have_no_gain_and_no_interval_of_it() -> None:
    same = repeated((8, 1, 1, 1), (8, 0, 0, 0))
    m = measure(predictions(same), "half A")
    assert (m.nfr, m.gain, m.p) == (0.0, 0.0, 1.0) and m.ci95["gain"] is None
    assert m.violation(0.0) <= 0


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 1)] * 3), min_size=1, max_size=30),
    st.permutations(range(30)),
)
def test_numbers_follow_from_their_definitions(
    cells: list[tuple[int, int, int]], order: list[int]
) -> None:
    cells = [cells[i] for i in order if i < len(cells)]
    scores = repeated(*((1, old, new, compat) for old, new, compat in cells))
    m = measure(predictions(scores), "half A")
    n = len(cells)
    assert m.nfr == pytest.approx(sum(o > c for o, _, c in cells) / n)
    assert m.gain == pytest.approx(sum(c - new for _, new, c in cells) / n)
    assert Measured.from_json({**vars_of(m)}) == m


def vars_of(m: Measured) -> dict[str, object]:
    return {name: getattr(m, name) for name in Measured.__dataclass_fields__}


# --- given up early ---------------------------------------------------------------------------


def lossy(n: int, lost: int, gained: int = 0) -> Predictions:
    """Of n examples that new has right, so many are lost; `gained` others are won."""
    return predictions(repeated((n - lost, 1, 1, 1), (lost, 1, 1, 0), (gained, 1, 0, 1)))


def test_a_destroyed_adapter_is_given_up() -> None:
    reason = surely_infeasible(lossy(100, 60), 0.005)
    assert reason is not None and "\n" not in reason
    assert "100 examples" in reason and "99% interval" in reason and reason.endswith("-0.5")


def test_what_cant_be_told_goes_on() -> None:
    assert surely_infeasible(lossy(100, 0), 0.0) is None  # no interval at all
    assert surely_infeasible(lossy(100, 1), 0.0) is None
    assert surely_infeasible(lossy(100, 10, gained=10), 0.0) is None


@pytest.mark.parametrize("lost", [5, 20, 40])
def test_the_border_is_the_intervals_upper_end(lost: int) -> None:
    """Given up just when epsilon is less than the least that is surely lost (99 %, paired)."""
    found = lossy(100, lost)
    # The number lost in a resample is Binomial(100, lost/100): its 0.5 % quantile is what
    # is surely lost.
    surely = binom.ppf(0.005, 100, lost / 100) / 100
    assert surely_infeasible(found, surely + 0.0151) is None
    if surely > 0.015:
        assert surely_infeasible(found, surely - 0.0151) is not None


def test_more_examples_tell_more() -> None:
    """At the same share lost: 3 of 100 may be chance, 30 of 1000 is none."""
    assert surely_infeasible(lossy(100, 3), 0.005) is None
    assert surely_infeasible(lossy(1000, 30), 0.005) is not None


@pytest.mark.parametrize(("lost", "epsilon"), list(product((0, 3, 8, 30), (0.0, 0.02, 0.1))))
def test_only_what_is_infeasible_is_given_up(lost: int, epsilon: float) -> None:
    found = lossy(60, lost, gained=2)
    if surely_infeasible(found, epsilon) is not None:
        assert measure(found, "a look").violation(epsilon) > 0
