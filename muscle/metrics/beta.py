"""The beta distribution, written out: importing scipy takes longer than a whole comparison.

The tests hold both functions against scipy.
"""

from math import exp, expm1, lgamma, log, log1p, sqrt
from statistics import NormalDist

_TINY = 1e-300


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function I_x(a, b), the CDF of Beta(a, b) at x.

    By the continued fraction of DLMF 8.17.22, on the side where it converges fast.

    Raises:
        ValueError: a or b not above 0, x outside [0, 1].
    """
    if not (a > 0 and b > 0 and 0 <= x <= 1):
        raise ValueError(f"incomplete_beta({a}, {b}, {x}): need a, b > 0 and 0 <= x <= 1")
    if x in (0.0, 1.0):
        return float(x)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    size = lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)
    return exp(size) * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction, evaluated from the front (Lentz 1976)."""
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    value = d
    # The fraction settles within some multiples of sqrt(max(a, b)) terms.
    for m in range(1, 200 + 20 * int(sqrt(max(a, b)))):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        step = 1.0
        for term in (even, odd):
            d = 1 / _away(1 + term * d)
            c = _away(1 + term / c)
            step = c * d
            value *= step
        if abs(step - 1) < 1e-15:
            break
    return value


def _away(value: float) -> float:
    """A denominator that is never 0."""
    return value if abs(value) > _TINY else _TINY


def beta_quantile(p: float, a: float, b: float) -> float:
    """The x with I_x(a, b) = p, to about twelve figures, by Halley's method inside a bracket.

    Raises:
        ValueError: a or b not above 0, p outside [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"beta_quantile({p}, {a}, {b}): need 0 <= p <= 1")
    if p in (0.0, 1.0):
        return p
    low, high = 0.0, 1.0
    x = _start(p, a, b)
    constant = lgamma(a + b) - lgamma(a) - lgamma(b)
    for _ in range(200):
        missing = incomplete_beta(a, b, x) - p
        low, high = (low, x) if missing > 0 else (x, high)
        logarithm = constant + (a - 1) * log(x) + (b - 1) * log1p(-x)
        newton = missing / exp(max(-700.0, min(700.0, logarithm)))
        bend = (a - 1) / x - (b - 1) / (1 - x)  # the density's slope over the density
        step = newton / max(0.5, min(2.0, 1 - newton * bend / 2))
        # Halley's steps cube the error, so the next one would be rounding, which may lie out
        # of the bracket: bisecting for that would take dozens of steps.
        if abs(step) <= max(1e-7 * min(x, 1 - x), 1e-15 * x):
            return x - step
        # A step out of the bracket is of no use, and neither is one where the density is flat.
        after = x - step if low < x - step < high else (low + high) / 2
        if after in (0.0, 1.0):
            return after
        x = after
    return x


def _start(p: float, a: float, b: float) -> float:
    """A guess of the quantile: the normal one of Abramowitz and Stegun 26.5.22; what the
    density's end alone would give where that is no bell."""
    if a > 1 and b > 1:
        z = NormalDist().inv_cdf(p)
        height = 2 / (1 / (2 * a - 1) + 1 / (2 * b - 1))
        curve = (z * z - 3) / 6
        skew = 1 / (2 * b - 1) - 1 / (2 * a - 1)
        # z is that of the lower tail, so both signs are turned around.
        w = -z * sqrt(max(0.0, height + curve)) / height
        w -= skew * (curve + 5 / 6 - 2 / (3 * height))
        guess = a / (a + b * exp(2 * w))
    elif b <= a:
        guess = exp(log(p) / a) if b == 1 else a / (a + b)
    else:
        guess = -expm1(log1p(-p) / b) if a == 1 else a / (a + b)
    return guess if 0 < guess < 1 else a / (a + b)


def binomial_half_tail(k: int, m: int) -> float:
    """P(X <= k) for X ~ Binomial(m, 1/2), k < m; never 0 unless it is below 1e-308."""
    return incomplete_beta(m - k, k + 1, 0.5)
