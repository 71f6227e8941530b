"""Generation against lm-evaluation-harness's HFLM and against each row alone, in fp32."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import make_model, make_tokenizer, save_model, save_random_adapter

from muscle import models
from muscle.errors import UserError
from muscle.evaluation import decoding, generation, sharing
from muscle.evaluation.generation import Prompt, generate
from muscle.evaluation.padded import generate_padded
from muscle.evaluation.plan import NAN, Start, make_plan, truncated
from muscle.evaluation.sampling import eos_ids
from muscle.evaluation.sharing import families
from muscle.evaluation.stopping import Stops
from muscle.evaluation.support import can_decode
from muscle.models.structure import unwrap

WINDOW = 160
EOS = "</s>"

SHOTS = (
    "Question: What is the capital of France?\nAnswer: Paris.\n\n"
    "Question: Who jumps over the dog?\nAnswer: the quick brown fox.\n\n"
)
OTHER = "Dialogue: see you tomorrow at the station!\nSummary: they will meet.\n\n" * 2
ENDS = [
    "The quick",
    "Who sleeps in the sun?\nAnswer:",
    "naïve café, 12345 + ",
    "x",
    "To open a jar",
]

PROMPTS = {
    "none": ["The quick", "Question: who?", "naïve café, 12345 + ", "12", "To open a jar"],
    "all": [SHOTS + end for end in ENDS],
    "two groups": [SHOTS + end for end in ENDS] + [OTHER + end for end in ENDS],
    "one a prefix of another": [SHOTS, SHOTS + "The", SHOTS + "The fox", OTHER[:40], OTHER],
    "identical": [SHOTS + "The quick"] * 4 + [OTHER] * 2,
    "longer than the window": [SHOTS * 3 + end for end in ENDS] + [SHOTS + "The fox"],
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(window=WINDOW)


@pytest.fixture(autouse=True)
def families_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a handful of short prompts makes several families."""
    monkeypatch.setattr(generation, "STEP_COST", 1)
    monkeypatch.setattr(sharing, "MIN_SHARED", 4)


def prompts(tokenizer: Any, texts: list[str], **settings: Any) -> list[Prompt]:
    wish = json.dumps({"max_gen_toks": 10} | settings)
    return [Prompt(tokenizer(text)["input_ids"], wish, str(i)) for i, text in enumerate(texts)]


def made(model: Any, tokenizer: Any, texts: list[str], **settings: Any) -> list[str]:
    """Our texts; arguments of `generate` begin with an underscore."""
    ways = {k[1:]: settings.pop(k) for k in list(settings) if k.startswith("_")}
    ways = {"max_length": WINDOW, "batch_tokens": 64, "held_tokens": 400} | ways
    outputs = generate(model, tokenizer, prompts(tokenizer, texts, **settings), **ways)
    assert not [out for out in outputs if isinstance(out, str)]
    return [out.text for out in outputs]  # type: ignore[union-attr, misc]


def alone(model: Any, tokenizer: Any, texts: list[str], **settings: Any) -> list[str]:
    """Each row through transformers' generate by itself."""
    found = []
    for prompt in prompts(tokenizer, texts, **settings):
        plan = make_plan(prompt.generation, EOS, len(prompt.context))
        context = truncated(prompt.context, plan.max_new_tokens, WINDOW)
        stops = Stops(plan.until, tokenizer, eos_ids(unwrap(model)))
        ask = Start(context, plan, f"0\0{prompt.seed_key}")
        found += [out.text for out in generate_padded(model, tokenizer, [ask], stops, 1)]
    return found


def harness(model: Any, tokenizer: Any, texts: list[str], **settings: Any) -> list[str]:
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=WINDOW, device="cpu")
    wish = {"max_gen_toks": 10} | settings
    requests = [SimpleNamespace(args=(text, dict(wish)), task_name=None) for text in texts]
    return lm.generate_until(requests, disable_tqdm=True)


