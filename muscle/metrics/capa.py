"""CAPA: chance-adjusted agreement of two versions, from their choice probabilities.

Source: Goel et al. 2025, "Great models think alike and this undermines AI oversight".
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from muscle.metrics.choices import by_size, first_match, lengths_of, numbers_of
from muscle.metrics.columns import Column
from muscle.metrics.flips import FloatArray
from muscle.metrics.intervals import CONFIDENCE, Interval
from muscle.metrics.pairing import JoinedTask, Pair
from muscle.types import Prediction


class Capa(NamedTuple):
    """CAPA and its 95 % interval; None where they can't be had."""

    value: float | None
    interval: Interval | None


def choice_probabilities(loglikelihoods: Sequence[float]) -> FloatArray | None:
    """softmax over one example's choice log-likelihoods, [K]; -inf is probability 0.

    None where there is no distribution: NaN, +inf, no choices, or -inf everywhere.
    """
    scores = np.asarray(loglikelihoods, dtype=np.float64)
    return _softmax(scores[None])[0] if _are_distributions(scores[None]) else None


def _are_distributions(scores: FloatArray) -> bool:
    """Whether softmax has a value in each row of [m, K]."""
    if not scores.shape[1] or np.isnan(scores).any():
        return False
    return bool(np.isfinite(scores.max(axis=1)).all())


def _softmax(scores: FloatArray) -> FloatArray:
    weights: FloatArray = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def capa_of_probabilities(
    old: Sequence[FloatArray], new: Sequence[FloatArray], gold: Sequence[int]
) -> float | None:
    """(o - e) / (1 - e) with o = mean of the sum over k of p1k p2k and
    e = p1 p2 + (1 - p1)(1 - p2) mean[1 / (K - 1)], p1 and p2 the mean probabilities of
    the gold choice. One-hot distributions give the discrete form.

    Args:
        old: one distribution of shape [K] for each example; K may differ by example.
        new: the same of the new version, over the same choices.
        gold: the index of the right choice, for each example.

    Returns:
        CAPA, at most 1; None without examples, with a K below 2, or when e is 1.

    Raises:
        ValueError: the sequences or two distributions of one example differ in length.
    """
    if not (len(old) == len(new) == len(gold)):
        raise ValueError("old, new and gold must have the same length")
    if any(p.shape != q.shape for p, q in zip(old, new, strict=True)):
        raise ValueError("both versions must have the same choices")
    if not gold or any(len(p) < 2 for p in old):
        return None
    rows = [(p @ q, p[k], q[k], 1 / (len(p) - 1)) for p, q, k in zip(old, new, gold, strict=True)]
    return _value(np.array(rows, dtype=np.float64).mean(axis=0))


def _value(means: FloatArray) -> float | None:
    """CAPA of the means of (agreement, p1, p2, 1 / (K - 1)), [4]."""
    observed, p1, p2, chance = means.tolist()
    expected = p1 * p2 + (1 - p1) * (1 - p2) * chance
    return None if expected == 1 else float((observed - expected) / (1 - expected))


def _gradient(means: FloatArray) -> FloatArray:
    """The derivatives of CAPA by those means, [4]."""
    observed, p1, p2, chance = means.tolist()
    expected = p1 * p2 + (1 - p1) * (1 - p2) * chance
    by_expected = (observed - 1) / (1 - expected) ** 2
    return np.array(
        [
            1 / (1 - expected),
            by_expected * (p2 - (1 - p2) * chance),
            by_expected * (p1 - (1 - p1) * chance),
            by_expected * (1 - p1) * (1 - p2),
        ]
    )


