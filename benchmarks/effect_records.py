"""The study's records: one JSON file for each method on a cell with a seed, and what is missing."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from effect_cells import experiment_file
from effect_methods import METHODS, Method

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A method on a cell with a seed, and the parts that it is to answer."""

    cell: str
    seed: int
    method: str
    parts: tuple[str, ...]


def settings_key(cell: str, method: Method) -> str:
    """A hash of all settings, without titles and comments: a record of others doesn't count."""
    own = {k: v for k, v in asdict(method).items() if k not in ("name", "title", "group")}
    text = json.dumps([_settings(experiment_file(cell)), own], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _settings(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


class Records:
    """The records under WORK/records, as CELL/SEED/METHOD.json."""

    def __init__(self, work: Path, methods: Mapping[str, Method] | None = None):
        self.folder = work / "records"
        self.methods = METHODS if methods is None else methods

    def path(self, cell: str, seed: int, method: str) -> Path:
        """Where a record lies."""
        return self.folder / cell / str(seed) / f"{method}.json"

    def find(self, cell: str, seed: int, method: str) -> Record | None:
        """A record of these settings; None where there is none, or one of others."""
        try:
            found = json.loads(self.path(cell, seed, method).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        key = settings_key(cell, self.methods[method])
        return found if isinstance(found, dict) and found.get("key") == key else None

    def lacks(self, job: Job, retry: bool = False) -> tuple[str, ...]:
        """The parts of a job that no record has; what can't be done lacks nothing.

        retry: try again what couldn't be done.
        """
        found = self.find(job.cell, job.seed, job.method)
        if found is None:
            return job.parts
        if found.get("impossible"):
            return job.parts if retry else ()
        return tuple(part for part in job.parts if part not in found["parts"])

    def missing(self, jobs: Iterable[Job], retry: bool = False) -> list[Job]:
        """Jobs with what they lack, each method once, in their order."""
        left: dict[tuple[str, int, str], Job] = {}
        for job in jobs:
            parts = self.lacks(job, retry)
            if parts:
                left.setdefault(
                    (job.cell, job.seed, job.method), Job(job.cell, job.seed, job.method, parts)
                )
        return list(left.values())

    def put(self, job: Job, found: Mapping[str, Any]) -> None:
        """Add answers to a job's record; it is whole or not there."""
        there = self.find(job.cell, job.seed, job.method) or {}
        record = {
            "cell": job.cell,
            "seed": job.seed,
            "method": job.method,
            "key": settings_key(job.cell, self.methods[job.method]),
            "parts": {**there.get("parts", {}), **found.get("parts", {})},
            # A part that is added later costs its answers only.
            "seconds": there.get("seconds") or found.get("seconds") or {},
        }
        if found.get("impossible"):
            record["impossible"] = found["impossible"]
        path = self.path(job.cell, job.seed, job.method)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(record) + "\n", encoding="utf-8")
        part.replace(path)

    def all(self) -> list[Record]:
        """All records that count, by cell, seed and method."""
        found = []
        for path in sorted(self.folder.glob("*/*/*.json")):
            cell, seed, method = path.parent.parent.name, path.parent.name, path.stem
            if method in self.methods and experiment_file(cell).is_file() and seed.isdecimal():
                record = self.find(cell, int(seed), method)
                if record is not None:
                    found.append(record)
        return found


def jobs_of(
    cells: Sequence[str], seeds: Mapping[str, Sequence[int]], methods: Sequence[str], part: str
) -> list[Job]:
    """All methods of the first seed of each cell, then of the second, …"""
    most = max((len(seeds[cell]) for cell in cells), default=0)
    return [
        Job(cell, seeds[cell][turn], method, (part,))
        for turn in range(most)
        for cell in cells
        if turn < len(seeds[cell])
        for method in methods
    ]