@pytest.fixture
def only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a row falls back to transformers' generate."""

    def never(*args: Any) -> None:
        raise AssertionError("not decoded by our own loop")

    monkeypatch.setattr(generation, "generate_padded", never)


# -- the same texts


@pytest.mark.usefixtures("only_ours")
@pytest.mark.parametrize("kind", PROMPTS)
def test_shared_beginnings_change_nothing(model: Any, tokenizer: Any, kind: str) -> None:
    texts = PROMPTS[kind]
    expected = harness(model, tokenizer, texts, until=["ou"])
    for batch_tokens, held_tokens in [(1, 1), (7, 30), (64, 90), (4096, 4096)]:
        ways = {"_batch_tokens": batch_tokens, "_held_tokens": held_tokens}
        assert made(model, tokenizer, texts, until=["ou"], **ways) == expected
        assert made(model, tokenizer, texts[::-1], until=["ou"], **ways) == expected[::-1]


@pytest.mark.usefixtures("only_ours")
@pytest.mark.parametrize(
    "settings",
    [
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.7},
        {"min_new_tokens": 8},
        {"max_length": 90},
        {"do_sample": True, "temperature": 0.7},
        {"temperature": 1.3, "top_k": 20, "no_repeat_ngram_size": 1},
        {"do_sample": True, "top_k": 0, "top_p": 0.8, "min_p": 0.01, "typical_p": 0.9},
    ],
    ids=str,
)
def test_settings_are_those_of_generate(model: Any, tokenizer: Any, settings: dict) -> None:
    texts = PROMPTS["all"] + PROMPTS["none"]
    expected = alone(model, tokenizer, texts, until=["e"], **settings)
    assert made(model, tokenizer, texts, until=["e"], **settings) == expected


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Mistral": {"sliding_window": 7},
    "Qwen2": {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1},
    "Qwen3": {},
    "Gemma2": {"sliding_window": 7, "attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "Gemma3Text": {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]},
    "Phi": {},
    "Phi3": {"sliding_window": 7},
    "GPTNeoX": {},
}


@pytest.mark.usefixtures("only_ours")
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_architectures(tokenizer: Any, kind: str) -> None:
    other = make_model(kind, window=WINDOW, **ARCHITECTURES[kind])
    texts = PROMPTS["two groups"][1:8]
    expected = alone(other, tokenizer, texts)
    assert made(other, tokenizer, texts) == expected
    assert made(other, tokenizer, texts, _batch_tokens=5, _held_tokens=1) == expected


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Mamba", {}),
        ("Bloom", {}),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    ],
)
def test_other_architectures_fall_back(tokenizer: Any, kind: str, changes: dict) -> None:
    other = make_model(kind, window=WINDOW, **changes)
    assert not can_decode(other)
    texts = PROMPTS["all"][:3]
    assert made(other, tokenizer, texts) == alone(other, tokenizer, texts)


def test_beams_fall_back(model: Any, tokenizer: Any) -> None:
    texts = PROMPTS["all"][:2]
    expected = harness(model, tokenizer, texts, num_beams=2)
    assert made(model, tokenizer, texts, num_beams=2) == expected


def test_half_precision(tokenizer: Any) -> None:
    half = make_model("Mistral", window=WINDOW, sliding_window=7).bfloat16()
    assert can_decode(half)
    texts = made(half, tokenizer, PROMPTS["two groups"])
    expected = alone(half, tokenizer, PROMPTS["two groups"])
    # bf16 depends on the batch; the first tokens have no time to drift.
    assert sum(a[:1] == b[:1] for a, b in zip(texts, expected, strict=True)) >= 8


def test_attention_is_given_back(model: Any, tokenizer: Any) -> None:
    before = model.config._attn_implementation
    made(model, tokenizer, PROMPTS["all"])
    assert model.config._attn_implementation == before == "sdpa"


