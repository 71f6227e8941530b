"""lm-evaluation-harness's HFLM as the oracle, and how our answers are held against it.

The oracle is HFLM in fp32 at batch size 1 without its logits cache: with the cache, two
requests of the same tokens and different splits get one another's log-likelihood, and in
larger batches its numbers depend on the neighbours.
"""

import copy
import json
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from muscle.evaluation import Engine
from muscle.types import Answer, Query, Request

WINDOW = 64

RELATIVE = 1e-5
"""How far log-likelihoods may be apart, of their size, in fp32."""

# name -> (architecture, changes of the tiny config). Windows of attention are shorter than
# the prompts, so that a mask which loses them is seen.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Llama-no-bos": ("Llama", {}),
    "Mistral": ("Mistral", {"sliding_window": 4}),
    "Qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "Gemma2": (
        "Gemma2",
        {"sliding_window": 4, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    ),
    "Gemma3Text": (
        "Gemma3Text",
        {
            "sliding_window": 4,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "Phi": ("Phi", {}),
    "Phi3": ("Phi3", {"sliding_window": 4}),
}

# Row by row, about eight rows of the window, the engine's own choice.
BUDGETS: dict[str, int | None] = {"one": 1, "eight": 8 * WINDOW, "auto": None}

Score = tuple[float, bool | None]


def make_hflm(model: str, **kwargs: Any) -> Any:
    """The oracle; `max_length` and `peft` may be given."""
    from lm_eval.models.huggingface import HFLM

    given = {"dtype": "float32", "batch_size": 1, "device": "cpu", "logits_cache": False}
    return HFLM(pretrained=model, **(given | kwargs))


def make_engine(model: str, adapters: dict[str, str | None] | None = None, **kwargs: Any) -> Engine:
    """Our engine with one version, "base", unless adapters are given."""
    given = {"dtype": "float32", "batch_tokens": None, "device": "cpu"} | kwargs
    return Engine(model, None, adapters or {"base": None}, **given)


def instances(requests: Iterable[tuple]) -> list[Any]:
    """What the harness hands to HFLM: objects with `args`; copied, since it changes some."""
    return [SimpleNamespace(args=copy.deepcopy(args), task_name=None) for args in requests]


# -- questions


def choices(context: str, *continuations: str) -> list[tuple[str, str]]:
    """The requests of one multiple-choice question."""
    return [(context, continuation) for continuation in continuations]


def scoring(questions: Iterable[Sequence[tuple[str, str]]]) -> list[Query]:
    """One query for each question, one request for each of its choices."""
    return [
        Query(str(q), tuple(Request("loglikelihood", *pair) for pair in pairs))
        for q, pairs in enumerate(questions)
    ]


def generating(prompts: Iterable[tuple[str, dict[str, Any]]]) -> list[Query]:
    """One query for each (context, the harness's `gen_kwargs`)."""
    return [
        Query(str(q), (Request("generate_until", context, generation=json.dumps(settings)),))
        for q, (context, settings) in enumerate(prompts)
    ]


# -- what both sides say


def their_scores(hflm: Any, questions: Iterable[Sequence[tuple[str, str]]]) -> list[Score]:
    """(log-likelihood, is_greedy) of each request, in order."""
    flat = [pair for pairs in questions for pair in pairs]
    return hflm.loglikelihood(instances(flat), disable_tqdm=True)


def their_texts(hflm: Any, prompts: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """The text of each prompt. One call each: HFLM decides about BOS by a batch's first."""
    return [hflm.generate_until(instances([p]), disable_tqdm=True)[0] for p in prompts]


def our_scores(engine: Engine, queries: Sequence[Query], version: str | None = None) -> list[Score]:
    """(log-likelihood, is_greedy) of each request, in order."""
    answers = _answers(engine, queries, version)
    return [(o.loglikelihood, o.is_greedy) for a in answers for o in a.outputs]  # type: ignore[misc]


def our_texts(engine: Engine, queries: Sequence[Query], version: str | None = None) -> list[str]:
    """The text of each query's one request, in order."""
    return [a.outputs[0].text for a in _answers(engine, queries, version)]  # type: ignore[misc]


def _answers(engine: Engine, queries: Sequence[Query], version: str | None) -> list[Answer]:
    answers = engine.answer(version or engine.versions[0], queries)
    assert [a.id for a in answers] == [q.id for q in queries]
    assert [a.error for a in answers] == [None] * len(answers)
    assert [len(a.outputs) for a in answers] == [len(q.requests) for q in queries]
    return answers


def assert_same(ours: Sequence[Score], theirs: Sequence[Score]) -> None:
    """The same greediness, and log-likelihoods within `RELATIVE`."""
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [ll for ll, _ in ours] == pytest.approx([ll for ll, _ in theirs], rel=RELATIVE)
