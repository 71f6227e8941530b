"""Evaluate with Ray Data: queries stream through one actor pool for each base."""

import json
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning

from muscle import storage
from muscle.config import ResourcesConfig
from muscle.errors import UserError
from muscle.evaluation.job import BaseJob, EvaluateJob
from muscle.launch import cluster
from muscle.launch.progress import watching
from muscle.tables import (
    answer_to_row,
    query_to_row,
    read_queries,
    row_to_answer,
    row_to_query,
    write_answers,
)
from muscle.training.job import OnProgress, Progress
from muscle.types import Answer, Query

ROWS_PER_BATCH = 256
STAGE = "evaluate"
MAX_RESTARTS = 5


class Scorer:
    """One actor of a pool: a base with all its adapters, loaded once."""

    def __init__(
        self,
        base: dict[str, Any],
        dtype: str,
        max_length: int | None,
        tokens: int,
        cpus: float,
        board: Any,
        total: int,
    ):
        import torch

        from muscle.evaluation import Engine

        torch.set_num_threads(max(1, int(cpus)))
        self.engine = Engine(
            base["model"],
            base["revision"],
            {label: storage.fetch(path) for label, path in base["adapters"].items()},
            dtype,
            tokens,
            max_length=max_length,
        )
        self.labels = list(base["adapters"])
        self.board, self.total = board, total

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Add a column `answer/<label>` (JSON) for every adapter of this base."""
        queries = [row_to_query(json.loads(text)) for text in batch["query"].to_pylist()]
        for label in self.labels:
            answers = self.engine.answer(label, queries)
            rows = pa.array([json.dumps(answer_to_row(a)) for a in answers], pa.string())
            batch = batch.append_column(f"answer/{label}", rows)
            self.board.add.remote(STAGE, len(queries), self.total, "answers")
        return batch


def evaluate(job: EvaluateJob, resources: ResourcesConfig, on_progress: OnProgress) -> None:
    """Let every adapter of every base answer every query; writes `job.outputs`.

    The queries pass through the bases' pools one after the other as a stream, so all
    pools work at once. Row order isn't relied on: answers are joined by id and counted.

    Raises:
        UserError: a scorer can't load its model, or answers are missing.
    """
    queries = read_queries(job.queries)
    total = len(queries) * len(job.outputs)
    on_progress(Progress(STAGE, 0, total, "answers", "waits for scorers"))
    with watching(on_progress) as board:
        answers: dict[str, dict[str, Answer]] = {label: {} for label in job.labels()}
        for bases in _rounds(job, resources):
            for batch in _stream(bases, job, resources, queries, board, total):
                for label in (label for base in bases for label in base.adapters):
                    for row in batch[f"answer/{label}"].to_pylist():
                        answer = row_to_answer(json.loads(row))
                        answers[label][answer.id] = answer
    for label, found in answers.items():
        missing = [q.id for q in queries if q.id not in found]
        if missing or len(found) != len(queries):
            raise UserError(
                f"evaluation lost {len(missing)} of {len(queries)} answers of {label} "
                f"(first: {missing[:3]}); nothing was written, run again"
            )
        write_answers(job.outputs[label], [found[q.id] for q in queries])


def _rounds(job: EvaluateJob, resources: ResourcesConfig) -> list[tuple[BaseJob, ...]]:
    """The bases whose pools work at once: all, or one by one where GPUs don't suffice.

    Pools of one stream wait for each other, so half of them would wait for ever.
    """
    available = ray.cluster_resources().get("GPU", 0.0)
    each = cluster.scoring_gpus(resources.gpus_per_actor, available, len(job.bases))
    wanted = each * resources.min_actors * len(job.bases)
    if cluster.is_local() and wanted > available:
        return [(base,) for base in job.bases]
    return [job.bases]


def _stream(
    bases: tuple[BaseJob, ...],
    job: EvaluateJob,
    resources: ResourcesConfig,
    queries: list[Query],
    board: Any,
    total: int,
) -> Iterator[pa.Table]:
    """Batches that have passed through all pools."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.actor_init_retry_on_errors = False
    context.actor_init_max_retries = 0
    context.execution_options.preserve_order = False
    # Neighbours of one length waste the least padding, whichever batch they land in.
    ordered = sorted(queries, key=_size, reverse=True)
    blocks = max(resources.max_actors, math.ceil(len(queries) / ROWS_PER_BATCH))
    rows = [{"query": json.dumps(query_to_row(q))} for q in ordered]
    data: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=min(blocks, len(rows)))
    gpus = cluster.scoring_gpus(
        resources.gpus_per_actor, ray.cluster_resources().get("GPU", 0.0), len(bases)
    )
    for base in bases:
        data = _through_pool(data, base, job, resources, gpus, board, total)
    try:
        yield from data.iter_batches(batch_size=None, batch_format="pyarrow")
    except ray.exceptions.RayError as error:
        raise _explain(error) from error


def _through_pool(
    data: ray.data.Dataset,
    base: BaseJob,
    job: EvaluateJob,
    resources: ResourcesConfig,
    gpus: float,
    board: Any,
    total: int,
) -> ray.data.Dataset:
    """The stream with the answers of one base's adapters added."""
    with warnings.catch_warnings():
        # Ray's defaults for restarts are endless: a batch that kills its actor would never
        # end. This Ray warns about the only way to bound them.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return data.map_batches(
            Scorer,
            fn_constructor_kwargs={
                "base": _plain(base),
                "dtype": job.dtype,
                "max_length": job.max_length,
                "tokens": job.scoring_tokens,
                "cpus": resources.cpus_per_actor,
                "board": board,
                "total": total,
            },
            batch_size=ROWS_PER_BATCH,
            batch_format="pyarrow",
            num_cpus=resources.cpus_per_actor,
            num_gpus=gpus,
            compute=ActorPoolStrategy(min_size=resources.min_actors, max_size=resources.max_actors),
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_RESTARTS,
        )


def _plain(base: BaseJob) -> dict[str, Any]:
    return {
        "model": base.base.model,
        "revision": base.base.revision,
        "adapters": dict(base.adapters),
    }


def _size(query: Query) -> int:
    return sum(len(r.context) + len(r.continuation) for r in query.requests)


def _explain(error: Exception) -> UserError:
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
