"""Parquet in and out of the records, at any fsspec path.

One explicit schema for each record, so that a column of Nones or an empty file has the
same types as a full one. The round trip is exact: double precision, NaN, infinities,
None and the empty list all come back as they went.

`*_to_row` and `row_to_*` turn records into plain dicts and back: Ray Data moves rows.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from muscle.copies import fetch
from muscle.errors import UserError
from muscle.storage import filesystem, is_remote, write_bytes
from muscle.types import Answer, Output, Prediction, Query, Request, TrainingExample

Row = dict[str, Any]
R = TypeVar("R")


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


EXAMPLE_SCHEMA = pa.schema(
    [
        *(_required(n, pa.string()) for n in ("id", "prompt", "answer")),
        pa.field("turns", pa.list_(pa.list_(pa.int64()))),
    ]
)

_REQUEST = pa.struct(
    [pa.field(n, pa.string()) for n in ("kind", "context", "continuation", "generation")]
)
QUERY_SCHEMA = pa.schema(
    [
        _required("id", pa.string()),
        _required("requests", pa.list_(_REQUEST)),
        pa.field("chat", pa.string()),
    ]
)

_OUTPUT = pa.struct(
    [
        pa.field("loglikelihood", pa.float64()),
        pa.field("is_greedy", pa.bool_()),
        pa.field("text", pa.string()),
        pa.field("truncated", pa.string()),
    ]
)
ANSWER_SCHEMA = pa.schema(
    [
        _required("id", pa.string()),
        _required("outputs", pa.list_(_OUTPUT)),
        pa.field("error", pa.string()),
    ]
)

ABOUT = b"muscle"
"""Key of a file's schema metadata: how its predictions were made, as JSON."""

PREDICTION_SCHEMA = pa.schema(
    [
        _required("task", pa.string()),
        _required("id", pa.string()),
        _required("question", pa.string()),
        _required("gold", pa.string()),
        pa.field("prediction", pa.string()),
        _required("metric", pa.string()),
        pa.field("score", pa.float64()),
        _required("metrics", pa.map_(pa.string(), pa.float64())),
        pa.field("choices", pa.list_(pa.string())),
        pa.field("loglikelihoods", pa.list_(pa.float64())),
        pa.field("error", pa.string()),
        pa.field("response", pa.string()),
        pa.field("truncated", pa.string()),
        pa.field("document", pa.string()),
        _required("fields", pa.map_(pa.string(), pa.string())),
        pa.field("prompt", pa.string()),
        pa.field("reason", pa.string()),
    ]
)


def example_to_row(example: TrainingExample) -> Row:
    """A training example as a plain dict."""
    names = ("id", "prompt", "answer", "turns")
    return {name: getattr(example, name) for name in names}


def row_to_example(row: Mapping[str, Any]) -> TrainingExample:
    """The inverse of `example_to_row`."""
    turns = row["turns"]
    return TrainingExample(
        id=str(row["id"]),
        prompt=str(row["prompt"]),
        answer=str(row["answer"]),
        turns=None if turns is None else tuple((int(start), int(end)) for start, end in turns),
    )


def query_to_row(query: Query) -> Row:
    """A query as a plain dict; `requests` is a list of dicts."""
    names = ("kind", "context", "continuation", "generation")
    return {
        "id": query.id,
        "requests": [{n: getattr(request, n) for n in names} for request in query.requests],
        "chat": query.chat,
    }


def row_to_query(row: Mapping[str, Any]) -> Query:
    """The inverse of `query_to_row`; lists may have become arrays on the way."""
    return Query(
        id=str(row["id"]),
        requests=tuple(
            Request(**{name: str(value) for name, value in request.items()})  # type: ignore[arg-type]
            for request in row["requests"]
        ),
        chat=_or_none(str, row["chat"]),
    )


def answer_to_row(answer: Answer) -> Row:
    """An answer as a plain dict; `outputs` is a list of dicts."""
    names = ("loglikelihood", "is_greedy", "text", "truncated")
    return {
        "id": answer.id,
        "outputs": [{n: getattr(output, n) for n in names} for output in answer.outputs],
        "error": answer.error,
    }


def row_to_answer(row: Mapping[str, Any]) -> Answer:
    """The inverse of `answer_to_row`; numbers may have become numpy's on the way."""
    return Answer(
        id=str(row["id"]),
        outputs=tuple(
            Output(
                loglikelihood=_or_none(float, output["loglikelihood"]),
                is_greedy=_or_none(bool, output["is_greedy"]),
                text=_or_none(str, output["text"]),
                truncated=output["truncated"],
            )
            for output in row["outputs"]
        ),
        error=_or_none(str, row["error"]),
    )


def prediction_to_row(prediction: Prediction) -> Row:
    """A prediction as a plain dict; `metrics` and `fields` are lists of (name, value) pairs."""
    row: Row = {f.name: getattr(prediction, f.name) for f in PREDICTION_SCHEMA}
    row["metrics"] = list(prediction.metrics.items())
    row["fields"] = list(prediction.fields.items())
    return row


