"""Files on any fsspec path: local, NFS, `s3://`, `gs://`."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from muscle.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT}


def is_remote(path: str) -> bool:
    """Whether a path names a store other than the local file system."""
    return "://" in path and not path.startswith("file://")


def absolute(path: str) -> str:
    """The path, absolute where it is local: workers run in other directories."""
    return (
        path if is_remote(path) else str(Path(path.removeprefix("file://")).expanduser().resolve())
    )


def join(*parts: str) -> str:
    """Join path parts with '/', on every store."""
    return "/".join([parts[0].rstrip("/"), *(p.strip("/") for p in parts[1:])])


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path and the path inside it.

    Raises:
        UserError: a store whose fsspec driver isn't installed.
    """
    try:
        fs, inside = url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise UserError(f"storage {path!r} can't be opened: {error}") from None
    return fs, inside


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
    write_bytes(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n")


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
    """Create a file only if it isn't there; False if it is. Stores that can't do that overwrite."""
    fs, inside = filesystem(path)
    if not is_remote(path):
        try:
            Path(inside).parent.mkdir(parents=True, exist_ok=True)
            with open(inside, "xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        except OSError as error:
            raise storage_error(path, error) from None
        return True
    try:
        fs.pipe_file(inside, data, mode="create")
    except FileExistsError:
        return False
    except (TypeError, NotImplementedError, ValueError):
        if fs.exists(inside):
            return False
        fs.pipe_file(inside, data)
    return True


def remove(path: str) -> None:
    """Remove a file or folder if it is there."""
    fs, inside = filesystem(path)
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
        if root in str(path)
    }


def read_all(folder: str, names: Sequence[str]) -> dict[str, bytes]:
    """The content of many small files of a folder, side by side where the store can;
    those that aren't there are left out."""
    fs, inside = filesystem(folder)
    # Not `cat`, which takes a folder with brackets in its name for a pattern.
    found = fs.cat_ranges([join(inside, name) for name in names], None, None, on_error="return")
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
    """This user's place for copies under the temporary directory; its parent is made."""
    target = Path(tempfile.gettempdir()) / f"muscle-{os.getuid()}" / name
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return target


def upload(folder: Path, target: str) -> dict[str, dict[str, Any]]:
    """Copy a local folder's files under `target`; returns {relative name: {sha256, size}}.

    Raises:
        UserError: the disk is full, or the place can't be written.
    """
    fs, inside = filesystem(target)
    files = {}
    try:
        fs.makedirs(inside, exist_ok=True)
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = file.relative_to(folder).as_posix()
            destination = join(inside, name)
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


def fetch(path: str) -> str:
    """A local path with the same content: `path` itself, or a copy of a remote folder or file.

    Copies are kept under the temporary directory by path: for things that never change
    under their path, as the attempts of artifacts are.
    """
    if not is_remote(path):
        return absolute(path)
    fs, inside = filesystem(path)
    digest = hashlib.sha256(path.encode()).hexdigest()[:16]
    target = scratch(digest)
    if not target.exists():
        partial = target.with_name(f"{digest}.{uuid.uuid4().hex}.part")
        fs.get(inside, str(partial), recursive=True)
        try:
            os.replace(partial, target)
        except OSError:  # another process was first
            shutil.rmtree(partial, ignore_errors=True)
    return str(target)


def sha256(path: str) -> str:
    """The hex digest of a file's content."""
    digest = hashlib.sha256()
    with fsspec.open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_full(error: OSError) -> bool:
    """Whether a write failed because its disk, or the user's share of it, is full."""
    return error.errno in _FULL


def storage_error(path: str, error: OSError) -> UserError:
    """A one-line error for a failed write, naming a full disk as such."""
    if is_full(error):
        return UserError(f"no space left while writing {path}: free some and run again, it resumes")
    reason = " ".join(str(error.strerror or error).split())[:200]
    return UserError(f"{path} can't be written: {reason}")
