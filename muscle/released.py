"""release.json: its schema, read and held against the files that it names.

It comes from outside: validated as a whole, and nothing in it is run. `muscle.release` writes it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from muscle import copies, storage
from muscle.errors import UserError
from muscle.settings import Part

SCHEMA: Literal["muscle.release/1"] = "muscle.release/1"
KIND = "muscle.release/"
"""What the schema of any release begins with."""

FILES = ("adapter_config.json", "adapter_model.safetensors", "muscle.json")
"""What an adapter is; the first two always, the last is our note of its base."""

_LIMIT = 16 << 20  # bytes; a release of a thousand checks has a hundredth of it

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Literal["adapter_config.json", "adapter_model.safetensors", "muscle.json"]
Text = Annotated[str, Field(min_length=1, max_length=4096)]


class ReleasedBase(Part):
    """A base model; `fingerprint` is `muscle.models.fingerprint_base`'s."""

    model: Text
    revision: str | None = None
    fingerprint: Text


class AdapterShape(Part):
    """What a server has to know of an adapter: its largest rank, and as in PEFT's config."""

    r: int
    alpha: float
    targets: list[str] | str | None


class ReleasedAdapter(Part):
    """An adapter: where it lies, relative to release.json or absolute, and what it is."""

    path: Text
    files: dict[FileName, Digest]
    fingerprint: Text
    config: AdapterShape


class ReleasedTemplate(Part):
    """A chat template: the fingerprint that predictions are kept under, and its file if it was
    given as one (else it is the tokenizer's own)."""

    fingerprint: Text
    file: Text | None = None
    sha256: Digest | None = None


class Serves(Part):
    """A base with an adapter, as it can be served."""

    base: ReleasedBase
    adapter: ReleasedAdapter
    chat_template: ReleasedTemplate | None = None


class Previous(Serves):
    """What was served before, and the release it was, if it was one."""

    release: Text | None = None
    sha256: Digest | None = None


class Engine(Part):
    """What judged it."""

    backend: str
    dtype: str
    max_length: int | None = None
    software: dict[str, Any]


class Allowed(Part):
    """What was released although it should not have been, and why somebody did."""

    reason: Text
    what: list[str]


