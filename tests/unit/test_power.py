"""What n examples can show: against known numbers and against simulated tests."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from muscle.metrics.power import needed_examples, smallest_difference


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


@given(st.floats(0.002, 0.99))
def test_needed_examples_are_just_enough(difference: float) -> None:
    n = needed_examples(difference)
    assert smallest_difference(n) <= difference
    assert n == 1 or smallest_difference(n - 1) > difference


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
