"""What a step's artifact depends on: its key, and the settings and fingerprints that go into it.

A key holds exactly what changes the artifact's numbers (by fingerprint, never by path); bump a
recipe version when the code changes them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from muscle.artifacts import key_of
from muscle.bases import Base
from muscle.chats import Chats
from muscle.compatibility_config import CHOICE_ONLY, TOKEN_ONLY
from muscle.config import EvaluationConfig, Experiment, TrainingConfig
from muscle.losses.needs import needed_teachers
from muscle.splits import training_split
from muscle.tasks import Task
from muscle.types import Version

if TYPE_CHECKING:
    from muscle.answers import Answers

RECIPES = {
    "examples": 1,
    "queries": 1,
    "task-adapter": 2,
    "teacher": 1,
    "candidates": 1,
    "questions": 1,
    "scores": 1,
    "compat-adapter": 2,
    "interpolated-adapter": 1,
    "predictions": 4,
}

ELSEWHERE = frozenset(
    {"learning_rate", "epochs", "warmup_steps", "interpolation", "inputs", "folds", "samples"}
)
"""Compatibility settings that stand elsewhere in a compat adapter's key than in its loss."""

Run = tuple[int, int]
"""(seed of the task adapters, seed of the compatibility adapter)."""


@dataclass(frozen=True)
class Step:
    """One artifact to have: `kind`/`key`, and for whom."""

    kind: str
    label: str
    inputs: Mapping[str, Any]
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", key_of({"recipe": RECIPES[self.kind], **self.inputs}))


@dataclass(frozen=True)
class PerBase:
    """One step for each base; the same one unless old and new read other chat templates."""

    old: Step
    new: Step

    def of(self, version: Version) -> Step:
        """The step of a version's base; new and compat share theirs."""
        return self.old if version == "old" else self.new


def per_base(alike: bool, make: Callable[[Version], Step]) -> PerBase:
    """The steps of both bases, the same one where these read alike."""
    new = make("new")
    return PerBase(new if alike else make("old"), new)


def examples_step(
    experiment: Experiment, task: Task, chats: Chats | None, version: Version
) -> Step:
    template = None if chats is None else chats.template_of(version)
    training_split(experiment, task, template)  # no training split, or a small one, says so now
    inputs: dict[str, Any] = {
        "task": task.training_fingerprint(template),
        "limit": experiment.training.limit,
        "validation_fraction": experiment.training.validation_fraction,
        "data_seed": experiment.data_seed,
    }
    if experiment.training.tuning_fraction is not None:
        inputs["tuning_fraction"] = experiment.training.tuning_fraction
    if chats is None:
        return Step("examples", "training examples", inputs)
    if chats.too_long:
        inputs["left_out"] = sorted(chats.too_long)
    return Step("examples", f"training examples of {version}", inputs)


def _training_inputs(training: TrainingConfig) -> dict[str, Any]:
    """The training settings that change an adapter; the data's are in the examples' key."""
    return training.model_dump(exclude={"limit", "validation_fraction", "tuning_fraction"})


def identity(base: Base, step: Step | None) -> str:
    """What stands for an adapter in later keys: its own key, or its content."""
    adapter = step.key if step is not None else base.given_adapter
    assert adapter is not None
    return adapter


def label_of(experiment: Experiment, text: str, seed: int) -> str:
    """What a step of a run is called: with its seed where there are several."""
    return f"{text} (seed {seed})" if len(experiment.runs) > 1 else text


def task_adapter(
    experiment: Experiment, version: Version, base: Base, examples: Step, run: Run
) -> Step | None:
    if base.given_adapter is not None:
        return None
    inputs = {
        "base": base.fingerprint,
        "adapter": experiment.adapter.model_dump(),
        "training": _training_inputs(experiment.training),
        "examples": examples.key,
        "seed": run[0],
    }
    return Step("task-adapter", label_of(experiment, f"train {version}", run[0]), inputs)


