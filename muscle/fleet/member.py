"""One adapter on its way through a fleet's run: resolved, measured, and what went wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from muscle import copies, storage
from muscle.answers import settled
from muscle.artifacts import Store
from muscle.compare import REPORT, WRITTEN
from muscle.config import CompatibilityConfig
from muscle.errors import UserError
from muscle.fleet.deciding import best_pair
from muscle.fleet.settings import Entry
from muscle.models.adapters import WEIGHTS
from muscle.pipeline import Launcher, Pipeline, numbers
from muscle.plan import Plan, Step, make_plan
from muscle.report.older import ALSO
from muscle.results import Measured, Results, check_gate
from muscle.tasks import Task, load_task
from muscle.training.job import OnProgress, Progress
from muscle.training.settings import check_settings
from muscle.types import AGAIN, BOTH, VERSIONS, Version

_RESULTS = (*WRITTEN, *VERSIONS, AGAIN, ALSO, "curves")


FOLDS = "fold-adapter"
"""No kind of artifact: the task adapters that a compat adapter is taught by in folds."""


@dataclass
class Member:
    """An entry, how far it came, and why it came no further.

    folder     where its results go
    pipeline   None: it couldn't be resolved
    versions   those that `measured` is of
    measured   what their answers say; None: not known
    gates      what the gate says of each pair that was judged
    failure    what went wrong, in one line
    untrainable  why it can't have a compat adapter, if that is known beforehand
    published  whether its report is written
    """

    entry: Entry
    folder: str
    pipeline: Pipeline | None = None
    versions: tuple[Version, ...] = BOTH
    measured: Measured | None = None
    gates: dict[str, dict[str, Any]] = field(default_factory=dict)
    failure: str | None = None
    untrainable: str | None = None
    published: bool = False

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.entry.name

    @property
    def works(self) -> Pipeline:
        """The pipeline of a member that was resolved."""
        assert self.pipeline is not None, f"{self.name} was not resolved"
        return self.pipeline

    @property
    def goes_on(self) -> bool:
        """Whether nothing has gone wrong yet."""
        return self.pipeline is not None and self.failure is None

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What goes wrong inside is this adapter's alone."""
        try:
            yield
        except Exception as error:
            self.failure = reason_of(error)

    def steps(self, kind: str) -> list[Step]:
        """The plan's steps of a kind. Adapters that only teach a compat adapter are of `FOLDS`:
        they wait until it is known that there will be one."""
        plan = self.works.plan
        teaching = {s.key for s in plan.answers.steps()} if plan.answers is not None else set()
        if kind not in (FOLDS, "task-adapter"):
            return [step for step in plan.steps() if step.kind == kind]
        adapters = [step for step in plan.steps() if step.kind == "task-adapter"]
        return [step for step in adapters if (step.key in teaching) == (kind == FOLDS)]

    def results(self, versions: tuple[Version, ...]) -> Results:
        """What writes the results of these versions."""
        return self.works.results(versions)

    def verdict(self, pair: str) -> str:
        """What the gate says of a pair; empty where it wasn't asked."""
        gate = self.gates.get(pair)
        return "" if gate is None else str(gate["verdict"])

    @property
    def best(self) -> str:
        """The pair of the version to serve, as far as the gate can say."""
        return best_pair(self.verdict("old->new"), self.verdict("old->compat"))


def reason_of(error: Exception) -> str:
    """Why something failed, in one line without secrets."""
    if isinstance(error, UserError):
        text = str(error)
    elif isinstance(error, OSError):  # a path that can't be read or written
        where = f"{error.filename}: " if error.filename else ""
        text = f"{where}{error.strerror or error}"
    else:
        text = f"our own failure: {type(error).__name__}: {error}"
    return " ".join(str(UserError(text)).split())[:600]


