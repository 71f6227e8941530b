"""From a model's outputs to predictions: the harness's filters and metrics decide."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from muscle.errors import UserError
from muscle.types import Answer, Output

# Aggregations of the harness that average one number per example.
_AVERAGES = frozenset({"mean", "nanmean"})


def usable_metrics(task: Any) -> list[str]:
    """The task's metrics that give each example a number, in the task's order.

    Others exist only for a whole data set (F1, BLEU, perplexity, …). A metric with an
    aggregation of the task's own is taken to be usable; `number` checks its values.
    """
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    aggregate_only = {f for name, f in AGGREGATION_REGISTRY.items() if name not in _AVERAGES}
    aggregations = task.aggregation()
    return [name for name, function in aggregations.items() if function not in aggregate_only]


def deciding_metric(task: Any, name: str, wanted: str | None) -> str:
    """`wanted`, or the task's first usable metric.

    Raises:
        UserError: unknown, only an aggregate, or better when lower.
    """
    usable = [m for m in usable_metrics(task) if task.higher_is_better().get(m, True)]
    known = list(task.aggregation())
    listed = f"task '{name}' can be judged by {', '.join(usable) or 'none of its metrics'}"
    if wanted is None:
        if not usable:
            raise UserError(
                f"setting 'task.name': {listed} ({', '.join(known)} say nothing about one example)"
            )
        return usable[0]
    if wanted in usable:
        return wanted
    if wanted not in known:
        raise UserError(f"setting 'task.metric': no metric '{wanted}': {listed}")
    reason = "is better when lower" if wanted in usable_metrics(task) else "is only an aggregate"
    raise UserError(f"setting 'task.metric': '{wanted}' {reason}: {listed}")


def deciding_filter(task: Any, name: str, wanted: str | None) -> str:
    """`wanted`, or the task's first filter."""
    names = [str(f.name) for f in task._filters]
    if wanted is not None and wanted not in names:
        raise UserError(
            f"setting 'task.filter': no filter '{wanted}': task '{name}' has {', '.join(names)}"
        )
    return wanted or names[0]


def number(value: Any) -> float | None:
    """A finite number as a float, None for anything else (tuples, NaN, …)."""
    import numpy as np

    if isinstance(value, int | float | np.number | np.bool_) and math.isfinite(value):
        return float(value)
    return None


def problem(answer: Answer, requests: int, generates: bool) -> str | None:
    """Why an answer can't be judged, or None.

    Raises:
        ValueError: it does not have one output of the right kind for each request.
    """
    if answer.error is not None:
        return answer.error
    if len(answer.outputs) != requests:
        raise ValueError(
            f"answer '{answer.id}' has {len(answer.outputs)} outputs for {requests} requests"
        )
    for output in answer.outputs:
        if (output.text is None) if generates else (output.loglikelihood is None):
            kind = "text" if generates else "log-likelihood"
            raise ValueError(f"answer '{answer.id}' has an output without a {kind}")
        if output.loglikelihood is not None and math.isnan(output.loglikelihood):
            # argmax would take the first NaN for the largest.
            return "a log-likelihood is not a number"
    return None


def response(output: Output, generates: bool) -> Any:
    """An output as the harness expects it of a model."""
    if generates:
        return output.text
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
