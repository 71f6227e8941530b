"""The rates of a part of the examples: a slice of one task, or several tasks together."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from muscle.metrics.bounds import BOUND, MeanBounds, over_seeds, rate_bounds
from muscle.metrics.flips import BoolArray, FloatArray
from muscle.metrics.intervals import CONFIDENCE, Interval, as_list
from muscle.metrics.pairing import JoinedTask, Pair
from muscle.metrics.proportions import change_interval, mean_interval, share_interval


class Part:
    """Examples of one pair of versions, of one task or of several with one metric.

    Args:
        old, new: scores, [m] for each seed.
        worse, better: negative and positive flips, [m] for each seed.
        continuous: whether the scores are graded.
    """

    def __init__(
        self,
        old: Sequence[FloatArray],
        new: Sequence[FloatArray],
        worse: Sequence[BoolArray],
        better: Sequence[BoolArray],
        continuous: bool,
    ) -> None:
        self.old, self.new, self.worse, self.better = old, new, worse, better
        self.continuous = continuous

    def rates(self) -> dict[str, Any]:
        """Counts (None for several seeds), rates and intervals; m must not be 0.

        Returns:
            {"negative", "positive", "nfr", "pfr", "gain": the change of the mean score,
            "ci95": {"nfr", "pfr", "gain"}, "bounds95" (one-sided 95 %, [lower, upper]):
            {"nfr", "gain"}}.
            The bounds follow the rule of `muscle.metrics.bounds`, as a whole task's do; for
            a graded score the normal approximation serves, as parts are many and none small.
        """
        one = len(self.worse) == 1
        worse, better = over_seeds(self.worse), over_seeds(self.better)
        gain = over_seeds(self.new) - over_seeds(self.old)
        return {
            "negative": int(self.worse[0].sum()) if one else None,
            "positive": int(self.better[0].sum()) if one else None,
            "nfr": float(worse.mean()),
            "pfr": float(better.mean()),
            "gain": float(gain.mean()),
            "ci95": {
                "nfr": as_list(share(worse, len(self.worse))),
                "pfr": as_list(share(better, len(self.better))),
                "gain": as_list(self._gain(gain, CONFIDENCE)),
            },
            "bounds95": {
                "nfr": as_list(rate_bounds(self.worse)),
                "gain": as_list(self._gain_bounds(gain)),
            },
        }

    def _gain(self, gain: FloatArray, confidence: float) -> Interval | None:
        interval = mean_interval if self.continuous else change_interval
        return interval(float(gain.sum()), float(gain @ gain), len(gain), confidence)

    def _gain_bounds(self, gain: FloatArray) -> Interval | None:
        if self.continuous:
            return self._gain(gain, BOUND)
        return MeanBounds(gain, -1.0, 1.0).at()


def part_of(tasks: Sequence[JoinedTask], pair: Pair) -> Part:
    """All examples of some tasks with one metric and the same seeds."""
    seeds, (before, after) = tasks[0].seeds, pair
    return Part(
        [np.concatenate([t.scores[s, before] for t in tasks]) for s in seeds],
        [np.concatenate([t.scores[s, after] for t in tasks]) for s in seeds],
        [np.concatenate([t.worse(s, pair) for t in tasks]) for s in seeds],
        [np.concatenate([t.better(s, pair) for t in tasks]) for s in seeds],
        tasks[0].continuous,
    )


def share(values: FloatArray, seeds: int) -> Interval | None:
    """`share_interval` of examples' means over seeds."""
    return share_interval(float(values.sum()), float(values @ values), len(values), seeds)
