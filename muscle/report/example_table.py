"""examples.parquet: every example of a comparison, a row for each task, seed and id.

The page shows some of it; the gate reads it to count again without waived flips. Written
some rows at a time from columns that are read one by one and kept compressed, so that a
million examples and their texts are never in memory together.
"""

import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from muscle.metrics.choices import first_match, lengths_of, numbers_of, starts_of
from muscle.metrics.columns import Order, equal_rows, whole
from muscle.metrics.flips import ROUNDING, FloatArray
from muscle.metrics.pairing import FLOOR, AnyPair, JoinedTask
from muscle.metrics.ties import near_ties_of
from muscle.report.example_rows import OUTCOMES
from muscle.storage import filesystem, is_remote, storage_error
from muscle.tables import ABOUT

SCHEMA = "muscle.examples/1"
ROWS = 1 << 15
"""Rows of a row group."""

_CODES = {name: code for code, name in enumerate(OUTCOMES)}

_TEXT = pa.string()
_TEXTS = pa.list_(pa.string())
_NUMBERS = pa.list_(pa.float64())
_FIELDS = pa.map_(pa.string(), pa.string())

OF_EXAMPLE = {
    "question": _TEXT, "gold": _TEXT, "choices": _TEXTS, "fields": _FIELDS, "document": _TEXT
}  # fmt: skip
"""Columns of an example, as old's side has them: they are the same on all."""

OF_VERSION = {
    "score": (pa.float64(), "score"),
    "answer": (_TEXT, "prediction"),
    "response": (_TEXT, "response"),
    "loglikelihoods": (_NUMBERS, "loglikelihoods"),
    "error": (_TEXT, "error"),
    "truncated": (_TEXT, "truncated"),
    "reason": (_TEXT, "reason"),
    "prompt": (_TEXT, "prompt"),
}
"""Columns of each version, by the end of their name: type, and the column of a side."""

PRIVATE = (
    "question", "gold", "choices", "fields", "answer", "response", "error", "reason", "prompt"
)  # fmt: skip
"""What holds texts of the examples; left out where those are not to be shown."""


def outcome_pairs(task: JoinedTask) -> tuple[AnyPair, ...]:
    """The pairs whose outcomes the table has."""
    return (*task.pairs, FLOOR) if task.again else task.pairs


def table_schema(task: JoinedTask) -> pa.Schema:
    """The columns of the table, for the versions that this task has (all tasks have them)."""
    columns = {"task": _TEXT, "seed": pa.int32(), "id": _TEXT, **OF_EXAMPLE}
    for name in task.names:
        columns |= {f"{name}_{end}": kind for end, (kind, _) in OF_VERSION.items()}
        columns[f"{name}_near_tie"] = pa.bool_()
        if name != "old":
            columns[f"{name}_question"] = _TEXT
    columns |= {f"{before}_{after}": _TEXT for before, after in outcome_pairs(task)}
    return pa.schema([*columns.items(), ("margin", pa.float64())])


def write_example_table(path: str, tasks: Mapping[str, JoinedTask], text: str) -> None:
    """Write the examples of a comparison, scored or not, sorted by task, seed and id.

    Columns: task, seed, id; question (old's prompt), gold, choices, fields, document; for
    each version v, and "again" for a second old: v_score, v_answer, v_response,
    v_loglikelihoods, v_error, v_truncated, v_reason, v_prompt, v_near_tie and, where it isn't
    old's prompt, v_question; for each pair its outcome (one of `OUTCOMES`; waivers don't change
    it); and `margin`: how sure new was of a wrong answer, the log-likelihood in nats of the answer
    chosen less that of the right one, or |D| for a continuous metric.

    Args:
        path: any fsspec path; the file appears whole or not at all.
        tasks: what `join_sides` returned; at least one.
        text: "none" leaves the examples' texts out (`PRIVATE`).

    Raises:
        UserError: the disk is full, or the place can't be written.
    """
    first = next(iter(tasks.values()))
    about = {"schema": SCHEMA, "text": text, "tasks": [_about(t) for t in tasks.values()]}
    schema = table_schema(first).with_metadata({ABOUT: json.dumps(about).encode()})
    with (
        _whole_file(path) as place,
        pq.ParquetWriter(place, schema, compression="zstd") as writer,
    ):
        for task in tasks.values():
            for seed in task.seeds:
                for batch in _Columns(task, seed, schema, text).batches():
                    writer.write_table(batch, row_group_size=ROWS)


