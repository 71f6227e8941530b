"""A run as a Kubernetes manifest: a RayJob, and a ConfigMap with what it reads.

The template is `cluster/kuberay/rayjob-run.yaml` (or -tune), or a user's own copy of it.
"""

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from muscle.errors import UserError
from muscle.experiment import UNFILLED
from muscle.submission.packing import ENTRY, Package

TEMPLATES = Path(__file__).resolve().parents[2] / "cluster" / "kuberay"
LIMIT = 900_000
"""Bytes of a ConfigMap's values: Kubernetes takes 1 MiB in all."""
_NAME = 47  # characters of a RayJob's name: KubeRay puts its own behind it


def rayjob(package: Package, template: Path | None = None) -> str:
    """The manifest, for `kubectl apply -f -`. No secret is in it: pods have them of a Secret.

    Raises:
        UserError: no template, one of another shape, something left to fill in, a package that
            no ConfigMap takes.
    """
    file = template or TEMPLATES / f"rayjob-{package.kind}.yaml"
    job, config, others = _read(file)
    _check_size(package)
    mount = _mount(job, config["metadata"]["name"], file)
    data = {_key(name): content for name, content in package.files.items()}
    words = ["python", f"{mount}/{ENTRY}", *package.arguments]
    name = _name(package, data)
    for reference in _references(job, config["metadata"]["name"]):
        reference["name"] = name
        nested = [n for n in package.files if _key(n) != n]
        if nested:  # a ConfigMap is flat: its volume says which key is which file
            reference["items"] = [{"key": _key(n), "path": n} for n in package.files]
    job["metadata"]["name"] = name
    job["spec"]["entrypoint"] = shlex.join(words)
    config["metadata"]["name"] = name
    config.pop("binaryData", None)
    config["data"] = {}
    for key, content in data.items():
        try:
            config["data"][key] = content.decode()
        except UnicodeDecodeError:
            binary = config.setdefault("binaryData", {})
            binary[key] = base64.b64encode(content).decode()
    # The ConfigMap first: pods that start before it is there wait for nothing else.
    return yaml.dump_all([config, job, *others], Dumper=_Dumper, sort_keys=False)


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    try:
        documents = [d for d in yaml.safe_load_all(file.read_text("utf-8")) if d is not None]
    except OSError as error:
        mend = "name one with --template (cluster/kuberay/rayjob-run.yaml of the sources)"
        raise UserError(f"template {file} can't be read ({error.strerror}): {mend}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"template {file} is not YAML: {reason}") from None
    found: dict[str, list[Any]] = {"RayJob": [], "ConfigMap": []}
    others: list[Any] = []
    for document in documents:
        kind = document.get("kind") if isinstance(document, dict) else None
        found.get(str(kind), others).append(document)
    if len(found["RayJob"]) != 1 or len(found["ConfigMap"]) != 1:
        raise UserError(
            f"template {file} needs one RayJob and one ConfigMap, as cluster/kuberay has"
        )
    for document in documents:
        for where, value in _strings(document, ""):
            if UNFILLED in value:
                raise UserError(
                    f"template {file}: {where} is {value!r}: put your own in the place of "
                    f"{UNFILLED}, or name a copy of the file with --template"
                )
    return found["RayJob"][0], found["ConfigMap"][0], others


def _strings(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """(place, text) of all texts in a document."""
    if isinstance(value, str):
        yield where, value
    parts: list[tuple[Any, Any]] = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list):
        parts = list(enumerate(value))
    for key, part in parts:
        yield from _strings(part, f"{where}.{key}" if where else str(key))


def _references(value: Any, name: str) -> list[dict[str, Any]]:
    """All `configMap: {name: NAME}` of volumes, each object once: aliases share them."""
    found: dict[int, dict[str, Any]] = {}

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            volume = part.get("configMap")
            if isinstance(volume, dict) and volume.get("name") == name:
                found[id(volume)] = volume
            for child in part.values():
                walk(child)
        elif isinstance(part, list):
            for child in part:
                walk(child)

    walk(value)
    return list(found.values())


def _mount(job: Any, name: str, file: Path) -> str:
    """Where pods see the ConfigMap.

    Raises:
        UserError: nowhere.
    """
    paths: set[str] = set()

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            volumes = part.get("volumes") or []
            ours = {v["name"] for v in volumes if _references(v, name)}
            for container in part.get("containers") or [] if ours else []:
                for mounted in container.get("volumeMounts") or []:
                    if mounted["name"] in ours:
                        paths.add(str(mounted["mountPath"]))
            for child in part.values():
                walk(child)
        elif isinstance(part, list):
            for child in part:
                walk(child)

    walk(job)
    if len(paths) != 1:
        raise UserError(
            f"template {file}: its pods must mount the ConfigMap {name!r} at one path, and mount "
            f"it at {', '.join(sorted(paths)) or 'none'}"
        )
    return paths.pop()


def _check_size(package: Package) -> None:
    size = sum(map(len, package.files.values()))
    if size > LIMIT:
        largest = max(package.files, key=lambda name: len(package.files[name]))
        raise UserError(
            f"a ConfigMap holds {LIMIT / 1000:.0f} kB and this is {size / 1000:.0f}, mostly "
            f"{largest}: put it into the image or on object storage and name it there"
        )


def _key(name: str) -> str:
    """A file's key in a ConfigMap, which knows no folders."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name.replace("/", "__"))


def _name(package: Package, data: dict[str, bytes]) -> str:
    """A name that Kubernetes takes; another content has another, as ConfigMaps don't change."""
    content = {key: hashlib.sha256(value).hexdigest() for key, value in sorted(data.items())}
    text = json.dumps([package.arguments, content])
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    room = _NAME - len("muscle-") - len(digest) - 1
    middle = re.sub(r"[^a-z0-9]+", "-", package.name.lower())[:room].strip("-")
    return "-".join(part for part in ("muscle", middle, digest) if part)


class _Dumper(yaml.SafeDumper):
    """Without aliases, files as blocks: for people too."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