# -- stopping


@pytest.fixture(scope="module")
def lover(tokenizer: Any) -> Any:
    """A model that loves EOS, so that rows end at different steps."""
    model = make_model(window=WINDOW)
    model.get_output_embeddings().weight.data[1] *= 3.0
    return model


@pytest.mark.usefixtures("only_ours")
@pytest.mark.parametrize("held_tokens", [1, 60, 4000])
def test_rows_stop_by_themselves(lover: Any, tokenizer: Any, held_tokens: int) -> None:
    texts = PROMPTS["two groups"] + PROMPTS["none"]
    free = harness(lover, tokenizer, texts, max_gen_toks=20)
    assert len({len(text) for text in free}) > 4
    stops = [free[0][3:5], free[1][2:6], free[2][4:7], free[3][:1]]
    for until in ([], [stop for stop in stops if stop], stops[1]):
        expected = harness(lover, tokenizer, texts, max_gen_toks=20, until=until)
        ours = made(lover, tokenizer, texts, max_gen_toks=20, until=until, _held_tokens=held_tokens)
        assert ours == expected


def test_finished_rows_cost_nothing(
    lover: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert can_decode(lover)
    ran, rows = count_tokens(monkeypatch), []
    monkeypatch.setattr(decoding.Row, "need", lambda row, shared: rows.append(row) or 200)
    texts = PROMPTS["two groups"]
    made(lover, tokenizer, texts, max_gen_toks=20, _max_length=WINDOW + 60)
    lengths = {row.number: len(row.made) for row in rows}
    assert len(lengths) == len(texts) and len(set(lengths.values())) > 4
    # A row's first token comes from the prompt, the others cost a step of this row alone.
    steps = [count for count, packed in ran if not packed]
    assert sum(steps) == sum(lengths.values()) - len(texts)


# -- what does not fit


def fits(
    model: Any, tokenizer: Any, text: str, until: list[str], limit: int, window: int
) -> str | None:
    """What is lost of a prompt and its greedy answer, token by token."""
    context = tokenizer(text)["input_ids"]
    kept = context[-(window - limit) :]
    made: list[int] = []
    ended = False
    while len(made) < limit and not ended:
        logits = model(torch.tensor([kept + made])).logits
        made.append(int(logits[0, -1].argmax()))
        text = tokenizer.decode(made)
        ended = made[-1] == tokenizer.eos_token_id or any(stop in text for stop in until)
    lost = [
        name for name, is_lost in (("prompt", kept != context), ("answer", not ended)) if is_lost
    ]
    return " and ".join(lost) or None


@pytest.mark.parametrize("way", ["ours", "transformers", "continuous"])
def test_what_does_not_fit_is_told(
    lover: Any, tokenizer: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = PROMPTS["two groups"] + PROMPTS["longer than the window"]
    if way == "transformers":
        monkeypatch.setattr("muscle.evaluation.support.can_decode", lambda model: False)
    seen = set()
    for until, limit in (([], 1), ([], 12), (["e", " q"], 12)):
        wish = prompts(tokenizer, texts, until=until, max_gen_toks=limit)
        outputs = generate(lover, tokenizer, wish, 60, 64, continuous=way == "continuous")
        found = [out.truncated for out in outputs]  # type: ignore[union-attr]
        assert found == [fits(lover, tokenizer, text, until, limit, 60) for text in texts]
        seen |= set(found)
    assert seen == {None, "prompt", "answer", "prompt and answer"}


def test_beams_tell_it_too(lover: Any, model: Any, tokenizer: Any) -> None:
    """A finished beam holds EOS, or is shorter than it may be."""
    texts, found = PROMPTS["all"], []
    for one, limit in ((lover, 30), (model, 3)):
        wish = prompts(tokenizer, texts, num_beams=2, max_gen_toks=limit)
        outputs = generate(one, tokenizer, wish, WINDOW, 64)
        found.append({out.truncated for out in outputs})  # type: ignore[union-attr]
    assert None in found[0] and found[1] == {"answer"}


def test_a_window_that_just_holds_a_prompt_cuts_nothing(model: Any, tokenizer: Any) -> None:
    (wish,) = prompts(tokenizer, ["To open a jar"], max_gen_toks=4)
    length = len(wish.context)
    lost = [
        generate(model, tokenizer, [wish], window, 64)[0].truncated  # type: ignore[union-attr]
        for window in (length + 4, length + 3)
    ]
    assert lost == ["answer", "prompt and answer"]


# -- the shared prefix runs once


def count_tokens(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """(tokens, whether it was a packed pass) of every pass through the body."""
    seen: list[tuple[int, bool]] = []
    real = decoding.Decoder.run

    def run(self: Any, tokens: list[int], memory: Any) -> Any:
        seen.append((len(tokens), isinstance(memory, decoding.Prefill)))
        return real(self, tokens, memory)

    monkeypatch.setattr(decoding.Decoder, "run", run)
    return seen


@pytest.mark.parametrize("kind", ["all", "two groups", "identical"])
def test_shared_prefix_runs_once(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    assert can_decode(model)  # it has been tried
    ran = count_tokens(monkeypatch)
    made(model, tokenizer, PROMPTS[kind], _held_tokens=30)
    contexts = [tuple(tokenizer(text)["input_ids"]) for text in PROMPTS[kind]]
    trie = {context[:n] for context in contexts for n in range(1, len(context) + 1)}
    packed = sum(count for count, is_packed in ran if is_packed)
    # Beside the trie: tokens that a few ends have in common, and a row's own last one.
    assert len(trie) <= packed <= len(trie) + 4 * len(contexts)
    assert packed < 0.6 * sum(map(len, contexts))


def test_families() -> None:
    a, b = list(range(100, 140)), list(range(200, 230))
    rows = [[*a, 1, 2], [*b, 3], [*a, 4], [9], [*b, 3, 5], [*a, 1]]
    found = families(rows, cost=20)
    assert [(f.shared, sorted(f.members)) for f in found] == [
        (40, [0, 2, 5]),
        (30, [1, 4]),
        (0, [3]),
    ]
    # Too dear apart: everything decodes together.
    assert [sorted(f.members) for f in families(rows, cost=1000)] == [list(range(6))]
    # Prompts that are beginnings of each other keep a token of their own; depth is no matter.
    chain = [a[: n + 1] for n in range(40)] * 50
    assert sorted(i for f in families(chain, cost=10) for i in f.members) == list(range(2000))
    for family in families(chain, cost=10):
        assert all(len(chain[i]) > family.shared for i in family.members)
    assert families([], cost=1) == []


# -- sampling


@pytest.mark.usefixtures("only_ours")
def test_sampled_rows_do_not_depend_on_their_batch(model: Any, tokenizer: Any) -> None:
    texts = PROMPTS["identical"] + PROMPTS["none"]
    wish = prompts(tokenizer, texts, temperature=1.0)
    state = torch.get_rng_state()
    first = generate(model, tokenizer, wish, WINDOW, 64)
    assert torch.equal(state, torch.get_rng_state())
    assert len({out.text for out in first[:4]}) == 4  # other seed keys, other texts
    back = generate(model, tokenizer, wish[::-1], WINDOW, 1, held_tokens=1)
    assert back[::-1] == first
    assert generate(model, tokenizer, wish[2:3], WINDOW, 64) == first[2:3]
    assert generate(model, tokenizer, wish, WINDOW, 64, seed=1) != first


# -- what cannot be had


@pytest.mark.parametrize("settings", [{}, {"do_sample": True}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("held_tokens", [1, 40, 4000])
def test_nan_fails_its_row_only(tokenizer: Any, settings: dict, held_tokens: int) -> None:
    broken = make_model(window=WINDOW)
    texts = PROMPTS["none"]
    wish = prompts(tokenizer, texts, **settings)
    expected = generate(broken, tokenizer, wish, WINDOW, 64)
    # A token that one prompt has and no row makes.
    used = {token for prompt in wish for token in prompt.context} - set(wish[4].context)
    text = "".join(out.text for out in expected)  # type: ignore[union-attr]
    used |= set(tokenizer.encode(text))
    bad = next(token for token in wish[4].context[::-1] if token not in used)
    broken.get_input_embeddings().weight.data[bad] = float("nan")
    outputs = generate(broken, tokenizer, wish, WINDOW, 64, held_tokens=held_tokens)
    assert outputs == [*expected[:4], NAN]


def test_out_of_memory_halves_the_places(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = PROMPTS["two groups"]
    expected = made(model, tokenizer, texts)
    real = decoding.Decoder.run
    most = 3

    def small(self: Any, tokens: list[int], memory: Any) -> Any:
        if isinstance(memory, decoding.Decode) and len(tokens) > most:
            raise torch.cuda.OutOfMemoryError
        return real(self, tokens, memory)

    monkeypatch.setattr(decoding.Decoder, "run", small)
    assert made(model, tokenizer, texts) == expected
    most = 0
    outputs = generate(model, tokenizer, prompts(tokenizer, texts), WINDOW, 64)
    assert all("memory" in out for out in outputs)  # type: ignore[operator]


def test_unknown_settings_are_refused(model: Any, tokenizer: Any) -> None:
    for settings in ({"nonesuch": 1}, {"do_sample": True, "temperature": -1.0}):
        with pytest.raises(UserError, match=next(reversed(settings))):
            generate(model, tokenizer, prompts(tokenizer, ["x"], **settings), WINDOW, 64)


# -- continuous batching


def test_continuous_batching_is_the_same(lover: Any, tokenizer: Any) -> None:
    texts = PROMPTS["two groups"] + PROMPTS["longer than the window"]
    for until in ([], ["e", " q"]):
        expected = made(lover, tokenizer, texts, until=until)
        assert made(lover, tokenizer, texts, until=until, _continuous=True) == expected
    assert lover.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["Mistral", "Gemma2", "Qwen2"])
def test_continuous_batching_of_other_models(tokenizer: Any, kind: str) -> None:
    other = make_model(kind, window=WINDOW, **ARCHITECTURES[kind])
    texts = PROMPTS["two groups"][1:8]
    before = other.config._attn_implementation
    assert made(other, tokenizer, texts, _continuous=True) == alone(other, tokenizer, texts)
    assert other.config._attn_implementation == before


def test_adapters_apply(tokenizer: Any, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", window=WINDOW)
    path = save_random_adapter(tmp_path / "adapter", base, seed=3)
    model = models.attach_adapter(models.load_base(base), path, "x").eval()
    texts, seen = PROMPTS["all"], []
    for name in (None, "x"):
        with models.using_adapter(model, name):
            seen.append(alone(model, tokenizer, texts))
            for continuous in (False, True):
                assert made(model, tokenizer, texts, _continuous=continuous) == seen[-1]
    assert seen[0] != seen[1]


def test_continuous_batching_tells_of_nan(tokenizer: Any) -> None:
    broken = make_model(window=WINDOW)
    broken.get_output_embeddings().weight.data[7] = float("nan")
    wish = prompts(tokenizer, PROMPTS["none"])
    assert set(generate(broken, tokenizer, wish, WINDOW, 64, continuous=True)) == {NAN}


def test_continuous_batching_leaves_sampling_alone(model: Any, tokenizer: Any) -> None:
    settings = {"temperature": 1.0}
    expected = made(model, tokenizer, PROMPTS["none"], **settings)
    assert made(model, tokenizer, PROMPTS["none"], _continuous=True, **settings) == expected
