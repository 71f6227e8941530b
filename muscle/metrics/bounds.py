"""One-sided bounds: what a gate decides on, so they hold for few flips and for none.

A percentile bootstrap can only repeat what it saw: with no flip among n examples it says
0 to 0, and with one flip its upper bound is too low. The bounds here add one example that
nobody saw, at the worst value, before they ask how far the mean could lie (Gaffke 2005,
"Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
variable"; Phan, Thomas, Learned-Miller 2021, "Towards practical mean bounds for small
samples"). For right and wrong that is Clopper and Pearson's exact bound, and the "rule of
three" (about 3 / n) where nothing was seen at all. Simulations in the tests show that they
hold at their level.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from muscle.metrics.beta import beta_quantile
from muscle.metrics.flips import BoolArray, FloatArray
from muscle.metrics.intervals import SEED, Interval, bootstrap_sums, distinct_rows

BOUND = 0.90
"""Confidence of the two-sided interval whose ends are one-sided 95 % bounds."""

DRAWS = 20_000
FEW_LEVELS = 16
MAX_LEVELS = 256
"""Distinct rows up to which the bounds add the worst example."""


def clopper_pearson(k: float, n: float, confidence: float = BOUND) -> Interval | None:
    """Exact interval of a proportion (Clopper and Pearson 1934); None for n = 0.

    Never covers less than it says. `k` may be fractional.

    Raises:
        ValueError: k outside [0, n], confidence outside (0, 1).
    """
    if not 0 <= k <= n or not 0 < confidence < 1:
        raise ValueError(f"clopper_pearson({k}, {n}, {confidence}): need 0 <= k <= n")
    if n == 0:
        return None
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else beta_quantile(tail, k, n - k + 1)
    high = 1.0 if k == n else beta_quantile(1 - tail, k + 1, n - k)
    return Interval(low, high)


class MeanBounds:
    """Bounds of the mean of a bounded variable, each with one more example at its end.

    Weights of the examples are drawn from the flat Dirichlet distribution; the lower bound
    is a quantile of the weighted means with one more example of value `least`, the upper
    one with one of value `most`. With more than `MAX_LEVELS` different values one example
    moves nothing, and the percentile bootstrap serves.

    Args:
        values: [n], one for each example (a mean over seeds where there are several).
        least, most: what a value can be at the least and at the most.
        drawn: bootstrap means, for many different values; drawn here if they are needed
            and not given.
    """

    def __init__(
        self, values: FloatArray, least: float, most: float, drawn: FloatArray | None = None
    ) -> None:
        self._mean = float(values.mean()) if len(values) else None
        levels, counts = np.unique(values, return_counts=True)
        if len(levels) > MAX_LEVELS:
            means = bootstrap_sums([values])[:, 0] / len(values) if drawn is None else drawn
            self._low = self._high = means
            return
        weights, extra = _weights(counts)
        sums, total = weights @ levels, weights.sum(axis=1) + extra
        self._low, self._high = (sums + extra * least) / total, (sums + extra * most) / total

    def at(self, confidence: float = BOUND) -> Interval | None:
        """The two-sided interval of this confidence; None for n = 0."""
        if self._mean is None:
            return None
        tail = (1 - confidence) / 2
        low, high = np.quantile(self._low, tail), np.quantile(self._high, 1 - tail)
        # Rounding must not move a mean past its own end.
        return Interval(min(float(low), self._mean), max(float(high), self._mean))


def _weights(counts: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
    """Gamma weights of groups of examples [draws, groups], and of one more [draws]; divided
    by their sum they are Dirichlet's."""
    rng = np.random.default_rng(SEED)
    draws = DRAWS if len(counts) <= FEW_LEVELS else DRAWS // 4
    extra = rng.standard_exponential(draws)
    return rng.standard_gamma(counts.astype(np.float64), (draws, len(counts))), extra


def rate_bounds(indicators: Sequence[BoolArray], confidence: float = BOUND) -> Interval | None:
    """Bounds of a rate: Clopper and Pearson's for one seed, `MeanBounds` for several.

    Args:
        indicators: for each seed [n], on the same examples.
    """
    if len(indicators) == 1:
        return clopper_pearson(int(indicators[0].sum()), len(indicators[0]), confidence)
    return MeanBounds(over_seeds(indicators), 0.0, 1.0).at(confidence)


def difference_bounds(first: Sequence[BoolArray], second: Sequence[BoolArray]) -> MeanBounds:
    """Bounds of rate(first) - rate(second), both on the same examples.

    Args:
        first, second: for each seed [n].
    """
    return MeanBounds(over_seeds(first) - over_seeds(second), -1.0, 1.0)


def over_seeds(values: Sequence[BoolArray] | Sequence[FloatArray]) -> FloatArray:
    """Each example's mean over seeds, [n].

    Args:
        values: for each seed [n].
    """
    total = values[0].astype(np.float64)
    for value in values[1:]:
        total += value
    return total / len(values) if len(values) > 1 else total


def relative_nfr_bounds(
    old: Sequence[FloatArray],
    new: Sequence[FloatArray],
    worse: Sequence[BoolArray],
    confidence: float = BOUND,
) -> Interval | None:
    """Bounds of relative NFR, NFR / (acc1 (1 - acc2)), the mean over seeds.

    As `MeanBounds`: for the upper bound the example that nobody saw is a negative flip, for
    the lower one it is right in both versions or wrong in both, whichever is worse.

    Args:
        old, new: for each seed the scores [n], 0 or 1.
        worse: for each seed the negative flips [n].

    Returns:
        None where the rate itself is undefined (in some seed nothing was right before, or
        nothing is wrong now), or where more than `MAX_LEVELS` kinds of examples would have
        to be told apart.
    """
    if not len(old[0]) or any(not o.any() for o in old) or any(v.all() for v in new):
        return None
    found = distinct_rows([*old, *new, *worse], MAX_LEVELS)
    if found is None:
        return None
    cells, counts = found
    weights, extra = _weights(counts)
    seeds, n = len(old), weights.sum(axis=1) + extra
    tail = (1 - confidence) / 2

    def drawn(right_before: float, right_now: float, flipped: float) -> FloatArray:
        added = np.repeat([right_before, right_now, flipped], seeds)
        sums = weights @ cells + extra[:, None] * added
        before, now, flips = np.split(sums, 3, axis=1)
        values: FloatArray = (flips * n[:, None] / (before * (n[:, None] - now))).mean(axis=1)
        return values

    low = min(np.quantile(drawn(same, same, 0.0), tail) for same in (0.0, 1.0))
    high = np.quantile(drawn(1.0, 0.0, 1.0), 1 - tail)
    return Interval(float(low), float(high))
