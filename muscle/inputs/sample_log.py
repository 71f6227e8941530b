"""The sample logs that lm-evaluation-harness writes with `--log_samples`.

A line is one example under one of the task's filters, written by `EvaluationTracker.
save_results_samples` from what `evaluate` put together: the harness's own metrics decide,
nothing is judged anew. All answers of a model stand there as texts (`sanitize_list`).
"""

import math
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from muscle.errors import UserError
from muscle.inputs.asked import Asked
from muscle.inputs.building import (
    Builder,
    check_ids,
    clean_scores,
    constant,
    in_chunks,
    listed,
    rows_of,
    text_of,
)
from muscle.inputs.building import with_fields as fields_of
from muscle.inputs.own import chosen_texts
from muscle.inputs.results import about_log, delimiter_of, higher_is_better, read_results
from muscle.inputs.sample_rows import (
    call_of,
    choices_of,
    gold_of,
    loglikelihoods,
    own_id,
    said,
    written,
)
from muscle.inputs.source import Source, json_rows
from muscle.side import Side
from muscle.tables import PREDICTION_SCHEMA, reason_line
from muscle.tasks.rows import row_hash

_TYPES = {
    name: PREDICTION_SCHEMA.field(name).type
    for name in ("question", "gold", "prediction", "response", "document", "choices", "metrics")
} | {
    "_doc": pa.string(),
    "_id": pa.string(),
    "_line": pa.int64(),
    "_gold_by_text": pa.string(),
    "_lls": pa.list_(pa.float64()),
    "_bad": pa.bool_(),
}

_BYPASS = "bypass"  # the harness's metric that measures nothing


def log_side(source: Source, asked: Asked, older: int) -> Side:
    """A sample log as a side.

    `older`: how many logs of the same task, written before, were passed over.

    Raises:
        UserError: broken lines, an unknown filter or metric, no metric that could decide,
            an example twice.
    """
    results, results_path = read_results(source)
    task = source.task or asked.unnamed
    log = _Log(source.path, asked.filter, delimiter_of(results, task))
    for number, row in json_rows(source.path):
        log.add(number, row)
    columns = log.finish()
    metric = log.metric(asked.metric, higher_is_better(results, task))
    about = about_log(results, task) | {"filter": log.filter}
    paths = [source.path] if results_path is None else [source.path, results_path]
    about["files"] = [{"path": path} for path in paths]
    if notes := _notes(source, task, log, older):
        about["notes"] = notes
    side = _LogColumns(columns, log, task, metric)
    return Side(task, metric, source.path, log.n, side.read, about)


def _notes(source: Source, task: str, log: "_Log", older: int) -> list[str]:
    notes = []
    if older:
        logs = f"{older} earlier logs" if older > 1 else "an earlier log"
        notes.append(f"{task}: {logs} beside {source.path} left out: this one is the newest")
    if len(log.filters) > 1 and log.chosen_by_default:
        others = ", ".join(name for name in log.filters if name != log.filter)
        notes.append(
            f"{task}: judged after the filter '{log.filter}', the first in the log; others with "
            f"--filter: {others}"
        )
    return notes


