"""Evaluate with Ray Data: units of queries stream through one actor pool for each base.

A row of the stream is the name of a unit, a group of queries in a Parquet file; its actor reads
the queries and writes the answers' Parquet part itself. So nothing passes through the
driver, whose memory doesn't grow with the rows, and what is written is what is kept: a stopped
evaluation goes on with the units that lack a part. (Ray Data's own row checkpoints commit
only what has passed all pools, and took longer to resume 20,000 finished rows than to score
them.)
"""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning

from muscle import storage
from muscle.config import ResourcesConfig
from muscle.errors import UserError
from muscle.evaluation.job import BaseJob, EvaluateJob
from muscle.evaluation.units import Answerer, Unit, WorkerBrokenError, answer_unit, pending
from muscle.launch import cluster
from muscle.launch.progress import watching
from muscle.tables import group_sizes
from muscle.training.job import OnProgress, Progress

STAGE = "evaluate"
MAX_RESTARTS = 40
"""Deaths of one actor. What kills it again and again is named long before (`units.Claim`);
this ends an actor that dies before it begins."""


@dataclass(frozen=True)
class Scoring:
    """What a scorer needs to load its models."""

    dtype: str
    max_length: int | None
    tokens: int | None
    cpus: float
    continuous: bool


class Scorer:
    """One actor of a pool: a base with all its adapters, loaded once."""

    def __init__(self, base: BaseJob, scoring: Scoring, board: Any, total: int):
        import torch

        torch.set_num_threads(max(1, int(scoring.cpus)))
        self.base, self.board, self.total = base, board, total
        self.engine = self.load(scoring)
        for note in getattr(self.engine, "notes", ()):
            board.note.remote(note)

    def load(self, scoring: Scoring) -> Answerer:
        """The engine; another kind of scorer loads another one."""
        from muscle.evaluation import Engine

        adapters = self.base.adapters.items()
        return Engine(
            self.base.base.model,
            self.base.base.revision,
            {name: None if path is None else storage.fetch(path) for name, path in adapters},
            scoring.dtype,
            scoring.tokens,
            max_length=scoring.max_length,
            continuous=scoring.continuous,
        )

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
    units = {base: pending(bases) for base, bases in enumerate(job.bases)}
    total = sum(sum(group_sizes(queries.queries)) for queries, _ in job.asks())
    done = total - sum(sum(missing.values()) for missing in units.values())
    on_progress(Progress(STAGE, done, total, "answers", "waits for scorers"))
    if done == total:
        return ()
    with watching(on_progress) as board:
        ray.get(board.add.remote(STAGE, done, total, "answers"))
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
    scoring = Scoring(
        dtype=job.dtype,
        max_length=job.max_length,
        tokens=job.scoring_tokens,
        cpus=resources.cpus_per_actor,
        continuous=job.backend == "continuous",
    )
    branches = []
    for base, missing in units.items():
        rows = [{"set": s, "group": group} for s, group in missing]
        # A block a unit: any actor that is free takes the next one.
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        arguments = {"base": job.bases[base], "scoring": scoring, "board": board, "total": total}
        branches.append(_through_pool(data, scorer, arguments, resources, gpus))
    stream = branches[0] if len(branches) == 1 else branches[0].union(*branches[1:])
    try:
        yield from stream.iter_batches(batch_size=None, batch_format="pyarrow")
    except ray.exceptions.RayError as error:
        raise explain(error) from error


def set_context(context: DataContext) -> None:
    """Ray Data's settings for any stream: fail at once where an actor can't start."""
    context.enable_progress_bars = False
    context.actor_init_retry_on_errors = False
    context.actor_init_max_retries = 0
    context.execution_options.preserve_order = False


def _through_pool(
    data: ray.data.Dataset,
    scorer: type[Scorer],
    arguments: dict[str, Any],
    resources: ResourcesConfig,
    gpus: float,
) -> ray.data.Dataset:
    with warnings.catch_warnings():
        # Ray's defaults for restarts are endless. This Ray warns about the only way to bound them.
        warnings.simplefilter("ignore", RayDeprecationWarning)
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


def explain(error: Exception) -> UserError:
    """The UserError that an actor raised, or the last line of what Ray says."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in reversed(lines):
        if "UserError: " in line:
            return UserError(line.split("UserError: ", 1)[1])
    return UserError(f"evaluation failed: {(lines[-1] if lines else type(error).__name__)[:300]}")
