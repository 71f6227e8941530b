"""`Task`: what we ask of one lm-evaluation-harness task."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from muscle.config import TaskConfig
from muscle.errors import UserError
from muscle.tasks import examples as reading
from muscle.tasks import judge
from muscle.types import Answer, Prediction, Query, Request, TrainingExample

# The harness's default seed of few-shot examples, so that our prompts are its prompts.
FEWSHOT_SEED = 1234


def load_task(config: TaskConfig) -> "Task":
    """Build the task that a config describes; imports the harness (seconds).

    Raises:
        UserError: anything about the task that the user can mend.
    """
    if config.is_own:
        from muscle.tasks.own import build_own_task

        harness = build_own_task(config)
    else:
        from muscle.tasks.harness import build_harness_task

        harness = build_harness_task(config)
    return Task(config, harness)


@dataclass(frozen=True, slots=True)
class _Item:
    """One evaluation example with the harness's instances of its requests."""

    id: str
    doc: Any
    instances: list[Any]
    choices: tuple[str, ...] | None
    gold: str


class Task:
    """A task: training examples, evaluation queries, and the judge of answers.

    name              our name of it, also of its prediction files
    metric, filter    what decides whether an answer is right
    version           the harness's version of the task, as text
    higher_is_better  always true of the deciding metric (others are refused)
    """

    def __init__(self, config: TaskConfig, harness: Any) -> None:
        self.name = config.name
        self._config = config
        self._harness = harness
        self.metric = judge.deciding_metric(harness, self.name, config.metric)
        self.filter = judge.deciding_filter(harness, self.name, config.filter)
        # Metrics of a whole data set only; asked now, since judging may add names.
        self._aggregates = set(harness.aggregation()) - set(judge.usable_metrics(harness))
        self.version = str(harness.VERSION)
        self.higher_is_better = True
        self._examples: list[TrainingExample] | None = None
        self._items_of: tuple[int | None, list[_Item]] | None = None
        if config.max_gen_toks is not None:
            self._set_max_gen_toks(config.max_gen_toks)

    @property
    def generates(self) -> bool:
        """Whether the model writes answers (else it scores given ones)."""
        return bool(self._harness.OUTPUT_TYPE == "generate_until")

    @property
    def has_training(self) -> bool:
        """Whether there is a training split."""
        return bool(self._harness.has_training_docs())

    def training_examples(self) -> list[TrainingExample]:
        """The training split, zero-shot, with the gold answer exactly as it is scored.

        Raises:
            UserError: no training split, an empty one, or a row that can't be rendered.
        """
        if not self.has_training:
            raise UserError(self._no_training())
        if self._examples is None:
            self._examples = self._build_examples()
        return list(self._examples)

    def queries(self, limit: int | None = None) -> list[Query]:
        """The evaluation requests of the first `limit` examples, all of them without one.

        Few-shot examples are drawn with a fixed seed from the first example on, so
        examples have the same prompts whatever the limit.

        Raises:
            UserError: an empty split, or a row that can't be rendered or has no choices.
        """
        return [
            Query(id=item.id, requests=tuple(_request(i) for i in item.instances))
            for item in self._items(limit)
        ]

    def predictions(self, answers: Sequence[Answer], limit: int | None = None) -> list[Prediction]:
        """Judge one answer for each of `queries(limit)`; in the order of the queries.

        An answer with an error becomes a prediction without a score, never a lost row.

        Raises:
            UserError: answers missing, unknown or double; a deciding metric that is not
                a number for single examples.
            ValueError: outputs that don't fit the requests.
        """
        from muscle.tasks.harness import quiet

        items = self._items(limit)
        by_id = judge.matched([item.id for item in items], answers, self.name)
        problems = {
            item.id: judge.problem(by_id[item.id], len(item.instances), self.generates)
            for item in items
        }
        judged = [item for item in items if problems[item.id] is None]
        with quiet():
            self._filter(judged, by_id)
            found = [self._prediction(item, by_id[item.id], problems[item.id]) for item in items]
        for item in judged:
            for instance in item.instances:
                instance.resps, instance.filtered_resps = [], {}
        return found

    def fingerprint(self) -> str:
        """sha256 over all that the task puts into training and evaluation, no paths."""
        return _sha256([self.training_fingerprint(), self.evaluation_fingerprint()])

    def training_fingerprint(self) -> str:
        """sha256 over the rendered training examples (or over there being none)."""
        examples = self.training_examples() if self.has_training else []
        return _sha256([astuple(example) for example in examples])

    def evaluation_fingerprint(self, limit: int | None = None) -> str:
        """sha256 over queries, gold answers, and how answers are judged."""
        config = self._harness.config
        judging = [self.metric, self.filter, self.version, config.metric_list, config.filter_list]
        items = [
            (item.id, item.gold, item.choices, [astuple(_request(i)) for i in item.instances])
            for item in self._items(limit)
        ]
        return _sha256([judging, items])

    def _set_max_gen_toks(self, value: int) -> None:
        if not self.generates:
            raise UserError(
                f"setting 'task.max_gen_toks': task '{self.name}' scores given answers and "
                "generates none: leave it out"
            )
        # The harness knows four names of this setting.
        names = ("max_new_tokens", "max_tokens", "max_completion_tokens")
        kept = {k: v for k, v in self._harness.config.generation_kwargs.items() if k not in names}
        self._harness.set_config("generation_kwargs", {**kept, "max_gen_toks": value})

    def _no_training(self) -> str:
        if self._config.is_own:
            return f"setting 'task.train' is missing: task '{self.name}' needs a training file"
        if self._config.data_files is not None:
            return f"setting 'task.data_files': no 'train' file is given for task '{self.name}'"
        return (
            f"task '{self.name}' has no training split: give your own with task.data_files "
            "(train, and the split it is evaluated on), or take another task"
        )

    def _build_examples(self) -> list[TrainingExample]:
        from muscle.tasks.harness import quiet

        what = f"task '{self.name}': the training split"
        found = []
        with quiet():
            docs = reading.empty_to_error(self._harness.training_docs(), what)
            for row, (name, doc) in enumerate(zip(reading.row_ids(docs), docs, strict=True)):
                where = f"task '{self.name}', row {row + 1} of the training split"
                try:
                    prompt, answer = reading.training_text(self._harness, doc, row, where)
                except UserError:
                    raise
                except Exception as error:
                    raise UserError(f"{where} can't be rendered: {_reason(error)}") from error
                found.append(TrainingExample(id=name, prompt=prompt, answer=answer))
        return found

    def _items(self, limit: int | None) -> list[_Item]:
        """The evaluation examples; kept, since judging needs what asking has built."""
        if self._items_of is None or self._items_of[0] != limit:
            self._items_of = (limit, self._build_items(limit))
        return self._items_of[1]

    def _build_items(self, limit: int | None) -> list[_Item]:
        from muscle.tasks.harness import quiet

        task = self._harness
        what = f"task '{self.name}': the evaluation split"
        with quiet():
            docs = reading.empty_to_error(task.task_docs, what)
            checked = []
            for row, doc in enumerate(docs[:limit]):
                where = f"task '{self.name}', row {row + 1} of the evaluation split"
                try:
                    choices = reading.choice_texts(task, doc, where)
                    checked.append((choices, reading.gold_text(task, doc, choices, where)))
                except UserError:
                    raise
                except Exception as error:
                    raise UserError(f"{where} can't be rendered: {_reason(error)}") from error
            # The seed each time: the sampler is stateful, from one document to the next.
            task.set_fewshot_seed(FEWSHOT_SEED)
            try:
                task.build_all_requests(limit=limit)
            except Exception as error:
                raise UserError(f"{what} can't be rendered: {_reason(error)}") from error
        instances: list[list[Any]] = [[] for _ in checked]
        for instance in task.instances:
            instances[instance.doc_id].append(instance)
        ids = reading.row_ids(docs)[: len(checked)]
        return [
            _Item(name, made[0].doc, sorted(made, key=lambda i: i.idx), choices, gold)
            for name, made, (choices, gold) in zip(ids, instances, checked, strict=True)
        ]

    def _filter(self, items: Sequence[_Item], by_id: Any) -> None:
        """Put the outputs into the instances and run the harness's filters over them."""
        instances = []
        for item in items:
            for instance, output in zip(item.instances, by_id[item.id].outputs, strict=True):
                instance.resps = [judge.response(output, self.generates)]
                instance.filtered_resps = {}
                instances.append(instance)
        if instances:  # the filters can't do nothing
            self._harness._instances = instances
            self._harness.apply_filters()

    def _prediction(self, item: _Item, answer: Answer, error: str | None) -> Prediction:
        lls = [o.loglikelihood for o in answer.outputs if o.loglikelihood is not None]
        metrics: dict[str, float] = {}
        score, text = None, None
        if error is None:
            metrics, score = self._scores(item)
            text = self._text(item, answer)
            if score is None:
                error = f"{self.metric} is not a number for this example"
        return Prediction(
            task=self.name,
            id=item.id,
            question=reading.question(item.instances),
            gold=item.gold,
            prediction=None if error else text,
            metric=self.metric,
            score=score,
            metrics=metrics,
            choices=item.choices,
            loglikelihoods=tuple(lls[: len(item.choices)]) if item.choices and lls else None,
            error=error,
        )

    def _scores(self, item: _Item) -> tuple[dict[str, float], float | None]:
        """(all metrics of one example, the deciding one)."""
        names = list(item.instances[0].filtered_resps)
        metrics: dict[str, float] = {}
        score = None
        for filter_name in names:
            results = [i.filtered_resps[filter_name] for i in item.instances]
            values = self._harness.process_results(item.doc, results)
            for metric, value in values.items():
                found = None if metric in self._aggregates else judge.number(value)
                if found is not None:
                    metrics[f"{metric},{filter_name}" if len(names) > 1 else metric] = found
            if filter_name == self.filter:
                score = self._deciding(values)
        return metrics, score

    def _deciding(self, values: dict[str, Any]) -> float | None:
        """The deciding metric's value; None for NaN, an error for what is no number."""
        value = values.get(self.metric)
        score = judge.number(value)
        if score is None and not isinstance(value, float):
            numeric = [m for m, v in values.items() if judge.number(v) is not None]
            raise UserError(
                f"setting 'task.metric': task '{self.name}' gives no number for '{self.metric}' "
                f"of one example; usable are {', '.join(numeric) or 'none'}"
            )
        return score

    def _text(self, item: _Item, answer: Answer) -> str:
        """The answer given, as text."""
        if item.choices is not None:
            return item.choices[judge.chosen(self.metric, answer.outputs, item.choices)]
        if self.generates:
            return str(item.instances[0].filtered_resps[self.filter])
        # Log-likelihood of one given text (LAMBADA): all we know is whether it is greedy.
        return item.gold if answer.outputs[0].is_greedy else ""


def _request(instance: Any) -> Request:
    if instance.request_type == "generate_until":
        context, generation = instance.args
        return Request(
            kind="generate_until",
            context=context,
            generation=json.dumps(generation, sort_keys=True, ensure_ascii=False),
        )
    context, continuation = instance.args
    return Request(kind="loglikelihood", context=context, continuation=continuation)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _sha256(value: Any) -> str:
    # Functions in a metric list count by name: their address would differ in each process.
    text = json.dumps(value, default=lambda f: getattr(f, "__qualname__", type(f).__name__))
    return hashlib.sha256(text.encode()).hexdigest()
