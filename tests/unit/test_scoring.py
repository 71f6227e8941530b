"""Scoring over a prefix tree: each request's numbers are those it has alone."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_model, save_model

from muscle import models
from muscle.evaluation import Engine, attention, scoring
from muscle.evaluation.attention import Trunk, rope_switch, tree_masks
from muscle.evaluation.packing import MIN_TRUNK, plan_tree
from muscle.evaluation.scoring import Scorer
from muscle.evaluation.trie import make_chains, make_row
from muscle.models.encoding import Pair, rolling_windows
from muscle.types import Query, Request

WINDOW = 64
VOCABULARY = 400

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 4}),
    "mistral-full": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2-sliding": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {}),
    "gemma2": (
        "Gemma2",
        {
            "sliding_window": 4,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 8,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 8,
        },
    ),
    "phi": ("Phi", {}),
    "phi3": ("Phi3", {"sliding_window": 4}),
    "phi3-full": ("Phi3", {"sliding_window": None}),
}


def tokens(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(3, VOCABULARY) for _ in range(n)]


def forest(seed: int, window: int = WINDOW) -> list[Pair]:
    """Questions with choices below one long prefix, and whatever else has made trouble."""
    rng = random.Random(seed)
    shots = [0, *tokens(rng, 25)]
    pairs = []
    for _ in range(4):
        context = shots + tokens(rng, rng.randrange(1, 8))
        for _ in range(3):
            pairs.append(Pair(context, tokens(rng, rng.randrange(1, 6))))
        first = pairs[-1].continuation
        pairs.append(Pair(context, first))  # the same once more
        pairs.append(Pair(context, [*first, 5]))  # it continues
        pairs.append(Pair([*context, first[0]], [*first[1:], 7]))  # split elsewhere
        pairs.append(Pair(context, [9]))
        pairs.append(Pair(context, [10]))
    pairs.append(Pair(shots, [4]))  # scored at the last token of the prefix
    pairs.append(Pair(tokens(rng, 3), tokens(rng, 3)))
    long = shots + tokens(rng, window - len(shots))
    for extra in range(3):  # around the edge of the window
        pairs.append(Pair(long[: len(long) - 3 + extra], tokens(rng, 4)))
        pairs.append(Pair(long[: len(long) - 3 + extra], tokens(rng, 4)))
    pairs.append(Pair(long[:2], tokens(rng, window)))
    pairs.append(Pair(tokens(rng, 1), tokens(rng, 1)))
    return pairs


def alone(model: Any, pair: Pair, max_length: int) -> tuple[float, bool]:
    """The formula, by a plain forward pass of one sequence."""
    whole = (pair.context + pair.continuation)[-(max_length + 1) :]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([whole[:-1]])).logits[0].float()
    logprobs = torch.log_softmax(logits.double(), dim=-1)[-len(pair.continuation) :]
    targets = torch.tensor(pair.continuation)
    total = logprobs.gather(1, targets[:, None]).sum()
    return float(total), bool((logprobs.argmax(-1) == targets).all())


def check(scorer: Scorer, pairs: list[Pair], rel: float = 1e-5) -> None:
    results = scorer.score(pairs)
    expected = [alone(scorer.model, pair, scorer.max_length) for pair in pairs]
    assert [r.loglikelihood for r in results] == pytest.approx([e[0] for e in expected], rel=rel)
    assert [r.is_greedy for r in results] == [e[1] for e in expected]


def scorer_of(model: Any, batch_tokens: int = 200, **changes: Any) -> Scorer:
    masks = tree_masks(model)
    assert not isinstance(masks, str), masks
    given = {"masks": masks, "switch": rope_switch(model)} | changes
    return Scorer(model, WINDOW, batch_tokens, **given)


def with_kernel(name: str, kernel: str) -> Any:
    kind, changes = ARCHITECTURES[name]
    if name == "gemma2" and kernel == "sdpa":  # the kernel has no soft-cap
        changes = changes | {"attn_logit_softcapping": None}
    model = make_model(kind, window=WINDOW, **changes)
    model.set_attn_implementation(kernel)
    return model


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_tree_has_the_numbers_of_each_branch_alone(name: str, kernel: str) -> None:
    if (name, kernel) == ("gemma2", "sdpa"):
        pytest.skip("transformers gives Gemma 2 no sdpa")
    model = with_kernel(name, kernel)
    check(scorer_of(model, 10_000), forest(1))
    scorer = scorer_of(model, 60)
    check(scorer, forest(1))
    assert scorer.counts.run < scorer.counts.given / 2
    assert len(scorer.trunk.tokens_P) >= MIN_TRUNK


@pytest.fixture(scope="module")
def mistral() -> Any:
    return with_kernel("mistral", "sdpa")


@pytest.mark.parametrize("batch_tokens", [1, 7, 40, 10_000])
def test_any_budget_and_any_order(mistral: Any, batch_tokens: int) -> None:
    pairs = forest(2)
    random.Random(batch_tokens).shuffle(pairs)
    check(scorer_of(mistral, batch_tokens), pairs)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(3, 5), min_size=2, max_size=12), st.integers(1, 4)),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([1, 8, 1000]),
)
def test_random_forests(mistral: Any, drawn: list[tuple[list[int], int]], budget: int) -> None:
    pairs = []
    for ids, n in drawn:
        split = max(1, len(ids) - n)
        pairs.append(Pair(ids[:split], ids[split:]))
    scorer = scorer_of(mistral, budget)
    scorer.max_length = 9  # some are cut
    check(scorer, pairs)


def test_half_precision_stays_near() -> None:
    model = make_model("Gemma2", window=WINDOW, **ARCHITECTURES["gemma2"][1], seed=3)
    model.config._attn_implementation = "eager"
    exact = scorer_of(model).score(forest(1))
    half = scorer_of(model.to(torch.bfloat16)).score(forest(1))
    for a, b in zip(exact, half, strict=True):
        assert b.loglikelihood == pytest.approx(a.loglikelihood, rel=0.1, abs=1.0)


# -- what runs


def test_shared_tokens_run_once(mistral: Any) -> None:
    pairs = [pair for pair in forest(3) if len(pair.context) + len(pair.continuation) <= WINDOW]
    sequences = {tuple(pair.context + pair.continuation[:-1]) for pair in pairs}
    nodes = {sequence[:n] for sequence in sequences for n in range(1, len(sequence) + 1)}
    scorer = scorer_of(mistral, 10_000)
    scorer.score(pairs)
    # Questions may repeat the few tokens that they share beyond their trunk, not more.
    assert len(nodes) <= scorer.counts.run <= 1.1 * len(nodes)
    plain = scorer_of(mistral, 10_000, masks=None)
    plain.score(pairs)
    assert plain.counts.run > 2 * len(nodes)


def test_a_trunk_is_kept_and_grows(mistral: Any) -> None:
    pairs = forest(4)
    scorer = scorer_of(mistral, 100)
    check(scorer, pairs)
    first, kept = scorer.counts.run, scorer.trunk.tokens_P
    check(scorer, pairs)
    assert scorer.counts.run - first <= first - MIN_TRUNK
    assert np.array_equal(scorer.trunk.tokens_P[:MIN_TRUNK], kept[:MIN_TRUNK])
    check(scorer, [pair for pair in pairs if len(pair.context) > 20][:5])  # on a part of it
    check(scorer, forest(5))  # another one takes its place
    fresh = Trunk()
    assert fresh.extend(mistral, scorer.masks, kept[:5]) == 5
    assert fresh.extend(mistral, scorer.masks, kept[:9]) == 4
    assert fresh.extend(mistral, scorer.masks, kept[:6]) == 0
    whole = Trunk()
    whole.extend(mistral, scorer.masks, kept[:9])
    for (key, value), (other_key, other_value) in zip(fresh.layers, whole.layers, strict=True):
        torch.testing.assert_close(key, other_key)
        torch.testing.assert_close(value, other_value)


def test_versions_do_not_share_a_trunk(tmp_path: Any) -> None:
    from tiny import save_random_adapter

    base = save_model(tmp_path / "base", window=WINDOW)
    adapter = save_random_adapter(tmp_path / "adapter", base, seed=1)
    shots = "Question: What is the capital of France?\nAnswer: 12345 67890 13579 24680\n"
    queries = [
        Query(str(i), (Request("loglikelihood", shots + word, " a"),) * 2)
        for i, word in enumerate(["The fox", "The dog", "To open", "Summary", "naïve", "Übung"])
    ]
    tree, plain = (
        Engine(base, None, {"b": None, "v": adapter}, "float32", 40, device="cpu", tree=tree)
        for tree in (True, False)
    )
    for version in ("b", "v", "v", "b"):
        ours, theirs = ([a.outputs[0] for a in e.answer(version, queries)] for e in (tree, plain))
        assert len(tree.scorer.trunk.tokens_P) >= MIN_TRUNK
        assert [o.loglikelihood for o in ours] == pytest.approx(
            [o.loglikelihood for o in theirs], rel=1e-5
        )
    assert tree.notes == plain.notes == ()


# -- the tree itself


sequences_of_ids = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12
)


@given(sequences_of_ids)
def test_a_row_is_the_trie(lists: list[list[int]]) -> None:
    arrays = [np.array(ids) for ids in lists]
    chains = make_chains(arrays, [0] * len(arrays))
    assert sorted(m for chain in chains for m in chain.members) == list(range(len(arrays)))
    row = make_row(chains, 0)
    nodes = {tuple(ids[:n]) for ids in lists for n in range(1, len(ids) + 1)}
    assert len(row.token_L) == len(row.position_L) == len(row.end_L) == len(nodes)
    for chain, path in zip(chains, row.paths, strict=True):
        assert row.token_L[path].tolist() == chain.tokens_L.tolist()
        assert row.position_L[path].tolist() == list(range(len(path)))
        leaf = path[-1]  # its ancestors and itself are exactly its path
        sees = [k for k in range(len(nodes)) if k <= leaf < row.end_L[k]]
        assert sees == path.tolist()
        for member in chain.members:
            ids = lists[member]
            assert chain.tokens_L[: len(ids)].tolist() == ids


@given(sequences_of_ids, st.sampled_from([1, 5, 100]), st.booleans())
def test_a_plan_has_every_chain_once(lists: list[list[int]], budget: int, may_trunk: bool) -> None:
    repeated = [np.array([9] * MIN_TRUNK + ids) for ids in lists]
    chains = make_chains(repeated, [len(ids) - 1 for ids in repeated])
    for kept in (np.zeros(0, int), np.array([9] * 40)):
        groups = plan_tree(chains, budget, kept, may_trunk)
        found = sorted(number for group in groups for row in group.rows for number in row)
        assert found == list(range(len(chains)))
        for group in groups:
            trunk = len(group.trunk_L)
            for number in (number for row in group.rows for number in row):
                assert chains[number].tokens_L[:trunk].tolist() == group.trunk_L.tolist()
                assert trunk <= chains[number].start
            assert may_trunk or not trunk


def test_many_nested_prefixes_are_no_deep_recursion() -> None:
    ids = np.zeros(3000, int)
    arrays = [np.append(ids[:n], 1) for n in range(1, 3000)]
    chains = make_chains(arrays, [0] * len(arrays))
    groups = plan_tree(chains, 50, np.zeros(0, int))
    assert sum(len(row) for group in groups for row in group.rows) == len(arrays)


# -- models that don't take a tree


def test_unknown_models_run_plainly_and_say_so(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save_model(tmp_path, "StableLm", window=WINDOW)
    ours = Engine(directory, None, {"b": None}, "float32", 100, device="cpu")
    assert ours.notes == (
        "stablelm with sdpa attention isn't known to take a tree mask: each choice runs alone",
    )
    check(ours.scorer, forest(1))
    assert (
        Engine(directory, None, {"b": None}, "float32", 100, device="cpu", tree=False).notes == ()
    )
    # Known by name, but the numbers are not those of a tree.
    monkeypatch.setattr(attention.TreeMasks, "__call__", lambda *args: None)
    assert "gives other numbers" in tree_masks(make_model("Llama"))


def test_a_window_that_is_ignored_is_noticed() -> None:
    model = make_model("Mistral", window=WINDOW, sliding_window=3)
    assert not attention._check(model, attention.TreeMasks({"": None}))
    model.config._attn_implementation = "flash_attention_2"
    assert "mistral with flash_attention_2" in tree_masks(model)


def test_longrope_separates_long_from_short() -> None:
    """Beyond the original length all positions turn by other frequencies."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 34,
    }
    model = make_model(
        "Phi3",
        window=WINDOW,
        sliding_window=None,
        rope_parameters=rope,
        original_max_position_embeddings=34,
    )
    assert rope_switch(model) == 34
    for changes in ({}, {"masks": None}):
        scorer = scorer_of(model, 10_000, **changes)
        check(scorer, forest(1))