def compat_adapter(
    experiment: Experiment,
    adapters: Mapping[tuple[Version, Run], Step | None],
    old: Base,
    new: Base,
    taught: PerBase,
    answers: "Answers | None",
    run: Run,
) -> Step:
    if answers is not None:
        return _answer_adapter(experiment, adapters, new, answers, run)
    needs = needed_teachers(experiment.compatibility)
    loss = experiment.compatibility.model_dump(exclude={*ELSEWHERE, "level", *CHOICE_ONLY})
    if not needs:  # plain cross-entropy: mask, temperature and weights play no part
        loss = {"ce_weight": 1.0}
    inputs = {
        "base": new.fingerprint,
        "start": identity(new, adapters["new", run]),
        "old": [old.fingerprint, identity(old, adapters["old", run])] if "old" in needs else None,
        "loss": loss,
        "training": _training_inputs(experiment.compat_training),
        "examples": taught.new.key,
        "seed": run[1],
    }
    if "old" in needs and taught.old.key != taught.new.key:
        inputs["old_examples"] = taught.old.key
    return Step("compat-adapter", label_of(experiment, "train compat", run[1]), inputs)


def _answer_adapter(
    experiment: Experiment,
    adapters: Mapping[tuple[Version, Run], Step | None],
    new: Base,
    answers: "Answers",
    run: Run,
) -> Step:
    loss = answers.loss.model_dump(exclude={*ELSEWHERE, *TOKEN_ONLY, "mix", "nll_weight"})
    loss["old_share"] = answers.loss.old_share
    if not needed_teachers(answers.loss):  # plain cross-entropy over the given answers
        loss = {"level": "choice", "ce_weight": 1.0, "length": answers.loss.length_normalised}
    if answers.loss.nll_weight:  # without it a key is what it was before there was one
        loss["nll_weight"] = answers.loss.nll_weight
    inputs = {
        "base": new.fingerprint,
        "start": identity(new, adapters["new", run]),
        "loss": loss,
        "training": _training_inputs(experiment.compat_training),
        "questions": answers.questions[run].new.key,
        "scores": {v: s.key for (v, of), s in answers.scores.items() if of == run},
        "seed": run[1],
    }
    return Step("compat-adapter", label_of(experiment, "train compat", run[1]), inputs)


def interpolated_adapter(experiment: Experiment, new: str, trained: Step, run: Run) -> Step:
    weight = experiment.compatibility.interpolation
    inputs = {"new": new, "compat": trained.key, "weight": weight}
    label = label_of(experiment, f"interpolate compat x {weight:g}", run[1])
    return Step("interpolated-adapter", label, inputs)


def teacher_cache(
    experiment: Experiment,
    version: Version,
    base: Base,
    adapter: Step | None,
    tokenizer: str,
    examples: Step,
    run: Run,
) -> Step:
    """A teacher's cache: mask, temperature, weights and epochs play no part in it."""
    inputs = {
        "base": base.fingerprint,
        "adapter": identity(base, adapter),
        "tokenizer": tokenizer,
        "examples": examples.key,
        "dtype": experiment.training.dtype,
        "max_length": experiment.training.max_length,
        "loss_on": experiment.training.loss_on,
    }
    return Step("teacher", label_of(experiment, f"cache {version} teacher", run[0]), inputs)


def version_predictions(
    experiment: Experiment,
    version: Version,
    base: Base,
    adapter: Step | None,
    queries: Step,
    run: Run,
) -> Step:
    seed = run[1] if version == "compat" else run[0]
    return predictions_step(
        label_of(experiment, f"evaluate {version}", seed),
        base,
        identity(base, adapter),
        queries,
        experiment.evaluation,
        experiment.scoring_dtype,
    )


def predictions_step(
    label: str,
    base: Base,
    adapter: str | None,
    queries: Step,
    evaluation: EvaluationConfig,
    dtype: str,
    repeat: int = 0,
) -> Step:
    """The step of one version's predictions; `adapter` is what stands for it in keys."""
    inputs: dict[str, Any] = {
        "base": base.fingerprint,
        "adapter": adapter,
        "queries": queries.key,
        "dtype": dtype,
        "max_length": evaluation.max_length,
    }
    if evaluation.backend != "transformers":
        inputs["backend"] = evaluation.backend
    if repeat:
        inputs["repeat"] = repeat
    return Step("predictions", label, inputs)
