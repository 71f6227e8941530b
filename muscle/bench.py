"""What the candidates of a search are measured on: plans, questions, measures.

A candidate is a setting of the compatibility adapter; a part is some examples: half A, half B,
a few of A to look at on the way, or the test split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from muscle import storage
from muscle.artifacts import Store
from muscle.config import CompatibilityConfig
from muscle.metrics.pairing import Predictions
from muscle.pipeline import Launcher, Pipeline
from muscle.plan import PerBase, Plan, Run, Step, asked_of, predictions_step, vary
from muscle.predict import Predictor, Wanted, wanted_of
from muscle.splits import tuning_halves
from muscle.steps import Workshop
from muscle.tables import read_predictions
from muscle.tasks import Task
from muscle.teaching import adapter_folder
from muscle.training.job import OnProgress
from muscle.tuning.measure import measure
from muscle.tuning.records import Measured
from muscle.types import VERSIONS, Prediction, Version

LOOK = 128
"""Examples of half A that a trial answers on the way: one group, so one unit of work."""


@dataclass(frozen=True)
class Part:
    """Some examples: the task that asks and judges them, and the steps of their queries."""

    name: str
    task: Task
    asked: PerBase
    n: int


@dataclass(frozen=True)
class Parts:
    """The tuning examples; `look` are some of `a`."""

    a: Part
    b: Part
    look: Part


def tuning_parts(plan: Plan) -> Parts:
    """The halves of the examples that `training.tuning_fraction` holds out.

    Raises:
        UserError: no training split, a half would be empty, a row that can't be rendered.
    """
    template = None if plan.chats is None else plan.chats.new
    halves = tuning_halves(plan.experiment, plan.task, template)
    a, b = ([e.id for e in half] for half in halves)
    # Spread over the half: files are often sorted.
    look = a[:: max(1, len(a) // LOOK)][:LOOK]
    return Parts(_part("half A", plan, a), _part("half B", plan, b), _part("a look", plan, look))


def _part(name: str, plan: Plan, ids: Sequence[str]) -> Part:
    task = plan.task.on_training(ids)
    return Part(name, task, asked_of(task, plan.chats, f"questions of {name}"), len(ids))


class Bench:
    """Plans, asks and measures candidates; all share one store."""

    def __init__(self, plan: Plan, output: str, launcher: Launcher, on_progress: OnProgress):
        self.plan = plan
        self.experiment = plan.experiment
        self.output = output
        self.launcher = launcher
        self.on_progress = on_progress
        self.pipeline = Pipeline(plan, output, launcher, on_progress)
        self.store: Store = self.pipeline.store
        self.workshop: Workshop = self.pipeline.workshop
        self.test = Part("the test split", plan.task, plan.asked, 0)
        whole = self.experiment.evaluation.model_copy(update={"limit": None})
        self._on_tuning = Predictor(
            self.workshop,
            launcher,
            whole,
            self.experiment.scoring_dtype,
            self.experiment.resources,
        )

    def laid_out(self, settings: CompatibilityConfig, part: Part) -> Plan:
        """The plan of a candidate that is judged by a part's examples."""
        return vary(self.plan, settings, part.task, part.asked)

    def pipeline_of(self, plan: Plan) -> Pipeline:
        """The pipeline of a candidate's plan, in the same store."""
        return Pipeline(plan, self.output, self.launcher, self.on_progress, self.store)

    def predictor(self, part: Part) -> Predictor:
        """Who asks a part: `evaluation.limit` is about the test split only."""
        return self.pipeline.predictor if part is self.test else self._on_tuning

    def wanted(
        self,
        settings: CompatibilityConfig,
        part: Part,
        versions: Sequence[Version] = VERSIONS,
        name: str = "compat",
        adapters: Mapping[Run, str] | None = None,
    ) -> list[Wanted]:
        """Versions' predictions on a part.

        name: what compat is called, unique among all candidates that are asked together.
        adapters: compat's, where they aren't artifacts yet.
        """
        plan = self.laid_out(settings, part)
        made = adapters or {}

        def called(version: Version, run: Run) -> str:
            return f"{name if version == 'compat' else version}-{run[0]}-{run[1]}"

        def adapter(version: Version, run: Run) -> str:
            if version == "compat" and run in made:
                return made[run]
            return adapter_folder(plan, self.workshop, version, run)

        return wanted_of(plan, called, adapter, versions)

    def predictions(self, settings: CompatibilityConfig, part: Part) -> Predictions:
        """What was predicted on a part, by seed and version."""
        plan = self.laid_out(settings, part)
        return {
            run[1]: {
                **self.teachers(part, run),
                "compat": self.read(plan.predictions["compat", run]),
            }
            for run in self.experiment.runs
        }

    def measure(self, settings: CompatibilityConfig, part: Part) -> Measured:
        """A candidate on a part, once all has been predicted.

        Raises:
            UserError: no example was scored in all versions.
        """
        return measure(self.predictions(settings, part), part.name)

    def residual(self, settings: CompatibilityConfig) -> float:
        """Share of the weight change that new's rank can't hold, the largest of the seeds."""
        steps = self.laid_out(settings, self.test).interpolated.values()
        return max((self.workshop.artifact(s).notes["residual"] for s in steps), default=0.0)

    def trained(self, plan: Plan) -> dict[Run, Step]:
        """The steps of a candidate's trained adapters, one for each seed."""
        steps = {run: plan.adapters["compat", run] for run in self.experiment.runs}
        return {run: step for run, step in steps.items() if step is not None}

    def look(self, trained: Step, part: Part, run: Run, epoch: int) -> Wanted:
        """What an adapter after some epochs is asked; nothing is served of it."""
        predictor = self.predictor(part)
        step = predictions_step(
            f"look after {epoch} epochs",
            self.plan.new,
            f"{trained.key} after {epoch} epochs",
            part.asked.new,
            predictor.evaluation,
            predictor.dtype,
        )
        output = storage.join(self.store.folder(trained.kind, trained.key), f"look-{epoch}")
        name = f"look-{epoch}-{run[0]}-{run[1]}"
        prompting = self.plan.prompting_of("compat")
        return Wanted(step, name, part.task, part.asked.new, self.plan.new, output, prompting)

    def teachers(self, part: Part, run: Run) -> dict[Version, list[Prediction]]:
        """What old and new predicted on a part."""
        plan = self.laid_out(self.experiment.compatibility, part)
        return {v: self.read(plan.predictions[v, run]) for v in VERSIONS[:2]}

    def read(self, step: Step) -> list[Prediction]:
        """The predictions of a step that was done."""
        return read_predictions(self.workshop.artifact(step).file("predictions.parquet"))
