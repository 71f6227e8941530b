"""What a number of examples can show: the smallest change of a flip rate that a test finds,
and how many examples bring a gate's bound inside its limit."""

from math import ceil, sqrt
from statistics import NormalDist

from muscle.metrics.beta import incomplete_beta

ONE_SIDED = 0.95
"""Confidence of a gate's bounds."""

DISCORDANT = 0.06
"""Share of examples whose flip status changes between two versions, as is usual for updates."""


def smallest_difference(
    n: int, discordant: float = DISCORDANT, power: float = 0.8, alpha: float = 0.05
) -> float:
    """The smallest change of NFR that a two-sided paired (McNemar) test of n examples finds.

    With discordant share psi and difference d, the estimate has the variance (psi - d^2) / n,
    and psi / n when nothing changed, so (Connor 1987, "Sample size for testing differences
    in proportions for the paired-sample design")

        d sqrt(n) = z_(1-alpha/2) sqrt(psi) + z_power sqrt(psi - d^2).

    Solved for d. A difference can't be more than the discordant share: where that is too
    small to be found, psi grows with d (all changes go one way).

    Returns:
        A fraction in (0, 1]; 1 where nothing short of everything would be found.

    Raises:
        ValueError: n < 1, or a share outside (0, 1).
    """
    if n < 1 or not all(0 < share < 1 for share in (discordant, power, alpha)):
        raise ValueError(f"smallest_difference({n}, {discordant}, {power}, {alpha})")
    z_alpha = NormalDist().inv_cdf(1 - alpha / 2)
    z_power = NormalDist().inv_cdf(power)
    a = z_alpha * sqrt(discordant)
    root = a * a * n - (n + z_power**2) * (a * a - z_power**2 * discordant)
    found = (a * sqrt(n) + sqrt(max(0.0, root))) / (n + z_power**2)
    if found <= discordant:
        return found

    def missing(d: float) -> float:
        return z_alpha * sqrt(d) + z_power * sqrt(d - d * d) - d * sqrt(n)

    low, high = discordant, 1.0
    if missing(high) > 0:
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if missing(middle) > 0 else (low, middle)
    return high


def needed_examples(difference: float) -> int:
    """The fewest examples that `smallest_difference` finds a difference with.

    Raises:
        ValueError: a difference outside (0, 1).
    """
    if not 0 < difference < 1:
        raise ValueError(f"needed_examples({difference})")
    high = 1
    while smallest_difference(high) > difference:
        high *= 2
    low = high // 2
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if smallest_difference(middle) > difference else (low, middle)
    return high


_MOST = 10_000_000
"""Examples above which an approximation is exact enough, and the exact bound slow."""

_NEVER = 1e15
"""Nobody has so many: the same as that no number would do."""


def _examples(n: float) -> int | None:
    return max(1, ceil(n)) if n < _NEVER else None


def examples_for_rate(rate: float, limit: float, confidence: float = ONE_SIDED) -> int | None:
    """The fewest examples that bring the exact upper bound of a rate down to a limit.

    The bound is Clopper and Pearson's (`bounds.clopper_pearson`), and the rate is taken to
    stay what it was: a second look at so many examples passes about as often as not.

    Returns:
        None where no number would do, because the rate is not below the limit.

    Raises:
        ValueError: a rate or limit outside [0, 1].
    """
    if not 0 <= rate <= 1 or not 0 <= limit <= 1:
        raise ValueError(f"examples_for_rate({rate}, {limit})")
    if rate >= limit:
        return None
    if limit == 1:
        return 1
    z, gap = NormalDist().inv_cdf(confidence), limit - rate
    # Wilson's bound reaches the limit at (z spread / gap)^2; the term 2 gap corrects for
    # continuity: gap = z sqrt(limit (1 - limit) / n) + 1 / (2 n).
    spread = z * sqrt(limit * (1 - limit))
    root = (spread + sqrt(spread * spread + 2 * gap)) / (2 * gap)
    about = _examples(root * root)
    if about is None or about > _MOST:
        return about

    def inside(n: int) -> bool:
        flips = rate * n
        return incomplete_beta(flips + 1, n - flips, limit) >= confidence

    low, high = 0, about
    while not inside(high):
        low, high = high, 2 * high
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if inside(middle) else (middle, high)
    return high


def examples_for_difference(
    difference: float, limit: float, discordant: float, confidence: float = ONE_SIDED
) -> int | None:
    """About how many examples bring the bound of an observed paired difference to a limit.

    The difference d and the discordant share psi are taken to stay what they were. Then the
    bound is z sqrt((psi - d^2) / n) away from d, and 1 / n more for the example that nobody
    saw (`bounds.MeanBounds`); solved for n. A limit above d asks for the upper bound, one
    below d for the lower.

    Returns:
        None where no number would do: the difference is the limit.

    Raises:
        ValueError: a discordant share outside [|d|, 1].
    """
    if not abs(difference) <= discordant + 1e-12 or not discordant <= 1:
        raise ValueError(f"examples_for_difference({difference}, {limit}, {discordant})")
    if difference == limit:
        return None
    gap = abs(difference - limit)
    variance = max(0.0, discordant - difference * difference)
    spread = NormalDist().inv_cdf(confidence) * sqrt(variance)
    root = (spread + sqrt(spread * spread + 4 * gap)) / (2 * gap)
    return _examples(root * root)


def examples_for_bound(value: float, bound: float, limit: float, n: int) -> int | None:
    """The same for any estimate whose bound from n examples lies `|bound - value|` away.

    That distance shrinks with the square root of the number of examples.

    Returns:
        None where no number would do: the value is the limit, or on the bound's side of it.

    Raises:
        ValueError: n < 1.
    """
    if n < 1:
        raise ValueError(f"examples_for_bound({value}, {bound}, {limit}, {n})")
    room, width = limit - value, bound - value
    if room * width <= 0:
        return None
    return _examples(n * (width / room) ** 2)
