"""How sure a flip rate is: Wilson intervals, the paired bootstrap, exact McNemar.

Two short formulas are written out here, since importing scipy.stats or statsmodels
takes longer than a whole `muscle compare`; the tests hold them against both.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muscle.metrics.beta import binomial_half_tail
from muscle.metrics.flips import FloatArray

CONFIDENCE = 0.95
DRAWS = 10_000
SEED = 20240712  # the day MUSCLE was published; any fixed number would do
MAX_UNDEFINED = 0.01
_CHUNK = 1 << 20  # resampled weights held at once, so that memory stays at some MB
_PICKS = 1 << 17  # examples drawn at once: what stays in the processor's cache
_KEYS = 1 << 62  # room of a row's whole number

Column: TypeAlias = NDArray[Any]
"""[n] numbers or booleans, one for each example."""


class Interval(NamedTuple):
    """A two-sided interval, low <= high."""

    low: float
    high: float


def as_list(interval: Interval | None) -> list[float] | None:
    """An interval as report.json has it."""
    return None if interval is None else [interval.low, interval.high]


class McNemar(NamedTuple):
    """Discordant counts of two paired indicators and the exact two-sided p.

    only_first   examples where the first indicator alone is true
    only_second  examples where the second alone is
    p            1 when there is no discordant example
    """

    only_first: int
    only_second: int
    p: float


def wilson(successes: float, n: float, confidence: float = CONFIDENCE) -> Interval | None:
    """Wilson's score interval for a proportion (Wilson 1927); None for n = 0.

    `successes` may be fractional (a mean over seeds).

    Raises:
        ValueError: successes outside [0, n], confidence outside (0, 1).
    """
    if not 0 <= successes <= n or not 0 < confidence < 1:
        raise ValueError(f"wilson({successes}, {n}, {confidence}): need 0 <= successes <= n")
    if n == 0:
        return None
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, square = successes / n, z * z / n
    centre = rate + square / 2
    spread = z * (rate * (1 - rate) / n + square / (4 * n)) ** 0.5
    # At 0 and n successes one end is exactly 0 or 1, and rounding must not move it.
    low = 0.0 if successes == 0 else (centre - spread) / (1 + square)
    high = 1.0 if successes == n else (centre + spread) / (1 + square)
    return Interval(max(0.0, low), min(1.0, high))


def mcnemar_exact(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Exact McNemar test of two paired indicators (McNemar 1947, binomial form).

    For "did the compatibility adapter lower NFR": first = F_new (old right, new
    wrong), second = F_compat (old right, compat wrong). Given the m discordant
    examples, the smaller count is Binomial(m, 1/2) when nothing changed.

    Args:
        first: [n] booleans.
        second: [n] booleans on the same examples.

    Raises:
        ValueError: the shapes differ.
    """
    a, b = np.asarray(first, dtype=np.bool_), np.asarray(second, dtype=np.bool_)
    if a.shape != b.shape:
        raise ValueError("the two indicators must have the same shape")
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    return McNemar(only_first, only_second, mcnemar_p(only_first, only_second))


def mcnemar_p(only_first: int, only_second: int) -> float:
    """The two-sided p of `mcnemar_exact`, from its discordant counts."""
    smaller, discordant = min(only_first, only_second), only_first + only_second
    return min(1.0, 2 * binomial_half_tail(smaller, discordant)) if discordant else 1.0


