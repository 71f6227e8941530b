"""What the paths of an experiment mean to a cluster: what it can read, what travels, what can't."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fsspec.registry import known_implementations

from muscle.errors import UserError
from muscle.experiment import VARIABLE, refuse_unfilled
from muscle.overrides import FLEET, find_entry
from muscle.storage import join

_OWN = {"memory", "file", "local"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

Kind = Literal["model", "adapter", "data", "file", "folder"]
"""model, adapter, data: large, they lie where all nodes see them. file, folder: a few small
settings, which travel."""


@dataclass(frozen=True)
class Place:
    """A path in an experiment: the setting's name, its value, what lies there."""

    setting: str
    value: str
    kind: Kind


def places(raw: dict[str, Any]) -> Iterator[Place]:
    """Every path that the settings of an experiment, or of a fleet, name, but `storage`."""
    yield from _places(raw, "")
    for entry in raw.get(FLEET, []):
        yield from _places(entry, f"{FLEET}.{entry['name']}.")


_OF_TASK: list[tuple[str, Kind]] = [
    ("train", "data"),
    ("validation", "data"),
    ("test", "data"),
    ("data_files.train", "data"),
    ("data_files.validation", "data"),
    ("data_files.test", "data"),
    ("include_path", "folder"),
]


def _places(raw: dict[str, Any], prefix: str) -> Iterator[Place]:
    kinds: list[tuple[str, Kind]] = [
        ("old.model", "model"),
        ("new.model", "model"),
        ("old.adapter", "adapter"),
        ("new.adapter", "adapter"),
        ("old.release", "data"),
        ("new.release", "data"),
        ("noise_floor", "adapter"),
        *[(f"task.{name}", kind) for name, kind in _OF_TASK],
        *_inputs(raw),
        ("old.chat_template", "file"),
        ("new.chat_template", "file"),
        ("gate.must_keep", "file"),
        ("gate.waive", "file"),
        ("resources.deepspeed", "file"),
    ]
    for setting, kind in kinds:
        value = get(raw, setting)
        stage = setting == "resources.deepspeed" and not str(value).endswith(".json")
        if isinstance(value, str) and value and not stage:
            yield Place(prefix + setting, value, kind)
    older = raw.get("also")
    for value in older if isinstance(older, list) else ():
        name, equals, path = str(value).partition("=")
        yield Place(f"{prefix}also", path if equals and "/" not in name else str(value), "data")


def _inputs(raw: dict[str, Any]) -> Iterator[tuple[str, Kind]]:
    """The settings of unlabelled inputs that may hold paths, those that are searched too."""
    lists = [("compatibility.inputs", get(raw, "compatibility.inputs"))]
    searched = get(raw, "tuning.space.inputs")
    for number, inputs in enumerate(searched if isinstance(searched, list) else ()):
        lists.append((f"tuning.space.inputs.{number}", inputs))
    for where, inputs in lists:
        for number in range(len(inputs) if isinstance(inputs, list) else 0):
            yield f"{where}.{number}.path", "data"
            for name, kind in _OF_TASK:
                yield f"{where}.{number}.task.{name}", kind


def get(raw: Any, setting: str) -> Any:
    """A setting by its dotted name, of a list by its number; None where there is none."""
    raw, names = _inside(raw, setting)
    for name in names:
        if isinstance(raw, list):
            raw = raw[int(name)] if name.isdigit() and int(name) < len(raw) else None
        else:
            raw = raw.get(name) if isinstance(raw, dict) else None
    return raw


def put(raw: dict[str, Any], setting: str, value: str) -> None:
    """Set a setting that is there."""
    raw, (*parents, last) = _inside(raw, setting)
    for name in parents:
        raw = raw[int(name)] if isinstance(raw, list) else raw[name]
    raw[last] = value


def entry_name(setting: str, raw: dict[str, Any]) -> str:
    """The name of the fleet's entry that a setting is of; empty where it is common."""
    if not setting.startswith(f"{FLEET}."):
        return ""
    return str(find_entry(raw[FLEET], setting)[0]["name"])