# -- memory


@pytest.mark.parametrize("nodes", [0, 35, 70])
def test_out_of_memory_halves(mistral: Any, monkeypatch: pytest.MonkeyPatch, nodes: int) -> None:
    pairs = forest(6)
    expected = scorer_of(mistral, 10_000).score(pairs)
    scorer = scorer_of(mistral, 10_000)
    real = scoring.run_rows

    def small(model: Any, masks: Any, rows: Any, past: Any) -> Any:
        if sum(len(row.token_L) for row in rows) > nodes:
            raise torch.cuda.OutOfMemoryError
        return real(model, masks, rows, past)

    monkeypatch.setattr(scoring, "run_rows", small)
    found = scorer.score(pairs)
    if not nodes:
        assert set(found) == {scoring.OUT_OF_MEMORY}
        return
    fits = [(a, b) for a, b in zip(found, expected, strict=True) if not isinstance(a, str)]
    assert len(fits) == len(pairs) if nodes == 70 else 0 < len(fits) < len(pairs)
    for a, b in fits:
        assert a.loglikelihood == pytest.approx(b.loglikelihood, rel=1e-5)


def test_a_trunk_that_does_not_fit_is_done_without(
    mistral: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> int:
        raise torch.cuda.OutOfMemoryError

    scorer = scorer_of(mistral, 60)
    monkeypatch.setattr(Trunk, "extend", full)
    check(scorer, forest(7))
    assert not len(scorer.trunk.tokens_P)


def test_nan_fails_only_the_requests_that_hold_it() -> None:
    model = make_model("Llama", window=WINDOW)
    model.get_input_embeddings().weight.data[12] = float("nan")
    good = Pair([3, 4, 5], [6, 7])
    bad = Pair([3, 4, 12], [6, 7])
    before = Pair([3, 4], [5, 12])  # NaN is its last token, which is only predicted
    longer = Pair([3, 4, 5, 12], [6])
    scorer = scorer_of(model, 10_000)
    results = scorer.score([good, bad, before, longer])
    assert [r if isinstance(r, str) else r.loglikelihood < 0 for r in results] == [
        True,
        "its log-likelihood is nan",
        True,
        "its log-likelihood is nan",
    ]
    check(scorer, [good, before])


# -- whole documents


@given(st.integers(1, 40), st.integers(1, 12))
def test_windows_are_the_harness(n: int, max_length: int) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    ids = list(range(100, 100 + n))
    theirs = [
        make_disjoint_window(window)
        for window in get_rolling_token_windows(ids, 0, max_length, context_len=1)
    ]
    ours = [(pair.context, pair.continuation) for pair in rolling_windows(ids, 0, max_length)]
    assert ours == theirs


@pytest.mark.parametrize("bos", [True, False])
def test_documents_are_the_oracles(tmp_path: Any, bos: bool) -> None:
    from types import SimpleNamespace

    from lm_eval.models.huggingface import HFLM
    from tiny import make_tokenizer

    directory = save_model(tmp_path, "Llama", window=WINDOW)
    if not bos:
        make_tokenizer(bos=False).save_pretrained(directory)
    long = "the quick brown fox and the lazy dog " * 12
    texts = ["The fox", long, "a", "<s>The fox", long + "!"]
    lm = HFLM(directory, dtype="float32", batch_size=1, device="cpu", logits_cache=False)
    theirs = lm.loglikelihood_rolling(
        [SimpleNamespace(args=(text,), task_name=None) for text in texts], disable_tqdm=True
    )
    ours = Engine(directory, None, {"b": None}, "float32", 300, device="cpu")
    queries = [Query(text, (Request("loglikelihood_rolling", text),)) for text in [*texts, ""]]
    *answers, empty = ours.answer("b", queries)
    assert empty.error == "the document has no tokens"
    assert [a.outputs[0].loglikelihood for a in answers] == pytest.approx(theirs, rel=1e-5)
    assert {a.outputs[0].is_greedy for a in answers} == {None}
    assert models.load_config(directory).max_position_embeddings == WINDOW
