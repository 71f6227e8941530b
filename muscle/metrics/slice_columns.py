"""The columns that a task can be sliced by: its rows' own fields, and a few that follow."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from muscle.errors import UserError
from muscle.metrics.choices import Integers, first_match
from muscle.metrics.columns import Column, whole
from muscle.metrics.flips import FloatArray
from muscle.metrics.pairing import JoinedTask

AUTOMATIC_VALUES = 20
MOST_VALUES = 50
QUARTILES = (0.25, 0.5, 0.75)

GOLD_LENGTH = "answer length (characters of the gold answer)"
OLD_LENGTH = "answer length (characters of old's answer)"
GOLD_POSITION = "gold position"
ALIASES = {"answer length": (GOLD_LENGTH, OLD_LENGTH)}


@dataclass(frozen=True, slots=True)
class SliceColumn:
    """One column to slice by.

    codes    [n] which of the labels an example has; -1 where it has none
    labels   in the order to show them
    """

    name: str
    codes: Integers
    labels: list[str]


@dataclass(slots=True)
class _Found:
    """A column before it is decided whether and how to slice by it: texts or numbers."""

    codes: Integers
    values: list[str]
    numbers: FloatArray | None = field(default=None)  # [len(values)], where all are


def slice_columns(
    task: JoinedTask, names: Sequence[str] | None
) -> tuple[list[SliceColumn], list[str]]:
    """The columns to slice by, and sentences on those left out.

    Args:
        names: None takes every field with 2 to 20 values, every numeric one with more (in
            quartiles), the length of the answer and the position of the gold choice.

    Raises:
        UserError: a named column that has more than 50 values that are not all numbers.
            One that this task lacks is a sentence: another task may have it
            (`check_columns` refuses those that none has).
    """
    found = _fields(task) | _computed(task)
    if names is None:
        return _automatic(found)
    columns, absent = [], []
    for name in dict.fromkeys(names):
        known = [n for n in (name, *ALIASES.get(name, ())) if n in found]
        if not known:
            absent.append(name)
            continue
        column = found[known[0]]
        if known[0] not in (GOLD_LENGTH, OLD_LENGTH) and len(column.values) <= MOST_VALUES:
            columns.append(_by_value(known[0], column))
        elif column.numbers is not None:
            columns.append(_by_quartile(known[0], column))
        else:
            raise UserError(
                f"task '{task.task}': column '{name}' has {len(column.values):,} values that are "
                f"not numbers, and slices are for at most {MOST_VALUES}; slice by a coarser column"
            )
    return columns, [f"{_some(absent)} (this task has no such column)"] if absent else []


def check_columns(tasks: Iterable[JoinedTask], names: Sequence[str]) -> None:
    """Refuse a column to slice by that no task has.

    Raises:
        UserError: with the columns that there are.
    """
    there: dict[str, None] = {}
    for task in tasks:
        for name in [*_field_names(task), *_computed(task)]:
            there[name] = None
    for name in names:
        if not any(n in there for n in (name, *ALIASES.get(name, ()))):
            known = ", ".join(f"'{n}'" for n in there) or "none"
            raise UserError(f"there is no column '{name}' to slice by; there are: {known}")


def _field_names(task: JoinedTask) -> list[str]:
    names: dict[str, None] = {}
    for version in task.versions:
        column = task.sides[task.seeds[0], version].read("fields")
        for chunk in () if column is None else column.chunks:
            names |= dict.fromkeys(chunk.keys.unique().to_pylist())
        if names:
            break
    return sorted(names)


def _automatic(found: dict[str, _Found]) -> tuple[list[SliceColumn], list[str]]:
    columns, many, numbered = [], [], []
    for name, column in found.items():
        count = len(column.values)
        if name in (GOLD_LENGTH, OLD_LENGTH):
            columns.append(_by_quartile(name, column))
        elif count <= AUTOMATIC_VALUES:
            columns.append(_by_value(name, column))
        elif column.numbers is None:
            many.append(name)
        elif count == len(column.codes) and not (column.numbers % 1).any():
            numbered.append(name)
        else:
            columns.append(_by_quartile(name, column))
    notes = []
    if many:
        notes.append(f"more than {AUTOMATIC_VALUES} values that are not numbers: {_some(many)}")
    if numbered:
        notes.append(f"another whole number in every row: {_some(numbered)}")
    kept, twins = _different([c for c in columns if len(c.labels) > 1])
    if twins:
        notes.append(f"the same parts under another name: {_some(twins)}")
    return kept, notes


def _different(columns: Sequence[SliceColumn]) -> tuple[list[SliceColumn], list[str]]:
    """Columns that part the examples differently, and the names of the others: a slice under
    two names would be tested twice, and the correction would take it for two."""
    kept: list[SliceColumn] = []
    twins = []
    for column in columns:
        like = next((k.name for k in kept if _same_parts(k, column)), None)
        if like is None:
            kept.append(column)
        else:
            twins.append(f"{column.name} (as {like})")
    return kept, twins


def _same_parts(one: SliceColumn, other: SliceColumn) -> bool:
    sizes = [np.bincount(c.codes + 1, minlength=len(c.labels) + 1) for c in (one, other)]
    if len(sizes[0]) != len(sizes[1]) or not np.array_equal(np.sort(sizes[0]), np.sort(sizes[1])):
        return False
    if not np.array_equal(one.codes < 0, other.codes < 0):
        return False
    both = np.unique((one.codes + 1) * len(sizes[0]) + other.codes + 1)
    return len(both) == int((sizes[0] > 0).sum())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _fields(task: JoinedTask) -> dict[str, _Found]:
    """The rows' own fields, those of the first version that has any."""
    for version in task.versions:
        column = task.column(task.seeds[0], version, "fields")
        if column is not None and len(column):
            found = _of_maps(column)
            if found:
                return found
    return {}


