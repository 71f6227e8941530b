"""A space of whole answers, and one of both levels: whose settings a trial has."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from muscle.config import CompatibilityConfig, Experiment, InputsConfig, RangeConfig
from muscle.errors import UserError
from muscle.experiment import load_experiment
from muscle.tuning.space import Space, default_space, make_space
from muscle.tuning.study import Study

BASIC = {"name": "e", "task": "piqa", "old": {"model": "a"}, "new": {"model": "b"}}
BOTH: dict[str, Any] = {
    "level": ["token", "choice"],
    "mask": ["student-wrong", "always-old"],
    "teacher": ["old", "mean"],
    "mix": [0.25, 0.5],
    "inputs": [["train"], [{"path": "t.jsonl"}]],
    "folds": [None, 3],
    "temperature": [1.0, 2.0],
}


def experiment(
    space: dict[str, Any] | None = None, compatibility: dict[str, Any] | None = None, **more: Any
) -> Experiment:
    tuning = {} if space is None else {"tuning": {"space": space}}
    own = {"level": "token", **(compatibility or {})}
    return Experiment.model_validate({**BASIC, **tuning, **more, "compatibility": own})


def refused(space: dict[str, Any], **compatibility: Any) -> str:
    with pytest.raises(UserError) as caught:
        make_space(experiment(space, compatibility))
    message = str(caught.value)
    assert message.startswith("setting 'tuning.space") and "\n" not in message
    return message


# --- the default of level choice --------------------------------------------------------


def test_the_default_varies_what_whole_answers_have_and_no_mask() -> None:
    e = experiment(compatibility={"level": "choice", "epochs": 4, "learning_rate": 1e-3})
    space = make_space(e)
    names = ["teacher", "mix", "temperature", "margin", "learning_rate", "epochs"]
    assert list(space.parameters) == names
    assert space.start(e) == {
        "teacher": "confident",
        "mix": 0.5,
        "temperature": 2.0,
        "margin": 0.0,
        "learning_rate": 1e-3,
        "epochs": 4,
    }
    assert make_space(experiment(json.loads(json.dumps(space.to_json())), {"level": "choice"})) == (
        space
    )


@pytest.mark.parametrize("mix", [0.05, 0.5, 0.95])
def test_the_experiments_own_mix_is_inside_the_default(mix: float) -> None:
    e = experiment(compatibility={"level": "choice", "mix": mix})
    found = default_space(e).mix
    assert isinstance(found, RangeConfig) and found.min <= mix <= found.max
    start = make_space(e).start(e)
    assert start is not None and start["mix"] == mix


# --- points of both levels --------------------------------------------------------------


def test_a_point_has_the_settings_of_its_level_only() -> None:
    e = experiment(BOTH)
    space = make_space(e)
    points = list(space.points())
    for point in points:
        mine = {"mask"} if point["level"] == "token" else {"teacher", "inputs"}
        others = {"mask", "teacher", "mix", "inputs", "folds"} - mine
        assert mine <= point.keys()
        if point["level"] == "token":
            assert others.isdisjoint(point)
        else:
            assert ("mix" in point) == (point["teacher"] == "mean")
            assert ("folds" in point) == (point["inputs"] == "train")
        settings = space.settings(point, e)
        assert settings.level == point["level"]
        assert settings.temperature == point["temperature"]
        assert settings.folds == point.get("folds") and settings.mix == point.get("mix")
    # token: 2 masks x 2 temperatures; choice: (old, or mean with 2 mixes) x (train with or
    # without folds, or the file) x 2 temperatures
    assert space.size() == len(points) == 4 + 3 * 3 * 2
    distinct = {json.dumps(space.settings(p, e).model_dump(), sort_keys=True) for p in points}
    assert len(distinct) == len(points)


def test_what_the_experiment_has_of_another_level_does_not_stay() -> None:
    token = experiment({"level": ["token", "choice"]}, {"mask": "always-old", "old_weight": 0.5})
    found = make_space(token).settings({"level": "choice"}, token)
    assert found == CompatibilityConfig(level="choice")
    own = {"level": "choice", "teacher": "mean", "mix": 0.2, "folds": 4, "margin": 1.0}
    choice = experiment({"level": ["token", "choice"], "teacher": ["mean", "old"]}, own)
    space = make_space(choice)
    assert space.settings({"level": "token"}, choice) == CompatibilityConfig(level="token")
    old = space.settings({"level": "choice", "teacher": "old"}, choice)
    assert (old.mix, old.folds, old.margin) == (None, 4, 1.0)
    elsewhere = experiment({"inputs": [["train"], [{"path": "t.jsonl"}]]}, own)
    other = make_space(elsewhere).settings({"inputs": "t.jsonl"}, elsewhere)
    assert other.folds is None and other.inputs == [InputsConfig(path="t.jsonl")]


def test_a_point_with_a_setting_of_the_other_level_is_none() -> None:
    space = make_space(experiment(BOTH))
    point = {"level": "token", "mask": "always-old", "temperature": 2}
    assert space.point(point) == point
    assert list(space.point(dict(reversed(point.items()))) or {}) == list(point)
    assert space.point({**point, "teacher": "old"}) is None
    assert space.point({"level": "token", "temperature": 2}) is None
    mixed = {"level": "choice", "teacher": "old", "mix": 0.5, "inputs": "t.jsonl", "temperature": 1}
    assert space.point(mixed) is None


def test_the_start_is_of_the_experiments_level() -> None:
    token = experiment(BOTH)
    assert make_space(token).start(token) == {
        "level": "token",
        "mask": "student-wrong",
        "temperature": 2.0,
    }
    own = {"level": "choice", "teacher": "mean", "inputs": ["train"], "folds": 3}
    choice = experiment(BOTH, own)
    assert make_space(choice).start(choice) == {
        "level": "choice",
        "teacher": "mean",
        "mix": 0.5,
        "inputs": "train",
        "folds": 3,
        "temperature": 2.0,
    }
    outside = experiment(BOTH, {"level": "choice", "inputs": [{"path": "other.jsonl"}]})
    assert make_space(outside).start(outside) is None


def test_inputs_that_read_alike_keep_apart() -> None:
    given = [["train"], [{"path": "a/t.jsonl"}], [{"path": "b/t.jsonl"}]]
    e = experiment({"inputs": given}, {"level": "choice"})
    space = make_space(e)
    assert space.parameters["inputs"] == ["train", "t.jsonl", "t.jsonl #2"]
    found = space.settings({"inputs": "t.jsonl #2"}, e).inputs
    assert found == [InputsConfig(path="b/t.jsonl")]


def test_what_all_points_read_is_made_for_every_set_of_inputs_and_folds() -> None:
    e = experiment(BOTH)
    taught = make_space(e).taught(e)
    assert [s.level for s in taught] == ["token", "choice", "choice", "choice"]
    assert [(s.inputs[0] == "train", s.folds) for s in taught[1:]] == [
        (True, None),
        (True, 3),
        (False, None),
    ]
    assert all(s.teacher == "mean" for s in taught[1:])
    one = experiment({"teacher": ["old", "confident"]}, {"level": "choice", "teacher": "old"})
    assert [s.teacher for s in make_space(one).taught(one)] == ["mean"]
    old = experiment({"margin": [0, 1]}, {"level": "choice", "teacher": "old", "ce_weight": 1.0})
    assert [(s.teacher, s.ce_weight) for s in make_space(old).taught(old)] == [("old", 0.0)]


# --- suggestions ------------------------------------------------------------------------


def test_a_study_tries_every_point_of_both_levels_once() -> None:
    space = make_space(experiment({**BOTH, "temperature": [1.0]}))
    size = space.size()
    assert size == 2 + 9
    study = Study(space, 0, size, pareto=False)
    seen = []
    for number in range(size):
        point = study.ask(number)
        assert point is not None and point not in seen
        seen.append(point)
        study.tell(number, nfr=0.1 + 0.01 * number, score=0.5, violation=0.0)
    assert study.ask(size) is None
    shares = study.importances()
    assert shares is not None and set(shares) == {"level"}  # all else some points lack


def test_the_better_level_is_suggested_more_often_and_records_replay() -> None:
    space = make_space(
        experiment(
            {
                "level": ["token", "choice"],
                "old_weight": {"min": 0.5, "max": 2},
                "margin": {"min": 0, "max": 2},
                "temperature": {"min": 1, "max": 4},
            }
        )
    )
    first, later = Study(space, 1, 30, pareto=False), Study(space, 1, 30, pareto=False)
    levels = []
    for number in range(24):
        point = first.ask(number)
        assert point is not None
        levels.append(point["level"])
        nfr = 0.2 if point["level"] == "token" else 0.1 - 0.02 * point["margin"]
        first.tell(number, nfr, 0.5, 0.0)
        later.ask(number, json.loads(json.dumps(point)))
        later.tell(number, nfr, 0.5, 0.0)
    assert levels[10:].count("choice") > levels[10:].count("token")
    assert first.ask(24) == later.ask(24)


# --- what can't be searched ------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "own", "words"),
    [
        ({"teacher": ["old", "new"]}, {}, ["space.teacher'", "level choice", "is token"]),
        ({"margin": [0, 1]}, {}, ["space.margin'", "put level: [token, choice]"]),
        ({"mask": ["old-right", "always-old"]}, {"level": "choice"}, ["space.mask'", "is choice"]),
        ({"mix": [0.2, 0.8]}, {"level": "choice", "teacher": "old"}, ["space.mix'", "mean"]),
        ({"mix": [0.2, 1.8]}, {"level": "choice"}, ["space.mix.1' is 1.8", "equal to 1"]),
        ({"margin": [0, -1]}, {"level": "choice"}, ["space.margin.1' is -1", "equal to 0"]),
        ({"folds": [None, 1]}, {"level": "choice"}, ["space.folds.1' is 1", "equal to 2"]),
        (
            {"folds": [None, 3]},
            {"level": "choice", "inputs": [{"path": "t.jsonl"}]},
            ["space.folds'", "train"],
        ),
        (
            {"inputs": [["train"], ["train", "train"]]},
            {"level": "choice"},
            ["space.inputs.1' is train + train", "twice"],
        ),
        ({"inputs": [["train"], ["train"]]}, {"level": "choice"}, ["space.inputs'", "twice"]),
        ({"inputs": [["train"], []]}, {"level": "choice"}, ["space.inputs.1'", "at least 1"]),
    ],
)
def test_one_line_names_the_setting(
    space: dict[str, Any], own: dict[str, Any], words: list[str]
) -> None:
    message = refused(space, **own)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"level": ["tokens"]}, ["tuning.space.level.0", "tokens", "'token' or 'choice'"]),
        ({"teacher": ["older"]}, ["tuning.space.teacher.0", "older", "old-where-right"]),
        ({"inputs": ["train"]}, ["tuning.space.inputs.0", "train", "list"]),
        ({"inputs": [["trian"]]}, ["tuning.space.inputs.0.0", "trian"]),
    ],
)
def test_a_files_mistake_is_one_line(
    tmp_path: Path, space: dict[str, Any], words: list[str]
) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(yaml.safe_dump({**BASIC, "tuning": {"space": space}}), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_experiment(file)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_space_without_levels_is_what_it_was() -> None:
    space = make_space(experiment({"temperature": [1, 2], "mask": ["old-right"]}))
    assert space == Space({"mask": ["old-right"], "temperature": [1.0, 2.0]})
    assert space.always == ["mask", "temperature"]
    assert [list(p.values()) for p in space.points()] == [["old-right", 1.0], ["old-right", 2.0]]
