"""What predictions keep of a task's own rows: a hash of each, and its short values."""

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

OWN = "own row"
"""In a document of own files: the row as it stands in the file, as JSON. The rest of such a
document is already rendered."""

LONGEST = 80
"""Characters of a value that a slice can be named after."""

MOST = 20
"""Columns that are kept of a row."""

FREE_TEXT = 24
"""Characters from which on a column that repeats the question or the answer is left out."""


def row_of(doc: Any) -> Any:
    """The row behind a document: as the task's data set has it, whatever is made of it."""
    if isinstance(doc, Mapping) and isinstance(doc.get(OWN), str):
        return json.loads(doc[OWN])
    return doc


def row_hash(doc: Any) -> str:
    """The first 16 hex digits of the sha256 of a row as canonical JSON.

    Sorted keys, no spaces, ASCII; a column without a value counts as none, since file formats
    differ in whether they have it.
    """
    row = _plain(row_of(doc))
    if isinstance(row, dict):
        row = {name: value for name, value in row.items() if value is not None}
    text = json.dumps(row, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def own_row(fields: Mapping[str, Any]) -> str:
    """A row of own files as it stands in its document."""
    return json.dumps(_plain(fields))


def short_fields(
    docs: Sequence[Any], questions: Sequence[str], golds: Sequence[str]
) -> list[dict[str, str]]:
    """Each row's values as text, of the columns by which examples can be sliced.

    A column counts whole or not at all: in every row that has it its value is a short text, a
    number or a truth value. Left out are ids, and texts that only repeat what the example asks
    or its answer, unless they are as short as a label. The first `MOST` columns are kept.

    Args:
        docs, questions, golds: of the same examples, in order.
    """
    rows = [row if isinstance(row, Mapping) else {} for row in map(row_of, docs)]
    columns = [name for name in dict.fromkeys(str(n) for row in rows for n in row) if name != "id"]
    kept = [
        name
        for name in columns
        if any(row.get(name) is not None for row in rows)
        and all(map(_is_short, (row.get(name) for row in rows)))
        and not _repeats([row.get(name) for row in rows], questions, golds)
    ][:MOST]
    return [{name: str(row[name]) for name in kept if row.get(name) is not None} for row in rows]


def _is_short(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST
    return value is None or isinstance(value, bool | int | float)


def _repeats(values: Sequence[Any], questions: Sequence[str], golds: Sequence[str]) -> bool:
    """Whether a column's texts, some of them longer than labels, all stand in what is asked
    or answered."""
    texts = [
        (value.strip(), asked, gold)
        for value, asked, gold in zip(values, questions, golds, strict=True)
        if isinstance(value, str) and value.strip()
    ]
    if not any(len(text) >= FREE_TEXT for text, _, _ in texts):
        return False
    return all(text in asked or text in gold for text, asked, gold in texts)


def _plain(value: Any) -> Any:
    """A value as JSON has it, the same in every process; of what has no text, its kind."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | Decimal | UUID):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy's
        return _plain(value.tolist())
    return type(value).__name__  # a default repr holds an address
