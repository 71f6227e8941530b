"""What a run leaves in its output folder: predictions, adapters with their cards, the report."""

import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muscle import copies, storage
from muscle.compare import EXAMPLES, REPORT, write_judged, write_numbers
from muscle.compatibility_config import at_level
from muscle.config import Experiment, VersionConfig
from muscle.metrics.comparable import without_instruction
from muscle.metrics.pairing import JoinedTask, join_sides
from muscle.plan import Again, Plan, Run
from muscle.predict import about_predictions, software
from muscle.report import adapter_card, pick_examples
from muscle.report.build import ReportOptions, report_of
from muscle.report.examples import FlipExample
from muscle.report.older import ALSO, with_older
from muscle.side import Side, side_of
from muscle.steps import Workshop
from muscle.tables import read_predictions, write_predictions
from muscle.training.job import Progress
from muscle.types import AGAIN, VERSIONS, Prediction, Version

if TYPE_CHECKING:
    from muscle.gate import Limits

ELSEWHERE = ("resources", "hardware", "tracking", "tuning", "gate", "report", "storage")
"""Settings that say where and how an experiment runs, how better ones are searched, how the
report is written or what it is held against, not what the experiment is."""

LIBRARIES = ("torch", "transformers", "peft", "lm_eval", "ray", "deepspeed")

WORDS = (EXAMPLES, "report.csv", "flips.csv", "report.html", "report.md", REPORT)
"""The report's files, those that are read first at the end."""

Rows = dict[str, list[Prediction]]
"""Version, or "again" -> predictions."""


@dataclass(frozen=True)
class Outcome:
    """A finished run: the report, where it is, and what the gate says of it, if one is set.

    errors  why answers are unscored, the commonest first
    notes   what the engines had to say
    """

    report: dict[str, Any]
    output: str
    examples: list[FlipExample]
    errors: dict[str, int]
    notes: tuple[str, ...] = ()
    gate: dict[str, Any] | None = None

    @property
    def paths(self) -> list[str]:
        """Of what to read, the shortest last."""
        return [storage.join(self.output, name) for name in WORDS[-3:]]


def check_gate(experiment: Experiment) -> None:
    """Read the gate's files before anything is trained for it.

    Raises:
        UserError: one isn't there, or isn't what it should be.
    """
    from muscle.gate.must_keep import read_must_keep
    from muscle.gate.waivers import read_waivers

    if experiment.gate.must_keep is not None:
        read_must_keep(experiment.gate.must_keep, [experiment.task.name])
    if experiment.gate.waive is not None:
        read_waivers(experiment.gate.waive)


@dataclass(frozen=True)
class Measured:
    """What the predictions say: their join, the report of it, some flips, why answers are
    unscored, the commonest first."""

    tasks: dict[str, JoinedTask]
    report: dict[str, Any]
    examples: list[FlipExample]
    errors: dict[str, int]