def _of_maps(column: Column) -> dict[str, _Found]:
    maps = whole(column)
    offsets = np.asarray(maps.offsets, dtype=np.int64)
    start, size = int(offsets[0]), int(offsets[-1] - offsets[0])
    keys = maps.keys.slice(start, size).dictionary_encode()
    values = maps.items.slice(start, size)
    rows = np.repeat(np.arange(len(maps), dtype=np.int32), np.diff(offsets))
    which = np.asarray(keys.indices)
    found = {}
    for code, name in sorted(enumerate(keys.dictionary.to_pylist()), key=lambda item: item[1]):
        places = np.flatnonzero(which == code)
        found[name] = _encoded(values.take(pa.array(places)), rows[places], len(maps))
    return found


def _encoded(texts: pa.Array, rows: NDArray[np.int32], n: int) -> _Found:
    encoded = texts.dictionary_encode()
    codes = np.full(n, -1, dtype=np.int64)
    codes[rows] = np.asarray(pc.fill_null(encoded.indices, -1), dtype=np.int64)
    try:
        numbers = np.asarray(encoded.dictionary.cast(pa.float64()), dtype=np.float64)
    except pa.ArrowInvalid:
        return _Found(codes, encoded.dictionary.to_pylist())
    known = bool(len(numbers)) and bool(np.isfinite(numbers).all())
    return _Found(codes, encoded.dictionary.to_pylist(), numbers if known else None)


def _computed(task: JoinedTask) -> dict[str, _Found]:
    seed = task.seeds[0]
    found = {}
    choices = task.column(seed, "old", "choices")
    if choices is not None and not choices.null_count:
        gold = task.column(seed, "old", "gold")
        if gold is not None:
            found[GOLD_LENGTH] = _counted(np.asarray(pc.fill_null(pc.utf8_length(gold), -1)))
            places = first_match(choices, gold)
            found[GOLD_POSITION] = _counted(np.where(places < 0, -1, places + 1))
    else:
        answers = task.column(seed, "old", "prediction")
        if answers is not None and answers.null_count < len(answers):
            found[OLD_LENGTH] = _counted(np.asarray(pc.fill_null(pc.utf8_length(answers), -1)))
    return found


def _counted(numbers: NDArray[np.integer]) -> _Found:
    """Whole numbers as a column; a negative one stands for none."""
    values, codes = np.unique(numbers, return_inverse=True)
    none = int((values < 0).sum())
    kept = values[none:]
    codes = np.maximum(codes.reshape(-1).astype(np.int64) - none, -1)
    return _Found(codes, [str(v) for v in kept.tolist()], kept.astype(np.float64))


def _by_value(name: str, column: _Found) -> SliceColumn:
    order = sorted(
        range(len(column.values)),
        key=lambda i: (0.0 if column.numbers is None else column.numbers[i], column.values[i]),
    )
    places = np.empty(len(order) + 1, dtype=np.int64)
    places[order], places[-1] = np.arange(len(order)), -1  # code -1 stays -1
    return SliceColumn(name, places[column.codes], [column.values[i] for i in order])


def _by_quartile(name: str, column: _Found) -> SliceColumn:
    """Four bins of about as many examples each; equal numbers share one."""
    assert column.numbers is not None
    known = column.codes >= 0
    numbers = column.numbers[column.codes[known]]
    edges = np.unique(np.quantile(numbers, QUARTILES, method="inverted_cdf"))
    values, bins = np.unique(column.numbers), np.searchsorted(edges, column.numbers)
    of_value = np.searchsorted(edges, values)
    used = np.unique(of_value)
    ends = [(values[of_value == b].min(), values[of_value == b].max()) for b in used.tolist()]
    codes = np.full(len(column.codes), -1, dtype=np.int64)
    codes[known] = np.searchsorted(used, bins[column.codes[known]])
    return SliceColumn(name, codes, _ranges(ends))


def _ranges(ends: list[tuple[float, float]]) -> list[str]:
    """Labels of bins that differ from each other, rounded to six digits where that is enough."""
    for digits in (".6g", ".17g"):
        labels = []
        for low, high in ends:
            first, last = (_show(x, digits) for x in (low, high))
            labels.append(first if low == high else f"{first} – {last}")
        if len(set(labels)) == len(labels):
            break
    return labels


def _show(number: float, digits: str) -> str:
    if number == int(number) and abs(number) < 1e15:
        return str(int(number))
    return format(number, digits)
