"""What a number of examples can show: the smallest change of a flip rate that a test finds."""

from math import sqrt
from statistics import NormalDist

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
