"""examples.parquet read back, as tasks whose report can be made again."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from muscle.errors import UserError
from muscle.metrics.columns import whole
from muscle.metrics.comparable import Difference
from muscle.metrics.flips import BoolArray
from muscle.metrics.pairing import JoinedTask, SeedVersion
from muscle.report.example_rows import open_examples
from muscle.report.example_table import OF_EXAMPLE, OF_VERSION, ROWS, SCHEMA, outcome_pairs
from muscle.side import Side
from muscle.tables import ABOUT, reason_line

_FROM = {column: end for end, (_, column) in OF_VERSION.items()}


def read_example_table(path: str) -> dict[str, JoinedTask]:
    """The tasks of examples.parquet; columns of texts are read when they are asked for.

    `report_of` of them has the numbers of the report that was written with the table, so
    that it can be made again with some flips waived. Where the table was written without
    texts, what needs them (slices by field, which answer replaced which) is empty.

    Raises:
        UserError: no such file, or not ours.
    """
    about = _read(path, lambda file: json.loads((file.schema_arrow.metadata or {})[ABOUT]))
    if about.get("schema") != SCHEMA:
        raise UserError(
            f"{path}: was written by another version of muscle ({about.get('schema')}, not "
            f"{SCHEMA}); compare again"
        )
    tasks = {}
    start = 0
    for entry in about["tasks"]:
        groups = -(-int(entry["rows"]) // ROWS)
        parts = {}
        for seed in entry["seeds"]:
            parts[int(seed)] = range(start, start + groups)
            start += groups
        tasks[str(entry["task"])] = _task(path, entry, parts)
    return tasks


def _read(path: str, what: Callable[[pq.ParquetFile], Any]) -> Any:
    try:
        with open_examples(path) as file:
            return what(file)
    except (KeyError, ValueError) as error:
        reason = reason_line(error)
        raise UserError(f"{path}: is not a whole table of examples of ours: {reason}") from None


def _column(path: str, name: str, groups: range) -> pa.ChunkedArray | None:
    """A column of some row groups; None if the table has no such column."""

    def read(file: pq.ParquetFile) -> pa.ChunkedArray | None:
        if name not in file.schema_arrow.names:
            return None
        return file.read_row_groups(list(groups), columns=[name]).column(name)

    return _read(path, read)


def _task(path: str, entry: dict[str, Any], parts: dict[int, range]) -> JoinedTask:
    versions = tuple(entry["versions"])
    names = (*versions, "again") if entry["again"] else versions
    n = int(entry["rows"])
    first = next(iter(parts.values()))
    ids = whole(_needed(path, "id", first))
    scores = {
        (seed, name): _needed(path, f"{name}_score", groups).to_numpy()
        for seed, groups in parts.items()
        for name in names
    }
    scored = np.asarray(np.isfinite(np.stack(list(scores.values()))).all(axis=0))
    counting = np.arange(n, dtype=np.int64)
    task = JoinedTask(
        task=str(entry["task"]),
        metric=str(entry["metric"]),
        continuous=bool(entry["continuous"]),
        ids=ids.filter(pa.array(scored)),
        everything=ids,
        scored=scored,
        seeds=tuple(parts),
        versions=versions,
        again=bool(entry["again"]),
        scores={key: values[scored] for key, values in scores.items()},
        sides={key: _side(path, entry, key, parts[key[0]]) for key in scores},
        orders=dict.fromkeys(scores, counting),
        common_only=int(entry["common_only"]),
        differences=[Difference(**difference) for difference in entry["differences"]],
    )
    for seed, groups in parts.items():
        for pair in outcome_pairs(task):
            task.known_same[seed, pair] = _same(path, "_".join(pair), groups, task)
    return task


def _needed(path: str, name: str, groups: range) -> pa.ChunkedArray:
    column = _column(path, name, groups)
    if column is None:
        raise UserError(f"{path}: has no column {name}; compare again")
    return column


def _same(path: str, name: str, groups: range, task: JoinedTask) -> BoolArray | None:
    """Whether both gave the same answer, as the outcomes tell: where both are wrong."""
    column = None if task.continuous else _column(path, name, groups)
    if column is None or pc.any(pc.equal(column, "both_wrong")).as_py():
        return None
    same: BoolArray = pc.equal(column, "both_wrong_same").to_numpy(zero_copy_only=False)
    return same[task.scored]


def _side(path: str, entry: dict[str, Any], key: SeedVersion, groups: range) -> Side:
    """A side that reads its columns from the table."""
    seed, version = key

    def read(column: str) -> pa.ChunkedArray | None:
        if column == "id" or (column in OF_EXAMPLE and column != "question"):
            return _column(path, column, groups)
        if column == "question":
            shared = _column(path, "question", groups)
            own = None if version == "old" else _column(path, f"{version}_question", groups)
            return shared if own is None else pc.coalesce(own, shared)
        if column in _FROM:
            return _column(path, f"{version}_{_FROM[column]}", groups)
        return None

    dtype = entry["dtypes"].get(f"{version} {seed}")
    about = {} if dtype is None else {"dtype": dtype}
    rows = int(entry["rows"])
    return Side(str(entry["task"]), str(entry["metric"]), version, rows, read, about)
