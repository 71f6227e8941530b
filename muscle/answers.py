"""What a compat adapter of level choice is made from: questions, and teachers' scores of them.

Where a task gives its answers, the questions are the same for all runs. Where a model writes
them, each run has its own: the candidates that its old and its new have written.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from muscle.bases import Base
from muscle.chats import Chats
from muscle.config import CompatibilityConfig, Experiment
from muscle.errors import UserError
from muscle.losses.needs import needed_teachers
from muscle.questions import Questions, questions_of
from muscle.recipes import (
    PerBase,
    Run,
    Step,
    examples_step,
    identity,
    label_of,
    per_base,
    task_adapter,
)
from muscle.splits import training_split
from muscle.tasks import Task, fold
from muscle.types import BOTH, Version

DEFAULT_SAMPLES = CompatibilityConfig.model_fields["samples"].default


@dataclass(frozen=True)
class Asked:
    """The inputs of an update as both bases are asked them; the same unless they are chats."""

    old: Questions
    new: Questions

    def of(self, version: Version) -> Questions:
        """A version's base's."""
        return self.old if version == "old" else self.new


def settled(experiment: Experiment, task: Task) -> Experiment:
    """The experiment with the level of its compat adapter, where that is left open: the one whose
    settings the search varies, else the task's."""
    space = experiment.tuning.space
    level = space.named_level() if space else None
    settings = experiment.compatibility.at(level or ("choice" if task.gives_choices else "token"))
    if settings is experiment.compatibility:
        return experiment
    return experiment.model_copy(update={"compatibility": settings})


class Reader:
    """Reads `compatibility.inputs`, each once however many trials ask for them."""

    def __init__(self, experiment: Experiment, task: Task, chats: Chats | None):
        self.experiment, self.task, self.chats = experiment, task, chats
        self._read: dict[str, Asked] = {}

    def read(self, settings: CompatibilityConfig) -> Asked:
        """The inputs that these settings name.

        Raises:
            UserError: as `questions_of`.
        """
        key = json.dumps(settings.model_dump(mode="json")["inputs"], sort_keys=True)
        if key not in self._read:
            experiment = self.experiment.model_copy(update={"compatibility": settings})
            if self.chats is None:
                asked = questions_of(experiment, self.task)
                self._read[key] = Asked(asked, asked)
            else:
                left_out = frozenset(self.chats.too_long)
                old, new = (
                    questions_of(experiment, self.task, self.chats.prompting_of(v), left_out)
                    for v in BOTH
                )
                self._read[key] = Asked(old, new)
        return self._read[key]


@dataclass(frozen=True)
class Fold:
    """One part of the training split, and the teachers that haven't seen it.

    ids        of the examples in it
    examples   the step of what trains its teachers, as each base reads it
    adapters   theirs, by version and run
    """

    number: int
    ids: frozenset[str]
    examples: PerBase
    adapters: Mapping[tuple[Version, Run], Step]


@dataclass(frozen=True)
class Answers:
    """The steps before a compat adapter of level choice.

    loss        the settings with all that the task decides
    asked       what is asked, read
    candidates  of each writing version and run; empty where a task gives its answers
    questions   what trains a run, as each base reads it
    scores      each teacher's, of its run's questions
    folds       empty without `compatibility.folds`
    """

    loss: CompatibilityConfig
    asked: Asked
    questions: Mapping[Run, PerBase]
    scores: Mapping[tuple[Version, Run], Step]
    candidates: Mapping[tuple[Version, Run], Step] = field(default_factory=dict)
    folds: tuple[Fold, ...] = ()

    def steps(self) -> list[Step]:
        """What trains beside the update's own adapters."""
        folds = [[f.examples.old, f.examples.new, *f.adapters.values()] for f in self.folds]
        return [step for fold in folds for step in fold]


