"""Plain JSONL, Parquet and CSV: an id, a score or right/wrong, and what else there is."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from muscle.errors import UserError
from muscle.inputs.asked import Asked, Columns
from muscle.inputs.building import (
    Builder,
    check_ids,
    clean_scores,
    constant,
    first_true,
    listed,
    text_of,
    with_fields,
)
from muscle.inputs.parquet import ParquetColumns, is_text
from muscle.inputs.source import Source, json_rows, opened
from muscle.side import Side
from muscle.tables import reason_line

_TEXTS = {"prediction": "answer", "gold": "gold", "question": "question"}


class Names:
    """Which column of a file is what; `texts` maps our names to the file's.

    Raises:
        UserError: a column that isn't there, naming those that are.
    """

    def __init__(self, path: str, there: list[str], asked: Asked) -> None:
        columns = asked.columns
        self._path, self._there = path, there
        twice = next((name for name in there if there.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{path}: two columns are called {twice!r}")
        if asked.filter is not None:
            raise UserError(
                f"--filter {asked.filter}: {path} is a plain file, which has no filters"
            )
        if columns.correct is not None and columns.score is not None:
            raise UserError("--correct and --score: give one of them")
        self.id = self._need("--id", columns.id or "id")
        self.score = self._score(columns, asked.metric)
        self.binary = columns.score is None and self.score in ("correct", columns.correct)
        self.metric = asked.metric or self.score
        self.task = None if columns.task is None else self._need("--task-column", columns.task)
        self.texts: dict[str, str] = {}
        for ours, flag in _TEXTS.items():
            given = getattr(columns, flag)
            if given is not None:
                self.texts[ours] = self._need(f"--{flag}", given)
            elif ours in there:
                self.texts[ours] = ours
        used = {self.id, self.score, self.task, *self.texts.values()}
        self.others = [name for name in there if name not in used]
        # Rows of several tasks are told by a column "task" that nobody named.
        self.wanted = {"task", *(name for name in used if name is not None)}

    def _score(self, columns: Columns, metric: str | None) -> str:
        if columns.correct is not None:
            return self._need("--correct", columns.correct)
        if columns.score is not None:
            return self._need("--score", columns.score)
        if metric is not None:
            return self._need("--metric", metric)
        for name in ("score", "correct"):
            if name in self._there:
                return name
        raise UserError(
            f"{self._path} has no column 'score' or 'correct': name one with --score or "
            f"--correct; there are {listed(self._there)}"
        )

    def _need(self, flag: str, name: str) -> str:
        if name not in self._there:
            raise UserError(
                f"{self._path} has no column {name!r} ({flag}); there are {listed(self._there)}"
            )
        return name


def json_sides(source: Source, asked: Asked) -> dict[str, Side]:
    """The tasks of a JSONL file of plain rows.

    Raises:
        UserError: names the line and the column: broken JSON, a missing column, a value
            that is no id or no score.
    """
    names: Names | None = None
    types = {"_score": pa.float64(), "_line": pa.int64()}
    builder = Builder(types)
    for number, row in json_rows(source.path):
        if names is None:
            names = Names(source.path, list(row), asked)
            builder = Builder(types, names.wanted)
        where = f"{source.path}, line {number}"
        texts = {name: text_of(value) for name, value in row.items() if name != names.score}
        for name in (names.id, names.task):
            if name is not None and texts.get(name) is None:
                _no_id(where, name, row)
        if not _is_name(row[names.id]):
            _refuse_id(where, names.id, row[names.id])
        if names.score not in row:
            raise UserError(f"{where}: has no {names.score!r}: write null where there is no score")
        score = _number(row[names.score], where, names)
        kept = {name: text for name, text in texts.items() if text is not None}
        builder.add({"_score": score, "_line": number}, kept)
    if names is None:
        raise UserError(f"{source.path} is empty")
    typed, texts_of = builder.finish()
    lines = typed["_line"]

    def where_of(row: int) -> str:
        return f"{source.path}, line {lines[row].as_py()}"

    names.others = [name for name in texts_of if name not in {names.id, names.task}
                    and name not in names.texts.values()]  # fmt: skip
    return _sides(source, asked, names, texts_of.get, typed["_score"], builder.n, where_of)


def _no_id(where: str, name: str, row: Mapping[str, Any]) -> None:
    if row.get(name) is None:
        raise UserError(f"{where}: {name!r} is empty: every row needs one")
    _refuse_id(where, name, row[name])


def _is_name(value: Any) -> bool:
    """Whether a value can name an example: 1.5 and true are answers rather than names."""
    whole = not isinstance(value, float) or value.is_integer()
    return whole and not isinstance(value, bool)


def _refuse_id(where: str, name: str, value: Any) -> NoReturn:
    shown = json.dumps(value) if isinstance(value, bool) else f"{value!r:.60}"
    raise UserError(f"{where}: {name!r} is {shown}: it must be a text or a whole number")


def _number(value: Any, where: str, names: Names) -> float | None:
    if value is None:
        return None
    if not isinstance(value, bool | int | float):
        raise UserError(
            f"{where}: {names.score!r} is {str(value)!r:.60}: it must be a number or true/false, "
            "or null where there is no score"
        )
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if names.binary and number not in (0.0, 1.0) and number == number:
        raise UserError(
            f"{where}: {names.score!r} is {value}: --correct takes true/false or 1/0; name real "
            "numbers with --score"
        )
    return number


def parquet_sides(source: Source, columns: ParquetColumns, asked: Asked) -> dict[str, Side]:
    """The tasks of a Parquet file that isn't ours. Raises UserError, as `json_sides`."""
    names = Names(source.path, columns.schema.names, asked)
    names.others = [n for n in names.others if is_scalar(columns.schema.field(n).type)]
    return _table_sides(source, asked, names, columns.read, columns.n)


