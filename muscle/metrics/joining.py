"""One task's sides brought into one order, and checked to be about the same examples."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from muscle.errors import UserError
from muscle.metrics.columns import Order, equal_rows, first_repeated, sorted_order, whole
from muscle.metrics.comparable import (
    Difference,
    check_facts,
    differences,
    prompt_difference,
    show,
)
from muscle.metrics.flips import BoolArray, FloatArray
from muscle.side import Side

Key = tuple[int, str]


class Aligned(NamedTuple):
    """All sides in the order of the sorted ids.

    ids       the examples of the join
    orders    the side's row of each, in the same order
    scores    the same for the scores, NaN where unscored
    scored    which examples have a score on all sides
    left_out  examples that some side doesn't have
    """

    ids: pa.Array
    orders: dict[Key, Order]
    scores: dict[Key, FloatArray]
    scored: BoolArray
    left_out: int


def align(task: str, sides: Mapping[Key, Side], common: bool) -> Aligned:
    """Sort every side by id and see that all have the same examples.

    Args:
        common: keep the examples that all sides have, where their sets differ.

    Raises:
        UserError: the metrics or the facts of `comparable.REFUSED` differ, an id comes
            twice, the sets of ids differ (none is common), a score isn't finite.
    """
    _check_metrics(task, sides)
    check_facts(task, list(sides.values()))
    orders: dict[Key, Order] = {}
    ids: dict[Key, pa.Array] = {}
    labels = {key: side.label for key, side in sides.items()}
    for key, side in sides.items():
        ids[key], orders[key] = _sorted(task, side)
    first = next(iter(sides))
    left_out = 0
    for key in sides:
        if not ids[key].equals(ids[first]):
            if not common:
                raise UserError(_other_ids(task, ids[first], ids[key], labels[first], labels[key]))
            left_out = 1
    if left_out:
        left_out = _keep_common(task, ids, orders)
    scores = {key: _scores(task, side, orders[key]) for key, side in sides.items()}
    scored = np.asarray(np.isfinite(np.stack(list(scores.values()))).all(axis=0))
    return Aligned(ids[first], orders, scores, scored, left_out)


def _check_metrics(task: str, sides: Mapping[Key, Side]) -> None:
    first, *others = sides.values()
    for side in others:
        if side.metric != first.metric:
            raise UserError(
                f"task {show(task)}: metric {show(first.metric)} in {first.label} but "
                f"{show(side.metric)} in {side.label}; scores of different metrics can't be "
                "compared"
            )


def _column(side: Side, name: str) -> pa.Array:
    found = side.read(name)
    if found is None:
        raise ValueError(f"{side.label}: a side has ids and scores, but {name} is missing")
    return whole(found)


def _sorted(task: str, side: Side) -> tuple[pa.Array, Order]:
    ids = _column(side, "id").cast(pa.large_string())  # alike on all sides, to be compared
    order = sorted_order(ids)
    ids = ids.take(pa.array(order))
    twice = first_repeated(ids)
    if twice is not None:
        raise UserError(
            f"task {show(task)}: id {show(twice)} comes twice in {side.label}; "
            "ids must be unique in a task"
        )
    return ids, order


def _other_ids(task: str, left: pa.Array, right: pa.Array, one: str, other: str) -> str:
    only_left = left.filter(pc.invert(pc.is_in(left, right.cast(left.type))))
    only_right = right.filter(pc.invert(pc.is_in(right, left.cast(right.type))))
    example = (only_left if len(only_left) else only_right)[0].as_py()
    return (
        f"task {show(task)}: the ids of {one} and {other} differ: {len(only_left)} only in "
        f"{one}, {len(only_right)} only in {other} (first {show(example)}); evaluate both on the "
        "same examples"
    )


def _keep_common(task: str, ids: dict[Key, pa.Array], orders: dict[Key, Order]) -> int:
    """Cut ids and orders to what all sides have; returns how many examples that leaves out."""
    shared, *others = ids.values()
    union = pa.chunked_array([i.cast(shared.type) for i in ids.values()]).unique()
    for other in others:
        shared = shared.filter(pc.is_in(shared, other.cast(shared.type)))
    if not len(shared):
        raise UserError(
            f"task {show(task)}: no example is in all versions: not one id is common; "
            "compare evaluations of the same examples, with the same ids"
        )
    for key, column in ids.items():
        keep = pc.is_in(column, shared.cast(column.type))
        orders[key] = orders[key][keep.to_numpy(zero_copy_only=False)]
        ids[key] = shared
    return len(union) - len(shared)


def _scores(task: str, side: Side, order: Order) -> FloatArray:
    """A side's scores in order, NaN where it has none."""
    column = _column(side, "score").cast(pa.float64())
    wrong = pc.invert(pc.is_finite(column))  # null where the score is null
    if pc.any(wrong).as_py():
        row = pc.index(wrong, True).as_py()
        raise UserError(
            f"task {show(task)}: the score of {show(_column(side, 'id')[row].as_py())} in "
            f"{side.label} is {column[row].as_py()}; a score is a finite number, or null when "
            "unscored"
        )
    values: FloatArray = column.to_numpy(zero_copy_only=False)
    return values[order]


def check_rows(
    task: str, sides: Mapping[Key, Side], orders: Mapping[Key, Order], n: int
) -> tuple[list[Difference], dict[Key, int]]:
    """See that equal ids are equal examples: the task's own rows and the right answers.

    One column is read at a time, from every side in turn: texts are most of the memory.

    Returns:
        What differs without forbidding the comparison, and how many prompts of each side
        aren't those of the first.

    Raises:
        UserError: an example has another row, or another right answer, on some side.
    """
    hashed = _compare(task, sides, orders, "document")
    _compare(task, sides, orders, "gold")
    other_prompts = _other_prompts(sides, orders)
    notes = differences(sides)
    if any(other_prompts.values()):
        notes.insert(0, prompt_difference(other_prompts, n, hashed))
    return notes, other_prompts


_WORDS = {"document": "row of the task's data", "gold": "gold"}


def _compare(
    task: str, sides: Mapping[Key, Side], orders: Mapping[Key, Order], column: str
) -> bool:
    """Refuse sides whose column differs; whether all of them have it, without a null."""
    (first_key, first), *others = sides.items()
    mine = first.read(column)
    if mine is None:
        return False
    reference = whole(mine)
    complete = reference.null_count == 0
    for key, side in others:
        theirs = side.read(column)
        if theirs is None:
            complete = False
            continue
        values = whole(theirs)
        complete = complete and values.null_count == 0
        same = equal_rows(reference, orders[first_key], values, orders[key])
        if not same.all():
            row = int(orders[first_key][int(np.argmin(same))])
            raise UserError(
                f"task {show(task)}: example {show(_column(first, 'id')[row].as_py())} has another "
                f"{_WORDS[column]} in {side.label} than in {first.label}; evaluate both on the "
                "same examples"
            )
    return complete


def _other_prompts(sides: Mapping[Key, Side], orders: Mapping[Key, Order]) -> dict[Key, int]:
    """How many prompts of each side aren't the first side's; empty without prompts."""
    (first_key, first), *others = sides.items()
    mine = first.read("question")
    if mine is None:
        return {}
    reference = whole(mine)
    counts = {first_key: 0}
    for key, side in others:
        theirs = side.read("question")
        if theirs is not None:
            same = equal_rows(reference, orders[first_key], whole(theirs), orders[key])
            counts[key] = int((~same).sum())
    return counts
