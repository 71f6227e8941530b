"""From a model's outputs to predictions: the harness's filters and metrics decide."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from muscle.errors import UserError
from muscle.tasks import examples as reading
from muscle.tasks.asking import Item, kinds_of, reason, repeats
from muscle.tasks.deciding import Deciding
from muscle.types import Answer, Output, Prediction, Truncated, lost

SEVERAL = "\n\n"
"""Between a model's several answers to one question (votes)."""

# What the harness makes of one example: {filter: {metric: value}}.
Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Judged:
    """A model's answers to a task, judged.

    predictions  one for each query, in their order
    scores       the harness's own numbers of the whole task, "metric,filter" each, over all
                 examples whose answer has no error; a metric that can't be computed for
                 these examples, or is not finite, is left out
    size         how many examples are in `scores` (the harness's `sample_len`)
    """

    predictions: list[Prediction]
    scores: dict[str, float]
    size: int


class Judge:
    """Judges the answers to one harness task; its methods are called inside `quiet`."""

    def __init__(self, task: Any, name: str, deciding: Deciding, aggregates: set[str]) -> None:
        self._task = task
        self._name = name
        self._deciding = deciding
        self._aggregates = aggregates  # metrics of a whole data set only

    def judge(self, items: Sequence[Item], answers: Sequence[Answer]) -> Judged:
        """One prediction for each item, and the scores of the whole.

        Raises:
            UserError: answers missing, unknown or double; a metric of the task fails, or
                the deciding one is not a number for single examples.
            ValueError: outputs that don't fit the requests.
        """
        by_id = matched([item.id for item in items], answers, self._name)
        problems = {item.id: problem(by_id[item.id], kinds_of(item.instances)) for item in items}
        judged = [item for item in items if problems[item.id] is None]
        self._filter(judged, by_id)
        results = {item.id: self._results(item) for item in judged}
        predictions = [
            self._prediction(item, by_id[item.id], problems[item.id], results.get(item.id, {}))
            for item in items
        ]
        for item in judged:
            for instance in item.instances:
                instance.resps, instance.filtered_resps = [], {}
        scores, size = self._aggregate(list(results.values()))
        return Judged(predictions, scores, size)

    def _filter(self, items: Sequence[Item], by_id: Mapping[str, Answer]) -> None:
        """Put the outputs into the instances and run the harness's filters over them."""
        instances = []
        for item in items:
            outputs = iter(by_id[item.id].outputs)
            for instance in item.instances:
                kind = instance.request_type
                instance.resps = [response(next(outputs), kind) for _ in range(repeats(instance))]
                instance.filtered_resps = {}
                instances.append(instance)
        if instances:  # the filters can't do nothing
            self._task._instances = instances
            self._task.apply_filters()

    def _results(self, item: Item) -> Results:
        found = {}
        for name in list(item.instances[0].filtered_resps):
            answers = [i.filtered_resps[name] for i in item.instances]
            try:
                found[name] = self._task.process_results(item.doc, answers)
            except Exception as error:
                raise UserError(
                    f"task '{self._name}', example '{item.id}': the task's own metrics fail: "
                    f"{reason(error)}"
                ) from error
        return found

    def _aggregate(self, results: Sequence[Results]) -> tuple[dict[str, float], int]:
        """(scores, size) as the harness's `_compute_task_aggregations`."""
        from lm_eval.api.metrics import mean

        columns: dict[str, tuple[str, list[Any]]] = {}
        for name in results[0] if results else ():
            for result in results:
                for metric, value in result[name].items():
                    columns.setdefault(f"{metric},{name}", (metric, []))[1].append(value)
        scores = {}
        for key, (metric, values) in columns.items():
            function = self._task.aggregation().get(metric, mean)
            try:
                score = number(function(values))
            except ImportError as error:
                raise UserError(
                    f"task '{self._name}': metric '{metric}' needs a Python package that is not "
                    f"installed: {reason(error)}"
                ) from error
            except Exception:  # e.g. an overflow, or one that no mean of tuples is
                score = None
            if score is not None:
                scores[key] = score
        return scores, max((len(values) for _, values in columns.values()), default=0)

    def _prediction(
        self, item: Item, answer: Answer, error: str | None, results: Results
    ) -> Prediction:
        metrics: dict[str, float] = {}
        score, text = None, None
        lls = _first_of_each(item, answer)
        if error is None:
            metrics = self._metrics(results)
            score = self._score(item, answer, results)
            text = self._text(item, answer)
            if self._deciding.source != "harness" and score is not None:
                metrics[self._deciding.metric] = score
            if score is None:
                error = _no_score(self._deciding)
        return Prediction(
            task=self._name,
            id=item.id,
            question=reading.question(item.instances),
            gold=item.gold,
            prediction=None if error else text,
            metric=self._deciding.metric,
            score=score,
            metrics=metrics,
            choices=item.choices,
            loglikelihoods=lls,
            error=error,
            response=_response(answer),
            truncated=_truncated(answer),
            document=item.document,
            fields=item.fields,
        )

    def _metrics(self, results: Results) -> dict[str, float]:
        """All metrics of one example that are numbers."""
        metrics = {}
        for name, values in results.items():
            for metric, value in values.items():
                found = None if metric in self._aggregates else number(value)
                if found is not None:
                    metrics[f"{metric},{name}" if len(results) > 1 else metric] = found
        return metrics

    def _score(self, item: Item, answer: Answer, results: Results) -> float | None:
        """The deciding metric's value; None for NaN, an error for what is no number."""
        source, metric = self._deciding.source, self._deciding.metric
        values = results[self._deciding.filter]
        if source == "bytes":
            return _per_byte(item, answer, values)
        if source == "equality":
            return float(self._is_gold(item, answer))
        score = number(values.get(metric))
        if score is None and not isinstance(values.get(metric), float):
            numeric = [m for m, v in values.items() if number(v) is not None]
            raise UserError(
                f"setting 'task.metric': task '{self._name}' gives no number for '{metric}' "
                f"of one example; usable are {', '.join(numeric) or 'none'}"
            )
        return score

    def _is_gold(self, item: Item, answer: Answer) -> bool:
        if item.choices is None:
            return bool(answer.outputs[0].is_greedy)
        where = f"task '{self._name}', example '{item.id}'"
        index = self._chosen(item, answer)
        return index in reading.gold_indexes(self._task, item.doc, item.choices, where)

    def _chosen(self, item: Item, answer: Answer) -> int:
        assert item.choices is not None
        outputs = answer.outputs[:: repeats(item.instances[0])]
        return chosen(self._deciding.metric, outputs, item.choices)

    def _text(self, item: Item, answer: Answer) -> str:
        """The answer given, as text."""
        if item.choices is not None:
            return item.choices[self._chosen(item, answer)]
        kind = item.instances[0].request_type
        if kind == "generate_until":
            text = item.instances[0].filtered_resps[self._deciding.filter]
            # Some filters keep all of a question's answers.
            return str(text[0] if isinstance(text, list | tuple) and len(text) == 1 else text)
        if kind == "loglikelihood_rolling":
            return ""
        # Log-likelihood of one given text (LAMBADA): all we know is whether it is greedy.
        return item.gold if answer.outputs[0].is_greedy else ""


