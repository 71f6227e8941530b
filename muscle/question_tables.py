"""Parquet files of questions: what answers are distilled on, in order."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from muscle.tables import QUERY_SCHEMA, Row, query_to_row, read_rows, row_to_query, write_rows
from muscle.types import Question

QUESTION_SCHEMA = pa.schema(
    [
        *QUERY_SCHEMA,
        pa.field("gold", pa.int64()),
        pa.field("lengths", pa.list_(pa.int64()), nullable=False),
        pa.field("gold_text", pa.string()),
    ]
)


def write_questions(path: str | Path, questions: Sequence[Question]) -> None:
    """Write questions, in their order."""
    write_rows(path, map(_to_row, questions), QUESTION_SCHEMA)


def read_questions(path: str | Path) -> list[Question]:
    """The inverse of `write_questions`.

    Raises:
        UserError: no such file, or not a whole one of ours.
    """
    return [_to_question(row) for row in read_rows(path, QUESTION_SCHEMA)]


def _to_row(question: Question) -> Row:
    return {
        **query_to_row(question.query),
        "gold": question.gold,
        "lengths": list(question.lengths),
        "gold_text": question.gold_text,
    }


def _to_question(row: Mapping[str, Any]) -> Question:
    gold, text = row["gold"], row["gold_text"]
    return Question(
        query=row_to_query(row),
        gold=None if gold is None else int(gold),
        lengths=tuple(int(length) for length in row["lengths"]),
        gold_text=None if text is None else str(text),
    )
