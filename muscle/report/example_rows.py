"""examples.parquet as the page and the CSV read it: in columns, some rows at a time."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from muscle.errors import UserError
from muscle.metrics.flips import BoolArray
from muscle.storage import filesystem
from muscle.tables import reason_line

OUTCOMES = (
    "both_right",
    "negative",
    "positive",
    "both_wrong_same",
    "both_wrong_different",
    "both_wrong",
    "equal",
    "unscored",
)
COUNTED = (*OUTCOMES[:5], "equal")
"""Outcomes that report.json counts."""
PAIRS = {
    "old_new": "old->new",
    "old_compat": "old->compat",
    "new_compat": "new->compat",
    "old_again": "old->again",
}
"""The outcome columns of examples.parquet and the pair each is about."""
SIDES = ("old", "new", "compat", "again")
BATCH = 8_192
"""Rows that are Python objects at a time."""


@contextmanager
def open_examples(path: str) -> Iterator[pq.ParquetFile]:
    """The example table at any fsspec path.

    Raises:
        UserError: there is none, or it is not a whole Parquet file.
    """
    files, where = filesystem(path)
    try:
        with files.open(where, "rb") as file:
            yield pq.ParquetFile(file)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; write it with muscle compare") from None
    except (pa.ArrowException, OSError) as error:  # damaged pages are OSErrors
        raise UserError(f"{path}: is not a whole Parquet file: {reason_line(error)}") from None


def is_flip(table: pa.Table | pa.RecordBatch) -> BoolArray:
    """Whether an example got worse or better in any pair, [rows]."""
    flip = np.zeros(table.num_rows, dtype=np.bool_)
    for name in PAIRS:
        if name in table.schema.names:
            found = pc.is_in(table[name], pa.array(["negative", "positive"]))
            flip |= np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.bool_)
    return flip


def id_keys(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """[rows] a fixed pseudo-random number for each id, the same in every file and task."""
    keys = np.empty(len(ids), dtype=np.uint64)
    for start in range(0, len(ids), BATCH):
        part = ids.slice(start, BATCH).to_pylist()
        keys[start : start + len(part)] = [
            int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8).digest(), "big") for i in part
        ]
    return keys


def _is(column: pa.ChunkedArray, value: Any) -> BoolArray:
    found: BoolArray = pc.fill_null(pc.equal(column, value), False).to_numpy(zero_copy_only=False)
    return found


def pick_flips(path: str, limit: int = 5) -> dict[str, list[dict[str, Any]]]:
    """Up to `limit` negative flips old->new of each task and its first seed, by their ids'
    hashes: the same ones everywhere, but not the first rows of the file.

    Raises:
        UserError: no such file, or not a whole one.
    """
    with open_examples(path) as file:
        light = file.read(columns=["task", "seed", "id", "old_new"])
        keys = id_keys(light["id"])
        negative = _is(light["old_new"], "negative")
        places: list[int] = []
        for task in pc.unique(light["task"]).to_pylist():
            here = _is(light["task"], task)
            first = pc.min(light["seed"].filter(pa.array(here))).as_py()
            where = np.flatnonzero(here & _is(light["seed"], first) & negative)
            places += where[np.argsort(keys[where], kind="stable")[:limit]].tolist()
        found = dict(zip(sorted(places), rows_at(file, np.sort(places)), strict=True))
    flips: dict[str, list[dict[str, Any]]] = {}
    for place in places:
        flips.setdefault(found[place]["task"], []).append(found[place])
    return flips


def rows_at(file: pq.ParquetFile, places: np.ndarray) -> Iterator[dict[str, Any]]:
    """Some rows of the file, in its order; row groups that hold none of them stay unread.

    Args:
        places: the rows' numbers, ascending.
    """
    sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    ends = np.cumsum(sizes, dtype=np.int64)
    groups, counts = np.unique(np.searchsorted(ends, places, side="right"), return_counts=True)
    if not len(groups):
        return
    # Where each row stands among the rows of those groups alone.
    read = np.array(sizes, dtype=np.int64)[groups]
    places = places - np.repeat(ends[groups] - np.cumsum(read), counts)
    start = 0
    for batch in file.iter_batches(batch_size=BATCH, row_groups=groups.tolist()):
        low, high = np.searchsorted(places, [start, start + batch.num_rows])
        if high > low:
            yield from batch.take(pa.array(places[low:high] - start)).to_pylist()
        start += batch.num_rows