def example_terms(old: Column, new: Column, choices: Column, gold: Column) -> FloatArray | None:
    """What CAPA is the mean of, [n, 4]: the chance of both giving the same answer, p1 and p2
    of the gold choice, 1 / (K - 1).

    Args:
        old: [n] lists of one log-likelihood for each choice.
        new: the same of the other version.
        choices: [n] lists of texts.
        gold: [n] the text of the right choice.

    Returns:
        None where one example has no distribution over at least two choices, or a gold
        answer that is not among them.
    """
    lengths = lengths_of(choices)
    for lists in (old, new, choices):
        if lists.null_count or (lengths_of(lists) != lengths).any():
            return None
    right = first_match(choices, gold)
    if not len(right) or lengths.min() < 2 or right.min() < 0:
        return None
    terms = np.empty((len(lengths), 4))
    terms[:, 3] = 1 / (lengths - 1)
    for rows, (first, second) in by_size(lengths, numbers_of(old), numbers_of(new)):
        if not (_are_distributions(first) and _are_distributions(second)):
            return None
        p, q = _softmax(first), _softmax(second)
        terms[rows, 0] = np.einsum("nk,nk->n", p, q)
        places = np.arange(len(rows)), right[rows]
        terms[rows, 1], terms[rows, 2] = p[places], q[places]
    return terms


def _terms_of(task: JoinedTask, seed: int, pair: Pair) -> FloatArray | None:
    before, after = pair
    choices = task.column(seed, before, "choices")
    others = task.column(seed, after, "choices")
    old = task.column(seed, before, "loglikelihoods")
    new = task.column(seed, after, "loglikelihoods")
    gold = task.column(seed, before, "gold")
    if choices is None or others is None or old is None or new is None or gold is None:
        return None
    return example_terms(old, new, choices, gold) if choices.equals(others) else None


def capa_interval(
    task: JoinedTask, seeds: int | Sequence[int], pair: Pair, confidence: float = CONFIDENCE
) -> Capa:
    """CAPA of a pair with its interval, over one seed or as the mean over several.

    The interval is the delta method's: CAPA is a smooth function of four means, so its
    error is that of the mean of its influence function, the gradient times each example's
    distance from those means (van der Vaart 1998, "Asymptotic statistics", chapter 3).
    With several seeds an example's influences are averaged first, as it is one draw.

    Returns:
        (None, None) where CAPA can't be had (see `example_terms`); no interval for one
        example, or where no example's influence differs from another's.
    """
    seeds = (seeds,) if isinstance(seeds, int) else tuple(seeds)
    values = []
    influence = np.zeros(task.n)
    for seed in seeds:
        terms = _terms_of(task, seed, pair)
        if terms is None:
            return Capa(None, None)
        means = terms.mean(axis=0)
        value = _value(means)
        if value is None:
            return Capa(None, None)
        values.append(value)
        influence += (terms - means) @ _gradient(means) / len(seeds)
    value = float(np.mean(values))
    spread = float(influence.std(ddof=1)) if task.n > 1 else 0.0
    if spread <= 1e-12:
        return Capa(value, None)
    reach = NormalDist().inv_cdf(0.5 + confidence / 2) * spread / task.n**0.5
    return Capa(value, Interval(value - reach, min(1.0, value + reach)))


def capa(old: Sequence[Prediction], new: Sequence[Prediction]) -> float | None:
    """CAPA of two versions' predictions on the same examples, in the same order.

    Returns:
        None where it can't be had: generation, an unscored example, log-likelihoods
        without a distribution, a gold answer that is not among the choices.

    Raises:
        ValueError: the two lists are not the same examples in the same order.
    """
    if [p.id for p in old] != [q.id for q in new]:
        raise ValueError("old and new must be the same examples in the same order")
    if any(p.choices != q.choices for p, q in zip(old, new, strict=True)):
        return None
    numbers, texts = pa.list_(pa.float64()), pa.list_(pa.string())
    terms = example_terms(
        pa.array([p.loglikelihoods for p in old], numbers),
        pa.array([q.loglikelihoods for q in new], numbers),
        pa.array([p.choices for p in old], texts),
        pa.array([p.gold for p in old], pa.string()),
    )
    return None if terms is None else _value(terms.mean(axis=0))
