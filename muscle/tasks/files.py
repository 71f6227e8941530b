"""Rows of JSONL(.gz) and Parquet files, with errors that name the file and the row."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from muscle.errors import UserError


class Row(NamedTuple):
    """One row and its number for messages: the line of a JSONL file, from 1."""

    number: int
    fields: dict[str, Any]


def read_rows(path: str, setting: str) -> list[Row]:
    """All rows of a `.parquet` file, or of a JSONL file with any other name.

    `path` is local or on any store; gzip and the like are told by the name.
    `setting` is the setting that named the file, for the messages.

    Raises:
        UserError: missing, unreadable or empty file, a line that is no JSON object.
    """
    import fsspec

    from muscle.copies import fetch

    parquet = path.endswith(".parquet")
    try:
        local = fetch(path)  # of a store's file a copy, which all processes here read
    except UserError as error:
        raise UserError(f"setting '{setting}': {error}") from None
    try:
        compression = None if parquet else "infer"
        with fsspec.open(local, "rb", compression=compression) as stream:
            rows = _parquet(stream) if parquet else _json_lines(stream, path)
    except FileNotFoundError:
        raise UserError(f"setting '{setting}': the file {path} does not exist") from None
    except UserError:
        raise
    except Exception as error:
        # gzip, arrow and the remote file systems each have their own errors.
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"setting '{setting}': {path} can't be read: {reason}") from error
    if not rows:
        raise UserError(f"setting '{setting}': {path} is empty: it needs at least one row")
    return rows


def _parquet(stream: Any) -> list[Row]:
    import pyarrow.parquet as pq

    return [Row(i, fields) for i, fields in enumerate(pq.read_table(stream).to_pylist(), 1)]


def _json_lines(stream: Any, path: str) -> list[Row]:
    rows = []
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, row {number}: not UTF-8 text: {error}") from None
        except ValueError as error:
            raise UserError(f"{path}, row {number}: broken JSON: {error}") from None
        if not isinstance(fields, dict):
            raise UserError(f"{path}, row {number}: not a JSON object with named fields")
        if b"\\u" in line and not _is_text(fields):
            raise UserError(
                f"{path}, row {number}: holds half a character (a lone \\ud800…\\udfff)"
            )
        rows.append(Row(number, fields))
    return rows


def _is_text(value: Any) -> bool:
    """Whether all texts in a JSON value can be written: escapes may make half a character."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def to_dataset(fields: Sequence[dict[str, Any]], path: str) -> Any:
    """Rows as an in-memory `datasets.Dataset`; a field that a row lacks is None.

    Not `load_dataset("json")`: that takes the types from the first chunk of a file,
    says neither row nor column when they change, and copies the data to a cache.

    Raises:
        UserError: a field whose values have different types.
    """
    import datasets
    import pyarrow as pa

    names = dict.fromkeys(name for row in fields for name in row)
    columns = {}
    for name in names:
        values = [row.get(name) for row in fields]
        try:
            columns[name] = pa.array(values)
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path}: the values of field '{name}' have different types: {reason}"
            ) from None
    return datasets.Dataset(pa.table(columns))
