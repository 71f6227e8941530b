"""Joins the predictions of several versions, example by example, or refuses to.

A flip is a statement about one example under two models, so a wrong join is worse
than none: everything that should be the same in all versions is checked here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from muscle.errors import UserError
from muscle.metrics.flips import (
    FlipCounts,
    FloatArray,
    ScoreCounts,
    count_flips,
    count_scores,
    same_answers,
)
from muscle.types import VERSIONS, Prediction, Version

CONTINUOUS_METRICS = ("rouge", "bleu", "chrf", "bertscore", "bleurt", "meteor")
"""Beginnings of metric names that are continuous even if all scores happen to be 0 or 1."""

SeedVersion = tuple[int, Version]
Predictions = Mapping[int, Mapping[Version, Sequence[Prediction]]]
"""Seed -> version -> predictions of any number of tasks."""


@dataclass(frozen=True, slots=True)
class JoinedTask:
    """One task's predictions, joined over all versions and seeds.

    ids          the examples scored everywhere, sorted, so that the order of the
                 files changes no number
    unscored     examples left out because some version or seed has no score
    continuous   whether scores are graded; decided once for all versions and seeds
    scores       [n] for each (seed, version), in the order of `ids`
    answers      the same for the answers; None where one is unknown
    """

    task: str
    metric: str
    continuous: bool
    ids: tuple[str, ...]
    unscored: int
    seeds: tuple[int, ...]
    versions: tuple[Version, ...]
    scores: dict[SeedVersion, FloatArray]
    answers: dict[SeedVersion, tuple[str | None, ...]]

    @property
    def n(self) -> int:
        """The number of paired examples."""
        return len(self.ids)

    @property
    def pairs(self) -> tuple[tuple[Version, Version], ...]:
        """(old, new), then (old, compat) and (new, compat) when there is a compat."""
        return tuple(combinations(self.versions, 2))

    def counts(self, seed: int, before: Version, after: Version) -> FlipCounts | ScoreCounts:
        """The counts of one pair under one seed."""
        first, second = (seed, before), (seed, after)
        if self.continuous:
            return count_scores(self.scores[first], self.scores[second])
        same = same_answers(self.answers[first], self.answers[second])
        return count_flips(self.scores[first], self.scores[second], same)


def is_continuous(metric: str, scores: Iterable[float]) -> bool:
    """Whether a metric is graded: by its name, or because a score is neither 0 nor 1."""
    return metric.startswith(CONTINUOUS_METRICS) or any(s not in (0, 1) for s in scores)


def join_predictions(predictions: Predictions) -> dict[str, JoinedTask]:
    """Join versions on (task, id), for every task in the predictions.

    Args:
        predictions: seed -> version -> predictions; old and new in every seed, compat
            in all seeds or in none.

    Returns:
        The joined tasks by name, in the order of the names.

    Raises:
        UserError: a version or a task is missing somewhere, an id comes twice, the
            id sets, the metric, the gold answer or the question differ between two
            versions, a score is not a finite number.
    """
    versions = _versions(predictions)
    tables = {
        (seed, version): _by_task(predictions[seed][version], _label(predictions, seed, version))
        for seed in sorted(predictions)
        for version in versions
    }
    first_key = next(iter(tables))
    names = set(tables[first_key])
    for (seed, version), tasks in tables.items():
        if set(tasks) != names:
            missing = sorted(names ^ set(tasks))[0]
            raise UserError(
                f"task {_show(missing)} is not in all versions: compare "
                f"{_label(predictions, *first_key)} and {_label(predictions, seed, version)}; "
                "evaluate every version on the same tasks"
            )
    if not names:
        raise UserError("there are no predictions to compare: every version is empty")
    return {
        name: _join_task(
            name,
            {key: tasks[name] for key, tasks in tables.items()},
            {key: _label(predictions, *key) for key in tables},
        )
        for name in sorted(names)
    }


def _versions(predictions: Predictions) -> tuple[Version, ...]:
    if not predictions:
        raise UserError("there are no predictions to compare: no seed was given")
    for seed, versions in predictions.items():
        unknown = [v for v in versions if v not in VERSIONS]
        if unknown:
            raise UserError(f"version {_show(unknown[0])} is unknown: use old, new and compat")
        for needed in ("old", "new"):
            if needed not in versions:
                raise UserError(
                    f"seed {seed} has no predictions of {needed}: old and new are needed"
                )
    with_compat = [seed for seed, versions in predictions.items() if "compat" in versions]
    if with_compat and len(with_compat) < len(predictions):
        without = min(set(predictions) - set(with_compat))
        raise UserError(
            f"seed {without} has no predictions of compat but seed {min(with_compat)} has: "
            "give compat for every seed or for none"
        )
    return VERSIONS if with_compat else VERSIONS[:2]


def _label(predictions: Predictions, seed: int, version: Version) -> str:
    return version if len(predictions) == 1 else f"{version} (seed {seed})"


def _show(text: str) -> str:
    """A name inside a one-line message: quoted, escaped, cut."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _by_task(rows: Sequence[Prediction], label: str) -> dict[str, dict[str, Prediction]]:
    tasks: dict[str, dict[str, Prediction]] = {}
    for row in rows:
        table = tasks.setdefault(row.task, {})
        if row.id in table:
            raise UserError(
                f"task {_show(row.task)}: id {_show(row.id)} comes twice in {label}; "
                "ids must be unique in a task"
            )
        table[row.id] = row
    return tasks