def _about(task: JoinedTask) -> dict[str, Any]:
    """What reading a task back needs, beside its rows."""
    return {
        "task": task.task,
        "metric": task.metric,
        "continuous": task.continuous,
        "rows": len(task.everything),
        "seeds": list(task.seeds),
        "versions": list(task.versions),
        "again": task.again,
        "common_only": task.common_only,
        "differences": [asdict(difference) for difference in task.differences],
        "dtypes": {
            f"{name} {seed}": side.about["dtype"]
            for (seed, name), side in task.sides.items()
            if "dtype" in side.about
        },
    }


@contextmanager
def _whole_file(path: str) -> Iterator[str]:
    """A local file to write, that takes its place at the path once it is whole."""
    files, inside = filesystem(path)
    folder = Path(tempfile.gettempdir()) if is_remote(path) else Path(inside).parent
    name = f"{Path(inside).name}.{uuid.uuid4().hex}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / name
        try:
            yield str(partial)
            if is_remote(path):
                files.put_file(str(partial), inside)
            else:
                os.replace(partial, inside)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(path, error) from None


class _Packed:
    """A column in table order, compressed, to be read back some rows at a time."""

    def __init__(self, parts: Iterator[pa.Array], kind: pa.DataType) -> None:
        sink = pa.BufferOutputStream()
        schema = pa.schema([("x", kind)])
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_stream(sink, schema, options=options) as writer:
            for part in parts:
                writer.write_batch(pa.record_batch([part.cast(kind)], schema=schema))
        self._stream = pa.ipc.open_stream(sink.getvalue())

    def next(self) -> pa.Array:
        return self._stream.read_next_batch().column(0)


class _Columns:
    """The columns of one task and seed."""

    def __init__(self, task: JoinedTask, seed: int, schema: pa.Schema, text: str) -> None:
        self.task, self.seed, self.schema = task, seed, schema
        self.n = len(task.everything)
        private = text == "none"
        self.packed: dict[str, _Packed | None] = {}
        for name in OF_EXAMPLE:
            self.packed[name] = None if private and name in PRIVATE else self._pack("old", name)
        for version in task.names:
            for end, (_, column) in OF_VERSION.items():
                hidden = private and end in PRIVATE
                name = f"{version}_{end}"
                self.packed[name] = None if hidden else self._pack(version, column)
            if version != "old":
                self.packed[f"{version}_question"] = None if private else self._question(version)
        self.arrays: dict[str, NDArray[Any]] = {
            f"{p[0]}_{p[1]}": outcomes(task, seed, p) for p in outcome_pairs(task)
        }
        for version in task.names:
            near = near_ties_of(task, seed, version, all=True)
            if near is not None:
                self.arrays[f"{version}_near_tie"] = near
        self.margin = margins(task, seed)

    def batches(self) -> Iterator[pa.Table]:
        """All rows, `ROWS` at a time."""
        for start in range(0, self.n, ROWS):
            part = slice(start, start + ROWS)
            rows = min(ROWS, self.n - start)
            columns = [self._column(field, part, rows) for field in self.schema]
            yield pa.Table.from_arrays(columns, schema=self.schema)

    def _column(self, field: pa.Field, part: slice, rows: int) -> pa.Array:
        name = field.name
        if name == "task":
            return pa.repeat(pa.scalar(self.task.task, field.type), rows)
        if name == "seed":
            return pa.repeat(pa.scalar(self.seed, field.type), rows)
        if name == "id":
            return self.task.everything[part].cast(field.type)
        if name == "margin":
            return pa.array(self.margin[part], from_pandas=True)  # NaN becomes null
        if name in self.arrays:
            values = self.arrays[name][part]
            if field.type == _TEXT:
                return pa.DictionaryArray.from_arrays(values, list(OUTCOMES)).cast(_TEXT)
            return pa.array(values)
        packed = self.packed.get(name)
        return pa.nulls(rows, field.type) if packed is None else packed.next()

    def _pack(self, version: str, column: str) -> _Packed | None:
        """A column of a side in table order; None if it has none."""
        found = self.task.sides[self.seed, version].read(column)
        if found is None or found.null_count == len(found):
            return None
        values = whole(found)
        return _Packed(self._taken(values, self.task.orders[self.seed, version]), found.type)

    def _question(self, version: str) -> _Packed | None:
        """A version's prompts, null where they are old's; None if all are."""
        task, seed = self.task, self.seed
        keys = [(seed, "old"), (seed, version)]
        if not any(task.other_prompts.get(key, 0) for key in keys):
            return None
        (old, first), (mine, order) = (
            (task.sides[key].read("question"), task.orders[key]) for key in keys
        )
        if old is None or mine is None:
            return None
        values = whole(mine)
        same = equal_rows(whole(old), first, values, order)
        return _Packed(self._taken(values, order, same), _TEXT)

    def _taken(
        self, values: pa.Array, order: Order, without: NDArray[np.bool_] | None = None
    ) -> Iterator[pa.Array]:
        for start in range(0, self.n, ROWS):
            part = slice(start, start + ROWS)
            mask = None if without is None else without[part]
            yield values.take(pa.array(order[part], mask=mask))


