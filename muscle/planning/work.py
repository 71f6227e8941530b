"""How many tokens there are to run: training, caching, evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from muscle.config import TrainingConfig
from muscle.models.encoding import Encoder
from muscle.models.sequences import Sequences, micro_batches
from muscle.training.order import permutation, updates
from muscle.types import SCORED, Query


@dataclass(frozen=True)
class Work:
    """Forwards of padded batches, summed.

    tokens     rows x longest, over all batches
    squares    rows x longest^2: what attention costs
    scored     positions whose next token counts
    batches    how many
    critical   `tokens` of the workers that others wait for, times the number of workers;
               more than `tokens` where an update has too few batches to share
    rows, length, most_scored  of the batch that holds the most memory
    """

    tokens: int = 0
    squares: int = 0
    scored: int = 0
    batches: int = 0
    critical: int = 0
    rows: int = 0
    length: int = 0
    most_scored: int = 0

    @property
    def waiting(self) -> float:
        """How much longer the workers take than if they shared the tokens evenly."""
        return self.critical / self.tokens if self.tokens else 1.0


@dataclass(frozen=True)
class Trees:
    """Questions of one split as the student runs them.

    shapes   (rows, longest) of each: one tree, or a row for each of its answers
    scored   positions of each at which something is scored
    answers  K of each
    cut      how many prompts lost their beginning
    """

    shapes: list[tuple[int, int]]
    scored: list[int]
    answers: list[int]
    cut: int = 0

    def __len__(self) -> int:
        return len(self.shapes)

    def size(self, index: int) -> int:
        """Tokens that are run for a question, its rows padded."""
        rows, longest = self.shapes[index]
        return rows * longest

    def targets(self, index: int) -> int:
        """Positions at which something is scored."""
        return self.scored[index]


Rows = Sequences | Trees
"""What is trained on."""


def _shape(data: Rows, index: int) -> tuple[int, int]:
    return data.shapes[index] if isinstance(data, Trees) else (1, data.size(index))


def _work(data: Rows, rounds: Sequence[list[list[int]]], workers: int) -> Work:
    """`rounds`: the batches between two waits for each other, longest first."""
    total = {"tokens": 0, "squares": 0, "scored": 0, "batches": 0, "critical": 0}
    largest, shape = -1, (0, 0, 0)
    for batches in rounds:
        sizes = []
        for batch in batches:
            shapes = [_shape(data, i) for i in batch]
            rows, length = sum(n for n, _ in shapes), max(longest for _, longest in shapes)
            scored = sum(data.targets(i) for i in batch)
            sizes.append(rows * length)
            total["tokens"] += rows * length
            total["squares"] += rows * length * length
            total["scored"] += scored
            total["batches"] += 1
            if rows * length > largest:
                largest, shape = rows * length, (rows, length, scored)
        # The loop deals them round: in each turn the longest decides.
        turns = range(0, len(sizes), workers)
        total["critical"] += workers * sum(max(sizes[i : i + workers]) for i in turns)
    return Work(**total, rows=shape[0], length=shape[1], most_scored=shape[2])


def training_work(
    data: Rows, settings: TrainingConfig, seed: int, budget: int, workers: int
) -> Work:
    """One epoch of updates, dealt as the training loop deals them (the first epoch's order)."""
    order = permutation(len(data), seed, 0)
    rounds = [
        micro_batches(data, order[part].tolist(), budget, workers)
        for part in updates(len(data), settings.update_size)
    ]
    return _work(data, rounds, workers)


def forward_work(data: Rows, budget: int, workers: int = 1) -> Work:
    """One pass over all sequences: validation, or the teachers' cache."""
    return _work(data, [micro_batches(data, range(len(data)), budget)], workers)


@dataclass(frozen=True)
class Asked:
    """What an evaluation runs.

    examples     n
    tokens       run once each: shared beginnings of an example's requests count once
    squares      sum of squared lengths: what attention costs
    scored       positions whose next token counts
    generated    new tokens, at most
    requests     rows that generate
    longest      tokens of the longest request, with what it may generate
    """

    examples: int
    tokens: int = 0
    squares: int = 0
    scored: int = 0
    generated: int = 0
    requests: int = 0
    longest: int = 0


def evaluation_work(queries: Sequence[Query], tokenizer: Any, window: int) -> Asked:
    """Tokens of the evaluation, as `muscle.evaluation` runs it: requests of one example
    form a tree, whose shared tokens run once."""
    encoder = Encoder(tokenizer)
    asked = [(r, q.chat is not None) for q in queries for r in q.requests]
    choices = [(r, chat) for r, chat in asked if r.kind in SCORED]
    pairs = iter(encoder.scored([r for r, _ in choices], [chat for _, chat in choices]))
    total = {"tokens": 0, "squares": 0, "scored": 0, "generated": 0, "requests": 0, "longest": 0}

    def add(length: int, fresh: int, scored: int) -> None:
        total["tokens"] += fresh
        total["squares"] += fresh * length
        total["scored"] += scored
        total["longest"] = max(total["longest"], length)

    for query in queries:
        known: set[tuple[int, ...]] = set()
        for request in query.requests:
            if request.kind in SCORED:
                pair = next(pairs)
                if isinstance(pair, str):
                    continue
                ids = tuple([*pair.context, *pair.continuation][-window:])
                fresh = len(ids) - max((_common(ids, other) for other in known), default=0)
                known.add(ids)
                add(len(ids), fresh, len(pair.continuation))
            elif request.kind == "loglikelihood_rolling":
                for part in encoder.windows([request.context], window):
                    for pair in [] if isinstance(part, str) else part:
                        length = len(pair.context) + len(pair.continuation)
                        add(length, length, len(pair.continuation))
    writes = [(r, chat) for r, chat in asked if r.kind == "generate_until"]
    contexts = encoder.begun([r.context for r, _ in writes], [chat for _, chat in writes])
    for (request, _), context in zip(writes, contexts, strict=True):
        new = new_tokens(request.generation)
        length = min(window, len(context) + new)
        add(length, length, new)
        total["generated"] += new
        total["requests"] += 1
    return Asked(examples=len(queries), **total)


def new_tokens(generation: str) -> int:
    """The most new tokens of one request; the harness's default is 256."""
    import json

    settings = json.loads(generation) if generation else {}
    for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"):
        if settings.get(name) is not None:
            return int(settings[name])
    return 256


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    shared = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        shared += 1
    return shared