class _Log:
    """The rows of a log under one filter, as columns that grow."""

    def __init__(self, path: str, filter_name: str | None, delimiter: str) -> None:
        self.path = path
        self.filter = filter_name or ""
        self.filters: dict[str, None] = {}
        self.chosen_by_default = filter_name is None
        self.builder = Builder(_TYPES)
        self._delimiter = delimiter
        self.values: dict[str, array[float]] = {}
        self._numbers: dict[str, int] = {}  # in how many rows a metric is a number, or NaN
        # A gold answer such as "2" could be an index and a text. Nothing that a model answered
        # may decide it, or the logs of two versions could have other gold answers.
        self._by_index = True
        self._names: dict[str, None] = {}
        self.n = 0

    def add(self, number: int, row: Mapping[str, Any]) -> None:
        """A line of the file; those of other filters are passed over."""
        name = str(row.get("filter", "none"))
        self.filters.setdefault(name)
        if not self.filter:
            self.filter = name
        if name != self.filter:
            return
        try:
            self._add(number, row)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UserError(
                f"{self.path}, line {number}: no line of a sample log as lm-evaluation-harness "
                f"writes it ({type(error).__name__}: {reason_line(error)})"
            ) from None

    def _add(self, number: int, row: Mapping[str, Any]) -> None:
        calls = [call_of(one) for one in row["arguments"].values()]
        lls = loglikelihoods(row["filtered_resps"], row["resps"], calls)
        choices, asked = choices_of(calls, lls, self._delimiter)
        document = row["doc"] if isinstance(row["doc"], dict) else {}
        index, text = gold_of(str(row["target"]), choices)
        if lls is not None and len(calls) == 1:
            text = calls[0][1].removeprefix(self._delimiter)
        numbers = self._metrics(row)
        if choices is not None and index is None:
            self._by_index = False
        self.builder.add(
            {
                "_id": text_of(row["doc_id"]),
                "_doc": own_id(document),
                "_line": number,
                "question": asked,
                "gold": index if index is not None else text,
                "_gold_by_text": text if text is not None else index,
                "prediction": said(row["filtered_resps"], lls, text),
                "response": written(row["resps"]) if lls is None else None,
                "document": row_hash(row["doc"]),
                "choices": choices,
                "_lls": lls,
                "_bad": lls is not None and any(map(math.isnan, lls)),
                "metrics": [(k, v) for k, v in numbers.items() if math.isfinite(v)],
            },
            {k: str(v) for k, v in document.items() if isinstance(v, str | bool | int | float)},
        )

    def _metrics(self, row: Mapping[str, Any]) -> dict[str, float]:
        """The row's metrics that are numbers; remembers all, for the choice of one."""
        count, found = self.n, {}
        for name in row.get("metrics") or ():
            self._names.setdefault(name)
            value = row.get(name)
            if isinstance(value, bool | int | float):
                found[name] = float(value)
        for name, value in found.items():
            values = self.values.setdefault(name, array("d"))
            values.extend([math.nan] * (count - len(values)))  # rows that had no such metric
            values.append(value)
            self._numbers[name] = self._numbers.get(name, 0) + 1
        self.n += 1
        return found

    def metric(self, wanted: str | None, higher: Mapping[str, bool]) -> str:
        """The wanted metric, or the first that is a number in every row and better when higher.

        The harness's tasks list the deciding one first, and so does `muscle evaluate` choose.

        Raises:
            UserError: none such, or the wanted one is not.
        """
        n = self.n
        single = [m for m in self._names if self._numbers.get(m) == n and m != _BYPASS]
        usable = [m for m in single if higher.get(m, m not in LOWER_IS_BETTER)]
        shown = f"{self.path} can be judged by {listed(usable)}"
        if wanted is None:
            if usable:
                return usable[0]
            lower = f"; better when lower: {', '.join(single)}" if single else ""
            raise UserError(
                f"{shown}: none of its metrics ({listed(list(self._names))}) is a number for "
                f"every example and better when higher{lower}"
            )
        if wanted in usable:
            return wanted
        if wanted not in self._names:
            raise UserError(f"--metric {wanted}: not in the log: {shown}")
        if wanted in single:
            raise UserError(f"--metric {wanted} is better when lower: {shown}")
        raise UserError(f"--metric {wanted} is not a number for every example: {shown}")

    def finish(self) -> dict[str, pa.ChunkedArray]:
        """The columns; `fields` and `id` among them.

        Raises:
            UserError: no line of the wanted filter, or an example twice.
        """
        if not self.filters:
            raise UserError(f"{self.path} is empty")
        if not self.n:
            names = listed(list(self.filters))
            raise UserError(f"--filter {self.filter}: {self.path} has only {names}")
        columns, texts = self.builder.finish()
        own = columns.pop("_doc")
        # The rule of `muscle evaluate`, so that both can be compared with each other.
        unique = own.null_count == 0 and pc.count_distinct(own).as_py() == len(own)
        columns["id"] = own if unique else columns["_id"]
        if unique:
            texts.pop("id", None)
        lines = columns.pop("_line")
        check_ids(columns["id"], lambda row: f"{self.path}, line {lines[row].as_py()}", "doc_id")
        by_text = columns.pop("_gold_by_text")
        if not self._by_index:
            columns["gold"] = by_text
        columns["fields"] = fields_of(texts, self.n)
        return columns


LOWER_IS_BETTER = frozenset(
    {
        "perplexity",
        "word_perplexity",
        "byte_perplexity",
        "bits_per_byte",
        "brier_score",
        "ter",
        "wer",
        "mse",
        "mae",
    }
)
"""Metrics of the harness that are better when lower, for logs without a results file."""


class _LogColumns:
    """A read log, under the name of its metric."""

    def __init__(
        self, columns: Mapping[str, pa.ChunkedArray], log: _Log, task: str, metric: str
    ) -> None:
        n = log.n
        bad = columns["_bad"]
        values = pa.chunked_array([pa.array(np.asarray(log.values[metric]))])
        # NaN would count as the largest of the choices, as in `muscle evaluate`.
        values = pc.if_else(bad.combine_chunks(), pa.scalar(None, pa.float64()), values)
        score = clean_scores(values, lambda row: f"{log.path}, example {columns['id'][row]}")
        reason = pa.scalar(f"{metric} is not a number for this example", pa.string())
        nothing = pa.scalar(None, pa.string())
        errors = pc.if_else(pc.is_null(score), reason, nothing)
        errors = pc.if_else(
            bad.combine_chunks(), pa.scalar("a log-likelihood is not a number", pa.string()), errors
        )
        self._columns = {k: v for k, v in columns.items() if not k.startswith("_")}
        self._columns |= {"score": score, "error": errors}
        self._columns |= {"task": constant(task, n), "metric": constant(metric, n)}
        self._lls = columns["_lls"]
        self._metric = metric

    def read(self, name: str) -> pa.ChunkedArray | None:
        if name == "prediction":
            choices = self._columns["choices"]
            if choices.null_count < len(choices):
                return chosen_texts(self._metric, choices, self._lls)
        if name == "loglikelihoods":
            choices = self._columns["choices"]
            return None if choices.null_count == len(choices) else self._first(choices)
        return self._columns.get(name)

    def _first(self, choices: pa.ChunkedArray) -> pa.ChunkedArray:
        """Without the unconditional ones, which follow where acc_mutual_info is measured."""
        if pc.all(pc.equal(pc.list_value_length(self._lls), pc.list_value_length(choices))).as_py():
            return self._lls
        rows = (None if c is None else v[: len(c)] for c, v in rows_of(choices, self._lls))
        return in_chunks(rows, pa.list_(pa.float64()))