def outcomes(task: JoinedTask, seed: int, pair: AnyPair) -> NDArray[np.int8]:
    """What became of each example under a pair, as places in `OUTCOMES`, [n + unscored]."""
    old, new = (task.scores[seed, version] for version in pair)
    if task.continuous:
        codes = np.full(task.n, _CODES["equal"], dtype=np.int8)
    else:
        codes = np.full(task.n, _CODES["both_right"], dtype=np.int8)
        wrong = (old == 0) & (new == 0)
        same = task.same(seed, pair)
        codes[wrong] = _CODES["both_wrong"]
        if same is not None:
            codes[wrong & same] = _CODES["both_wrong_same"]
            codes[wrong & ~same] = _CODES["both_wrong_different"]
    codes[old - new > ROUNDING] = _CODES["negative"]
    codes[new - old > ROUNDING] = _CODES["positive"]
    return _everywhere(task, codes, _CODES["unscored"])


def _everywhere(task: JoinedTask, values: NDArray[Any], missing: float) -> NDArray[Any]:
    """[n] -> [n + unscored], with `missing` for the unscored."""
    out = np.full(len(task.everything), missing, dtype=values.dtype)
    out[task.scored] = values
    return out


def margins(task: JoinedTask, seed: int) -> FloatArray:
    """How sure new was of its answer against the right one, [n + unscored]; NaN where that
    isn't known (see `write_example_table`)."""
    if task.continuous:
        change = np.abs(task.scores[seed, "new"] - task.scores[seed, "old"])
        return _everywhere(task, change, np.nan)
    out = np.full(len(task.everything), np.nan)
    columns = [
        task.column(seed, "new", name, all=True)
        for name in ("loglikelihoods", "choices", "prediction", "gold")
    ]
    if any(c is None or c.null_count == len(c) for c in columns):
        return out
    loglikelihoods, choices, answers, gold = columns
    lengths = lengths_of(loglikelihoods)
    chosen, right = first_match(choices, answers), first_match(choices, gold)
    known = (chosen >= 0) & (right >= 0) & (lengths_of(choices) == lengths)
    values, starts = numbers_of(loglikelihoods), starts_of(lengths)
    places = starts[known]
    with np.errstate(invalid="ignore"):
        gap = values[places + chosen[known]] - values[places + right[known]]
    out[known] = np.where(np.isfinite(gap), gap, np.nan)
    return out
