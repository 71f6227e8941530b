"""List columns of multiple-choice tasks, a million rows at once."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from muscle.metrics.columns import Column, whole
from muscle.metrics.flips import FloatArray

Integers = NDArray[np.int64]


def lengths_of(lists: Column) -> Integers:
    """How many values each list has, [n]; 0 for null."""
    return np.asarray(pc.fill_null(pc.list_value_length(lists), 0), dtype=np.int64)


def values_of(lists: Column) -> pa.Array:
    """The values of all lists, one after the other."""
    return whole(pc.list_flatten(lists))


def numbers_of(lists: Column) -> FloatArray:
    """The same for lists of numbers; null becomes NaN."""
    return np.asarray(values_of(lists).cast(pa.float64()), dtype=np.float64)


def rows_of(lengths: Integers) -> Integers:
    """The row of each value, [values]."""
    return np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)


def starts_of(lengths: Integers) -> Integers:
    """Where each list begins among the values, [n]."""
    return np.cumsum(lengths) - lengths


def by_size(lengths: Integers, *values: FloatArray) -> Iterator[tuple[Integers, list[FloatArray]]]:
    """Lists of one length together: (their rows [m], the values as [m, K] for each array).

    Tasks have few different numbers of choices, mostly one.
    """
    sizes = np.unique(lengths)
    starts = starts_of(lengths)
    for size in sizes[sizes > 0].tolist():
        rows = np.flatnonzero(lengths == size)
        if len(sizes) == 1:
            yield rows, [v.reshape(-1, size) for v in values]
        else:
            places = starts[rows][:, None] + np.arange(size)
            yield rows, [v[places] for v in values]


def first_match(choices: Column, texts: Column) -> Integers:
    """The index of the first of a row's choices that is its text, [n]; -1 where none is."""
    lengths = lengths_of(choices)
    rows = rows_of(lengths)
    wanted = whole(texts).take(pa.array(rows))
    found = pc.fill_null(pc.equal(values_of(choices), wanted), False)
    hits = np.flatnonzero(np.asarray(found, dtype=np.bool_))[::-1]  # the first is written last
    out = np.full(len(lengths), -1, dtype=np.int64)
    out[rows[hits]] = hits - starts_of(lengths)[rows[hits]]
    return out
