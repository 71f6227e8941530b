"""Flips by slice: where an update hurts, with corrected p and no slice too small to say."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from muscle.metrics.bounds import over_seeds
from muscle.metrics.choices import Integers
from muscle.metrics.intervals import as_list, mcnemar_p
from muscle.metrics.multiple import holm
from muscle.metrics.pairing import JoinedTask, Pair
from muscle.metrics.parts import Part, part_of
from muscle.metrics.proportions import change_interval, fisher_exact
from muscle.metrics.slice_columns import SliceColumn, slice_columns

Block = dict[str, Any]


def slice_blocks(
    task: JoinedTask, columns: Sequence[str] | None, min_n: int
) -> tuple[list[Block], str | None]:
    """Flips of every slice of a task, and a sentence on what was left out (or None).

    A slice is the examples with one value of a column (see `slice_columns.slice_columns`).
    Values with fewer than `min_n` examples are pooled; a pool still smaller is left out.

    Returns:
        One block for each slice, by column: {"column", "value", "n", "small": a pool,
        "versions": {v: {"score"}},
        "pairs": {P: {what `Part.rates` gives,
            "p": Fisher's exact test, two-sided, of NFR in the slice against the rest of the
                task; None for a slice that is the whole task,
            "p_holm": corrected for all slices and pairs of the task}},
        "reduction": what compat changes against new, {"nfr", "ci95": {"nfr"}, "p": exact
            McNemar on the flip indicators, "p_holm": corrected for all slices}, or None}.
        Rates of a continuous metric are those of D < 0 and D > 0, gain is the change of
        the mean score. With several seeds rates are means over seeds, counts and p are
        None, and intervals count each example once, with its mean over seeds.

    Raises:
        UserError: a named column with too many values. One that this task lacks is named
            in the sentence; `slice_columns.check_columns` refuses what no task has.
    """
    found, notes = slice_columns(task, columns)
    slices = _Slices(task)
    blocks: list[Block] = []
    for column in found:
        kept, pooled, note = _pool(column, min_n)
        blocks += slices.blocks(kept, pooled)
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


class _Slices:
    """The numbers of slices of one task; flips are found once for all of them."""

    def __init__(self, task: JoinedTask) -> None:
        self.task = task
        self.whole = {pair: part_of([task], pair) for pair in task.pairs}

    def blocks(self, column: SliceColumn, pooled: bool) -> list[Block]:
        """The slices of one column that have an example; `p_holm` is still to come."""
        codes = column.codes.astype(np.int16)  # few labels; 16 bits are sorted by counting
        order = np.argsort(codes, kind="stable")
        ends = np.searchsorted(codes[order], np.arange(len(column.labels) + 1))
        blocks = []
        for i, label in enumerate(column.labels):
            rows = order[ends[i] : ends[i + 1]]
            if len(rows):
                small = pooled and i == len(column.labels) - 1
                head = {"column": column.name, "value": label, "n": len(rows), "small": small}
                blocks.append(head | self._block(rows))
        return blocks

    def _block(self, rows: Integers) -> Block:
        parts = {pair: _some(whole, rows) for pair, whole in self.whole.items()}
        pairs = {f"{a}->{b}": self._pair((a, b), part) for (a, b), part in parts.items()}
        old_new, *others = parts.values()
        scores = {"old": old_new.old, "new": old_new.new}
        reduction = None
        if others:
            scores["compat"] = others[0].new
            reduction = _reduction(old_new, others[0])
        means = {v: {"score": float(over_seeds(scores[v]).mean())} for v in self.task.versions}
        return {"versions": means, "pairs": pairs, "reduction": reduction}

    def _pair(self, pair: Pair, part: Part) -> Block:
        p = None
        if len(part.worse) == 1 and len(part.worse[0]) < self.task.n:
            total = int(self.whole[pair].worse[0].sum())
            p = fisher_exact(int(part.worse[0].sum()), len(part.worse[0]), total, self.task.n)
        return part.rates() | {"p": p}


def _some(whole: Part, rows: Integers) -> Part:
    return Part(
        [values[rows] for values in whole.old],
        [values[rows] for values in whole.new],
        [values[rows] for values in whole.worse],
        [values[rows] for values in whole.better],
        whole.continuous,
    )


def _reduction(old_new: Part, old_compat: Part) -> Block:
    change = over_seeds(old_compat.worse) - over_seeds(old_new.worse)
    p = None
    if len(old_new.worse) == 1:
        p = mcnemar_p(int((change < 0).sum()), int((change > 0).sum()))
    interval = change_interval(float(change.sum()), float(change @ change), len(change))
    return {"nfr": float(change.mean()), "ci95": {"nfr": as_list(interval)}, "p": p}
