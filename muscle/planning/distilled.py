"""What answer-level distillation runs, in tokens: questions as trees, and what teachers are asked.

Given answers are read as the training reads them. Answers that models are still to write are
reckoned with: as many candidates as there can be, each as long as a right answer is on average
(as long as a written one may be, where nobody labelled any).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from muscle.answers import Reader
from muscle.candidates import writing_query
from muscle.config import Experiment
from muscle.losses.needs import needed_teachers
from muscle.models.encoding import Encoder
from muscle.planning.work import Asked, Trees, evaluation_work, new_tokens
from muscle.questions import Questions
from muscle.training.questions import choice_data
from muscle.types import Question, Request

ID_BYTES = 24
"""Of a question's id beside its scores on disk. Assumed."""


@dataclass(frozen=True)
class Distilled:
    """All of an experiment of level choice.

    train, validation  as the student reads them
    masks              how many masks [L, L] a row takes; 0 where each answer runs alone
    scoring            what each teacher is asked to score: both splits' answers
    writing            what each version is asked to write; empty where answers are given
    score_bytes        of one teacher's scores on disk
    notes              what the inputs have to be said of
    """

    train: Trees
    validation: Trees
    masks: int
    scoring: Mapping[str, Asked]
    writing: Mapping[str, Asked]
    score_bytes: int
    notes: tuple[str, ...]


def read_distilled(
    experiment: Experiment,
    reader: Reader,
    tokenizers: Mapping[str, Any],
    windows: Mapping[str, int],
    masks: int,
) -> Distilled:
    """Read the inputs of an experiment of level choice, and count.

    Args:
        tokenizers, windows: of old and new, by name.
        masks: as in `Distilled`.

    Raises:
        UserError: whatever is wrong with `compatibility.inputs`.
    """
    settings, length = experiment.compatibility, experiment.training.max_length
    asked = reader.read(settings)
    writes = reader.task.generates
    teachers = needed_teachers(settings)

    def trees(questions: list[Question], name: str) -> Trees:
        if writes:
            return _written(questions, tokenizers[name], length, settings.samples, masks > 0)
        return _given(questions, tokenizers[name], length, masks > 0)

    train, validation = (trees(part, "new") for part in (asked.new.train, asked.new.validation))
    scoring: dict[str, Asked] = {}
    writing: dict[str, Asked] = {}
    for name in ("old", "new"):
        both = _both(asked.old if name == "old" else asked.new)
        if name in teachers:
            scoring[name] = (
                _asked(_written(both, tokenizers[name], windows[name], settings.samples, True))
                if writes
                else evaluation_work([q.query for q in both], tokenizers[name], windows[name])
            )
        if writes:
            queries = [writing_query(q, settings.samples) for q in both]
            writing[name] = evaluation_work(queries, tokenizers[name], windows[name])
    answers = sum(train.answers) + sum(validation.answers)
    return Distilled(
        train,
        validation,
        masks,
        scoring,
        writing,
        4 * answers + ID_BYTES * (len(train) + len(validation)),
        asked.new.notes,
    )


def _both(questions: Questions) -> list[Question]:
    return [*questions.train, *questions.validation]


def _given(questions: Sequence[Question], tokenizer: Any, length: int, tree: bool) -> Trees:
    """As the training reads them."""
    data = choice_data(questions, tokenizer, length, {}, False, tree)
    shapes, scored = [], []
    for one in data.trees:
        shapes.append((len(one.rows), max(len(row.token_L) for row in one.rows)))
        places = [(row << 32) + node_n for row, node_n, _ in one.answers]
        scored.append(len(np.unique(np.concatenate(places))))
    return Trees(shapes, scored, [len(t.answers) for t in data.trees], data.truncated)


def _written(
    questions: Sequence[Question], tokenizer: Any, length: int, samples: int, tree: bool
) -> Trees:
    """With candidates that nobody has written yet."""
    encoder = Encoder(tokenizer)
    requests = [q.query.requests[0] for q in questions]
    chats = [q.query.chat is not None for q in questions]
    prompts = encoder.begun([r.context for r in requests], chats)
    labelled = [(i, q.gold_text) for i, q in enumerate(questions) if q.gold_text]
    right = [Request("loglikelihood", requests[i].context, q) for i, q in labelled]
    pairs = encoder.scored(right, [chats[i] for i, _ in labelled])
    gold = [len(p.continuation) + 1 for p in pairs if not isinstance(p, str)]  # and its end
    shapes, scored, answers, cut = [], [], [], 0
    for question, request, prompt in zip(questions, requests, prompts, strict=True):
        mean = round(sum(gold) / len(gold)) if gold else new_tokens(request.generation)
        each = max(1, min(mean, length - 1))
        count = 2 * (1 + samples) + bool(question.gold_text)
        kept = min(len(prompt), length - each)
        cut += kept < len(prompt)
        shapes.append((1, kept + count * each) if tree else (count, kept + each))
        scored.append(count * each)
        answers.append(count)
    return Trees(shapes, scored, answers, cut)


def _asked(trees: Trees) -> Asked:
    """What the evaluation engine runs of trees."""
    none = Asked(examples=len(trees))
    return replace(
        none,
        tokens=sum(map(trees.size, range(len(trees)))),
        squares=sum(rows * longest**2 for rows, longest in trees.shapes),
        scored=sum(trees.scored),
        longest=max((longest for _, longest in trees.shapes), default=0),
    )
