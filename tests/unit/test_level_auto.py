"""`compatibility.level: auto`: the level whose settings are given, else the task's."""

import json
from pathlib import Path
from typing import Any

import pytest
from colours import colour_settings, write_data

from muscle.config import CompatibilityConfig, Experiment
from muscle.errors import UserError
from muscle.experiment import load_experiment
from muscle.pipeline import check_output, numbers
from muscle.plan import Plan, make_plan
from muscle.search import check_search, identity, plan_search

DEMO = "jobs/experiments/demo.yaml"


@pytest.fixture(scope="module")
def base(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = write_data(tmp_path_factory.mktemp("data"), test=24, train=100)
    return {**colour_settings(tiny_models, data), "compatibility": {}}


@pytest.fixture(scope="module")
def written(base: dict[str, Any]) -> dict[str, Any]:
    """The same colours, written by the model."""
    task = {name: value for name, value in base["task"].items() if name != "choices"}
    return {**base, "task": {**task, "name": "written", "max_gen_toks": 4}}


def planned(settings: dict[str, Any], **changes: Any) -> Plan:
    return make_plan(Experiment.model_validate({**settings, **changes}))


def keys(plan: Plan) -> list[str]:
    return [step.key for step in plan.steps()]


def test_the_task_decides_where_nobody_else_does(
    base: dict[str, Any], written: dict[str, Any]
) -> None:
    for settings, level in ((base, "choice"), (written, "token")):
        plan = planned(settings)
        assert plan.experiment.compatibility.level == level
        # As if one had written it, to the last key.
        assert keys(plan) == keys(planned(settings, compatibility={"level": level}))


@pytest.mark.parametrize(
    ("given", "level"),
    [
        ({"mask": "old-right"}, "token"),
        ({"old_weight": 2.0}, "token"),
        ({"ce_weight": 1.0}, "token"),
        ({"teacher": "old"}, "choice"),
        ({"margin": 1.0}, "choice"),
        ({"inputs": [{"path": "traffic.jsonl"}]}, "choice"),
        ({"temperature": 1.0, "epochs": 3, "ce_weight": 0.3}, "auto"),
        ({"level": "auto", "folds": 2}, "choice"),
    ],
)
def test_a_setting_of_one_level_has_that_level(given: dict[str, Any], level: str) -> None:
    settings = CompatibilityConfig.model_validate(given)
    assert settings.level == level
    assert settings.at("token").level == ("token" if level == "auto" else level)


def test_settings_of_both_levels_are_one_line() -> None:
    both = "compatibility={mask: old-right, teacher: old}"
    with pytest.raises(UserError, match="'mask' is of level token and 'teacher' of level choice"):
        load_experiment(DEMO, ["compatibility.level=auto", both])


def test_a_search_has_the_level_of_what_it_varies(base: dict[str, Any]) -> None:
    for space, level in (
        ({"mask": ["old-right", "always-old"]}, "token"),
        ({"teacher": ["old", "mean"]}, "choice"),
        ({"temperature": [1.0, 2.0]}, "choice"),  # of both: the task decides
    ):
        tuning = {"space": space, "trials": 2, "difference": 0.9}
        plan = plan_search(Experiment.model_validate({**base, "tuning": tuning}))
        assert plan.space.levels(plan.plan.experiment) == [level]
        own = planned(base, tuning=tuning)
        assert own.experiment.compatibility.level == level  # of `muscle run` too


def test_a_search_from_before_candidates_had_an_end_is_another(
    base: dict[str, Any], written: dict[str, Any], tmp_path: Path
) -> None:
    """Its trials were taught by other scores."""
    tuning = {"space": {"teacher": ["old", "mean"]}, "trials": 2, "difference": 0.9}
    given, plan = (
        plan_search(Experiment.model_validate({**settings, "tuning": tuning}))
        for settings in (base, written)
    )
    assert "candidate answers" not in identity(given)["what it reads"]
    there = identity(plan)
    (tmp_path / "search.json").write_text(json.dumps(there))
    check_search(plan, str(tmp_path))
    del there["what it reads"]["candidate answers"]
    (tmp_path / "search.json").write_text(json.dumps(there))
    with pytest.raises(UserError, match=r"what it reads\.candidate answers"):
        check_search(plan, str(tmp_path))


def test_two_tokenizers_train_where_the_task_gives_its_answers(
    base: dict[str, Any], written: dict[str, Any], tiny_models: dict[str, str]
) -> None:
    other = {"model": tiny_models["other"]}
    assert "train compat" in [step.label for step in planned(base, old=other).steps()]
    with pytest.raises(UserError, match="level: choice"):
        planned(written, old=other)


def test_a_record_of_the_other_level_is_another_experiment(
    base: dict[str, Any], tmp_path: Path
) -> None:
    """Known as soon as the task is; until then the level is open, and nothing is refused."""
    there = numbers(Experiment.model_validate({**base, "compatibility": {"level": "token"}}))
    (tmp_path / "experiment.json").write_text(json.dumps(there))
    (tmp_path / "report.json").write_text("{}")
    check_output(Experiment.model_validate(base), str(tmp_path))
    with pytest.raises(UserError, match=r"compatibility\.level"):
        check_output(planned(base).experiment, str(tmp_path))
