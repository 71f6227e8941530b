"""Evaluate with Ray Data: units of queries stream through one actor pool for each base.

A row of the stream is the name of a unit, a group of queries in a Parquet file; its actor reads
the queries and writes the answers' Parquet part itself. So nothing passes through the
driver, whose memory doesn't grow with the rows, and what is written is what is kept: a stopped
evaluation goes on with the units that lack a part. (Ray Data's own row checkpoints commit
only what has passed all pools, and took longer to resume 20,000 finished rows than to score
them.)
"""

import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from muscle.config import ResourcesConfig
from muscle.evaluation.job import EvaluateJob
from muscle.evaluation.units import Answerer, Unit, WorkerBrokenError, answer_unit, outstanding
from muscle.launch import cluster
from muscle.launch.progress import watching
from muscle.launch.streams import MAX_RESTARTS, explain, restarts_bounded, set_context
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
    on_progress(Progress(STAGE, left.done, total, "answers", "waits for scorers"))
    if not units:
        return ()
    with watching(on_progress) as board:
        ray.get(board.add.remote(STAGE, left.done, total, "answers"))
        if job.backend == "vllm":
            from muscle.launch.vllm import Tell, write_generated

            units = write_generated(job, units, resources, Tell(board, STAGE, total))
        for bases in _rounds([b for b, missing in units.items() if missing], resources):
            for _ in _stream({b: units[b] for b in bases}, job, resources, board, total, scorer):
                pass
        return tuple(ray.get(board.notes.remote()))


def _rounds(bases: list[int], resources: ResourcesConfig) -> list[list[int]]:
    """The bases whose pools work at once: all, or one by one where GPUs don't suffice.

    Pools of one stream wait for each other, so half of them would wait for ever.
    """
    if not bases:
        return []
    available = ray.cluster_resources().get("GPU", 0.0)
    each = cluster.scoring_gpus(resources.gpus_per_actor, available, len(bases))
    wanted = each * resources.min_actors * len(bases)
    if cluster.is_local() and wanted > available:
        return [[base] for base in bases]
    return [bases]


def _stream(
    units: dict[int, dict[Unit, int]],
    job: EvaluateJob,
    resources: ResourcesConfig,
    board: Any,
    total: int,
    scorer: type[Scorer],
) -> Iterator[pa.Table]:
    """One stream with a branch for each base; yields the names of answered units."""
    set_context(DataContext.get_current())
    gpus = cluster.scoring_gpus(
        resources.gpus_per_actor, ray.cluster_resources().get("GPU", 0.0), len(units)
    )
    branches = []
    for base, missing in units.items():
        rows = [{"set": s, "group": group} for s, group in missing]
        # A block a unit: any actor that is free takes the next one.
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        arguments = {
            "job": job,
            "base": base,
            "cpus": resources.cpus_per_actor,
            "board": board,
            "total": total,
        }
        branches.append(_through_pool(data, scorer, arguments, resources, gpus))
    stream = branches[0] if len(branches) == 1 else branches[0].union(*branches[1:])
    try:
        yield from stream.iter_batches(batch_size=None, batch_format="pyarrow")
    except ray.exceptions.RayError as error:
        raise explain(error) from error


def _through_pool(
    data: ray.data.Dataset,
    scorer: type[Scorer],
    arguments: dict[str, Any],
    resources: ResourcesConfig,
    gpus: float,
) -> ray.data.Dataset:
    with restarts_bounded():
        return data.map_batches(
            scorer,
            fn_constructor_kwargs=arguments,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=resources.cpus_per_actor,
            num_gpus=gpus,
            compute=ActorPoolStrategy(min_size=resources.min_actors, max_size=resources.max_actors),
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_RESTARTS,
        )
