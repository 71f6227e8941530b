"""What travels to the cluster: the experiment, a few small settings files, the entry."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from muscle import __version__
from muscle.credentials import secret_in
from muscle.errors import UserError
from muscle.experiment import check_raw, expand, read_raw, refuse_secrets
from muscle.fleet.settings import check_fleet, entries_of
from muscle.overrides import FLEET
from muscle.submission.places import (
    Place,
    check_place,
    elsewhere,
    entry_name,
    get,
    here,
    output_of,
    places,
    put,
)
from muscle.training.settings import read_deepspeed

LIMIT = 5 * 2**20
"""Bytes of a package: settings are small, and Ray keeps it in the head's memory."""

EXPERIMENT = "experiment.yaml"
ENTRY = "muscle_job.py"
TASKS = "tasks"
_TASK_FILES = {".yaml", ".yml", ".py", ".jinja", ".jinja2", ".j2"}
_LISTED = 2000  # files under an include_path: more is no folder of tasks


@dataclass(frozen=True)
class Package:
    """What a run on a cluster is made of.

    name    the experiment's
    kind    "run" or "tune"
    files   relative name -> content; with `ENTRY`
    output  where results go; `${NAME}` in it is read on the cluster
    notes   remarks for the user
    """

    name: str
    kind: str
    files: dict[str, bytes]
    output: str
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """Ten digits of a hash of what makes the run this one; not of the entry."""
        content = {
            name: hashlib.sha256(data).hexdigest()
            for name, data in sorted(self.files.items())
            if name != ENTRY
        }
        text = json.dumps([self.kind, self.output, content])
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def arguments(self) -> list[str]:
        """What follows the entry's name on its command line."""
        return [self.kind, __version__, EXPERIMENT, "--output", self.output]

    def write(self, folder: Path) -> None:
        """Put the files into a folder."""
        for name, data in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def pack(
    file: Path, overrides: Sequence[str] = (), output: str | None = None, tune: bool = False
) -> Package:
    """An experiment, or a fleet, as a package. `${NAME}`s stay: they are read on the cluster.

    Raises:
        UserError: an invalid experiment, a fleet to tune, a secret, what only this machine has,
            no place for the results, a package above `LIMIT`.
    """
    raw = read_raw(file, overrides)
    refuse_secrets({**raw, "--output": output})
    if FLEET in raw:
        if tune:
            raise UserError(f"--tune searches one experiment's settings, and {file} holds a fleet")
        check_fleet(raw, file)
        raw[FLEET] = entries_of(raw, file)
    else:
        check_raw(raw, file)
    raw["name"] = expand(raw["name"], "name")  # the job is called by it
    where = output_of(raw, output, tune)
    for settings in (raw, *raw.get(FLEET, [])):
        _check_tracking(settings)
    files: dict[str, bytes] = {}
    notes = []
    for place in places(raw):
        if place.kind in ("file", "folder"):
            notes += _take(place, file.parent, raw, files)
        else:
            check_place(place, file.parent)
            notes += _unpinned(place, raw)
    text = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
    files = {EXPERIMENT: text.encode(), **files, ENTRY: _entry()}
    size = sum(map(len, files.values()))
    if size > LIMIT:
        largest = max(files, key=lambda name: len(files[name]))
        raise UserError(
            f"the package has {size / 2**20:.1f} MiB, mostly {largest}, and {LIMIT / 2**20:.0f} "
            "are allowed: it is for settings; put data on object storage and name it there"
        )
    return Package(raw["name"], "tune" if tune else "run", files, where, tuple(notes))


def _take(place: Place, folder: Path, raw: dict[str, Any], files: dict[str, bytes]) -> list[str]:
    """Put a settings file, or a folder's, into the package; returns remarks."""
    found = None if "${" in place.value or "://" in place.value else here(place.value, folder)
    if found is None:
        if elsewhere(place.value):
            return []
        raise UserError(f"setting '{place.setting}': {place.value} does not exist")
    wanted = "a folder" if place.kind == "folder" else "a file"
    if found.is_dir() != (place.kind == "folder"):
        raise UserError(f"setting '{place.setting}': {place.value} is not {wanted}")
    if place.kind == "folder":
        return _take_folder(place, found, raw, files)
    if place.setting == "resources.deepspeed":
        read_deepspeed(str(found))
    of = entry_name(place.setting, raw)
    name = f"{of}{'-' if of else ''}{place.setting.rpartition('.')[2]}-{_plain(found.name)}"
    files[name] = _read(found, place)
    put(raw, place.setting, name)
    return []


def _take_folder(
    place: Place, folder: Path, raw: dict[str, Any], files: dict[str, bytes]
) -> list[str]:
    of = entry_name(place.setting, raw)
    # Inputs may be asked of a task of their own.
    numbers = [name for name in place.setting.split(".") if name.isdigit()]
    target = "-".join([TASKS, *([of] if of else []), *numbers])
    left = 0
    found = []
    for path in folder.rglob("*"):
        found.append(path)
        if len(found) > _LISTED:
            raise UserError(
                f"setting '{place.setting}': {place.value} has more than {_LISTED} files: name "
                "the folder that holds the task's YAML alone"
            )
    for path in sorted(found):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if hidden or not path.is_file():
            continue
        if path.suffix not in _TASK_FILES:
            left += 1
            continue
        files["/".join([target, *parts])] = _read(path, place)
    if not any(name.startswith(f"{target}/") for name in files):
        raise UserError(f"setting '{place.setting}': {place.value} holds no YAML of a task")
    put(raw, place.setting, target)
    if not left:
        return []
    return [f"{place.value}: {left} files that are neither YAML nor Python stay here"]


def _read(path: Path, place: Place) -> bytes:
    if path.stat().st_size > LIMIT:
        raise UserError(
            f"setting '{place.setting}': {path} is too large to travel: put it on object storage"
        )
    data = path.read_bytes()
    secret = secret_in(data.decode("utf-8", "replace"))
    if secret is not None:
        raise UserError(
            f"setting '{place.setting}': {path} holds {secret}, and what is submitted is stored on "
            "the cluster: leave it out and set it in the nodes' environment"
        )
    return data


def _check_tracking(raw: dict[str, Any]) -> None:
    tracking = raw.get("tracking")
    uri = tracking.get("mlflow") if isinstance(tracking, dict) else None
    if not isinstance(uri, str) or elsewhere(uri) or uri.startswith("databricks"):
        return
    raise UserError(
        f"setting 'tracking.mlflow' is {uri!r}, a path of this machine: give the URI of a "
        "tracking server that the nodes reach"
    )


def _unpinned(place: Place, raw: dict[str, Any]) -> list[str]:
    """A remark where a hub model has no revision."""
    version = get(raw, place.setting.rpartition(".")[0]) if place.kind == "model" else {}
    local = elsewhere(place.value) or place.value.startswith("testbed:")
    if place.kind != "model" or local or version.get("revision"):
        return []
    name = place.setting.replace("model", "revision")
    return [f"{place.setting} {place.value!r} has no revision: the hub's newest; pin it by {name}"]


def _plain(name: str) -> str:
    """A file's name of letters that everything takes, a ConfigMap's keys too."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def _entry() -> bytes:
    return (Path(__file__).parent / "entry.py").read_bytes()