def row_to_prediction(row: Mapping[str, Any]) -> Prediction:
    """The inverse of `prediction_to_row`."""
    choices, loglikelihoods = row["choices"], row["loglikelihoods"]
    return Prediction(
        task=str(row["task"]),
        id=str(row["id"]),
        question=str(row["question"]),
        gold=str(row["gold"]),
        prediction=_or_none(str, row["prediction"]),
        metric=str(row["metric"]),
        score=_or_none(float, row["score"]),
        metrics={str(name): float(value) for name, value in dict(row["metrics"]).items()},
        choices=None if choices is None else tuple(str(c) for c in choices),
        loglikelihoods=None if loglikelihoods is None else tuple(map(float, loglikelihoods)),
        error=_or_none(str, row["error"]),
        response=_or_none(str, row["response"]),
        truncated=row["truncated"],
        document=_or_none(str, row["document"]),
        fields={str(name): str(value) for name, value in dict(row["fields"]).items()},
        prompt=_or_none(str, row["prompt"]),
        reason=_or_none(str, row["reason"]),
    )


def predictions_to_table(predictions: Sequence[Prediction]) -> pa.Table:
    """Predictions in columns."""
    return pa.Table.from_pylist(list(map(prediction_to_row, predictions)), PREDICTION_SCHEMA)


def _or_none(kind: Callable[[Any], R], value: Any) -> R | None:
    return None if value is None else kind(value)


def write_examples(path: str | Path, examples: Sequence[TrainingExample]) -> None:
    """Write training examples; the file appears whole or not at all."""
    write_rows(path, map(example_to_row, examples), EXAMPLE_SCHEMA)


def read_examples(path: str | Path) -> list[TrainingExample]:
    """Read training examples. Raises UserError: no such file, not ours."""
    return [row_to_example(row) for row in read_rows(path, EXAMPLE_SCHEMA)]


GROUP_ROWS = 128
"""Queries of a row group, the unit in which evaluation works and goes on after a stop."""


def write_queries(path: str | Path, queries: Sequence[Query], group_rows: int = GROUP_ROWS) -> None:
    """Write queries in groups of `group_rows`; the file appears whole or not at all."""
    write_rows(path, map(query_to_row, queries), QUERY_SCHEMA, group_rows)


def group_sizes(path: str | Path) -> list[int]:
    """How many queries each group of an artifact's file has. Raises UserError: no such file,
    not ours."""
    with _open_copy(path) as file:
        metadata = file.metadata
        return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def count_rows(path: str | Path) -> int:
    """How many rows a file has. Raises UserError: no such file, not a whole one."""
    with _open(path) as file:
        return int(file.metadata.num_rows)


def read_query_group(path: str | Path, group: int) -> list[Query]:
    """One group of an artifact's file of queries. Raises UserError: no such file, not ours."""
    with _open_copy(path) as file:
        return [row_to_query(row) for row in _rows(path, file.read_row_group(group), QUERY_SCHEMA)]


def read_queries(path: str | Path) -> list[Query]:
    """Read queries. Raises UserError: no such file, not ours."""
    return [row_to_query(row) for row in read_rows(path, QUERY_SCHEMA)]


def write_answers(path: str | Path, answers: Sequence[Answer]) -> None:
    """Write answers; the file appears whole or not at all."""
    write_rows(path, map(answer_to_row, answers), ANSWER_SCHEMA)


def read_answers(path: str | Path) -> list[Answer]:
    """Read answers. Raises UserError: no such file, not ours."""
    return [row_to_answer(row) for row in read_rows(path, ANSWER_SCHEMA)]


