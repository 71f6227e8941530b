"""The slices that a gate was asked for: those in the report, and those too small to be in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from muscle.errors import UserError
from muscle.gate import words
from muscle.gate.outcomes import EXAMPLES
from muscle.gate.reading import AGAIN
from muscle.report.text import one_line
from muscle.storage import exists, filesystem, join


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many examples of a task have a value of a column, by (column, value).

    unscored  those without a score in some version or seed; value None: not known
    """

    scored: Mapping[tuple[str, str | None], int]
    unscored: Mapping[tuple[str, str | None], int]


@dataclass(frozen=True, slots=True)
class Rare:
    """A slice that was asked for and has too few examples to be in the report alone."""

    where: dict[str, str]
    n: int


def where_of(piece: Mapping[str, Any]) -> dict[str, str]:
    """A slice's column and value, as a check has them."""
    return {"column": str(piece["column"]), "value": str(piece["value"])}


def wanted_slices(task: Mapping[str, Any], asked: Sequence[str]) -> list[Mapping[str, Any]]:
    """The slices of a task that were asked for, each once, a pool of rare values included."""
    return [
        piece
        for piece in task.get("slices") or []
        if piece["column"] in asked or words.slice_name(where_of(piece)) in asked
    ]


def rare_slices(
    task: Mapping[str, Any], asked: Sequence[str], sizes: Sizes | None
) -> dict[str, Rare]:
    """What was asked for and is too small, by how it was asked for: the values of a column
    that are in no slice, together, and single values that were left out or pooled.

    Without `sizes` single values aren't known.
    """
    left = _left_out(task)
    least = {column: at_least for column, (_, at_least) in left.items()} | _pooled(task)
    names = {words.slice_name(where_of(piece)) for piece in task.get("slices") or []}
    found = {}
    for text in dict.fromkeys(asked):
        if text in left:
            count, at_least = left[text]
            values = "1 value" if count == 1 else f"{count} values"
            value = f"{values} with fewer than {at_least} examples each"
            n = _rest(task, text, count, at_least, sizes)
            found[text] = Rare({"column": text, "value": value}, n)
        for column, at_least in least.items():
            value = text.removeprefix(f"{column}=")
            n = 0 if sizes is None else sizes.scored.get((column, value), 0)
            if value != text and text not in names and 0 < n < at_least:
                found[text] = Rare({"column": column, "value": value}, n)
    return found