class Release(Serves):
    """release.json, see docs/release.md. Numbers are fractions."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: Annotated[Literal["muscle.release/1"], Field(alias="schema")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    tasks: list[str]
    version: Literal["new", "compat"]
    seed: int | None = None
    engine: Engine
    report_sha256: Digest
    gate: dict[str, Any] | None
    waivers: list[dict[str, Any]]
    allowed: Allowed | None = None
    serving: dict[str, Any]
    scores: dict[str, Any]
    previous: Previous


@dataclass(frozen=True)
class Released:
    """A release.json that was read: where it lies and what it holds."""

    path: str
    sha256: str
    record: Release

    def place(self, path: str) -> str:
        """A path of the record as this machine calls it."""
        if storage.is_remote(path) or Path(path).is_absolute():
            return path
        folder = storage.absolute(self.path).rpartition("/")[0] or "/"
        return storage.join(folder, path)

    def version(self) -> dict[str, str | None]:
        """The settings of a version that is this release (see `VersionConfig`).

        Raises:
            UserError: its adapter or chat template isn't what was released.
        """
        record = self.record
        adapter = self.place(record.adapter.path)
        self._check_adapter(adapter, record.adapter)
        template = record.chat_template
        file = None if template is None or template.file is None else self.place(template.file)
        if template is not None and file is not None:
            self._check(file, "its chat template", template.sha256)
        return {
            "model": record.base.model,
            "revision": record.base.revision,
            "adapter": adapter,
            "chat_template": file,
        }

    def _check_adapter(self, path: str, adapter: ReleasedAdapter) -> None:
        for name, digest in sorted(adapter.files.items()):
            self._check(storage.join(path, name), f"its adapter's {name}", digest)

    def _check(self, file: str, what: str, digest: str | None) -> None:
        try:
            found = storage.sha256(file)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise UserError(
                f"release {self.path}: {what} is not at {file}: put it there, or release again"
            ) from None
        if found != digest:
            raise UserError(
                f"release {self.path}: {what} at {file} is not what was released (sha256 "
                f"{found[:12]}, not {str(digest)[:12]}): bring back the released one"
            )


def open_release(path: str) -> Released:
    """Read a release.json.

    Args:
        path: the file or the folder it is in, local or on a store.

    Raises:
        UserError: it isn't there, isn't a release, or is one of a newer muscle.
    """
    fs, inside = storage.filesystem(path)
    if not path:
        raise UserError("a release's path is empty: name a release.json")
    if fs.isdir(inside):
        path, inside = storage.join(path, "release.json"), storage.join(inside, "release.json")
    try:
        if fs.size(inside) > _LIMIT:
            raise UserError(f"release {path} is larger than any release.json: name one")
        data = bytes(fs.cat_file(inside))
    except FileNotFoundError:
        raise UserError(
            f"release {path} does not exist: name the release.json of `muscle release`"
        ) from None
    return Released(path, hashlib.sha256(data).hexdigest(), _parsed(data, path))


def _parsed(data: bytes, path: str) -> Release:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise UserError(f"release {path} is not JSON: name a release.json") from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if not isinstance(schema, str) or not schema.startswith(KIND):
        raise UserError(f"release {path} is no release of muscle: name a release.json")
    if schema != SCHEMA:
        raise UserError(f"release {path} is {schema[:40]}, of another muscle: update muscle")
    try:
        record = Release.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"release {path}: '{where}': {first['msg']}: release again") from None
    for one in (record.adapter, record.previous.adapter):
        if not {*FILES[:2]} <= {*one.files}:
            raise UserError(f"release {path}: an adapter's hashes are missing: release again")
    for template in (record.chat_template, record.previous.chat_template):
        if template is not None and (template.file is None) != (template.sha256 is None):
            raise UserError(f"release {path}: a chat template's hash is missing: release again")
    return record


def with_release(given: Mapping[str, Any], where: str, folder: Path) -> dict[str, Any]:
    """A version's settings with what its `release` stands for.

    Args:
        given: the settings as they stand in a file.
        where: their name, "old" or "new".
        folder: of the file; a relative release is looked for there first.

    Raises:
        UserError: whatever is wrong with the release, or settings beside it that differ.
    """
    path = given["release"]
    if not isinstance(path, str):
        raise UserError(f"setting '{where}.release' is {path!r:.60}: name a release.json")
    if path and not storage.is_remote(path):
        beside = folder / path
        path = str(beside.resolve()) if beside.exists() else storage.absolute(path)
    try:
        stands = open_release(path).version()
    except UserError as error:
        raise UserError(f"setting '{where}.release': {error}") from None
    for name, value in given.items():
        # A run's own experiment.json names both, and they agree.
        if name != "release" and value is not None and value != stands.get(name):
            raise UserError(
                f"setting '{where}.{name}' is given beside '{where}.release', which brings model, "
                "revision, adapter and chat template: leave one of them out"
            )
    return {**stands, "release": path}


def with_releases(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """An experiment's settings with the releases of `old` and `new` resolved.

    Raises:
        UserError: as `with_release`.
    """
    found = dict(raw)
    for name in ("old", "new"):
        given = found.get(name)
        if isinstance(given, dict) and given.get("release") is not None:
            found[name] = with_release(given, name, folder)
    return found


def check_base(path: str, fingerprint: str) -> None:
    """Refuse a base that isn't the released one.

    Raises:
        UserError: it is another, or the release can't be read.
    """
    base = open_release(path).record.base
    if base.fingerprint != fingerprint:
        raise UserError(
            f"release {path} is for the base {base.model!r} with fingerprint "
            f"{base.fingerprint[:12]}, and there is now {fingerprint[:12]}: bring back the "
            "released base"
        )


def adapter_files(folder: str) -> dict[str, str]:
    """What a released adapter's files hold, by name: their sha256.

    Args:
        folder: local or on a store.

    Raises:
        UserError: one that must be there isn't.
    """
    local = copies.fetch(folder)
    found = {}
    for name in FILES:
        file = storage.join(local, name)
        if storage.exists(file):
            found[name] = storage.sha256(file)
        elif name != FILES[2]:
            raise UserError(f"adapter {folder!r} has no {name}: name a PEFT adapter's folder")
    return found
