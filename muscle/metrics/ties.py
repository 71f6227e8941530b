"""Near ties: choices so close that numeric noise may have decided between them."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from muscle.metrics.choices import (
    by_size,
    lengths_of,
    numbers_of,
    values_of,
)
from muscle.metrics.columns import Column
from muscle.metrics.flips import BoolArray, FloatArray
from muscle.metrics.pairing import JoinedTask, Pair
from muscle.side import Side

TOLERANCES = {"float32": 1e-5, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Relative noise of a log-likelihood. For float32 what our engine promises between batches
and machines; for the others one step of their number format (machine epsilon), since a
log-likelihood then rests on logits that are no finer."""

DEFAULT = "float32"
NORMALISED = ("acc_norm", "acc_bytes")
Gaps = dict[tuple[int, str], FloatArray | None]


def tolerance_of(side: Side) -> float:
    """The relative noise of a side's log-likelihoods; float32's where its dtype is unknown."""
    return TOLERANCES.get(_dtype(side), TOLERANCES[DEFAULT])


def _dtype(side: Side) -> str:
    return str(side.about.get("dtype", "")).removeprefix("torch.")


def gaps(metric: str, loglikelihoods: Column, choices: Column | None) -> FloatArray | None:
    """The gap between the two best choices of each example, relative to the best one, [n].

    Best as the deciding metric sees it: log-likelihoods as they are, per character
    ("acc_norm") or per byte ("acc_bytes") of the choice.

    Args:
        metric: the deciding metric.
        loglikelihoods: [n] lists of K numbers in nats.
        choices: [n] lists of the K texts; only the two normalisations read them.

    Returns:
        Infinity for an example without two choices: null, NaN, one choice only, no finite
        best one. None where the metric's normalisation is not known (acc_mutual_info), or
        needs texts that are not there.
    """
    if metric == "acc_mutual_info":
        return None
    lengths, values = lengths_of(loglikelihoods), numbers_of(loglikelihoods)
    if metric in NORMALISED:
        sizes = None if choices is None else _text_sizes(choices, lengths, metric)
        if sizes is None:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            values = values / sizes
    out = np.full(len(lengths), np.inf)
    for rows, (matrix,) in by_size(lengths, values):
        if matrix.shape[1] > 1:
            # NaN sorts last, so it becomes the best one, and the gap NaN.
            two = np.partition(matrix, (-2, -1), axis=1)
            second, best = two[:, -2], two[:, -1]
            with np.errstate(divide="ignore", invalid="ignore"):
                relative = np.where(best == second, 0.0, (best - second) / np.abs(best))
            out[rows] = np.where(np.isfinite(best) & ~np.isnan(relative), relative, np.inf)
    return out


def near_ties(
    metric: str, loglikelihoods: Column, choices: Column | None, tolerance: float
) -> BoolArray | None:
    """Whether the two best choices are closer than numeric noise, [n]; None as `gaps`."""
    found = gaps(metric, loglikelihoods, choices)
    return None if found is None else found <= tolerance


def _text_sizes(choices: Column, lengths: NDArray[np.int64], metric: str) -> FloatArray | None:
    """The characters or bytes of each choice that has a log-likelihood."""
    has = lengths > 0
    if (lengths_of(choices)[has] != lengths[has]).any():
        return None
    count = pc.utf8_length if metric == "acc_norm" else pc.binary_length
    kept = choices if has.all() else pc.filter(choices, pa.array(has))
    return np.asarray(pc.fill_null(count(values_of(kept)), 0), dtype=np.float64)


def gaps_of(task: JoinedTask, seed: int, version: str, *, all: bool = False) -> FloatArray | None:
    """`gaps` of one version, in the order of `task.ids` (of `task.everything` with `all`).

    Returns:
        None for a continuous metric and where there are no log-likelihoods.
    """
    if task.continuous:
        return None
    loglikelihoods = task.column(seed, version, "loglikelihoods", all=all)
    if loglikelihoods is None or loglikelihoods.null_count == len(loglikelihoods):
        return None
    choices = None
    if task.metric in NORMALISED:
        choices = task.column(seed, version, "choices", all=all)
    return gaps(task.metric, loglikelihoods, choices)


def near_ties_of(
    task: JoinedTask, seed: int, version: str, *, all: bool = False
) -> BoolArray | None:
    """The near ties of one version by its own tolerance; order and None as `gaps_of`."""
    found = gaps_of(task, seed, version, all=all)
    return None if found is None else found <= tolerance_of(task.sides[seed, version])


def near_tie_block(task: JoinedTask) -> dict[str, Any] | None:
    """Near ties and the flips that rest on them.

    A pair's tolerance is the larger one of its two versions. With several seeds an example
    counts once, if it is a near tie (a flip with a near tie) in any of them.

    Returns:
        None where no version's near ties are known; else {
            "tolerance": the largest one, relative,
            "versions": {version, or "again": near ties; None where unknown},
            "pairs": {pair: {"negative", "positive": flips where either side is a near tie,
                "nfr_without": NFR of the other examples (a mean over seeds), None if there
                are none}}; without the pairs of which a side is unknown,
            "note": whose dtype is not known, so that float32's is assumed; or None}
    """
    found = {(s, v): gaps_of(task, s, v) for s in task.seeds for v in task.names}
    tolerances = {v: max(tolerance_of(task.sides[s, v]) for s in task.seeds) for v in task.names}
    counts: dict[str, int | None] = {}
    for version in task.names:
        near = [_near(found, s, version, tolerances[version]) for s in task.seeds]
        known = [values for values in near if values is not None]
        counts[version] = int(np.any(known, axis=0).sum()) if len(known) == len(near) else None
    if all(count is None for count in counts.values()):
        return None
    pairs = {}
    for pair in task.pairs:
        tolerance = max(tolerances[v] for v in pair)
        block = _pair(task, pair, {k: _near(found, *k, tolerance) for k in found})
        if block is not None:
            pairs[f"{pair[0]}->{pair[1]}"] = block
    unknown = [
        v for v in task.names if any(_dtype(task.sides[s, v]) not in TOLERANCES for s in task.seeds)
    ]
    return {
        "tolerance": max(tolerances.values()),
        "versions": counts,
        "pairs": pairs,
        "note": f"dtype of {', '.join(unknown)} not known: as {DEFAULT}" if unknown else None,
    }


def _near(found: Gaps, seed: int, version: str, tolerance: float) -> BoolArray | None:
    values = found[seed, version]
    return None if values is None else values <= tolerance


def _pair(
    task: JoinedTask, pair: Pair, near: dict[tuple[int, str], BoolArray | None]
) -> dict[str, Any] | None:
    negative = np.zeros(task.n, dtype=np.bool_)
    positive = np.zeros(task.n, dtype=np.bool_)
    rates: list[float | None] = []
    for seed in task.seeds:
        first, second = (near[seed, version] for version in pair)
        if first is None or second is None:
            return None
        close, worse = first | second, task.worse(seed, pair)
        negative |= worse & close
        positive |= task.better(seed, pair) & close
        rates.append(None if close.all() else float(worse[~close].mean()))
    known = [rate for rate in rates if rate is not None]
    return {
        "negative": int(negative.sum()),
        "positive": int(positive.sum()),
        "nfr_without": float(np.mean(known)) if len(known) == len(rates) else None,
    }
