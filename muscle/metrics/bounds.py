"""One-sided 95 % bounds for a gate: they hold their level where intervals for reading don't.

A gate passes when a bound is inside a limit, so the bound has to lie beyond the truth in
95 % of all samples, at the sizes and rates that gates meet: 300 examples, 2 %. There,
Wilson's upper bound lets 6 % of updates pass that are exactly at the limit, and the
percentile bootstrap of a difference up to 8 % (benchmarks/gate.py measures it). The exact
binomial bound never lets more than 5 % pass, the score bound of a difference about 5 %.

No scipy: importing it takes longer than everything else that a gate does.
"""

from math import exp, log, log1p, sqrt
from statistics import NormalDist

import numpy as np

from muscle.metrics.intervals import Interval

ONE_SIDED = 0.95
_STEPS = 60  # halvings of [0, 1]: to the last bit of a double near 1


def rate_bounds(successes: int, n: int, confidence: float = ONE_SIDED) -> Interval | None:
    """Lower and upper one-sided bounds of a proportion (Clopper and Pearson 1934), exact.

    Upper: the rate at which `successes` or fewer have the probability 1 - confidence;
    lower: the same with `successes` or more. None for n = 0.

    Raises:
        ValueError: successes outside [0, n], confidence outside (0, 1).
    """
    if not 0 <= successes <= n or not 0 < confidence < 1:
        raise ValueError(f"rate_bounds({successes}, {n}, {confidence}): need 0 <= successes <= n")
    if n == 0:
        return None
    high = 1.0 if successes == n else _most(successes, n, 1 - confidence)
    low = 0.0 if successes == 0 else 1.0 - _most(n - successes, n, 1 - confidence)
    return Interval(low, high)


def _most(successes: int, n: int, tail: float) -> float:
    """The rate p with P(X <= successes) = tail, X ~ Binomial(n, p), successes < n."""
    if successes == 0:
        return -np.expm1(log(tail) / n).item()
    if 2 * successes > n:  # sum the shorter tail: P(X <= k) = 1 - P(n - X <= n - k - 1)
        return 1.0 - _most_of(_log_choose(n, n - successes - 1), n, 1 - tail)
    return _most_of(_log_choose(n, successes), n, tail)


def _log_choose(n: int, k: int) -> np.ndarray:
    """log C(n, i) for i = 0 … k, [k + 1]."""
    i = np.arange(k, dtype=np.float64)
    return np.concatenate([[0.0], np.cumsum(np.log((n - i) / (i + 1)))])


def _most_of(choose: np.ndarray, n: int, tail: float) -> float:
    i = np.arange(len(choose), dtype=np.float64)
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        p = (low + high) / 2
        terms = choose + i * log(p) + (n - i) * log1p(-p)
        top = float(terms.max())
        below = exp(min(0.0, top + log(float(np.exp(terms - top).sum()))))
        low, high = (p, high) if below > tail else (low, p)
    return high


def difference_bounds(
    more: int, fewer: int, n: int, confidence: float = ONE_SIDED
) -> Interval | None:
    """Lower and upper one-sided bounds of a paired difference of proportions.

    The difference is (more - fewer) / n: `more` examples where only the first indicator
    is true, `fewer` where only the second is. A bound is the difference d at which the
    score statistic (more - fewer - n d) / sqrt(n (2 q + d (1 - d))) reaches the normal
    quantile, q being the likeliest share of `fewer` under d. None for n = 0.

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design".

    Raises:
        ValueError: negative counts, more than n of them, confidence outside (0, 1).
    """
    if min(more, fewer) < 0 or more + fewer > n or not 0 < confidence < 1:
        raise ValueError(f"difference_bounds({more}, {fewer}, {n}, {confidence})")
    if n == 0:
        return None
    z = NormalDist().inv_cdf(confidence)
    return Interval(-_score_upper(fewer, more, n, z), _score_upper(more, fewer, n, z))


def _score_upper(b: int, c: int, n: int, z: float) -> float:
    """The largest d in [(b - c) / n, 1] that the score test does not refuse."""
    low, high = (b - c) / n, 1.0
    for _ in range(_STEPS):
        d = (low + high) / 2
        middle = (2 * n - b + c) * d - b - c
        q = (sqrt(max(0.0, middle * middle + 8 * n * c * d * (1 - d))) - middle) / (4 * n)
        variance = n * (2 * q + d * (1 - d))
        refused = b - c - n * d < -z * sqrt(max(0.0, variance))
        low, high = (low, d) if refused else (d, high)
    return high
