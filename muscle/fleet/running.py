"""A fleet's run: measure all adapters first, train a compat adapter where the gate fails."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from muscle import storage
from muscle.artifacts import open_store
from muscle.compare import REPORT
from muscle.errors import UserError
from muscle.fleet.member import BOTH, FOLDS, Member, Tasks, claim, publish, resolve
from muscle.fleet.passes import Passes
from muscle.fleet.record import fleet_record
from muscle.fleet.settings import Fleet
from muscle.pipeline import Launcher
from muscle.report.fleet import write_fleet
from muscle.report.text import one_line
from muscle.results import Measured
from muscle.steps import Workshop
from muscle.training.job import OnProgress, Progress
from muscle.types import VERSIONS


@dataclass(frozen=True)
class Decided:
    """A finished run of a fleet.

    record  the content of fleet.json
    paths   of what to read, the shortest last
    notes   what the engines had to say
    """

    record: dict[str, Any]
    paths: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0, 1 or 3, of `fleet.deciding.exit_code`."""
        return int(self.record["exit_code"])


class FleetRun:
    """All entries of a fleet under one output folder, with one store of artifacts."""

    def __init__(self, fleet: Fleet, output: str, launcher: Launcher, on_progress: OnProgress):
        self.fleet = fleet
        self.output = storage.absolute(output)
        self.launcher = launcher
        self.on_progress = on_progress
        store = open_store(fleet.storage, output)
        self.workshop = Workshop(store, on_progress)
        self.passes = Passes(self.workshop, launcher, on_progress)
        self.members = [
            Member(entry, storage.join(self.output, entry.name)) for entry in fleet.entries
        ]

    def resolve(self) -> None:
        """Read tasks, data, models and adapters; writes nothing.

        Raises:
            UserError: the output is taken, or not one adapter can be resolved.
        """
        check_fleet_output(self.fleet, self.output)
        tasks = Tasks()
        for member in self._each("resolve", self.members):
            resolve(member, tasks, self.workshop.store, self.launcher, self.on_progress)
        if not any(member.goes_on for member in self.members):
            first = self.members[0]
            more = f" (and {len(self.members) - 1} more)" if len(self.members) > 1 else ""
            raise UserError(
                f"no adapter of the fleet can be resolved: {first.name}: {first.failure}{more}"
            )

    def run(self) -> Decided:
        """Do what is missing, then write each adapter's report and the fleet's page.

        An adapter that fails stops no other; its reason is in the record.

        Raises:
            UserError: there is nothing to run on, or the fleet's own files can't be written.
        """
        for member in self._alive():
            with member.guarded():
                claim(member)
        self._train_tasks()
        self.passes.ask(self._alive(), BOTH)
        for member in self._each("measure", self._alive()):
            with member.guarded():
                self._measure(member)
        self._compat([member for member in self._alive() if _wants_compat(member)])
        for member in self._each("report", [m for m in self.members if m.measured is not None]):
            with member.guarded():
                publish(member)
        record = fleet_record(self.fleet, self.members)
        paths = write_fleet(self.output, record)
        return Decided(record, tuple(paths), tuple(self.passes.notes))

    def remarks(self) -> list[str]:
        """What a user should know of the adapters before they run, failures among it."""
        found = []
        for member in self.members:
            if member.pipeline is not None:
                found += [f"{member.name}: {note}" for note in member.pipeline.plan.notes]
                if member.untrainable is not None:
                    found.append(f"{member.name} can have no compat adapter: {member.untrainable}")
            elif member.failure is not None:
                found.append(f"{member.name} can't be resolved: {member.failure}")
        return found

    def missing(self) -> Iterator[tuple[str, str, str, str]]:
        """Of each adapter its name, its task, and in words what is to be trained and asked before
        the gate is."""
        for member in self.members:
            task = member.entry.experiment.task.name
            if member.pipeline is None:
                yield member.name, task, "can't be resolved", ""
                continue
            steps = self.workshop.missing(member.pipeline.plan.steps())
            before = {s.key for s in member.steps("task-adapter")}
            wanted = [s.label for s in steps if s.key in before]
            asked = [s.label for s in steps if s.kind == "predictions"]
            asked = [label for label in asked if not label.startswith("evaluate compat")]
            yield member.name, task, ", ".join(wanted) or "–", ", ".join(asked) or "–"

    # --- stages -----------------------------------------------------------------------

    def _train_tasks(self) -> None:
        """The task adapters that nobody brought; an adapter that is given needs no examples yet."""
        for member in self._alive():
            if self.workshop.missing(member.steps("task-adapter")):
                with member.guarded():
                    member.works.write_examples()
        self.passes.train(self._alive(), "task-adapter", lambda m: m.works.train_tasks())

    def _measure(self, member: Member) -> None:
        results = member.results(BOTH)
        measured = results.measure()
        nothing = _unscored(measured)
        if nothing is not None:
            raise UserError(f"no example could be scored in old and new: {nothing}")
        member.gates["old->new"] = results.judge(measured, "old->new")
        member.measured = measured

    def _compat(self, members: Sequence[Member]) -> None:
        """Compat adapters, side by side; then what they change."""
        for member in members:
            with member.guarded():
                if member.untrainable is not None:
                    raise UserError(member.untrainable)
                member.works.write_examples()
        self.passes.train(_going(members), FOLDS, lambda m: m.works.train_tasks())
        self.passes.cache(_going(members))
        self.passes.train(_going(members), "compat-adapter", lambda m: m.works.train_compat())
        for member in _going(members):
            with member.guarded():
                member.works.interpolate()
        self.passes.ask(_going(members), ("compat",))
        for member in self._each("measure compat", _going(members)):
            with member.guarded():
                self._measure_compat(member)

    def _measure_compat(self, member: Member) -> None:
        """Both pairs are judged on the examples that all three have answered, as the report is."""
        results = member.results(VERSIONS)
        measured = results.measure()
        nothing = _unscored(measured)
        if nothing is not None:
            raise UserError(f"no example could be scored in compat: {nothing}")
        gates = {pair: results.judge(measured, pair) for pair in ("old->new", "old->compat")}
        member.measured, member.gates, member.versions = measured, gates, VERSIONS

    def _alive(self) -> list[Member]:
        return _going(self.members)

    def _each(self, stage: str, members: Sequence[Member]) -> Iterator[Member]:
        """The members, with progress on whose turn it is."""
        for number, member in enumerate(members):
            self.on_progress(Progress(stage, number, len(members), "adapters", member.name))
            yield member
        if members:
            self.on_progress(Progress(stage, len(members), len(members), "adapters"))


def check_fleet_output(fleet: Fleet, output: str) -> None:
    """Refuse an output folder that isn't free for this fleet; writes nothing.

    Raises:
        UserError: it is a file, holds a single run or another fleet.
    """
    storage.check_folders(output, fleet.storage)
    if storage.exists(storage.join(output, REPORT)):
        raise UserError(f"{output} holds a report of one update: choose another --output")
    there = storage.read_json(storage.join(output, "fleet.json"))
    name = there.get("name") if isinstance(there, dict) else None
    if name is not None and name != fleet.name:
        raise UserError(
            f"{output} holds the fleet {one_line(str(name), 80)!r}: choose another --output, or "
            "share finished steps between fleets with the setting 'storage'"
        )


def _going(members: Sequence[Member]) -> list[Member]:
    return [member for member in members if member.goes_on]


def _wants_compat(member: Member) -> bool:
    return member.entry.when == "always" or member.verdict("old->new") == "fail"


def _unscored(measured: Measured) -> str | None:
    """Why nothing can be said, where not one example is scored in all versions."""
    if any(task["n"] for task in measured.report["tasks"].values()):
        return None
    return one_line(next(iter(measured.errors), "no reason is known"))
