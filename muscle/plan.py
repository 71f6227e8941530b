"""What a run consists of: its steps, each with the key of the artifact it leaves.

A key holds exactly what changes the artifact's numbers (by fingerprint, never by
path); bump a recipe version when the code changes them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from muscle.artifacts import key_of
from muscle.bases import (
    Base,
    check_tokenizers,
    resolve_base,
    versions_of,
    vocabulary_notes,
    with_adapter,
)
from muscle.chats import Chats, chat_split, chats_of
from muscle.config import (
    CompatibilityConfig,
    EvaluationConfig,
    Experiment,
    TrainingConfig,
)
from muscle.errors import UserError
from muscle.losses.needs import needed_teachers
from muscle.models.compatibility import check_targets
from muscle.splits import training_split
from muscle.tasks import Task, load_task
from muscle.tasks.prompting import Prompting
from muscle.types import VERSIONS, TrainingExample, Version

RECIPES = {
    "examples": 1,
    "queries": 1,
    "task-adapter": 2,
    "teacher": 1,
    "compat-adapter": 2,
    "interpolated-adapter": 1,
    "predictions": 4,
}

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


@dataclass(frozen=True)
class Again:
    """Old with another seed: how often its answers differ from old's is the noise floor.

    seed         of its adapter; None: a given one
    base         old's, with the given adapter if any
    adapter      the step that trains it; None: given
    """

    seed: int | None
    base: Base
    adapter: Step | None
    predictions: Step


@dataclass(frozen=True)
class Plan:
    """All steps of an experiment, resolved against models, data and task."""

    experiment: Experiment
    task: Task
    old: Base
    new: Base
    tokenizer: str  # new's, by fingerprint: both teachers read by it
    taught: PerBase  # training examples
    asked: PerBase  # queries
    adapters: Mapping[tuple[Version, Run], Step | None]  # None: the version brings its own
    interpolated: Mapping[Run, Step]  # what compat serves, where that isn't what was trained
    teachers: Mapping[tuple[Version, Run], Step]  # what caches would hold, if there are any
    predictions: Mapping[tuple[Version, Run], Step]
    notes: tuple[str, ...] = ()  # what a user should know before it runs
    again: Mapping[Run, Again] = field(default_factory=dict)  # empty: no noise floor
    chats: Chats | None = None  # None: the task's examples are no chats

    @property
    def examples(self) -> Step:
        """New's training examples, which are old's too unless they are chats."""
        return self.taught.new

    @property
    def queries(self) -> Step:
        """New's queries, which are old's too unless they are chats."""
        return self.asked.new

    def prompting_of(self, version: Version) -> Prompting | None:
        """How a version is spoken to; None: as plain text."""
        return None if self.chats is None else self.chats.prompting_of(version)

    def split_of(self, version: Version) -> tuple[list[TrainingExample], list[TrainingExample]]:
        """(training, validation) examples as a version reads them."""
        return chat_split(self.experiment, self.task, self.chats, version)

    def base(self, version: Version) -> Base:
        """The base of a version; new and compat share theirs."""
        return self.old if version == "old" else self.new

    def steps(self) -> list[Step]:
        """Every distinct step in the order in which it runs; caches are `teaching`'s to decide."""
        again = self.again.values()
        adapters = [*self.adapters.values(), *(other.adapter for other in again)]
        trained = [s for s in adapters if s is not None]
        trained.sort(key=lambda s: s.kind == "compat-adapter")  # stable: task adapters first
        made = [*trained, *self.interpolated.values(), *self.predictions.values()]
        made += [other.predictions for other in again]
        parts = [self.taught.old, self.taught.new, self.asked.old, self.asked.new]
        steps = [*parts, *made]
        return list({(s.kind, s.key): s for s in steps}.values())


