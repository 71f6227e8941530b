"""What is asked: the harness's instances of every example, as requests of ours."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from muscle.errors import UserError
from muscle.tasks import examples as reading
from muscle.tasks.prompting import PLAIN, Prompting
from muscle.tasks.rows import row_hash, short_fields
from muscle.tasks.tuning import texts_of
from muscle.types import Query, Question, Request

# The harness's default seed of few-shot examples, so that our prompts are its prompts.
FEWSHOT_SEED = 1234


@dataclass(frozen=True, slots=True)
class Item:
    """One evaluation example with the harness's instances of its plain requests.

    document, fields  of its row, see `muscle.tasks.rows`
    """

    id: str
    doc: Any
    instances: list[Any]
    choices: tuple[str, ...] | None
    gold: str
    document: str = ""
    fields: dict[str, str] = field(default_factory=dict)


def build_items(task: Any, name: str, limit: int | None) -> list[Item]:
    """The first `limit` evaluation examples of a harness task; call it inside `quiet`.

    Raises:
        UserError: an empty split, or a row that can't be rendered or has no choices.
    """
    what = f"task '{name}': the evaluation split"
    docs = reading.empty_to_error(reading.documents(task), what)
    failure: Exception | None = None
    made: list[list[Any]] = []
    try:
        made = build_instances(task, limit)
    except Exception as error:
        failure = error
    if len(made) != len(docs[:limit]):
        for row, doc in enumerate(docs[:limit]):  # better: the row that is at fault
            _read(task, doc, name, row)
        why = "some of its rows ask nothing" if failure is None else reason(failure)
        raise UserError(f"{what} can't be rendered: {why}") from failure
    items = []
    ids = reading.row_ids(docs)[: len(made)]
    for row, (example, instances) in enumerate(zip(ids, made, strict=True)):
        # The instances' document: a task may shuffle choices each time it is read.
        doc = instances[0].doc
        choices, gold = _read(task, doc, name, row)
        items.append(Item(example, doc, instances, choices, gold, row_hash(doc)))
    asked = [reading.question(item.instances) for item in items]
    short = short_fields([i.doc for i in items], asked, [i.gold for i in items])
    return [replace(item, fields=found) for item, found in zip(items, short, strict=True)]


def build_unread(task: Any, ids: Sequence[str], places: Sequence[str]) -> list[Item]:
    """All documents of a task whose answers nobody reads; call it inside `quiet`.

    Args:
        ids, places: of the documents; a place names one in messages.

    Raises:
        UserError: a document that can't be rendered or has no choices.
    """
    failure: Exception | None = None
    made: list[list[Any]] = []
    try:
        made = build_instances(task, None)
    except Exception as error:
        failure = error
    if len(made) != len(places):
        for doc, place in zip(list(reading.documents(task)), places, strict=True):
            _choices(task, doc, place)  # better: the one that is at fault
        why = "some ask nothing" if failure is None else reason(failure)
        raise UserError(f"{places[0]} and those after it can't be rendered: {why}") from failure
    items = []
    for name, instances, place in zip(ids, made, places, strict=True):
        doc = instances[0].doc
        items.append(Item(name, doc, instances, _choices(task, doc, place), "", row_hash(doc)))
    return items


def asked_text(task: Any, doc: Any, where: str) -> str:
    """What tells a document's question from others: its text and choices, without shots,
    without regard to case, white space and the choices' order; call it inside `quiet`.

    Raises:
        UserError: it can't be rendered.
    """
    try:
        question, *choices = (" ".join(t.casefold().split()) for t in texts_of(task, doc))
    except Exception as error:
        raise UserError(f"{where} can't be rendered: {reason(error)}") from error
    return "\n".join([question, *sorted(choices)])


def build_instances(task: Any, limit: int | None, prompting: Prompting = PLAIN) -> list[list[Any]]:
    """For each example its instances, built as `lm_eval.evaluator.evaluate` builds them."""
    chat = prompting.chat

    def template(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        assert chat is not None
        return chat(messages, add_generation_prompt)

    # The seed each time: the sampler is stateful, from one document to the next.
    task.set_fewshot_seed(FEWSHOT_SEED)
    task.build_all_requests(
        limit=limit,
        system_instruction=prompting.system_instruction,
        apply_chat_template=chat is not None,
        fewshot_as_multiturn=prompting.fewshot_as_multiturn,
        chat_template=None if chat is None else template,
    )
    found: dict[int, list[Any]] = defaultdict(list)
    for instance in task.instances:
        found[instance.doc_id].append(instance)
    return [sorted(found[doc_id], key=lambda i: i.idx) for doc_id in sorted(found)]


def requests_of(instances: Iterable[Any]) -> tuple[Request, ...]:
    """What a model is asked, in order: each instance as often as the task repeats it."""
    return tuple(r for i in instances for r in [_request(i)] * repeats(i))


def kinds_of(instances: Iterable[Any]) -> list[str]:
    """The kinds of `requests_of(instances)`."""
    return [str(i.request_type) for i in instances for _ in range(repeats(i))]


def question_of(item: Item, query: Query) -> Question:
    """A query with what is known of its answers."""
    if item.choices is None:
        (request, *_) = query.requests  # one answer is enough, however many are voted on
        return Question(Query(query.id, (request,), query.chat))
    # Some metrics ask more: each choice without its context comes after them.
    requests = query.requests[: len(item.choices)]
    gold = item.choices.index(item.gold) if item.gold in item.choices else None
    lengths = tuple(len(choice) for choice in item.choices)
    return Question(Query(query.id, requests, query.chat), gold, lengths)


def repeats(instance: Any) -> int:
    """How many answers an instance wants (for majority votes and the like)."""
    return int(instance.repeats or 1)


def reason(error: Exception) -> str:
    """An exception of the harness or of a task's own code, in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _choices(task: Any, doc: Any, where: str) -> tuple[str, ...] | None:
    try:
        task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc))
        return reading.choice_texts(task, doc, where)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where} can't be rendered: {reason(error)}") from error


def _read(task: Any, doc: Any, name: str, row: int) -> tuple[tuple[str, ...] | None, str]:
    where = f"task '{name}', row {row + 1} of the evaluation split"
    try:
        choices = reading.choice_texts(task, doc, where)
        return choices, reading.gold_text(task, doc, choices, where)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where} can't be rendered: {reason(error)}") from error


def _request(instance: Any) -> Request:
    if instance.request_type == "generate_until":
        context, generation = instance.args
        return Request(
            kind="generate_until",
            context=context,
            generation=json.dumps(generation, sort_keys=True, ensure_ascii=False),
        )
    if instance.request_type == "loglikelihood_rolling":
        (document,) = instance.args
        return Request(kind="loglikelihood_rolling", context=document)
    context, continuation = instance.args
    return Request(kind="loglikelihood", context=context, continuation=continuation)
