"""Intervals and tests against the statistics libraries, and by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc, betaincinv
from scipy.stats import binom, binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from muscle.metrics import beta, bounds
from muscle.metrics.beta import beta_quantile, incomplete_beta
from muscle.metrics.bounds import (
    MeanBounds,
    clopper_pearson,
    difference_bounds,
    rate_bounds,
    relative_nfr_bounds,
)
from muscle.metrics.intervals import (
    bootstrap_sums,
    distinct_rows,
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


@pytest.mark.parametrize(
    ("b", "c"), [(1000, 1000), (1001, 1000), (1300, 1100), (49_500, 50_500), (300, 1_000_000)]
)
def test_mcnemar_of_many_discordant_examples(b, c):
    """Whole numbers up to 2,000 discordant examples, the incomplete beta function beyond."""
    first = np.repeat([True, False], [b, c])
    p = mcnemar_exact(first, ~first).p
    assert p == pytest.approx(min(1.0, 2 * binom.cdf(min(b, c), b + c, 0.5)), rel=1e-6)
    assert p == pytest.approx(binomtest(b, b + c).pvalue, rel=1e-6)


_SIZE = st.floats(-0.3, 6).map(lambda power: 10.0**power)


@settings(max_examples=150, deadline=None)
@given(_SIZE, _SIZE, st.floats(1e-9, 1 - 1e-9))
def test_incomplete_beta_against_scipy(a, b, p):
    x = float(betaincinv(a, b, p))
    assert incomplete_beta(a, b, x) == pytest.approx(float(betainc(a, b, x)), rel=1e-6, abs=1e-9)
    if 1e-6 < p < 1 - 1e-6:
        assert beta_quantile(p, a, b) == pytest.approx(x, rel=1e-6, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20_000), st.floats(0, 1), st.sampled_from([0.025, 0.05, 0.95, 0.975]))
def test_a_quantile_takes_few_steps(n, share, p):
    """What Clopper and Pearson's bounds ask for, hundreds of times in a report."""
    k, steps = int(share * (n - 1)), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beta, "incomplete_beta", lambda *x: steps.append(x) or incomplete_beta(*x))
        found = beta_quantile(p, k + 1, n - k)
    assert found == pytest.approx(float(betaincinv(k + 1, n - k, p)), rel=1e-11)
    assert len(steps) <= 8


def test_beta_refuses_nonsense():
    for bad in [(0, 1, 0.5), (1, -1, 0.5), (1, 1, 1.5)]:
        with pytest.raises(ValueError, match="incomplete_beta"):
            incomplete_beta(*bad)
    with pytest.raises(ValueError, match="beta_quantile"):
        beta_quantile(1.2, 1, 1)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 30_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_clopper_pearson_against_scipy(kn):
    k, n = kn
    exact = binomtest(k, n).proportion_ci(0.9, method="exact")
    assert clopper_pearson(k, n) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_clopper_pearson_ends():
    assert clopper_pearson(0, 0) is None and clopper_pearson(0, 50).low == 0
    assert clopper_pearson(0, 300).high == pytest.approx(3 / 300, rel=0.01)  # rule of three
    with pytest.raises(ValueError, match="clopper_pearson"):
        clopper_pearson(3, 2)


@pytest.mark.parametrize("k", [0, 1, 7, 150, 299, 300])
def test_bounds_of_a_mean_are_clopper_pearsons_for_right_and_wrong(k):
    values = (np.arange(300) < k).astype(float)
    low, high = clopper_pearson(k, 300)
    drawn = MeanBounds(values, 0.0, 1.0).at()
    tolerance = 0.03 * (high - low)  # 20,000 draws
    assert drawn == pytest.approx((low, high), abs=tolerance)
    # Two seeds that agree everywhere are one.
    assert rate_bounds([values == 1, values == 1]) == pytest.approx((low, high), abs=tolerance)


def test_bounds_where_nothing_varies():
    none = np.zeros(300, dtype=bool)
    low, high = difference_bounds([none], [none]).at()
    assert -0.0102 < low < -0.0098 and 0.0098 < high < 0.0102
    old, new = (np.arange(300) < 150).astype(float), (np.arange(300) < 200).astype(float)
    found = relative_nfr_bounds([old], [new], [none])
    assert found.low == 0 and found.high == pytest.approx(0.01 / (0.5 / 3), rel=0.1)
    assert relative_nfr_bounds([np.zeros(9)], [np.zeros(9)], [none[:9]]) is None
    assert relative_nfr_bounds([np.ones(9)], [np.ones(9)], [none[:9]]) is None
    assert MeanBounds(np.zeros(0), 0, 1).at() is None
    alone = MeanBounds(np.array([0.25]), 0.0, 1.0).at()
    assert alone.low < 0.1 and alone.high > 0.9


