"""Copies on this machine's disk of what lies on a store: fetched once, for all processes here.

    TMP/muscle-UID/copies-<digest>/files/…        the copies, each whole as soon as it has its name
    TMP/muscle-UID/copies-<digest>/listing.json   what they must be
    TMP/muscle-UID/copies-<digest>/users/PID-…    who reads here

A digest stands for a path and for what was there when it was listed, so what changes on the
store is another copy. Copies that no living process reads go when their room is needed.
"""

import datetime
import fcntl
import hashlib
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from muscle import storage
from muscle.errors import UserError
from muscle.remote import StoreError

ATTEMPTS = 3
"""How often a copy that fails or arrives altered is made again."""

THREADS = 4
"""Files that are copied side by side."""

PREFIX = "copies-"
_PIN = re.compile(r"(.+)#([0-9a-f]{20})")
_SUMS = ("md5Hash", "content_md5", "ETag", "etag", "crc32c")
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")
_using: set[Path] = set()


@dataclass(frozen=True)
class File:
    """A file on a store as it is now: with another content it has another tag, a checksum or
    else a time."""

    size: int
    tag: str


@dataclass(frozen=True)
class Listing:
    """What a path of a store holds now; `single`: the path is a file, not a folder."""

    path: str
    single: bool
    files: Mapping[str, File]  # by relative name

    def only(self, wanted: Callable[[str], bool]) -> "Listing":
        """The files of these names."""
        kept = {name: file for name, file in self.files.items() if wanted(name)}
        return Listing(self.path, self.single, kept)

    @property
    def revision(self) -> str:
        """A hash of all names, sizes and tags."""
        whole = hashlib.sha256()
        for name, file in sorted(self.files.items()):
            whole.update(f"{name}\0{file.size}\0{file.tag}\0".encode())
        return whole.hexdigest()[:20]


def list_files(path: str) -> Listing:
    """The file at `path`, or all files under it.

    Raises:
        UserError: the store can't be read.
        FileNotFoundError: nothing is there.
    """
    fs, inside = storage.filesystem(path)
    fs.invalidate_cache()
    root = inside.strip("/")
    found = {
        str(name).strip("/"): info
        for name, info in fs.find(inside, detail=True).items()
        if not str(name).endswith("/")  # an empty object that stands for a folder
    }
    if root in found:
        return Listing(path, True, {root.rsplit("/", 1)[1]: _file(found[root])})
    files = {name.removeprefix(f"{root}/"): _file(info) for name, info in sorted(found.items())}
    if not files:
        raise FileNotFoundError(path)
    return Listing(path, False, files)


def _file(info: Mapping[str, Any]) -> File:
    for key in (*_SUMS, *_TIMES):
        value = info.get(key)
        if value:
            if isinstance(value, datetime.datetime):
                value = value.timestamp()
            return File(int(info["size"]), str(value).strip('"'))
    return File(int(info["size"]), "")


def pin(path: str) -> str:
    """A remote path with what is there now, for other machines to fetch that or nothing."""
    if not storage.is_remote(path) or _PIN.fullmatch(path):
        return path
    return f"{path}#{list_files(path).revision}"


def unpinned(path: str) -> tuple[str, str | None]:
    """A path that may be pinned, and its revision if it is."""
    found = _PIN.fullmatch(path) if storage.is_remote(path) else None
    return (path, None) if found is None else (found.group(1), found.group(2))


def fetch(path: str, unchanging: bool = False) -> str:
    """A local path with the same content: `path` itself, or this machine's copy of a remote
    folder or file.

    Args:
        path: may be pinned.
        unchanging: what is under this path never changes, so a copy needn't be compared with it.

    Raises:
        UserError: there is nothing, it can't be read, isn't what it was pinned to, or doesn't
            fit on the disk.
    """
    if not storage.is_remote(path):
        return storage.absolute(path)
    source, revision = unpinned(path)
    try:
        return str(fetch_listed(source, "unchanging" if unchanging else revision))
    except FileNotFoundError:
        raise UserError(f"{source} does not exist, or holds no files") from None


def _any(name: str) -> bool:
    return True


def fetch_listed(
    path: str,
    revision: str | None,
    wanted: Callable[[str], bool] = _any,
    among: Callable[[str], bool] = _any,
) -> Path:
    """This machine's copy of those files of a remote path that are wanted, made if need be.

    Several calls may want other files of the same revision. A copy that is there is found
    without asking the store.

    Args:
        revision: what must be there (`Listing.revision`), "unchanging", or None: whatever is.
        among: the files that a revision is of.

    Raises:
        UserError: as `fetch`.
        FileNotFoundError: nothing is there.
    """
    found = None if revision is None else _remembered(path, revision)
    if found is None:
        found = list_files(path).only(among)
        if revision not in (None, "unchanging", found.revision):
            raise UserError(
                f"{path} holds other files than this run began with: put them back or run again"
            )
    folder = _folder(path, revision or found.revision)
    _use(folder)
    with locked(folder / "lock"):
        if not (folder / "listing.json").exists():
            _remember(folder, found)
        _complete(folder / "files", found.only(wanted))
    return folder / "files" / next(iter(found.files)) if found.single else folder / "files"


