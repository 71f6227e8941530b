"""What is said of a compat adapter's training is of its level, and records keep theirs."""

import json
from pathlib import Path
from typing import Any

import pytest
from searching import Played
from test_card import predictions

from muscle.compatibility_config import at_level, inputs_text, recorded
from muscle.config import CompatibilityConfig, Experiment, InputsConfig
from muscle.errors import UserError
from muscle.pipeline import Pipeline, check_output, numbers
from muscle.plan import make_plan
from muscle.report import adapter_card, build_report
from muscle.report.tuning_view import settings as settings_grid
from muscle.training.job import TrainJob
from muscle.training.tracking import settings as tracked

BASIC: dict[str, Any] = {"name": "e", "task": "t", "old": {"model": "v1"}, "new": {"model": "v2"}}
CHOICE: dict[str, Any] = {
    "level": "choice",
    "teacher": "confident",
    "mix": 0.3,
    "inputs": ["train", {"path": "/data/traffic.jsonl", "limit": 2000}],
}
TOKEN_WORDS = ("mask", "old_weight", "student-wrong")
CHOICE_WORDS = ("teacher", "margin", "inputs", "folds", "samples", "length_normalised")


def experiment(**compatibility: Any) -> Experiment:
    return Experiment.model_validate({**BASIC, "compatibility": compatibility})


def card(settings: Experiment) -> str:
    dumped = settings.model_dump(exclude={"resources"})
    provenance: dict[str, Any] = {
        "experiment": {**dumped, "compatibility": at_level(dumped["compatibility"])},
        "models": {"old": {"fingerprint": "f1"}, "new": {"fingerprint": "f2"}},
        "muscle": "0.1",
        "libraries": {},
    }
    report = build_report(predictions((0,)), provenance)
    return adapter_card(report, "t", 0, {"train": 8, "validation": 2})


def test_a_card_says_how_its_adapter_was_taught() -> None:
    choice, token = card(experiment(**CHOICE)), card(experiment(level="token"))
    assert "by whole answers" in choice and "confident" in choice and "traffic.jsonl" in choice
    assert not any(f"compatibility.{word}" in choice for word in TOKEN_WORDS)
    assert "by whole answers" not in token and "student-wrong" in token
    assert not any(f"compatibility.{word}" in token for word in CHOICE_WORDS)


def test_curves_are_labelled_by_the_level(tiny_models: dict[str, str], tmp_path: Path) -> None:
    loss = CompatibilityConfig.model_validate(CHOICE)
    job = TrainJob.__new__(TrainJob)
    for name, value in {
        "loss": loss,
        "training": experiment().training,
        "adapter": experiment().adapter,
        "role": "compat",
        "base": experiment().new,
        "seed": 0,
    }.items():
        object.__setattr__(job, name, value)
    found = tracked(job)
    assert found["compatibility.inputs"] == "train + traffic.jsonl (2000)"
    assert "/data" not in json.dumps(found), "no paths"
    assert found["compatibility.teacher"] == "confident"
    assert "compatibility.mask" not in found
    object.__setattr__(job, "loss", CompatibilityConfig(level="token"))
    assert tracked(job)["compatibility.mask"] == "student-wrong"
    assert "compatibility.inputs" not in tracked(job)


def test_the_tables_of_a_search_show_inputs_as_text() -> None:
    from test_tuning_report import found, measured

    from muscle.tuning.records import Contender

    dumped = CompatibilityConfig.model_validate(CHOICE).model_dump(mode="json")
    chosen = Contender("chosen", at_level(dumped), measured(0.07, 0.0))
    grid = settings_grid(found(test=(chosen,)))
    assert grid is not None
    rows = {row.label: row.cells for row in grid.rows}
    assert rows["inputs"] == ("train + traffic.jsonl (2000)",)
    assert rows["teacher"] == ("confident",) and "mask" not in rows


def test_the_page_and_the_report_say_nothing_of_the_other_level(
    tiny_models: dict[str, str], tmp_path: Path
) -> None:
    from colours import colour_settings, write_data

    settings = colour_settings(tiny_models, write_data(tmp_path, test=24))
    for level, others in (("choice", TOKEN_WORDS), ("token", CHOICE_WORDS)):
        made = Experiment.model_validate({**settings, "compatibility": {"level": level}})
        output = tmp_path / level
        Pipeline(make_plan(made), str(output), Played(), lambda progress: None).run()
        report = json.loads((output / "report.json").read_text())
        shown = report["provenance"]["experiment"]["compatibility"]
        assert shown["level"] == level and not set(others) & set(shown)
        for file in ("report.html", "report.md", "compat/adapter/README.md"):
            text = (output / file).read_text()
            assert f"compatibility.{others[0]}" not in text and "compatibility.level" in text
        again = Experiment.model_validate(json.loads((output / "experiment.json").read_text()))
        assert again.compatibility == made.compatibility


# --- records that were written before there were levels ----------------------------------------


def test_an_old_record_is_of_tokens_whatever_the_default_is(tmp_path: Path) -> None:
    mine = experiment(level="token", mask="old-right")
    there = numbers(mine)
    del there["compatibility"]["level"]
    assert recorded(there)["compatibility"]["level"] == "token"
    (tmp_path / "experiment.json").write_text(json.dumps(there))
    (tmp_path / "report.json").write_text("{}")
    check_output(mine, str(tmp_path))
    with pytest.raises(UserError, match=r"compatibility\.level"):
        check_output(experiment(level="choice"), str(tmp_path))
    assert recorded({"name": "x"}) == {"name": "x"}


def test_a_record_holds_its_levels_settings_only() -> None:
    token, choice = numbers(experiment(level="token")), numbers(experiment(**CHOICE))
    assert not set(CHOICE_WORDS) & set(token["compatibility"])
    assert not set(TOKEN_WORDS) & set(choice["compatibility"])
    assert Experiment.model_validate(choice | {"assumed": {}}).compatibility == (
        experiment(**CHOICE).compatibility
    )


def test_inputs_read_as_one_line() -> None:
    given = [
        "train",
        InputsConfig(path="s3://bucket/days/today.parquet"),
        InputsConfig(split="train", limit=500),
        InputsConfig.model_validate({"task": "piqa"}),
    ]
    assert inputs_text(given) == "train + today.parquet + split train (500) + task piqa"  # type: ignore[arg-type]
