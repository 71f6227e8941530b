"""Our own predictions: the Parquet that `muscle evaluate` and `muscle run` write."""

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from muscle.errors import UserError
from muscle.inputs.asked import Asked
from muscle.inputs.building import (
    check_ids,
    clean_scores,
    constant,
    in_chunks,
    listed,
    rows_of,
)
from muscle.inputs.parquet import ParquetColumns, is_text
from muscle.inputs.source import Source
from muscle.side import Side
from muscle.tables import ABOUT, NEW_COLUMNS, PREDICTION_SCHEMA, reason_line
from muscle.tasks.judge import chosen
from muscle.types import Output

_NEEDED = [name for name in PREDICTION_SCHEMA.names if name not in NEW_COLUMNS]


def is_own(columns: ParquetColumns) -> bool:
    """Whether a Parquet file has the columns of our predictions."""
    return set(_NEEDED) <= set(columns.schema.names)


def own_side(source: Source, columns: ParquetColumns, asked: Asked) -> Side:
    """A file of ours as a side; `asked.metric` may be any of the file's metrics.

    Raises:
        UserError: several tasks or metrics in it, unknown metric or filter, ids that are
            null or double, infinite scores, columns of other types.
    """
    own = _Own(source.path, columns)
    if not columns.n:
        raise UserError(f"{source.path} has no rows")
    task, metric = own.only("task"), own.only("metric")
    about = own.about()
    if task is None or metric is None:
        raise UserError(f"{source.path}: 'task' and 'metric' must not be empty")
    check_ids(own.read("id"), own.where)
    key = _metric_key(source.path, own, metric, about, asked)
    read: Callable[[str], pa.ChunkedArray | None] = own.read
    if key is not None:
        read = _OtherMetric(own, key, asked.metric or metric).read
        metric = asked.metric or metric
        if asked.filter is not None:
            about["filter"] = asked.filter
    read("score")  # an infinite one is an error now, not in the middle of the report
    return Side(task, metric, source.path, columns.n, read, about)


def _metric_key(
    path: str, own: "_Own", metric: str, about: dict[str, Any], asked: Asked
) -> str | None:
    """Where in `metrics` the wanted value stands; None: it is the file's own `score`."""
    wanted = asked.metric or metric
    there = about.get("filter")
    if wanted == metric and asked.filter in (None, there):
        return None
    keys = own.metric_names()
    if asked.filter is None or asked.filter == there:
        candidates = [wanted, f"{wanted},{there}"]
    else:
        candidates = [f"{wanted},{asked.filter}"]
    for candidate in candidates:
        if candidate in keys:
            return candidate
    flags = f"--metric {wanted}" + (f" --filter {asked.filter}" if asked.filter else "")
    raise UserError(f"{path}: {flags}: not in this file; its metrics are {listed(keys)}")


class _Own:
    """Columns of our schema, with what other writers make of its types put right."""

    def __init__(self, path: str, columns: ParquetColumns) -> None:
        self.path = path
        self.columns = columns

    def where(self, row: int) -> str:
        return f"{self.path}, row {row + 1}"

    def only(self, name: str) -> str | None:
        """The one value of a column."""
        values = pc.unique(self.columns.read(name)).to_pylist()
        if len(values) > 1:
            raise UserError(
                f"{self.path} holds rows of several {name}s ({listed(sorted(map(str, values)))}): "
                f"write one file per task, judged by one metric"
            )
        return None if values[0] is None else str(values[0])

    def about(self) -> dict[str, Any]:
        data = (self.columns.schema.metadata or {}).get(ABOUT)
        found: Any = {}
        if data is not None:
            try:
                found = json.loads(data)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{self.path}: its metadata 'muscle' is not JSON: {reason_line(error)}"
                ) from None
        if not isinstance(found, dict):
            raise UserError(f"{self.path}: its metadata 'muscle' is no JSON object")
        return {**found, "files": [{"path": self.path}]}

    def metric_names(self) -> list[str]:
        found: dict[str, None] = {}
        for chunk in self.columns.read("metrics").chunks:
            found.update(dict.fromkeys(pc.unique(chunk.keys).to_pylist()))
        return list(found)

    def read(self, name: str) -> pa.ChunkedArray | None:
        if name not in self.columns.schema.names or name not in PREDICTION_SCHEMA.names:
            return None
        column = self.columns.read(name)
        wanted = PREDICTION_SCHEMA.field(name).type
        # Texts stay as they are: with narrow offsets a large column might not fit.
        if not (is_text(wanted) and is_text(column.type)):
            column = self.typed(name, column, wanted)
        return clean_scores(column, self.where) if name == "score" else column

    def typed(self, name: str, column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
        try:
            if column.type != wanted and is_text(column.type):
                raise pa.ArrowInvalid("texts")
            return column.cast(wanted)
        except pa.ArrowException as error:
            raise UserError(
                f"{self.path}: column {name!r} is {column.type}, but must be {wanted} "
                f"({reason_line(error)})"
            ) from None


class _OtherMetric:
    """A file of ours, judged by another of its metrics than its own."""

    def __init__(self, own: _Own, key: str, metric: str) -> None:
        self._own = own
        self._key = key
        self._metric = metric

    def read(self, name: str) -> pa.ChunkedArray | None:
        own = self._own
        if name == "metric":
            return constant(self._metric, own.columns.n)
        if name == "score":
            found = pc.map_lookup(own.read("metrics"), pa.scalar(self._key), "first")
            return clean_scores(found, own.where)
        if name != "prediction":
            return own.read(name)
        choices, scores = own.read("choices"), own.read("loglikelihoods")
        if choices is None or scores is None or choices.null_count == own.columns.n:
            # A generation under another filter reads another answer, which isn't kept.
            return None if "," in self._key else own.read(name)
        return chosen_texts(self._metric, choices, scores)


def chosen_texts(metric: str, choices: pa.ChunkedArray, scores: pa.ChunkedArray) -> pa.ChunkedArray:
    """[n] the choice that `metric` holds for the answer, of log-likelihoods as the model
    gave them; null where they are unknown."""

    def texts(texts: list[str] | None, lls: list[float] | None) -> str | None:
        if not texts or not lls or len(lls) < len(texts):
            return None
        return texts[chosen(metric, [Output(loglikelihood=ll) for ll in lls], texts)]

    rows = (texts(c, s) for c, s in rows_of(choices, scores))
    return in_chunks(rows, pa.string())
