"""The search space: its default, its points, and the one line about what can't be searched."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from muscle.config import Experiment, MaskName, RangeConfig
from muscle.errors import UserError
from muscle.experiment import load_experiment
from muscle.losses.needs import needed_teachers
from muscle.tuning.space import Space, default_space, make_space


def experiment(space: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    tuning = {} if space is None else {"tuning": {"space": space}}
    basic = {"name": "e", "task": "piqa", "old": {"model": "a"}, "new": {"model": "b"}}
    settings["compatibility"] = {"level": "token", **settings.get("compatibility", {})}
    return Experiment.model_validate({**basic, **tuning, **settings})


def refused(space: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        make_space(experiment(space))
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- the default ------------------------------------------------------------------------


def test_the_default_has_every_mask_that_reads_old() -> None:
    space = default_space(experiment())
    masks = MaskName.__args__  # type: ignore[attr-defined]
    reading = {
        mask
        for mask in masks
        if "old" in needed_teachers(experiment().compatibility.model_copy(update={"mask": mask}))
    }
    assert space.mask is not None
    assert set(space.mask) == reading and len(space.mask) == 5


@pytest.mark.parametrize("rate", [3e-5, 1e-4, 0.2, 0.9, 1.0])
def test_the_default_is_around_the_experiments_own_rate(rate: float) -> None:
    own = experiment(compatibility={"learning_rate": rate})
    found = default_space(own).learning_rate
    assert isinstance(found, RangeConfig) and found.log
    assert found.min == pytest.approx(rate / 3, rel=1e-3)
    assert found.max == pytest.approx(min(1.0, 3 * rate), rel=1e-3)
    assert found.max <= 1.0
    make_space(own)


def test_the_default_has_epochs_up_to_the_trainings() -> None:
    many = default_space(experiment(training={"epochs": 7}))
    assert isinstance(many.epochs, RangeConfig)
    assert (many.epochs.min, many.epochs.max) == (1, 7)
    own = default_space(experiment(training={"epochs": 7}, compatibility={"epochs": 2}))
    assert isinstance(own.epochs, RangeConfig) and own.epochs.max == 2
    one = experiment(training={"epochs": 1})
    assert default_space(one).epochs is None
    assert "epochs" not in make_space(one).parameters


def test_the_papers_settings_are_a_point_of_the_default() -> None:
    e = experiment()
    space = make_space(e)
    start = space.start(e)
    assert start == {
        "mask": "student-wrong",
        "temperature": 2.0,
        "ce_weight": 0.0,
        "old_weight": 1.0,
        "learning_rate": e.training.learning_rate,
        "epochs": e.training.epochs,
    }
    assert space.size() is None


# --- points -----------------------------------------------------------------------------


def test_the_order_is_fixed() -> None:
    given = {"epochs": [1, 2], "mask": ["old-right"], "temperature": [2, 1]}
    backwards = dict(reversed(given.items()))
    spaces = [make_space(experiment(found)) for found in (given, backwards)]
    for space in spaces:
        assert list(space.parameters) == ["mask", "temperature", "epochs"]
        assert list(space.distributions()) == ["mask", "temperature", "epochs"]


def test_the_size_is_the_product_of_the_counts() -> None:
    def size(space: dict[str, Any]) -> int | None:
        return make_space(experiment(space)).size()

    assert size({"mask": ["old-right", "always-old"], "temperature": [1, 2, 4]}) == 6
    assert size({"epochs": {"min": 2, "max": 5}, "temperature": [1, 2]}) == 8
    assert size({"epochs": [1, 5], "ce_weight": {"min": 0, "max": 1}}) is None


def test_distributions_are_of_the_settings_kinds() -> None:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    space = make_space(
        experiment(
            {
                "temperature": [1, 2.5],
                "old_weight": {"min": 0.5, "max": 2, "log": True},
                "epochs": {"min": 1, "max": 3},
            }
        )
    )
    assert space.distributions() == {
        "temperature": CategoricalDistribution([1.0, 2.5]),
        "old_weight": FloatDistribution(0.5, 2.0, log=True),
        "epochs": IntDistribution(1, 3),
    }


def test_settings_are_the_experiments_with_the_point_in() -> None:
    e = experiment({"temperature": [1, 3]}, compatibility={"ce_weight": 0.3, "epochs": 4})
    found = make_space(e).settings({"temperature": 3.0}, e)
    assert found == e.compatibility.model_copy(update={"temperature": 3.0})
    with pytest.raises(ValidationError):
        make_space(e).settings({"temperature": -1.0}, e)


@pytest.mark.parametrize(
    ("space", "compatibility", "inside"),
    [
        ({"temperature": [1, 2]}, {}, True),
        ({"temperature": [1, 3]}, {}, False),
        ({"temperature": {"min": 2, "max": 3}}, {}, True),
        ({"temperature": {"min": 2.1, "max": 3}}, {}, False),
        ({"mask": ["old-right", "always-old"]}, {}, False),
        ({"learning_rate": [1e-4, 2e-4]}, {}, True),
        ({"learning_rate": [1e-4, 2e-4]}, {"learning_rate": 3e-4}, False),
        ({"epochs": {"min": 1, "max": 10}}, {}, True),
        ({"epochs": {"min": 1, "max": 9}}, {}, False),
        ({"epochs": {"min": 1, "max": 9}}, {"epochs": 9}, True),
    ],
)
def test_the_start_is_the_experiments_own_point(
    space: dict[str, Any], compatibility: dict[str, Any], inside: bool
) -> None:
    e = experiment(space, compatibility=compatibility)
    start = make_space(e).start(e)
    assert (start is not None) == inside
    if start is not None:
        (name,) = space
        settings = make_space(e).settings(start, e)
        again = e.model_copy(update={"compatibility": settings})
        assert again.compat_training == e.compat_training
        assert getattr(settings, name) == start[name]


def test_a_point_read_from_json_is_the_same_point() -> None:
    space = make_space(
        experiment({"temperature": [1, 2], "epochs": {"min": 1, "max": 3}, "mask": ["old-right"]})
    )
    point = space.point({"epochs": 2.0, "temperature": 2, "mask": "old-right"})
    assert point == {"mask": "old-right", "temperature": 2.0, "epochs": 2}
    assert list(point) == list(space.parameters) and isinstance(point["epochs"], int)
    assert space.point({"epochs": 2.5, "temperature": 2, "mask": "old-right"}) is None
    assert space.point({"epochs": 4, "temperature": 2, "mask": "old-right"}) is None
    assert space.point({"epochs": 2, "temperature": 2}) is None
    assert space.point({**point, "ce_weight": 0.0}) is None


def test_json_reads_back_as_the_same_space() -> None:
    import json

    space = make_space(experiment())
    value = json.loads(json.dumps(space.to_json()))
    assert isinstance(value["epochs"]["max"], int)
    assert make_space(experiment(value)) == space == Space(space.parameters)


# --- what can't be searched ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"temperature": {"min": 4, "max": 1}}, ["temperature': min 4 is not below max 1"]),
        ({"temperature": {"min": 2, "max": 2}}, ["temperature': min 2 is not below max 2"]),
        ({"old_weight": {"min": 0, "max": 2, "log": True}}, ["old_weight'", "log", "above 0"]),
        ({"temperature": {"min": 0, "max": 2}}, ["temperature.min' is 0", "greater than 0"]),
        ({"temperature": [2, 0]}, ["temperature.1' is 0", "greater than 0"]),
        ({"ce_weight": {"min": 0, "max": 1.5}}, ["ce_weight.max' is 1.5", "equal to 1"]),
        ({"ce_weight": [-0.1, 0.5]}, ["ce_weight.0' is -0.1", "equal to 0"]),
        ({"old_weight": [-1, 1]}, ["old_weight.0' is -1"]),
        ({"learning_rate": {"min": 1e-5, "max": 2}}, ["learning_rate.max' is 2"]),
        ({"learning_rate": [0, 1e-4]}, ["learning_rate.0' is 0"]),
        ({"epochs": [0, 1]}, ["epochs.0' is 0"]),
        ({"epochs": {"min": 0, "max": 2}}, ["epochs.min' is 0"]),
        ({"epochs": {"min": 1, "max": 2.5}}, ["epochs.max' is 2.5", "integer"]),
        ({"mask": []}, ["mask'", "empty"]),
        ({"temperature": [1, 2, 1.0]}, ["temperature'", "value 1 ", "twice"]),
        ({"mask": ["old-right", "old-right"]}, ["mask'", "old-right", "twice"]),
        ({}, ["one point", "temperature"]),
        ({"mask": ["old-right"], "epochs": [2]}, ["one point"]),
    ],
)
def test_one_line_names_the_setting(space: dict[str, Any], words: list[str]) -> None:
    message = refused(space)
    assert message.startswith("setting 'tuning.space")
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"rank": [8, 16]}, ["tuning.space.rank", "temperature", "learning_rate"]),
        ({"temprature": [1, 2]}, ["tuning.space.temprature", "'temperature'"]),
        ({"mask": ["old-write"]}, ["tuning.space.mask.0", "old-write", "old-right"]),
        ({"epochs": [1.5, 2]}, ["tuning.space.epochs", "1.5", "integer"]),
        ({"temperature": {"min": 1}}, ["tuning.space.temperature"]),
        ({"temperature": 2.0}, ["tuning.space.temperature", "2.0", "list"]),
    ],
)
def test_a_files_mistake_is_one_line(
    tmp_path: Path, space: dict[str, Any], words: list[str]
) -> None:
    file = tmp_path / "e.yaml"
    basic = {"name": "e", "task": "piqa", "old": {"model": "a"}, "new": {"model": "b"}}
    file.write_text(yaml.safe_dump({**basic, "tuning": {"space": space}}), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_experiment(file)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
