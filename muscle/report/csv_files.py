"""report.csv, every number in long form, and flips.csv, every flip: for spreadsheets."""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from muscle.report.example_rows import BATCH, PAIRS, SIDES, is_flip, open_examples
from muscle.report.page import read_comparison
from muscle.storage import exists, join, write_bytes

COLUMNS = ("task", "seed", "what", "name", "measure", "value", "low", "high", "n")
ALL = "all"
# A spreadsheet takes a cell that begins so for a formula, and runs it.
FORMULA = ("=", "+", "-", "@", "\t", "\r")

Line = tuple[str, str, str, str, str, Any, Any, Any, Any]


def write_csv(folder: str) -> None:
    """Write report.csv and flips.csv from report.json and examples.parquet.

    report.csv has a line for each number: `value` with its 95 % interval `low` to `high`;
    measures that end in "_bounds95" have one-sided 95 % bounds there. `seed` is "all" for
    the task as a whole, `what` is version, pair, reduction, noise_floor, slice or group,
    `name` which one. flips.csv has a line for each example that got worse or better in any
    pair: outcomes and scores, no text. A cell of foreign text that a spreadsheet would take
    for a formula begins with an apostrophe.

    Raises:
        UserError: report.json is missing or broken, examples.parquet is broken, or a file
            can't be written.
    """
    report, _ = read_comparison(folder)
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in lines(report):
        writer.writerow([harmless(cell) if isinstance(cell, str) else cell for cell in line])
    write_bytes(join(folder, "report.csv"), sink.getvalue().encode("utf-8", "replace"))
    examples = join(folder, "examples.parquet")
    if exists(examples):
        write_bytes(join(folder, "flips.csv"), _flips(examples))


def harmless(text: str) -> str:
    """Text that no spreadsheet runs as a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def lines(report: Mapping[str, Any]) -> Iterator[Line]:
    """The lines of report.csv."""
    for task, block in sorted(report["tasks"].items()):
        n = block["n"]
        yield task, ALL, "task", task, "unscored", block["unscored"], None, None, n
        yield from _block(task, ALL, block, n)
        if len(block["by_seed"]) > 1:
            for seed, of_seed in block["by_seed"].items():
                yield from _block(task, seed, of_seed, n)
        for part in block.get("slices") or []:
            yield from _slice(task, part)
    for name, group in sorted((report.get("groups") or {}).items()):
        n = (group.get("pooled") or group)["n"]
        for version, entry in group["versions"].items():
            yield from _measures((name, ALL, "group"), version, entry, n)
        for pair, entry in group["pairs"].items():
            yield from _measures((name, ALL, "group"), pair, entry, n)


def _block(task: str, seed: str, block: Mapping[str, Any], n: int) -> Iterator[Line]:
    for version, entry in block["versions"].items():
        yield from _measures((task, seed, "version"), version, entry, n)
    for pair, entry in block["pairs"].items():
        yield from _measures((task, seed, "pair"), pair, entry, n)
    if block["reduction"] is not None:
        yield from _measures((task, seed, "reduction"), "compat against new", block["reduction"], n)
    noise = block.get("noise_floor")
    if noise:
        yield from _measures((task, seed, "noise_floor"), "old->again", noise, n)
        for name, count in (noise.get("counts") or {}).items():
            yield task, seed, "noise_floor", "old->again", name, count, None, None, n
        for pair, entry in noise["excess"].items():
            excess = {f"excess_{key}": value for key, value in entry.items()}
            named = {
                **excess,
                "ci95": {f"excess_{k}": v for k, v in entry["ci95"].items()},
                "bounds95": {f"excess_{k}": v for k, v in entry["bounds95"].items()},
            }
            yield from _measures((task, seed, "noise_floor"), pair, named, n)


def _slice(task: str, part: Mapping[str, Any]) -> Iterator[Line]:
    name, n = f"{part['column']}={part['value']}", part["n"]
    for kind in ("versions", "pairs"):
        for which, entry in part[kind].items():
            yield from _measures((task, ALL, "slice"), f"{name} {which}", entry, n)
    if part.get("reduction"):
        yield from _measures((task, ALL, "slice"), f"{name} reduction", part["reduction"], n)


def _measures(
    where: tuple[str, str, str], name: str, entry: Mapping[str, Any], n: int
) -> Iterator[Line]:
    """A line for every number of a block; intervals stand beside what they are of."""
    intervals, bounds = entry.get("ci95"), entry.get("bounds95") or {}
    if not isinstance(intervals, Mapping):  # a version's: of its score
        intervals = {"score": intervals}
    seeds = entry.get("ci95_seeds") or {}
    if not isinstance(bounds, Mapping):
        bounds = {"score": bounds}
    for measure, value in entry.items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            continue
        if measure in ("ci95", "ci95_seeds", "bounds95", "replaced", "histogram"):
            continue
        yield (*where, name, measure, value, *(intervals.get(measure) or (None, None)), n)
        if measure in bounds:
            low, high = bounds[measure] or (None, None)
            yield (*where, name, f"{measure}_bounds95", value, low, high, n)
        if measure in seeds:
            low, high = seeds[measure] or (None, None)
            yield (*where, name, f"{measure}_ci95_seeds", value, low, high, n)


def _flips(path: str) -> bytes:
    """flips.csv, made a batch at a time."""
    sink = pa.BufferOutputStream()
    with open_examples(path) as file:
        names = file.schema_arrow.names
        pairs = [p for p in PAIRS if p in names]
        scores = [f"{v}_score" for v in SIDES if f"{v}_score" in names]
        columns = [
            "task",
            "seed",
            "id",
            *pairs,
            *scores,
            *(["margin"] if "margin" in names else []),
        ]
        schema = pa.schema([file.schema_arrow.field(c) for c in columns])
        with pacsv.CSVWriter(sink, schema) as writer:
            for batch in file.iter_batches(batch_size=8 * BATCH, columns=columns):
                chosen = batch.take(pa.array(np.flatnonzero(is_flip(batch)))).select(columns)
                writer.write_batch(_harmless(chosen, schema))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _harmless(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """`harmless` for the two columns of foreign text."""
    columns = [
        pc.replace_substring_regex(batch[name], r"\A([=+\-@\t\r])", r"'\1")
        if name in ("task", "id")
        else batch[name]
        for name in schema.names
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
