"""A search over both levels, and one of whole answers between bases of two tokenizers."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from colours import write_data
from searching import Played, changed, records, search, search_settings

from muscle.alone import Alone
from muscle.config import CompatibilityConfig, Experiment, InputsConfig
from muscle.experiment import load_experiment
from muscle.plan import make_plan, vary
from muscle.search import control_of, plan_search

pytestmark = pytest.mark.slow

LEVELS: dict[str, Any] = {
    "level": ["token", "choice"],
    "mask": ["student-wrong", "always-old"],
    "teacher": ["old", "mean"],
    "mix": [0.25, 0.75],
    "folds": [None, 2],
    "temperature": [1.0, 4.0],
}


@pytest.fixture(scope="module")
def base(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = write_data(tmp_path_factory.mktemp("data"), test=24, train=100)
    return search_settings(tiny_models, data)


@pytest.fixture(scope="module")
def both(
    base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path, Played]:
    settings = changed(base, tuning={"space": LEVELS, "trials": 8})
    output, launcher = tmp_path_factory.mktemp("both") / "out", Played()
    search(settings, output, launcher)
    return settings, output, launcher


def titles(launcher: Any, word: str) -> list[str]:
    trained = [title for kind, done in launcher.log if kind == "train" for title in done]
    return [title for title in trained if word in title]


def test_every_trial_has_its_levels_settings_only(
    both: tuple[dict[str, Any], Path, Played],
) -> None:
    _, output, _ = both
    found = records(output)
    assert [trial["state"] for trial in found] == ["finished"] * 8
    assert {trial["params"]["level"] for trial in found} == {"token", "choice"}
    for trial in found:
        names = set(trial["params"]) - {"level", "temperature"}
        if trial["params"]["level"] == "token":
            assert names == {"mask"}
        else:
            mixed = trial["params"]["teacher"] == "mean"
            assert names == ({"teacher", "folds", "mix"} if mixed else {"teacher", "folds"})
    params = [json.dumps(trial["params"], sort_keys=True) for trial in found]
    assert len(set(params)) == 8, "no point twice"


def test_teachers_of_folds_are_trained_once_and_answers_scored_once(
    both: tuple[dict[str, Any], Path, Played],
) -> None:
    _, output, launcher = both
    assert len(titles(launcher, "without part")) == 4, "old and new, each without either half"
    scores = list((output / "artifacts" / "scores").glob("*/manifest.json"))
    assert len(scores) == 4, "old's and new's, with folds and without, whatever is searched"


def test_what_was_chosen_says_nothing_of_the_other_level(
    both: tuple[dict[str, Any], Path, Played],
) -> None:
    _, output, _ = both
    best = yaml.safe_load((output / "best.yaml").read_text())["compatibility"]
    test = {row["name"]: row for row in json.loads((output / "tune.json").read_text())["test"]}
    assert {"chosen", "default", "always-old", "control"} <= test.keys()
    rows = [row["compatibility"] for row in test.values()]
    for settings in (best, *rows):
        other = {"mask", "old_weight"} if settings["level"] == "choice" else {"teacher", "inputs"}
        assert other.isdisjoint(settings)
    assert test["control"]["compatibility"]["ce_weight"] == 1.0
    assert test["default"]["compatibility"]["mask"] == "student-wrong"
    load_experiment(output / "best.yaml")
    said = (output / "tune.md").read_text()
    assert "teacher" in said and "train" in said


def test_a_choice_of_whole_answers_is_what_best_trains(
    base: dict[str, Any], tmp_path: Path
) -> None:
    """And nothing of it is trained again: its key is the trial's."""
    settings = changed(
        base, compatibility={"level": "choice"}, tuning={"space": {"temperature": [2.0, 4.0]}}
    )
    search(settings, tmp_path / "out", Played())
    best = load_experiment(tmp_path / "out" / "best.yaml")
    assert best.compatibility.by_choice and best.compatibility.temperature in (2.0, 4.0)
    steps = make_plan(best).steps()
    kept = tmp_path / "out" / "artifacts"
    made = {s.kind: (kept / s.kind / s.key / "manifest.json").exists() for s in steps}
    assert made["compat-adapter"] and made["predictions"]


