"""What a run consists of: its steps, each with the key of the artifact it leaves
(`muscle.recipes`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from muscle.answers import Answers, Reader, lay_answers, settled
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
    Experiment,
)
from muscle.errors import UserError
from muscle.losses.needs import needed_teachers
from muscle.models.compatibility import check_targets
from muscle.older import Older, resolve_older
from muscle.recipes import (
    PerBase,
    Run,
    Step,
    compat_adapter,
    examples_step,
    identity,
    interpolated_adapter,
    per_base,
    predictions_step,
    task_adapter,
    teacher_cache,
    version_predictions,
)
from muscle.tasks import Task, load_task
from muscle.tasks.prompting import Prompting
from muscle.types import VERSIONS, TrainingExample, Version

__all__ = [
    "Again",
    "PerBase",
    "Plan",
    "Run",
    "Step",
    "asked_of",
    "make_plan",
    "predictions_step",
    "vary",
]


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
    # What answers are distilled from; None at level token.
    answers: Answers | None = None
    reader: Reader | None = None
    again: Mapping[Run, Again] = field(default_factory=dict)  # empty: no noise floor
    chats: Chats | None = None  # None: the task's examples are no chats
    # Releases that answer too, with what they are asked and their predictions.
    older: Sequence[tuple[Older, Step, Step]] = ()

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
        folds = self.answers.steps() if self.answers is not None else []
        adapters += [step for step in folds if step.kind == "task-adapter"]
        trained = [s for s in adapters if s is not None]
        trained.sort(key=lambda s: s.kind == "compat-adapter")  # stable: task adapters first
        made = [*trained, *self.interpolated.values(), *self.predictions.values()]
        made += [other.predictions for other in again]
        made += [step for _, *steps in self.older for step in steps]
        parts = [self.taught.old, self.taught.new, self.asked.old, self.asked.new]
        parts += [step for step in folds if step.kind == "examples"]
        steps = [*parts, *made]
        return list({(s.kind, s.key): s for s in steps}.values())


def make_plan(experiment: Experiment, task: Task | None = None) -> Plan:
    """Resolve an experiment: load its task, fingerprint its models and data, make all keys.

    task: the experiment's, where it was loaded before.

    Raises:
        UserError: whatever is wrong with task, data, models, adapters or tokenizers.
    """
    task = task or load_task(experiment.task)
    experiment = settled(experiment, task)
    old, new = (resolve_base(version, name) for name, version in versions_of(experiment))
    tokenizer = check_tokenizers(experiment)
    for given in (experiment.old, experiment.new):
        if given.adapter is None and experiment.adapter.targets != "all-linear":
            check_targets(experiment.adapter, given.model, given.revision)
    chats = chats_of(experiment, task)
    taught = per_base(chats is None, lambda v: examples_step(experiment, task, chats, v))
    asked = asked_of(task, chats, "evaluation requests", experiment.evaluation.limit)
    notes = _notes(experiment, task, chats)
    reader = Reader(experiment, task, chats)
    plan = _lay_out(experiment, task, (old, new), tokenizer, taught, asked, notes, reader)
    older = [_older(plan, one) for one in resolve_older(experiment, plan.old, task)]
    return replace(plan, again=_again(plan), older=older)


def asked_of(task: Task, chats: Chats | None, label: str, limit: int | None = None) -> PerBase:
    """The steps of a task's queries, as each base is asked them."""

    def step(version: Version) -> Step:
        prompting = None if chats is None else chats.prompting_of(version)
        inputs = {"task": task.evaluation_fingerprint(limit, prompting)}
        return Step("queries", label if chats is None else f"{label} of {version}", inputs)

    return per_base(chats is None, step)


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
        plan.reader or Reader(plan.experiment, plan.task, plan.chats),
    )


def _lay_out(
    experiment: Experiment,
    task: Task,
    bases: tuple[Base, Base],
    tokenizer: str,
    taught: PerBase,
    asked: PerBase,
    notes: tuple[str, ...],
    reader: Reader,
) -> Plan:
    """All steps of what was resolved."""
    old, new = bases
    adapters: dict[tuple[Version, Run], Step | None] = {}
    interpolated: dict[Run, Step] = {}
    teachers: dict[tuple[Version, Run], Step] = {}
    predictions: dict[tuple[Version, Run], Step] = {}
    for run in experiment.runs:
        adapters["old", run] = task_adapter(experiment, "old", old, taught.old, run)
        adapters["new", run] = task_adapter(experiment, "new", new, taught.new, run)
    answers = lay_answers(experiment, reader, bases, adapters)
    for run in experiment.runs:
        trained = compat_adapter(experiment, adapters, old, new, taught, answers, run)
        adapters["compat", run] = trained
        if experiment.compatibility.interpolation != 1.0:
            start = identity(new, adapters["new", run])
            interpolated[run] = interpolated_adapter(experiment, start, trained, run)
        for name in () if answers else needed_teachers(experiment.compatibility):
            teacher = old if name == "old" else new
            teachers[name, run] = teacher_cache(
                experiment, name, teacher, adapters[name, run], tokenizer, taught.of(name), run
            )
        for version in VERSIONS:
            base = old if version == "old" else new
            served = adapters[version, run]
            if version == "compat":
                served = interpolated.get(run, trained)
            predictions[version, run] = version_predictions(
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
        notes if answers is None else tuple(dict.fromkeys((*notes, *answers.asked.new.notes))),
        chats=reader.chats,
        answers=answers,
        reader=reader,
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
    adapter = task_adapter(experiment, "old", plan.old, plan.taught.old, (seed, seed))
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
    return _asked(plan, "evaluate old again", plan.old, adapter, plan.asked.old)


def _older(plan: Plan, older: Older) -> tuple[Older, Step, Step]:
    """What an older release is asked, in its own words where they are chats, and its answers."""
    queries, limit = plan.queries, plan.experiment.evaluation.limit
    if older.prompting is not None:
        inputs = {"task": plan.task.evaluation_fingerprint(limit, older.prompting)}
        queries = Step("queries", f"evaluation requests ({older.label})", inputs)
    label = f"evaluate {older.label} (also)"
    return older, queries, _asked(plan, label, older.base, older.fingerprint, queries)


def _asked(plan: Plan, label: str, base: Base, adapter: str, queries: Step) -> Step:
    settings = plan.experiment
    return predictions_step(
        label, base, adapter, queries, settings.evaluation, settings.scoring_dtype
    )
