"""Where a reader finds a cache's files: in place, or as checked copies on the local disk.

TMP/muscle-UID/teachers-…/000000.safetensors   a copy, whole as soon as it has its name
TMP/muscle-UID/teachers-…/users/PID-…          who reads here; the last one removes all
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from muscle import storage
from muscle.copies import (
    DamagedError,
    copy_checked,
    gigabytes,
    locked,
    make_room,
    mark,
    remove_unused,
)
from muscle.errors import UserError
from muscle.remote import StoreError
from muscle.teachers.shards import note_of

PREFIX = "teachers-"


@dataclass(frozen=True)
class Content:
    """What a file must hold."""

    sha256: str
    size: int


class Place(Protocol):
    """Gives out local files whose content was checked; may be called from several threads."""

    def get(self, name: str) -> Path:
        """The local path of a file of the cache.

        Raises:
            UserError: it is damaged, or can't be read or copied.
        """
        ...

    def lacking(self) -> int:
        """Bytes that are still to be copied to this machine."""
        ...

    def close(self) -> None:
        """Nothing is read any more."""
        ...


class InPlace:
    """A cache on a local (or mounted) file system: read where it is."""

    def __init__(self, folder: str, files: Mapping[str, Content]):
        self.folder, self.files = folder, files

    def get(self, name: str) -> Path:
        """The file itself; its checksum is computed at every call."""
        path = Path(self.folder) / name
        if not _holds(path, self.files[name]):
            raise damaged(self.folder, name)
        return path

    def lacking(self) -> int:
        """Nothing is copied."""
        return 0

    def close(self) -> None:
        """Nothing to give back."""


class Staged:
    """A cache elsewhere: copies on this machine's disk, shared by all processes on it.

    Raises:
        UserError: the copies don't fit on the disk of the temporary directory.
    """

    def __init__(self, folder: str, files: Mapping[str, Content]):
        self.source, self.files = folder, files
        text = "\n".join([folder, *(f"{n} {c.sha256}" for n, c in sorted(files.items()))])
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = storage.scratch(f"{PREFIX}{digest}")
        with locked(self.folder.with_name("teachers.lock")):
            for other in self.folder.parent.glob(f"{PREFIX}*"):
                if other != self.folder:
                    remove_unused(other)
            check_room([self])
            self.marker = mark(self.folder)

    def lacking(self) -> int:
        """Bytes that are still to be copied."""
        here = {p.name for p in self.folder.glob("*.safetensors")}
        return sum(c.size for name, c in self.files.items() if name not in here)

    def get(self, name: str) -> Path:
        """The local copy; made, by one process of this machine, when it isn't there."""
        target = self.folder / name
        if target.exists():
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / f"{name}.lock"):
            if target.exists():
                return target
            source = storage.join(self.source, name)
            try:
                copy_checked(source, target, lambda path: _holds(path, self.files[name]))
            except DamagedError:
                raise damaged(self.source, name) from None
        return target

    def close(self) -> None:
        """Leave; the last process to leave removes the copies."""
        with locked(self.folder.with_name("teachers.lock")):
            self.marker.unlink(missing_ok=True)
            remove_unused(self.folder)


def check_room(places: Sequence[Place]) -> None:
    """Refuse caches whose copies don't fit on the local disk together.

    Raises:
        UserError: they don't.
    """
    needed = sum(place.lacking() for place in places)
    scratch = storage.scratch("")
    free = make_room(needed)
    if free is not None and needed > free:
        raise UserError(
            f"teacher caches need {gigabytes(needed)} of local disk and {scratch} has "
            f"{gigabytes(free)} free: point TMPDIR to a larger disk, or "
            "--set resources.teachers=online"
        )


def damaged(folder: str, name: str) -> UserError:
    """Remove a damaged file with its note, so that the next run makes just it again."""
    path = storage.join(folder, name)
    try:
        storage.remove(note_of(path))
        storage.remove(path)
    except (OSError, StoreError):
        return UserError(
            f"{path} of the teacher cache is damaged and can't be removed: delete it and "
            f"{note_of(name)}, and run again"
        )
    return UserError(
        f"{path} of the teacher cache is damaged or gone: it is removed; run again and it is "
        "computed again"
    )


def _holds(path: Path, content: Content) -> bool:
    try:
        if path.stat().st_size != content.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == content.sha256
    except FileNotFoundError:
        return False
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())[:200]
        raise UserError(f"{path} can't be read: {reason}") from None
