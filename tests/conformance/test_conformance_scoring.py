"""Log-likelihoods of choices against HFLM: every hard case, architecture and batch size."""

import random
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from oracle import (
    ARCHITECTURES,
    BUDGETS,
    WINDOW,
    assert_same,
    choices,
    instances,
    make_engine,
    make_hflm,
    our_scores,
    scoring,
    their_scores,
    their_texts,
)
from scoring_cases import CASES, FOX, LONG

from muscle.evaluation import Engine

EngineOf = Callable[[str, int | None], Engine]
ALL = [question for questions in CASES.values() for question in questions]


@pytest.fixture(scope="session")
def expected(hflm_of: Callable[[str], Any]) -> Callable[[str, str], list]:
    """`expected(architecture, case)`: the oracle's numbers, computed once for all budgets."""
    known: dict[tuple[str, str], list] = {}

    def get(name: str, case: str) -> list:
        if (name, case) not in known:
            known[name, case] = their_scores(hflm_of(name), CASES[case])
        return known[name, case]

    return get


def pairs_of(*names: str) -> list[Any]:
    """(architecture, case) as test parameters; without BOS, white space is no context at all."""
    return [
        pytest.param(name, case, id=f"{name}-{case}")
        for name in names
        for case in CASES
        if (name, case) != ("Llama-no-bos", "only-white-space")
    ]


@pytest.mark.parametrize(("name", "case"), pairs_of("Llama", "Llama-no-bos"))
def test_token_splits(
    name: str, case: str, engine_of: EngineOf, hflm_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [pair for question in CASES[case] for pair in question]
    hflm = hflm_of(name)
    seen: list[tuple] = []
    # What HFLM feeds its scorer, after its own rules for spaces, BOS and empty contexts.
    monkeypatch.setattr(
        hflm, "_loglikelihood_tokens", lambda requests, disable_tqdm: seen.extend(requests)
    )
    hflm.loglikelihood(instances(pairs), disable_tqdm=True)
    ours = engine_of(name, None).encoder.pairs(pairs)
    assert [(p.context, p.continuation) for p in ours] == [(c, rest) for _, c, rest in seen]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(("name", "case"), pairs_of(*ARCHITECTURES))
def test_case(
    name: str, case: str, budget: str, engine_of: EngineOf, expected: Callable[[str, str], list]
) -> None:
    ours = our_scores(engine_of(name, BUDGETS[budget]), scoring(CASES[case]))
    assert_same(ours, expected(name, case))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "Llama-no-bos"])
def test_all_cases_in_one_call(
    name: str, budget: str, engine_of: EngineOf, expected: Callable[[str, str], list]
) -> None:
    ours = our_scores(engine_of(name, BUDGETS[budget]), scoring(ALL))
    assert_same(ours, [score for case in CASES for score in expected(name, case)])


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("seed", range(3))
def test_order_changes_nothing(
    budget: str, seed: int, engine_of: EngineOf, expected: Callable[[str, str], list]
) -> None:
    """Shuffled questions, with their choices shuffled too, get the numbers of the ordered ones."""
    theirs = iter([score for case in CASES for score in expected("Mistral", case)])
    rows = [[(pair, next(theirs)) for pair in question] for question in ALL]
    draw = random.Random(seed)
    draw.shuffle(rows)
    for row in rows:
        draw.shuffle(row)
    questions = [[pair for pair, _ in row] for row in rows]
    ours = our_scores(engine_of("Mistral", BUDGETS[budget]), scoring(questions))
    assert_same(ours, [score for row in rows for _, score in row])


def test_a_question_alone_and_in_company(engine_of: EngineOf) -> None:
    engine = engine_of("Llama", None)
    together = our_scores(engine, scoring(ALL))
    alone = [score for question in ALL for score in our_scores(engine, scoring([question]))]
    assert_same(alone, together)


def with_tokens(engine: Engine, total: int) -> tuple[str, str]:
    """A context and choice of `total` tokens together."""
    for words in range(total):
        context, choice = "The fox" + " dog" * words, " and the dog"
        (pair,) = engine.encoder.pairs([(context, choice)])
        if len(pair.context) + len(pair.continuation) == total:
            return context, choice
    raise AssertionError(f"no text of {total} tokens")


