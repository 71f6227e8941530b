"""Files on any fsspec path: local, NFS, `s3://`, `gs://`."""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fsspec import get_filesystem_class
from fsspec.asyn import AsyncFileSystem
from fsspec.core import split_protocol, url_to_fs

from muscle.errors import UserError
from muscle.remote import FULL, Guarded, told_of

_GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_FLAT = ("memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
"""Stores where a folder is no more than the beginning of names."""


def is_remote(path: str) -> bool:
    """Whether a path names a store other than the local file system."""
    return "://" in path and not path.startswith("file://")


def absolute(path: str) -> str:
    """The path, absolute where it is local: workers run in other directories."""
    return (
        path if is_remote(path) else str(Path(path.removeprefix("file://")).expanduser().resolve())
    )


def join(*parts: str) -> str:
    """Join path parts with '/', on every store; empty ones are left out, which would be names."""
    return "/".join([parts[0].rstrip("/"), *(p.strip("/") for p in parts[1:] if p.strip("/"))])


def filesystem(path: str) -> tuple[Any, str]:
    """The file system of a path and the path inside it.

    That of a store raises `StoreError` for whatever goes wrong, and FileNotFoundError or
    FileExistsError.

    Raises:
        UserError: a store whose fsspec driver isn't installed.
    """
    if not is_remote(path):
        return url_to_fs(path)
    protocol = split_protocol(path)[0]
    try:
        # What other machines write must be seen: a listing is never kept.
        online = issubclass(get_filesystem_class(protocol), AsyncFileSystem)
        fs, inside = url_to_fs(path, **({"use_listings_cache": False} if online else {}))
    except (ImportError, ValueError) as error:
        extra = ": pip install 'muscle-llm[s3]'" if protocol in ("s3", "s3a") else ""
        raise UserError(f"storage {path!r} can't be opened: {error}{extra}") from None
    return Guarded(fs, path), inside


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    fs, inside = filesystem(path)
    return bool(fs.exists(inside))


def check_folder(setting: str, path: str) -> None:
    """Refuse a path that is a file where a folder is wanted.

    Raises:
        UserError: it is one; `setting` is what the user calls it.
    """
    fs, inside = filesystem(path)
    if fs.isfile(inside):
        raise UserError(f"{setting} is {path!r}, which is a file: name a folder")


def check_folders(output: str, store: str | None) -> None:
    """`check_folder` of what `--output` and, if given, the setting `storage` name.

    Raises:
        UserError: one of them is a file.
    """
    check_folder("--output", output)
    if store is not None:
        check_folder("storage", store)


def read_json(path: str) -> Any | None:
    """A JSON file's value; None when it is missing or not JSON (half-written)."""
    fs, inside = filesystem(path)
    try:
        return json.loads(fs.cat_file(inside))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def write_json(path: str, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """A value as JSON, the same bytes for equal values."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"


def write_bytes(path: str, data: bytes) -> None:
    """Write a file at once: a temporary file and a rename locally, one put elsewhere.

    Raises:
        UserError: the disk is full, or the place can't be written.
    """
    fs, inside = filesystem(path)
    try:
        if is_remote(path):
            fs.pipe_file(inside, data)
            return
        Path(inside).parent.mkdir(parents=True, exist_ok=True)
        temporary = f"{inside}.{uuid.uuid4().hex}.part"
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, inside)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(path, error) from None


def create_exclusive(path: str, data: bytes) -> bool:
    """Create a file only if it isn't there; False if it is. It appears whole.

    On S3 and its like by a conditional put; a store that can't do that may let the later of
    two writers, who both saw no file, overwrite the other's.

    Raises:
        UserError: the disk is full, or the place can't be written.
    """
    fs, inside = filesystem(path)
    if is_remote(path):
        try:
            fs.pipe_file(inside, data, mode="create")
        except FileExistsError:
            return False
        except (TypeError, NotImplementedError, ValueError):
            if fs.exists(inside):
                return False
            fs.pipe_file(inside, data)
        return True
    temporary = f"{inside}.{uuid.uuid4().hex}.part"
    try:
        Path(inside).parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
            try:
                os.link(temporary, inside)
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                with open(inside, "xb") as file:
                    file.write(data)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise storage_error(path, error) from None
    return True


def remove(path: str) -> None:
    """Remove a file or folder if it is there."""
    fs, inside = filesystem(path)
    with contextlib.suppress(FileNotFoundError):  # another process was first
        if fs.exists(inside):
            fs.rm(inside, recursive=True)


def size(path: str) -> int | None:
    """A file's size in bytes; None where there is no such file."""
    fs, inside = filesystem(path)
    try:
        return int(fs.size(inside))
    except (FileNotFoundError, NotADirectoryError):
        return None


def sizes(folder: str) -> dict[str, int]:
    """The files under a folder, by relative name, with their bytes; none if it isn't there.

    Listed anew: what other machines wrote a moment ago is among them.
    """
    fs, inside = filesystem(folder)
    fs.invalidate_cache()
    root = inside.rstrip("/") + "/"
    found = fs.find(inside, detail=True)
    return {
        str(path).split(root, 1)[1]: int(info["size"])
        for path, info in sorted(found.items())
        if root in str(path) and not str(path).endswith("/")
    }


def read_all(folder: str, names: Sequence[str]) -> dict[str, bytes]:
    """The content of many small files of a folder, side by side where the store can;
    those that aren't there are left out."""
    fs, inside = filesystem(folder)
    # Not `cat`, which takes a folder with brackets in its name for a pattern.
    found = fs.cat_ranges([join(inside, name) for name in names], None, None, on_error="return")
    for data in found:
        if isinstance(data, Exception) and not isinstance(data, _GONE):
            raise told_of(folder, data) if is_remote(folder) else data
    return {name: data for name, data in zip(names, found, strict=True) if isinstance(data, bytes)}


def disk_free(path: str) -> int | None:
    """Bytes free on the disk where a path is or would be; None for a store that has no disk."""
    if is_remote(path):
        return None
    place = Path(absolute(path))
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def scratch(name: str) -> Path:
    """This user's place for copies under the temporary directory; its parent is made, for no
    one else's eyes.

    Raises:
        UserError: it is a link or another user's, who could swap what is read from it.
    """
    root = Path(tempfile.gettempdir()) / f"muscle-{os.getuid()}"
    try:
        with contextlib.suppress(FileExistsError):
            root.mkdir(parents=True, mode=0o700)
        found = root.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise UserError(
                f"{root} is not a folder of yours, so copies there could be swapped: remove it, "
                "or point TMPDIR to a directory of your own"
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            root.chmod(0o700)
    except OSError as error:
        raise storage_error(str(root), error) from None
    return root / name


def upload(folder: Path, target: str) -> dict[str, dict[str, Any]]:
    """Copy a local folder's files under `target`; returns {relative name: {sha256, size}}.

    Raises:
        UserError: the disk is full, or the place can't be written.
    """
    fs, inside = filesystem(target)
    # Asked for a folder, s3fs would make a missing bucket.
    flat = is_remote(target) and split_protocol(target)[0] in _FLAT
    files = {}
    try:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = file.relative_to(folder).as_posix()
            destination = join(inside, name)
            if not flat:
                fs.makedirs(destination.rsplit("/", 1)[0], exist_ok=True)
            fs.put_file(str(file), destination)
            files[name] = {"sha256": sha256(str(file)), "size": file.stat().st_size}
    except OSError as error:
        raise storage_error(target, error) from None
    return files


def download(path: str, target: Path) -> None:
    """Copy one file to a local place."""
    fs, inside = filesystem(path)
    fs.get_file(inside, str(target))


def sha256(path: str) -> str:
    """The hex digest of a file's content."""
    digest = hashlib.sha256()
    fs, inside = filesystem(path)
    with fs.open(inside, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_full(error: OSError) -> bool:
    """Whether a write failed because its disk, or the user's share of it, is full."""
    return error.errno in FULL


def storage_error(path: str, error: OSError) -> UserError:
    """A one-line error for a failed write, naming a full disk as such."""
    if is_full(error):
        return UserError(f"no space left while writing {path}: free some and run again, it resumes")
    reason = " ".join(str(error.strerror or error).split())[:200]
    return UserError(f"{path} can't be written: {reason}")
