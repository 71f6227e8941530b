"""The engine against lm-evaluation-harness's HFLM: fp32, no logits cache, batch size 1."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import save_model, save_random_adapter

from muscle import models
from muscle.errors import UserError
from muscle.evaluation import Engine
from muscle.types import Answer, Query, Request

WINDOW = 64

LONG = "the quick brown fox and the lazy dog " * 12

PAIRS = [
    ("Question: What is the capital of France?\nAnswer:", " Paris"),
    ("Question: What is the capital of France?\nAnswer:", " the dog"),
    ("Question: What is the capital of France?\nAnswer: ", "Paris"),  # space moves
    ("Question:  \n ", " the"),  # so does all trailing white space
    ("The fo", "x jumps"),  # a token spans the join
    ("The fox", " a"),
    ("The fox", " and"),
    ("The fox", " and the dog"),  # one choice a prefix of another
    ("The fox", " and"),  # a duplicate
    ("", "The fox"),  # the prefix token
    ("", "<s>The fox"),  # which the continuation brings itself
    ("  ", "The fox"),
    ("<s>The fox", " jumps"),  # BOS is already there
    ("naïve café ½ ２", " Übung 日本 👩‍👩‍👧"),
    (LONG, " dog"),  # longer than the window
    ("The dog", " " + "sleeps in the sun " * 9),  # a continuation that pushes the context out
]


def oracle(model: str, max_length: int | None = None, peft: str | None = None) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=model,
        dtype="float32",
        batch_size=1,
        device="cpu",
        logits_cache=False,
        max_length=max_length,
        peft=peft,
    )


def engine(model: str, adapters: dict[str, str | None] | None = None, **kwargs: Any) -> Engine:
    given = {"dtype": "float32", "batch_tokens": 512, "device": "cpu"} | kwargs
    return Engine(model, None, adapters or {"base": None}, **given)


def instances(requests: Iterable[tuple]) -> list[Any]:
    return [SimpleNamespace(args=args, task_name=None) for args in requests]


def scoring(pairs: Iterable[tuple[str, str]]) -> list[Query]:
    return [
        Query(str(i), (Request("loglikelihood", context, rest),))
        for i, (context, rest) in enumerate(pairs)
    ]


def generating(contexts: Iterable[str], **settings: Any) -> list[Query]:
    return [
        Query(str(i), (Request("generate_until", context, generation=json.dumps(settings)),))
        for i, context in enumerate(contexts)
    ]


def numbers(answers: list[Answer]) -> list[tuple[float, bool]]:
    assert [a.error for a in answers] == [None] * len(answers)
    return [(a.outputs[0].loglikelihood, a.outputs[0].is_greedy) for a in answers]


def texts(answers: list[Answer]) -> list[str]:
    assert [a.error for a in answers] == [None] * len(answers)
    return [a.outputs[0].text for a in answers]


def assert_same(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [ll for ll, _ in ours] == pytest.approx([ll for ll, _ in theirs], rel=1e-5)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("base"), window=WINDOW)


@pytest.fixture(scope="module")
def tiny(base: str) -> Engine:
    return engine(base)


@pytest.fixture(scope="module")
def hflm(base: str) -> Any:
    return oracle(base)


# -- log-likelihoods


def test_token_splits_are_the_oracles(tiny: Engine, hflm: Any) -> None:
    seen = []
    hflm._loglikelihood_tokens = lambda requests, disable_tqdm: seen.extend(requests)
    try:
        hflm.loglikelihood(instances(PAIRS))
    finally:
        del hflm._loglikelihood_tokens
    ours = [(pair.context, pair.continuation) for pair in tiny.encoder.pairs(PAIRS)]
    assert ours == [(context, rest) for _, context, rest in seen]


def test_loglikelihoods_are_the_oracles(tiny: Engine, hflm: Any) -> None:
    theirs = hflm.loglikelihood(instances(PAIRS), disable_tqdm=True)
    assert_same(numbers(tiny.answer("base", scoring(PAIRS))), theirs)


def test_greedy_continuation_is_called_greedy(tiny: Engine, hflm: Any) -> None:
    contexts = ["The quick", "Summary: they", "To open a jar,"]
    made = texts(tiny.answer("base", generating(contexts, max_gen_toks=3)))
    pairs = list(zip(contexts, made, strict=True))
    theirs = hflm.loglikelihood(instances(pairs), disable_tqdm=True)
    assert any(greedy for _, greedy in theirs)
    assert_same(numbers(tiny.answer("base", scoring(pairs))), theirs)


@pytest.mark.parametrize("extra", [-1, 0, 1, 2])
def test_lengths_around_the_window(base: str, tiny: Engine, extra: int) -> None:
    pair = ("The quick brown fox jumps over the lazy dog", " and the dog sleeps")
    split = tiny.encoder.pairs([pair])[0]
    window = len(split.context) + len(split.continuation) - extra
    theirs = oracle(base, window).loglikelihood(instances([pair]), disable_tqdm=True)
    assert_same(numbers(engine(base, max_length=window).answer("base", scoring([pair]))), theirs)


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_batches_change_nothing(base: str, tiny: Engine, batch_tokens: int) -> None:
    other = engine(base, batch_tokens=batch_tokens)
    forth = numbers(tiny.answer("base", scoring(PAIRS)))
    back = numbers(other.answer("base", scoring(PAIRS[::-1])))
    assert_same(back[::-1], forth)


def test_head_in_chunks(base: str, tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = numbers(tiny.answer("base", scoring(PAIRS)))
    monkeypatch.setattr("muscle.evaluation.scoring.HEAD_ELEMENTS", {"cpu": 1})
    assert_same(numbers(tiny.answer("base", scoring(PAIRS))), expected)


ARCHITECTURES = {
    "Mistral": {"sliding_window": 4},
    "Gemma2": {"sliding_window": 4, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "Qwen2": {},
    "Phi": {},
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_other_architectures(kind: str, tmp_path: Path) -> None:
    model = save_model(tmp_path, kind, window=WINDOW, **ARCHITECTURES[kind])
    lm, ours = oracle(model), engine(model)
    theirs = lm.loglikelihood(instances(PAIRS), disable_tqdm=True)
    assert_same(numbers(ours.answer("base", scoring(PAIRS))), theirs)
    contexts, settings = ["The fox", "To open a jar, turn the lid"], {"max_gen_toks": 8}
    requests = instances((context, dict(settings)) for context in contexts)
    assert texts(ours.answer("base", generating(contexts, **settings))) == lm.generate_until(
        requests, disable_tqdm=True
    )


# -- what does not fit


def test_a_context_that_loses_its_beginning_is_told(tiny: Engine) -> None:
    """HFLM keeps max_length + 1 tokens, since the last one is only predicted."""
    tokenizer, lost = tiny.tokenizer, {}
    for words in range(20, 70):
        context = " the" * words
        size = len(tokenizer(context + " dog")["input_ids"])
        (answer,) = tiny.answer("base", scoring([(context, " dog")]))
        lost[size] = answer.outputs[0].truncated
    assert {WINDOW + 1, WINDOW + 2} <= lost.keys()
    assert lost == {size: "prompt" if size > WINDOW + 1 else None for size in lost}


def test_a_document_is_read_in_windows_and_loses_nothing(tiny: Engine) -> None:
    (answer,) = tiny.answer("base", [Query("d", (Request("loglikelihood_rolling", LONG),))])
    assert answer.outputs[0].truncated is None and answer.outputs[0].loglikelihood < 0


# -- answers that cannot be had


def test_unscorable_requests_are_errors_in_their_place(tiny: Engine) -> None:
    good = Request("loglikelihood", "The fox", " and")
    bad = [
        (Request("loglikelihood", "The fox", ""), "continuation is empty"),
        (Request("loglikelihood", "The fox ", ""), "continuation is empty"),
        (Request("loglikelihood", "The fox", LONG), "more than the window of 64"),
        (Request("generate_until", "x", generation='{"max_gen_toks": 64}'), "no room"),
        (Request("generate_until", "x", generation="[]"), "not a JSON object"),
        (Request("rolling", "x"), "'rolling' is unknown"),  # type: ignore[arg-type]
    ]
    queries = [Query("good", (good, good))]
    queries += [Query(f"bad{i}", (good, request)) for i, (request, _) in enumerate(bad)]
    answers = tiny.answer("base", [*queries, Query("none", ())])
    assert [a.id for a in answers] == [q.id for q in queries] + ["none"]
    assert answers[0].error is None and len(answers[0].outputs) == 2
    for answer, (_, why) in zip(answers[1:], bad, strict=False):
        assert answer.outputs == () and answer.error.startswith("request 1: ")
        assert why in answer.error
    assert answers[-1].error == "it has no requests"
    assert tiny.answer("base", []) == []


def test_nan_is_an_error(base: str) -> None:
    broken = engine(base)
    broken.model.get_output_embeddings().weight.data[7] = float("nan")
    (answer,) = broken.answer("base", scoring(PAIRS[:1]))
    assert answer.error == "its log-likelihood is nan"
    for settings in ({}, {"do_sample": True, "temperature": 1.0}):
        (answer,) = broken.answer("base", generating(["The fox"], max_gen_toks=3, **settings))
        assert answer.error == "the model's logits are NaN"


# -- generation

CONTEXTS = [
    "The quick",
    "Question: What is the capital of France?\nAnswer:",
    "Summary: they will meet tomorrow at the station.\n\nDialogue:",
    "<s>The fox",
    "naïve café, 12345 + ",
    LONG,
    "The quick",
]


def check_generation(ours: Engine, lm: Any, contexts: list[str], **settings: Any) -> list[str]:
    requests = instances((context, json.loads(json.dumps(settings))) for context in contexts)
    theirs = lm.generate_until(requests, disable_tqdm=True)
    made = texts(ours.answer(ours.versions[0], generating(contexts, **settings)))
    assert made == theirs
    return made


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_sample": False, "temperature": 0.0},
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.7},
        {"num_beams": 2},
        {"min_new_tokens": 4, "top_k": 5},
    ],
    ids=str,
)
def test_generation_is_the_oracles(tiny: Engine, hflm: Any, settings: dict) -> None:
    check_generation(tiny, hflm, CONTEXTS, until=["\n\n", "Dialogue:"], max_gen_toks=12, **settings)


def test_stop_strings_are_the_oracles(tiny: Engine, hflm: Any) -> None:
    free = check_generation(tiny, hflm, CONTEXTS, max_gen_toks=16)
    # Stop strings that occur: inside tokens, across tokens, overlapping, at the start.
    stops = [text[k : k + n] for text in free for k, n in [(0, 1), (3, 2), (5, 4), (6, 3)]]
    for i in range(0, len(stops), 4):
        until = [stop for stop in stops[i : i + 4] if stop.isprintable() and stop]
        cut = check_generation(tiny, hflm, CONTEXTS, until=until, max_gen_toks=16)
        assert cut != free
    check_generation(tiny, hflm, CONTEXTS, until=stops[1], max_gen_toks=16)  # one, as a string


@pytest.mark.parametrize("pad", ["<pad>", "x"])
def test_eos_in_the_middle_of_a_batch(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pad: str
) -> None:
    # A tokenizer may have nothing special to pad with: a letter must not reach the text.
    letter = models.load_tokenizer(base).convert_tokens_to_ids(pad)
    monkeypatch.setattr("muscle.evaluation.padded.padding_id", lambda tokenizer: letter)
    # A model that loves EOS ends rows at different steps.
    model = models.load_base(base)
    model.get_output_embeddings().weight.data[1] *= 3.0
    model.save_pretrained(tmp_path)
    models.load_tokenizer(base).save_pretrained(tmp_path)
    ours, lm = engine(str(tmp_path), batch_tokens=10_000), oracle(str(tmp_path))
    made = check_generation(ours, lm, CONTEXTS, max_gen_toks=24)
    assert len({len(text) for text in made}) > 2


def test_default_limit_and_long_prompts(tiny: Engine) -> None:
    # 256 new tokens do not fit a window of 64: an error, where the harness stops.
    (answer,) = tiny.answer("base", generating(["The fox"], until=["\n"]))
    assert "max_gen_toks 256" in answer.error


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_batches_change_no_text(base: str, tiny: Engine, batch_tokens: int, sampled: bool) -> None:
    settings = {"max_gen_toks": 12} | ({"do_sample": True, "temperature": 1.0} if sampled else {})
    queries = generating(CONTEXTS, **settings)
    forth = texts(tiny.answer("base", queries))
    back = texts(engine(base, batch_tokens=batch_tokens).answer("base", queries[::-1]))
    assert back[::-1] == forth


def test_sampling_follows_its_seed_and_place(base: str, tiny: Engine) -> None:
    settings = {"max_gen_toks": 12, "temperature": 1.0}  # a temperature alone samples
    state = torch.get_rng_state()
    first = texts(tiny.answer("base", generating(CONTEXTS, **settings)))
    assert torch.equal(state, torch.get_rng_state())
    assert first[0] != first[-1]  # the same prompt, another query: repeats are independent
    assert texts(engine(base, seed=1).answer("base", generating(CONTEXTS, **settings))) != first


def test_unknown_generation_setting(tiny: Engine) -> None:
    with pytest.raises(UserError, match="nonesuch"):
        tiny.answer("base", generating(["The fox"], max_gen_toks=3, nonesuch=1))


# -- versions


def test_each_version_has_its_own_numbers(base: str, tmp_path: Path) -> None:
    paths = {
        name: save_random_adapter(tmp_path / name, base, seed)
        for seed, name in enumerate(("new", "compat"))
    }
    ours = engine(base, {"base": None, **paths}, base_fingerprint=models.fingerprint_base(base))
    assert ours.versions == ("base", "new", "compat")
    seen = []
    for version in ("new", "base", "compat", "new"):  # switching back and forth
        lm = oracle(base, peft=paths.get(version))
        scores = numbers(ours.answer(version, scoring(PAIRS)))
        assert_same(scores, lm.loglikelihood(instances(PAIRS), disable_tqdm=True))
        requests = instances((context, {"max_gen_toks": 8}) for context in CONTEXTS)
        made = texts(ours.answer(version, generating(CONTEXTS, max_gen_toks=8)))
        assert made == lm.generate_until(requests, disable_tqdm=True)
        seen.append((scores, made))
    assert seen[0] == seen[3] and seen[0] != seen[1] != seen[2] != seen[0]
    assert not any(p.requires_grad for p in ours.model.parameters())


def test_merged_models_agree(base: str, tmp_path: Path) -> None:
    path = save_random_adapter(tmp_path / "adapter", base, seed=3)
    merged = models.attach_adapter(models.load_base(base), path, "x").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    models.load_tokenizer(base).save_pretrained(tmp_path / "merged")
    ours = numbers(engine(base, {"v1.5": path}).answer("v1.5", scoring(PAIRS)))
    whole = numbers(engine(str(tmp_path / "merged")).answer("base", scoring(PAIRS)))
    assert [ll for ll, _ in ours] == pytest.approx([ll for ll, _ in whole], rel=1e-4)


def test_bad_engines_are_refused(base: str, tmp_path: Path) -> None:
    path = save_random_adapter(tmp_path / "adapter", base, seed=3)
    with pytest.raises(UserError, match="made for another base"):
        engine(base, {"new": path}, base_fingerprint="0" * 64)
    with pytest.raises(UserError, match="does not exist"):
        engine(base, {"new": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match="max_length 65 is more than the context window"):
        engine(base, max_length=65)
    with pytest.raises(KeyError):
        engine(base).answer("old", [])


# -- real models, where there are some


@pytest.mark.skipif("MUSCLE_MODELS" not in os.environ, reason="MUSCLE_MODELS names no models")
@pytest.mark.parametrize("name", ["v1", "v2", "v3"])
def test_real_models(name: str) -> None:
    model = str(Path(os.environ["MUSCLE_MODELS"]) / name)
    ours, lm = engine(model, batch_tokens=4096), oracle(model)
    pairs = [*PAIRS, ("The senator said", " " + LONG), (LONG * 8, " and so on")]
    theirs = lm.loglikelihood(instances(pairs), disable_tqdm=True)
    assert_same(numbers(ours.answer("base", scoring(pairs))), theirs)
    settings = {"until": [".", "\n"], "max_gen_toks": 32}
    made = check_generation(ours, lm, CONTEXTS, **settings)
    assert check_generation(ours, lm, CONTEXTS, **settings, no_repeat_ngram_size=2)
    assert any(made)