def lay_answers(
    experiment: Experiment,
    reader: Reader,
    bases: tuple[Base, Base],
    adapters: Mapping[tuple[Version, Run], Step | None],
) -> Answers | None:
    """All steps that answer-level distillation adds; None at level token.

    Raises:
        UserError: as `questions_of`; fewer examples than folds.
    """
    settings, task = experiment.compatibility, reader.task
    if not settings.by_choice:
        return None
    if not task.generates and settings.samples != DEFAULT_SAMPLES:
        raise UserError(
            f"setting 'compatibility.samples': task '{task.name}' gives its answers, so that none "
            "are drawn: leave it out"
        )
    asked = reader.read(settings)
    normalised = settings.length_normalised
    if normalised is None:
        normalised = task.gives_choices and task.metric == "acc_norm"
    weight = settings.nll_weight
    if weight is None:
        weight = 1.0 if task.generates and not settings.keeps_new else 0.0
    decided = {"length_normalised": normalised, "nll_weight": weight}
    loss = settings.model_copy(update=decided)
    folds = _folds(experiment, reader, bases) if needed_teachers(loss) else ()
    candidates: dict[tuple[Version, Run], Step] = {}
    questions: dict[Run, PerBase] = {}
    scores: dict[tuple[Version, Run], Step] = {}
    for run in experiment.runs:
        for version in BOTH if task.generates else ():
            candidates[version, run] = _candidates(
                experiment, asked, version, _base(bases, version), adapters[version, run], run
            )
        written = {str(v): s.key for (v, of), s in candidates.items() if of == run}
        questions[run] = _questions(experiment, asked, written, run)
        for version in needed_teachers(loss):
            scores[version, run] = _scores(
                experiment, version, bases, adapters[version, run], questions[run], folds, run
            )
    return Answers(loss, asked, questions, scores, candidates, folds)


def _base(bases: tuple[Base, Base], version: Version) -> Base:
    return bases[0] if version == "old" else bases[1]


def _candidates(
    experiment: Experiment,
    asked: Asked,
    version: Version,
    base: Base,
    adapter: Step | None,
    run: Run,
) -> Step:
    inputs = {
        "base": base.fingerprint,
        "adapter": identity(base, adapter),
        "asked": asked.of(version).fingerprint(),
        "samples": experiment.compatibility.samples,
        "dtype": experiment.scoring_dtype,
        "max_length": experiment.evaluation.max_length,
    }
    return Step("candidates", label_of(experiment, f"let {version} write answers", run[0]), inputs)


def _questions(
    experiment: Experiment, asked: Asked, written: Mapping[str, str], run: Run
) -> PerBase:
    def step(version: Version) -> Step:
        inputs: dict[str, object] = {"asked": asked.of(version).fingerprint()}
        if written:
            inputs["candidates"] = dict(written)
            inputs["to_end"] = True  # those of earlier versions had no end
        label = "questions to distil on" if not written else "candidate answers to distil on"
        if asked.old is not asked.new:
            label += f" of {version}"
        return Step("questions", label_of(experiment, label, run[0]) if written else label, inputs)

    return per_base(asked.old is asked.new, step)


def _scores(
    experiment: Experiment,
    version: Version,
    bases: tuple[Base, Base],
    adapter: Step | None,
    questions: PerBase,
    folds: tuple[Fold, ...],
    run: Run,
) -> Step:
    base = _base(bases, version)
    inputs: dict[str, object] = {
        "base": base.fingerprint,
        "adapter": identity(base, adapter),
        "questions": questions.of(version).key,
        "dtype": experiment.scoring_dtype,
        "max_length": experiment.evaluation.max_length,
    }
    if folds:
        inputs["folds"] = [fold.adapters[version, run].key for fold in folds]
    return Step("scores", label_of(experiment, f"score answers by {version}", run[0]), inputs)


def _folds(experiment: Experiment, reader: Reader, bases: tuple[Base, Base]) -> tuple[Fold, ...]:
    count = experiment.compatibility.folds
    if count is None:
        return ()
    template = None if reader.chats is None else reader.chats.new
    train, _ = training_split(experiment, reader.task, template)
    parts = fold(train, count, experiment.data_seed, reader.task.groups)
    if len(parts) < count:
        raise UserError(
            f"setting 'compatibility.folds' is {count}, and only {len(parts)} examples of the "
            "training split differ: set fewer folds, or give more examples"
        )
    alike = reader.chats is None
    wholes = per_base(alike, lambda v: examples_step(experiment, reader.task, reader.chats, v))
    found = []
    for number, ids in enumerate(parts):

        def step(version: Version, number: int = number) -> Step:
            whole = wholes.of(version)
            inputs = {**whole.inputs, "folds": count, "without": number}
            return Step("examples", f"{whole.label} without part {number + 1} of {count}", inputs)

        examples = per_base(alike, step)
        adapters: dict[tuple[Version, Run], Step] = {}
        for run in experiment.runs:
            for version in needed_teachers(experiment.compatibility):
                # Also where the version brings its adapter: that one has seen every part.
                base = _base(bases, version)
                fresh = Base(base.config, base.fingerprint, None)
                one = task_adapter(experiment, version, fresh, examples.of(version), run)
                assert one is not None
                label = f"{one.label}, without part {number + 1} of {count}"
                adapters[version, run] = Step(one.kind, label, one.inputs)
        found.append(Fold(number, frozenset(ids), examples, adapters))
    return tuple(found)