def number(value: Any) -> float | None:
    """A finite number as a float, None for anything else (tuples, NaN, …)."""
    import numpy as np

    if isinstance(value, int | float | np.number | np.bool_) and math.isfinite(value):
        return float(value)
    return None


def problem(answer: Answer, kinds: Sequence[str]) -> str | None:
    """Why an answer to requests of these kinds can't be judged, or None.

    Raises:
        ValueError: it does not have one output of the right kind for each request.
    """
    if answer.error is not None:
        return answer.error
    if len(answer.outputs) != len(kinds):
        raise ValueError(
            f"answer '{answer.id}' has {len(answer.outputs)} outputs for {len(kinds)} requests"
        )
    for output, kind in zip(answer.outputs, kinds, strict=True):
        generated = kind == "generate_until"
        if (output.text if generated else output.loglikelihood) is None:
            missing = "text" if generated else "log-likelihood"
            raise ValueError(f"answer '{answer.id}' has an output without a {missing}")
        if output.loglikelihood is not None and math.isnan(output.loglikelihood):
            # argmax would take the first NaN for the largest.
            return "a log-likelihood is not a number"
    return None


def response(output: Output, kind: str) -> Any:
    """An output as the harness expects it of a model."""
    if kind == "generate_until":
        return output.text
    if kind == "loglikelihood_rolling":
        return output.loglikelihood
    return (output.loglikelihood, bool(output.is_greedy))


