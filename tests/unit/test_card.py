"""The adapter's model card: what the hub parses, and numbers and text as they are."""

from typing import Any

import pytest
import yaml

from muscle.config import Experiment
from muscle.report import adapter_card, build_report
from muscle.types import VERSIONS, Prediction, Version

WILD = 'ba"se: [x] <b>|`'


def predictions(seeds: tuple[int, ...]) -> dict[int, dict[Version, list[Prediction]]]:
    """Ten examples; old is right on the first eight, new on all but seed's, compat on nine."""

    def score(version: str, seed: int, i: int) -> float:
        right = {"old": i < 8, "new": i not in (seed, 9), "compat": i != 9}
        return float(right[version])

    def answer(i: int, score: float) -> Prediction:
        return Prediction("t", str(i), "q", "yes", "yes" if score else "no", "acc", score)

    return {
        seed: {v: [answer(i, score(v, seed, i)) for i in range(10)] for v in VERSIONS}
        for seed in seeds
    }


def card(seeds: tuple[int, ...] = (0,), seed: int = 0) -> str:
    experiment = Experiment.model_validate(
        {"name": "e", "task": "t", "old": {"model": "v1"}, "new": {"model": WILD}}
    )
    provenance: dict[str, Any] = {
        "experiment": experiment.model_dump(exclude={"resources"}),
        "models": {"old": {"fingerprint": "f1"}, "new": {"fingerprint": "f2"}},
        "muscle": "0.1",
        "libraries": {"peft": "1"},
    }
    report = build_report(predictions(seeds), provenance)
    return adapter_card(report, "t", seed, {"train": 8, "validation": 2})


def test_front_matter_is_what_the_hub_reads() -> None:
    text = card()
    assert text.startswith("---\n")
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == WILD
    assert front["library_name"] == "peft" and "lora" in front["tags"]


def test_scores_flips_settings_and_data_are_there() -> None:
    text = card()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert any("score %" in row and "80.00" in row and "90.00" in row for row in rows)
    # One of ten answers was right and is wrong in new; none in compat.
    nfr = next(row for row in rows if row.startswith("| NFR %"))
    assert nfr.split("|")[2].strip().startswith("10.00")
    assert nfr.split("|")[3].strip().startswith("0.00")
    for key in ("train examples", "compatibility.mask", "training.epochs", "fingerprints.new"):
        assert any(row.startswith(f"| {key} ") for row in rows), key


def test_foreign_text_is_literal() -> None:
    body = card().split("---", 2)[2]
    assert "<b>" not in body and "&lt;b&gt;" in body


@pytest.mark.parametrize("seed", [0, 1])
def test_with_several_seeds_a_card_has_its_own_seeds_numbers(seed: int) -> None:
    alone = [r for r in card((seed,), seed).splitlines() if r.startswith("| NFR %")]
    among = [r for r in card((0, 1), seed).splitlines() if r.startswith("| NFR %")]
    assert among == alone and among
