"""`Task`: what we ask of one lm-evaluation-harness task."""

import copy
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import astuple, replace
from typing import TYPE_CHECKING, Any

from muscle.config import TaskConfig
from muscle.errors import UserError
from muscle.tasks import asking, deciding
from muscle.tasks import examples as reading
from muscle.tasks.judge import Judge, Judged
from muscle.tasks.prompting import PLAIN, Prompting
from muscle.types import Answer, Prediction, Query, Question, TrainingExample

if TYPE_CHECKING:
    from muscle.models.chat_template import ChatTemplate


def load_task(config: TaskConfig) -> "Task":
    """Build the task that a config describes; imports the harness (seconds).

    Raises:
        UserError: anything about the task that the user can mend.
    """
    if config.is_chat:
        from muscle.tasks.chat import load_chat_task

        return load_chat_task(config)
    if config.is_own:
        from muscle.tasks.own import build_own_task

        harness = build_own_task(config)
    else:
        from muscle.tasks.harness import build_harness_task

        harness = build_harness_task(config)
    return Task(config, harness)


class Task:
    """A task: training examples, evaluation queries, and the judge of answers.

    name              our name of it, also of its prediction files
    metric, filter    what decides whether an answer is right
    version           the harness's version of the task, as text
    higher_is_better  always true of the deciding metric (others are refused)
    notes             what a user should know of its data
    date              today, as chat templates are told it; None: the fixed day
    groups            training ids -> groups that stay on one side of every split; mostly none

    What takes a template or a prompting needs it for chats alone (`muscle.tasks.chat`).
    """

    is_chat = False

    def __init__(self, config: TaskConfig, harness: Any) -> None:
        self.name = config.name
        self._config = config
        self._harness = self._whole = harness  # `on_training` asks another one
        from muscle.tasks.harness import quiet

        with quiet():
            single = deciding.usable_metrics(harness)
        chosen = deciding.decide(harness, self.name, single, config.metric, config.filter)
        self.metric, self.filter = chosen.metric, chosen.filter
        # Metrics of a whole data set only; asked now, since judging may add names.
        self._judging = (self.name, chosen, set(harness.aggregation()) - set(single))
        self._judge = Judge(harness, *self._judging)
        self.version = str(harness.VERSION)
        self.higher_is_better = True
        self.notes: tuple[str, ...] = ()
        self.date = config.date
        self.groups: dict[str, str] = {}
        self._training: tuple[Any, list[str]] | None = None
        self._examples: list[TrainingExample] | None = None
        self._ids: list[str] | None = None  # of the evaluation examples, if not by their rows
        self._places: list[str] | None = None  # of unlabelled ones
        self._items_of: tuple[int | None, list[asking.Item]] | None = None
        self._asked: tuple[int | None, Prompting, list[Query]] | None = None
        if config.max_gen_toks is not None:
            self._set_max_gen_toks(config.max_gen_toks)

    @property
    def generates(self) -> bool:
        """Whether the model writes answers (else it scores given ones)."""
        return bool(self._harness.OUTPUT_TYPE == "generate_until")

    @property
    def gives_choices(self) -> bool:
        """Whether it gives the answers that a model chooses from."""
        return bool(self._harness.OUTPUT_TYPE == "multiple_choice")

    def settings(self) -> dict[str, Any]:
        """What of the task's own settings changes its prompts or answers, as JSON values."""
        config = getattr(self._harness, "config", None)
        kwargs = getattr(config, "generation_kwargs", None) if self.generates else None
        return {
            "task_version": self.version,
            "num_fewshot": int(getattr(config, "num_fewshot", None) or 0),
            "generation": json.loads(json.dumps(kwargs, default=str)) if kwargs else None,
        }

    @property
    def has_training(self) -> bool:
        """Whether there is a training split with prompts and answers."""
        return bool(self._harness.has_training_docs()) and not self._scores_documents

    def training_examples(self, template: "ChatTemplate | None" = None) -> list[TrainingExample]:
        """The training split, zero-shot, with the gold answer exactly as it is scored.

        Raises:
            UserError: no training split, an empty one, or a row that can't be rendered.
        """
        if not self.has_training:
            raise UserError(self._no_training())
        if self._examples is None:
            self._examples = self._build_examples()
        return list(self._examples)

    def validation_examples(
        self, template: "ChatTemplate | None" = None
    ) -> list[TrainingExample] | None:
        """The examples of a validation file of the user's; None where there is none."""
        return None

    def template_notes(self, template: "ChatTemplate", who: str) -> tuple[str, ...]:
        """What one version's chat template makes of the data that its user should know."""
        return ()

    def on_training(self, ids: Collection[str]) -> "Task":
        """This task, evaluated on the training examples with these ids, in their order.

        All else is the same: shots, description, choices, metric. A document is never among
        its own few-shot examples (see `muscle.tasks.tuning`).

        Args:
            ids: ids of `training_examples()`; queries and predictions have them too.

        Raises:
            UserError: no ids, no training split, or an empty one.
            ValueError: an id that no training example has.
        """
        if not self.has_training:
            raise UserError(self._no_training())
        wanted = set(ids)
        if not wanted:
            raise UserError(
                f"task '{self.name}': no training example is held out to tune on: give more "
                "training examples or a larger training.tuning_fraction"
            )
        docs, names = self._training_documents()
        unknown = sorted(wanted - set(names))
        if unknown:
            raise ValueError(
                f"task '{self.name}' has no training example '{unknown[0]}' "
                f"({len(unknown)} such ids)"
            )
        rows = [row for row, name in enumerate(names) if name in wanted]
        some = docs.select(rows) if hasattr(docs, "select") else [docs[row] for row in rows]
        return self.on_documents(some, [names[row] for row in rows])

    def on_validation(self, ids: Sequence[str]) -> "Task":
        """The same of examples that choose the epoch, wherever they are from."""
        return self.on_training(ids)

    def on_documents(
        self, docs: Any, ids: Sequence[str], places: Sequence[str] | None = None
    ) -> "Task":
        """This task, evaluated on other documents.

        Args:
            docs: as the harness's task has them, with a length.
            ids: theirs.
            places: what messages call them, where nobody labelled them: such a task can ask,
                and no right answer is ever read.
        """
        from muscle.tasks.tuning import evaluated_on

        twin = copy.copy(self)
        twin._harness = evaluated_on(self._whole, docs, labelled=places is None)
        twin._judge = Judge(twin._harness, *self._judging)
        twin._ids, twin._places = list(ids), None if places is None else list(places)
        twin._items_of = twin._asked = None
        return twin

    def asked_texts(self) -> list[str]:
        """What tells each evaluation example's question from others, in the order of `queries()`:
        see `muscle.tasks.asking.asked_text`. Of chats their messages.

        Raises:
            UserError: an example that can't be rendered.
        """
        from muscle.tasks.harness import quiet

        with quiet():
            docs = list(reading.documents(self._harness))
            rows = (f"task '{self.name}', row {i} of the split" for i in range(1, len(docs) + 1))
            places = self._places or list(rows)
            made = zip(docs, places, strict=True)
            return [asking.asked_text(self._harness, doc, place) for doc, place in made]

    def queries(self, limit: int | None = None, prompting: Prompting | None = None) -> list[Query]:
        """The evaluation requests of the first `limit` examples, all of them without one.

        Few-shot examples are drawn with a fixed seed from the first example on, so
        examples have the same prompts whatever the limit. A task that wants N answers to a
        request (majority votes) has it N times in a row: sample each place anew.

        Args:
            prompting: chat template and system instruction; without it the task's own text.
                Whole documents (perplexity tasks) are scored as they are in any case.

        Raises:
            UserError: an empty split, a row that can't be rendered or has no choices, a
                chat template that refuses, a task in Python that knows none.
        """
        prompting = prompting or PLAIN
        items = self._items(limit)
        if prompting.is_plain or self._scores_documents:
            return [Query(item.id, asking.requests_of(item.instances)) for item in items]
        if self._asked is None or self._asked[:2] != (limit, prompting):
            self._asked = (limit, prompting, self._chat_queries(limit, prompting, items))
        return list(self._asked[2])

    def questions(self, prompting: Prompting | None = None) -> list[Question]:
        """`queries()` with what is known of their answers, to distil on.

        Raises:
            UserError: as `queries`; the task has neither given nor written answers.
        """
        kind = self._harness.OUTPUT_TYPE
        if kind not in ("multiple_choice", "generate_until"):
            what = (
                "measures whole documents"
                if self._scores_documents
                else "scores one given text, with no other choice"
            )
            raise UserError(
                f"task '{self.name}' {what}: there are no answers to distil, so set "
                "compatibility.level: token"
            )
        pairs = zip(self._items(None), self.queries(None, prompting), strict=True)
        return [asking.question_of(item, query) for item, query in pairs]

    def judge(
        self,
        answers: Sequence[Answer],
        limit: int | None = None,
        prompting: Prompting | None = None,
    ) -> Judged:
        """Judge one answer for each of `queries(limit)`, whatever they were prompted with.

        An answer with an error becomes a prediction without a score, never a lost row.
        `Prediction.question` is the task's own prompt, without chat template and system
        instruction: the same for all models.

        Raises:
            UserError: answers missing, unknown or double; metrics that fail, or a deciding
                metric that is not a number for single examples.
            ValueError: outputs that don't fit the requests.
        """
        from muscle.tasks.harness import quiet

        items = self._items(limit)
        with quiet():
            return self._judge.judge(items, answers)

    def predictions(self, answers: Sequence[Answer], limit: int | None = None) -> list[Prediction]:
        """`judge` without the scores of the whole: one prediction for each query, in order."""
        return self.judge(answers, limit).predictions

    def fingerprint(self) -> str:
        """sha256 over all that the task puts into training and evaluation, no paths."""
        return _sha256([self.training_fingerprint(), self.evaluation_fingerprint()])

    def training_fingerprint(self, template: "ChatTemplate | None" = None) -> str:
        """sha256 over the rendered training examples (or over there being none)."""
        examples = self.training_examples() if self.has_training else []
        return _sha256([_parts(example) for example in examples])

    def evaluation_fingerprint(
        self, limit: int | None = None, prompting: Prompting | None = None
    ) -> str:
        """sha256 over queries, gold answers, how answers are judged, and the rows behind them."""
        config = self._harness.config
        judging = [self.metric, self.filter, self.version, config.metric_list, config.filter_list]
        items = [
            (
                item.id,
                item.gold,
                item.choices,
                [astuple(request) for request in query.requests],
                item.document,
            )
            for item, query in zip(self._items(limit), self.queries(limit, prompting), strict=True)
        ]
        return _sha256([judging, items])

    @property
    def _scores_documents(self) -> bool:
        return bool(self._harness.OUTPUT_TYPE == "loglikelihood_rolling")

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
        if self._scores_documents:
            return (
                f"task '{self.name}' measures whole documents, which have no prompt and answer "
                "to train on: take another task"
            )
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

        docs, names = self._training_documents()
        found = []
        self._harness.set_fewshot_seed(asking.FEWSHOT_SEED)  # wanted in Python even for no shots
        with quiet():
            for row, (name, doc) in enumerate(zip(names, docs, strict=True)):
                where = f"task '{self.name}', row {row + 1} of the training split"
                try:
                    prompt, answer = reading.training_text(self._harness, doc, row, where)
                except UserError:
                    raise
                except Exception as error:
                    raise UserError(f"{where} can't be rendered: {asking.reason(error)}") from error
                found.append(TrainingExample(id=name, prompt=prompt, answer=answer))
        return found

    def _training_documents(self) -> tuple[Any, list[str]]:
        """(documents, ids) of the training split; kept, since a task may shuffle its choices
        each time it is read."""
        from muscle.tasks.harness import quiet

        if self._training is None:
            with quiet():
                docs = self._whole.training_docs()
                rows = reading.empty_to_error(docs, f"task '{self.name}': the training split")
                # A data set takes much less memory than its rows.
                kept = docs if hasattr(docs, "select") else rows
                self._training = (kept, reading.row_ids(rows))
        return self._training

    def _items(self, limit: int | None) -> list[asking.Item]:
        """The evaluation examples; kept, since judging needs what asking has built."""
        from muscle.tasks.harness import quiet

        if self._items_of is None or self._items_of[0] != limit:
            with quiet():
                if self._places is not None and self._ids is not None:
                    items = asking.build_unread(self._harness, self._ids, self._places)[:limit]
                else:
                    items = asking.build_items(self._harness, self.name, limit)
            if self._ids is not None:
                named = zip(items, self._ids[: len(items)], strict=True)
                items = [replace(item, id=name) for item, name in named]
            self._items_of = (limit, items)
        return self._items_of[1]

    def _chat_queries(
        self, limit: int | None, prompting: Prompting, items: Sequence[asking.Item]
    ) -> list[Query]:
        from lm_eval.api.task import ConfigurableTask

        from muscle.tasks.harness import quiet

        if not isinstance(self._harness, ConfigurableTask):
            # The harness would quietly leave them away.
            raise UserError(
                f"task '{self.name}' is written in Python and takes neither a chat template nor a "
                "system instruction: leave them out"
            )
        try:
            with quiet():
                made = asking.build_instances(self._harness, limit, prompting)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"task '{self.name}' can't be rendered as a chat: {asking.reason(error)}"
            ) from error
        return [
            Query(item.id, asking.requests_of(instances))
            for item, instances in zip(items, made, strict=True)
        ]


def _parts(example: TrainingExample) -> tuple[Any, ...]:
    """What trains; of what is no chat the three texts alone, as ever, so that keys last."""
    return astuple(example)[: 3 if example.turns is None else None]


def _sha256(value: Any) -> str:
    # Functions in a metric list count by name: their address would differ in each process.
    text = json.dumps(value, default=lambda f: getattr(f, "__qualname__", type(f).__name__))
    return hashlib.sha256(text.encode()).hexdigest()
