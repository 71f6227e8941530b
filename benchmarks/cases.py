"""The questions of a benchmark: the harness's own requests, or synthetic ones of such lengths."""

import os
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

from muscle.types import Query, Request

NEW_TOKENS = 64


class Case(TypedDict):
    """A task, the files it needs, its rows by default."""

    splits: tuple[str, ...]
    rows: int | None
    generates: bool


CASES: dict[str, Case] = {
    "piqa": {"splits": ("train", "validation"), "rows": None, "generates": False},
    "hellaswag": {"splits": ("train", "validation"), "rows": 2000, "generates": False},
    # Its eight shots are fixed and stand in the harness's YAML: no file holds them.
    "gsm8k_cot": {"splits": ("test",), "rows": 64, "generates": True},
}

# Deciles (5 %, 15 %, … 95 %) of lengths in characters / 4, about Llama's tokens, over whole
# validation splits: (contexts, choices, choices of one question).
LENGTHS = {
    "piqa": ([6, 9, 10, 12, 12, 14, 15, 16, 18, 21], [5, 7, 9, 12, 15, 19, 25, 32, 43, 72], 2),
    "hellaswag": (
        [20, 30, 39, 49, 56, 62, 67, 72, 79, 89],
        [9, 14, 20, 27, 32, 37, 41, 46, 52, 61],
        4,
    ),
}
SHOT_WORDS = 536
QUESTION_WORDS = [29, 37, 42, 48, 52, 59, 64, 74, 86, 101]


def harness_queries(case: str, limit: int | None, new_tokens: int) -> list[Query]:
    """The requests that lm-evaluation-harness builds from the local data; spread rows.

    `limit` rows are taken at equal steps, since HellaSwag's first third is of one kind.
    """
    from muscle.config import DataFiles, TaskConfig
    from muscle.tasks import load_task

    about = CASES[case]
    folder = Path(os.environ["MUSCLE_DATA"]) / case.removesuffix("_cot")
    files = DataFiles(**{split: str(folder / f"{split}.jsonl.gz") for split in about["splits"]})
    settings: dict[str, Any] = (
        {"max_gen_toks": new_tokens} if about["generates"] else {"num_fewshot": 0}
    )
    queries = load_task(TaskConfig(name=case, data_files=files, **settings)).queries()
    return evenly(queries, limit)


def evenly(rows: Sequence[Any], limit: int | None) -> list[Any]:
    """`limit` of the rows at equal steps, in their order; all of them without one."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // limit] for i in range(limit)]


def synthetic_queries(case: str, limit: int, new_tokens: int) -> list[Query]:
    """Random words in questions as long as the task's, for machines without its data."""
    draw = random.Random(0)

    def words(count: int) -> str:
        return " ".join(f"w{draw.randrange(4, 32_000)}" for _ in range(count))

    if CASES[case]["generates"]:
        settings = f'{{"do_sample": false, "max_gen_toks": {new_tokens}, "until": ["</s>"]}}'
        shots = words(SHOT_WORDS)
        return [
            Query(str(i), (Request("generate_until", context, generation=settings),))
            for i in range(limit)
            for context in [f"{shots} {words(draw.choice(QUESTION_WORDS))}"]
        ]
    contexts, continuations, size = LENGTHS[case]
    queries = []
    for i in range(limit):
        context = words(draw.choice(contexts))
        requests = [
            Request("loglikelihood", context, " " + words(draw.choice(continuations)))
            for _ in range(size)
        ]
        queries.append(Query(str(i), tuple(requests)))
    return queries


def token_counts(model: str, queries: Sequence[Query]) -> dict[str, Any]:
    """How many tokens go in: all sequences whole, and each shared prefix once."""
    from muscle.models import load_tokenizer
    from muscle.models.encoding import Encoder, Pair

    encoder = Encoder(load_tokenizer(model))
    requests = [request for query in queries for request in query.requests]
    if requests[0].kind == "generate_until":
        rows = encoder.contexts([r.context for r in requests])
    else:
        pairs = encoder.pairs([(r.context, r.continuation) for r in requests])
        # The last token of a sequence is only predicted.
        rows = [(p.context + p.continuation)[:-1] for p in pairs if isinstance(p, Pair)]
    total = sum(map(len, rows))
    ordered = sorted(rows)
    shared = sum(_common(a, b) for a, b in pairwise(ordered))
    return {
        "sequences": len(rows),
        "tokens": total,
        "tokens_of_prefix_tree": total - shared,
        "longest": max(map(len, rows)),
    }


def _common(a: list[int], b: list[int]) -> int:
    """The length of the common prefix."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b)))
