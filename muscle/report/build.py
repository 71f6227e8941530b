"""Builds report.json: every number of a comparison, as fractions, null where undefined.

All numbers of a task come from one array of column sums: row 0 is the data, the rows
below are bootstrap draws, and one formula serves both. So a value and its interval
can't be computed in two different ways.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from muscle.metrics.flips import RATES, FloatArray, PairSums, ratio, same_answers
from muscle.metrics.intervals import (
    DRAWS,
    SEED,
    Interval,
    bootstrap_sums,
    mcnemar_exact,
    percentile_interval,
    wilson,
)
from muscle.metrics.pairing import JoinedTask, Predictions, join_predictions
from muscle.types import Version

SCHEMA = "muscle.report/1"
COUNTS = ("both_right", "negative", "positive", "both_wrong_same", "both_wrong_different")
REDUCTIONS = ("nfr", "nfr_relative", "relative_nfr_relative")

Pair = tuple[Version, Version]


def build_report(
    predictions: Predictions,
    provenance: Mapping[str, Any],
    *,
    noise_floor: Mapping[str, Any] | None = None,
    draws: int = DRAWS,
    seed: int = SEED,
) -> dict[str, Any]:
    """Compare versions and return the content of report.json (DESIGN.md has its layout).

    Args:
        predictions: training seed -> version -> predictions, of one or several tasks;
            old and new in every seed, compat in all or none.
        provenance: where the predictions come from; plain JSON values, copied as given.
        noise_floor: by task, what to put there; null where nothing is given.
        draws: bootstrap draws; `seed` is their random seed.

    Returns:
        Plain JSON values: fractions, never NaN. `by_seed` always holds every seed's own
        versions, pairs and reduction. With one seed the top level is the same; with
        several it holds means over seeds, counts and p are null there, and intervals
        come from a bootstrap that draws the same examples in all seeds. They say how
        sure the mean is for these trained models on other examples; the spread over
        seeds stands in `by_seed`. A mean is null when one seed's value is.

        p (exact McNemar on "old right, new wrong" against "old right, compat wrong") is
        null for several seeds: one example under several seeds is not several
        independent examples, so neither pooling the counts nor combining the p values
        would be right. The interval at the top holds what can be said.

    Raises:
        UserError: the predictions can't be joined (see `join_predictions`).
    """
    tasks = {}
    for name, task in join_predictions(predictions).items():
        sums = TaskSums(task, draws, seed)
        by_seed = {str(s): _block(sums, (s,)) for s in task.seeds}
        tasks[name] = {
            "n": task.n,
            "unscored": task.unscored,
            "metric": task.metric,
            **_block(sums, task.seeds),
            "by_seed": by_seed,
            "noise_floor": None if noise_floor is None else noise_floor.get(name),
        }
    return {"schema": SCHEMA, "provenance": dict(provenance), "tasks": tasks}


class TaskSums:
    """One task's column sums, [1 + draws] each: the data first, then bootstrap draws."""

    def __init__(self, task: JoinedTask, draws: int, seed: int) -> None:
        self.task = task
        self._columns: dict[tuple[Any, ...], FloatArray] = {}
        for s in task.seeds:
            for version in task.versions:
                self._columns[s, version] = task.scores[s, version]
            for pair in task.pairs:
                self._add_pair(s, pair)
        features = np.stack(list(self._columns.values()), axis=1)
        drawn = bootstrap_sums(features, draws, seed)
        self._sums = np.concatenate([features.sum(axis=0, keepdims=True), drawn])

    def _add_pair(self, seed: int, pair: Pair) -> None:
        old, new = (self.task.scores[seed, version] for version in pair)
        worse, better = new < old, new > old
        columns: dict[str, Any] = {"negative": worse, "positive": better}
        if self.task.continuous:
            columns |= {"gain": better * (new - old), "regression": worse * (old - new)}
        else:
            same = same_answers(*(self.task.answers[seed, version] for version in pair))
            if same is not None:
                columns["inconsistent"] = worse | ((new == 0) & (old == 0) & ~same)
        for name, column in columns.items():
            self._columns[seed, pair, name] = column.astype(np.float64)

    @cached_property
    def _index(self) -> dict[tuple[Any, ...], int]:
        return {key: i for i, key in enumerate(self._columns)}

    def column(self, *key: Any) -> FloatArray:
        """One column's sums, [1 + draws]; NaN if this task has no such column."""
        if key not in self._index:
            return np.full(len(self._sums), np.nan)
        return self._sums[:, self._index[key]]

    def indicator(self, seed: int, pair: Pair, name: str) -> FloatArray:
        """One column before summing, [n]."""
        return self._columns[seed, pair, name]

    def score(self, seed: int, version: Version) -> FloatArray:
        """The mean score of a version, [1 + draws]."""
        return ratio(self.column(seed, version), self.task.n)

    def pair(self, seed: int, pair: Pair) -> PairSums:
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