def bootstrap_sums(
    features: FloatArray | Sequence[Column], draws: int = DRAWS, seed: int = SEED
) -> FloatArray:
    """Column sums of `features` over resampled examples (Efron 1979), all columns together.

    One draw takes n examples with replacement and sums every column over them; since a
    row holds all versions (and all seeds) of its example, pairs stay pairs.

    Args:
        features: [n, columns], finite; or its columns, each [n] numbers or booleans.
        draws: the number of resamples.
        seed: of the random generator; the same one gives the same draws.

    Returns:
        [draws, columns].
    """
    columns = list(features.T) if isinstance(features, np.ndarray) else list(features)
    n = len(columns[0]) if columns else 0
    if n == 0:
        return np.zeros((draws, len(columns)))
    rng = np.random.default_rng(seed)
    # Right and wrong make few distinct rows: then how often each is drawn is one
    # multinomial number, and 10,000 draws cost milliseconds.
    found = distinct_rows(columns, n // 10)
    if found is None:
        return _resampled(np.stack(columns, axis=1).astype(np.float64), draws, rng)
    cells, counts = found
    out = np.empty((draws, len(columns)))
    step = max(1, _CHUNK // len(cells))
    for start in range(0, draws, step):
        weights = rng.multinomial(n, counts / n, size=min(step, draws - start))
        out[start : start + step] = weights.astype(np.float64) @ cells
    return out


def _resampled(features: FloatArray, draws: int, rng: np.random.Generator) -> FloatArray:
    """`bootstrap_sums` by drawing every example, [draws, columns]."""
    n, columns = features.shape
    out = np.empty((draws, columns))
    step = max(1, _PICKS // n)
    for start in range(0, draws, step):
        picks = rng.integers(0, n, size=(min(step, draws - start), n))
        here = out[start : start + step]
        if columns <= 2:
            for j in range(columns):
                here[:, j] = features[:, j].take(picks).sum(axis=1)
            continue
        # How often each example was drawn, once for all columns.
        weights = np.empty(picks.shape)
        for row, drawn in zip(weights, picks, strict=True):
            row[:] = np.bincount(drawn, minlength=n)
        here[:] = weights @ features
    return out


def distinct_rows(
    columns: Sequence[Column], most: int
) -> tuple[FloatArray, NDArray[np.int64]] | None:
    """The distinct rows of some columns and how often each comes, as `np.unique(axis=0)`
    has them, but with one whole number for a row instead of a sort of whole rows.

    Args:
        columns: each [n], finite numbers or booleans.
        most: how many distinct rows there may be.

    Returns:
        Rows [cells, columns] in lexicographic order, counts [cells]; None beyond `most`.
    """
    key = np.zeros(len(columns[0]), dtype=np.int64)
    room = 1  # keys lie below it
    for column in columns:
        codes, kinds = _codes(column, most)
        if kinds > most:
            return None
        if room > _KEYS // kinds:
            levels, key = np.unique(key, return_inverse=True)
            room = len(levels)
        key = key * kinds + codes
        room *= kinds
    _, rows, counts = np.unique(key, return_index=True, return_counts=True)
    if len(rows) > most:
        return None
    return np.stack([column[rows] for column in columns], axis=1).astype(np.float64), counts


def _codes(column: Column, most: int) -> tuple[NDArray[np.int64], int]:
    """A column as ranks of its values, and how many values there are."""
    if column.dtype == np.bool_ or ((column == 0) | (column == 1)).all():
        return column.astype(np.int64), 2
    some = column[: 2 * most + 1]  # the many values of a graded score show at once
    if len(np.unique(some)) > most:
        return np.zeros(0, dtype=np.int64), most + 1
    levels, codes = np.unique(column, return_inverse=True)
    return codes.astype(np.int64), len(levels)


def percentile_interval(values: FloatArray, confidence: float = CONFIDENCE) -> Interval | None:
    """The percentile interval of bootstrap draws [draws]; NaN marks an undefined draw.

    Returns:
        None where the draws can't tell: more than 1 % of them are undefined (a
        denominator of 0), or all are equal. The latter only says that no resample
        could vary (no flip among the examples), not that the number is certain.
    """
    known = values[~np.isnan(values)]
    if known.size == 0 or known.size < (1 - MAX_UNDEFINED) * values.size:
        return None
    tail = (1 - confidence) / 2
    if np.ptp(known) <= 1e-12:
        return None
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(float(low), float(high))
