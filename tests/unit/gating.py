"""Reports as small as a gate reads them, from right and wrong answers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from muscle.metrics.bounds import difference_bounds, rate_bounds, relative_nfr_bounds
from muscle.metrics.flips import RATES, count_flips

Right = np.ndarray


def answers(both_right: int, negative: int, positive: int, both_wrong: int) -> tuple[Right, Right]:
    """Two versions with these counts, [n] each."""
    counts = (both_right, negative, positive, both_wrong)
    first = np.repeat([True, True, False, False], counts)
    return first, np.repeat([True, False, True, False], counts)


def pair_block(old: Right, new: Right) -> dict[str, Any]:
    """A pair of report.json as far as a gate reads it; the same bounds as the report's."""
    counts, n = count_flips(old, new), len(old)
    bounds = {
        "nfr": rate_bounds([old & ~new]),
        "relative_nfr": relative_nfr_bounds([old * 1.0], [new * 1.0], [old & ~new]),
        "gain": difference_bounds([new], [old]).at(),
    }
    return {
        "negative": counts.negative,
        "positive": counts.positive,
        **{name: RATES[name](counts) for name in ("nfr", "pfr", "relative_nfr")},
        "gain": (int(new.sum()) - int(old.sum())) / n if n else None,
        "bounds95": {name: None if b is None else list(b) for name, b in bounds.items()},
    }


def task_block(
    old: Right, new: Right, compat: Right | None = None, again: Right | None = None
) -> dict[str, Any]:
    """A task of report.json with these answers."""
    versions = {"new": new} if compat is None else {"new": new, "compat": compat}
    floor = None
    if again is not None:
        floor = {"excess": {}}
        for name, right in versions.items():
            worse, noise = old & ~right, old & ~again
            bounds = difference_bounds([worse], [noise]).at()
            floor["excess"][f"old->{name}"] = {
                "nfr": float(worse.mean() - noise.mean()),
                "bounds95": {"nfr": None if bounds is None else list(bounds)},
            }
    pairs = {f"old->{name}": pair_block(old, right) for name, right in versions.items()}
    return {
        "n": len(old),
        "metric": "acc",
        "continuous": False,
        "pairs": pairs,
        "noise_floor": floor,
        "slices": [],
    }


def report_block(**tasks: dict[str, Any]) -> dict[str, Any]:
    """A report of these tasks."""
    return {"schema": "muscle.report/2", "provenance": {}, "tasks": tasks}


def slice_block(column: str, value: str, old: Right, new: Right, small: bool = False) -> Any:
    """A slice with one pair, old->new."""
    pairs = {"old->new": pair_block(old, new)}
    return {"column": column, "value": value, "n": len(old), "small": small, "pairs": pairs}


def write_outcomes(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """examples.parquet as far as a gate reads it; rows: task, id, seed, old_new, …"""
    table = pa.Table.from_pylist([dict(row) for row in rows])
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "examples.parquet")


def write_report(folder: Path, report: Mapping[str, Any]) -> Path:
    """report.json in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.json"
    path.write_text(json.dumps(report))
    return path
