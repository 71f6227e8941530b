"""A million examples in columns: sorted, joined and compared without an object for each."""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from muscle.metrics.flips import BoolArray

Column: TypeAlias = pa.Array | pa.ChunkedArray
Order = NDArray[np.int64]

_FITS = 1 << 31  # bytes that 32-bit offsets can address
BATCH = 1 << 16  # rows gathered at once, so that a column is never in memory twice


def whole(column: Column) -> pa.Array:
    """A column in one piece; with 64-bit offsets where its texts may pass 2 GiB together, else
    with 32-bit ones, whatever its reader chose."""
    kind = _large(column.type) if column.nbytes >= _FITS else _small(column.type)
    if kind != column.type:
        column = column.cast(kind)
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _large(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.large_string()
    return pa.large_list(_large(kind.value_type)) if pa.types.is_list(kind) else kind


def _small(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(kind):
        return pa.string()
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return pa.list_(_small(kind.value_type)) if listed else kind


def batches(column: pa.Array, order: Order, rows: int = BATCH) -> Iterator[pa.Array]:
    """`column` in the given order, some rows at a time; at least one batch."""
    for start in range(0, max(1, len(order)), rows):
        yield column.take(pa.array(order[start : start + rows]))


def in_order(column: Column, order: Order) -> pa.Array:
    """`column` in the given order; itself where that is the order it has."""
    found = whole(column)
    if len(order) == len(found) and _is_counting(order):
        return found
    return found.take(pa.array(order))


def _is_counting(order: Order) -> bool:
    return len(order) == 0 or (order[0] == 0 and bool((np.diff(order) == 1).all()))


def equal_rows(
    first: pa.Array, first_order: Order, second: pa.Array, second_order: Order
) -> BoolArray:
    """Whether two columns of texts agree row by row, each in its order; two nulls do not
    tell, nor does one: they count as equal. [n]"""
    parts = [np.zeros(0, dtype=np.bool_)]
    if len(first_order):
        for a, b in zip(batches(first, first_order), batches(second, second_order), strict=True):
            same = pc.fill_null(pc.equal(a, b.cast(a.type)), True)
            parts.append(same.to_numpy(zero_copy_only=False))
    out: BoolArray = np.concatenate(parts)
    return out


def sorted_order(ids: pa.Array) -> Order:
    """The rows in the order of their ids' bytes, [n]."""
    order: Order = pc.sort_indices(ids).to_numpy().astype(np.int64)
    return order


def first_repeated(sorted_ids: pa.Array) -> str | None:
    """The first id that comes twice in a sorted column, else None."""
    if len(sorted_ids) < 2:
        return None
    again = pc.equal(sorted_ids[1:], sorted_ids[:-1])
    where = pc.index(again, True).as_py()
    return None if where < 0 else str(sorted_ids[where].as_py())
