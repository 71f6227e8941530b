"""Adapters against HFLM: several on one base, switched to and fro, and one merged."""

from collections.abc import Callable
from pathlib import Path

import pytest
from oracle import (
    BUDGETS,
    assert_same,
    generating,
    make_engine,
    make_hflm,
    our_scores,
    our_texts,
    scoring,
    their_scores,
    their_texts,
)
from scoring_cases import CASES
from tiny import save_random_adapter

from muscle import models

QUESTIONS = [question for questions in CASES.values() for question in questions][::2]
PROMPTS = [
    (context, {"max_gen_toks": 8, "until": ["\n\n"]})
    for context in ("The fox", "Answer:", "Q: 1 + 1\nA: 2\n\nQ: 5\nA:", "Q: 1 + 1\nA: 2\n\nQ:")
]


@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_adapters_beside_their_base(
    name: str, model_of: Callable[[str], str], tmp_path: Path
) -> None:
    base = model_of(name)
    paths = {v: save_random_adapter(tmp_path / v, base, seed) for seed, v in enumerate("ab")}
    ours = make_engine(base, {"base": None, **paths})
    seen = []
    for version in ("a", "base", "b", "a"):
        hflm = make_hflm(base, peft=paths.get(version))
        scores = our_scores(ours, scoring(QUESTIONS), version)
        assert_same(scores, their_scores(hflm, QUESTIONS))
        texts = our_texts(ours, generating(PROMPTS), version)
        assert texts == their_texts(hflm, PROMPTS)
        seen.append((scores, texts))
    assert seen[0] == seen[3]  # nothing of the versions between has stayed
    assert len({tuple(texts) for _, texts in seen}) == 3


@pytest.mark.parametrize("budget", ["eight", "auto"])
def test_merged_adapter(model_of: Callable[[str], str], tmp_path: Path, budget: str) -> None:
    base = model_of("Llama")
    path = save_random_adapter(tmp_path / "adapter", base, seed=3)
    merged = models.attach_adapter(models.load_base(base), path, "x").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    models.load_tokenizer(base).save_pretrained(tmp_path / "merged")
    ours = make_engine(str(tmp_path / "merged"), batch_tokens=BUDGETS[budget])
    hflm = make_hflm(str(tmp_path / "merged"))
    assert_same(our_scores(ours, scoring(QUESTIONS)), their_scores(hflm, QUESTIONS))
    assert our_texts(ours, generating(PROMPTS)) == their_texts(hflm, PROMPTS)
    # Merging itself rounds: W + BA is not (W + BA as two products), so a looser bound.
    apart = our_scores(make_engine(base, {"new": path}), scoring(QUESTIONS))
    whole = our_scores(ours, scoring(QUESTIONS))
    assert [ll for ll, _ in apart] == pytest.approx([ll for ll, _ in whole], rel=1e-4)
