"""The examples that the page carries: all flips if they fit, a sample of the rest.

The page shows what stands here as JSON, in short rows: position means meaning (`ROW` and
`OF_VERSION`), an answer that is one of the choices is that choice's number, a slice's
value a number in a list. A million examples are looked at in columns; only those chosen
become Python objects, a batch at a time.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from muscle.errors import UserError
from muscle.metrics.flips import BoolArray
from muscle.storage import filesystem

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
ROW = (
    "task", "seed", "id", "question", "gold", "choices", "fields", "document", "margin",
    "outcomes", "sides",
)  # fmt: skip
OF_VERSION = (
    "score", "answer", "response", "loglikelihoods", "error", "truncated", "near_tie", "question",
)  # fmt: skip
OTHERS = 5_000
"""How many examples that are no flips the page carries at most."""
LONG = 4_000
"""Characters of one text that the page carries; the rest stands in examples.parquet."""
BATCH = 8_192
# "<!--", "</script" and the two separators that end a line of JavaScript.
_SAFE = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


@dataclass(frozen=True)
class Payload:
    """What the page's script reads, as JSON text that no HTML parser can leave.

    rows    the chosen examples, each already JSON
    head    everything but the rows
    """

    head: dict[str, Any]
    rows: list[str]

    def text(self) -> str:
        """The whole JSON object."""
        head = safe_json(self.head)
        return f'{head[:-1]},"rows":[{",".join(self.rows)}]}}'


def safe_json(value: Any) -> str:
    """Compact JSON for an inline script element; infinite numbers and NaN become null."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(_SAFE)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


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
    except pa.ArrowException as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is not a whole Parquet file: {line}") from None


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


def make_payload(path: str, report: dict[str, Any], room: int, others: int = OTHERS) -> Payload:
    """Choose and pack the examples for the page.

    Args:
        path: examples.parquet.
        report: report.json's content.
        room: bytes that the JSON may have.
        others: how many examples that are no flips to carry at most.

    Returns:
        Flips come first, then the others, each kind in the order of their ids' hashes
        while they fit; shown in the file's order. `head["totals"]` and `head["changes"]`
        count all examples, shown or not.

    Raises:
        UserError: the file is missing, broken or of another comparison.
    """
    with open_examples(path) as file:
        pairs = [name for name in PAIRS if name in file.schema_arrow.names]
        missing = {"task", "seed", "id", "old_new"} - set(file.schema_arrow.names)
        if missing:
            raise UserError(f"{path}: has no column {sorted(missing)[0]!r}; it isn't ours")
        light = file.read(columns=["task", "seed", "id", *pairs])
        _check(path, light, report)
        head: dict[str, Any] = {
            "row": ROW,
            "of_side": OF_VERSION,
            "outcomes": OUTCOMES,
            "pairs": [PAIRS[name] for name in pairs],
            "sides": [v for v in SIDES if f"{v}_score" in file.schema_arrow.names],
            "totals": _totals(light, pairs),
            "changes": _changes(light, pairs),
            "tasks": sorted(report["tasks"]),
        }
        flips, keys = is_flip(light), id_keys(light["id"])
        chosen = flips | _first(~flips, keys, others)
        fields = Fields()
        packer = Packer(list(head["tasks"]), list(head["sides"]), pairs, fields)
        size = len(safe_json(head).encode()) + 64
        packed = _pack(file, packer, chosen, flips, keys, room - size)
        # The values of slices stand in the head, so their room is known only now.
        packed = _fit(packed, room - size - len(safe_json(fields.table()).encode()))
    rows = [packed[i][1] for i in sorted(packed)]
    shown = np.zeros(len(keys), dtype=np.bool_)
    shown[np.array(list(packed), dtype=np.int64)] = True
    head |= {
        "fields": fields.table(),
        "shown": {
            "flips": int((shown & flips).sum()),
            "all_flips": int(flips.sum()),
            "others": int((shown & ~flips).sum()),
            "all_others": int((~flips).sum()),
        },
    }
    return Payload(head, rows)


def _check(path: str, light: pa.Table, report: dict[str, Any]) -> None:
    found = set(pc.unique(light["task"]).to_pylist())
    if found - set(report["tasks"]):
        odd = sorted(found - set(report["tasks"]))[0]
        raise UserError(f"{path}: holds task {odd[:60]!r}, which is not in report.json beside it")


def _totals(light: pa.Table, pairs: list[str]) -> list[list[Any]]:
    """[task, seed, pair, outcome, examples] for all that occur."""
    rows = []
    for name in pairs:
        grouped = light.group_by(["task", "seed", name]).aggregate([([], "count_all")])
        rows += [
            [row["task"], row["seed"], PAIRS[name], row[name], row["count_all"]]
            for row in grouped.to_pylist()
            if row[name] is not None
        ]
    return sorted(rows)


def _changes(light: pa.Table, pairs: list[str]) -> list[list[Any]]:
    """[task, seed, fixed, kept, newly made, neither]: new's negative flips under compat."""
    if "old_compat" not in pairs:
        return []
    grouped = light.group_by(["task", "seed", "old_new", "old_compat"])
    counts: dict[tuple[str, int], list[int]] = {}
    for row in grouped.aggregate([([], "count_all")]).to_pylist():
        if "unscored" in (row["old_new"], row["old_compat"]):
            continue
        before, after = row["old_new"] == "negative", row["old_compat"] == "negative"
        cell = 1 if before and after else 0 if before else 2 if after else 3
        counts.setdefault((row["task"], row["seed"]), [0, 0, 0, 0])[cell] += row["count_all"]
    return [[*key, *cells] for key, cells in sorted(counts.items())]


