"""Which metric and which filter of a task decide whether an answer is right."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from muscle.errors import UserError
from muscle.tasks import examples as reading
from muscle.tasks.asking import FEWSHOT_SEED

# Aggregations of the harness that average one number per example.
_AVERAGES = frozenset({"mean", "nanmean"})

BYTES = "log_likelihood_per_byte"
EQUALITY = "acc"


@dataclass(frozen=True, slots=True)
class Deciding:
    """The deciding metric, and where its value of one example comes from.

    harness    the harness's `process_results`
    equality   whether the answer is the gold one: for tasks whose own metrics exist only
               for a whole data set (F1, MCC)
    bytes      nats per UTF-8 byte of a document, at most 0: for perplexity tasks; the
               example-level form of bits_per_byte, which is -value / ln 2
    """

    metric: str
    source: Literal["harness", "equality", "bytes"]
    filter: str


def decide(
    task: Any, name: str, single: Sequence[str], metric: str | None, filter_name: str | None
) -> Deciding:
    """The wanted metric and filter, or the task's first ones; `single` are `usable_metrics`.

    Raises:
        UserError: unknown, only an aggregate, or better when lower.
    """
    chosen = _filter(task, name, filter_name)
    known = list(task.aggregation())
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        if metric not in (None, BYTES):
            raise UserError(
                f"setting 'task.metric': task '{name}' measures whole documents and is judged "
                f"by {BYTES}"
            )
        return Deciding(BYTES, "bytes", chosen)
    usable = [m for m in single if task.higher_is_better().get(m, True)]
    # Of a given text it is only known whether the model would have written it.
    derivable = task.OUTPUT_TYPE in ("multiple_choice", "loglikelihood") and EQUALITY not in known
    if derivable and metric in (None, EQUALITY) and (metric or not usable):
        return Deciding(EQUALITY, "equality", chosen)
    listed = f"task '{name}' can be judged by {', '.join(usable) or 'none of its metrics'}"
    if metric is None:
        if not usable:
            raise UserError(
                f"setting 'task.name': {listed} ({', '.join(known)} say nothing about one example)"
            )
        return Deciding(usable[0], "harness", chosen)
    if metric in usable:
        return Deciding(metric, "harness", chosen)
    if metric not in known:
        raise UserError(f"setting 'task.metric': no metric '{metric}': {listed}")
    why = "is better when lower" if metric in single else "is only an aggregate"
    raise UserError(f"setting 'task.metric': '{metric}' {why}: {listed}")


def usable_metrics(task: Any) -> list[str]:
    """The task's metrics that give each example a number, in the task's order.

    Others exist only for a whole data set (F1, BLEU, perplexity, …). A metric with an
    aggregation of the task's own is tried on a made-up answer; where that fails it is taken
    to be usable, and its values are checked when answers are judged.
    """
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    registered = {function: name for name, function in AGGREGATION_REGISTRY.items()}
    names = {metric: registered.get(f) for metric, f in task.aggregation().items()}
    usable = [m for m, name in names.items() if name is None or name in _AVERAGES]
    if task.OUTPUT_TYPE == "generate_until" and all(names[m] for m in usable):
        return usable  # nothing to find out, and its metrics may load models of their own
    compound = _compound(task)
    return [m for m in usable if m not in compound]


def _compound(task: Any) -> set[str]:
    """The metrics whose value for the first example is no number, as far as can be told."""
    task.set_fewshot_seed(FEWSHOT_SEED)  # a task written in Python wants one even for no shots
    try:
        doc = next(iter(reading.documents(task)))
        context = task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc))
        made = task.construct_requests(doc=doc, ctx=context, metadata=(task.task_name, 0, 1))
        instances = made if isinstance(made, list) else [made]
        values = task.process_results(doc, [_made_up(i.request_type) for i in instances])
        return {m for m, v in values.items() if isinstance(v, tuple | list | dict | str)}
    except Exception:  # a task's own code may want a real answer
        return set()


def _made_up(kind: str) -> Any:
    if kind == "generate_until":
        return ""
    return -1.0 if kind == "loglikelihood_rolling" else (-1.0, False)


def _filter(task: Any, name: str, wanted: str | None) -> str:
    """`wanted`, or the task's first filter."""
    names = [str(f.name) for f in task._filters]
    if wanted is not None and wanted not in names:
        raise UserError(
            f"setting 'task.filter': no filter '{wanted}': task '{name}' has {', '.join(names)}"
        )
    return wanted or names[0]
