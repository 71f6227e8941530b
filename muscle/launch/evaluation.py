"""Evaluate with Ray Data: units of queries stream through one actor pool for each base.

A row of the stream is the name of a unit, a group of queries in a Parquet file; its actor reads
the queries and writes the answers' Parquet part itself. So nothing passes through the
driver, whose memory doesn't grow with the rows, and what is written is what is kept: a stopped
evaluation goes on with the units that lack a part. (Ray Data's own row checkpoints commit
only what has passed all pools, and took longer to resume 20,000 finished rows than to score
them.)
"""

import os
from typing import Any

import pyarrow as pa
import ray

from muscle.config import ResourcesConfig
from muscle.evaluation.job import EvaluateJob
from muscle.evaluation.units import Answerer, WorkerBrokenError, answer_unit, outstanding
from muscle.launch.pools import waiting, work_off
from muscle.launch.progress import watching
from muscle.training.job import OnProgress, Progress

STAGE = "evaluate"


class Scorer:
    """One actor of a pool: a base with all its adapters, loaded once."""

    def __init__(self, job: EvaluateJob, base: int, cpus: float, board: Any, total: int):
        import torch

        torch.set_num_threads(max(1, int(cpus)))
        self.base, self.board, self.total = job.bases[base], board, total
        self.engine = self.load(job)
        for note in getattr(self.engine, "notes", ()):
            board.note.remote(note)

    def load(self, job: EvaluateJob) -> Answerer:
        """The engine; another kind of scorer loads another one."""
        from muscle.evaluation.engine import load_engine

        return load_engine(self.base, job)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answer units; what comes back is only their names."""
        for row in batch.to_pylist():
            try:
                answer_unit(self.engine, self.base, (row["set"], row["group"]), self._answered)
            except WorkerBrokenError:
                os._exit(1)  # Ray starts a new process in its place
        return batch

    def _answered(self, rows: int) -> None:
        self.board.add.remote(STAGE, rows, self.total, "answers")


def evaluate(
    job: EvaluateJob,
    resources: ResourcesConfig,
    on_progress: OnProgress,
    scorer: type[Scorer] = Scorer,
) -> tuple[str, ...]:
    """Write every missing part of every ask's answers; returns the engines' remarks.

    Neither row order nor the number of actors nor the death of any of them changes a number.

    Raises:
        UserError: a scorer can't load its model, or dies again and again.
    """
    left = outstanding(job)
    units, total = left.units, left.total
    first = Progress(STAGE, left.done, total, "answers", "waits for scorers")
    if not units:
        on_progress(first)
        return ()
    with waiting(on_progress, list(units), resources) as tell, watching(tell) as board:
        tell(first)
        ray.get(board.add.remote(STAGE, left.done, total, "answers"))
        if job.backend == "vllm":
            from muscle.launch.vllm import Tell, write_generated

            units = write_generated(job, units, resources, Tell(board, STAGE, total))
        rows = {
            base: [{"set": s, "group": group} for s, group in missing]
            for base, missing in units.items()
        }
        arguments = {
            "job": job,
            "cpus": resources.cpus_per_actor,
            "board": board,
            "total": total,
        }
        work_off(rows, scorer, arguments, resources, "evaluation")
        return tuple(ray.get(board.notes.remote()))