class Results:
    """Writes a finished plan's results; running it again writes the same bytes.

    Args:
        adapter: the directory of what a version serves.
        again: the directory of the second old's adapter.
        versions: those that have answered, old and new at least.
    """

    def __init__(
        self,
        plan: Plan,
        workshop: Workshop,
        output: str,
        adapter: Callable[[Version, Run], str],
        again: Callable[[Again], str],
        versions: Sequence[Version] = VERSIONS,
    ):
        self.plan = plan
        self.experiment = plan.experiment
        self.workshop = workshop
        self.output = output
        self._adapter = adapter
        self._adapter_again = again
        self.versions = versions
        self._hidden = plan.experiment.report.text == "none"

    def write(
        self,
        notes: tuple[str, ...],
        measured: Measured | None = None,
        pair: str | None = None,
    ) -> Outcome:
        """Predictions and adapters first, then the report, then what the gate says of it.

        Args:
            measured: what `measure` returned, where it was called before.
            pair: what the gate is for; default: the settings'.

        Raises:
            UserError: a column to slice by isn't there, a gate's file can't be read or names
                an example that isn't there; all but the gate's files is written then.
        """
        found = measured or self.measure()
        write_numbers(self.output, found.tasks, found.report, self.experiment.report.text)
        self._write_cards(found.report)
        limits = self._limits()
        judged = write_judged(self.output, limits, pair or self.experiment.gate.pair)
        self.workshop.on_progress(Progress("report", 1, 1, "report"))
        gate = None if judged is None else judged.gate
        return Outcome(found.report, self.output, found.examples, found.errors, notes, gate)

    def measure(self) -> Measured:
        """Put predictions and adapters into the output folder, and count.

        Raises:
            UserError: a column to slice by isn't there.
        """
        rows: dict[int, Rows] = {}
        sides: dict[int, dict[str, dict[str, Side]]] = {}
        for run in self.experiment.runs:
            rows[run[1]], sides[run[1]] = self._run(run)
        tasks = join_sides(sides)
        report = report_of(tasks, self._provenance(), self._options())
        report = with_older(report, sides, self._older(), self._options())
        every = (p for versions in rows.values() for ps in versions.values() for p in ps)
        errors = Counter(p.error for p in every if p.error is not None)
        first = rows[self.experiment.runs[0][1]]
        examples = pick_examples({v: first[v] for v in self.versions})
        return Measured(tasks, report, examples, dict(errors.most_common()))

    def judge(self, measured: Measured, pair: str) -> dict[str, Any]:
        """What the gate says of a pair of versions; nothing of it is kept.

        Raises:
            UserError: as `write`.
        """
        from muscle.gate import judge

        limits = self._limits()
        assert limits is not None, "there is no gate"
        with tempfile.TemporaryDirectory() as folder:
            write_numbers(folder, measured.tasks, measured.report, self.experiment.report.text)
            return judge(folder, limits, pair=pair, output=storage.join(folder, "gate")).gate

    def _run(self, run: Run) -> tuple[Rows, dict[str, dict[str, Side]]]:
        """One run's predictions, which it leaves in the output folder with their adapters."""
        rows: Rows = {}
        sides: dict[str, dict[str, Side]] = {}
        for version in self.versions:
            rows[version] = self._predictions(version, run)
            sides[version] = self._side(version, run, rows[version], self._about(version, run))
        again = self.plan.again.get(run)
        if again is not None:
            rows[AGAIN] = self._again(again, run)
            sides[AGAIN] = self._side(AGAIN, run, rows[AGAIN], self._about_again(again))
        return rows, sides

    def _side(
        self, name: str, run: Run, rows: list[Prediction], about: dict[str, Any]
    ) -> dict[str, Side]:
        label = f"{name} (seed {run[1]})" if len(self.experiment.runs) > 1 else name
        task = self.plan.task.name
        write_predictions(storage.join(self._place(run), name, f"{task}.parquet"), rows, about)
        side = side_of(rows, label, about)
        return {task: without_instruction(side) if self._hidden else side}

    def _predictions(self, version: Version, run: Run) -> list[Prediction]:
        step = self.plan.predictions[version, run]
        if self.plan.adapters[version, run] is not None:
            adapter = Path(copies.fetch(self._adapter(version, run)))
            storage.upload(adapter, storage.join(self._place(run), version, "adapter"))
        return read_predictions(self.workshop.artifact(step).file("predictions.parquet"))

    def _again(self, again: Again, run: Run) -> list[Prediction]:
        others = [step for step in self.plan.adapters.values() if step is not None]
        # Another seed's old has its adapter in that seed's folder.
        if again.adapter is not None and again.adapter.key not in {step.key for step in others}:
            adapter = Path(copies.fetch(self._adapter_again(again)))
            storage.upload(adapter, storage.join(self._place(run), AGAIN, "adapter"))
        artifact = self.workshop.artifact(again.predictions)
        return read_predictions(artifact.file("predictions.parquet"))

    def _older(self) -> dict[int, dict[str, dict[str, Side]]]:
        """The older releases' predictions, which they leave in also/: the same for all seeds."""
        task, found = self.plan.task, {}
        for older, _, step in self.plan.older:
            settings, dtype = self.experiment.evaluation, self.experiment.scoring_dtype
            made = about_predictions(
                task, settings, dtype, older.base, older.called, chat=older.chat
            )
            about = {**made, "adapter": older.fingerprint, "release": older.version.release}
            rows = read_predictions(self.workshop.artifact(step).file("predictions.parquet"))
            path = storage.join(self.output, ALSO, older.label, f"{task.name}.parquet")
            write_predictions(path, rows, about)
            side = side_of(rows, f"also {older.label}", about)
            found[older.label] = {task.name: without_instruction(side) if self._hidden else side}
        return {run[1]: found for run in self.experiment.runs}

    def _about(self, version: Version, run: Run) -> dict[str, Any]:
        """How a version's predictions were made."""
        given = self._given(version)
        found = {**self._made(version), "adapter": self._fingerprint(self._adapter(version, run))}
        if given.adapter is not None and version != "compat":
            return {**found, "adapter_path": given.adapter}
        return {**found, "seed": run[1] if version == "compat" else run[0]}

    def _about_again(self, again: Again) -> dict[str, Any]:
        found = {**self._made("old"), "adapter": self._fingerprint(self._adapter_again(again))}
        if again.seed is None or again.adapter is None:
            return {**found, "adapter_path": copies.unpinned(str(again.base.config.adapter))[0]}
        return {**found, "seed": again.seed}

    def _made(self, version: Version) -> dict[str, Any]:
        experiment, given = self.experiment, self._given(version)
        called = given.model + (f"@{given.revision}" if given.revision else "")
        dtype, base = experiment.scoring_dtype, self.plan.base(version)
        chats = self.plan.chats
        chat = None if chats is None else chats.template_of(version).name
        return about_predictions(
            self.plan.task, experiment.evaluation, dtype, base, called, chat=chat
        )

    def _given(self, version: Version) -> VersionConfig:
        return self.experiment.old if version == "old" else self.experiment.new

    def _fingerprint(self, adapter: str) -> str:
        from muscle.models.fingerprint import fingerprint_adapter

        return fingerprint_adapter(copies.fetch(adapter))

    def _place(self, run: Run) -> str:
        """The folder of a run's results: one for each seed where there are several."""
        several = len(self.experiment.runs) > 1
        return storage.join(self.output, f"seed-{run[1]}") if several else self.output

    def _options(self) -> ReportOptions:
        """As the settings say; the columns that the gate judges are among those asked for."""
        settings, gate = self.experiment.report, self.experiment.gate
        slices = None
        if settings.slices is not None:
            judged = [one.partition("=")[0] for one in gate.slices]
            slices = tuple(dict.fromkeys([*settings.slices, *judged]))
        return ReportOptions(slices=slices, min_slice=settings.min_slice, text=settings.text)

    def _limits(self) -> "Limits | None":
        from muscle.gate import make_limits

        settings = self.experiment.gate
        return make_limits(**settings.model_dump(exclude={"pair"})) if settings.asked else None

    def _write_cards(self, report: dict[str, Any]) -> None:
        """A model card beside every compat adapter in the output folder."""
        if "compat" not in self.versions:
            return
        examples = self.workshop.artifact(self.plan.examples).notes
        for run in self.experiment.runs:
            card = adapter_card(report, self.plan.task.name, run[1], examples)
            path = storage.join(self._place(run), "compat", "adapter", "README.md")
            storage.write_bytes(path, card.encode("utf-8", "replace"))

    def _provenance(self) -> dict[str, Any]:
        """Where the numbers come from; nothing in it changes between equal runs."""
        settings = self.experiment.model_dump(
            exclude={**dict.fromkeys(ELSEWHERE, True), "evaluation": {"server"}}
        )
        return {
            **software(LIBRARIES),
            "command": _command(self.experiment),
            "experiment": {**settings, "compatibility": at_level(settings["compatibility"])},
            "task": {
                "version": self.plan.task.version,
                "filter": self.plan.task.filter,
                "fingerprint": self.plan.queries.key,
            },
            "models": {
                "old": {
                    "model": self.experiment.old.model,
                    "fingerprint": self.plan.old.fingerprint,
                },
                "new": {
                    "model": self.experiment.new.model,
                    "fingerprint": self.plan.new.fingerprint,
                },
            },
        }


def _command(experiment: Experiment) -> str:
    """What makes the run again: the output folder's own experiment.json is an experiment file."""
    floor = experiment.noise_floor
    text = floor if isinstance(floor, str) else str(floor).lower()
    words = ["muscle run experiment.json"]
    words += [] if floor is False else [f"--set noise_floor={text}"]
    words += [f"--also {shlex.quote(older)}" for older in experiment.also]
    return " ".join(words)
