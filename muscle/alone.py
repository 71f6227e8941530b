"""A launcher without Ray: everything in this process, one job after the other.

For machines that have torch, transformers and peft only, and for tests.
"""

from collections.abc import Sequence

from muscle.evaluation.job import EvaluateJob
from muscle.storage import fetch
from muscle.tables import read_queries, write_answers
from muscle.training.job import OnProgress, Progress, TrainJob


class Alone:
    """Runs jobs here."""

    def __init__(self, device: str | None = None):
        self.device = device

    def prepare(self, on_progress: OnProgress) -> None:
        """Nothing to connect to."""

    def train(self, jobs: Sequence[TrainJob], on_progress: OnProgress) -> None:
        """Train one adapter after the other with `PlainEngine`."""
        from muscle.training.loop import train_alone

        for job in jobs:
            train_alone(job, on_progress, self.device)

    def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> None:
        """Load one base after the other and let its adapters answer."""
        from muscle.evaluation import Engine

        queries = read_queries(job.queries)
        total = len(queries) * len(job.outputs)
        done = 0
        for base in job.bases:
            engine = Engine(
                base.base.model,
                base.base.revision,
                {label: fetch(path) for label, path in base.adapters.items()},
                job.dtype,
                job.scoring_tokens,
                max_length=job.max_length,
                device=self.device,
            )
            for label in base.adapters:
                write_answers(job.outputs[label], engine.answer(label, queries))
                done += len(queries)
                on_progress(Progress("evaluate", done, total, "answers"))
