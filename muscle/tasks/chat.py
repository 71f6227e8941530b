"""A task whose examples are the user's own chats.

Each version is asked by its own template, so training examples and queries are made for a
template. What pairs the versions is the chat itself: id, messages, tools and gold.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from muscle.config import TaskConfig
from muscle.errors import UserError, some
from muscle.tasks import asking
from muscle.tasks.chat_rows import (
    Chat,
    groups_of,
    normal_text,
    overlap_text,
    overlaps,
    read_chats,
)
from muscle.tasks.examples import documents
from muscle.tasks.files import to_dataset
from muscle.tasks.harness import quiet
from muscle.tasks.judge import Judged
from muscle.tasks.prompting import Prompting
from muscle.tasks.rows import OWN, own_row, row_of
from muscle.tasks.scorers import (
    Score,
    as_text,
    make_scorer,
    scorer_fingerprint,
)
from muscle.tasks.task import Task
from muscle.types import Answer, Prediction, Query, Request, TrainingExample

if TYPE_CHECKING:
    from muscle.models.chat_template import ChatTemplate

DEFAULT_MAX_GEN_TOKS = 256
"""Tokens of a written answer, where task.max_gen_toks doesn't say."""

NO_TEMPLATE = "a task of chats is asked by a template: give Prompting(template=…)"


def load_chat_task(config: TaskConfig) -> "ChatTask":
    """Read and check all files of a task of chats.

    Raises:
        UserError: a file, row, label, scorer or split that can't be used; training chats that
            the test knows, unless `task.overlap` allows them.
    """
    assert config.test is not None
    files = {"train": config.train, "validation": config.validation, "test": config.test}
    chats = {key: read_chats(config, key, path) for key, path in files.items() if path}
    notes = []
    for key in ("train", "validation"):
        found = overlaps(chats.get(key, []), chats["test"], config.group)
        if not found:
            continue
        text = overlap_text(found, len(chats[key]), "training" if key == "train" else key)
        if config.overlap == "refuse":
            raise UserError(
                f"{text}: a test that was trained on proves nothing; take them out, or set "
                "task.overlap to drop (leaves them out of training) or keep"
            )
        if config.overlap == "drop":
            chats[key] = [chat for chat in chats[key] if chat.id not in found]
            if not chats[key]:
                raise UserError(f"{text}: task.overlap 'drop' leaves no {key} chat")
        notes.append(text + ("; they are left out" if config.overlap == "drop" else ""))
    return ChatTask(config, chats, tuple(notes))