def csv_sides(source: Source, asked: Asked) -> dict[str, Side]:
    """The tasks of a CSV file with a header. Raises UserError, as `json_sides`."""
    from csv import reader

    from pyarrow import csv

    with opened(source.path) as stream:
        header = stream.readline().decode("utf-8-sig", "replace")
    try:
        with opened(source.path) as stream:
            # Ids and texts as they stand there: "007" is not 7. Only scores are numbers.
            names, scores = next(reader([header]), []), _csv_scores(asked)
            types = {name: pa.string() for name in names if name not in scores}
            options = csv.ConvertOptions(
                column_types=types, strings_can_be_null=True, null_values=[""]
            )
            table = csv.read_csv(
                stream,
                parse_options=csv.ParseOptions(newlines_in_values=True),
                convert_options=options,
            )
    except pa.ArrowException as error:
        raise UserError(f"{source.path} is no CSV file: {reason_line(error)}") from None
    found = Names(source.path, table.column_names, asked)
    return _table_sides(source, asked, found, table.column, table.num_rows)


def _csv_scores(asked: Asked) -> set[str | None]:
    columns = asked.columns
    given = columns.score or columns.correct or asked.metric
    return {given} if given else {"score", "correct"}


def is_scalar(kind: pa.DataType) -> bool:
    """Whether a column's values are single texts, numbers or dates."""
    nested = pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return not nested and not pa.types.is_null(kind)


def _table_sides(
    source: Source, asked: Asked, names: Names, column: Callable[[str], Any], n: int
) -> dict[str, Side]:
    def where(row: int) -> str:
        return f"{source.path}, row {row + 1}"

    if not n:
        raise UserError(f"{source.path} has no rows")

    def read(name: str) -> pa.ChunkedArray:
        found = column(name)
        if name == names.id:
            found = _names_of(found, name, where)
        return as_text(source.path, name, found)

    scores = _score_column(column(names.score), names, where)
    return _sides(source, asked, names, read, scores, n, where)


def _names_of(column: pa.ChunkedArray, name: str, where: Callable[[int], str]) -> pa.ChunkedArray:
    """A column of ids; another tool's whole numbers with a gap are floats."""
    kind = column.type
    if pa.types.is_boolean(kind):
        bad = pc.is_valid(column)
    elif pa.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column).cast(pa.float64())
        bad = pc.not_equal(pc.floor(column), column)
    else:
        return column
    row = first_true(bad)
    if row is not None:
        _refuse_id(where(row), name, column[row].as_py())
    exact = pc.all(pc.less(pc.abs(column), 2.0**53)).as_py()
    return column.cast(pa.int64()) if exact and pa.types.is_floating(kind) else column