class Tasks:
    """Tasks by their settings: what several entries have in common is loaded once."""

    def __init__(self) -> None:
        self._known: dict[str, Task] = {}

    def of(self, entry: Entry) -> Task:
        """The task of an entry. Raises UserError: as `load_task`."""
        config = entry.experiment.task
        key = config.model_dump_json()
        if key not in self._known:
            self._known[key] = load_task(config)
        return self._known[key]


def resolve(
    member: Member, tasks: Tasks, store: Store, launcher: Launcher, on_progress: OnProgress
) -> None:
    """Give a member its plan and pipeline, or the reason why it can have none; writes nothing."""
    experiment = member.entry.experiment
    with member.guarded():
        if member.entry.problem is not None:
            raise UserError(member.entry.problem)
        check_settings(experiment)
        check_gate(experiment)
        storage.check_folder("the adapter's folder", member.folder)
        if not _is_free(member.folder):
            raise UserError(
                f"{member.folder} holds a report that no run left: rename the adapter or choose "
                "another --output"
            )
        plan = _plan(member, tasks.of(member.entry))
        named = _named(member.name, on_progress)
        member.pipeline = Pipeline(plan, member.folder, launcher, named, store)


def _plan(member: Member, task: Task) -> Plan:
    """A member's plan. Where only old's teaching can't be, as with two tokenizers, old and new are
    compared all the same, and what a compat adapter would meet is kept."""
    experiment = settled(member.entry.experiment, task)
    try:
        return make_plan(experiment, task)
    except UserError as error:
        blind = CompatibilityConfig(level="token", mask="never-old")
        try:
            plan = make_plan(experiment.model_copy(update={"compatibility": blind}), task)
        except UserError:
            raise error from None
        member.untrainable = str(error)
        return replace(plan, experiment=experiment)


def claim(member: Member) -> None:
    """Bind a member's folder to its experiment; what an earlier one of that name left there goes,
    since all artifacts are elsewhere.

    Raises:
        UserError: the folder can't be written.
    """
    path = storage.join(member.folder, "experiment.json")
    mine = numbers(member.works.experiment)
    there = storage.read_json(path)
    if there == mine:
        return
    if there is not None:
        for place in _places(member.folder, there):
            for name in _RESULTS:
                storage.remove(storage.join(place, name))
    storage.write_json(path, mine)


def publish(member: Member) -> None:
    """Write a member's report, with the gate's verdict on the version to serve.

    Raises:
        UserError: as `Results.write`.
    """
    assert member.measured is not None
    if "compat" not in member.versions:  # of a stricter gate, say
        for place in _places(member.folder, numbers(member.works.experiment)):
            storage.remove(storage.join(place, "compat"))
    member.results(member.versions).write((), member.measured, member.best)
    member.published = True


def check_weights(adapter: str) -> None:
    """Refuse an adapter that would stop a whole pool of actors as they load it.

    Raises:
        UserError: a weight that isn't finite.
    """
    from safetensors.torch import load_file

    for key, tensor in load_file(storage.join(copies.fetch(adapter), WEIGHTS)).items():
        if not tensor.isfinite().all():
            raise UserError(f"adapter {adapter!r}: {key} holds NaN or infinity")


def _is_free(folder: str) -> bool:
    """Whether no report is there but a run's."""
    report = storage.exists(storage.join(folder, REPORT))
    return not report or storage.exists(storage.join(folder, "experiment.json"))


def _places(folder: str, experiment: Any) -> list[str]:
    """A folder and those that an experiment's seeds have in it."""
    seeds: dict[int, None] = {}
    for name in ("seeds", "compat_seeds"):
        given = experiment.get(name) if isinstance(experiment, dict) else None
        seeds |= dict.fromkeys(seed for seed in given or [] if isinstance(seed, int))
    return [folder, *(storage.join(folder, f"seed-{seed}") for seed in seeds)]


def _named(name: str, on_progress: OnProgress) -> OnProgress:
    """Progress of the stages of one adapter."""

    def tell(progress: Progress) -> None:
        on_progress(replace(progress, stage=f"{name}: {progress.stage}"))

    return tell
