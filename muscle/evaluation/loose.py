"""Answers to single requests, kept until their group is whole and becomes a part.

An engine with a schedule of its own returns requests in any order, and the several requests
of one query (repeats) apart. They are kept below the ask's answers, a folder for each group
(`loose/000003/<unique>.parquet`), so a stopped run asks only what isn't there yet. What
is there twice, because a task was run again after a death, counts once.
"""

import uuid
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from muscle import storage
from muscle.copies import fetch
from muscle.errors import UserError
from muscle.evaluation.job import Ask, QuerySet
from muscle.evaluation.requests import Loose
from muscle.evaluation.units import part
from muscle.tables import read_query_group, write_answers, write_rows
from muscle.types import Answer, Output, Query, unanswered

Place = tuple[int, int]
"""(query in its group, request in the query)."""

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("request", pa.int64(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("error", pa.string()),
        pa.field("truncated", pa.string()),
    ]
)


def write_loose(ask: Ask, group: int, found: Sequence[Loose]) -> None:
    """Keep some of a group's answers; the file appears whole or not at all."""
    rows = [{name: getattr(one, name) for name in SCHEMA.names} for one in found]
    write_rows(storage.join(_folder(ask, group), f"{uuid.uuid4().hex}.parquet"), rows, SCHEMA)


def read_loose(ask: Ask, group: int) -> dict[Place, Loose]:
    """What is kept of a group. Drops broken files."""
    fs, inside = storage.filesystem(_folder(ask, group))
    if not fs.exists(inside):
        return {}
    found: dict[Place, Loose] = {}
    for path in sorted(str(path) for path in fs.ls(inside, detail=False)):
        if not path.endswith(".parquet"):
            continue
        try:
            with fs.open(path, "rb") as file:
                rows = pq.read_table(file, schema=SCHEMA).to_pylist()
        except UserError:
            raise
        except Exception:  # half-written by a store without atomic writes
            fs.rm(path)
            continue
        for row in rows:
            found.setdefault((row["row"], row["request"]), Loose(**row))
    return found


def assemble(queries: QuerySet, ask: Ask, group: int) -> bool:
    """Make a group's part of what is kept of it; False, and nothing is done, if some lacks."""
    if storage.exists(part(ask, group)):
        return True
    found = read_loose(ask, group)
    if not found:
        return False
    rows = read_query_group(queries.queries, group)
    if any((q, r) not in found for q, row in enumerate(rows) for r in range(len(row.requests))):
        return False
    write_answers(part(ask, group), [_answer(q, row, found) for q, row in enumerate(rows)])
    storage.remove(_folder(ask, group))
    return True


def kinds(queries: QuerySet, groups: Sequence[int]) -> dict[int, set[str]]:
    """group -> the kinds of request in it. Reads no texts."""
    with open(fetch(queries.queries, unchanging=True), "rb") as opened:
        file = pq.ParquetFile(opened)
        # The leaf's whole path depends on the writer ("list.element", "list.item").
        leaves = [file.schema.column(i).path for i in range(len(file.schema))]
        (leaf,) = [path for path in leaves if path.endswith(".kind")]
        found = {}
        for group in groups:
            column = file.read_row_group(group, columns=[leaf]).column("requests")
            found[group] = {one["kind"] for row in column.to_pylist() for one in row}
    return found


def _folder(ask: Ask, group: int) -> str:
    return storage.join(ask.answers, "loose", f"{group:06d}")


def _answer(q: int, query: Query, found: dict[Place, Loose]) -> Answer:
    """One query's answer; one failed request fails it, as in `Engine`."""
    if not query.requests:
        return Answer(query.id, (), "it has no requests")
    outputs = []
    for r in range(len(query.requests)):
        one = found[q, r]
        if one.error is not None or one.text is None:
            return unanswered(query, r, one.error or "it has no text")
        outputs.append(Output(text=one.text, truncated=one.truncated))
    return Answer(query.id, tuple(outputs))
