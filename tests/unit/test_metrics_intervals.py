"""Intervals and tests against the statistics libraries, and by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from muscle.metrics.intervals import (
    bootstrap_sums,
    mcnemar_exact,
    percentile_interval,
    wilson,
)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_against_statsmodels(kn):
    k, n = kn
    interval = wilson(k, n)
    assert interval == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-12)
    assert 0 <= interval.low <= k / n <= interval.high <= 1
    exact = binomtest(k, n).proportion_ci(0.9, method="wilson")
    assert wilson(k, n, confidence=0.9) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_wilson_ends():
    assert wilson(0, 0) is None
    assert wilson(0, 50).low == 0 and wilson(50, 50).high == 1
    for bad in [(3, 2), (-1, 2), (1, 2, 1.0)]:
        with pytest.raises(ValueError, match="wilson"):
            wilson(*bad)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (9, 2), (40, 71), (900, 1100)])
def test_mcnemar_against_scipy_and_statsmodels(b, c):
    first = [True] * b + [False] * c + [True, False, False]
    second = [False] * b + [True] * c + [True, False, False]
    result = mcnemar_exact(first, second)
    assert (result.only_first, result.only_second) == (b, c)
    assert result.p == pytest.approx(binomtest(b, b + c).pvalue if b + c else 1.0)
    assert result.p == pytest.approx(mcnemar([[1, b], [c, 2]], exact=True).pvalue)


def test_mcnemar_large_counts_do_not_underflow():
    assert mcnemar_exact([True] * 3000, [False] * 3000).p == pytest.approx(0, abs=1e-300)
    with pytest.raises(ValueError, match="same shape"):
        mcnemar_exact([True], [True, False])


@pytest.mark.parametrize("distinct", [True, False])
def test_bootstrap_draws_whole_rows(distinct):
    """Both ways of drawing: few distinct rows, and as many as examples."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=400) if distinct else rng.integers(0, 2, 400).astype(float)
    features = np.stack([x, 3 * x, np.ones(400)], axis=1)
    sums = bootstrap_sums(features, draws=4000, seed=5)
    assert sums.shape == (4000, 3)
    assert np.allclose(sums[:, 1], 3 * sums[:, 0]) and (sums[:, 2] == 400).all()
    assert sums[:, 0].mean() == pytest.approx(x.sum(), abs=4 * x.std() * 20 / 4000**0.5)
    assert sums[:, 0].std() == pytest.approx(x.std() * 20, rel=0.05)
    assert (sums == bootstrap_sums(features, draws=4000, seed=5)).all()
    assert (sums != bootstrap_sums(features, draws=4000, seed=6)).any()


def test_bootstrap_of_nothing():
    assert (bootstrap_sums(np.zeros((0, 2)), draws=3) == 0).all()


def test_percentile_interval():
    values = np.arange(1001) / 1000
    assert percentile_interval(values) == pytest.approx((0.025, 0.975))
    assert percentile_interval(np.full(9, 0.3)) is None
    assert percentile_interval(np.full(9, np.nan)) is None
    holes = values.copy()
    holes[:5] = np.nan
    assert percentile_interval(holes) is not None
    holes[:50] = np.nan
    assert percentile_interval(holes) is None


def test_bootstrap_interval_covers_the_truth():
    """The difference of two paired flip rates: 95 % intervals hold the truth about 95 %
    of the time (400 data sets; the band is four standard errors wide)."""
    rng = np.random.default_rng(0)
    truth, n, trials = 0.08 - 0.12, 400, 400
    cells = np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])  # F_new, F_compat
    hits = 0
    for trial in range(trials):
        rows = cells[rng.choice(4, size=n, p=[0.83, 0.03, 0.09, 0.05])]
        sums = bootstrap_sums(rows, draws=1000, seed=trial)
        low, high = percentile_interval((sums[:, 1] - sums[:, 0]) / n)
        hits += low <= truth <= high
    assert 0.905 <= hits / trials <= 0.99