def test_the_control_has_as_many_updates_on_labels_alone(base: dict[str, Any]) -> None:
    plan = make_plan(Experiment.model_validate(base))
    labelled = len(plan.split_of("new")[0])
    chosen = CompatibilityConfig(
        level="choice", teacher="old", margin=1.0, epochs=3, learning_rate=1e-3, interpolation=0.5
    )
    same = CompatibilityConfig(level="token", ce_weight=1.0, epochs=3, learning_rate=1e-3)
    assert control_of(plan, chosen) == same
    settings = changed(base, training={"limit": 30})
    limited = make_plan(Experiment.model_validate(settings))
    rest: list[Any] = ["train", InputsConfig(split="train")]
    more = chosen.model_copy(update={"inputs": rest})
    asked = vary(limited, more).answers
    assert asked is not None
    mine = len(limited.split_of("new")[0])
    assert mine < labelled and len(asked.asked.new.train) > 1.5 * mine
    epochs = control_of(limited, more).epochs
    assert epochs is not None and abs(epochs * mine - 3 * len(asked.asked.new.train)) <= mine / 2
    masked = CompatibilityConfig(mask="old-right", interpolation=0.75)
    assert control_of(plan, masked) == masked.model_copy(
        update={"ce_weight": 1.0, "interpolation": 1.0}
    )


def test_two_tokenizers_can_be_searched_by_whole_answers(
    base: dict[str, Any], tiny_models: dict[str, str], tmp_path: Path
) -> None:
    settings = changed(
        base,
        old={"model": tiny_models["other"]},
        compatibility={"level": "choice"},
        tuning={"space": {"teacher": ["old", "mean"], "temperature": [2.0, 4.0]}},
    )
    plan = plan_search(Experiment.model_validate(settings))
    assert any("without default and always-old" in n and "tokenizers" in n for n in plan.notes)
    found = search(settings, tmp_path / "out", Played()).found
    assert [row.name for row in found.test] == ["chosen", "control"]
    assert all(trial.state == "finished" for trial in found.trials)


def test_trials_of_both_levels_really_train(base: dict[str, Any], tmp_path: Path) -> None:
    space = {"level": ["token", "choice"], "margin": [0.0, 1.0]}
    settings = changed(base, tuning={"space": space, "trials": 3, "interpolations": []})
    found = search(settings, tmp_path / "out", Alone("cpu")).found
    tried = [dict(trial.params) for trial in found.trials]
    assert sorted(map(str, tried)) == sorted(
        [
            "{'level': 'token'}",
            "{'level': 'choice', 'margin': 0.0}",
            "{'level': 'choice', 'margin': 1.0}",
        ]
    )
    assert all(trial.state == "finished" for trial in found.trials), found.trials


def test_inputs_can_be_searched(base: dict[str, Any], tmp_path: Path) -> None:
    """Teachers answer each set of them once, whatever else is varied."""
    inputs = [["train"], ["train", {"split": "train"}]]
    settings = changed(
        base,
        training={"limit": 30},
        compatibility={"level": "choice"},
        tuning={"space": {"inputs": inputs, "temperature": [1.0, 4.0]}, "interpolations": []},
    )
    search(settings, tmp_path / "out", Played())
    found = records(tmp_path / "out")
    params = sorted((trial["params"]["inputs"], trial["params"]["temperature"]) for trial in found)
    both = ["train", "train + split train"]
    assert params == [(text, temperature) for text in both for temperature in (1.0, 4.0)]
    assert len(list((tmp_path / "out" / "artifacts" / "scores").glob("*/manifest.json"))) == 4
    best = load_experiment(tmp_path / "out" / "best.yaml").compatibility
    assert [one if one == "train" else "split" for one in best.inputs] in (
        ["train"],
        ["train", "split"],
    )


def test_settings_of_one_adapter_train_it_once(base: dict[str, Any], tmp_path: Path) -> None:
    """On labels alone it makes no difference who would teach."""
    settings = changed(
        base,
        compatibility={"level": "choice", "ce_weight": 1.0},
        tuning={"space": {"teacher": ["old", "mean", "confident"]}, "interpolations": []},
    )
    launcher = Played()
    search(settings, tmp_path / "out", launcher)
    found = records(tmp_path / "out")
    assert [trial["state"] for trial in found] == ["finished"] * 3
    assert len({json.dumps(trial["a"], sort_keys=True) for trial in found}) == 1
    adapters = (tmp_path / "out" / "artifacts" / "compat-adapter").glob("*/manifest.json")
    taught = [json.loads(file.read_text())["inputs"]["loss"].get("level") for file in adapters]
    assert taught.count("choice") == 1
