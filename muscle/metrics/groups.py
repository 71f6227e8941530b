"""Several tasks together: task groups such as a suite of subjects, and all tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from muscle.metrics.bounds import over_seeds
from muscle.metrics.intervals import as_list
from muscle.metrics.pairing import JoinedTask, Pair
from muscle.metrics.parts import part_of, share

ALL = "(all tasks)"
_RATES = ("nfr", "pfr", "gain")
NOTHING: dict[str, Any] = {
    **dict.fromkeys(("negative", "positive", *_RATES)),
    "ci95": dict.fromkeys(_RATES),
    "bounds95": dict.fromkeys(("nfr", "gain")),
}
"""The pooled numbers of a pair where nothing is pooled."""


def group_blocks(
    tasks: Mapping[str, JoinedTask], groups: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Scores and flips of groups of tasks, and of all tasks together as "(all tasks)".

    A group of which fewer than two tasks are here is left out: the task's own block says
    it all. So is "(all tasks)" where a group has all of them.

    Returns:
        name -> {
        "tasks": names, "n": examples of all of them,
        "pooled": {"tasks": names, "metric", "n"} of what the pooled numbers are over: the
            right-or-wrong tasks, if they share one metric; None where there are no such two,
        "versions": {v: {"score", "ci95": pooled over examples, "mean_score": unweighted
            mean over all tasks of the group}},
        "pairs": {P: {"negative", "positive", "nfr", "pfr", "gain",
            "ci95": {"nfr", "pfr", "gain"}, "bounds95": {"nfr", "gain"}: pooled over
            examples, "mean_nfr", "mean_pfr": unweighted means over all tasks}},
        "note": what is not pooled and why, or None}
        Pooled numbers are None where nothing is pooled. With several seeds rates are means
        over seeds and counts None. An example counts as much as any other in the pooled
        numbers, a task as much as any other in the means.
    """
    chosen = {name: sorted(set(members) & set(tasks)) for name, members in sorted(groups.items())}
    chosen = {name: members for name, members in chosen.items() if len(members) > 1}
    if len(tasks) > 1 and sorted(tasks) not in chosen.values():
        chosen[ALL] = sorted(tasks)
    return {name: _group([tasks[task] for task in members]) for name, members in chosen.items()}


def _group(tasks: list[JoinedTask]) -> dict[str, Any]:
    pooled, note = _pool(tasks)
    names = {"tasks": [t.task for t in pooled], "n": sum(t.n for t in pooled)}
    return {
        "tasks": [t.task for t in tasks],
        "n": sum(t.n for t in tasks),
        "pooled": {**names, "metric": pooled[0].metric} if pooled else None,
        "versions": {v: _version(tasks, pooled, v) for v in tasks[0].versions},
        "pairs": {f"{p[0]}->{p[1]}": _pair(tasks, pooled, p) for p in tasks[0].pairs},
        "note": note,
    }


def _pool(tasks: list[JoinedTask]) -> tuple[list[JoinedTask], str | None]:
    """The tasks whose examples may be pooled, and what to say about the others."""
    binary = [t for t in tasks if not t.continuous and t.n]
    metrics = sorted({t.metric for t in binary})
    if len(metrics) > 1:
        return [], f"not pooled: the tasks have different metrics ({', '.join(metrics)})"
    if len(binary) < 2:
        return [], "not pooled: fewer than two tasks are judged right or wrong"
    names = [t.task for t in binary]
    graded = [t.task for t in tasks if t.task not in names]
    return binary, f"only in the means, not pooled: {', '.join(graded)}" if graded else None


def _mean(values: Sequence[Any]) -> float | None:
    """The mean over tasks of means over seeds and examples; None if a task has none."""
    if not all(len(v) for of_task in values for v in of_task):
        return None
    return float(np.mean([np.mean([v.mean() for v in of_task]) for of_task in values]))


def _version(tasks: list[JoinedTask], pooled: list[JoinedTask], version: str) -> dict[str, Any]:
    seeds = tasks[0].seeds
    mean = _mean([[t.scores[s, version] for s in seeds] for t in tasks])
    if not pooled:
        return {"score": None, "ci95": None, "mean_score": mean}
    scores = over_seeds([np.concatenate([t.scores[s, version] for t in pooled]) for s in seeds])
    interval = as_list(share(scores, len(seeds)))
    return {"score": float(scores.mean()), "ci95": interval, "mean_score": mean}


def _pair(tasks: list[JoinedTask], pooled: list[JoinedTask], pair: Pair) -> dict[str, Any]:
    return {
        **(part_of(pooled, pair).rates() if pooled else NOTHING),
        "mean_nfr": _mean([[t.worse(s, pair) for s in t.seeds] for t in tasks]),
        "mean_pfr": _mean([[t.better(s, pair) for s in t.seeds] for t in tasks]),
    }