def test_bounds_of_many_levels_are_the_bootstraps():
    values = np.random.default_rng(0).normal(0.1, 1, 2000)
    found = MeanBounds(values, -9, 9).at()
    spread = 1.645 * values.std() / 2000**0.5
    assert found == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.005)
    sums = bootstrap_sums([values])[:, 0] / 2000
    assert found == percentile_interval(sums, 0.9)
    assert MeanBounds(values, -9, 9, sums).at() == found


def test_distinct_rows_are_numpys():
    rng = np.random.default_rng(3)
    for columns in (1, 3, 70):  # 70 columns don't fit into one whole number
        table = rng.integers(-1, 2, (500, columns)) * 0.3
        table[:, 5:] = table[:, :1] > 0
        cells, counts = np.unique(table, axis=0, return_counts=True)
        found = distinct_rows(list(table.T), 500)
        assert (found[0] == cells).all() and (found[1] == counts).all()
        assert distinct_rows(list(table.T), len(cells) - 1) is None
    assert distinct_rows([rng.normal(size=500)], 50) is None


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


CELLS = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], dtype=bool)  # right in old, in new
SHARES = [
    [0.60, 0.002, 0.002, 0.396],  # hardly a flip
    [0.60, 0.01, 0.01, 0.38],  # three expected among 300
    [0.55, 0.08, 0.10, 0.27],
    [0.90, 0.03, 0.06, 0.01],  # hardly an error
]
TRIALS = 200


@pytest.mark.parametrize("shares", SHARES)
def test_one_sided_bounds_cover_their_truth(shares, monkeypatch):
    """At n = 300, each bound lies on the wrong side in at most 5 % of 200 data sets (the
    tolerance is 3.3 standard errors): NFR, PFR, gain, relative NFR."""
    monkeypatch.setattr(bounds, "DRAWS", 1000)
    rng = np.random.default_rng(int(1000 * shares[1]))
    both, negative, positive, neither = shares
    truth = {
        "nfr": negative,
        "pfr": positive,
        "gain": positive - negative,
        "relative": negative / ((both + negative) * (negative + neither)),
    }
    missed = {(name, end): 0 for name in truth for end in ("low", "high")}
    for _ in range(TRIALS):
        old, new = CELLS[rng.choice(4, 300, p=shares)].T
        found = {
            "nfr": rate_bounds([old & ~new]),
            "pfr": rate_bounds([new & ~old]),
            "gain": difference_bounds([new], [old]).at(),
            "relative": relative_nfr_bounds([old * 1.0], [new * 1.0], [old & ~new]),
        }
        for name, value in truth.items():
            assert found[name] is not None or (name == "relative" and new.all())
            if found[name] is not None:
                missed[name, "low"] += found[name].low > value
                missed[name, "high"] += found[name].high < value
    most = binom.ppf(0.9995, TRIALS, 0.05)
    assert max(missed.values()) <= most, missed


def test_bounds_over_seeds_and_of_the_excess_cover_their_truth(monkeypatch):
    """Three seeds whose flips hang together, against a noise floor that shares some flips."""
    monkeypatch.setattr(bounds, "DRAWS", 1000)
    rng = np.random.default_rng(8)
    n, seeds, update, floor = 300, 3, 0.06, 0.03
    missed = np.zeros(4)
    for _ in range(TRIALS):
        fragile = rng.random(n) < 0.12  # only these flip, half of the time in the update
        flips = [fragile & (rng.random(n) < update / 0.12) for _ in range(seeds)]
        noise = [fragile & (rng.random(n) < floor / 0.12) for _ in range(seeds)]
        rate, excess = rate_bounds(flips), difference_bounds(flips, noise).at()
        missed += [
            rate.low > update,
            rate.high < update,
            excess.low > update - floor,
            excess.high < update - floor,
        ]
    assert missed.max() <= binom.ppf(0.9995, TRIALS, 0.05), missed
    # ... and aren't so wide that they say nothing.
    assert rate.high - rate.low < 0.06


def test_a_bootstrap_of_few_flips_would_not_cover():
    """Why the bounds add an example: one flip expected, and the bootstrap's upper bound
    lies below the truth far more often than in 5 % of the data sets."""
    rng = np.random.default_rng(4)
    rate, n, missed = 0.004, 300, 0
    for trial in range(200):
        flips = (rng.random(n) < rate).astype(float)
        found = percentile_interval(bootstrap_sums([flips], 500, trial)[:, 0] / n, 0.9)
        missed += found is None or found.high < rate
    assert missed / 200 > 0.1
