"""Work of all adapters in as few passes as there can be; what fails is split until it is one's."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from muscle import storage
from muscle.answering import Answering
from muscle.errors import SomeFailedError, UserError
from muscle.fleet.member import Member, check_weights, reason_of
from muscle.pipeline import Launcher
from muscle.plan import Step
from muscle.predict import Predictor, Wanted
from muscle.steps import Workshop
from muscle.teachers.job import TeacherAsk, TeacherBase, TeacherJob
from muscle.teaching import Teaching
from muscle.training.job import OnProgress, TrainJob
from muscle.types import Version

COMPAT = "compat-adapter"

Asked = tuple[Member, list[Wanted]]
Cached = tuple[Member, list[Step], TeacherJob]


class Passes:
    """Trains, caches and asks for many members at once.

    The launcher is prepared when there is something to do, so that a finished fleet starts no
    Ray. `notes` are what the engines had to say.
    """

    def __init__(self, workshop: Workshop, launcher: Launcher, on_progress: OnProgress):
        self.workshop = workshop
        self.launcher = launcher
        self.on_progress = on_progress
        self.notes: dict[str, None] = {}
        self._prepared = False

    def prepare(self) -> None:
        """Have the launcher ready.

        Raises:
            UserError: there is nothing that any adapter could run on.
        """
        if not self._prepared:
            self.launcher.prepare(self.on_progress)
            self._prepared = True

    # --- predictions ------------------------------------------------------------------

    def ask(self, members: Sequence[Member], versions: tuple[Version, ...]) -> None:
        """Have the predictions of these versions: one pass for all that are asked alike, in which
        each base is loaded once for all of its adapters."""
        alike: dict[str, list[Asked]] = {}
        for member in members:
            with member.guarded():
                wanted = self._wanted(member, versions)
                experiment = member.entry.experiment
                settings = f"{experiment.evaluation} {experiment.scoring_dtype}"
                if wanted:
                    alike.setdefault(settings, []).append((member, wanted))
        if alike:
            self.prepare()
        for group in alike.values():
            self._ask(group)

    def _wanted(self, member: Member, versions: tuple[Version, ...]) -> list[Wanted]:
        """What is missing of a member's predictions, under names that no other member has."""
        wanted = [
            replace(one, version=f"{member.name}/{one.version}")
            for one in member.works.wanted(versions)
        ]
        missing = {step.key for step in self.workshop.missing([one.step for one in wanted])}
        wanted = [one for one in wanted if one.step.key in missing]
        for one in wanted:
            if one.adapter is not None and one.adapter == one.base.config.adapter:
                check_weights(one.adapter)
        return wanted

    def _ask(self, group: Sequence[Asked]) -> None:
        """One pass; where it fails, one for each half: what was answered isn't asked again."""
        experiment = group[0][0].entry.experiment
        predictor = Predictor(
            self.workshop,
            self.launcher,
            experiment.evaluation,
            experiment.scoring_dtype,
            experiment.resources,
        )
        try:
            predictor.run([one for _, wanted in group for one in wanted])
        except Exception as error:
            if len(group) == 1:
                group[0][0].failure = reason_of(error)
                return
            self._ask(group[: len(group) // 2])
            self._ask(group[len(group) // 2 :])
        self.notes |= dict.fromkeys(predictor.notes)

    # --- trainings --------------------------------------------------------------------

    def train(self, members: Sequence[Member], kind: str, alone: Callable[[Member], None]) -> None:
        """Have the adapters of a kind, all that are missing side by side.

        alone: does it for one member; where that fails too, the failure is this member's.
        """
        wanted: dict[str, tuple[Member, Step]] = {}
        for member in members:
            if self._caches_are_there(member, kind):
                for step in self.workshop.missing(member.steps(kind)):
                    wanted.setdefault(step.key, (member, step))
        failures: dict[str, str] = {}  # an adapter that members share fails once for all of them
        if wanted:
            self.prepare()
            with self.workshop.leases([step for _, step in wanted.values()]):
                failures = self._train(list(wanted.values()))
        for member in members:
            missing = self.workshop.missing(member.steps(kind))
            known = [failures[step.key] for step in missing if step.key in failures]
            if known and not (kind == COMPAT and member.works.teaching.lost()):
                member.failure = known[0]
            elif missing and member.failure is None:
                self.prepare()
                with member.guarded():
                    alone(member)
                if member.failure is not None:
                    still = self.workshop.missing(missing)
                    failures |= {step.key: member.failure for step in still}

    def _caches_are_there(self, member: Member, kind: str) -> bool:
        """Whether a training would read what it is meant to."""
        if kind != COMPAT:
            return True
        return not self.workshop.missing(member.works.teaching.steps())

    def _train(self, wanted: Sequence[tuple[Member, Step]]) -> dict[str, str]:
        """Train, and keep what came to its end whatever became of the others; returns why some
        didn't, by their keys, as far as that is known."""
        jobs: list[tuple[Member, Step, TrainJob]] = []
        for member, step in wanted:
            if self.workshop.missing([step]):  # else another driver was at it
                with member.guarded():
                    attempt = self.workshop.store.new_attempt(step.kind, step.key)
                    job = member.works.train_job((step.kind, step.key), attempt)
                    # Stages, and failures, are told apart by the title.
                    jobs.append((member, step, replace(job, title=f"{member.name}: {job.title}")))
        said: dict[str, UserError] = {}
        try:
            self.launcher.train([job for *_, job in jobs], self.on_progress)
        except SomeFailedError as error:
            said = error.failures
        except Exception as error:  # whose it is, each training says alone
            self.notes[f"trainings are tried again one by one: {reason_of(error)}"] = None
        for member, step, job in jobs:
            if storage.exists(storage.join(job.output, "training.json")):
                with member.guarded():
                    member.works.keep(step, job)
            else:
                storage.remove(job.output)
        return {s.key: reason_of(said[job.title]) for _, s, job in jobs if job.title in said}

    # --- teachers ---------------------------------------------------------------------

    def cache(self, members: Sequence[Member]) -> None:
        """Have the caches that the members' trainings read: one pass for all that read the same
        examples. Where that fails, each training makes its own."""
        alike: dict[str, list[Cached]] = {}
        taken: set[str] = set()
        for member in members:
            with member.guarded():
                teaching = member.works.teaching
                if isinstance(teaching, Answering):
                    self._answer(teaching)
                    continue
                missing = [s for s in self.workshop.missing(teaching.steps()) if s.key not in taken]
                if missing:
                    taken |= {step.key for step in missing}
                    job = teaching.job(self.workshop, missing)
                    alike.setdefault(repr(replace(job, bases=())), []).append(
                        (member, missing, job)
                    )
        if alike:
            self.prepare()
        for group in alike.values():
            try:
                self._cache(group)
            except Exception as error:  # whose it is, each training says alone
                self.notes[f"caches are tried again one by one: {reason_of(error)}"] = None

    def _answer(self, teaching: Answering) -> None:
        """Have what one member's training is taught by; its own questions, so no shared pass."""
        if self.workshop.missing(teaching.steps()):
            self.prepare()
            teaching.make(self.workshop, self.launcher)

    def _cache(self, group: Sequence[Cached]) -> None:
        asks: dict[TeacherBase, list[TeacherAsk]] = {}
        for *_, job in group:
            for base in job.bases:
                asks.setdefault(replace(base, asks=()), []).extend(base.asks)
        bases = tuple(replace(base, asks=tuple(found)) for base, found in asks.items())
        together = replace(group[0][2], bases=bases)
        with self.workshop.leases([step for _, steps, _ in group for step in steps]):
            self.launcher.cache(together, self.on_progress)
            for member, steps, _ in group:
                teaching = member.works.teaching
                assert isinstance(teaching, Teaching)
                teaching.keep(together, steps)
