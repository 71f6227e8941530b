"""One task's sums, from which all of its rates and their bootstrap intervals are computed.

Row 0 is the data, the rows below are bootstrap draws, and one formula serves both. So a
value and its interval can't be computed in two different ways.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from muscle.metrics.bounds import MeanBounds, over_seeds
from muscle.metrics.flips import RATES, BoolArray, FloatArray, PairSums, ratio
from muscle.metrics.intervals import Column, bootstrap_sums
from muscle.metrics.pairing import FLOOR, AnyPair, JoinedTask

Seeds = tuple[int, ...]


class TaskSums:
    """One task's column sums, [1 + draws] each: the data first, then bootstrap draws."""

    def __init__(self, task: JoinedTask, draws: int, seed: int) -> None:
        self.task = task
        self._seed = seed
        self._columns: dict[tuple[Any, ...], Column] = {}
        for s in task.seeds:
            for version in task.versions:
                self._columns[s, version] = task.scores[s, version]
            for pair in task.pairs:
                self._add_pair(s, pair)
        if task.again:
            for s in task.seeds:
                self._columns[s, FLOOR[1]] = task.scores[s, FLOOR[1]]
                self._add_pair(s, FLOOR)
        columns = list(self._columns.values())
        data = np.array([[column.sum(dtype=np.float64) for column in columns]])
        self._sums = np.concatenate([data, bootstrap_sums(columns, draws, seed)])

    def _add_pair(self, seed: int, pair: AnyPair) -> None:
        task = self.task
        old, new = (task.scores[seed, version] for version in pair)
        worse, better = task.worse(seed, pair), task.better(seed, pair)
        columns: dict[str, Column] = {"negative": worse, "positive": better}
        if task.continuous:
            columns |= {"gain": better * (new - old), "regression": worse * (old - new)}
        else:
            same = task.same(seed, pair)
            if same is not None:
                columns["inconsistent"] = worse | ((new == 0) & (old == 0) & ~same)
        for name, column in columns.items():
            self._columns[seed, pair, name] = column

    @cached_property
    def _index(self) -> dict[tuple[Any, ...], int]:
        return {key: i for i, key in enumerate(self._columns)}

    def column(self, *key: Any) -> FloatArray:
        """One column's sums, [1 + draws]; NaN if this task has no such column."""
        if key not in self._index:
            return np.full(len(self._sums), np.nan)
        return self._sums[:, self._index[key]]

    def worse(self, seeds: Seeds, pair: AnyPair) -> list[BoolArray]:
        """The negative flips before summing: for each seed [n]."""
        return [self._columns[s, pair, "negative"] for s in seeds]

    def better(self, seeds: Seeds, pair: AnyPair) -> list[BoolArray]:
        """The positive flips before summing: for each seed [n]."""
        return [self._columns[s, pair, "positive"] for s in seeds]

    def score(self, seed: int, version: str) -> FloatArray:
        """The mean score of a version, [1 + draws]."""
        return ratio(self.column(seed, version), self.task.n)

    def scores(self, seeds: Seeds, version: str) -> FloatArray:
        """The mean score of a version over some seeds, [1 + draws]."""
        return mean_over(lambda s: self.score(s, version), seeds)

    def pair(self, seed: int, pair: AnyPair) -> PairSums:
        """What the formulas read, every field [1 + draws]."""
        continuous = self.task.continuous
        unknown = np.full(len(self._sums), np.nan)
        negative = self.column(seed, pair, "negative")
        positive = self.column(seed, pair, "positive")
        return PairSums(
            n=np.full(len(self._sums), float(self.task.n)),
            right_old=unknown if continuous else self.column(seed, pair[0]),
            right_new=unknown if continuous else self.column(seed, pair[1]),
            negative=negative,
            positive=positive,
            inconsistent=self.column(seed, pair, "inconsistent"),
            gain=self.column(seed, pair, "gain") if continuous else positive,
            regression=self.column(seed, pair, "regression") if continuous else negative,
        )

    def rate(self, name: str, seeds: Seeds, pair: AnyPair) -> FloatArray:
        """One of `RATES`, the mean over some seeds, [1 + draws]."""
        formula = RATES[name]
        return mean_over(lambda s: formula.compute(self.pair(s, pair)), seeds)

    def seed_weights(self, seeds: Seeds) -> FloatArray:
        """How much each seed counts in each draw, [seeds, 1 + draws]: of S seeds S - 1 are drawn
        with replacement, all the same in row 0. The mean of S draws would vary by (S - 1) / S
        of what a mean over S seeds does, half of it for two (Rao and Wu 1988). Seeds differ in
        part because examples are few, which the draws of examples count again: the interval is
        rather too wide than too narrow."""
        drawn, k = len(self._sums) - 1, len(seeds)
        rng = np.random.default_rng([self._seed, k])
        counts = rng.multinomial(k - 1, np.full(k, 1 / k), size=drawn)
        weights = np.concatenate([np.full((1, k), 1 / k), counts / (k - 1)])
        return np.ascontiguousarray(weights.T)

    # --- means of single examples, and how sure they are --------------------------------

    @cached_property
    def span(self) -> tuple[float, float]:
        """The least and the most that a score can be: 0 and 1, or what was seen if that
        lies outside (a log-likelihood has no other end)."""
        scores = [s for s in self.task.scores.values() if len(s)]
        least = min((float(s.min()) for s in scores), default=0.0)
        most = max((float(s.max()) for s in scores), default=1.0)
        return (0.0, 1.0) if 0 <= least and most <= 1 else (least, most)

    def score_bounds(self, seeds: Seeds, version: str) -> MeanBounds:
        """Bounds of a version's mean score."""
        values = self._mean_scores(seeds, version)
        return MeanBounds(values, *self.span, self.scores(seeds, version)[1:])

    def gain(self, seeds: Seeds, pair: AnyPair) -> FloatArray:
        """Score of the second version less that of the first, [1 + draws]."""
        return self.scores(seeds, pair[1]) - self.scores(seeds, pair[0])

    def gain_bounds(self, seeds: Seeds, pair: AnyPair) -> MeanBounds:
        """Bounds of the gain; an example's score can change by no more than the span."""
        before, after = (self._mean_scores(seeds, version) for version in pair)
        most = self.span[1] - self.span[0]
        return MeanBounds(after - before, -most, most, self.gain(seeds, pair)[1:])

    def _mean_scores(self, seeds: Seeds, version: str) -> FloatArray:
        return over_seeds([self.task.scores[s, version] for s in seeds])


def mean_over(of: Callable[[int], FloatArray], seeds: Seeds) -> FloatArray:
    """The mean over seeds of an array that depends on the seed, [1 + draws]."""
    total: FloatArray = np.mean([of(s) for s in seeds], axis=0)
    return total


def weighted_mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    """The mean over the first axis, [1 + draws]; what has no weight may be undefined.

    Args:
        values, weights: [seeds, 1 + draws]; each column of weights sums to 1.
    """
    total: FloatArray = np.where(weights > 0, weights * values, 0.0).sum(axis=0)
    return total


def number(value: float) -> float | None:
    """A number as JSON has it: null for NaN."""
    return None if np.isnan(value) else float(value)
