"""Whole documents (`loglikelihood_rolling`) against HFLM's rolling windows."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from oracle import (
    ARCHITECTURES,
    BUDGETS,
    RELATIVE,
    WINDOW,
    instances,
    make_engine,
    make_hflm,
    our_scores,
)

from muscle.evaluation import Engine
from muscle.types import Query, Request

EngineOf = Callable[[str, int | None], Engine]

LONG = "the quick brown fox and the lazy dog " * 40

DOCUMENTS = {
    "one-token": "a",
    "short": "The quick brown fox jumps over the lazy dog.",
    "spaces-around": "  The fox \n\n",
    "only-white-space": " \n ",
    "bos-already-there": "<s>The fox jumps",
    "non-ascii": "naïve café ½ ２ Übung 日本 👩‍👩‍👧 " * 6,
    "several-windows": LONG,
    "several-windows-and-a-bit": LONG + "and the dog",
}


def rolling(documents: list[str]) -> list[Query]:
    return [
        Query(str(d), (Request("loglikelihood_rolling", text),)) for d, text in enumerate(documents)
    ]


def theirs_of(hflm: Any, documents: list[str]) -> list[float]:
    return hflm.loglikelihood_rolling(instances((d,) for d in documents), disable_tqdm=True)


def check(engine: Engine, hflm: Any, documents: list[str]) -> None:
    ours = our_scores(engine, rolling(documents))
    assert [ll for ll, _ in ours] == pytest.approx(theirs_of(hflm, documents), rel=RELATIVE)
    assert [greedy for _, greedy in ours] == [None] * len(documents)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_documents(
    name: str, budget: str, engine_of: EngineOf, hflm_of: Callable[[str], Any]
) -> None:
    check(engine_of(name, BUDGETS[budget]), hflm_of(name), list(DOCUMENTS.values()))


@pytest.mark.parametrize("windows", [1, 2])
@pytest.mark.parametrize("extra", [-1, 0, 1, 2])
def test_lengths_around_a_window(
    windows: int, extra: int, engine_of: EngineOf, hflm_of: Callable[[str], Any]
) -> None:
    hflm = hflm_of("Llama")
    document = "The" + " dog" * (windows * WINDOW + extra - 2)
    assert len(hflm.tok_encode(document)) == windows * WINDOW + extra
    check(engine_of("Llama", None), hflm, [document])


def test_a_smaller_window_of_our_own(model_of: Callable[[str], str]) -> None:
    model = model_of("Llama")
    documents = [LONG, "The fox", DOCUMENTS["non-ascii"]]
    check(make_engine(model, max_length=10), make_hflm(model, max_length=10), documents)


@pytest.mark.parametrize("name", ["Llama", "Llama-no-bos"])
def test_empty_document_is_an_error(name: str, engine_of: EngineOf) -> None:
    """It has no token to be likely: HFLM scores a second BOS, or 0 without one."""
    good, bad = engine_of(name, None).answer("base", rolling(["The fox", ""]))
    assert good.error is None
    assert bad.outputs == () and "document" in bad.error


def test_beside_other_kinds_and_in_any_order(
    engine_of: EngineOf, hflm_of: Callable[[str], Any]
) -> None:
    documents = list(DOCUMENTS.values())
    queries = rolling(documents)
    # One query may ask all three kinds.
    mixed = Query(
        "mixed",
        (
            Request("loglikelihood", "The fox", " and"),
            Request("loglikelihood_rolling", LONG),
            Request("generate_until", "The fox", generation='{"max_gen_toks": 3}'),
        ),
    )
    shuffled = [*queries, mixed]
    random.Random(2).shuffle(shuffled)
    answers = {a.id: a for a in engine_of("Llama", None).answer("base", shuffled)}
    assert all(a.error is None for a in answers.values())
    theirs = theirs_of(hflm_of("Llama"), documents)
    ours = [answers[q.id].outputs[0].loglikelihood for q in queries]
    assert ours == pytest.approx(theirs, rel=RELATIVE)
    score, document, text = answers["mixed"].outputs
    assert score.is_greedy is not None and document.is_greedy is None and text.text is not None
    assert document.loglikelihood == pytest.approx(
        theirs[list(DOCUMENTS).index("several-windows")], rel=RELATIVE
    )