def _join_task(
    name: str,
    tables: dict[SeedVersion, dict[str, Prediction]],
    labels: dict[SeedVersion, str],
) -> JoinedTask:
    first_key, *others = tables
    for key in others:
        _check_same(name, tables[first_key], tables[key], labels[first_key], labels[key])
    metric = _metric(name, tables, labels)
    for key, table in tables.items():
        for row in table.values():
            if row.score is not None and not np.isfinite(row.score):
                raise UserError(
                    f"task {_show(name)}: the score of {_show(row.id)} in {labels[key]} is "
                    f"{row.score}; a score is a finite number, or null when unscored"
                )
    everything = sorted(tables[first_key])
    ids = tuple(
        i for i in everything if all(table[i].score is not None for table in tables.values())
    )
    scores = {key: _scores(table, ids) for key, table in tables.items()}
    return JoinedTask(
        task=name,
        metric=metric,
        continuous=is_continuous(metric, np.unique(np.concatenate(list(scores.values()))).tolist()),
        ids=ids,
        unscored=len(everything) - len(ids),
        seeds=tuple(dict.fromkeys(seed for seed, _ in tables)),
        versions=tuple(dict.fromkeys(version for _, version in tables)),
        scores=scores,
        answers={key: tuple(table[i].prediction for i in ids) for key, table in tables.items()},
    )


def _scores(table: dict[str, Prediction], ids: tuple[str, ...]) -> FloatArray:
    return np.array([table[i].score for i in ids], dtype=np.float64)


def _metric(
    name: str, tables: dict[SeedVersion, dict[str, Prediction]], labels: dict[SeedVersion, str]
) -> str:
    seen: dict[str, str] = {}
    for key, table in tables.items():
        for row in table.values():
            seen.setdefault(row.metric, labels[key])
    if len(seen) > 1:
        (one, where_one), (two, where_two) = list(seen.items())[:2]
        raise UserError(
            f"task {_show(name)}: metric {_show(one)} in {where_one} but {_show(two)} in "
            f"{where_two}; scores of different metrics can't be compared"
        )
    return next(iter(seen))


def _check_same(
    name: str,
    first: dict[str, Prediction],
    second: dict[str, Prediction],
    first_label: str,
    second_label: str,
) -> None:
    if first.keys() != second.keys():
        left, right = sorted(first.keys() - second.keys()), sorted(second.keys() - first.keys())
        raise UserError(
            f"task {_show(name)}: the ids of {first_label} and {second_label} differ: "
            f"{len(left)} only in {first_label}, {len(right)} only in {second_label} "
            f"(first {_show((left + right)[0])}); evaluate both on the same examples"
        )
    for i, row in first.items():
        for what in ("gold", "question"):
            if getattr(row, what) != getattr(second[i], what):
                raise UserError(
                    f"task {_show(name)}: example {_show(i)} has another {what} in "
                    f"{second_label} than in {first_label}; evaluate both from the same requests"
                )
