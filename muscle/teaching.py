"""The teachers of a run: cached or online, making the caches, and what a training is told."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

from muscle import copies, storage
from muscle.artifacts import Store
from muscle.bases import Base
from muscle.errors import UserError
from muscle.losses.needs import needed_teachers
from muscle.models.adapters import WEIGHTS
from muscle.models.load import load_config, load_tokenizer, torch_dtype
from muscle.models.sequences import tokenise
from muscle.plan import Plan, Run, Step
from muscle.steps import Workshop
from muscle.teachers.choose import Choice, choose
from muscle.teachers.job import TeacherAsk, TeacherBase, TeacherJob
from muscle.teachers.shards import finish
from muscle.training.job import CachedTeacher, OnProgress, Progress
from muscle.training.settings import zero_stage
from muscle.types import Version


class Cacher(Protocol):
    """The part of a launcher that is needed here."""

    def cache(self, job: TeacherJob, on_progress: OnProgress) -> None:
        """Write every shard of every ask that is missing."""
        ...


class Readiness(ABC):
    """Has ready what the compat trainings of a plan are taught by.

    A search asks for what several trainings will read: `trainings` of each run, whether or
    not the plan's own compat adapter is there.
    """

    def __init__(self, plan: Plan, store: Store, trainings: int | None = None):
        self.plan = plan
        self.store = store
        self.trainings = trainings

    @property
    def untrained(self) -> list[Run]:
        """The runs whose compat adapter is still to be trained."""
        if self.trainings is not None:
            return self.plan.experiment.runs
        runs = []
        for (version, run), step in self.plan.adapters.items():
            if version == "compat" and step is not None:
                if self.store.find(step.kind, step.key) is None:
                    runs.append(run)
        return runs

    @abstractmethod
    def steps(self) -> list[Step]:
        """What the missing trainings read, in the order in which it is made."""

    def lost(self) -> bool:
        """Whether something that a training was to read isn't whole any more: who finds a
        damaged file removes it."""
        return any(self.store.look_again(s.kind, s.key) is None for s in self.steps())

    @abstractmethod
    def _who(self, step: Step) -> tuple[Version, Run]:
        """Whose signal a step leaves."""

    def _identity(self, workshop: Workshop, step: Step) -> dict[str, Any]:
        """What a signal is made of: its key's inputs, and the adapter's weights as they are,
        since an adapter that is trained again under its key is equal up to rounding only."""
        folder = adapter_folder(self.plan, workshop, *self._who(step))
        weights = storage.join(copies.fetch(folder), WEIGHTS)
        return {**step.inputs, "weights": storage.sha256(weights)}


class Teaching(Readiness):
    """Decides once for a run; the same decision for all of its compat trainings."""

    @cached_property
    def choice(self) -> Choice:
        """Whether the missing compat trainings read caches, and why.

        Raises:
            UserError: caching is asked for and the disk can't hold it.
        """
        experiment = self.plan.experiment
        resources = experiment.resources
        runs = self.untrained
        wanted = self._distinct(runs)
        missing = [s for s in wanted if self.store.find(s.kind, s.key) is None]
        if wanted and not missing and resources.teachers != "online":
            return Choice(True, "the cache is there")
        needed = self._bytes(missing) if missing and resources.teachers != "online" else 0
        free = storage.disk_free(self.store.root)
        choice = choose(
            resources.teachers,
            experiment.compat_training.epochs
            * _most_per_pair(self.plan, runs)
            * (self.trainings or 1),
            needed,
            free,
            zero_stage(resources.deepspeed) == 3,
            experiment.compatibility.mask,
        )
        if choice.cached and free is not None and needed > free:
            raise UserError(
                f"the teacher cache takes {needed / 1e9:,.1f} GB and {free / 1e9:,.1f} GB are free "
                f"in {self.store.root}: free some, set 'storage' to another place, or "
                "resources.teachers: online"
            )
        return choice

    def steps(self) -> list[Step]:
        """The caches that the missing compat trainings read; none when they go online."""
        return self._distinct(self.untrained) if self.choice.cached else []

    def check(self) -> None:
        """Decide now, so that a cache that the disk can't hold is refused before any training."""
        _ = self.choice

    def make(self, workshop: Workshop, launcher: Cacher) -> None:
        """Write the caches that are missing; what was written before a stop stays."""
        if self.untrained and needed_teachers(self.plan.experiment.compatibility):
            way = "cached" if self.choice.cached else "online"
            remark = f"{way}: {self.choice.reason}"
            workshop.on_progress(Progress("teachers", 1, 1, "teachers", remark))
        with workshop.taking(self.steps()) as missing:
            if missing:
                job = self.job(workshop, missing)
                launcher.cache(job, workshop.on_progress)
                self.keep(job, missing)

    def keep(self, job: TeacherJob, steps: Sequence[Step]) -> None:
        """Commit the caches that a job, which may hold others too, has written."""
        asks = {ask.folder: ask for base in job.bases for ask in base.asks}
        for step in steps:
            folder = self.store.shared_attempt(step.kind, step.key)
            known = finish(job, asks[folder])
            self.store.commit(step.kind, step.key, folder, step.inputs, {}, known)

    def job(self, workshop: Workshop, steps: Sequence[Step]) -> TeacherJob:
        """What the launcher is told: for each base its signals."""
        bases: dict[tuple[str, str], tuple[Base, list[TeacherAsk], str]] = {}
        for step in steps:
            version, run = self._who(step)
            base = self.plan.base(version)
            ask = TeacherAsk(
                name=f"{version}-{run[0]}",
                adapter=adapter_folder(self.plan, workshop, version, run),
                folder=self.store.shared_attempt(step.kind, step.key),
                identity=self._identity(workshop, step),
            )
            read = workshop.artifact(self.plan.taught.of(version)).path
            bases.setdefault((base.fingerprint, read), (base, [], read))[1].append(ask)
        experiment = self.plan.experiment
        return TeacherJob(
            bases=tuple(
                TeacherBase(base.config.model_copy(update={"adapter": None}), tuple(asks), read)
                for base, asks, read in bases.values()
            ),
            examples=workshop.artifact(self.plan.examples).path,
            dtype=experiment.training.dtype,
            max_length=experiment.training.max_length,
            loss_on=experiment.training.loss_on,
            tokens=experiment.resources.scoring_tokens,
        )

    def cached(self, workshop: Workshop, run: Run) -> dict[str, CachedTeacher]:
        """The caches that a compat training reads, by the teacher's name."""
        found: dict[str, CachedTeacher] = {}
        if not self.choice.cached:
            return found
        for (version, of), step in self.plan.teachers.items():
            artifact = self.store.find(step.kind, step.key) if of == run else None
            if artifact is not None:
                found[version] = CachedTeacher(artifact.path, self._identity(workshop, step))
        return found

    def _distinct(self, runs: Sequence[Run]) -> list[Step]:
        steps = [step for (_, run), step in self.plan.teachers.items() if run in runs]
        return list({step.key: step for step in steps}.values())

    def _who(self, step: Step) -> tuple[Version, Run]:
        return next(who for who, s in self.plan.teachers.items() if s.key == step.key)

    def _bytes(self, steps: Sequence[Step]) -> int:
        """What the caches of these steps still take on disk; a stopped run has written some."""
        tokens = _loss_tokens(self.plan)
        itemsize = torch_dtype(self.plan.experiment.training.dtype).itemsize
        size = 0
        for step in steps:
            base = self.plan.base(self._who(step)[0]).config
            width = load_config(base.model, base.revision).get_text_config().hidden_size
            there = sum(storage.sizes(self.store.shared_attempt(step.kind, step.key)).values())
            size += max(1, tokens * width * itemsize - there)
        return size


def _loss_tokens(plan: Plan) -> int:
    """Tokens in the loss of one pass over the training split."""
    train, _ = plan.split_of("new")
    tokenizer = load_tokenizer(plan.new.config.model, plan.new.config.revision)
    settings = plan.experiment.training
    return tokenise(train, tokenizer, settings.max_length, settings.loss_on).all_targets()


def adapter_folder(plan: Plan, workshop: Workshop, version: Version, run: Run) -> str:
    """The directory of the adapter that a version serves: given, or the artifact of its step."""
    step = plan.adapters[version, run]
    if version == "compat":
        step = plan.interpolated.get(run, step)
    if step is None:
        adapter = plan.base(version).config.adapter
        assert adapter is not None
        return adapter
    return workshop.artifact(step).path


def _most_per_pair(plan: Plan, runs: Sequence[Run]) -> int:
    """The most compat trainings that share one pair of teachers."""
    pairs = [
        tuple(sorted(step.key for (_, of), step in plan.teachers.items() if of == run))
        for run in runs
    ]
    return max((pairs.count(pair) for pair in pairs), default=0)
