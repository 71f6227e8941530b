"""Train adapters with Ray Train's TorchTrainer and DeepSpeed."""

import os
import queue
import tempfile
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from muscle.config import ResourcesConfig
from muscle.errors import SomeFailedError, UserError
from muscle.launch import cluster
from muscle.launch.progress import Poster, failure_of, post_failure, watching
from muscle.launch.rendezvous import NarrowTorchConfig
from muscle.launch.waiting import TRAINING_WORKER, Patience, patient, waits_for
from muscle.training.job import EpochRecord, OnProgress, Progress, TrainJob

RESIZE_SECONDS = 60.0
"""How often an elastic training asks whether it can have more workers. Growing costs a restart,
and the work since the last checkpoint."""


def train_all(
    jobs: Sequence[TrainJob], resources: ResourcesConfig, on_progress: OnProgress
) -> None:
    """Train all jobs, side by side as far as the machine or cluster has room.

    A lost worker or node costs the work since the last checkpoint. With `min_workers` a
    training goes on with what is left, and grows again when there is more.

    Raises:
        UserError: what a worker found wrong, as it said it.
        SomeFailedError: the same, of several jobs.
    """
    if not jobs:
        return
    width = _side_by_side(len(jobs), resources)
    errors: queue.Queue[tuple[str, Exception | None]] = queue.Queue()
    room = threading.Semaphore(width)
    ask = cluster.training_ask(resources, width)
    working: set[str] = set()  # a set's own methods need no lock

    def waits() -> str:
        return waits_for(ask, TRAINING_WORKER, ask.count * len(working))

    def train(job: TrainJob, board: Any, patience: Patience) -> None:
        with room:
            working.add(job.title)
            patience.only(working)
            try:
                _train(job, resources, width, board)
            except Exception as error:
                errors.put((job.title, error))
            else:
                errors.put((job.title, None))
            finally:
                working.discard(job.title)
                patience.only(working)

    with patient(on_progress, waits) as patience, watching(patience) as board:
        patience.only(working)
        for job in jobs:
            patience(Progress(job.title, 0, 1, "examples", "waits for workers"))
        # Daemons, so that Ctrl-C ends the program whatever Ray is waiting for.
        for job in jobs:
            threading.Thread(target=train, args=(job, board, patience), daemon=True).start()
        ended = [errors.get() for _ in jobs]
    failures = {title: error for title, error in ended if error is not None}
    said = {title: error for title, error in failures.items() if isinstance(error, UserError)}
    if len(jobs) > 1 and said and len(said) == len(failures):
        raise SomeFailedError(said)
    for error in failures.values():
        raise error


def _side_by_side(jobs: int, resources: ResourcesConfig) -> int:
    """How many trainings run at once, each with all of its workers: an elastic one
    shrinks where nodes are lost, not to make room."""
    room = cluster.room(resources)
    return max(1, jobs if room is None else min(jobs, room))


def _train(job: TrainJob, resources: ResourcesConfig, width: int, board: Any) -> None:
    ask = cluster.training_ask(resources, width)
    gpus, cpus = ask.bundle.get("GPU", 0.0), int(ask.bundle["CPU"])
    run_id = uuid.uuid4().hex[:8]
    scaling: dict[str, Any] = {
        "num_workers": _workers(resources),
        "elastic_resize_monitor_interval_s": RESIZE_SECONDS,
        "use_gpu": gpus > 0,
        "resources_per_worker": dict(ask.bundle),
        "label_selector": dict(ask.labels) or None,
    }
    # What Ray Train writes of its own dies with it, and checkpoints are ours: so it needs no
    # store, and no client of its own for one.
    scratch = tempfile.TemporaryDirectory(prefix="muscle-train-")
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "job": job.to_json(),
            "board": board,
            "cpus": cpus,
        },
        torch_config=NarrowTorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(**scaling),
        run_config=RunConfig(
            name=run_id,
            storage_path=scratch.name,
            failure_config=FailureConfig(max_failures=resources.max_failures),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        said = failure_of(board, job.title)
        if said is not None:
            raise said from None
        raise UserError(f"{job.title} failed: {_reason(error)}") from error
    finally:
        scratch.cleanup()


def _workers(resources: ResourcesConfig) -> int | tuple[int, int]:
    """A fixed number, or (least, most)."""
    if resources.min_workers is None or resources.min_workers == resources.workers:
        return resources.workers
    return resources.min_workers, resources.workers


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def _worker(config: dict[str, Any]) -> None:
    """What every training worker runs; imports late, since only workers need torch."""
    job, board = TrainJob.from_json(config["job"]), config["board"]
    said = failure_of(board, job.title)
    if said is not None:  # a restart can't mend what a user must
        raise said
    try:
        _train_here(job, config["cpus"], Poster(board))
    except UserError as error:
        # Not into a file: what is wrong may be that none can be written.
        post_failure(board, job.title, error)
        raise


def _preemption_notice() -> Callable[[], bool]:
    """Says once of every notice that a node of ours is about to be taken away.

    `ray.train.get_preemption_info` waits for all workers at every call; what it reads is
    here already, and the loop lets the workers agree itself.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    seen: list[Any] = [None]

    def noticed() -> bool:
        info = get_train_context().preemption_context.preemption_info
        new = info is not None and info != seen[0]
        seen[0] = info
        return new

    return noticed


def _train_here(job: TrainJob, cpus: int, poster: Poster) -> None:
    os.environ["OMP_NUM_THREADS"] = str(cpus)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    from muscle.training import deepspeed_engine as ds
    from muscle.training.loop import train
    from muscle.training.student import Student, build_student

    torch.set_num_threads(cpus)
    ds.prepare_environment(torch.cuda.is_available())
    context = ray.train.get_context()
    os.environ["LOCAL_RANK"] = str(context.get_local_rank())
    device = "cpu"
    if torch.cuda.is_available():
        device = str(ray.train.torch.get_device())
    ds.join_workers()
    config = job.deepspeed
    loading = ds.partitioned_loading(config, job.training)
    student, tokenizer = build_student(job, device, half_adapter=True, loading=loading)

    def engine(student: Student) -> ds.DeepSpeedEngine:
        return ds.DeepSpeedEngine(student, job.training, device, config)

    def after_epoch(record: EpochRecord) -> None:
        ray.train.report(asdict(record))

    silent = context.get_world_rank() != 0
    tell: OnProgress = (lambda progress: None) if silent else poster
    train(job, student, tokenizer, engine, tell, after_epoch, save_now=_preemption_notice())