def write_predictions(
    path: str | Path, predictions: Sequence[Prediction], about: Mapping[str, Any] | None = None
) -> None:
    """Write predictions; the file appears whole or not at all.

    Args:
        about: how they were made, JSON values by the names that `Side.about` lists; kept in
            the file's schema metadata.

    Raises:
        ValueError: `about` holds NaN or infinity, TypeError: something that is no JSON value.
    """
    schema = PREDICTION_SCHEMA
    if about is not None:
        text = json.dumps(about, sort_keys=True, allow_nan=False)
        schema = schema.with_metadata({ABOUT: text.encode()})
    write_rows(path, map(prediction_to_row, predictions), schema)


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read predictions. Raises UserError: no such file, not ours."""
    return [row_to_prediction(row) for row in read_rows(path, PREDICTION_SCHEMA)]


def read_about(path: str | Path) -> dict[str, Any]:
    """How the predictions of a file were made; empty where the file doesn't say.

    Raises:
        UserError: no such file, not a whole Parquet file.
    """
    with _open(path) as file:
        return about_of(file.schema_arrow)


def about_of(schema: pa.Schema) -> dict[str, Any]:
    """What a file's schema says of how its predictions were made; empty where it doesn't."""
    try:
        found = json.loads((schema.metadata or {}).get(ABOUT, b"{}"))
    except ValueError:  # another tool's bytes under our name
        return {}
    return found if isinstance(found, dict) else {}


def reason_line(error: Exception) -> str:
    """What another library says is wrong, for the end of a message of ours."""
    return " ".join(str(error).split())[:200]


def write_rows(
    path: str | Path, rows: Iterable[Row], schema: pa.Schema, group_rows: int | None = None
) -> None:
    """Write plain rows of any schema; the file appears whole or not at all."""
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(list(rows), schema=schema)
    pq.write_table(table, sink, compression="zstd", row_group_size=group_rows)
    write_bytes(str(path), sink.getvalue().to_pybytes())


def read_rows(path: str | Path, schema: pa.Schema) -> list[Row]:
    """Plain rows of a file with this schema; the inverse of `write_rows`.

    Raises:
        UserError: no such file, not a whole one, or another schema.
    """
    with _open(path) as file:
        return _rows(path, file.read(), schema)


@contextmanager
def _open(path: str | Path) -> Iterator[pq.ParquetFile]:
    """The Parquet file at a path; what can't be read of it becomes one line. Of a store it is
    read at once: piece by piece would be many requests."""
    files, where = filesystem(str(path))
    try:
        if is_remote(str(path)):
            yield pq.ParquetFile(pa.BufferReader(files.cat_file(where)))
            return
        with files.open(where, "rb") as file:
            yield pq.ParquetFile(file)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except pa.ArrowException as error:
        raise UserError(f"{path}: is not a whole Parquet file: {reason_line(error)}") from error
    except OSError as error:
        # Arrow reports damaged pages as OSErrors without a number.
        what = "can't be read" if error.errno else "is not a whole Parquet file"
        raise UserError(f"{path}: {what}: {reason_line(error)}") from error


def _open_copy(path: str | Path) -> AbstractContextManager[pq.ParquetFile]:
    """The same of an artifact's file that is read group by group, by every worker: of a store
    this machine keeps a copy. It is under an attempt's own name, and never changes."""
    return _open(fetch(str(path), unchanging=True))


def _rows(path: str | Path, table: pa.Table, schema: pa.Schema) -> list[Row]:
    table = with_new_columns(table, schema)
    _check_columns(path, table, schema)
    try:
        rows: list[Row] = table.select(schema.names).cast(schema).to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{path}: holds values that don't fit: {reason_line(error)}") from error
    return rows


NEW_COLUMNS = ("response", "truncated", "document", "fields", "prompt", "reason", "turns", "chat")
"""Columns that earlier versions of ours didn't write."""


def with_new_columns(table: pa.Table, schema: pa.Schema = PREDICTION_SCHEMA) -> pa.Table:
    """A table of an earlier version of ours, with empty columns for what came since."""
    for name in NEW_COLUMNS:
        if name in schema.names and name not in table.column_names:
            field = schema.field(name)
            empty: list[Any] = [None if field.nullable else []] * table.num_rows
            table = table.append_column(field, pa.array(empty, field.type))
    return table


def _check_columns(path: str | Path, table: pa.Table, schema: pa.Schema) -> None:
    missing = [n for n in schema.names if n not in table.column_names]
    unknown = [n for n in table.column_names if n not in schema.names]
    if missing or unknown or len(table.column_names) != len(schema):
        raise UserError(
            f"{path}: has other columns than expected: missing {missing}, unknown {unknown}; "
            f"expected {schema.names}"
        )
    for field in schema:
        found = table.schema.field(field.name).type
        if not _fits(found, field.type):
            raise UserError(f"{path}: column {field.name!r} is {found}, but must be {field.type}")
        if not field.nullable and table.column(field.name).null_count:
            raise UserError(f"{path}: column {field.name!r} has empty values; it must have none")


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column reads as `wanted` without loss: the same type, or what another
    writer (Ray Data) makes of it: all null, large strings and lists, narrower numbers."""
    if pa.types.is_null(found):
        return True
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    if pa.types.is_float64(wanted):
        return bool(pa.types.is_floating(found) or pa.types.is_integer(found))
    if pa.types.is_map(wanted):
        return pa.types.is_map(found) and (
            _fits(found.key_type, wanted.key_type) and _fits(found.item_type, wanted.item_type)
        )
    if pa.types.is_list(wanted):
        listed = pa.types.is_list(found) or pa.types.is_large_list(found)
        return listed and _fits(found.value_type, wanted.value_type)
    if pa.types.is_struct(wanted):
        return (
            pa.types.is_struct(found)
            and [f.name for f in found] == [f.name for f in wanted]
            and all(_fits(f.type, w.type) for f, w in zip(found, wanted, strict=True))
        )
    return bool(found == wanted)
