"""A harness task whose evaluation examples are documents of its training split.

A search compares trials on held-out training examples. It must ask as the evaluation
asks, and no document may be among its own few-shot examples, which are drawn from the
training split as a rule: the prompt would hold the answer.
"""

import copy
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

# (documents, seed) -> few-shot examples among them.
Redraw = Callable[[Sequence[Any], int], Sequence[Any]]


def evaluated_on(task: Any, docs: Any, labelled: bool = True) -> Any:
    """A copy of a harness task that is evaluated on `docs`; `task` itself stays as it is.

    Few-shot examples are those that the evaluation would draw, with the same seed, unless
    the document asked is among them: then they are drawn anew from the others (fewer, where
    there are not enough).

    Args:
        docs: documents as `task.training_docs()` has them, with a length, in their order.
        labelled: whether their right answers may be read; not those of unlabelled ones, in
            whose place stands anything.
    """
    twin = copy.copy(task)
    twin.__class__ = _kind(type(task))
    twin.labelled, twin.asked = labelled, None
    twin.several = bool(getattr(task, "multiple_input", 0))  # tasks in Python have none
    twin._config = copy.copy(task._config)
    twin._instances = None
    twin.task_docs = docs
    if hasattr(task, "sampler"):
        twin.sampler = _Sampler(twin, task.sampler)
    return twin


def _kind(base: Any) -> Any:
    """A class of tasks like `base` that know which document they ask, and ask `task_docs`."""

    class EvaluatedOn(base):  # type: ignore[misc]
        @property
        def eval_docs(self) -> Any:
            return self.task_docs

        def fewshot_context(self, doc: Any, *args: Any, **kwargs: Any) -> Any:
            self.asked = doc
            return super().fewshot_context(doc, *args, **kwargs)

        def doc_to_target(self, doc: Any, *args: Any, **kwargs: Any) -> Any:
            # With several inputs the target is what follows the blank, the same for all choices.
            if not self.labelled and doc is self.asked and not self.several:
                return ""
            return super().doc_to_target(doc, *args, **kwargs)

        def fewshot_examples(self, k: int, rnd: Random) -> Any:
            """Of tasks written in Python, which have no sampler."""
            drawn = super().fewshot_examples(k, rnd)

            def redraw(others: Sequence[Any], seed: int) -> Sequence[Any]:
                return Random(seed).sample(others, min(k, len(others)))

            return _others(self, drawn, self._training_docs, redraw)

    return EvaluatedOn


class _Sampler:
    """A task's sampler of few-shot examples that never draws the document asked."""

    def __init__(self, task: Any, sampler: Any) -> None:
        self._task = task
        self._sampler = copy.copy(sampler)

    def set_rnd(self, seed: int | None) -> "_Sampler":
        self._sampler.set_rnd(seed)
        return self

    def sample(self, n: int, eval_doc: Any = None, **kwargs: Any) -> Sequence[Any]:
        drawn = self._sampler.sample(n=n, eval_doc=eval_doc, **kwargs)

        def redraw(others: Sequence[Any], seed: int) -> Any:
            # A sampler of its own: later documents get the examples they would have had.
            spare = copy.copy(self._sampler)
            spare.fewshot_indices = None  # `others` are of these already
            spare.replace_df(others)
            spare.set_rnd(seed)
            return spare.sample(n=min(n, len(others)))

        return _others(self._task, drawn, self._sampler.df, redraw)


def _others(task: Any, drawn: Sequence[Any], pool: Sequence[Any], redraw: Redraw) -> Sequence[Any]:
    """`drawn`, or new ones if the document asked is among them."""
    asked = _words(task, task.asked)
    if all(_words(task, doc) != asked for doc in drawn):
        return drawn
    others = [doc for doc in pool if _words(task, doc) != asked]
    seed = int.from_bytes(hashlib.sha256(json.dumps(asked).encode()).digest()[:8], "big")
    return [doc for doc in redraw(others, seed) if _words(task, doc) != asked]


def _words(task: Any, doc: Any) -> list[str]:
    """What tells a document from others: the words of its question and choices, sorted.

    Not its fields: few-shot examples may be processed otherwise, and a task may shuffle the
    choices each time it is read (GPQA).
    """
    shots = getattr(task, "fewshot_cfg", None)
    if shots is None:
        texts = texts_of(task, doc)
    else:
        try:
            texts = texts_of(task, doc, shots.doc_to_text, shots.doc_to_choice)
        except Exception:  # few-shot examples may have fields that the document asked has not
            texts = texts_of(task, doc)
    words = [word for text in texts for word in _split(text)]
    return sorted(words or _split(str(task.doc_to_target(doc))))


def texts_of(task: Any, doc: Any, to_text: Any = None, to_choice: Any = None) -> list[str]:
    """The question and, of multiple choice, the choices; by templates of their own if given."""
    question = task.doc_to_text(doc) if to_text is None else task.doc_to_text(doc, to_text)
    # Winogrande's kind has the label here, the question in the choices and its end as target.
    texts = [question if isinstance(question, str) else str(task.doc_to_target(doc))]
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(doc, to_choice) if to_choice else task.doc_to_choice(doc)
        texts += [str(choice) for choice in choices]
    return texts


def _split(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)