def _complete(folder: Path, listing: Listing) -> None:
    """Copy what lacks; the copy's lock is held."""
    lacking = {
        name: file
        for name, file in listing.files.items()
        if not _has_size(folder / name, file.size)
    }
    if not lacking:
        return
    needed = sum(file.size for file in lacking.values())
    free = make_room(needed)
    if free is not None and needed > free:
        raise UserError(
            f"{listing.path} takes {gigabytes(needed)} of local disk and {storage.scratch('')} has "
            f"{gigabytes(free)} free: point TMPDIR to a larger disk"
        )
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(partial(_copy, listing, folder), lacking):
            pass
    now = list_files(listing.path).files
    for name, file in lacking.items():
        if now.get(name) != file:
            (folder / name).unlink(missing_ok=True)
            raise UserError(f"{listing.path}: {name} changed while it was copied: run again")


def _copy(listing: Listing, folder: Path, name: str) -> None:
    source = listing.path if listing.single else storage.join(listing.path, name)
    size = listing.files[name].size
    copy_checked(source, folder / name, lambda path: _has_size(path, size))


def copy_checked(source: str, target: Path, whole: Callable[[Path], bool]) -> None:
    """Copy a file of a store, again if it fails or arrives altered; it appears whole.

    Raises:
        UserError: it can't be read, the local disk is full, or `DamagedError`: it never is whole.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(f"{target.name}.part")
    try:
        for attempt in range(ATTEMPTS):
            try:
                storage.download(source, half)
                if whole(half):
                    half.replace(target)
                    return
            except FileNotFoundError:
                break
            except (OSError, StoreError) as error:
                if isinstance(error, OSError) and storage.is_full(error):
                    raise storage.storage_error(str(target), error) from None
                if attempt == ATTEMPTS - 1:
                    raise _unreadable(source, error) from error
                time.sleep(0.1 * 4**attempt)
    finally:
        half.unlink(missing_ok=True)
    raise DamagedError(f"{source} is gone, or never arrives whole: run again")


class DamagedError(UserError):
    """What a store gives isn't what it should be."""


def _unreadable(source: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{source} can't be read: {reason}")


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


# --- who reads what -------------------------------------------------------------------


def make_room(needed: int) -> int | None:
    """Remove copies that no living process reads, those that lie longest first, until so many
    bytes are free; returns how many are."""
    scratch = storage.scratch("")
    free = storage.disk_free(str(scratch))
    if free is None or free >= needed:
        return free
    with locked(scratch / "copies.lock"):
        for folder in sorted(scratch.glob(f"{PREFIX}*"), key=lambda f: f.stat().st_mtime):
            remove_unused(folder)
            free = storage.disk_free(str(scratch)) or 0
            if free >= needed:
                break
    return free


def _use(folder: Path) -> None:
    """Leave this process's marker, so that the copy stays while it lives."""
    if folder in _using and folder.exists():
        return
    with locked(storage.scratch("copies.lock")):
        mark(folder)
    _using.add(folder)


def mark(folder: Path) -> Path:
    """A marker of this process among a folder's users; the caller holds the lock that
    `remove_unused` is called under."""
    me = psutil.Process()
    name = f"{me.pid}-{int(me.create_time() * 1000)}-{uuid.uuid4().hex[:8]}"
    marker = folder / "users" / name
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    return marker


def remove_unused(folder: Path) -> None:
    """Remove a folder of copies that no living process reads; its lock is held."""
    if not any(_alive(marker) for marker in folder.glob("users/*")):
        shutil.rmtree(folder, ignore_errors=True)


def _alive(marker: Path) -> bool:
    """Whether the process that left a marker still runs: a process id alone comes again."""
    pid, began, _ = marker.name.split("-")
    try:
        return abs(psutil.Process(int(pid)).create_time() * 1000 - int(began)) < 1000
    except psutil.Error:
        return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock among all processes of this machine; it goes with its process."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def gigabytes(size: int) -> str:
    """A size for messages."""
    return f"{size / 1e9:.3g} GB"


# --- what a copy must be --------------------------------------------------------------


def _folder(path: str, revision: str) -> Path:
    digest = hashlib.sha256(f"{path}\0{revision}".encode()).hexdigest()[:16]
    return storage.scratch(f"{PREFIX}{digest}")


def _remember(folder: Path, listing: Listing) -> None:
    files = {name: asdict(file) for name, file in listing.files.items()}
    value = {"path": listing.path, "single": listing.single, "files": files}
    storage.write_json(str(folder / "listing.json"), value)


def _remembered(path: str, revision: str) -> Listing | None:
    value = storage.read_json(str(_folder(path, revision) / "listing.json"))
    if value is None:
        return None
    files = {name: File(**file) for name, file in value["files"].items()}
    return Listing(path, value["single"], files)