def make_plan(experiment: Experiment, task: Task | None = None) -> Plan:
    """Resolve an experiment: load its task, fingerprint its models and data, make all keys.

    task: the experiment's, where it was loaded before.

    Raises:
        UserError: whatever is wrong with task, data, models, adapters or tokenizers.
    """
    task = task or load_task(experiment.task)
    old, new = (resolve_base(version, name) for name, version in versions_of(experiment))
    tokenizer = check_tokenizers(experiment)
    for given in (experiment.old, experiment.new):
        if given.adapter is None and experiment.adapter.targets != "all-linear":
            check_targets(experiment.adapter, given.model, given.revision)
    chats = chats_of(experiment, task)
    taught = _each(chats, lambda v: _examples_step(experiment, task, chats, v))
    asked = asked_of(task, chats, "evaluation requests", experiment.evaluation.limit)
    notes = _notes(experiment, task, chats)
    plan = _lay_out(experiment, task, (old, new), tokenizer, taught, asked, notes, chats)
    return replace(plan, again=_again(plan))


def asked_of(task: Task, chats: Chats | None, label: str, limit: int | None = None) -> PerBase:
    """The steps of a task's queries, as each base is asked them."""

    def step(version: Version) -> Step:
        prompting = None if chats is None else chats.prompting_of(version)
        inputs = {"task": task.evaluation_fingerprint(limit, prompting)}
        return Step("queries", label if chats is None else f"{label} of {version}", inputs)

    return _each(chats, step)


def _each(chats: Chats | None, make: Callable[[Version], Step]) -> PerBase:
    new = make("new")
    return PerBase(new if chats is None else make("old"), new)


def vary(
    plan: Plan,
    compatibility: CompatibilityConfig,
    task: Task | None = None,
    asked: PerBase | None = None,
) -> Plan:
    """The same update with other compatibility settings, and judged by other examples if given.

    It has no noise floor, which doesn't depend on them. Nothing is read or fingerprinted
    again: `muscle tune` makes one for each trial.
    """
    return _lay_out(
        plan.experiment.model_copy(update={"compatibility": compatibility}),
        task or plan.task,
        (plan.old, plan.new),
        plan.tokenizer,
        plan.taught,
        asked or plan.asked,
        plan.notes,
        plan.chats,
    )


def _lay_out(
    experiment: Experiment,
    task: Task,
    bases: tuple[Base, Base],
    tokenizer: str,
    taught: PerBase,
    asked: PerBase,
    notes: tuple[str, ...],
    chats: Chats | None,
) -> Plan:
    """All steps of what was resolved."""
    old, new = bases
    adapters: dict[tuple[Version, Run], Step | None] = {}
    interpolated: dict[Run, Step] = {}
    teachers: dict[tuple[Version, Run], Step] = {}
    predictions: dict[tuple[Version, Run], Step] = {}
    for run in experiment.runs:
        adapters["old", run] = _task_adapter(experiment, "old", old, taught.old, run)
        adapters["new", run] = _task_adapter(experiment, "new", new, taught.new, run)
        trained = _compat_adapter(experiment, adapters, old, new, taught, run)
        adapters["compat", run] = trained
        if experiment.compatibility.interpolation != 1.0:
            start = _identity(new, adapters["new", run])
            interpolated[run] = _interpolated(experiment, start, trained, run)
        for name in needed_teachers(experiment.compatibility):
            teacher = old if name == "old" else new
            teachers[name, run] = _teacher(
                experiment, name, teacher, adapters[name, run], tokenizer, taught.of(name), run
            )
        for version in VERSIONS:
            base = old if version == "old" else new
            served = adapters[version, run]
            if version == "compat":
                served = interpolated.get(run, trained)
            predictions[version, run] = _predictions(
                experiment, version, base, served, asked.of(version), run
            )
    return Plan(
        experiment,
        task,
        old,
        new,
        tokenizer,
        taught,
        asked,
        adapters,
        interpolated,
        teachers,
        predictions,
        notes,
        chats=chats,
    )


def _notes(experiment: Experiment, task: Task, chats: Chats | None) -> tuple[str, ...]:
    """What doesn't stop a run but may spoil its numbers."""
    known = (*task.notes, *vocabulary_notes(experiment))
    if chats is not None:
        return (*known, *chats.notes)
    prompts = {example.prompt for example in task.training_examples()}
    queries = task.queries(experiment.evaluation.limit)
    shared = sum(query.requests[0].context in prompts for query in queries)
    if not shared:
        return known
    return (
        *known,
        f"{shared} of {len(queries)} evaluation prompts are also prompts of the training split",
    )


