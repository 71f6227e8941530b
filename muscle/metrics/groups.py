"""Several tasks together: task groups such as a suite of subjects, and all tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from muscle.metrics.flips import FloatArray
from muscle.metrics.intervals import CONFIDENCE
from muscle.metrics.pairing import JoinedTask, Pair
from muscle.metrics.proportions import ONE_SIDED, as_list, change_interval, share_interval

ALL = "(all tasks)"


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
            "ci95": {"nfr", "pfr", "gain"}, "bounds95": {"nfr", "pfr", "gain"}: pooled over
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


def _over_seeds(values: Sequence[Sequence[Any]]) -> FloatArray:
    """tasks x seeds x [n] as the examples of all tasks, each its mean over seeds."""
    parts = [np.mean([v.astype(np.float64) for v in of_task], axis=0) for of_task in values]
    return np.concatenate(parts) if parts else np.zeros(0)


def _version(tasks: list[JoinedTask], pooled: list[JoinedTask], version: str) -> dict[str, Any]:
    scores = _over_seeds([[t.scores[s, version] for s in t.seeds] for t in pooled])
    return {
        "score": float(scores.mean()) if pooled else None,
        "ci95": _share(scores, len(tasks[0].seeds)),
        "mean_score": _mean([[t.scores[s, version] for s in t.seeds] for t in tasks]),
    }


def _pair(tasks: list[JoinedTask], pooled: list[JoinedTask], pair: Pair) -> dict[str, Any]:
    seeds = len(tasks[0].seeds)
    worse = _over_seeds([[t.worse(s, pair) for s in t.seeds] for t in pooled])
    better = _over_seeds([[t.better(s, pair) for s in t.seeds] for t in pooled])
    before, after = pair
    gain = _over_seeds(
        [[t.scores[s, after] - t.scores[s, before] for s in t.seeds] for t in pooled]
    )
    counted = bool(pooled) and seeds == 1
    return {
        "negative": round(float(worse.sum())) if counted else None,
        "positive": round(float(better.sum())) if counted else None,
        "nfr": float(worse.mean()) if pooled else None,
        "pfr": float(better.mean()) if pooled else None,
        "gain": float(gain.mean()) if pooled else None,
        "ci95": _intervals(worse, better, gain, seeds, CONFIDENCE),
        "bounds95": _intervals(worse, better, gain, seeds, ONE_SIDED),
        "mean_nfr": _mean([[t.worse(s, pair) for s in t.seeds] for t in tasks]),
        "mean_pfr": _mean([[t.better(s, pair) for s in t.seeds] for t in tasks]),
    }


def _intervals(
    worse: FloatArray, better: FloatArray, gain: FloatArray, seeds: int, confidence: float
) -> dict[str, list[float] | None]:
    change = change_interval(float(gain.sum()), float(gain @ gain), len(gain), confidence)
    return {
        "nfr": _share(worse, seeds, confidence),
        "pfr": _share(better, seeds, confidence),
        "gain": as_list(change),
    }


def _share(values: FloatArray, seeds: int, confidence: float = CONFIDENCE) -> list[float] | None:
    total, squares = float(values.sum()), float(values @ values)
    return as_list(share_interval(total, squares, len(values), seeds, confidence))
