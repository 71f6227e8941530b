"""Joins the judged examples of several versions, example by example, or refuses to.

A flip is a statement about one example under two models, so a wrong join is worse
than none: everything that should be the same in all versions is checked here. All of it
works on columns: a million examples are joined without an object for each.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from muscle.errors import UserError
from muscle.metrics.columns import Column, Order, equal_rows, in_order, whole
from muscle.metrics.comparable import Difference, floor_difference, show
from muscle.metrics.flips import (
    ROUNDING,
    BoolArray,
    FlipCounts,
    FloatArray,
    ScoreCounts,
    count_flips,
)
from muscle.metrics.joining import Aligned, align, check_rows
from muscle.side import Side, side_of
from muscle.types import AGAIN, VERSIONS, Prediction, Version

CONTINUOUS_METRICS = ("rouge", "bleu", "chrf", "bertscore", "bleurt", "meteor")
"""Beginnings of metric names that are continuous even if all scores happen to be 0 or 1."""

Pair = tuple[Version, Version]
AnyPair = tuple[str, str]
"""A pair of versions, or (old, again)."""

SeedVersion = tuple[int, str]
Predictions = Mapping[int, Mapping[Version, Sequence[Prediction]]]
"""Seed -> version -> predictions of any number of tasks."""

Sides = Mapping[int, Mapping[str, Mapping[str, Side]]]
"""Seed -> version, or "again" -> task -> side."""

FLOOR: AnyPair = ("old", AGAIN)
"""The pair whose flips are the noise floor."""


@dataclass(frozen=True)
class JoinedTask:
    """One task's examples, joined over all versions and seeds.

    ids           [n] the examples scored everywhere, sorted by bytes, so that the order
                  of the files changes no number
    everything    [n + unscored] all examples of the join, sorted
    scored        [n + unscored] which of them are in `ids`
    continuous    whether scores are graded; decided once for all versions and seeds
    again         whether there is a second old, whose flips are the noise floor
    scores        (seed, version) -> [n], in the order of `ids`
    sides         where further columns are read from
    orders        (seed, version) -> [n + unscored], the side's row of each example
    common_only   examples left out since some side doesn't have them
    differences   what differs between the sides without forbidding the comparison
    other_prompts (seed, version) -> examples whose prompt isn't the first side's
    waived        [n] examples whose negative flips don't count (see `without_flips`)
    """

    task: str
    metric: str
    continuous: bool
    ids: pa.Array
    everything: pa.Array
    scored: BoolArray
    seeds: tuple[int, ...]
    versions: tuple[Version, ...]
    again: bool
    scores: dict[SeedVersion, FloatArray]
    sides: dict[SeedVersion, Side]
    orders: dict[SeedVersion, Order]
    common_only: int = 0
    differences: list[Difference] = field(default_factory=list)
    other_prompts: dict[SeedVersion, int] = field(default_factory=dict)
    waived: BoolArray | None = None
    known_same: dict[tuple[int, AnyPair], BoolArray | None] = field(
        default_factory=dict, repr=False, compare=False
    )
    """What `same` has found: answers may be long texts, read once."""

    @property
    def n(self) -> int:
        """The number of paired examples."""
        return len(self.ids)

    @property
    def unscored(self) -> int:
        """Examples left out because some version or seed has no score."""
        return len(self.everything) - len(self.ids)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """(old, new), then (old, compat) and (new, compat) when there is a compat."""
        return tuple(combinations(self.versions, 2))

    @property
    def names(self) -> tuple[str, ...]:
        """The versions, and "again" at the end where there is a second old."""
        return (*self.versions, AGAIN) if self.again else self.versions

    def worse(self, seed: int, pair: AnyPair) -> BoolArray:
        """The negative flips, without the waived ones, [n]."""
        found: BoolArray = self.scores[seed, pair[0]] - self.scores[seed, pair[1]] > ROUNDING
        return found if self.waived is None else found & ~self.waived

    def better(self, seed: int, pair: AnyPair) -> BoolArray:
        """The positive flips, [n]."""
        found: BoolArray = self.scores[seed, pair[1]] - self.scores[seed, pair[0]] > ROUNDING
        return found

    def counts(self, seed: int, before: str, after: str) -> FlipCounts | ScoreCounts:
        """The counts of one pair under one seed; a waived flip is none, so that it counts
        as both right (as equal where the metric is continuous)."""
        first, second = self.scores[seed, before], self.scores[seed, after]
        worse, better = self.worse(seed, (before, after)), self.better(seed, (before, after))
        if self.continuous:
            return ScoreCounts(
                negative=int(worse.sum()),
                positive=int(better.sum()),
                equal=int((~worse & ~better).sum()),
                gain=float((second - first)[better].sum()),
                regression=float((first - second)[worse].sum()),
            )
        right = (first == 1) & ~worse
        return count_flips(right | worse, right | better, self.same(seed, (before, after)))

    def column(self, seed: int, name: str, column: str, *, all: bool = False) -> Column | None:
        """A column of one side, in the order of `ids`; of `everything` with `all`.

        Args:
            seed: one of `seeds`.
            name: a version, or "again".
            column: a name of `PREDICTION_SCHEMA`.

        Returns:
            None where the side has no such column.
        """
        found = self.sides[seed, name].read(column)
        if found is None:
            return None
        order = self.orders[seed, name]
        return in_order(found, order if all else order[self.scored])

    def same(self, seed: int, pair: AnyPair) -> BoolArray | None:
        """Whether the two versions gave the same answer, [n]; None if any is unknown."""
        key = (seed, pair)
        if key not in self.known_same:
            self.known_same[key] = self._same(seed, pair)
        return self.known_same[key]

    def _same(self, seed: int, pair: AnyPair) -> BoolArray | None:
        sides = [self.sides[seed, name] for name in pair]
        orders = [self.orders[seed, name][self.scored] for name in pair]
        answers = []
        for side, order in zip(sides, orders, strict=True):
            column = side.read("prediction")
            if column is None:
                return None
            texts = whole(column)
            if texts.null_count and texts.is_null().take(pa.array(order)).true_count:
                return None
            answers.append(texts)
        return equal_rows(answers[0], orders[0], answers[1], orders[1])


def without_flips(task: JoinedTask, ids: Collection[str]) -> JoinedTask:
    """The task with the negative flips of some examples waived: they are counted in no
    pair, the noise floor included, while n and all scores stay. Unknown ids do nothing."""
    known = pa.array(sorted(ids), task.ids.type)
    waived: BoolArray = pc.is_in(task.ids, known).to_numpy(zero_copy_only=False)
    return replace(task, waived=waived)


def is_continuous(metric: str, scores: Iterable[float]) -> bool:
    """Whether a metric is graded: by its name, or because a score is neither 0 nor 1."""
    return metric.startswith(CONTINUOUS_METRICS) or any(s not in (0, 1) for s in scores)


def join_predictions(predictions: Predictions) -> dict[str, JoinedTask]:
    """`join_sides` for lists of predictions, each of one or several tasks.

    Args:
        predictions: seed -> version -> predictions; old and new in every seed, compat
            in all seeds or in none.

    Returns:
        The joined tasks by name, in the order of the names.

    Raises:
        UserError: see `join_sides`; or the predictions of one task have several metrics.
    """
    several = len(predictions) > 1
    return join_sides(
        {
            seed: {
                version: _by_task(rows, f"{version} (seed {seed})" if several else version)
                for version, rows in versions.items()
            }
            for seed, versions in predictions.items()
        }
    )


def _by_task(rows: Sequence[Prediction], label: str) -> dict[str, Side]:
    tasks: dict[str, list[Prediction]] = {}
    for row in rows:
        tasks.setdefault(row.task, []).append(row)
    for name, found in tasks.items():
        metrics = list(dict.fromkeys(row.metric for row in found))
        if len(metrics) > 1:
            raise UserError(
                f"task {show(name)}: metrics {show(metrics[0])} and {show(metrics[1])} in {label}; "
                "a task has one deciding metric"
            )
    return {name: side_of(found, label) for name, found in tasks.items()}


def join_sides(sides: Sides, *, common: bool = False) -> dict[str, JoinedTask]:
    """Join versions on (task, id), for every task.

    Args:
        sides: seed -> version -> task -> side; old and new in every seed, compat in all
            seeds or in none, "again" (a second old, for the noise floor) likewise.
        common: compare the examples that all sides have, where their sets differ.

    Returns:
        The joined tasks by name, in the order of the names.

    Raises:
        UserError: a version or a task is missing somewhere, an id comes twice, the id
            sets, the metric, the task's version, the filter, the rows' hashes or the
            right answers differ between two sides, a score is not a finite number, no
            example is common.
    """
    names = _names(sides)
    tables = {(seed, name): sides[seed][name] for seed in sorted(sides) for name in names}
    first, *others = tables
    for key in others:
        if tables[key].keys() != tables[first].keys():
            missing = sorted(tables[first].keys() ^ tables[key].keys())[0]
            has, lacks = (first, key) if missing in tables[first] else (key, first)
            mend = "evaluate every version on the same tasks"
            if len(tables[first]) == len(tables[key]) == 1:
                mend += ", or give the files themselves where one task's are called differently"
            raise UserError(
                f"task {show(missing)} is not in all versions: "
                f"{_called(sides, has)} has it, {_called(sides, lacks)} has not; {mend}"
            )
    if not tables[first]:
        raise UserError("there are no predictions to compare: every version is empty")
    return {
        task: _join({key: table[task] for key, table in tables.items()}, common)
        for task in sorted(tables[first])
    }


def _called(sides: Sides, key: SeedVersion) -> str:
    return key[1] if len(sides) == 1 else f"{key[1]} (seed {key[0]})"


def _names(sides: Sides) -> tuple[str, ...]:
    """Which versions there are, the second old included; the same in all seeds."""
    if not sides:
        raise UserError("there are no predictions to compare: no seed was given")
    for seed, versions in sides.items():
        unknown = [v for v in versions if v not in (*VERSIONS, AGAIN)]
        if unknown:
            raise UserError(f"version {show(unknown[0])} is unknown: use old, new and compat")
        for needed in ("old", "new"):
            if needed not in versions:
                raise UserError(
                    f"seed {seed} has no predictions of {needed}: old and new are needed"
                )
    found: list[str] = ["old", "new"]
    for name in ("compat", AGAIN):
        having = [seed for seed, versions in sides.items() if name in versions]
        if having and len(having) < len(sides):
            without = min(set(sides) - set(having))
            raise UserError(
                f"seed {without} has no predictions of {name} but seed {min(having)} has: "
                f"give {name} for every seed or for none"
            )
        found += [name] if having else []
    return tuple(found)


def _missed_by_floor(aligned: Aligned) -> int:
    """Examples with a score everywhere but in the second old."""
    known = [np.isfinite(s) for (_, name), s in aligned.scores.items() if name != AGAIN]
    return int((np.all(known, axis=0) & ~aligned.scored).sum())


def _join(sides: dict[SeedVersion, Side], common: bool) -> JoinedTask:
    """One task's sides."""
    first = next(iter(sides.values()))
    task = first.task
    aligned = align(task, sides, common)
    notes, other_prompts = check_rows(task, sides, aligned.orders, len(aligned.ids))
    missed = _missed_by_floor(aligned)
    notes += [floor_difference(missed)] if missed else []
    scores = {key: aligned.scores[key][aligned.scored] for key in sides}
    values = {float(v) for s in scores.values() for v in np.unique(s)[:3]}
    return JoinedTask(
        task=task,
        metric=first.metric,
        continuous=is_continuous(first.metric, values),
        ids=aligned.ids.filter(pa.array(aligned.scored)),
        everything=aligned.ids,
        scored=aligned.scored,
        seeds=tuple(dict.fromkeys(seed for seed, _ in sides)),
        versions=tuple(v for v in VERSIONS if any(v == name for _, name in sides)),
        again=any(name == AGAIN for _, name in sides),
        scores=scores,
        sides=sides,
        orders=aligned.orders,
        common_only=aligned.left_out,
        differences=notes,
        other_prompts=other_prompts,
    )