def _first(mask: BoolArray, keys: np.ndarray, n: int) -> BoolArray:
    """The n of `mask` with the lowest keys."""
    where = np.flatnonzero(mask)
    out = np.zeros(len(mask), dtype=np.bool_)
    out[where[np.argsort(keys[where], kind="stable")[:n]]] = True
    return out


class Fields:
    """The values of slice columns, each kept once."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, int]] = {}

    def numbers(self, fields: list[tuple[str, str | None]]) -> list[list[int]]:
        """[field, value] numbers of one example."""
        out = []
        for name, value in fields:
            if value is not None:
                values = self._values.setdefault(name, {})
                out.append([list(self._values).index(name), values.setdefault(value, len(values))])
        return out

    def table(self) -> list[list[Any]]:
        """[name, values] in the order of the numbers."""
        return [[name, list(values)] for name, values in self._values.items()]


@dataclass(frozen=True)
class Packer:
    """Turns rows of examples.parquet into short JSON arrays."""

    tasks: list[str]
    sides: list[str]
    pairs: list[str]
    fields: Fields

    def pack(self, row: Mapping[str, Any]) -> str:
        """One example as JSON."""
        choices = row.get("choices")
        question = row.get("question")
        values = [
            self.tasks.index(row["task"]),
            row["seed"],
            row["id"],
            shorten(question),
            _choice(row.get("gold"), choices),
            None if choices is None else [shorten(c) for c in choices],
            self.fields.numbers(row.get("fields") or []),
            row.get("document"),
            _rounded(row.get("margin")),
            [-1 if row[p] is None else OUTCOMES.index(row[p]) for p in self.pairs],
            [self._side(row, side, choices) for side in self.sides],
        ]
        return safe_json(values)

    def _side(self, row: Mapping[str, Any], side: str, choices: list[str] | None) -> list[Any]:
        def of(name: str) -> Any:
            return row.get(f"{side}_{name}")

        answer, likely = of("answer"), of("loglikelihoods")
        response = None if of("response") == answer else of("response")
        values = [
            _rounded(of("score"), 6),
            _choice(answer, choices),
            shorten(response),
            None if likely is None else [_rounded(x) for x in likely],
            shorten(of("error")),
            of("truncated"),
            of("near_tie"),
            shorten(of("question")),
        ]
        while len(values) > 1 and (values[-1] is None or values[-1] is False):
            values.pop()  # most end in nulls; the script reads what is missing as null
        return values


def _choice(text: str | None, choices: list[str] | None) -> Any:
    """The number of the choice that a text is, else the text itself, cut."""
    if text is not None and choices is not None and text in choices:
        return choices.index(text)
    return shorten(text)


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


def shorten(text: str | None, limit: int = LONG) -> str | list[Any] | None:
    """The text, or [beginning, end, characters left out between] of a long one."""
    if text is None or len(text) <= limit:
        return text
    head = limit * 2 // 3
    tail = limit - head
    return [text[:head], text[len(text) - tail :], len(text) - limit]


Packed = dict[int, tuple[tuple[bool, int, int], str]]
"""Row of the file -> its rank (the lowest stay) and its JSON."""


def _pack(
    file: pq.ParquetFile,
    packer: Packer,
    chosen: BoolArray,
    flips: BoolArray,
    keys: np.ndarray,
    room: int,
) -> Packed:
    """The chosen rows as JSON, as many as fit."""
    packed: Packed = {}
    size = start = 0
    worst: tuple[bool, int, int] | None = None  # known once the room was full: no later row
    for batch in file.iter_batches(batch_size=BATCH):
        here = np.flatnonzero(chosen[start : start + batch.num_rows])
        ranks = [(not flips[start + i], int(keys[start + i]), start + int(i)) for i in here]
        fitting = [k for k, rank in enumerate(ranks) if worst is None or rank < worst]
        if fitting:
            rows = batch.take(pa.array(here[fitting])).to_pylist()
            for k, row in zip(fitting, rows, strict=True):
                text = packer.pack(row)
                packed[ranks[k][2]] = ranks[k], text
                size += len(text.encode()) + 1
            if size > 2 * room:
                packed = _fit(packed, room)
                size = sum(len(text.encode()) + 1 for _, text in packed.values())
                worst = max((rank for rank, _ in packed.values()), default=(False, -1, -1))
        start += batch.num_rows
    return _fit(packed, room)


def _fit(packed: Packed, room: int) -> Packed:
    """The lowest ranks that fit into the room; nothing of a higher rank jumps the queue."""
    kept: Packed = {}
    for i, (rank, text) in sorted(packed.items(), key=lambda item: item[1][0]):
        room -= len(text.encode()) + 1
        if room < 0:
            break
        kept[i] = rank, text
    return kept


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
        found = dict(zip(sorted(places), _rows_at(file, np.sort(places)), strict=True))
    flips: dict[str, list[dict[str, Any]]] = {}
    for place in places:
        flips.setdefault(found[place]["task"], []).append(found[place])
    return flips


def _rows_at(file: pq.ParquetFile, places: np.ndarray) -> list[dict[str, Any]]:
    """Some rows of the file, in its order."""
    rows: list[dict[str, Any]] = []
    start = 0
    for batch in file.iter_batches(batch_size=BATCH):
        here = places[(places >= start) & (places < start + batch.num_rows)] - start
        if len(here):
            rows += batch.take(pa.array(here)).to_pylist()
        start += batch.num_rows
    return rows