def _mean(of: Callable[[int], FloatArray], seeds: tuple[int, ...]) -> FloatArray:
    """The mean over seeds of an array that depends on the seed, [1 + draws]."""
    total: FloatArray = np.mean([of(s) for s in seeds], axis=0)
    return total


def _block(sums: TaskSums, seeds: tuple[int, ...]) -> dict[str, Any]:
    """versions, pairs and reduction of some seeds together."""
    task = sums.task
    return {
        "versions": {v: _version(sums, seeds, v) for v in task.versions},
        "pairs": {_name(pair): _pair(sums, seeds, pair) for pair in task.pairs},
        "reduction": _reduction(sums, seeds) if "compat" in task.versions else None,
    }


def _name(pair: Pair) -> str:
    return f"{pair[0]}->{pair[1]}"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _bounds(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _version(sums: TaskSums, seeds: tuple[int, ...], version: Version) -> dict[str, Any]:
    score = _mean(lambda s: sums.score(s, version), seeds)
    successes = sums.column(seeds[0], version)[0] if len(seeds) == 1 else None
    if sums.task.continuous:
        interval = percentile_interval(score[1:])
    else:
        interval = _proportion(score, sums.task.n, successes, sums.task.n)
    return {"score": _number(score[0]), "ci95": _bounds(interval)}


def _proportion(
    values: FloatArray, n: int, successes: float | None, trials: float
) -> Interval | None:
    """Wilson for one seed's successes of trials; for several seeds (successes None) the
    bootstrap, and Wilson at the mean rate where no resample can vary (all seeds agree
    on all examples, so n is the honest size)."""
    if np.isnan(values[0]):
        return None
    if successes is not None:
        return wilson(float(successes), float(trials))
    return percentile_interval(values[1:]) or wilson(min(n, float(values[0] * n)), n)


def _pair(sums: TaskSums, seeds: tuple[int, ...], pair: Pair) -> dict[str, Any]:
    values = {
        name: _mean(lambda s, f=formula: f.compute(sums.pair(s, pair)), seeds)  # type: ignore[misc]
        for name, formula in RATES.items()
    }
    proportions = _proportions(sums.pair(seeds[0], pair)) if len(seeds) == 1 else {}
    intervals = {}
    for name, array in values.items():
        if name in proportions or name in ("nfr", "pfr", "nfr_mc"):
            successes, trials = proportions.get(name, (None, 0.0))
            interval = _proportion(array, sums.task.n, successes, trials)
        else:
            interval = percentile_interval(array[1:])
        intervals[name] = _bounds(interval) if _number(array[0]) is not None else None
    return {
        **_counts(sums.task, seeds, pair),
        **{name: _number(array[0]) for name, array in values.items()},
        "ci95": intervals,
    }


def _proportions(s: PairSums) -> dict[str, tuple[float, float]]:
    """The measures that are k of m examples, for one seed: name -> (k, m)."""
    n, right_old, right_new, negative = (
        float(x[0]) for x in (s.n, s.right_old, s.right_new, s.negative)
    )
    return {
        "nfr": (negative, n),
        "pfr": (float(s.positive[0]), n),
        "nfr_mc": (float(s.inconsistent[0]), n),
        "btc": (right_old - negative, right_old),
        "nfi": (negative, n - right_new),
    }


def _counts(task: JoinedTask, seeds: tuple[int, ...], pair: Pair) -> dict[str, int | None]:
    names = (*COUNTS, "equal") if task.continuous else COUNTS
    known = asdict(task.counts(seeds[0], *pair)) if len(seeds) == 1 else {}
    return {name: known.get(name) for name in names}


def _reduction(sums: TaskSums, seeds: tuple[int, ...]) -> dict[str, Any]:
    """What compat changes against new, both measured from old; ratios of seed means."""
    before: Pair = ("old", "new")
    after: Pair = ("old", "compat")

    def rate(name: str, pair: Pair) -> FloatArray:
        return _mean(lambda s: RATES[name].compute(sums.pair(s, pair)), seeds)

    nfr = rate("nfr", after) - rate("nfr", before)
    relative = rate("relative_nfr", after) - rate("relative_nfr", before)
    arrays = {
        "nfr": nfr,
        "nfr_relative": ratio(nfr, rate("nfr", before)),
        "relative_nfr_relative": ratio(relative, rate("relative_nfr", before)),
    }
    p = None
    if len(seeds) == 1 and sums.task.n:
        flips = (sums.indicator(seeds[0], pair, "negative") for pair in (before, after))
        p = mcnemar_exact(*flips).p
    return {
        **{name: _number(arrays[name][0]) for name in REDUCTIONS},
        "ci95": {
            name: None
            if np.isnan(arrays[name][0])
            else _bounds(percentile_interval(arrays[name][1:]))
            for name in REDUCTIONS
        },
        "p": p,
    }
