"""What the rates leave out or may be wrong about: unscored and truncated examples, chance."""

from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from muscle.metrics.choices import lengths_of
from muscle.metrics.pairing import JoinedTask
from muscle.types import Truncated

REASONS = 5
NO_REASON = "no reason given"


def excluded_block(task: JoinedTask) -> dict[str, Any]:
    """Unscored and truncated examples of each version, over all examples and all seeds.

    Returns:
        version (and "again", where old was trained twice) -> {
            "unscored": rows without a score (with several seeds: of all of them),
            "reasons": {reason: rows} of the five commonest, the commonest first,
            "truncated": {what: rows}, scored rows included; None if not known}
    """
    return {version: _version(task, version) for version in task.names}


def _version(task: JoinedTask, version: str) -> dict[str, Any]:
    unscored = 0
    reasons: dict[str, int] = {}
    truncated: dict[str, int] | None = None
    for seed in task.seeds:
        score = task.column(seed, version, "score", all=True)
        assert score is not None  # every side has scores
        missing = score.is_null()
        unscored += score.null_count
        error = task.column(seed, version, "error", all=True)
        if error is None:
            error = pa.nulls(len(score), pa.string())
        _add(reasons, pc.fill_null(pc.filter(error, missing), NO_REASON))
        cut = task.column(seed, version, "truncated", all=True)
        if cut is not None:
            truncated = truncated or dict.fromkeys(get_args(Truncated), 0)
            _add(truncated, pc.drop_null(cut))
    common = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:REASONS]
    return {"unscored": unscored, "reasons": dict(common), "truncated": truncated}


def _add(totals: dict[str, int], texts: pa.Array | pa.ChunkedArray) -> None:
    for item in pc.value_counts(texts).to_pylist():
        totals[item["values"]] = totals.get(item["values"], 0) + item["counts"]


def chance_score(task: JoinedTask) -> float | None:
    """The accuracy of guessing, mean of 1/K over the examples; None where K is not known."""
    if task.continuous or not task.n:
        return None
    choices = task.column(task.seeds[0], "old", "choices")
    if choices is None or choices.null_count:
        return None
    lengths = lengths_of(choices)
    return float(np.mean(1 / lengths)) if lengths.min() > 0 else None
