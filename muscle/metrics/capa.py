"""CAPA: chance-adjusted agreement of two versions, from their choice probabilities.

Source: Goel et al. 2025, "Great models think alike and this undermines AI oversight".
"""

from collections.abc import Sequence

import numpy as np

from muscle.metrics.flips import FloatArray
from muscle.types import Prediction


def choice_probabilities(loglikelihoods: Sequence[float]) -> FloatArray | None:
    """softmax over one example's choice log-likelihoods, [K]; -inf is probability 0.

    None where there is no distribution: NaN, +inf, no choices, or -inf everywhere.
    """
    scores = np.asarray(loglikelihoods, dtype=np.float64)
    if not scores.size or np.isnan(scores).any() or not np.isfinite(scores.max()):
        return None
    weights: FloatArray = np.exp(scores - scores.max())
    weights /= weights.sum()
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
    observed = np.mean([p @ q for p, q in zip(old, new, strict=True)])
    p1 = np.mean([p[k] for p, k in zip(old, gold, strict=True)])
    p2 = np.mean([q[k] for q, k in zip(new, gold, strict=True)])
    chance = np.mean([1 / (len(p) - 1) for p in old])
    expected = p1 * p2 + (1 - p1) * (1 - p2) * chance
    return None if expected == 1 else float((observed - expected) / (1 - expected))


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
    first: list[FloatArray] = []
    second: list[FloatArray] = []
    gold: list[int] = []
    for p, q in zip(old, new, strict=True):
        if p.choices is None or p.choices != q.choices or p.gold not in p.choices:
            return None
        if p.loglikelihoods is None or q.loglikelihoods is None:
            return None
        probabilities = choice_probabilities(p.loglikelihoods)
        others = choice_probabilities(q.loglikelihoods)
        if probabilities is None or others is None:
            return None
        first.append(probabilities)
        second.append(others)
        gold.append(p.choices.index(p.gold))
    return capa_of_probabilities(first, second, gold)
