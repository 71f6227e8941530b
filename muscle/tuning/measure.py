"""How a candidate does on some examples: flips against old, score against new."""

from collections.abc import Sequence

import numpy as np

from muscle.errors import UserError
from muscle.metrics.flips import FloatArray
from muscle.metrics.intervals import Interval, bootstrap_sums, percentile_interval
from muscle.metrics.pairing import JoinedTask, Predictions, join_predictions
from muscle.report.build import build_report
from muscle.tuning.records import Bounds, Measured

SURE = 0.99
"""Confidence of the interval that ends a trial early. A trial is looked at several times, and
the best settings lie at the very bound: 95 % would lose too many of them."""


def measure(predictions: Predictions, where: str) -> Measured:
    """A candidate (as `compat`) against old and new, on the examples that all could answer.

    Args:
        predictions: seed -> version -> predictions of one task.
        where: what the examples are called, in messages.

    Raises:
        UserError: no example was scored in all versions, or they can't be joined.
    """
    (joined,) = join_predictions(predictions).values()
    if not joined.n:
        raise UserError(
            f"{where}: no example could be scored in old, new and compat: "
            f"{_why(predictions)}; look at it with `muscle evaluate`"
        )
    (task,) = build_report(predictions, {})["tasks"].values()
    after, before = task["pairs"]["old->compat"], task["pairs"]["old->new"]
    gains = _gains(joined)
    return Measured(
        n=joined.n,
        unscored=joined.unscored,
        nfr=after["nfr"],
        nfr_new=before["nfr"],
        score=task["versions"]["compat"]["score"],
        gain=float(gains.mean()),
        ci95={
            "nfr": _pair(after["ci95"]["nfr"]),
            "score": _pair(task["versions"]["compat"]["ci95"]),
            "gain": _interval(gains),
            "reduction": _pair(task["reduction"]["ci95"]["nfr"]),
        },
        p=None if joined.continuous else task["reduction"]["p"],
    )


def surely_infeasible(predictions: Predictions, epsilon: float) -> str | None:
    """Why a trial is given up early: the interval of its gain lies wholly below -epsilon.

    None where it doesn't, or where the examples can't tell.
    """
    (joined,) = join_predictions(predictions).values()
    interval = _interval(_gains(joined), SURE) if joined.n else None
    if interval is None or interval[1] >= -epsilon:
        return None
    low, high = (100 * bound for bound in interval)
    return (
        f"score {low:+.1f} to {high:+.1f} points against new's on {joined.n} examples "
        f"({SURE:.0%} interval), below -{100 * epsilon:g}"
    )


def is_continuous_task(predictions: Predictions) -> bool:
    """Whether the examples have graded scores."""
    return next(iter(join_predictions(predictions).values())).continuous


def _gains(joined: JoinedTask) -> FloatArray:
    """Score of compat less new's, the mean over seeds, [n]."""
    gains: FloatArray = np.mean(
        [joined.scores[s, "compat"] - joined.scores[s, "new"] for s in joined.seeds], axis=0
    )
    return gains


def _interval(values: FloatArray, confidence: float = 0.95) -> Bounds:
    means = bootstrap_sums(values[:, None])[:, 0] / len(values)
    found: Interval | None = percentile_interval(means, confidence)
    return None if found is None else (found.low, found.high)


def _pair(bounds: Sequence[float] | None) -> Bounds:
    return None if bounds is None else (bounds[0], bounds[1])


def _why(predictions: Predictions) -> str:
    rows = (p for versions in predictions.values() for ps in versions.values() for p in ps)
    return next((p.error for p in rows if p.error is not None), "their scores are missing")
