"""Training curves: `curve.jsonl`, TensorBoard, MLflow, Weights & Biases.

Only rank 0 writes. A resumed training goes on in the same file and the same MLflow or W&B
run. A tracker that fails once training runs is dropped with a remark: curves are no reason
to lose a training.
"""

import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from muscle import storage
from muscle.compatibility_config import at_level, inputs_text
from muscle.training.checkpoint import record_lines
from muscle.training.job import EpochRecord, TrainJob, UpdateRecord
from muscle.training.settings import check_tracking

MLFLOW_EXPERIMENT = "muscle"


class Tracker(Protocol):
    """One place where curves go. Any error of its methods ends it, and nothing else."""

    name: str

    def update(self, record: UpdateRecord, seconds: float) -> None:
        """One update, and how long it took."""
        ...

    def epoch(self, record: EpochRecord, update: int) -> None:
        """The validation after an epoch's last update."""
        ...

    def saved(self) -> None:
        """A checkpoint stands: what a later start will go on from."""
        ...

    def close(self, done: bool) -> None:
        """The end; `done` is False where the training was stopped or failed."""
        ...


class Tracking:
    """All trackers of a job; with none of them on workers other than rank 0."""

    def __init__(self, on_remark: Callable[[str], None]):
        self.on_remark = on_remark
        self.trackers: list[Tracker] = []

    def start(self, name: str, make: Callable[[], Tracker]) -> None:
        """Add a tracker, unless it can't start."""
        try:
            self.trackers.append(make())
        except Exception as error:
            self._drop(name, error)

    def update(self, record: UpdateRecord, seconds: float) -> None:
        self._each(lambda t: t.update(record, seconds))

    def epoch(self, record: EpochRecord, update: int) -> None:
        self._each(lambda t: t.epoch(record, update))

    def saved(self) -> None:
        self._each(lambda t: t.saved())

    def close(self, done: bool) -> None:
        self._each(lambda t: t.close(done))

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for tracker in list(self.trackers):
            try:
                tell(tracker)
            except Exception as error:  # their libraries raise whatever they like
                self.trackers.remove(tracker)
                self._drop(tracker.name, error)

    def _drop(self, name: str, error: Exception) -> None:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        self.on_remark(f"{name} stopped: {reason}")


def open_tracking(
    job: TrainJob, records: Sequence[UpdateRecord], on_remark: Callable[[str], None]
) -> Tracking:
    """The trackers that a job asks for, going on after `records`; for rank 0.

    Raises:
        UserError: a package that isn't installed.
    """
    check_tracking(job.tracking)
    tracking = Tracking(on_remark)
    config = job.tracking
    if job.logs is not None:
        logs = job.logs
        tracking.start("curve.jsonl", lambda: CurveFile(logs, records))
        if config is None or config.tensorboard:
            tracking.start("TensorBoard", lambda: TensorBoard(logs, len(records)))
    if config is not None and config.mlflow is not None:
        uri = config.mlflow
        tracking.start("MLflow", lambda: MLflow(uri, job, len(records)))
    if config is not None and config.wandb is not None:
        project = config.wandb
        tracking.start("Weights & Biases", lambda: WandB(project, job, len(records)))
    return tracking


def run_id(job: TrainJob) -> str:
    """What a training is called by trackers: the same whenever it is resumed."""
    return hashlib.sha256(storage.absolute(job.checkpoints).encode()).hexdigest()[:16]


def metrics(record: UpdateRecord, seconds: float) -> dict[str, float]:
    """An update's numbers, without those that this loss doesn't have."""
    values = {n: v for n, v in asdict(record).items() if n != "update" and v is not None}
    return {**values, "seconds": seconds, "tokens_per_second": record.tokens / max(seconds, 1e-9)}


def validation(record: EpochRecord) -> dict[str, float]:
    """An epoch's validation numbers."""
    found = {"validation_cross_entropy": record.validation_cross_entropy}
    if record.validation_loss is not None:
        found["validation_loss"] = record.validation_loss
    return found


def settings(job: TrainJob) -> dict[str, str]:
    """What a run is shown with: no paths, as they say nothing elsewhere."""
    parts = {"training": job.training.model_dump(), "adapter": job.adapter.model_dump()}
    if job.loss is not None:
        loss = {**job.loss.model_dump(), "inputs": inputs_text(job.loss.inputs)}
        parts["compatibility"] = at_level(loss)
    flat = {f"{part}.{n}": str(v) for part, values in parts.items() for n, v in values.items()}
    return {"role": job.role, "base": job.base.model, "seed": str(job.seed), **flat}


