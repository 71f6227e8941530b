"""A launcher without Ray: everything in this process, one job after the other.

For machines that have torch, transformers and peft only, and for tests.
"""

from collections.abc import Mapping, Sequence

from muscle.errors import SomeFailedError, UserError
from muscle.evaluation.job import EvaluateJob
from muscle.evaluation.units import WorkerBrokenError, answer_unit, outstanding
from muscle.teachers.job import TeacherJob
from muscle.teachers.shards import missing
from muscle.training.job import OnProgress, Progress, TrainJob
from muscle.tuning.trial import Later, StoppedError, TrialSource, attempt


class Alone:
    """Runs jobs here."""

    def __init__(self, device: str | None = None):
        self.device = device

    def prepare(self, on_progress: OnProgress) -> None:
        """Nothing to connect to."""

    def train(self, jobs: Sequence[TrainJob], on_progress: OnProgress) -> None:
        """Train one adapter after the other with `PlainEngine`; one that fails stops no other.

        Raises:
            UserError: what was wrong with the one job.
            SomeFailedError: the same, of several jobs.
        """
        from muscle.training.loop import train_alone

        failures: dict[str, UserError] = {}
        for job in jobs:
            try:
                train_alone(job, on_progress, self.device)
            except UserError as error:
                if len(jobs) == 1:
                    raise
                failures[job.title] = error
        if failures:
            raise SomeFailedError(failures)

    def cache(self, job: TeacherJob, on_progress: OnProgress) -> None:
        """Write what is missing of the teachers' hidden states, one base after the other."""
        from muscle.teachers.write import Writer

        left = missing(job)
        done = left.done
        on_progress(Progress("cache teachers", done, left.total, "sequences"))
        for number, units in left.units.items():
            writer = Writer(job.bases[number], job, self.device)
            for unit in units:
                done += writer.write(unit)
                on_progress(Progress("cache teachers", done, left.total, "sequences"))

    def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> tuple[str, ...]:
        """Load one base after the other and let its adapters answer; returns the remarks."""
        from muscle.evaluation.engine import load_engine

        if job.backend == "vllm":
            raise UserError("backend 'vllm' runs on Ray only: use the `muscle` command")
        left = outstanding(job)
        done = left.done
        notes: dict[str, None] = {}

        def answered(rows: int) -> None:
            nonlocal done
            done += rows
            on_progress(Progress("evaluate", done, left.total, "answers"))

        for number, units in left.units.items():
            engine = load_engine(job.bases[number], job, self.device)
            notes.update(dict.fromkeys(engine.notes))
            for unit in units:
                answer_unit(engine, job.bases[number], unit, answered)
        return tuple(notes)

    def search(self, trials: TrialSource, concurrent: int | None, on_progress: OnProgress) -> None:
        """Run one trial after the other, however many could run at once elsewhere."""
        while (job := trials.next()) is not None:
            if isinstance(job, Later):  # never: nothing else runs here
                continue
            number = job.number

            def look(which: int, seconds: Mapping[str, float], number: int = number) -> None:
                if trials.look(number, which, seconds):
                    raise StoppedError

            try:
                outcome = attempt(job, self, look, on_progress)
            except WorkerBrokenError as error:
                raise UserError(f"the device is broken, start again: {error}") from error
            trials.end(number, outcome)
