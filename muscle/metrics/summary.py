"""One version's score, and the engine's own flips: what changes when the same is asked again."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from muscle.metrics.intervals import bootstrap_sums, percentile_interval, wilson
from muscle.metrics.pairing import is_continuous
from muscle.types import Prediction


def score_summary(rows: Sequence[Prediction]) -> dict[str, Any]:
    """Mean deciding score of the scored rows, with a 95 % interval.

    Wilson's for right and wrong, else the percentile bootstrap over examples; None without
    a scored row.
    """
    scores = [row.score for row in rows if row.score is not None]
    if not scores:
        return {"score": None, "ci95": None}
    if is_continuous(rows[0].metric, scores):
        sums = bootstrap_sums(np.asarray(scores, dtype=np.float64)[:, None])
        interval = percentile_interval(sums[:, 0] / len(scores))
    else:
        interval = wilson(sum(scores), len(scores))
    bounds = None if interval is None else [interval.low, interval.high]
    return {"score": sum(scores) / len(scores), "ci95": bounds}


def repeat_noise(first: Sequence[Prediction], again: Sequence[Prediction]) -> dict[str, Any]:
    """How one repeat differs from the first time; both in the same order.

    Returns:
        n                  rows scored both times
        changed            rows with another answer, and their share with Wilson's interval
        negative, positive rows whose score fell, rose
        loglikelihood      largest difference of a choice's log-likelihood in nats, and relative
                           to its size; None where nothing was scored so

    Raises:
        ValueError: they are not about the same rows.
    """
    both = []
    for a, b in zip(first, again, strict=True):
        if (a.task, a.id) != (b.task, b.id):
            raise ValueError(f"rows {a.id!r} and {b.id!r} are not the same example")
        if a.score is not None and b.score is not None:
            both.append((a, b, a.score, b.score))
    changed = sum(a.prediction != b.prediction for a, b, _, _ in both)
    interval = wilson(changed, len(both))
    differences = [
        (abs(x - y), abs(x))
        for a, b, _, _ in both
        for x, y in zip(a.loglikelihoods or (), b.loglikelihoods or (), strict=True)
    ]
    largest = None
    if differences:
        largest = {
            "nats": max(d for d, _ in differences),
            "relative": max(d / size if size else d for d, size in differences),
        }
    return {
        "n": len(both),
        "changed": changed,
        "changed_rate": changed / len(both) if both else None,
        "ci95": None if interval is None else [interval.low, interval.high],
        "negative": sum(x > y for _, _, x, y in both),
        "positive": sum(x < y for _, _, x, y in both),
        "loglikelihood": largest,
    }
