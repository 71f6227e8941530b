"""Reads single documents of a harness task: choices, gold, training text, question.

`task` is a task of the harness (a `ConfigurableTask`, or a `Task` written in Python), `doc`
one of its documents, `where` names the row in error messages.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from muscle.errors import UserError


def documents(task: Any) -> Any:
    """The documents that a task is evaluated on."""
    # A ConfigurableTask has read them already; a task written in Python reads them each time.
    found = getattr(task, "task_docs", None)
    return task.eval_docs if found is None else found


def row_ids(docs: Any, others: Sequence[str] | None = None) -> list[str]:
    """The rows' `id` fields if every row has one and no two are equal, else `others`, or 0, 1, …"""
    ids = [_id(doc) for doc in docs]
    known = [i for i in ids if i is not None]
    if len(known) == len(ids) and len(set(known)) == len(known):
        return known
    return [str(i) for i in range(len(ids))] if others is None else list(others)


def _id(doc: Any) -> str | None:
    value = doc.get("id") if isinstance(doc, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value) or None


def choice_texts(task: Any, doc: Any, where: str) -> tuple[str, ...] | None:
    """The choices of a multiple-choice document, None for other tasks.

    Raises:
        UserError: fewer than two choices, or an empty one (its length is a divisor).
    """
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    choices = task.doc_to_choice(doc)
    if not isinstance(choices, list | tuple) or len(choices) < 2:
        raise UserError(f"{where}: {len(choices or ())} choices: at least two are needed")
    texts = tuple(str(choice) for choice in choices)
    if not all(texts):
        raise UserError(f"{where}: choice {texts.index('')} is an empty text")
    return texts


def gold_index(task: Any, doc: Any, choices: Sequence[str], where: str) -> int:
    """The index of the right choice (the first, if the task accepts several).

    Raises:
        UserError: the gold answer is no choice, as in unlabelled test splits.
    """
    return gold_indexes(task, doc, choices, where)[0]


def gold_indexes(task: Any, doc: Any, choices: Sequence[str], where: str) -> list[int]:
    """The indexes of all choices that the task accepts, at least one.

    Raises:
        UserError: the gold answer is no choice, as in unlabelled test splits.
    """
    # Winogrande's kind puts the choices into the context and the gold into the "text".
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    found = []
    for one in gold if isinstance(gold, list | tuple) else [gold]:
        if isinstance(one, str) and one in choices:
            found.append(choices.index(one))
        elif isinstance(one, int) and 0 <= one < len(choices):
            found.append(int(one))
    if found:
        return found
    raise UserError(
        f"{where}: the gold answer {gold!r} is not among the {len(choices)} choices "
        "(is this split unlabelled?)"
    )


def gold_text(task: Any, doc: Any, choices: Sequence[str] | None, where: str) -> str:
    """The right answer as text (several accepted answers: the first); "" of a document."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return ""  # the target is the document, which is what the model is asked
    if choices is not None:
        return choices[gold_index(task, doc, choices, where)]
    target = task.doc_to_target(doc)
    if task.config.doc_to_choice is not None and isinstance(target, int):
        return str(task.doc_to_choice(doc)[target])
    if isinstance(target, list | tuple):
        if not target:
            raise UserError(f"{where}: the list of accepted answers is empty")
        target = target[0]
    return str(target)


def question(instances: Sequence[Any]) -> str:
    """The rendered context; where each choice has its own, what they share and a blank."""
    scored = [i.args for i in instances if i.args[0] != ""]
    contexts = [args[0] for args in scored] or [instances[0].args[0]]
    if len(set(contexts)) == 1:
        return str(contexts[0])
    letters = enumerate(zip(*contexts, strict=False))
    length = next((i for i, column in letters if len(set(column)) > 1), min(map(len, contexts)))
    shared = contexts[0][:length]
    return f"{shared[: shared.rfind(' ') + 1]}_{scored[0][1]}"


def training_text(task: Any, doc: Any, row: int, where: str) -> tuple[str, str]:
    """(prompt, answer) of a training document, split where evaluation splits it.

    Zero-shot with the task's description; the answer begins with the delimiter.

    Raises:
        UserError: broken choices or gold, or a row without any text.
    """
    prefix = task.doc_to_prefix(doc)
    choices = choice_texts(task, doc, where)
    context = task.fewshot_context(doc, num_fewshot=0, gen_prefix=prefix)
    if choices is None and task.OUTPUT_TYPE == "generate_until":
        answer = gold_text(task, doc, None, where)
        prompt, answer = context, _delimiter(task, prefix, answer) + answer
    else:
        made = task.construct_requests(doc=doc, ctx=context, metadata=(task.task_name, row, 1))
        instances = made if isinstance(made, list) else [made]
        gold = 0 if choices is None else gold_index(task, doc, choices, where)
        prompt, answer = instances[gold].args
    if not prompt.strip() and not answer.strip():
        raise UserError(f"{where}: prompt and answer are empty")
    return prompt, answer


def _delimiter(task: Any, prefix: str | None, answer: str) -> str:
    """What the harness's few-shot examples put before an answer (`build_qa_turn`)."""
    if not prefix:
        return str(task.config.target_delimiter)
    return "" if prefix[-1].isspace() or answer[:1].isspace() else " "


def empty_to_error(docs: Iterable[Any] | None, what: str) -> list[Any]:
    """The documents as a list, an error if there are none."""
    found = [] if docs is None else list(docs)
    if not found:
        raise UserError(f"{what} is empty: it needs at least one example")
    return found