def as_text(path: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of scalars as texts, as `text_of` makes them."""
    if is_text(column.type):
        return column
    try:
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        return column.cast(pa.string())
    except pa.ArrowException:
        raise UserError(
            f"{path}: column {name!r} is {column.type}: it must be texts or numbers"
        ) from None


def _score_column(
    column: pa.ChunkedArray, names: Names, where: Callable[[int], str]
) -> pa.ChunkedArray:
    kind = column.type
    numeric = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)
    numeric = numeric or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not numeric:
        row = first_true(pc.is_valid(column)) or 0
        _number(str(column[row].as_py()), where(row), names)
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    scores = column.cast(pa.float64())
    if names.binary:
        fits = pc.or_kleene(
            pc.is_in(scores, pa.array([0.0, 1.0])), pc.is_null(scores, nan_is_null=True)
        )
        wrong = first_true(pc.invert(fits))
        if wrong is not None:
            _number(scores[wrong].as_py(), where(wrong), names)
    return scores


def _sides(
    source: Source,
    asked: Asked,
    names: Names,
    read: Callable[[str], pa.ChunkedArray | None],
    scores: pa.ChunkedArray,
    n: int,
    where: Callable[[int], str],
) -> dict[str, Side]:
    """One side per task; `read` gives the file's columns as texts."""
    scores = clean_scores(scores, where)
    name = source.task or asked.unnamed
    if names.task is None:
        _refuse_mixed(source.path, read("task") if "task" in names.others else None)
        parts: dict[str, pa.Array | None] = {name: None}
    else:
        labels = read(names.task)
        assert labels is not None
        row = first_true(pc.is_null(labels))
        if row is not None:
            raise UserError(f"{where(row)}: {names.task!r} is empty: every row needs a task")
        parts = {t: pc.indices_nonzero(pc.equal(labels, t)) for t in pc.unique(labels).to_pylist()}
    sides = {}
    for task, rows in parts.items():
        part = _Part(names, read, scores, rows, task)
        size = n if rows is None else len(rows)
        ids = part.read("id")
        assert ids is not None

        def place(row: int, rows: pa.Array | None = rows) -> str:
            return where(row if rows is None else rows[row].as_py())

        check_ids(ids, place, names.id)
        about = {"files": [{"path": source.path}]}
        sides[task] = Side(task, names.metric, source.path, size, part.read, about)
    return sides


def _refuse_mixed(path: str, tasks: pa.ChunkedArray | None) -> None:
    if tasks is None:
        return
    found = [t for t in pc.unique(tasks).to_pylist() if t is not None]
    if len(found) > 1:
        raise UserError(
            f"{path} holds rows of several tasks ({listed(sorted(found), 5)}): say so with "
            "--task-column task"
        )


class _Part:
    """The rows of one task in a plain file."""

    def __init__(
        self,
        names: Names,
        read: Callable[[str], pa.ChunkedArray | None],
        scores: pa.ChunkedArray,
        rows: pa.Array | None,
        task: str,
    ) -> None:
        self._names = names
        self._read = read
        self._scores = scores
        self._rows = rows
        self._task = task

    def read(self, name: str) -> pa.ChunkedArray | None:
        found = self._whole(name)
        return found if found is None or self._rows is None else found.take(self._rows)

    def _whole(self, name: str) -> pa.ChunkedArray | None:
        names, n = self._names, len(self._scores)
        if name == "score":
            return self._scores
        if name in ("task", "metric"):
            return constant(self._task if name == "task" else names.metric, n)
        if name == "id":
            return self._read(names.id)
        if name in names.texts:
            return self._read(names.texts[name])
        if name == "fields":
            return self._fields(n)
        return None

    def _fields(self, n: int) -> pa.ChunkedArray:
        columns = {name: self._read(name) for name in self._names.others}
        return with_fields({k: v for k, v in columns.items() if v is not None}, n)
