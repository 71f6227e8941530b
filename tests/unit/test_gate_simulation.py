"""The gate's promise: a change on its limit passes in at most 5 % of cases, at any size."""

from collections import Counter
from functools import cache

import numpy as np
import pytest
from gating import answers, report_block, task_block
from scipy.stats import binom

from muscle.gate import Limits, make_limits
from muscle.gate.decide import decide
from muscle.metrics.bounds import difference_bounds


@cache
def verdict(limits: Limits, counts: tuple[int, int, int, int]) -> str:
    return str(decide(report_block(t=task_block(*answers(*counts))), limits)["verdict"])


@pytest.mark.parametrize(
    ("n", "delta"), [(300, 0.01), (300, 0.02), (300, 0.05), (1000, 0.01), (1000, 0.02)]
)
def test_an_nfr_on_its_limit_passes_in_5_percent_at_most(n: int, delta: float) -> None:
    """Exactly: the binomial probability of all counts of flips that pass."""
    limits = make_limits(max_nfr=delta)
    counts = range(int(4 * n * delta) + 10)
    verdicts = [verdict(limits, (n - k, k, 0, 0)) for k in counts]
    chance = binom.pmf(counts, n, delta)
    passed = sum(p for p, v in zip(chance, verdicts, strict=True) if v == "pass")
    failed = 1 - sum(p for p, v in zip(chance, verdicts, strict=True) if v != "fail")
    assert passed <= 0.05 and failed <= 0.05 + 1e-6
    # One more allowed flip would break the promise: the gate is no stricter than it says.
    most = max(k for k, v in zip(counts, verdicts, strict=True) if v == "pass")
    assert binom.cdf(most + 1, n, delta) > 0.05


def excess_verdicts(extra: float, delta: float, n: int, repeats: int) -> Counter[str]:
    """Verdicts on updates with `extra` flips more than the 3 % between two seeds of old."""
    shares = [0.015, 0.015 + extra, 0.015, 0.7, 0.255 - extra]
    found: Counter[str] = Counter()
    known: dict[tuple[int, int], str] = {}
    for _, new, again, *_ in np.random.default_rng(5).multinomial(n, shares, repeats):
        if (new, again) not in known:
            known[new, again] = excess_verdict(int(new), int(again), n, delta)
        found[known[new, again]] += 1
    return found


def excess_verdict(new: int, again: int, n: int, delta: float) -> str:
    """The verdict on flips that came in the update alone, or in old's second seed alone."""
    update = np.repeat([True, False, False], [new, again, n - new - again])
    floor = np.repeat([False, True, False], [new, again, n - new - again])
    bounds = difference_bounds([update], [floor]).at()
    assert bounds is not None
    excess = {"nfr": (new - again) / n, "bounds95": {"nfr": list(bounds)}}
    block = {"n": n, "continuous": False, "pairs": {"old->new": {}}}
    block["noise_floor"] = {"excess": {"old->new": excess}}
    return str(decide(report_block(t=block), make_limits(max_excess_nfr=delta))["verdict"])


def test_excess_flips_on_their_limit_rarely_pass_and_beyond_it_never() -> None:
    on, beyond = (excess_verdicts(extra, 0.02, 300, 300) for extra in (0.02, 0.05))
    assert on["pass"] / 300 <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5
    assert beyond["pass"] == 0 and beyond["fail"] > 100


def test_two_seeds_of_one_version_are_not_blocked() -> None:
    found = excess_verdicts(0.0, 0.02, 1000, 100)
    assert found["fail"] <= 2 and found["pass"] > 75
