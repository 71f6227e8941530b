"""Exact tests and intervals from sums alone, for hundreds of slices of a million examples.

Fisher's test is a sum over the hypergeometric distribution, built from the ratios of its
neighbouring terms: importing scipy.stats takes longer than a whole `muscle compare`.
"""

from math import sqrt
from statistics import NormalDist

import numpy as np

from muscle.metrics.flips import FloatArray
from muscle.metrics.intervals import CONFIDENCE, Interval, wilson

_TIE = 1e-7  # terms this much above the observed one are equal to it but for rounding


def fisher_exact(inside: int, size: int, total: int, n: int) -> float:
    """Fisher's exact test, two-sided: is a share in a part another than in the rest?

    Args:
        inside: successes among the `size` examples of the part.
        size: examples of the part.
        total: successes among all `n` examples.
        n: all examples, the part included.

    Returns:
        The probability of all tables at most as likely as this one (Fisher 1935).

    Raises:
        ValueError: counts that no table has.
    """
    lowest, highest = max(0, size + total - n), min(size, total)
    if not 0 <= size <= n or not lowest <= inside <= highest:
        raise ValueError(f"fisher_exact({inside}, {size}, {total}, {n}): no such table")
    mean = size * (total / n) if n else 0.0
    # Beyond so many terms from the mean all together are below 1e-100.
    width = 400 + int(40 * sqrt(mean * (1 - total / n))) if n else 0
    low = max(lowest, min(inside, int(mean) - width))
    high = min(highest, max(inside, int(mean) + width))
    i = np.arange(low, high, dtype=np.float64)
    ratios = np.log((total - i) * (size - i)) - np.log((i + 1) * (n - total - size + i + 1))
    logs = np.concatenate([[0.0], np.cumsum(ratios)])
    weights: FloatArray = np.exp(logs - logs.max())
    weights /= weights.sum()
    return float(min(1.0, weights[weights <= weights[inside - low] * (1 + _TIE)].sum()))


def share_interval(
    total: float, squares: float, n: int, seeds: int = 1, confidence: float = CONFIDENCE
) -> Interval | None:
    """An interval for the mean of n values in [0, 1], each a mean of 0/1 over `seeds` seeds.

    Wilson's. For several seeds with the number of examples that a 0/1 indicator of the
    same mean would need for the same variance (the effective size of Korn and Graubard
    1998), between n (all seeds agree) and n times the seeds (they have nothing in common).
    So with several seeds a slice that is the whole task has a slightly other interval than
    the task itself, which the paired bootstrap gives (`report.pairs.rate_interval`): that
    takes thousands of draws, and hundreds of slices have the sums alone.

    Args:
        total: the sum of the values.
        squares: the sum of their squares.
    """
    if seeds == 1 or n == 0:
        return wilson(total, n, confidence)
    rate = min(1.0, total / n)  # sums of thirds may exceed n by a rounding
    variance, binary = squares / n - rate * rate, rate * (1 - rate)
    effective = float(n)
    if binary > 0:
        effective = n * min(float(seeds), max(1.0, binary / max(variance, 1e-300)))
    return wilson(rate * effective, effective, confidence)


def change_interval(
    total: float, squares: float, n: int, confidence: float = CONFIDENCE
) -> Interval | None:
    """An interval for the mean of n paired changes in [-1, 1], such as the change of a rate.

    Agresti and Min 2005, "Simple improved confidence intervals for comparing matched
    proportions": the normal interval after two more examples, that together are one change
    in either direction, which holds its level where few examples change. Changes may be
    fractions (means over seeds).

    Args:
        total: the sum of the changes.
        squares: the sum of their squares: the discordant examples, for one seed.
    """
    if n == 0:
        return None
    low, high = _normal(total, squares + 1, n + 2, confidence)
    return Interval(max(-1.0, low), min(1.0, high))


def mean_interval(
    total: float, squares: float, n: int, confidence: float = CONFIDENCE
) -> Interval | None:
    """The normal interval for the mean of n numbers of any size; None if none varies."""
    if n < 2 or squares - total * total / n <= 1e-12 * max(1.0, squares):
        return None
    return _normal(total, squares, n, confidence)


def _normal(total: float, squares: float, n: int, confidence: float) -> Interval:
    mean = total / n
    spread = sqrt(max(0.0, squares / n - mean * mean) / n)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    return Interval(mean - z * spread, mean + z * spread)