class CurveFile:
    """`curve.jsonl`: appended to where that is possible, else written at checkpoints."""

    name = "curve.jsonl"

    def __init__(self, logs: str, records: Sequence[UpdateRecord]):
        self.path = storage.join(logs, "curve.jsonl")
        self.remote = storage.is_remote(logs)
        self.text = record_lines(records)
        # Whole: an earlier start may have written past the checkpoint.
        storage.write_bytes(self.path, self.text.encode())

    def update(self, record: UpdateRecord, seconds: float) -> None:
        line = record_lines([record])
        if self.remote:
            self.text += line
            return
        with open(storage.absolute(self.path), "a", encoding="utf-8") as file:
            file.write(line)

    def epoch(self, record: EpochRecord, update: int) -> None:
        pass  # training.json has the epochs

    def saved(self) -> None:
        if self.remote:
            storage.write_bytes(self.path, self.text.encode())

    def close(self, done: bool) -> None:
        self.saved()


class TensorBoard:
    """Event files; those of a remote folder are written here and uploaded at checkpoints."""

    name = "TensorBoard"

    def __init__(self, logs: str, done: int):
        from tensorboardX import SummaryWriter

        self.logs = logs
        self.local = tempfile.TemporaryDirectory() if storage.is_remote(logs) else None
        folder = self.local.name if self.local else storage.absolute(logs)
        # What an earlier start wrote past the checkpoint is hidden by `purge_step`.
        self.writer = SummaryWriter(
            folder,
            purge_step=done + 1 if done else None,
            # Its names tell starts of one second not apart, and would overwrite the first.
            filename_suffix=f".{done:08d}-{uuid.uuid4().hex[:6]}",
        )

    def update(self, record: UpdateRecord, seconds: float) -> None:
        for name, value in metrics(record, seconds).items():
            self.writer.add_scalar(f"train/{name}", value, record.update)

    def epoch(self, record: EpochRecord, update: int) -> None:
        for name, value in validation(record).items():
            self.writer.add_scalar(f"train/{name}", value, update)

    def saved(self) -> None:
        self.writer.flush()
        if self.local is not None:
            storage.upload(Path(self.local.name), self.logs)

    def close(self, done: bool) -> None:
        self.writer.close()
        if self.local is not None:
            storage.upload(Path(self.local.name), self.logs)
            self.local.cleanup()


class MLflow:
    """One run, found again by a tag; updates that it already has aren't logged twice."""

    name = "MLflow"

    def __init__(self, uri: str, job: TrainJob, done: int):
        # A server that is gone is asked for seconds, not for the default minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", MLFLOW_EXPERIMENT)
        there = self.client.get_experiment_by_name(name)
        experiment = there.experiment_id if there else self.client.create_experiment(name)
        tag = run_id(job)
        found = self.client.search_runs([experiment], f"tags.muscle_training = '{tag}'")
        self.logged = 0
        if found:
            self.run = found[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
            history = self.client.get_metric_history(self.run, "loss")
            self.logged = max((m.step for m in history), default=0)
        else:
            tags = {"muscle_training": tag}
            self.run = self.client.create_run(experiment, tags=tags, run_name=job.title).info.run_id
            for key, value in settings(job).items():
                self.client.log_param(self.run, key, value)

    def update(self, record: UpdateRecord, seconds: float) -> None:
        if record.update > self.logged:
            self._log(metrics(record, seconds), record.update)

    def epoch(self, record: EpochRecord, update: int) -> None:
        self._log(validation(record), update)

    def _log(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run, [Metric(n, v, now, step) for n, v in values.items()])

    def saved(self) -> None:
        pass

    def close(self, done: bool) -> None:
        self.client.set_terminated(self.run, "FINISHED" if done else "KILLED")


class WandB:
    """One run under an id of our own, resumed where it is there."""

    name = "Weights & Biases"

    def __init__(self, project: str, job: TrainJob, done: int):
        import wandb

        self.local = tempfile.TemporaryDirectory() if self._needs_room(job) else None
        folder = self.local.name if self.local else storage.absolute(str(job.logs))
        self.run = wandb.init(
            project=project,
            id=run_id(job),
            name=job.title,
            resume="allow",
            config=settings(job),
            dir=folder,
            settings=wandb.Settings(silent=True, init_timeout=30.0),
        )
        # Its own counter only grows, so what came after the checkpoint is logged once.
        self.run.define_metric("*", step_metric="update")
        self.done = max(done, int(self.run.summary.get("update") or 0))

    @staticmethod
    def _needs_room(job: TrainJob) -> bool:
        return job.logs is None or storage.is_remote(job.logs)

    def update(self, record: UpdateRecord, seconds: float) -> None:
        if record.update > self.done:
            self.run.log({**metrics(record, seconds), "update": record.update})

    def epoch(self, record: EpochRecord, update: int) -> None:
        self.run.log({**validation(record), "update": update})

    def saved(self) -> None:
        pass

    def close(self, done: bool) -> None:
        self.run.finish(exit_code=0 if done else 1)
        if self.local is not None:
            with suppress(OSError):
                self.local.cleanup()
