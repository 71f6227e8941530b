"""Files of predictions: which there are, of which kind, and what is wrong with them in one line.

A file's kind is told by its content; its name only says the task and, for a sample log, when
it was written.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Literal, cast

from muscle.errors import UserError
from muscle.storage import exists, filesystem, join
from muscle.tables import reason_line

Kind = Literal["parquet", "sample log", "json lines", "csv"]

SAMPLES = re.compile(r"samples_(.+)_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.jsonl(?:\.gz)?")
"""What lm-evaluation-harness calls a sample log: the task, and when it was written."""

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".csv", ".jsonl.gz", ".ndjson.gz", ".csv.gz")
# What every row of a sample log has, in all versions of the harness since 0.4.0.
_LOGGED = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps"}


@dataclass(frozen=True, slots=True)
class Source:
    """A file with predictions.

    stem   the file's name without its suffix
    task   the task, where the name of a sample log says it
    stamp  when a sample log was written, as its name says it; else ""
    """

    path: str
    kind: Kind
    stem: str
    task: str | None = None
    stamp: str = ""


def find_sources(path: str) -> list[Source]:
    """The file at `path`, or those of the folder, in the order of their names.

    Of a folder that `--output_path` of lm-evaluation-harness left, those of the one model
    in it.

    Raises:
        UserError: nothing there, nothing that holds predictions, several models or versions.
    """
    if is_folder(path):
        # A log's name is enough: older ones, which may be half-written, aren't even opened.
        found = [join(path, name) for name in _folder(path)]
        return [_named_log(one) or _source(one) for one in found]
    if not exists(path):
        raise UserError(f"{path}: there is no such file or folder")
    return [_source(path)]


def _folder(path: str) -> list[str]:
    """The names of a folder's prediction files, one level down for the harness's."""
    names, folders = entries(path)
    if "evaluation.json" in names or "experiment.json" in names or "report.json" in names:
        shown = ", ".join(folders) or "none"
        raise UserError(
            f"{path} is the output folder of a command: give the folder of one version in it "
            f"(there are: {shown})"
        )
    found = [name for name in names if name.endswith(SUFFIXES)]
    if found:
        return found
    logs = {}
    for folder in folders:
        inside = [n for n in entries(join(path, folder))[0] if SAMPLES.fullmatch(n)]
        if inside:
            logs[folder] = [f"{folder}/{name}" for name in inside]
    if len(logs) > 1:
        raise UserError(f"{path} holds sample logs of {len(logs)} models: give one of "
                        f"{', '.join(join(path, f) for f in logs)}")  # fmt: skip
    for only in logs.values():
        return only
    raise UserError(
        f"{path}: this folder holds no predictions: it needs TASK.parquet of `muscle evaluate`, "
        "samples_TASK_TIME.jsonl of lm-evaluation-harness, or JSONL, Parquet or CSV files"
    )


def is_folder(path: str) -> bool:
    """Whether a path is a folder."""
    files, where = filesystem(path)
    return bool(files.isdir(where))


def entries(path: str) -> tuple[list[str], list[str]]:
    """The names of a folder's files and of its folders, sorted; hidden ones are left out."""
    files, where = filesystem(path)
    found = [
        (str(e["name"]).rstrip("/").rsplit("/", 1)[-1], e["type"]) for e in files.ls(where, True)
    ]
    shown = sorted((name, kind) for name, kind in found if not name.startswith((".", "_.")))
    return [n for n, k in shown if k == "file"], [n for n, k in shown if k == "directory"]


def stem_of(path: str) -> str:
    """A file's name without folder and suffix."""
    name = path.rstrip("/").rsplit("/", 1)[-1]
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def _named_log(path: str) -> Source | None:
    """A sample log that is still called as the harness called it."""
    name = SAMPLES.fullmatch(path.rsplit("/", 1)[-1])
    if name is None:
        return None
    return Source(path, "sample log", stem_of(path), name.group(1), name.group(2))


def _source(path: str) -> Source:
    kind = _kind(path)
    named = _named_log(path) if kind == "sample log" else None
    return named or Source(path, kind, stem_of(path))


def _kind(path: str) -> Kind:
    with opened(path) as stream:
        head = stream.read(4)
        if not head:
            raise UserError(f"{path} is empty")
        if head == b"PAR1":
            return "parquet"
    with opened(path) as stream:
        first = next((line for line in stream if line.strip()), b"")
    if not first:
        raise UserError(f"{path} is empty")
    line = first.removeprefix(b"\xef\xbb\xbf").strip()
    if line.startswith(b"{"):
        row = _parsed(path, 1, first)
        return "sample log" if row.keys() >= _LOGGED else "json lines"
    if line.startswith(b"["):
        raise UserError(f"{path} is one JSON list: write one JSON object per line (JSONL)")
    if b"," in line and line.decode("utf-8", "replace").replace("\t", " ").isprintable():
        return "csv"
    raise UserError(
        f"{path}: can't tell what this is: it is no Parquet file, has no JSON object per line, "
        "and no header of a CSV file"
    )


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A file's bytes; what gzip packed is unpacked, whatever the name.

    Raises:
        UserError: no such file, or it can't be read or unpacked.
    """
    files, where = filesystem(path)
    try:
        with files.open(where, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            yield gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[misc]
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except EOFError:
        raise UserError(f"{path} is half-written: its gzip data is cut off") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: broken gzip data: {reason_line(error)}") from None


def json_rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of a JSONL file; empty lines are passed over.

    Raises:
        UserError: names the line: not UTF-8, broken or cut-off JSON, no object.
    """
    with opened(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, _parsed(path, number, line)


class _TwiceError(Exception):
    """A name that stands in one JSON object two times; Python's reader keeps the last."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return found


def _parsed(path: str, number: int, line: bytes) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        # The mark that some editors put before the first line.
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        row = json.loads(text, object_pairs_hook=_once)
    except UnicodeDecodeError:
        raise UserError(f"{where}: is not UTF-8 text") from None
    except _TwiceError as error:
        raise UserError(f"{where}: has {str(error)!r:.60} twice: which one counts?") from None
    except RecursionError:
        raise UserError(f"{where}: is nested too deeply") from None
    except ValueError as error:
        if not line.endswith(b"\n"):
            raise UserError(
                f"{where}: the last line is cut off: the file is half-written"
            ) from None
        raise UserError(f"{where}: broken JSON: {reason_line(error)}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: is no JSON object with named fields")
    return cast(dict[str, Any], row)