def _inside(raw: Any, setting: str) -> tuple[Any, list[str]]:
    """The settings that a dotted name is of, and its parts there."""
    if setting.startswith(f"{FLEET}.") and isinstance(raw, dict):
        return find_entry(raw[FLEET], setting)
    return raw, setting.split(".")


def elsewhere(value: str) -> bool:
    """Whether a path names the same place on every machine, as far as can be known.

    An absolute path is a promise that the nodes see it (a shared disk, the image), and what
    holds a `${NAME}` is read by them.
    """
    return "${" in value or "://" in value or os.path.isabs(value)


def check_store(value: str, setting: str) -> None:
    """Refuse a place that no node, or no second one, could read.

    Raises:
        UserError: a `${NAME}` that doesn't end, a scheme that nobody knows or that is a machine's
            own, a store without a bucket.
    """
    if "${" in VARIABLE.sub("", value):
        raise UserError(f"{setting} is {value!r}: write a variable as ${{NAME}}")
    scheme, remote, rest = value.partition("://")
    if not remote or "${" in scheme:
        return
    if scheme in _OWN or scheme not in known_implementations or not rest.strip("/"):
        raise UserError(
            f"{setting} is {value!r}, which the nodes can't share: give an object-storage path "
            "such as s3://BUCKET/FOLDER, or an absolute path that all nodes see"
        )


def here(value: str, folder: Path) -> Path | None:
    """What a path means on this machine: beside the experiment first, as `muscle run` reads it."""
    for candidate in (folder / value, Path(value).expanduser()):
        if os.path.exists(candidate):
            return candidate
    return None


def check_place(place: Place, folder: Path) -> None:
    """Refuse models, adapters and data that only this machine has.

    Raises:
        UserError: names the setting, and how the cluster gets to see it.
    """
    value = place.value
    check_store(value, f"setting '{place.setting}'")
    refuse_unfilled(value, f"setting '{place.setting}'")
    if elsewhere(value) or (place.kind == "model" and value.startswith("testbed:")):
        return
    found = here(value, folder)
    if found is None and place.kind == "model" and _HUB_ID.fullmatch(value):
        return
    hub = "a hub id (with a revision), " if place.kind == "model" else ""
    many = "" if place.kind == "data" else "--recursive "
    name = Path(value).expanduser().name
    state = "is on this machine only" if found is not None else "is a path of this machine"
    raise UserError(
        f"setting '{place.setting}' is {value!r}, which {state}: give {hub}an object-storage path "
        f"or an absolute path that all nodes see, e.g. aws s3 cp {many}{value} s3://BUCKET/{name} "
        f"and --set {place.setting}=s3://BUCKET/{name}"
    )


def output_of(raw: dict[str, Any], output: str | None, tune: bool) -> str:
    """Where a submitted run's results go, a place that all nodes see.

    Raises:
        UserError: there is none, or it is to be filled in.
    """
    store = raw.get("storage")
    mend = (
        "give an object-storage path or an absolute path that all nodes see (cluster.yaml and "
        "cluster/kuberay set MUSCLE_STORAGE: --set 'storage=${MUSCLE_STORAGE}')"
    )
    if isinstance(store, str):
        refuse_unfilled(store, "setting 'storage'")
        check_store(store, "setting 'storage'")
        if not elsewhere(store):
            raise UserError(f"setting 'storage' is {store!r}, a path of this machine: {mend}")
    if output is not None:
        refuse_unfilled(output, "--output")
        check_store(output, "--output")
        if not elsewhere(output):
            raise UserError(f"--output is {output!r}, a path of this machine: {mend}")
        return output
    if not isinstance(store, str):
        raise UserError(f"setting 'storage' is missing, and results would stay on a node: {mend}")
    return join(store, "runs", f"{raw.get('name')}{'-tune' if tune else ''}")
