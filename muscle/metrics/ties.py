"""Near ties: choices so close that numeric noise may have decided between them."""

from typing import Any

import numpy as np
import pyarrow.compute as pc

from muscle.metrics.choices import (
    Column,
    by_size,
    lengths_of,
    numbers_of,
    values_of,
)
from muscle.metrics.flips import BoolArray, FloatArray
from muscle.metrics.pairing import JoinedTask, Pair
from muscle.side import Side
from muscle.types import AGAIN

TOLERANCES = {"float32": 1e-5, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Relative noise of a log-likelihood. For float32 what our engine promises between batches
and machines; for the others one step of their number format (machine epsilon), since a
log-likelihood then rests on logits that are no finer."""

DEFAULT = "float32"


def tolerance_of(side: Side) -> float:
    """The relative noise of a side's log-likelihoods; float32's where its dtype is unknown."""
    return TOLERANCES.get(_dtype(side), TOLERANCES[DEFAULT])


def _dtype(side: Side) -> str:
    return str(side.about.get("dtype", "")).removeprefix("torch.")


def near_ties(
    metric: str, loglikelihoods: Column, choices: Column | None, tolerance: float
) -> BoolArray | None:
    """Whether the two best choices of each example are closer than numeric noise, [n].

    Best as the deciding metric sees it: log-likelihoods as they are, per character
    ("acc_norm") or per byte ("acc_bytes") of the choice. The gap is held against
    `tolerance` times the size of the best one.

    Args:
        metric: the deciding metric.
        loglikelihoods: [n] lists of K numbers in nats; null is no near tie, and neither is
            a list with NaN, without a finite best, or with one choice only.
        choices: [n] lists of the K texts; only the two normalisations read them.
        tolerance: relative.

    Returns:
        None where the metric's normalisation is not known (acc_mutual_info), or needs
        texts that are not there.
    """
    if metric == "acc_mutual_info":
        return None
    lengths, values = lengths_of(loglikelihoods), numbers_of(loglikelihoods)
    if metric in ("acc_norm", "acc_bytes"):
        sizes = None if choices is None else _text_sizes(choices, lengths, metric)
        if sizes is None:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            values = values / sizes
    near = np.zeros(len(lengths), dtype=np.bool_)
    for rows, (matrix,) in by_size(lengths, values):
        if matrix.shape[1] > 1:
            # NaN sorts last, so it becomes the best, and no comparison with it holds.
            best, second = np.partition(matrix, (-2, -1), axis=1)[:, :-3:-1].T
            with np.errstate(invalid="ignore"):
                near[rows] = (best - second <= tolerance * np.abs(best)) & np.isfinite(best)
    return near


def _text_sizes(choices: Column, lengths: Any, metric: str) -> FloatArray | None:
    if (lengths_of(choices)[lengths > 0] != lengths[lengths > 0]).any():
        return None
    count = pc.utf8_length if metric == "acc_norm" else pc.binary_length
    kept = pc.filter(choices, lengths > 0) if (lengths == 0).any() else choices
    return np.asarray(pc.fill_null(count(values_of(kept)), 0), dtype=np.float64)


def near_ties_of(
    task: JoinedTask, seed: int, version: str, *, all: bool = False, tolerance: float | None = None
) -> BoolArray | None:
    """The near ties of one version, in the order of `task.ids` (or of `everything`).

    Returns:
        None for a continuous metric and where there are no log-likelihoods.
    """
    if task.continuous:
        return None
    loglikelihoods = task.column(seed, version, "loglikelihoods", all=all)
    if loglikelihoods is None or loglikelihoods.null_count == len(loglikelihoods):
        return None
    choices = task.column(seed, version, "choices", all=all)
    if tolerance is None:
        tolerance = tolerance_of(task.sides[seed, version])
    return near_ties(task.metric, loglikelihoods, choices, tolerance)


def near_tie_block(task: JoinedTask) -> dict[str, Any] | None:
    """Near ties and the flips that rest on them.

    A pair's tolerance is the larger one of its two versions. With several seeds an example
    counts once, if it is a near tie (a flip with a near tie) in any of them.

    Returns:
        None where no version's near ties are known; else {
            "tolerance": the largest one, relative,
            "versions": {version: near ties; None where unknown},
            "pairs": {pair: {"negative", "positive": flips where either side is a near tie,
                "nfr_without": NFR of the other examples (a mean over seeds), None if there
                are none}}, a pair is missing where either side is unknown,
            "note": which versions' dtype is not known, so that float32's is assumed; or None}
    """
    versions: tuple[str, ...] = (*task.versions, *((AGAIN,) if task.again else ()))
    tolerances = {v: max(tolerance_of(task.sides[s, v]) for s in task.seeds) for v in versions}
    counts: dict[str, int | None] = {}
    for version in versions:
        near = [near_ties_of(task, s, version) for s in task.seeds]
        known = [n for n in near if n is not None]
        counts[version] = int(np.any(known, axis=0).sum()) if len(known) == len(near) else None
    if all(count is None for count in counts.values()):
        return None
    unknown = [v for v in versions if any(_dtype(task.sides[s, v]) == "" for s in task.seeds)]
    pairs = {
        f"{a}->{b}": _pair(task, (a, b), max(tolerances[a], tolerances[b])) for a, b in task.pairs
    }
    return {
        "tolerance": max(tolerances.values()),
        "versions": counts,
        "pairs": {name: block for name, block in pairs.items() if block is not None},
        "note": f"dtype of {', '.join(unknown)} unknown: float32 assumed" if unknown else None,
    }


def _pair(task: JoinedTask, pair: Pair, tolerance: float) -> dict[str, Any] | None:
    negative = np.zeros(task.n, dtype=np.bool_)
    positive = np.zeros(task.n, dtype=np.bool_)
    rates: list[float | None] = []
    for seed in task.seeds:
        near = np.zeros(task.n, dtype=np.bool_)
        for version in pair:
            found = near_ties_of(task, seed, version, tolerance=tolerance)
            if found is None:
                return None
            near |= found
        worse = task.worse(seed, pair)
        negative |= worse & near
        positive |= task.better(seed, pair) & near
        rates.append(float(worse[~near].mean()) if (~near).any() else None)
    known = [rate for rate in rates if rate is not None]
    return {
        "negative": int(negative.sum()),
        "positive": int(positive.sum()),
        "nfr_without": float(np.mean(known)) if len(known) == len(rates) else None,
    }
