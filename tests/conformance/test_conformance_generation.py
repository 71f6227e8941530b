"""Generated text against HFLM: stops, EOS, windows and batches, text for text."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oracle import (
    ARCHITECTURES,
    BUDGETS,
    WINDOW,
    generating,
    make_engine,
    make_hflm,
    our_texts,
    their_texts,
)

from muscle import models
from muscle.evaluation import Engine

EngineOf = Callable[[str, int | None], Engine]
Prompts = list[tuple[str, dict[str, Any]]]

LONG = "the quick brown fox and the lazy dog " * 12  # longer than the window
SHOTS = "Q: 1 + 1\nA: 2\n\nQ: 2 + 2\nA: 4\n\n"  # 29 tokens that all questions share


def each(contexts: list[str], **settings: Any) -> Prompts:
    """The contexts, all with the same settings."""
    return [(context, {"max_gen_toks": 12} | settings) for context in contexts]


CASES: dict[str, Prompts] = {
    "one": each(["The quick"]),
    "ragged": each(["The quick", "To open a jar, turn the lid; to close it,", "A", "Answer:"]),
    "duplicated": each(["The quick", "Answer:", "The quick", "The quick"]),
    "shared-few-shots": each([f"{SHOTS}Q: {n} + 3\nA:" for n in range(6)]),
    "one-prompt-a-prefix-of-another": each([SHOTS, SHOTS + "Q: 1", SHOTS + "Q: 1 + 3\nA:"]),
    "shared-shots-of-another-length": each([SHOTS + "Q: 5\nA:", "Q: 5\nA:", SHOTS * 2 + "Q: 5"]),
    "bos-already-there": each(["<s>The fox", "The fox", "<s>"]),
    "trailing-spaces": each(["The fox ", "The fox\n\n", "The fox\t"]),
    "non-ascii": each(["naïve café ½ ２", "日本", "👩‍👩‍👧 and"]),
    "eos-in-the-prompt": each(["The fox</s>", "The</s> fox"]),
    "longer-than-the-window": each([LONG, LONG + "dog", "The fox"]),
    "longer-than-the-window-in-common": each([LONG + f"{n} + 3" for n in range(4)]),
    "as-long-as-the-room": each(["The" + " dog" * n for n in range(49, 53)]),
    "fills-the-window": each(["The fox", "dog"], max_gen_toks=WINDOW - 6),
    "one-token-of-room": each([LONG, "The fox"], max_gen_toks=WINDOW - 1),
    "one-new-token": each(["The fox", "The dog", LONG], max_gen_toks=1),
    "no-until": each(["The fox", "Answer:"], until=[]),
    "until-a-string": each(["The fox", "Answer:"], until=" the"),
    "settings-differ": [
        ("The fox", {"max_gen_toks": 3}),
        ("The fox", {"max_gen_toks": 9, "until": ["e"]}),
        ("The fox", {"max_new_tokens": 5, "do_sample": False}),
        ("The fox", {"max_tokens": 7, "temperature": 0.0, "until": "\n\n"}),
        ("The fox", {"max_gen_toks": 9}),
    ],
    "repetition-penalty": each(["The fox", "The fox and the dog"], repetition_penalty=1.7),
    "no-repeats": each(["The fox and the fox", "dog dog"], no_repeat_ngram_size=2),
    "beams": each(["The fox", "Answer:"], num_beams=2),
    "at-least-four": each(["The fox", "Answer:"], min_new_tokens=4),
}


# What an architecture may get wrong: positions, padding, caches and windows of attention.
BY_ARCHITECTURE = [
    "ragged",
    "shared-few-shots",
    "one-prompt-a-prefix-of-another",
    "shared-shots-of-another-length",
    "non-ascii",
    "longer-than-the-window-in-common",
    "fills-the-window",
]


@pytest.mark.parametrize("case", CASES)
def test_case(case: str, engine_of: EngineOf, hflm_of: Callable[[str], Any]) -> None:
    prompts = CASES[case]
    theirs = their_texts(hflm_of("Llama"), prompts)
    assert any(theirs)
    for budget in BUDGETS.values():
        assert our_texts(engine_of("Llama", budget), generating(prompts)) == theirs


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "Llama"])
def test_architecture(name: str, engine_of: EngineOf, hflm_of: Callable[[str], Any]) -> None:
    prompts = [prompt for case in BY_ARCHITECTURE for prompt in CASES[case]]
    theirs = their_texts(hflm_of(name), prompts)
    assert len(set(theirs)) > 5
    for budget in (8 * WINDOW, None):
        assert our_texts(engine_of(name, budget), generating(prompts)) == theirs


@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_all_cases_in_one_shuffled_call(name: str, engine_of: EngineOf) -> None:
    """Whatever else is asked in a call, and in which order, each text stays as it was."""
    engine = engine_of(name, None)
    rows = [
        (prompt, text)
        for case in CASES.values()
        for prompt, text in zip(case, our_texts(engine, generating(case)), strict=True)
    ]
    random.Random(1).shuffle(rows)
    for budget in (8 * WINDOW, None):
        ours = our_texts(engine_of(name, budget), generating([prompt for prompt, _ in rows]))
        assert ours == [text for _, text in rows]


# -- stop strings


def borders(hflm: Any, text: str) -> list[int]:
    """Where in a text one token ends and the next begins, by the text before."""
    ids = hflm.tokenizer.encode(text, add_special_tokens=False)
    return [len(hflm.tokenizer.decode(ids[:n])) for n in range(1, len(ids))]


def stops_of(hflm: Any, text: str) -> dict[str, list[str]]:
    """Stop strings that do occur in a text, in all positions to the tokens' borders."""
    at = next(b for b in borders(hflm, text) if 3 < b < len(text) - 4)
    return {
        "across-a-border": [text[at - 1 : at + 1]],
        "across-several-borders": [text[at - 3 : at + 4]],
        "up-to-a-border": [text[at - 2 : at]],
        "from-a-border": [text[at : at + 2]],
        "at-the-start": [text[:1]],
        "the-whole-text": [text],
        "two-that-overlap": [text[at - 2 : at + 1], text[at - 1 : at + 2]],
        "the-later-one-first": [text[at + 1 : at + 4], text[at - 3 : at]],
        "never-seen": ["nothing like this"],
        "begins-like-the-text": [text[at - 1 : at + 1] + "nothing", text[at : at + 3]],
    }


