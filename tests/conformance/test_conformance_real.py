"""Whole data sets with real base models: the same choice in every row but near ties.

    MUSCLE_DATA=…/data MUSCLE_MODELS=…/models pytest tests/conformance/test_conformance_real.py -s

Takes minutes, most of them HFLM's at batch size 1. With MUSCLE_RECORD=FOLDER the near ties
are also written there as JSON.
"""

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from oracle import (
    RELATIVE,
    Score,
    make_engine,
    make_hflm,
    our_scores,
    our_texts,
    their_scores,
    their_texts,
)

from muscle.config import DataFiles, TaskConfig
from muscle.tasks import load_task
from muscle.types import Query

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not {"MUSCLE_DATA", "MUSCLE_MODELS"} <= set(os.environ),
        reason="MUSCLE_DATA and MUSCLE_MODELS name no data and models",
    ),
]

ROWS = {"piqa": None, "hellaswag": 2000}


@cache
def queries_of(name: str, limit: int | None) -> list[Query]:
    """The harness's own requests on the local copy of its data, `limit` rows at equal steps.

    Not the first ones: HellaSwag's first third has one kind of text only.
    """
    folder = Path(os.environ["MUSCLE_DATA"]) / name
    splits = ("train", "validation") if name != "gsm8k" else ("train", "test")
    files = DataFiles(**{split: str(folder / f"{split}.jsonl.gz") for split in splits})
    new_tokens = 64 if name == "gsm8k" else None
    config = TaskConfig(name=name, data_files=files, num_fewshot=0, max_gen_toks=new_tokens)
    queries = load_task(config).queries()
    rows = len(queries)
    return queries if limit is None else [queries[i * rows // limit] for i in range(limit)]


def model_path(name: str) -> str:
    return str(Path(os.environ["MUSCLE_MODELS"]) / name)


def choice(scores: Sequence[Score], lengths: Sequence[int] | None) -> tuple[int, float, float]:
    """(the harness's choice, the gap to the next one, the bound under which it is a near tie)."""
    values = [ll / n for (ll, _), n in zip(scores, lengths or [1] * len(scores), strict=True)]
    first, second = sorted(values, reverse=True)[:2]
    # Each of the two may be off by RELATIVE of its size.
    return values.index(first), first - second, 2 * RELATIVE * abs(second)


def compare(queries: Sequence[Query], ours: Sequence[Score], theirs: Sequence[Score]) -> list[dict]:
    """The near ties by either metric; fails on a choice that differs without being one."""
    near, at = [], 0
    for query in queries:
        size = len(query.requests)
        # acc_norm: characters of the choice without the delimiter's space.
        lengths = [len(r.continuation) - 1 for r in query.requests]
        for metric, by in (("acc", None), ("acc_norm", lengths)):
            mine, gap, bound = choice(ours[at : at + size], by)
            other, their_gap, _ = choice(theirs[at : at + size], by)
            tie = min(gap, their_gap) <= bound
            if tie:
                row = {"id": query.id, "metric": metric, "gap": gap, "their_gap": their_gap}
                near.append(row | {"ours": mine, "theirs": other})
            assert mine == other or tie, (query.id, metric, gap, their_gap)
        at += size
    return near


def record(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}: {json.dumps(found)}")
    if "MUSCLE_RECORD" in os.environ:
        path = Path(os.environ["MUSCLE_RECORD"]) / f"near-ties-{name}.json"
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("model", ["v1", "v2"])
def test_every_choice(task: str, model: str) -> None:
    queries = queries_of(task, ROWS[task])
    questions = [[(r.context, r.continuation) for r in q.requests] for q in queries]
    ours = our_scores(make_engine(model_path(model)), queries)
    theirs = their_scores(make_hflm(model_path(model)), questions)
    apart = max(abs(a - b) / abs(b) for (a, _), (b, _) in zip(ours, theirs, strict=True))
    near = compare(queries, ours, theirs)
    record(
        f"{task}-{model}",
        {"rows": len(queries), "sequences": len(ours), "largest_difference": apart, "near": near},
    )
    assert apart <= RELATIVE
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert len(near) < len(queries) / 20  # else the comparison would prove little


@pytest.mark.parametrize("model", ["v1", "v2"])
def test_every_text(model: str) -> None:
    queries = queries_of("gsm8k", 40)
    prompts = [(r.context, json.loads(r.generation)) for q in queries for r in q.requests]
    theirs = their_texts(make_hflm(model_path(model)), prompts)
    assert our_texts(make_engine(model_path(model)), queries) == theirs
