"""A launcher without Ray: everything in this process, one job after the other.

For machines that have torch, transformers and peft only, and for tests.
"""

from collections.abc import Sequence

from muscle.errors import UserError
from muscle.evaluation.job import EvaluateJob
from muscle.evaluation.units import answer_unit, pending
from muscle.storage import fetch
from muscle.tables import group_sizes
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

    def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> tuple[str, ...]:
        """Load one base after the other and let its adapters answer; returns the remarks."""
        from muscle.evaluation import Engine

        if job.backend == "vllm":
            raise UserError("backend 'vllm' runs on Ray only: use the `muscle` command")
        units = [pending(base) for base in job.bases]
        total = sum(sum(group_sizes(queries.queries)) for queries, _ in job.asks())
        done = total - sum(sum(missing.values()) for missing in units)
        notes: dict[str, None] = {}

        def answered(rows: int) -> None:
            nonlocal done
            done += rows
            on_progress(Progress("evaluate", done, total, "answers"))

        for base, missing in zip(job.bases, units, strict=True):
            if not missing:
                continue
            adapters = base.adapters.items()
            engine = Engine(
                base.base.model,
                base.base.revision,
                {name: None if path is None else fetch(path) for name, path in adapters},
                job.dtype,
                job.scoring_tokens,
                max_length=job.max_length,
                device=self.device,
                continuous=job.backend == "continuous",
            )
            notes.update(dict.fromkeys(engine.notes))
            for unit in missing:
                answer_unit(engine, base, unit, answered)
        return tuple(notes)