def test_stop_strings_across_token_borders(
    engine_of: EngineOf, hflm_of: Callable[[str], Any]
) -> None:
    contexts = ["The quick", "Answer:", SHOTS + "Q: 5\nA:", "To open a jar, turn the lid", "dog"]
    hflm = hflm_of("Llama")
    free = their_texts(hflm, each(contexts))
    # The first text's stops for all prompts, which then share batches, and each text's own.
    prompts = [p for stops in stops_of(hflm, free[0]).values() for p in each(contexts, until=stops)]
    for context, text in zip(contexts[1:], free[1:], strict=True):
        prompts += [p for s in stops_of(hflm, text).values() for p in each([context], until=s)]
    theirs = their_texts(hflm, prompts)
    uncut = dict(zip(contexts, free, strict=True))
    cut = [t != uncut[context] for (context, _), t in zip(prompts, theirs, strict=True)]
    assert sum(cut) > 30
    for budget in (8 * WINDOW, None):
        assert our_texts(engine_of("Llama", budget), generating(prompts)) == theirs


def test_an_empty_stop_string_stops_nothing(
    engine_of: EngineOf, hflm_of: Callable[[str], Any]
) -> None:
    """On purpose not HFLM's: it finds "" in any text, so it ends every row at its first token."""
    contexts = ["The fox", "Answer:"]
    ours = our_texts(engine_of("Llama", None), generating(each(contexts, until=["", "\n"])))
    assert ours == their_texts(hflm_of("Llama"), each(contexts, until=["\n"]))


# -- EOS


@pytest.fixture(scope="module")
def loves_eos(model_of: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that ends its rows at different steps."""
    folder = tmp_path_factory.mktemp("eos")
    model = models.load_base(model_of("Llama"))
    model.get_output_embeddings().weight.data[1] *= 3.0
    model.save_pretrained(folder)
    models.load_tokenizer(model_of("Llama")).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("settings", [{}, {"until": ["e", "</s>"]}], ids=["eos", "eos-and-stops"])
def test_eos_in_the_middle_of_a_batch(loves_eos: str, budget: str, settings: dict) -> None:
    """A row that has ended neither goes on itself nor ends or changes its neighbours."""
    contexts = [f"{words} {n}" for n in range(6) for words in ("The quick", SHOTS, "Answer:")]
    prompts = each(contexts, max_gen_toks=24, **settings)
    theirs = their_texts(make_hflm(loves_eos), prompts)
    ours = our_texts(make_engine(loves_eos, batch_tokens=BUDGETS[budget]), generating(prompts))
    assert ours == theirs
    assert len({len(text) for text in theirs}) > 3


def test_several_eos_ids(loves_eos: str, tmp_path: Path) -> None:
    """A generation config may name more ends than the tokenizer knows."""
    model = models.load_base(loves_eos)
    tokenizer = models.load_tokenizer(loves_eos)
    prompts = each(["The quick", "Answer:", "dog", SHOTS], max_gen_toks=24)
    free = their_texts(make_hflm(loves_eos), prompts)
    common = tokenizer.encode(max(free, key=len), add_special_tokens=False)[2]
    model.generation_config.eos_token_id = [1, common]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    theirs = their_texts(make_hflm(str(tmp_path)), prompts)
    assert theirs != free
    for budget in BUDGETS.values():
        ours = make_engine(str(tmp_path), batch_tokens=budget)
        assert our_texts(ours, generating(prompts)) == theirs


# -- what has no text


def test_no_room_is_an_error(engine_of: EngineOf, hflm_of: Callable[[str], Any]) -> None:
    prompts = each(["The fox"], max_gen_toks=WINDOW)
    with pytest.raises(AssertionError):
        their_texts(hflm_of("Llama"), prompts)
    good, bad = engine_of("Llama", None).answer("base", generating([*each(["The fox"]), *prompts]))
    assert good.error is None and bad.outputs == () and "no room" in bad.error


@pytest.mark.parametrize("name", ["Llama", "Llama-no-bos"])
def test_empty_prompt(name: str, engine_of: EngineOf, hflm_of: Callable[[str], Any]) -> None:
    """With BOS an empty prompt is BOS; without, there is nothing to go on from."""
    answers = engine_of(name, None).answer("base", generating(each(["", "The fox"])))
    if name == "Llama":
        assert [a.outputs[0].text for a in answers] == their_texts(
            hflm_of(name), each(["", "The fox"])
        )
    else:
        assert "no tokens" in answers[0].error and answers[1].error is None
