"""Columns out of rows, and what all kinds of files do with columns."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from muscle.errors import UserError
from muscle.tables import PREDICTION_SCHEMA
from muscle.tasks.rows import LONGEST, MOST

ROWS = 8192
"""Rows that are held as Python objects before they become a chunk of a column."""

MAX_TEXTS = 200
"""Columns that are looked at for slices, beside those that were named; rows that each have names
of their own have no columns."""

LARGEST = 1e100
"""The size up to which a score is one: sums of squares of larger ones overflow."""

FIELDS = PREDICTION_SCHEMA.field("fields").type

Read = Callable[[str], pa.ChunkedArray | None]


class Builder:
    """Grows typed columns and text columns, a chunk at a time.

    Args:
        types: of the typed columns.
        named: text columns that are wanted, wherever they stand among the others, of which
            the first `MAX_TEXTS` are kept.
    """

    def __init__(self, types: Mapping[str, pa.DataType], named: Collection[str] = ()) -> None:
        self._types = types
        self._named = frozenset(named)
        self._room = MAX_TEXTS
        self._rows: list[Mapping[str, Any]] = []
        self._more: list[Mapping[str, str]] = []
        self._chunks: dict[str, list[pa.Array]] = {name: [] for name in types}
        self._texts: dict[str, list[pa.Array]] = {}
        self.n = 0

    def add(self, row: Mapping[str, Any], more: Mapping[str, str]) -> None:
        """A row of the typed columns, and of the others what it has."""
        self._rows.append(row)
        self._more.append(more)
        if len(self._rows) == ROWS:
            self._flush()

    def finish(self) -> tuple[dict[str, pa.ChunkedArray], dict[str, pa.ChunkedArray]]:
        """The typed columns, and the others, all of length `n`; null where a row had none."""
        self._flush()
        typed = {
            name: pa.chunked_array(self._chunks[name], kind) for name, kind in self._types.items()
        }
        texts = {name: pa.chunked_array(found) for name, found in self._texts.items()}
        return typed, texts

    def _flush(self) -> None:
        rows, more, before = self._rows, self._more, self.n
        if not rows:
            return
        for name, kind in self._types.items():
            self._chunks[name].append(_array([row[name] for row in rows], kind))
        for name in dict.fromkeys(name for row in more for name in row):
            if name not in self._texts and (name in self._named or self._room > 0):
                self._room -= name not in self._named
                self._texts[name] = [pa.nulls(before, pa.string())] if before else []
        for name, found in self._texts.items():
            found.append(_array([row.get(name) for row in more], pa.string()))
        self.n += len(rows)
        self._rows, self._more = [], []


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and UTF-8 can't
        return pa.array([_encodable(value) for value in values], kind)


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return [_encodable(v) for v in value] if isinstance(value, list | tuple) else value


def text_of(value: Any) -> str | None:
    """A JSON scalar as a text, the same whether it came from JSON, Parquet or CSV; None for
    what is no scalar, or no value."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and not math.isnan(value):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return None


def with_fields(read: Mapping[str, pa.ChunkedArray], n: int) -> pa.ChunkedArray:
    """[n] {name: value} of text columns, without nulls: of the first `MOST` whose values are
    all as short as `muscle evaluate` keeps them."""
    short = [name for name, column in read.items() if _is_short(column)]
    kept = {name: read[name] for name in short[:MOST]}
    chunks = []
    for start in range(0, n, ROWS * 8):
        size = min(ROWS * 8, n - start)
        chunks.append(_maps({k: v.slice(start, size) for k, v in kept.items()}, size))
    return pa.chunked_array(chunks, FIELDS)


def _is_short(column: pa.ChunkedArray) -> bool:
    longest = pc.max(pc.utf8_length(column)).as_py()
    return longest is not None and longest <= LONGEST


def _maps(columns: Mapping[str, pa.ChunkedArray], n: int) -> pa.Array:
    if not columns:
        return pa.array([[]] * n, FIELDS)
    flat = pa.concat_arrays([c.cast(pa.string()).combine_chunks() for c in columns.values()])
    # `flat` holds one column after the other; a row's entries are every n-th value.
    places = (np.arange(n)[:, None] + np.arange(len(columns))[None, :] * n).ravel()
    there = flat.is_valid().to_numpy(zero_copy_only=False)[places]
    kept = places[there]
    counts = there.reshape(n, len(columns)).sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    names = pa.array(list(columns)).take(pa.array(kept // n))
    return pa.MapArray.from_arrays(pa.array(offsets), names, flat.take(pa.array(kept)))


def clean_scores(scores: pa.ChunkedArray, where: Callable[[int], str]) -> pa.ChunkedArray:
    """Scores with NaN as null: unscored.

    where: what to call a row, from 0, in a message.

    Raises:
        UserError: a score is infinite, or so large that no sum of them would be finite.
    """
    bad = first_true(pc.is_inf(scores))
    if bad is not None:
        value = scores[bad].as_py()
        raise UserError(f"{where(bad)}: the score is {value}: a score must be finite, or empty")
    bad = first_true(pc.greater(pc.abs(scores), LARGEST))
    if bad is not None:
        value = scores[bad].as_py()
        raise UserError(f"{where(bad)}: the score is {value}: scores go up to {LARGEST:g} in size")
    nan = pc.is_nan(scores)
    return pc.if_else(nan, pa.scalar(None, pa.float64()), scores)


def check_ids(ids: pa.ChunkedArray, where: Callable[[int], str], name: str = "id") -> None:
    """Refuse ids that are null, empty or given twice.

    Raises:
        UserError: naming the first one.
    """
    bad = first_true(pc.is_null(ids))
    if bad is None:
        bad = first_true(pc.equal(ids, ""))
    if bad is not None:
        raise UserError(f"{where(bad)}: {name!r} is empty: every example needs an id")
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    values = ids.to_pylist()
    seen: dict[str, int] = {}
    for row, value in enumerate(values):
        if value in seen:
            raise UserError(
                f"{where(row)}: the id {value!r} is there a second time: first in "
                f"{where(seen[value])}"
            )
        seen[value] = row


def first_true(mask: pa.ChunkedArray) -> int | None:
    """The place of the first true value; None where there is none."""
    place = pc.index(mask, pa.scalar(True)).as_py()
    return None if place < 0 else int(place)


def rows_of(*columns: pa.ChunkedArray) -> Iterator[tuple[Any, ...]]:
    """Rows of several columns as Python values, a chunk of them at a time."""
    n = len(columns[0])
    for start in range(0, n, ROWS):
        part = [c.slice(start, ROWS).to_pylist() for c in columns]
        yield from zip(*part, strict=True)


def in_chunks(values: Iterable[Any], kind: pa.DataType) -> pa.ChunkedArray:
    """A column of an iterable, without holding all of its Python objects."""
    chunks, part = [], []
    for value in values:
        part.append(value)
        if len(part) == ROWS:
            chunks.append(_array(part, kind))
            part = []
    return pa.chunked_array([*chunks, _array(part, kind)], kind)


def constant(value: str, n: int) -> pa.ChunkedArray:
    """[n] one text."""
    return pa.chunked_array([pa.repeat(pa.scalar(value, pa.string()), n)])


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names for a message, cut where there are many."""
    shown = ", ".join(names[:most])
    return f"{shown}, … ({len(names)} in all)" if len(names) > most else shown or "none"