class ChatTask(Task):
    """See the module; made by `load_chat_task`.

    notes   what a user should know of the files
    groups  of the training chats, id -> group: of `task.group`, else of equal chats. All splits
            go by them and by ids, so that they are the same whatever the template
    """

    is_chat = True

    def __init__(
        self, config: TaskConfig, chats: Mapping[str, Sequence[Chat]], notes: tuple[str, ...] = ()
    ) -> None:
        every = [chat for part in chats.values() for chat in part]
        self._chats = {key: {chat.id: chat for chat in part} for key, part in chats.items()}
        self._scores: dict[str, Score] = {}
        golds = sorted({as_text(chat.gold) for chat in every}) if _is_label(config) else []
        self._labels = config.choices or config.labels or golds
        _check_golds(config, every, self._labels)
        super().__init__(config, self._build(config, chats))
        self.notes = notes
        self.groups = groups_of(self._chats.get("train", {}).values(), config.group)
        self._examples_of: dict[str, list[TrainingExample]] = {}
        self._queries_of: dict[tuple[int | None, str], list[Query]] = {}

    # --- training -----------------------------------------------------------------------

    def training_examples(self, template: "ChatTemplate | None" = None) -> list[TrainingExample]:
        """The training split as a template renders it, the gold answer as the last turn.

        Raises:
            UserError: no training file, or a row that the template refuses.
        """
        if not self.has_training:
            raise UserError(self._no_training())
        return self._rendered("train", template)

    def validation_examples(
        self, template: "ChatTemplate | None" = None
    ) -> list[TrainingExample] | None:
        """The validation file's chats likewise; None where there is none."""
        return self._rendered("validation", template) if "validation" in self._chats else None

    def training_fingerprint(self, template: "ChatTemplate | None" = None) -> str:
        """sha256 over the rendered training (and validation) chats, and their groups."""
        parts: list[Any] = [sorted(self.groups.items())]
        for key in ("train", "validation"):
            if key in self._chats:
                parts.append([_example_parts(e) for e in self._rendered(key, template)])
        return _sha256(parts)

    def template_notes(self, template: "ChatTemplate", who: str) -> tuple[str, ...]:
        """What one version's template makes of the chats that its user should know."""
        found = []
        rewritten = [
            example
            for example in (self._rendered("train", template) if self.has_training else [])
            if len(example.turns or ()) < _turns(self._chats["train"][example.id])
        ]
        if rewritten:
            found.append(
                f"{who}: its chat template rewrites earlier turns once later ones follow: "
                f"{len(rewritten)} training chats train their last turn only "
                f"({some([e.id for e in rewritten])})"
            )
        tools = [chat for chat in self._chats["test"].values() if chat.tools]
        ignored = [c for c in tools if template.ignores(c.messages, c.tools)]
        if ignored:
            found.append(
                f"{who}: its chat template ignores the tools of {len(ignored)} test chats "
                f"({ignored[0].id}, …): the model is never told of them"
            )
        return tuple(found)

    def on_training(self, ids: Collection[str]) -> "ChatTask":
        """As `Task.on_training`."""
        twin = super().on_training(ids)
        assert isinstance(twin, ChatTask)
        twin._chats = {**self._chats, "test": self._chats["train"]}
        return twin

    def on_documents(
        self, docs: Any, ids: Sequence[str], places: Sequence[str] | None = None
    ) -> "ChatTask":
        """As `Task.on_documents`; the chats are those of this task's evaluation."""
        twin = super().on_documents(docs, ids, places)
        assert isinstance(twin, ChatTask)
        twin._queries_of, twin._scores = {}, {}
        if self._config.choices is None:
            twin._harness.set_config("process_results", twin._process)
        return twin

    def on_validation(self, ids: Sequence[str]) -> "ChatTask":
        """As `Task.on_validation`."""
        chats = self._chats.get("validation")
        return self.on_training(ids) if chats is None else self.on_chats([chats[i] for i in ids])

    def on_chats(self, chats: Sequence[Chat], labelled: bool = True) -> "ChatTask":
        """This task, asked other chats."""
        docs = to_dataset([_doc(self._config, chat) for chat in chats], "chats")
        places = None if labelled else [chat.where for chat in chats]
        twin = self.on_documents(docs, [chat.id for chat in chats], places)
        twin._chats = {**self._chats, "test": {chat.id: chat for chat in chats}}
        return twin

    def asked_texts(self) -> list[str]:
        """As `Task.asked_texts`."""
        docs = documents(self._harness)
        return [normal_text(self._chats["test"][doc["id"]]) for doc in docs]

    # --- asking and judging ---------------------------------------------------------------

    def queries(self, limit: int | None = None, prompting: Prompting | None = None) -> list[Query]:
        """The chats as one version's template asks them, or for a server that renders itself.

        Raises:
            ValueError: neither a template nor a server.
            UserError: a row that the template refuses; choices at a server.
        """
        prompting = prompting or Prompting()
        if prompting.template is None and not prompting.server:
            raise ValueError(NO_TEMPLATE)
        name = prompting.template.name if prompting.template else "server"
        if (limit, name) not in self._queries_of:
            made = [self._query(item, prompting) for item in self._items(limit)]
            self._queries_of[limit, name] = made
        return list(self._queries_of[limit, name])

    def judge(
        self,
        answers: Sequence[Answer],
        limit: int | None = None,
        prompting: Prompting | None = None,
    ) -> Judged:
        """As `Task.judge`; predictions also say what this version was asked, and why they score
        what they score."""
        self._scores.clear()
        judged = super().judge(answers, limit)
        prompts: dict[str, str] = {}
        if prompting is not None and prompting.template is not None:
            prompts = {q.id: q.requests[0].context for q in self.queries(limit, prompting)}
        found = [self._explained(p, prompts.get(p.id)) for p in judged.predictions]
        return replace(judged, predictions=found)

    def fingerprint(self) -> str:
        """sha256 over the chats of all splits and how they are judged; of no template."""
        scorer = scorer_fingerprint(_scorer_name(self._config))
        data = {
            key: [[c.id, c.messages, c.tools, c.gold] for c in part.values()]
            for key, part in self._chats.items()
        }
        return _sha256([data, scorer, self._labels, sorted(self.groups.items())])

    def evaluation_fingerprint(
        self, limit: int | None = None, prompting: Prompting | None = None
    ) -> str:
        """As `Task.evaluation_fingerprint`, with the chats themselves and the scorer."""
        chats = [query.chat for query in self.queries(limit, prompting)]
        scorer = scorer_fingerprint(_scorer_name(self._config))
        base = super().evaluation_fingerprint(limit, prompting)
        return _sha256([base, chats, scorer, self._labels])

    # --- how it is done ---------------------------------------------------------------------

    def _items(self, limit: int | None) -> list[asking.Item]:
        items = super()._items(limit)
        return [replace(i, document=_document(self._chat_of(i))) for i in items]

    def _chat_of(self, item: asking.Item) -> Chat:
        return self._chats["test"][item.id]

    def _query(self, item: asking.Item, prompting: Prompting) -> Query:
        chat, template = self._chat_of(item), prompting.template
        if template is None and item.choices is not None:
            raise UserError(
                f"task '{self.name}': a server renders chats itself and can't score given answers "
                "in them: give 'labels' in the place of 'choices', and the answer is written"
            )
        try:
            requests = [self._request(i, chat, template) for i in item.instances]
        except UserError as error:
            raise UserError(f"{chat.where}: {error}") from None
        return Query(item.id, tuple(requests), chat.asked)

    def _request(self, instance: Any, chat: Chat, template: "ChatTemplate | None") -> Request:
        if instance.request_type == "generate_until":
            settings = dict(instance.args[1])
            if template is not None:
                settings["until"] = [*settings["until"], template.end_of_turn]
            text = "" if template is None else template.prompt(chat.messages, chat.tools)
            generation = json.dumps(settings, sort_keys=True, ensure_ascii=False)
            return Request("generate_until", text, "", generation)
        assert template is not None and self._config.choices is not None
        label = self._config.choices[instance.idx]
        rendered = template.conversation([*chat.messages, _said(label)], chat.tools)
        start, end = rendered.turns[-1]
        # What ends the turn is no part of the answer: all labels have it alike.
        written = rendered.text[start : end - len(template.end_of_turn)]
        return Request("loglikelihood", rendered.text[:start], written)

    def _rendered(self, key: str, template: "ChatTemplate | None") -> list[TrainingExample]:
        if template is None:
            raise ValueError(NO_TEMPLATE)
        place = f"{key}\n{template.name}"
        if place not in self._examples_of:
            chats = self._chats[key].values()
            self._examples_of[place] = [_example(chat, template) for chat in chats]
        return list(self._examples_of[place])

    def _explained(self, prediction: Prediction, prompt: str | None) -> Prediction:
        score = self._scores.get(prediction.id)
        if score is None or (prediction.error is not None and score.value is not None):
            return replace(prediction, prompt=prompt)
        error = score.reason if score.value is None else prediction.error
        return replace(prediction, prompt=prompt, reason=score.reason, error=error)

    def _process(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
        """The harness's `process_results`: the scorer decides, its reason is kept."""
        row = row_of(doc)
        chat = self._chats["test"][doc["id"]]
        score = self._scores[doc["id"]] = self._scorer(results[0], chat.gold, row)
        value = float("nan") if score.value is None else score.value
        return {self._scorer_metric: value, **score.metrics}

    def _build(self, config: TaskConfig, chats: Mapping[str, Sequence[Chat]]) -> Any:
        """The harness's task, which knows chats in plain words only."""
        from lm_eval.api.task import ConfigurableTask

        data = {
            key: to_dataset([_doc(config, chat) for chat in part], str(getattr(config, key)))
            for key, part in chats.items()
        }
        settings: dict[str, Any] = {
            "task": config.name,
            "custom_dataset": lambda **_: data,
            "training_split": "train" if "train" in data else None,
            "test_split": "test",
            "doc_to_text": "prompt",
            "target_delimiter": " ",
            "num_fewshot": 0,
            "metadata": {"version": 1},
        }
        if config.choices is not None:
            settings |= {
                "output_type": "multiple_choice",
                "doc_to_choice": "choices",
                "doc_to_target": "gold",
                "metric_list": [_metric("acc")],
            }
        else:
            scorer, metric, further = make_scorer(_scorer_name(config), self._labels)
            self._scorer, self._scorer_metric = scorer, metric
            settings |= {
                "output_type": "generate_until",
                "doc_to_target": "answer",
                "generation_kwargs": {
                    "until": config.until or [],
                    "max_gen_toks": config.max_gen_toks or DEFAULT_MAX_GEN_TOKS,
                    "do_sample": False,
                    "temperature": 0.0,
                },
                "process_results": self._process,
                "metric_list": [_metric(name) for name in (metric, *further)],
            }
        with quiet():
            return ConfigurableTask(config=settings)


def _scorer_name(config: TaskConfig) -> str:
    return config.scorer or ("label" if config.labels else "exact")


def _is_label(config: TaskConfig) -> bool:
    return config.choices is None and _scorer_name(config) == "label"


def _check_golds(config: TaskConfig, chats: Sequence[Chat], labels: Sequence[str]) -> None:
    """Refuse gold answers that the scorer can't judge by.

    Raises:
        UserError: names the row.
    """
    for chat in chats:
        text = as_text(chat.gold)
        if (config.choices or config.labels) and text not in labels:
            known = ", ".join(labels)
            raise UserError(f"{chat.where}: the right answer {text!r} is not among {known}")
        if not text.strip():
            raise UserError(f"{chat.where}: the right answer is empty")
        if config.scorer == "json_fields" and not isinstance(chat.gold, dict):
            raise UserError(
                f"{chat.where}: the right answer {text[:60]!r} is no JSON object, whose fields "
                "task.scorer 'json_fields' compares"
            )


def _said(answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": answer}


def _turns(chat: Chat) -> int:
    """How many assistant's turns a training chat has, the gold answer included."""
    return 1 + sum(message["role"] == "assistant" for message in chat.messages)


def _example(chat: Chat, template: "ChatTemplate") -> TrainingExample:
    try:
        made = template.conversation([*chat.messages, _said(as_text(chat.gold))], chat.tools)
    except UserError as error:
        raise UserError(f"{chat.where}: {error}") from None
    first = made.turns[0][0]
    return TrainingExample(chat.id, made.text[:first], made.text[first:], made.turns)


def _example_parts(example: TrainingExample) -> list[Any]:
    return [example.id, example.prompt, example.answer, example.turns]


def _doc(config: TaskConfig, chat: Chat) -> dict[str, Any]:
    doc: dict[str, Any] = {"id": chat.id, "prompt": chat.text, OWN: own_row(chat.row)}
    gold = None if chat.gold is None else as_text(chat.gold)
    if config.choices is None:
        return doc | {"answer": gold or ""}
    place = 0 if gold is None else config.choices.index(gold)
    return doc | {"choices": config.choices, "gold": place}


def _document(chat: Chat) -> str:
    """What pairs versions: the chat and its right answer, whatever else its row holds."""
    return _sha256([chat.messages, chat.tools, chat.gold])[:16]


def _metric(name: str) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
