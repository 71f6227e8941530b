"""Negative and positive flips between two versions of a model.

Notation, everywhere in this room: N examples, c1 and c2 say whether the old and the
new version are right, acc1 and acc2 are their accuracies, D = score2 - score1.
The formulas are those of Echterhoff et al., "MUSCLE", Findings of EMNLP 2024, §3,
unless a docstring names another source.

A formula is written once, over `PairSums`, and serves twice: on the data it gives a
number (None where a denominator is 0), on bootstrap draws an array (NaN there).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


ROUNDING = 1e-12
"""Two graded scores nearer than this are equal: the same precision and recall, added in
another order, may differ in their last bit, and that is no flip."""


@dataclass(frozen=True, slots=True)
class PairSums:
    """Sums over the examples of one pair of versions: all that a formula reads.

    Every field is an array of one shape: () for the data, [draws] for resampled data.
    NaN stands for what this pair does not have: `right_old`, `right_new` and
    `inconsistent` for continuous metrics, `inconsistent` without comparable answers.

    n             examples
    right_old     sum of c1
    right_new     sum of c2
    negative      examples that got worse
    positive      examples that got better
    inconsistent  new wrong with another answer than old's (negative flips included)
    gain          sum of D over the examples that got better
    regression    sum of |D| over the examples that got worse
    """

    n: FloatArray
    right_old: FloatArray
    right_new: FloatArray
    negative: FloatArray
    positive: FloatArray
    inconsistent: FloatArray
    gain: FloatArray
    regression: FloatArray


def _sums(*values: float | None) -> PairSums:
    return PairSums(*(np.asarray(np.nan if v is None else v, dtype=np.float64) for v in values))


@dataclass(frozen=True, slots=True)
class FlipCounts:
    """The five ways one example can go for an accuracy-like metric; they sum to n.

    The two both-wrong counts are None when the answers can't be compared; the 2x2
    table then still holds, with `both_wrong`.
    """

    both_right: int
    negative: int
    positive: int
    both_wrong: int
    both_wrong_same: int | None = None
    both_wrong_different: int | None = None

    @property
    def n(self) -> int:
        """The number of examples."""
        return self.both_right + self.negative + self.positive + self.both_wrong

    def sums(self) -> PairSums:
        """The same counts as the formulas read them; here D is in {-1, 0, 1}."""
        different = self.both_wrong_different
        return _sums(
            self.n,
            self.both_right + self.negative,
            self.both_right + self.positive,
            self.negative,
            self.positive,
            None if different is None else self.negative + different,
            self.positive,
            self.negative,
        )


@dataclass(frozen=True, slots=True)
class ScoreCounts:
    """The three ways one example can go for a continuous metric, and how far."""

    negative: int
    positive: int
    equal: int
    gain: float
    regression: float

    @property
    def n(self) -> int:
        """The number of examples."""
        return self.negative + self.positive + self.equal

    def sums(self) -> PairSums:
        """The same counts as the formulas read them; right and wrong do not exist."""
        return _sums(
            self.n, None, None, self.negative, self.positive, None, self.gain, self.regression
        )


def same_answers(old: tuple[str | None, ...], new: tuple[str | None, ...]) -> BoolArray | None:
    """Whether the two versions gave the same answer, [n]; None if any answer is unknown."""
    if None in old or None in new:
        return None
    return np.array([a == b for a, b in zip(old, new, strict=True)], dtype=np.bool_)


def count_flips(
    old_right: ArrayLike, new_right: ArrayLike, same: ArrayLike | None = None
) -> FlipCounts:
    """Count the five outcomes of an accuracy-like metric.

    Args:
        old_right: [n] whether the old version is right (bool, or 0 and 1).
        new_right: [n] the same for the new version.
        same: [n] whether both gave the same answer; it only matters where both are
            wrong. None when answers can't be compared.

    Raises:
        ValueError: the arrays differ in shape.
    """
    c1, c2 = np.asarray(old_right, dtype=np.bool_), np.asarray(new_right, dtype=np.bool_)
    equal = None if same is None else np.asarray(same, dtype=np.bool_)
    if c1.shape != c2.shape or (equal is not None and equal.shape != c1.shape):
        raise ValueError("old_right, new_right and same must have the same shape")
    wrong = ~c1 & ~c2
    return FlipCounts(
        both_right=int((c1 & c2).sum()),
        negative=int((c1 & ~c2).sum()),
        positive=int((~c1 & c2).sum()),
        both_wrong=int(wrong.sum()),
        both_wrong_same=None if equal is None else int((wrong & equal).sum()),
        both_wrong_different=None if equal is None else int((wrong & ~equal).sum()),
    )


def count_scores(old: ArrayLike, new: ArrayLike, epsilon: float = 0.0) -> ScoreCounts:
    """Count the examples of a continuous metric that got worse, better, or neither.

    Args:
        old: [n] scores of the old version.
        new: [n] scores of the new version.
        epsilon: the dead zone; |D| <= epsilon is equal (0: any change counts).

    Raises:
        ValueError: the arrays differ in shape, a score is not finite, epsilon < 0.
    """
    s1, s2 = np.asarray(old, dtype=np.float64), np.asarray(new, dtype=np.float64)
    if s1.shape != s2.shape:
        raise ValueError("old and new must have the same shape")
    if not (np.isfinite(s1).all() and np.isfinite(s2).all()) or not epsilon >= 0:
        raise ValueError("scores must be finite and epsilon at least 0")
    difference = s2 - s1
    worse, better = difference < -epsilon, difference > epsilon
    return ScoreCounts(
        negative=int(worse.sum()),
        positive=int(better.sum()),
        equal=int((~worse & ~better).sum()),
        gain=float(difference[better].sum()),
        regression=float(-difference[worse].sum()),
    )


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> FloatArray:
    """numerator / denominator, broadcast; NaN where the denominator is 0 or NaN."""
    top = np.asarray(numerator, dtype=np.float64)
    bottom = np.asarray(denominator, dtype=np.float64)
    out = np.full(np.broadcast_shapes(top.shape, bottom.shape), np.nan)
    np.divide(top, bottom, out=out, where=np.broadcast_to(bottom != 0, out.shape))
    return out


class Formula:
    """One measure: called on counts it gives a number or None, `compute` works on arrays."""

    def __init__(self, compute: Callable[[PairSums], FloatArray]) -> None:
        self.compute = compute
        update_wrapper(self, compute)

    def __call__(self, counts: FlipCounts | ScoreCounts) -> float | None:
        """The measure on counted data; None where it is undefined."""
        value = float(self.compute(counts.sums()))
        return None if np.isnan(value) else value


@Formula
def nfr(s: PairSums) -> FloatArray:
    """Negative flip rate, mean[c1 and not c2]; mean[D < 0] for a continuous metric."""
    return ratio(s.negative, s.n)


@Formula
def pfr(s: PairSums) -> FloatArray:
    """Positive flip rate, mean[not c1 and c2]; mean[D > 0] for a continuous metric."""
    return ratio(s.positive, s.n)


@Formula
def nfr_mc(s: PairSums) -> FloatArray:
    """Inconsistency flips, mean[new answer wrong and other than old's]; at least NFR.

    A negative flip counts even if both texts look alike (two choices may share one
    text), so NFR_mc >= NFR holds on any data.
    """
    return ratio(s.inconsistent, s.n)


@Formula
def relative_nfr(s: PairSums) -> FloatArray:
    """NFR / (acc1 (1 - acc2)): 1 when new's errors are independent of old's.

    Source: Yan et al. 2021, "Positive-congruent training".
    """
    return ratio(s.negative * s.n, s.right_old * (s.n - s.right_new))


@Formula
def btc(s: PairSums) -> FloatArray:
    """Backward trust compatibility, P(c2 | c1) = 1 - NFR / acc1.

    Source: Srivastava et al. 2020, "An empirical analysis of backward compatibility".
    """
    return ratio(s.right_old - s.negative, s.right_old)


@Formula
def nfi(s: PairSums) -> FloatArray:
    """Negative flip impact, NFR / (1 - acc2): the share of new's errors that are flips.

    Source: Cai et al. 2022, "Measuring and reducing model update regression".
    """
    return ratio(s.negative, s.n - s.right_new)


@Formula
def kappa(s: PairSums) -> FloatArray:
    """Error consistency (o - e) / (1 - e): agreement in right and wrong beyond chance.

    o = 1 - NFR - PFR, e = acc1 acc2 + (1 - acc1)(1 - acc2); Cohen's kappa of c1 and c2.
    Source: Geirhos et al. 2020, "Beyond accuracy: quantifying trial-by-trial behaviour".
    """
    observed = (s.n - s.negative - s.positive) * s.n
    expected = s.right_old * s.right_new + (s.n - s.right_old) * (s.n - s.right_new)
    return ratio(observed - expected, s.n * s.n - expected)


@Formula
def m_g(s: PairSums) -> FloatArray:
    """Average gain where there is one, sum D 1[D > 0] / (N PFR); 1 for accuracies."""
    return ratio(s.gain, s.positive)


@Formula
def m_r(s: PairSums) -> FloatArray:
    """Average regression where there is one, sum |D| 1[D < 0] / (N NFR); 1 for accuracies."""
    return ratio(s.regression, s.negative)


RATES: dict[str, Formula] = {
    "nfr": nfr,
    "pfr": pfr,
    "nfr_mc": nfr_mc,
    "relative_nfr": relative_nfr,
    "btc": btc,
    "nfi": nfi,
    "kappa": kappa,
    "m_g": m_g,
    "m_r": m_r,
}
"""Every measure of a pair, by its name in report.json and in that order."""