@pytest.mark.parametrize("extra", [-1, 0, 1, 2, 3])
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma2"])
def test_lengths_around_the_window(
    name: str, extra: int, engine_of: EngineOf, hflm_of: Callable
) -> None:
    """One token more than the window is still scored whole: its last is only predicted."""
    engine = engine_of(name, None)
    context, choice = with_tokens(engine, WINDOW + extra)
    question = choices(context, choice, choice + " sleeps", " a")
    assert_same(our_scores(engine, scoring([question])), their_scores(hflm_of(name), [question]))


@pytest.mark.parametrize("length", [WINDOW - 1, WINDOW, WINDOW + 1])
def test_continuation_as_long_as_the_window(
    length: int, engine_of: EngineOf, hflm_of: Callable
) -> None:
    engine = engine_of("Llama", None)
    question = choices("The fox", " dog" * length)
    assert len(engine.encoder.pairs(question)[0].continuation) == length
    if length <= WINDOW:
        theirs = their_scores(hflm_of("Llama"), [question])
        assert_same(our_scores(engine, scoring([question])), theirs)
        return
    with pytest.raises(AssertionError):
        their_scores(hflm_of("Llama"), [question])
    (answer,) = engine.answer("base", scoring([question]))
    assert answer.outputs == () and "more than the window" in answer.error


def test_a_smaller_window_of_our_own(model_of: Callable) -> None:
    model = model_of("Llama")
    questions = [choices(LONG, " a", FOX + " and the dog"), choices("The fox", " and", " dog" * 20)]
    ours = our_scores(make_engine(model, max_length=24), scoring(questions))
    assert_same(ours, their_scores(make_hflm(model, max_length=24), questions))


def test_white_space_is_no_context_without_bos(engine_of: EngineOf, hflm_of: Callable) -> None:
    questions = CASES["only-white-space"]
    with pytest.raises(AssertionError):
        their_scores(hflm_of("Llama-no-bos"), questions)
    (answer,) = engine_of("Llama-no-bos", None).answer("base", scoring(questions))
    assert "the context has no tokens" in answer.error


# Empty continuations: HFLM fails on them or, with a space to move, scores that space; its
# batches have given 0, which would win every comparison. Ours are errors.
EMPTY = {
    "empty": ("The fox", ""),
    "empty-after-a-space": ("The fox ", ""),
    "empty-after-nothing": ("", ""),
    "swallowed-by-the-join": ("The th", "e"),
}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("case", EMPTY)
def test_empty_continuation_is_an_error(case: str, budget: str, engine_of: EngineOf) -> None:
    good = ("The fox", " and")
    queries = scoring([[good], [good, EMPTY[case]], [EMPTY[case], good], [good]])
    answers = engine_of("Llama", BUDGETS[budget]).answer("base", queries)
    assert [a.error is None for a in answers] == [True, False, False, True]
    assert [a.outputs for a in answers[1:3]] == [(), ()]
    assert answers[0].outputs[0].loglikelihood < 0


def test_a_choice_swallowed_by_the_join_has_no_tokens(
    engine_of: EngineOf, hflm_of: Callable
) -> None:
    context, rest = hflm_of("Llama")._encode_pair(*EMPTY["swallowed-by-the-join"])
    assert context and not rest
    with pytest.raises(AssertionError):
        their_scores(hflm_of("Llama"), [[EMPTY["swallowed-by-the-join"]]])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_choices_are_called_greedy(
    name: str, engine_of: EngineOf, hflm_of: Callable
) -> None:
    """Choices that the model would have written, and the same with a word more or less."""
    hflm, questions = hflm_of(name), []
    contexts = ("The quick", "Summary: they", "To open a jar,", "naïve café,", "Answer:", "dog")
    for prompt in product(contexts, [{"max_gen_toks": n} for n in (1, 2, 3)]):
        (text,) = their_texts(hflm, [prompt])
        if text.strip():
            questions.append(choices(prompt[0], text, text + " dog", " dog" + text))
    theirs = their_scores(hflm, questions)
    assert any(greedy for _, greedy in theirs) and not all(greedy for _, greedy in theirs)
    assert_same(our_scores(engine_of(name, None), scoring(questions)), theirs)
