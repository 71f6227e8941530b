"""HFLM's loop as the benchmarks restate it, for machines without lm_eval, is HFLM's."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oracle import RELATIVE, instances, make_hflm
from scoring_cases import CASES

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from agreement import agreement
from restated import RestatedHFLM

NAMES = [
    "plain", "trailing-space", "one-token-choices", "one-choice-a-prefix-of-another",
    "token-spans-the-join", "shared-few-shots", "longer-than-the-window", "non-ascii",
]  # fmt: skip


@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_scores(name: str, model_of: Callable[[str], str]) -> None:
    pairs = [pair for case in NAMES for question in CASES[case] for pair in question]
    hflm = make_hflm(model_of(name), batch_size=4, logits_cache=True)
    theirs = hflm.loglikelihood(instances(pairs), disable_tqdm=True)
    ours = RestatedHFLM(model_of(name), "float32", "cpu", 4).loglikelihood(pairs)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [ll for ll, _ in ours] == pytest.approx([ll for ll, _ in theirs], rel=RELATIVE)


@pytest.mark.parametrize("size", [1, 4])
def test_texts(size: int, model_of: Callable[[str], str]) -> None:
    contexts = ["The quick", "To open a jar, turn the lid", "Answer:", "dog " * 70, "Q: 1 + 1\nA:"]
    settings: dict[str, Any] = {"do_sample": False, "max_gen_toks": 12, "until": ["e", "\n"]}
    hflm = make_hflm(model_of("Llama"), batch_size=size)
    theirs = hflm.generate_until(instances((c, settings) for c in contexts), disable_tqdm=True)
    restated = RestatedHFLM(model_of("Llama"), "float32", "cpu", size)
    assert restated.generate_until([(c, json.dumps(settings)) for c in contexts]) == theirs


def test_agreement_tells_near_ties_from_differences() -> None:
    questions = [{"id": str(i), "requests": [0, 0]} for i in range(3)]
    theirs = [
        (-1.0, True),
        (-2.0, False),
        (-5.0, False),
        (-5.00001, False),
        (-3.0, False),
        (-9.0, False),
    ]
    ours = [
        (-1.0, True),
        (-2.0, False),
        (-5.00001, False),
        (-5.0, False),
        (-9.0, True),
        (-3.0, False),
    ]
    found = agreement(questions, ours, theirs, "float32")
    assert found["ids"] == {"near_ties": ["1"], "other": ["2"]}
    assert found["same_choice"] == 1 and found["same_is_greedy"] == 5 / 6
    texts = agreement(questions, ["a", "b", "c"], ["a", "b", "d"], "float32")
    assert texts["same_text"] == 2 and texts["ids"] == {"other": ["2"]}
