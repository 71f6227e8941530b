"""Cache teachers with Ray Data: shards stream through one actor pool for each base."""

import os
from typing import Any

import pyarrow as pa
import ray

from muscle.config import ResourcesConfig
from muscle.errors import breaks_device
from muscle.launch.pools import waiting, work_off
from muscle.launch.progress import watching
from muscle.teachers.job import TeacherJob
from muscle.teachers.shards import missing
from muscle.training.job import OnProgress, Progress

STAGE = "cache teachers"

RETRIES = 3
"""How many actors one shard may take with it: it has no rows that could be left out."""


class Teacher:
    """One actor of a pool: a base with the adapters of all its asks, loaded once."""

    def __init__(self, job: TeacherJob, base: int, cpus: float, board: Any, total: int):
        import torch

        from muscle.teachers.write import Writer

        torch.set_num_threads(max(1, int(cpus)))
        self.board, self.total = board, total
        self.writer = Writer(job.bases[base], job)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Write units; what comes back is only their names."""
        for row in batch.to_pylist():
            try:
                done = self.writer.write((row["ask"], row["shard"]))
            except RuntimeError as error:
                if breaks_device(error):
                    os._exit(1)  # Ray starts a new process in its place
                raise
            self.board.add.remote(STAGE, done, self.total, "sequences")
        return batch


def cache_all(job: TeacherJob, resources: ResourcesConfig, on_progress: OnProgress) -> None:
    """Write every shard and head that is missing in the caches of a job.

    Neither the number of actors nor the death of any of them changes a number. What is there
    isn't computed again. `muscle.teachers.shards.finish` then makes a cache of each folder.

    Raises:
        UserError: a teacher that can't be loaded, whose hidden states aren't finite, or that
            dies again and again; storage that can't be written.
    """
    left = missing(job)
    first = Progress(STAGE, left.done, left.total, "sequences", "waits for teachers")
    if not left.units:
        on_progress(first)
        return
    units = {
        base: [{"ask": ask, "shard": shard} for ask, shard in found]
        for base, found in left.units.items()
    }
    with waiting(on_progress, list(units), resources) as tell, watching(tell) as board:
        tell(first)
        ray.get(board.add.remote(STAGE, left.done, left.total, "sequences"))
        arguments = {
            "job": job,
            "cpus": resources.cpus_per_actor,
            "board": board,
            "total": left.total,
        }
        work_off(units, Teacher, arguments, resources, "caching the teachers", RETRIES)
    # An actor that dies between a shard and its post leaves it uncounted.
    on_progress(Progress(STAGE, left.total, left.total, "sequences"))
