"""The sides of training.py --choices: one step on inputs with K answers, and its plain peers.

Random prompts of `length` tokens, K answers of `answer_tokens` each; the first is right. All sides
train the same inputs in the same micro-batches. Run by steps.py.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import steps
import torch

from muscle.config import CompatibilityConfig
from muscle.evaluation.attention import tree_masks
from muscle.evaluation.scoring import Scorer
from muscle.losses.choices import choice_sums
from muscle.losses.distillation import TokenOutputs, cross_entropy_sums
from muscle.models import head_of
from muscle.models.encoding import Pair
from muscle.models.sequences import Sequences
from muscle.teachers.scores import FILE, write_scores
from muscle.training.questions import ChoiceData, tree_of
from muscle.training.student import tree_hidden
from muscle.types import Query, Question, Request

Micro = Callable[[Any], torch.Tensor]

SETTINGS = CompatibilityConfig(level="choice", teacher="mean", length_normalised=False)


def questions(spec: dict[str, Any]) -> list[list[Pair]]:
    """All inputs of an update: the tokens of each one's K answers after its prompt."""
    draw = np.random.default_rng(0)
    top = steps.vocabulary_of(spec)
    found = []
    for _ in range(spec["accumulation"] * (spec["tokens"] // spec["length"])):
        prompt = draw.integers(4, top, spec["length"]).tolist()
        found.append(
            [
                Pair(prompt, draw.integers(4, top, spec["answer_tokens"]).tolist())
                for _ in range(spec["choices"])
            ]
        )
    return found


def parts(spec: dict[str, Any]) -> list[list[int]]:
    """Which inputs make each micro-batch."""
    rows = spec["tokens"] // spec["length"]
    return [list(range(n * rows, (n + 1) * rows)) for n in range(spec["accumulation"])]


def data(spec: dict[str, Any], tree: bool) -> ChoiceData:
    """The inputs with two teachers' random scores."""
    draw = np.random.default_rng(1)
    trees = []
    for number, pairs in enumerate(questions(spec)):
        request = Request("loglikelihood", "", "")
        asked = Question(Query(str(number), (request,) * len(pairs)), 0, (1,) * len(pairs))
        scores = {name: draw.normal(-40, 3, len(pairs)).tolist() for name in ("old", "new")}
        trees.append(tree_of(asked, pairs, 10**6, tree, (1.0,) * len(pairs), scores))
    return ChoiceData(trees)


def choice(spec: dict[str, Any], batches: list[Any], tree: bool = True) -> tuple[Any, Micro]:
    """The answer-level step, from teachers' scores."""
    model = steps.student(spec)
    masks = tree_masks(model) if tree else None
    assert not isinstance(masks, str), masks
    mine = data(spec, tree)
    batches[:] = [mine.collate(rows, 0) for rows in parts(spec)]

    def micro(batch: Any) -> torch.Tensor:
        hidden = tree_hidden(model, batch, masks)
        head = head_of(model)
        sums = choice_sums(hidden, head, batch.targets, batch.teachers, SETTINGS)
        return sums.loss / len(batch.targets.gold)

    return model, micro


def alone(spec: dict[str, Any], batches: list[Any]) -> tuple[Any, Micro]:
    """The same loss on K sequences for each input: the prompt is run K times."""
    return choice(spec, batches, tree=False)


def labels(spec: dict[str, Any], batches: list[Any], on_answer: bool = False) -> tuple[Any, Micro]:
    """A plain LoRA step on prompt and right answer, the loss on every token."""
    model = steps.student(spec)
    pairs = [answers[0] for answers in questions(spec)]
    ids = [np.array(pair.context + pair.continuation) for pair in pairs]
    first = [len(pair.context) if on_answer else 1 for pair in pairs]
    sequences = Sequences(ids, first)
    batches[:] = [sequences.collate(rows, 0) for rows in parts(spec)]

    def micro(batch: Any) -> torch.Tensor:
        outputs = TokenOutputs(steps.hidden_of(model, batch), head_of(model))
        return cross_entropy_sums(outputs, batch.gold, batch.sequence).loss / len(batch.gold)

    return model, micro


def labels_on_answer(spec: dict[str, Any], batches: list[Any]) -> tuple[Any, Micro]:
    """A plain LoRA step with the loss on the right answer only."""
    return labels(spec, batches, on_answer=True)


SIDES = {
    "choice": choice,
    "choice-alone": alone,
    "labels": labels,
    "labels-on-answer": labels_on_answer,
}


def teacher(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one frozen teacher's scores of an update's inputs, and what a file of both
    teachers' takes on disk for each input."""
    model = steps.adapted(spec, steps.base(spec, "old"), "old", trains=False).eval()
    masks = tree_masks(model)
    assert not isinstance(masks, str), masks
    asked = questions(spec)
    scorer = Scorer(model, 10**6, spec["tokens"], masks)
    seconds = []
    for _ in range(spec["warm_up"] + spec["updates"]):
        began = steps.now(spec)
        scorer.score([pair for pairs in asked for pair in pairs])
        seconds.append(steps.now(spec) - began)
    timed = seconds[spec["warm_up"] :]
    many = 2000
    draw = np.random.default_rng(2)
    scores = {f"{draw.bytes(8).hex()}": draw.normal(-40, 3, spec["choices"]) for _ in range(many)}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        write_scores(Path(folder), scores, {})
        written = time.perf_counter() - began
        size = (Path(folder) / FILE).stat().st_size
    one = data(spec, True), data(spec, False)
    tokens = [sum(mine.size(i) for i in range(len(mine))) for mine in one]
    return {
        "seconds": sum(timed) / len(timed) / spec["accumulation"],
        "bytes_per_input": 2 * size / many,
        "write_seconds_per_input": written / many,
        "tokens_alone_per_tree": tokens[1] / tokens[0],
    }