def _left_out(task: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Columns with values in no slice: how many values, and what each would have needed."""
    rare = (task.get("slices_rare") or {}).items()
    return {c: (int(r["values"]), int(r["least"])) for c, r in rare if not r["pooled"]}


def _pooled(task: Mapping[str, Any]) -> dict[str, int]:
    """Columns with a pool of rare values, and what each of them would have needed."""
    rare = (task.get("slices_rare") or {}).items()
    return {column: int(r["least"]) for column, r in rare if r["pooled"]}


def _labels(task: Mapping[str, Any], column: str) -> dict[str, int]:
    pieces = task.get("slices") or []
    return {str(p["value"]): int(p["n"]) for p in pieces if p["column"] == column}


def _rest(task: Mapping[str, Any], column: str, count: int, least: int, sizes: Sizes | None) -> int:
    """How many examples the left-out values of a column have; at most, if only the report
    is there to tell."""
    labels = _labels(task, column)
    if sizes is not None:
        rare = [
            n
            for (name, value), n in sizes.scored.items()
            if name == column and value is not None and value not in labels
        ]
        if len(rare) == count:
            return sum(rare)
    return min(int(task["n"]) - sum(labels.values()), count * (least - 1))


def unscored_in(
    task: Mapping[str, Any], where: Mapping[str, str] | None, sizes: Sizes | None
) -> int:
    """How many unscored examples a task has, or how many at most a slice of it: all but those
    that are known to be in another one."""
    total = int(task.get("unscored") or 0)
    if where is None or sizes is None:
        return total
    labels = _labels(task, where["column"])
    elsewhere = sum(
        n
        for (column, value), n in sizes.unscored.items()
        if column == where["column"] and value in labels and value != where["value"]
    )
    return max(0, total - elsewhere)


def refuse_unknown(
    report: Mapping[str, Any], asked: Sequence[str], rare: Sequence[Mapping[str, Rare]]
) -> None:
    """Raises UserError: a slice that no task has; `rare` are those that are too small."""
    pieces = [where_of(p) for t in report["tasks"].values() for p in t.get("slices") or []]
    known = {p["column"] for p in pieces}
    there = known | {words.slice_name(p) for p in pieces} | {text for r in rare for text in r}
    for text in asked:
        if text in there:
            continue
        column = text.split("=")[0]
        if column in known:
            values = sorted({p["value"] for p in pieces if p["column"] == column})
            shown = f"{column} has {', '.join(values[:8])}" + (" …" if len(values) > 8 else "")
        else:
            shown = (
                f"it has {', '.join(sorted(known)[:8]) or 'none'}; "
                f"`muscle compare --slice {column}` makes it"
            )
        raise UserError(f"slice {one_line(text, 60)!r} is not in this report: {one_line(shown)}")


def read_sizes(folder: str, report: Mapping[str, Any], asked: Sequence[str]) -> dict[str, Sizes]:
    """What examples.parquet says of slices that the report doesn't: of those too small to be
    in it, and of unscored examples. Empty where nothing of the kind was asked for, or where
    there is no such file.

    Raises:
        UserError: it is no whole table, or not that of this report.
    """
    tasks = {
        name: columns
        for name, task in report["tasks"].items()
        if (columns := _columns(task, asked))
        and (task.get("unscored") or _left_out(task) or _pooled(task))
    }
    path = join(folder, EXAMPLES)
    if not tasks or not exists(path):
        return {}
    files, inside = filesystem(path)
    try:
        with files.open(inside, "rb") as file:
            parquet = pq.ParquetFile(file)
            names = parquet.schema_arrow.names
            if "fields" not in names:
                return {}
            scores = [name for name in names if name.endswith("_score")]
            table = parquet.read(columns=["task", "seed", "id", "fields", *scores])
    except (pa.ArrowException, KeyError, OSError) as error:
        reason = one_line(str(error), 200)
        raise UserError(f"{path}: is not a whole table of examples: {reason}") from None
    found = {}
    for name, columns in tasks.items():
        task = report["tasks"][name]
        rows = table.filter(pc.equal(table.column("task"), name))
        found[name], n = _sizes(rows, columns, scores)
        if n != int(task["n"]) + int(task.get("unscored") or 0):
            raise UserError(f"{folder}: {EXAMPLES} is not that of report.json: {AGAIN}")
    return found


def _columns(task: Mapping[str, Any], asked: Sequence[str]) -> list[str]:
    """The columns of a task that what was asked for may be about."""
    there = [*(str(p["column"]) for p in task.get("slices") or []), *_left_out(task)]
    return [
        column
        for column in dict.fromkeys(there)
        if any(text == column or text.startswith(f"{column}=") for text in asked)
    ]


def _sizes(table: pa.Table, columns: Sequence[str], scores: Sequence[str]) -> tuple[Sizes, int]:
    """The sizes in the rows of a task, and how many examples it has."""
    lost = table.column("id").slice(0, 0)
    for name in scores:
        missing = table.column("id").filter(pc.is_null(table.column(name)))
        lost = pa.chunked_array([*lost.chunks, *missing.chunks], lost.type)
    seeds = table.column("seed")
    rows = table.filter(pc.equal(seeds, pc.min(seeds)))  # an example is once in each seed
    unscored = pc.is_in(rows.column("id"), value_set=pc.unique(lost))
    counts: dict[bool, dict[tuple[str, str | None], int]] = {False: {}, True: {}}
    for column in columns:
        values = pc.map_lookup(rows.column("fields"), pa.scalar(column), "first")
        grouped = pa.table({"value": values, "unscored": unscored}).group_by(["value", "unscored"])
        for row in grouped.aggregate([([], "count_all")]).to_pylist():
            counts[row["unscored"]][column, row["value"]] = int(row["count_all"])
    return Sizes(counts[False], counts[True]), rows.num_rows
