"""The examples that the page carries: all flips if they fit, a sample of the rest.

The page shows what stands here as JSON, in short rows: position means meaning (`ROW` and
`OF_VERSION`), an answer that is one of the choices is that choice's number, a slice's
value a number in a list. A million examples are looked at in columns; only those chosen
become Python objects, a batch at a time.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from muscle.errors import UserError
from muscle.metrics.flips import BoolArray
from muscle.report.example_rows import (
    OUTCOMES,
    PAIRS,
    SIDES,
    id_keys,
    is_flip,
    open_examples,
    rows_at,
)

ROW = (
    "task", "seed", "id", "question", "gold", "choices", "fields", "document", "margin",
    "outcomes", "sides",
)  # fmt: skip
OF_VERSION = (
    "score", "answer", "response", "loglikelihoods", "error", "truncated", "near_tie", "question",
    "reason", "prompt",
)  # fmt: skip
_COLUMNS = {side: [f"{side}_{name}" for name in OF_VERSION] for side in SIDES}
OTHERS = 5_000
"""How many examples that are no flips the page carries at most."""
LONG = 4_000
"""Characters of one text that the page carries; the rest stands in examples.parquet."""
SAMPLE = 500
"""Examples that tell how large one is, and how many more than that are tried."""
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
    return _json(_finite(value))


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(_SAFE)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


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
        flips = is_flip(light)
        ranked = _ranked(flips, id_keys(light["id"]), others)
        n_rows, n_flips = len(flips), int(flips.sum())
        del light, flips  # the texts that follow want the memory
        packer = Packer(list(head["tasks"]), list(head["sides"]), pairs, Fields())
        # As large as it can get but for the fields, and the brackets around the rows.
        head |= {"fields": [], "shown": _shown(n_rows, n_rows, n_flips)}
        room -= len(safe_json(head).encode()) + 8
        texts = _pack(file, packer, ranked, room)
    # The values of slices stand in the head, so their room is known only now.
    head["fields"] = packer.fields.table()
    texts = texts[: _fitting(texts, room - len(safe_json(head["fields"]).encode()))]
    shown_flips = min(len(texts), n_flips)
    head["shown"] = _shown(len(texts) - shown_flips, n_rows, n_flips, shown_flips)
    return Payload(head, [texts[i] for i in np.argsort(ranked[: len(texts)])])


def _shown(others: int, n: int, n_flips: int, flips: int | None = None) -> dict[str, int]:
    """How many examples are shown, and of how many; all flips unless `flips` says less."""
    return {
        "flips": n_flips if flips is None else flips,
        "all_flips": n_flips,
        "others": others,
        "all_others": n - n_flips,
    }


def _check(path: str, light: pa.Table, report: dict[str, Any]) -> None:
    """Refuse a table that is not of this report: its counts would contradict the numbers."""
    found = {e["values"]: e["counts"] for e in pc.value_counts(light["task"]).to_pylist()}
    for name in sorted({*found, *report["tasks"]}):
        task = report["tasks"].get(name)
        wanted = 0 if task is None else (task["n"] + task["unscored"]) * len(task["by_seed"])
        if found.get(name, 0) != wanted:
            raise UserError(
                f"{path}: has {found.get(name, 0)} rows of task {name[:60]!r}, report.json beside "
                f"it {wanted}: they are of two comparisons; compare again"
            )


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


def _ranked(flips: BoolArray, keys: np.ndarray, others: int) -> NDArray[np.int64]:
    """The rows to show, the first one first: all flips, then some others, each kind by its
    keys."""
    first, second = np.flatnonzero(flips), np.flatnonzero(~flips)
    return np.concatenate(
        [
            first[np.argsort(keys[first], kind="stable")],
            second[np.argsort(keys[second], kind="stable")[:others]],
        ]
    )


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
        return _json(values)  # every number in it is finite

    def _side(self, row: Mapping[str, Any], side: str, choices: list[str] | None) -> list[Any]:
        of = dict(zip(OF_VERSION, map(row.get, _COLUMNS[side]), strict=True))
        answer, response, likely = of["answer"], of["response"], of["loglikelihoods"]
        values = [
            _rounded(of["score"], 6),
            _choice(answer, choices),
            None if response == answer else shorten(response),
            None if likely is None else [_rounded(x) for x in likely],
            shorten(of["error"]),
            of["truncated"],
            of["near_tie"],
            shorten(of["question"]),
            shorten(of["reason"]),
            shorten(of["prompt"]),
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


def _pack(file: pq.ParquetFile, packer: Packer, ranked: NDArray[np.int64], room: int) -> list[str]:
    """The first rows of `ranked` as JSON: at least as many as fit, few more than that."""
    texts: list[str] = []
    count, size = len(ranked), 0
    if count > SAMPLE:
        count = _guess(_sizes(file, packer, ranked), room)
    while len(texts) < len(ranked) and size <= room:
        part = ranked[len(texts) : len(texts) + count]
        order = np.argsort(part)  # rows are read, and slices' values numbered, as the file has them
        packed = [""] * len(part)
        for i, row in zip(order.tolist(), rows_at(file, part[order]), strict=True):
            packed[i] = packer.pack(row)
        texts += packed
        size += sum(map(_size, packed))
        count = _guess(size / len(texts), room - size)
    return texts


def _sizes(file: pq.ParquetFile, packer: Packer, ranked: NDArray[np.int64]) -> float:
    """About how many bytes a row takes, as some from one place of the file do."""
    some = np.sort(ranked)[:SAMPLE]
    trial = replace(packer, fields=Fields())
    return float(np.mean([_size(trial.pack(row)) for row in rows_at(file, some)]))


def _guess(size: float, room: int) -> int:
    """A few more rows than fit into the room, if a row takes so many bytes."""
    return SAMPLE + int(1.02 * max(0, room) / size)


def _size(text: str) -> int:
    """Bytes of a row and the comma after it."""
    return len(text.encode()) + 1


def _fitting(texts: list[str], room: int) -> int:
    """How many of the first texts fit; nothing of a higher rank jumps the queue."""
    for i, text in enumerate(texts):
        room -= _size(text)
        if room < 0:
            return i
    return len(texts)
