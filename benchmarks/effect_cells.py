"""The study's cells (a task and an update), and the rows and bases that it makes for itself.

WORK/data/TASK/train.jsonl    3,200 labelled rows: what trains, chooses epochs and tunes
WORK/data/TASK/more-N.jsonl   N further inputs without their answers, the smaller in the larger
WORK/data/TASK/labelled-N.jsonl  all rows but those held out for tuning, and the same N labelled
WORK/data/TASK/test.jsonl
WORK/models/v0                an older, weaker base (`jobs/pretrain_testbed.py`)
"""

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import ROOT, say

FOLDER = ROOT / "jobs" / "experiments" / "study"

CELLS = (
    "subjectivity-v1-v2",
    "choice-v0-v2",
    "subjectivity-v1-v3",
    "arithmetic-v0-v2",
    "choice-v1-v2",
    "arithmetic-v1-v2",
    "piqa-v1-v2",
    "piqa-v1-v3",
    "samsum-v1-v2",
    "samsum-v1-v3",
)
"""In the order of what they can tell: a study that ends early has the first."""

SCREENED = ("subjectivity-v1-v2", "choice-v0-v2")
"""Where all methods run once: an update without a gain, and one with."""

ROWS, MORE, TEST = 3200, (1000, 2000, 4000, 8000), 2500
"""Labelled rows; further inputs, 0.5 to 4 times the 2,000 that train; the most test rows."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a task's rows are from.

    asks     the fields that tell one input from another
    answers  fields that unlabelled rows do without
    read     rows of "train" or "test"
    """

    asks: tuple[str, ...]
    answers: tuple[str, ...]
    read: Callable[[str], Iterable[Row]]


def task_of(cell: str) -> str:
    """A cell's task."""
    return cell.split("-", 1)[0]


def update_of(cell: str) -> str:
    """A cell's update, as it is shown."""
    return "→".join(cell.split("-")[1:])


def experiment_file(cell: str) -> Path:
    """A cell's settings."""
    return FOLDER / f"{cell}.yaml"


def seeds_of(cell: str) -> int:
    """Five where a seed takes minutes, three where texts are written."""
    return 3 if task_of(cell) in ("samsum", "arithmetic") else 5


def _files(name: str, test: str) -> Callable[[str], Iterable[Row]]:
    def read(split: str) -> Iterable[Row]:
        folder = os.environ.get("MUSCLE_DATA", "")
        path = Path(folder) / name / f"{'train' if split == 'train' else test}.jsonl.gz"
        if not folder or not path.is_file():
            raise SystemExit(f"no {path}: set MUSCLE_DATA to the folder that holds {name}/")
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    return read


def _testbed(name: str) -> Callable[[str], Iterable[Row]]:
    def read(split: str) -> Iterable[Row]:
        from muscle.testbed.arithmetic import arithmetic_rows
        from muscle.testbed.choice import choice_rows
        from muscle.testbed.world import SEED

        make = {"choice": choice_rows, "arithmetic": arithmetic_rows}[name]
        # A tenth more than is needed: some ask the same.
        return make(SEED, split, 2000 if split == "test" else int((ROWS + MORE[-1]) * 1.1))

    return read


SOURCES: dict[str, Source] = {
    "subjectivity": Source(("text",), ("label",), _files("subjectivity", "test")),
    "piqa": Source(("goal",), ("label",), _files("piqa", "validation")),
    "samsum": Source(("dialogue",), ("summary",), _files("samsum", "test")),
    "choice": Source(("question",), ("gold",), _testbed("choice")),
    "arithmetic": Source(("question",), ("answer",), _testbed("arithmetic")),
}


def prepare(work: Path, cells: Sequence[str]) -> None:
    """Have the rows and bases of some cells, and the variables that their settings read."""
    os.environ["MUSCLE_STUDY"] = str(work)
    for task in dict.fromkeys(map(task_of, cells)):
        write_rows(work / "data" / task, SOURCES[task])
    if any("v0" in cell for cell in cells):
        make_old_base(work / "models")


def write_rows(folder: Path, source: Source) -> None:
    """The rows of a task; nothing where they are there. The last file says that all are."""
    if (folder / "rows.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    test = list(source.read("test"))[:TEST]
    asked = {_asked(source, row) for row in test}
    rows = []
    for row in sorted(source.read("train"), key=lambda row: _rank(_asked(source, row))):
        if _asked(source, row) not in asked and all(str(row[f]).strip() for f in source.asks):
            asked.add(_asked(source, row))
            rows.append({**row, "id": str(row.get("id", f"row-{len(rows)}"))})
    labelled, further = rows[:ROWS], rows[ROWS : ROWS + MORE[-1]]
    _write(folder / "train.jsonl", labelled)
    _write(folder / "test.jsonl", test)
    for n in MORE:
        some = [{**row, "id": f"more-{row['id']}"} for row in further[:n]]
        bare = [{k: v for k, v in row.items() if k not in source.answers} for row in some]
        _write(folder / f"more-{n}.jsonl", bare)
        _write(folder / f"further-{n}.jsonl", some)
    counts = {"train": len(labelled), "test": len(test), "further": len(further)}
    (folder / "rows.json").write_text(json.dumps(counts) + "\n")


def counts_of(work: Path, task: str) -> dict[str, int]:
    """How many rows a task has: {"train", "test", "further"}."""
    found: dict[str, int] = json.loads((work / "data" / task / "rows.json").read_text())
    return found


def write_labelled(work: Path, task: str, held_out: set[str], n: int) -> Path:
    """The training file of the control with `n` more labels: none of the tuning rows is in it."""
    folder = work / "data" / task
    path = folder / f"labelled-{n}.jsonl"
    if not path.is_file():
        rows = [row for row in _read(folder / "train.jsonl") if str(row["id"]) not in held_out]
        _write(path, [*rows, *_read(folder / f"further-{n}.jsonl")])
    return path


def make_old_base(folder: Path) -> None:
    """Have the testbed's older base; half a minute on one core."""
    if (folder / "v0" / "pretraining.json").is_file():
        return
    from muscle.testbed.pretrain import pretrain

    say("pre-train the older base v0")
    pretrain(str(folder), ["v0"])


def _asked(source: Source, row: Row) -> str:
    return json.dumps([row[field] for field in source.asks])


def _rank(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, rows: Sequence[Row]) -> None:
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    part.replace(path)


def _read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