def chosen(metric: str, outputs: Sequence[Output], choices: Sequence[str]) -> int:
    """The index of the choice that `metric` holds for the model's answer.

    As `ConfigurableTask.process_results`: the largest log-likelihood, divided by the
    characters ("acc_norm") or bytes ("acc_bytes") of the choice without the delimiter, or
    less the unconditional one ("acc_mutual_info"); the first of equals.
    """
    scores = [float(o.loglikelihood) for o in outputs if o.loglikelihood is not None]
    values = scores[: len(choices)]
    if metric == "acc_norm":
        values = [v / len(c) for v, c in zip(values, choices, strict=True)]
    elif metric == "acc_bytes":
        values = [v / len(c.encode("utf-8")) for v, c in zip(values, choices, strict=True)]
    elif metric == "acc_mutual_info":
        values = [v - u for v, u in zip(values, scores[len(choices) :], strict=True)]
    return max(range(len(choices)), key=values.__getitem__)


def matched(ids: Sequence[str], answers: Sequence[Answer], task: str) -> Mapping[str, Answer]:
    """Answers by id, exactly one for each question.

    Raises:
        UserError: ids that are missing, unknown or given twice.
    """
    by_id: dict[str, Answer] = {}
    for answer in answers:
        if answer.id in by_id:
            raise UserError(f"task '{task}': two answers have the id '{answer.id}'")
        by_id[answer.id] = answer
    missing = [i for i in ids if i not in by_id]
    unknown = sorted(by_id.keys() - set(ids))
    for what, wrong in (("no answer for", missing), ("an answer for the unknown", unknown)):
        if wrong:
            raise UserError(
                f"task '{task}': {what} id '{wrong[0]}' ({len(wrong)} such ids): are the answers "
                "of the same task, data and limit?"
            )
    return by_id


def _response(answer: Answer) -> str | None:
    """What the model wrote, all of it where a task asks for several answers; None: nothing."""
    texts = [output.text for output in answer.outputs if output.text is not None]
    return SEVERAL.join(texts) if texts else None


def _truncated(answer: Answer) -> Truncated | None:
    """What did not fit in any of an example's requests."""
    found = {part for o in answer.outputs for part in (o.truncated or "").split(" and ")}
    return lost("prompt" in found, "answer" in found)


def _per_byte(item: Item, answer: Answer, values: Mapping[str, Any]) -> float | None:
    """Nats per byte of a document; by the task's own count, where it has one."""
    counted = values.get("bits_per_byte", values.get("byte_perplexity"))
    if isinstance(counted, tuple) and len(counted) == 2:
        # WikiText counts the bytes before it mends the spaces of its documents.
        loglikelihood, size = counted
    else:
        loglikelihood = answer.outputs[0].loglikelihood
        size = len(str(item.instances[0].args[0]).encode("utf-8"))
    return number(loglikelihood / size) if size else None


def _no_score(deciding: Deciding) -> str:
    if deciding.source == "bytes":
        return "the document is empty, or its log-likelihood is not finite"
    return f"{deciding.metric} is not a number for this example"


def _first_of_each(item: Item, answer: Answer) -> tuple[float, ...] | None:
    """The choices' log-likelihoods; of a repeated request the first, as the harness judges."""
    if not item.choices or not answer.outputs:
        return None
    outputs = answer.outputs[:: repeats(item.instances[0])]
    lls = [o.loglikelihood for o in outputs if o.loglikelihood is not None]
    return tuple(lls[: len(item.choices)]) or None
