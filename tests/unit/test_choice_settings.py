"""What is refused of the settings of both levels, in words that say what to do."""

import pytest

from muscle.errors import UserError
from muscle.experiment import load_experiment
from muscle.plan import make_plan
from muscle.tuning.space import make_space

DEMO = "jobs/experiments/demo.yaml"


def load(compatibility: str) -> None:
    load_experiment(DEMO, [f"compatibility={compatibility}"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{level: choice, inputs: [traffic.jsonl]}", "write train, or {path: traffic.jsonl}"),
        ("{level: choice, inputs: [train, {split: test}]}", "inputs.1.split' is 'test'"),
        ("{level: choice, inputs: [train, {path: x, limit: 0}]}", "inputs.1.limit' is 0"),
        ("{level: choice, inputs: [{file: x}]}", "'compatibility.inputs.0.file': known are path"),
        ("{level: choice, inputs: [{path: a, split: train}]}", "give one of 'path', 'split'"),
        ("{level: choice, inputs: [train, 5]}", "(path, split, task, limit, overlap)"),
        ("{level: choice, ce_weight: 1, inputs: [{path: a}]}", "'ce_weight: 1' needs labels"),
        ("{level: choice, focus: 2, inputs: [{path: a}]}", "'focus: 2' needs labels"),
        (
            "{level: choice, teacher: old-where-right, inputs: [{path: a}]}",
            "'teacher: old-where-right' needs labels",
        ),
        ("{level: choice, mask: always-old}", "'mask' is of level token"),
        ("{level: token, margin: 1}", "'margin' is of level choice"),
        ("{level: choice, mix: 1.5}", "'compatibility.mix' is 1.5"),
        ("{level: choice, teacher: old, mix: 0.5}", "mean and confident, not old"),
        ("{level: choice, folds: 2, inputs: [{path: a}]}", "put train among 'inputs'"),
        ("{level: choice, inputs: [train, train]}", "among 'inputs' twice"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_one_line(settings: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load(settings)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_answers_are_drawn_only_where_they_are_written() -> None:
    settings = ["compatibility={level: choice, samples: 5}", "training.limit=100"]
    with pytest.raises(UserError, match=r"'compatibility\.samples'.*gives its answers"):
        make_plan(load_experiment(DEMO, settings))


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("{focus: [0, 1]}", "'tuning.space.focus' is of the training split"),
        ("{teacher: [old, old-where-right]}", "old-where-right needs labels"),
        ("{ce_weight: [0, 1]}", "ce_weight 1 needs labels"),
    ],
)
def test_a_search_without_labels_tries_nothing_that_needs_them(space: str, said: str) -> None:
    unlabelled = "compatibility={level: choice, inputs: [{split: train}]}"
    experiment = load_experiment(DEMO, [unlabelled, f"tuning.space={space}"])
    with pytest.raises(UserError, match=said):
        make_space(experiment)
