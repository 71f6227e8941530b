"""The report of a run on a cluster, brought to this machine if its place can be read from here."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from muscle import storage
from muscle.errors import UserError
from muscle.fleet.settings import NAME
from muscle.report.text import one_line
from muscle.submission.arrival import Said
from muscle.submission.packing import Package

FILES = {
    "run": (
        "report.json",
        "report.html",
        "report.md",
        "report.csv",
        "flips.csv",
        "gate.json",
        "junit.xml",
    ),
    "tune": ("tune.json", "tune.md", "front.png", "best.yaml"),
}
FLEET = ("fleet.json", "fleet.html", "fleet.md", "fleet.csv")
"""What is brought back; predictions, adapters and artifacts stay."""


@dataclass(frozen=True)
class Returned:
    """Copies of results: their folder here, or why there are none."""

    folder: str | None
    reason: str = ""


def folder_for(package: Package, save: str | None) -> Path:
    """Where copies go: `save`, else runs/NAME; beside it where a run of this machine lies there."""
    if save is not None:
        return Path(save)
    last = "-tune" if package.kind == "tune" else ""
    folder = Path("runs") / f"{package.name}{last}"
    made_here = any((folder / n).exists() for n in ("experiment.json", "trials", "fleet.json"))
    return folder.with_name(f"{folder.name}-{package.identity}") if made_here else folder


def bring_back(said: Said, package: Package, save: str | None) -> Returned:
    """Copy the report, and what else is small, from where the job put it.

    A place that this machine calls by the same name, but that is another one, is told by the
    main file's digest.

    Raises:
        UserError: the copies can't be written.
    """
    target = folder_for(package, save)
    same = not storage.is_remote(said.output)
    if same and os.path.realpath(said.output) == os.path.realpath(target):
        return Returned(str(target))
    try:
        names = FLEET if said.file in FLEET else FILES[package.kind]
        found = storage.read_all(said.output, names)
        if said.file not in found:
            return Returned(None, "that place isn't seen from here")
        if storage.sha256(storage.join(said.output, said.file)) != said.digest:
            return Returned(None, "what lies there on this machine is something else")
        for name in _adapters(found[said.file]) if said.file in FLEET else ():
            theirs = storage.read_all(storage.join(said.output, name), FILES["run"])
            found |= {f"{name}/{file}": data for file, data in theirs.items()}
    except (UserError, OSError, ImportError, ValueError) as error:
        return Returned(None, one_line(str(error), 200))
    except Exception as error:  # every store has its own: no credentials, no such bucket
        return Returned(None, one_line(f"{type(error).__name__}: {error}", 200))
    for name, data in found.items():
        storage.write_bytes(str(target / name), data)
    return Returned(str(target))


def _adapters(record: bytes) -> list[str]:
    """The folders of a fleet's reports; a name that is no folder's of ours is left out."""
    adapters = json.loads(record)["adapters"]
    names = [str(one["folder"]) for one in adapters if one["report"] is not None]
    return [name for name in names if NAME.fullmatch(name)]
