"""Artifacts: what a step leaves, found again by a key of all that changes its numbers.

    ROOT/<step>/<key>/<attempt>/…       an attempt's files
    ROOT/<step>/<key>/manifest.json     put last: the winning attempt and its checksums
    ROOT/<step>/<key>/lease.json        the driver that works on it now

Nothing is ever renamed, so this holds on object stores too. An artifact whose files
are missing or altered doesn't count: its step runs again.
"""

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil

from muscle import storage
from muscle.errors import UserError

LEASE_SECONDS = 120.0
"""A lease that wasn't renewed for so long is free to take."""

RETRY_SECONDS = 5.0
"""How soon a renewal that failed is tried again."""

SHARED = "attempt-shared"

CHECKED_BY_READER = "checked by its reader"
"""A manifest's mark on files that are too big to read whenever an artifact is looked up."""


def key_of(inputs: Mapping[str, Any]) -> str:
    """The key of an artifact: a hash of a JSON value of everything that changes its numbers."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder, file names, and what the step noted about it."""

    step: str
    key: str
    path: str
    notes: dict[str, Any]

    def file(self, name: str) -> str:
        """The path of one of its files."""
        return storage.join(self.path, name)


class Store:
    """All artifacts under one root (any fsspec path)."""

    def __init__(self, root: str):
        self.root = storage.absolute(root)
        self._verified: dict[tuple[str, str], Artifact] = {}

    def folder(self, step: str, key: str) -> str:
        """Where an artifact of this key lives."""
        return storage.join(self.root, step, key)

    def find(self, step: str, key: str) -> Artifact | None:
        """The artifact, if it is whole: its manifest is there and every file matches it."""
        if (step, key) in self._verified:
            return self._verified[step, key]
        folder = self.folder(step, key)
        manifest = storage.read_json(storage.join(folder, "manifest.json"))
        if not isinstance(manifest, dict) or manifest.get("key") != key:
            return None
        path = storage.join(folder, str(manifest.get("attempt")))
        if not _intact(path, manifest["files"]):
            return None
        artifact = Artifact(step, key, path, dict(manifest.get("notes", {})))
        self._verified[step, key] = artifact
        return artifact

    def look_again(self, step: str, key: str) -> Artifact | None:
        """`find`, not trusting what was found before: a reader may have removed a bad file."""
        self._verified.pop((step, key), None)
        return self.find(step, key)

    def forget(self, step: str, key: str) -> None:
        """Let an artifact be made again: without its manifest it is none."""
        self._verified.pop((step, key), None)
        storage.remove(storage.join(self.folder(step, key), "manifest.json"))

    def new_attempt(self, step: str, key: str) -> str:
        """A fresh folder for an attempt at this artifact."""
        return storage.join(self.folder(step, key), f"attempt-{uuid.uuid4().hex[:8]}")

    def shared_attempt(self, step: str, key: str) -> str:
        """The one attempt of an artifact that many workers fill bit by bit.

        Who starts again goes on in it, so its step must know which of its files are whole.
        """
        return storage.join(self.folder(step, key), SHARED)

    def commit(
        self,
        step: str,
        key: str,
        attempt: str,
        inputs: Mapping[str, Any],
        notes: Mapping[str, Any],
        known: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Artifact:
        """Write the manifest of an attempt whose files are all in place, and drop the others.

        Where another driver was first, its artifact stands and this attempt is dropped.

        `known` has {sha256, size} of files, by relative name, that aren't read again here and
        that `find` checks by size alone: whoever reads a big file checks it then.

        Raises:
            UserError: a known file isn't there, or has another size.
        """
        known = known or {}
        sizes = storage.sizes(attempt)
        files: dict[str, dict[str, Any]] = {}
        for name in sorted({*sizes, *known}):
            if name not in known:
                digest = storage.sha256(storage.join(attempt, name))
                files[name] = {"sha256": digest, "size": sizes[name]}
                continue
            files[name] = {"sha256": known[name]["sha256"], "size": known[name]["size"]}
            files[name]["content"] = CHECKED_BY_READER
            if sizes.get(name) != known[name]["size"]:
                raise UserError(
                    f"{storage.join(attempt, name)} isn't what was written "
                    f"({sizes.get(name, 'no')} bytes of {known[name]['size']}): run again"
                )
        manifest = {
            "step": step,
            "key": key,
            "attempt": attempt.rsplit("/", 1)[1],
            "files": files,
            "inputs": dict(inputs),
            "notes": dict(notes),
        }
        first = self._put_manifest(step, key, attempt, manifest)
        if first is not None:
            return first
        self._remove_losers(step, key, keep=attempt.rsplit("/", 1)[1])
        artifact = Artifact(step, key, attempt, dict(notes))
        self._verified[step, key] = artifact
        return artifact

    def _put_manifest(
        self, step: str, key: str, attempt: str, manifest: Mapping[str, Any]
    ) -> Artifact | None:
        """Name the winner; returns the artifact of who was first, if it is whole."""
        path = storage.join(self.folder(step, key), "manifest.json")
        if storage.create_exclusive(path, storage.json_bytes(manifest)):
            return None
        first = self.look_again(step, key)
        if first is not None and first.path != attempt:
            storage.remove(attempt)
            return first
        storage.write_json(path, manifest)  # what it named is gone or altered
        return None

    def _remove_losers(self, step: str, key: str, keep: str) -> None:
        fs, inside = storage.filesystem(self.folder(step, key))
        for path in fs.ls(inside, detail=False):
            name = str(path).rstrip("/").rsplit("/", 1)[1]
            # Workers may still be filling the shared one, and its files are worth keeping.
            if name.startswith("attempt-") and name not in (keep, SHARED):
                fs.rm(path, recursive=True)

    @contextmanager
    def lease(
        self, step: str, key: str, on_wait: Callable[[str], None] = lambda holder: None
    ) -> Iterator[None]:
        """Hold an artifact's lease: two drivers never work on one artifact.

        Waits while another live driver holds it (telling `on_wait` who, once). A lease
        of a dead process of this machine, or one that wasn't renewed for
        `LEASE_SECONDS`, is taken over.
        """
        path = storage.join(self.folder(step, key), "lease.json")
        me = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        told = False
        while not _take(path, me):
            if not told:
                holder = storage.read_json(path) or {}
                on_wait(f"{holder.get('host', '?')}, process {holder.get('pid', '?')}")
                told = True
            time.sleep(0.5)
        stop = threading.Event()
        renewing = threading.Thread(target=_renew, args=(path, me, stop), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            stop.set()
            renewing.join()
            with suppress(Exception):  # it ends by itself, and what ended the work matters more
                if _is_mine(path, me):
                    storage.remove(path)


def open_store(setting: str | None, output: str) -> Store:
    """The artifacts of a run or an evaluation: its `storage`, or a folder of the output."""
    return Store(setting or storage.join(storage.absolute(output), "artifacts"))


def _take(path: str, me: dict[str, Any]) -> bool:
    """Create the lease, or replace a dead one."""
    if storage.create_exclusive(path, _lease_bytes(me)):
        return True
    holder = storage.read_json(path)
    if holder is None:
        # Gone by now, or half-written by a driver that died: a second look decides.
        time.sleep(0.2)
        holder = storage.read_json(path)
        if holder is None and storage.exists(path):
            storage.remove(path)
        return False
    if not _dead(holder) or storage.read_json(path) != holder:
        return False
    storage.remove(path)
    if not storage.create_exclusive(path, _lease_bytes(me)):
        return False
    # Two drivers may both have found the old lease dead: the one whose lease stands has it.
    time.sleep(0.2)
    return _is_mine(path, me)


def _is_mine(path: str, me: Mapping[str, Any]) -> bool:
    return bool((storage.read_json(path) or {}).get("token") == me["token"])


def _lease_bytes(me: dict[str, Any]) -> bytes:
    return json.dumps({**me, "renewed": time.time()}).encode()


def _dead(holder: dict[str, Any]) -> bool:
    if time.time() - float(holder.get("renewed", 0)) > LEASE_SECONDS:
        return True
    if holder.get("host") != socket.gethostname():
        return False
    pid = int(holder.get("pid", -1))
    return pid != os.getpid() and not psutil.pid_exists(pid)


def _renew(path: str, me: dict[str, Any], stop: threading.Event) -> None:
    """Keep a lease alive until `stop`, through failures of the store; one that another driver
    has taken over isn't taken back."""
    pause = LEASE_SECONDS / 4
    while not stop.wait(pause):
        try:
            if storage.exists(path) and not _is_mine(path, me):
                return
            storage.write_bytes(path, _lease_bytes(me))
            pause = LEASE_SECONDS / 4
        except Exception:
            pause = min(RETRY_SECONDS, LEASE_SECONDS / 4)


def _intact(folder: str, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether all files of a manifest are there, with their sizes and contents."""
    sizes = storage.sizes(folder)
    if any(sizes.get(name) != file["size"] for name, file in files.items()):
        return False
    try:
        return all(
            storage.sha256(storage.join(folder, name)) == file["sha256"]
            for name, file in files.items()
            if file.get("content") != CHECKED_BY_READER
        )
    except OSError:
        return False
