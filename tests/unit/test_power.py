"""What n examples can show: against known numbers and against simulated tests."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from muscle.metrics.bounds import MeanBounds
from muscle.metrics.power import (
    examples_for_bound,
    examples_for_difference,
    examples_for_rate,
    needed_examples,
    smallest_difference,
)


@pytest.mark.parametrize(("n", "expected"), [(1838, 0.016), (10042, 0.007)])
def test_the_task_sizes_of_the_paper(n: int, expected: float) -> None:
    assert smallest_difference(n) == pytest.approx(expected, abs=5e-4)


def simulated_power(n: int, discordant: float, difference: float, draws: int) -> float:
    """How often McNemar's test (mid-p) finds `difference` in n simulated examples."""
    rng = np.random.default_rng(0)
    worse, better = (discordant + difference) / 2, (discordant - difference) / 2
    counts = rng.multinomial(n, [worse, better, 1 - worse - better], size=draws)
    more, fewer = counts[:, 0], counts[:, 1]
    both, least = more + fewer, np.minimum(more, fewer)
    p = 2 * binom.cdf(least, both, 0.5) - binom.pmf(least, both, 0.5)
    return float((p <= 0.05).mean())


@pytest.mark.parametrize(
    ("n", "discordant"), [(1838, 0.06), (10042, 0.06), (500, 0.1), (2000, 0.3)]
)
def test_it_is_found_as_often_as_asked(n: int, discordant: float) -> None:
    found = smallest_difference(n, discordant)
    assert simulated_power(n, discordant, found, 20_000) == pytest.approx(0.8, abs=0.04)


def test_few_examples_find_only_what_goes_one_way() -> None:
    found = smallest_difference(60)
    assert found > 0.06  # more than the share that changes: then all of it is one way
    assert simulated_power(60, found, found, 20_000) >= 0.75


def test_more_examples_more_power_and_less_noise_show_more() -> None:
    sizes = [smallest_difference(n) for n in (5, 20, 100, 1000, 100_000)]
    assert sizes == sorted(sizes, reverse=True)
    assert all(0 < d <= 1 for d in sizes)
    assert smallest_difference(1000, power=0.95) > smallest_difference(1000)
    assert smallest_difference(1000, discordant=0.02) < smallest_difference(1000)
    assert smallest_difference(1) == 1.0


@pytest.mark.parametrize("bad", [(0, 0.06, 0.8, 0.05), (10, 0.0, 0.8, 0.05), (10, 0.1, 1.0, 0.05)])
def test_nonsense_is_refused(bad: tuple[int, float, float, float]) -> None:
    with pytest.raises(ValueError, match="smallest_difference"):
        smallest_difference(*bad)


@settings(deadline=None)
@given(st.floats(0.002, 0.99))
def test_needed_examples_are_just_enough(difference: float) -> None:
    n = needed_examples(difference)
    assert smallest_difference(n) <= difference
    assert n == 1 or smallest_difference(n - 1) > difference


@settings(deadline=None)
@given(st.integers(5, 50_000))
def test_what_n_examples_show_needs_no_more_than_n(n: int) -> None:
    assert needed_examples(smallest_difference(n)) <= n


def test_a_twelfth_of_the_paper_is_enough_for_five_points() -> None:
    """The default of a search: some 200 examples in each half."""
    assert 150 < needed_examples(0.05) < 250
    assert simulated_power(needed_examples(0.05), 0.06, 0.05, 20_000) >= 0.78


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 2.0])
def test_a_difference_is_a_share(bad: float) -> None:
    with pytest.raises(ValueError, match="needed_examples"):
        needed_examples(bad)


# What a gate needs


@settings(deadline=None)
@given(st.floats(0, 0.5), st.floats(0.001, 0.4))
def test_a_rates_bound_reaches_the_limit_there_and_not_before(rate: float, gap: float) -> None:
    limit = rate + gap
    n = examples_for_rate(rate, limit)
    assert n is not None

    def upper(size: int) -> float:  # Clopper and Pearson's, from scipy
        return float(beta.ppf(0.95, rate * size + 1, size - rate * size)) if size else 1.0

    assert upper(n) <= limit + 1e-9
    assert upper(n - 1) > limit - 1e-9


def test_no_flips_need_the_rule_of_three() -> None:
    assert examples_for_rate(0, 0.01) == 299  # log 0.05 / log 0.99
    assert examples_for_rate(0, 0.001) == pytest.approx(3 / 0.001, rel=0.002)


def test_a_rate_at_its_limit_is_never_enough() -> None:
    assert examples_for_rate(0.02, 0.02) is None
    assert examples_for_rate(0.03, 0.02) is None
    assert examples_for_rate(0, 0) is None
    assert examples_for_rate(1, 1) is None
    assert examples_for_rate(0.99, 1) == 1


def test_a_rate_just_below_its_limit_needs_many_and_no_time() -> None:
    n = examples_for_rate(0.02 - 1e-6, 0.02)
    assert n == pytest.approx(1.6449**2 * 0.02 * 0.98 / 1e-12, rel=1e-3)


def test_that_many_examples_pass_about_half_of_the_time() -> None:
    n = examples_for_rate(0.01, 0.02)
    assert n is not None
    flips = np.random.default_rng(0).binomial(n, 0.01, size=20_000)
    passed = beta.ppf(0.95, flips + 1, n - flips) <= 0.02
    assert passed.mean() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(
    ("worse", "better", "limit"),
    [(0.02, 0.05, 0.01), (0.02, 0.05, 0.08), (0.1, 0.1, -0.02), (0.0, 0.01, 0.005)],
)
def test_a_differences_bound_is_near_the_limit_there(
    worse: float, better: float, limit: float
) -> None:
    difference = better - worse
    n = examples_for_difference(difference, limit, worse + better)
    assert n is not None
    counts = [round(worse * n), round(better * n)]
    values = np.repeat([-1.0, 1.0, 0.0], [*counts, n - sum(counts)])
    bounds = MeanBounds(values, -1.0, 1.0).at()
    assert bounds is not None
    bound = bounds.high if limit > difference else bounds.low
    assert bound - difference == pytest.approx(limit - difference, rel=0.2)


def test_a_difference_at_its_limit_is_never_enough() -> None:
    assert examples_for_difference(0.03, 0.03, 0.07) is None
    assert examples_for_difference(0.0, 0.01, 0.0) == 100  # only the example nobody saw


def test_a_bound_comes_closer_with_the_root_of_n() -> None:
    assert examples_for_bound(0.5, 0.6, 0.55, 100) == pytest.approx(400, abs=1)
    assert examples_for_bound(0.5, 0.4, 0.45, 100) == pytest.approx(400, abs=1)
    assert examples_for_bound(0.5, 0.6, 0.5, 100) is None  # on the limit
    assert examples_for_bound(0.5, 0.6, 0.4, 100) is None  # beyond it
    assert examples_for_bound(0.5, 0.6, 0.5 + 1e-12, 100) is None  # nobody has so many
    assert examples_for_rate(0, 5e-324) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: examples_for_rate(-0.1, 0.5),
        lambda: examples_for_rate(0.1, 1.5),
        lambda: examples_for_difference(0.1, 0.2, 0.05),
        lambda: examples_for_difference(0.1, 0.2, 1.5),
        lambda: examples_for_bound(0.1, 0.2, 0.3, 0),
    ],
)
def test_impossible_shares_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="examples_for"):
        call()
