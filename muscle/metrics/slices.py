"""Flips by slice: where an update hurts, with corrected p and no slice too small to say."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from muscle.metrics.flips import BoolArray, FloatArray
from muscle.metrics.multiple import holm
from muscle.metrics.pairing import JoinedTask, Pair
from muscle.metrics.proportions import (
    ONE_SIDED,
    as_list,
    change_interval,
    fisher_exact,
    mcnemar_p,
    mean_interval,
    share_interval,
)
from muscle.metrics.slice_columns import SliceColumn, slice_columns

Block = dict[str, Any]
Sums = dict[tuple[Any, ...], float]


def slice_blocks(
    task: JoinedTask, columns: Sequence[str] | None, min_n: int
) -> tuple[list[Block], str | None]:
    """Flips of every slice of a task, and a sentence on what was left out (or None).

    A slice is the examples with one value of a column (see `slice_columns.slice_columns`). Values
    with fewer than `min_n` examples are pooled; a pool that is still smaller is left out.

    Returns:
        One block for each slice, by column: {"column", "value", "n", "small": a pool,
        "versions": {v: {"score"}},
        "pairs": {P: {"negative", "positive", "nfr", "gain", "ci95": {"nfr"},
            "bounds95": {"nfr", "gain"}: one-sided 95 % [lower, upper],
            "p": Fisher's exact test, two-sided, of NFR in the slice against the rest of the
                task; None for a slice that is the whole task,
            "p_holm": corrected for all slices and pairs of the task}},
        "reduction": what compat changes against new, {"nfr", "ci95": {"nfr"}, "p": exact
            McNemar on the flip indicators, "p_holm": corrected for all slices}, or None}.
        Rates of a continuous metric are those of D < 0 and D > 0, gain is the change of
        the mean score. With several seeds rates are means over seeds, counts and p are
        None, and intervals count each example once, with its mean over seeds.

    Raises:
        UserError: a named column that is not there or has too many values.
    """
    found, notes = slice_columns(task, columns)
    measures = _Measures(task)
    blocks: list[Block] = []
    for column in found:
        kept, pooled, note = _pool(column, min_n)
        blocks += measures.blocks(kept, pooled)
        notes += note
    tests = [pair for block in blocks for pair in block["pairs"].values()]
    reductions = [b["reduction"] for b in blocks if b["reduction"] is not None]
    for group in (tests, reductions):
        for test, p in zip(group, holm([t["p"] for t in group]), strict=True):
            test["p_holm"] = p
    return blocks, f"Left out: {'; '.join(notes)}." if notes else None


def _pool(column: SliceColumn, min_n: int) -> tuple[SliceColumn, bool, list[str]]:
    """The column without values of fewer than min_n examples: together they are its last one
    (then True), or left out (then with a note)."""
    counts = np.bincount(column.codes + 1, minlength=len(column.labels) + 1)[1:]
    large = np.flatnonzero(counts >= min_n)
    rare = np.flatnonzero((counts < min_n) & (counts > 0))
    places = np.full(len(counts) + 1, -1, dtype=np.int64)
    places[large] = np.arange(len(large))
    labels = [column.labels[i] for i in large.tolist()]
    notes = []
    pooled = len(rare) > 1 and int(counts[rare].sum()) >= min_n
    if pooled:
        places[rare] = len(large)
        labels.append(f"{len(rare)} values with fewer than {min_n} examples each")
    elif len(rare):
        values = "1 value" if len(rare) == 1 else f"{len(rare)} values"
        notes = [f"{values} of {column.name} with fewer than {min_n} examples"]
    return SliceColumn(column.name, places[column.codes], labels), pooled, notes


class _Measures:
    """The numbers of each slice, from sums over its examples of what stands in `arrays`.

    arrays   [n] each, means over seeds: scores by version, "negative" and "positive" flips
             and "gain" by pair, "reduction" of NFR; with their squares, for the variances
    """

    def __init__(self, task: JoinedTask) -> None:
        self.task = task
        self.seeds = len(task.seeds)
        self.arrays: dict[tuple[Any, ...], FloatArray] = {}
        for version in task.versions:
            self.arrays[version,] = _mean([task.scores[s, version] for s in task.seeds])
        for pair in task.pairs:
            self.arrays[pair, "negative"] = _mean([task.worse(s, pair) for s in task.seeds])
            self.arrays[pair, "positive"] = _mean([task.better(s, pair) for s in task.seeds])
            self._squared((pair, "gain"), self.arrays[pair[1],] - self.arrays[pair[0],])
            if self.seeds > 1:  # else an indicator, its own square
                self._squared((pair, "negative"), self.arrays[pair, "negative"])
        if "compat" in task.versions:
            new, compat = (self.arrays[pair, "negative"] for pair in task.pairs[:2])
            self._squared(("reduction",), compat - new)
        self.negative = {p: float(self.arrays[p, "negative"].sum()) for p in task.pairs}

    def _squared(self, key: tuple[Any, ...], values: FloatArray) -> None:
        self.arrays[key] = values
        self.arrays[(*key, "squares")] = values * values

    def blocks(self, column: SliceColumn, pooled: bool) -> list[Block]:
        """The slices of one column that have an example; `p_holm` is still to come."""
        bins, size = column.codes + 1, len(column.labels) + 1
        sizes = np.bincount(bins, minlength=size)
        sums = {
            key: np.bincount(bins, weights=values, minlength=size)
            for key, values in self.arrays.items()
        }
        blocks = []
        for i, label in enumerate(column.labels, start=1):
            if n := int(sizes[i]):
                here = {key: float(values[i]) for key, values in sums.items()}
                head = {"column": column.name, "value": label, "n": n}
                small = pooled and i == len(column.labels)
                blocks.append({**head, "small": small, **self._block(here, n)})
        return blocks

    def _block(self, sums: Sums, n: int) -> Block:
        return {
            "versions": {v: {"score": sums[v,] / n} for v in self.task.versions},
            "pairs": {f"{p[0]}->{p[1]}": self._pair(sums, p, n) for p in self.task.pairs},
            "reduction": self._reduction(sums, n) if ("reduction",) in sums else None,
        }

    def _pair(self, sums: Sums, pair: Pair, n: int) -> Block:
        negative, positive = sums[pair, "negative"], sums[pair, "positive"]
        squares = sums.get((pair, "negative", "squares"), negative)
        gain, gain_squares = sums[pair, "gain"], sums[pair, "gain", "squares"]
        gain_interval = mean_interval if self.task.continuous else change_interval
        one, p = self.seeds == 1, None
        if one and n < self.task.n:
            p = fisher_exact(round(negative), n, round(self.negative[pair]), self.task.n)
        return {
            "negative": round(negative) if one else None,
            "positive": round(positive) if one else None,
            "nfr": negative / n,
            "gain": gain / n,
            "ci95": {"nfr": as_list(share_interval(negative, squares, n, self.seeds))},
            "bounds95": {
                "nfr": as_list(share_interval(negative, squares, n, self.seeds, ONE_SIDED)),
                "gain": as_list(gain_interval(gain, gain_squares, n, ONE_SIDED)),
            },
            "p": p,
        }

    def _reduction(self, sums: Sums, n: int) -> Block:
        """From old->new to old->compat; the squares of one seed count the discordant."""
        change, squares = sums["reduction",], sums["reduction", "squares"]
        p = None
        if self.seeds == 1:
            p = mcnemar_p(round((squares - change) / 2), round((squares + change) / 2))
        interval = change_interval(change, squares, n)
        return {"nfr": change / n, "ci95": {"nfr": as_list(interval)}, "p": p}


def _mean(values: Sequence[BoolArray | FloatArray]) -> FloatArray:
    total = values[0].astype(np.float64)
    for value in values[1:]:
        total += value
    return total / len(values)
