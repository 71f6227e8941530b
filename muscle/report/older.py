"""The flips since an older release, beside those of the update: drift over v1 → v2 → v3.

An older release ("also") is no version of the update: what has no score for it is missing from
its own numbers alone. It is joined with old, new and compat as they are joined with each other,
in the place of old, and old in that of the noise floor's second old; so the same things are
refused, and one formula serves both.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from muscle.errors import UserError
from muscle.metrics.bounds import rate_bounds
from muscle.metrics.comparable import show
from muscle.metrics.flips import FloatArray
from muscle.metrics.intervals import as_list
from muscle.metrics.pairing import FLOOR, AnyPair, JoinedTask, Sides, join_sides
from muscle.report.build import ReportOptions
from muscle.report.pairs import COUNTS, proportion, rate_interval
from muscle.report.sums import Seeds, TaskSums, number
from muscle.side import Side
from muscle.types import AGAIN, VERSIONS

ALSO = "also"
RATES_SHOWN = ("nfr", "pfr", "relative_nfr")

_ROLES = {"old": ALSO, AGAIN: "old"}
"""What the places of the join stand for."""
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ +-]{0,79}")
_RESERVED = (*VERSIONS, AGAIN, ALSO)


def labelled(given: Sequence[str], setting: str) -> dict[str, str]:
    """Label -> path of what was given as PATH or NAME=PATH; a path's label is its last name, or
    the one before it where that is a version's or release.json.

    Raises:
        UserError: a label comes twice, or can't be one; `setting` is what the user calls it.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or "/" in name:
            name, path = _label(text), text
        if not path:
            raise UserError(f"{setting} {text!r}: write it as PATH or NAME=PATH")
        if not _LABEL.fullmatch(name) or name in _RESERVED:
            raise UserError(
                f"{setting}: {name[:80]!r} can't be an older release's name: write NAME=PATH, of "
                f"letters, digits and ._-, and none of {', '.join(_RESERVED)}"
            )
        if name in found:
            raise UserError(f"{setting}: the name {name!r} comes twice: write NAME=PATH")
        found[name] = path
    return found


def _label(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    if len(parts) > 1 and parts[-1] in ("release.json", *_RESERVED):
        return parts[-2]
    return re.sub(r"\.(jsonl?(\.gz)?|parquet|csv)$", "", parts[-1]) if parts else ""


def with_older(
    report: dict[str, Any],
    sides: Sides,
    older: Sides,
    options: ReportOptions,
    common: bool = False,
) -> dict[str, Any]:
    """The report with `also` in each task: for each older release its score and pairs.

    Args:
        report: of `report_of`.
        sides: what it was made of.
        older: seed -> label of an older release -> task -> side; the same seeds.
        common: as in `join_sides`.

    Raises:
        UserError: as `join_sides`, or an older release lacks a task.
    """
    labels = [*next(iter(older.values()), {})]
    if not labels:
        return report
    blocks: dict[str, dict[str, Any]] = {name: {} for name in report["tasks"]}
    for label in labels:
        joined = join_sides(_in_places(sides, older, label, [*blocks]), common=common)
        for name, task in joined.items():
            blocks[name][label] = older_block(TaskSums(task, options.draws, options.seed))
    tasks = {name: {**task, ALSO: blocks[name]} for name, task in report["tasks"].items()}
    return {**report, "tasks": tasks}


def _in_places(sides: Sides, older: Sides, label: str, tasks: Sequence[str]) -> Sides:
    found: dict[int, dict[str, Mapping[str, Side]]] = {}
    for seed, versions in sides.items():
        mine = older[seed][label]
        for task in tasks:
            if task not in mine:
                there = ", ".join(sorted(mine)) or "none"
                raise UserError(
                    f"also {show(label)}: it has no task {show(task)}, only {there[:200]}"
                )
        kept = {task: mine[task] for task in tasks}
        found[seed] = {"old": kept, "new": versions["new"], AGAIN: versions["old"]}
        if "compat" in versions:
            found[seed]["compat"] = versions["compat"]
    return found


def older_block(sums: TaskSums) -> dict[str, Any]:
    """An older release's entry in report.json; its join is `sums.task`.

    Returns:
        n, unscored, common_only and what differs in how it was asked (as in a task's block); the
        older release's score; and by pair (also->old, also->new, also->compat) rates, counts
        (null for several seeds), 95 % intervals and NFR's one-sided bounds. `lost` divides a
        pair's negative flips: "before" were wrong at old already, an old debt; "now" are the
        update's own. Counts, null for several seeds, and shares of all examples, means over seeds.
    """
    task, seeds = sums.task, sums.task.seeds
    pairs: list[AnyPair] = [FLOOR, *(("old", version) for version in task.versions[1:])]
    differences = [replace(d, values=_named(d.values)) for d in task.differences]
    return {
        "n": task.n,
        "unscored": task.unscored,
        "common_only": task.common_only,
        # The note on the noise floor's second old speaks of what isn't one here.
        "comparability": [asdict(d) for d in differences if "second seed" not in d.what],
        "score": {
            "score": number(sums.scores(seeds, "old")[0]),
            "ci95": as_list(proportion(sums, seeds, "old")),
        },
        "pairs": {_name(pair): _pair(sums, seeds, pair) for pair in pairs},
    }


def _named(values: Mapping[str, str]) -> dict[str, str]:
    return {_ROLES.get(version, version): text for version, text in values.items()}


def _name(pair: AnyPair) -> str:
    return f"{ALSO}->{_ROLES[AGAIN] if pair == FLOOR else pair[1]}"


def _pair(sums: TaskSums, seeds: Seeds, pair: AnyPair) -> dict[str, Any]:
    task, one = sums.task, len(seeds) == 1
    values = {name: sums.rate(name, seeds, pair) for name in RATES_SHOWN}
    names = ("negative", "positive", "equal") if task.continuous else COUNTS
    counted = asdict(task.counts(seeds[0], *pair)) if one else {}
    gain = sums.gain(seeds, pair)
    return {
        **{name: number(array[0]) for name, array in values.items()},
        "gain": number(gain[0]),
        "counts": {name: counted.get(name) for name in names},
        "lost": None if pair == FLOOR else _lost(task, seeds, pair),
        "ci95": {n: rate_interval(sums, seeds, pair, n, array) for n, array in values.items()},
        "bounds95": {"nfr": as_list(rate_bounds(sums.worse(seeds, pair)))},
    }


def _lost(task: JoinedTask, seeds: Seeds, pair: AnyPair) -> dict[str, dict[str, Any]]:
    """The pair's negative flips by whether old had lost them already."""
    before = [task.worse(s, pair) & task.worse(s, FLOOR) for s in seeds]
    now = [task.worse(s, pair) & ~task.worse(s, FLOOR) for s in seeds]

    def shown(flips: list[Any]) -> dict[str, Any]:
        counts: FloatArray = np.array([float(f.sum()) for f in flips])
        share = float(counts.mean() / task.n) if task.n else None
        return {"count": int(counts[0]) if len(flips) == 1 else None, "share": share}

    return {"before": shown(before), "now": shown(now)}