def _again(plan: Plan) -> dict[Run, Again]:
    """Each run's second old: a given one, the next seed's old, or one trained for it."""
    experiment, runs = plan.experiment, plan.experiment.runs
    if experiment.noise_floor is False:
        return {}
    if isinstance(experiment.noise_floor, str):
        return dict.fromkeys(runs, _given_again(plan, experiment.noise_floor))
    if len(experiment.seeds) > 1:
        following = zip(runs, [*runs[1:], runs[0]], strict=True)
        return {
            run: Again(
                other[0], plan.old, plan.adapters["old", other], plan.predictions["old", other]
            )
            for run, other in following
        }
    seed = experiment.seeds[0] + 1
    adapter = _task_adapter(experiment, "old", plan.old, plan.taught.old, (seed, seed))
    assert adapter is not None  # the settings refuse a noise floor of a given adapter
    adapter = replace(adapter, label=f"train old again (seed {seed})")
    return dict.fromkeys(runs, Again(seed, plan.old, adapter, _asked_again(plan, adapter.key)))


def _given_again(plan: Plan, path: str) -> Again:
    try:
        base = with_adapter(plan.old, path)
    except UserError as error:
        raise UserError(f"setting 'noise_floor': {error}") from None
    assert base.given_adapter is not None
    if base.given_adapter == plan.old.given_adapter:
        raise UserError(
            f"setting 'noise_floor': {path} is old's own adapter: give one that was trained with "
            "another seed"
        )
    return Again(None, base, None, _asked_again(plan, base.given_adapter))


def _asked_again(plan: Plan, adapter: str) -> Step:
    settings = plan.experiment
    return predictions_step(
        "evaluate old again",
        plan.old,
        adapter,
        plan.asked.old,
        settings.evaluation,
        settings.scoring_dtype,
    )


def _examples_step(
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


def _identity(base: Base, step: Step | None) -> str:
    """What stands for an adapter in later keys: its own key, or its content."""
    adapter = step.key if step is not None else base.given_adapter
    assert adapter is not None
    return adapter


def _label(experiment: Experiment, text: str, seed: int) -> str:
    return f"{text} (seed {seed})" if len(experiment.runs) > 1 else text


def _task_adapter(
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
    return Step("task-adapter", _label(experiment, f"train {version}", run[0]), inputs)


def _compat_adapter(
    experiment: Experiment,
    adapters: Mapping[tuple[Version, Run], Step | None],
    old: Base,
    new: Base,
    taught: PerBase,
    run: Run,
) -> Step:
    needs = needed_teachers(experiment.compatibility)
    elsewhere = {"learning_rate", "epochs", "warmup_steps", "interpolation"}
    loss = experiment.compatibility.model_dump(exclude=elsewhere)
    if not needs:  # plain cross-entropy: mask, temperature and weights play no part
        loss = {"ce_weight": 1.0}
    inputs = {
        "base": new.fingerprint,
        "start": _identity(new, adapters["new", run]),
        "old": [old.fingerprint, _identity(old, adapters["old", run])] if "old" in needs else None,
        "loss": loss,
        "training": _training_inputs(experiment.compat_training),
        "examples": taught.new.key,
        "seed": run[1],
    }
    if "old" in needs and taught.old.key != taught.new.key:
        inputs["old_examples"] = taught.old.key
    return Step("compat-adapter", _label(experiment, "train compat", run[1]), inputs)


def _interpolated(experiment: Experiment, new: str, trained: Step, run: Run) -> Step:
    weight = experiment.compatibility.interpolation
    inputs = {"new": new, "compat": trained.key, "weight": weight}
    label = _label(experiment, f"interpolate compat x {weight:g}", run[1])
    return Step("interpolated-adapter", label, inputs)


def _teacher(
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
        "adapter": _identity(base, adapter),
        "tokenizer": tokenizer,
        "examples": examples.key,
        "dtype": experiment.training.dtype,
        "max_length": experiment.training.max_length,
        "loss_on": experiment.training.loss_on,
    }
    return Step("teacher", _label(experiment, f"cache {version} teacher", run[0]), inputs)


def _predictions(
    experiment: Experiment,
    version: Version,
    base: Base,
    adapter: Step | None,
    queries: Step,
    run: Run,
) -> Step:
    seed = run[1] if version == "compat" else run[0]
    return predictions_step(
        _label(experiment, f"evaluate {version}", seed),
        base,
        _identity(base, adapter),
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
