"""The training loop, the same for one process and for many workers.

Every worker knows the whole order of the data, so the number of tokens of an update is
known everywhere before its first backward, and the split over workers changes nothing
but the order of additions.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from muscle import storage
from muscle.config import TrainingConfig
from muscle.errors import UserError
from muscle.losses.distillation import LossSums
from muscle.models.adapters import write_adapter
from muscle.models.sequences import Batch, Sequences, collate, micro_batches, tokenise
from muscle.tables import read_examples
from muscle.training.checkpoint import TrainState, load_state, save_state
from muscle.training.engine import Engine
from muscle.training.job import EpochRecord, OnProgress, Progress, TrainJob
from muscle.training.order import permutation, updates
from muscle.training.schedule import learning_rate
from muscle.training.student import Student

SUMS = [f.name for f in fields(LossSums)]

TOKENS = {"cpu": 1024, "cuda": 8192}
"""Tokens of one micro-batch by kind of device, where the experiment doesn't say."""


def train(
    job: TrainJob,
    student: Student,
    tokenizer: Any,
    make_engine: Callable[[Student], Engine],
    on_progress: OnProgress,
    after_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> list[EpochRecord]:
    """Train a job's adapter to the end and write it to `job.output`; returns the curve.

    Goes on from `job.checkpoints` where a state is there. `after_epoch` is called on
    every worker after an epoch's state is written.

    Raises:
        UserError: a loss that isn't finite, no examples, storage that can't be written.
    """
    data = _read(job, "train", tokenizer)
    validation = _read(job, "validation", tokenizer)
    state = load_state(job.checkpoints)
    if state.epoch:
        # Before the engine: DeepSpeed copies its master weights from these, never back.
        with torch.no_grad():
            for name, parameter in student.trainable().items():
                parameter.copy_(state.optimizer[f"param/{name}"])
    engine = make_engine(student)
    if state.epoch:
        engine.load_state(state.optimizer, state.updates)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    trainer = _Trainer(job, engine, student, data, validation, pad, on_progress)
    while state.epoch < job.training.epochs:
        record = trainer.epoch(state)
        state.curve.append(record)
        state.epoch += 1
        weights = engine.weights()  # on all workers: gathering is collective
        if state.best_epoch == state.epoch:
            state.best = weights
        state.optimizer = engine.state()
        if engine.rank == 0:
            save_state(job.checkpoints, state)
        after_epoch(record)
    if engine.rank == 0:
        _write_adapter(job, student, state, data.truncated)
    return state.curve


class _Trainer:
    """One epoch at a time: updates, then the validation loss."""

    def __init__(
        self,
        job: TrainJob,
        engine: Engine,
        student: Student,
        data: Sequences,
        validation: Sequences,
        pad: int,
        on_progress: OnProgress,
    ):
        self.job, self.engine, self.student = job, engine, student
        self.data, self.validation, self.pad = data, validation, pad
        self.on_progress = on_progress
        self.tokens = job.training_tokens or TOKENS[torch.device(engine.device).type]

    def epoch(self, state: TrainState) -> EpochRecord:
        """Train one epoch; advances `state.updates`."""
        settings = self.job.training
        order = permutation(len(self.data), self.job.seed, state.epoch)
        slices = updates(len(self.data), settings.update_size)
        total_updates = len(slices) * settings.epochs
        sums = torch.zeros(len(SUMS), dtype=torch.float64)
        tokens = 0
        self.student.training_mode()
        for part in slices:
            count, update_sums = self._update(order[part].tolist(), state, total_updates, settings)
            sums += update_sums
            tokens += count
            state.updates += 1
            remark = (
                f"epoch {state.epoch + 1}/{settings.epochs}, loss {sums[0].item() / tokens:.3f}"
            )
            done = state.epoch * len(self.data) + part.stop
            total = settings.epochs * len(self.data)
            self.on_progress(Progress(self.job.title, done, total, "examples", remark))
        validation = self._validate()
        self._check_finite(validation, "validation loss", state)
        mean = dict(zip(SUMS, (sums / tokens).tolist(), strict=True))
        loss = self.job.loss
        distils = loss is not None and loss.ce_weight < 1
        return EpochRecord(
            epoch=state.epoch + 1,
            loss=mean["loss"],
            cross_entropy=mean["cross_entropy"],
            old_share=mean["old_tokens"] if distils else None,
            kl_old=mean["kl_old"] if distils else None,
            kl_new=mean["kl_new"] if distils else None,
            validation_cross_entropy=validation,
        )

    def _update(
        self, indices: list[int], state: TrainState, total: int, settings: TrainingConfig
    ) -> tuple[int, torch.Tensor]:
        """One optimizer update; returns its tokens and the sums over all workers."""
        tokens = sum(self.data.targets(i) for i in indices)
        batches = self._share(micro_batches(self.data, indices, self.tokens))
        sums = torch.zeros(len(SUMS), dtype=torch.float64)
        for number, (rows, weight) in enumerate(batches):
            result = self.engine.forward(self._batch(self.data, rows))
            loss = result.loss * (weight / tokens)
            self.engine.backward(loss, last=number == len(batches) - 1)
            values = [getattr(result, name).detach().double().cpu() for name in SUMS]
            sums += torch.stack(values) * weight
        sums = self.engine.total(sums)
        self._check_finite(sums[0].item(), "loss", state)
        self.engine.step(learning_rate(state.updates, total, settings))
        return tokens, sums

    def _check_finite(self, value: float, what: str, state: TrainState) -> None:
        if math.isfinite(value):
            return
        setting = "compatibility" if self.job.role == "compat" else "training"
        raise UserError(
            f"training {self.job.role}: the {what} is {value} in epoch {state.epoch + 1}, "
            f"update {state.updates + 1}: lower {setting}.learning_rate or set training.clip_norm"
        )

    def _share(self, batches: list[list[int]]) -> list[tuple[list[int], float]]:
        """This worker's micro-batches with weights; all workers get equally many.

        Engines synchronise at every backward, so a worker short of a batch repeats the
        update's first one with weight 0.
        """
        engine = self.engine
        mine = [(rows, 1.0) for rows in batches[engine.rank :: engine.world]]
        most = math.ceil(len(batches) / engine.world)
        return mine + [(batches[-1], 0.0)] * (most - len(mine))

    def _validate(self) -> float:
        """Mean next-token loss of the validation split, over all workers."""
        self.student.eval()
        everything = range(len(self.validation))
        batches = micro_batches(self.validation, everything, self.tokens)
        total = torch.zeros(1, dtype=torch.float64)
        with torch.no_grad():
            for rows, weight in self._share(batches):
                sums = self.engine.forward(self._batch(self.validation, rows), plain=True)
                total += sums.loss.double().cpu() * weight
        tokens = sum(self.validation.targets(i) for i in everything)
        return float(self.engine.total(total).item() / tokens)

    def _batch(self, data: Sequences, rows: list[int]) -> Batch:
        return collate(data, rows, self.pad).to(self.engine.device)


def _read(job: TrainJob, split: str, tokenizer: Any) -> Sequences:
    examples = read_examples(storage.join(job.examples, f"{split}.parquet"))
    return tokenise(examples, tokenizer, job.training.max_length, job.training.loss_on)


def _write_adapter(job: TrainJob, student: Student, state: TrainState, truncated: int) -> None:
    """Write the best epoch's adapter as PEFT files, with its curve, to `job.output`."""
    model = student.model
    # Named as in the student module; PEFT's own names drop the wrapper and the adapter.
    tensors = {
        name.removeprefix("model.").replace(f".{job.role}.", "."): tensor
        for name, tensor in state.best.items()
    }
    with tempfile.TemporaryDirectory() as temporary:
        write_adapter(tensors, model.peft_config[job.role], temporary, job.base_fingerprint)
        notes = {
            "best_epoch": state.best_epoch,
            "updates": state.updates,
            "truncated_examples": truncated,
            "curve": [asdict(record) for record in state.curve],
        }
        storage.write_json(str(Path(temporary) / "training.json"), notes)
        storage.upload(Path(temporary), job.output)


def train_alone(job: TrainJob, on_progress: OnProgress, device: str | None = None) -> None:
    """Train a job in this process, without Ray and DeepSpeed (`PlainEngine`)."""
    from muscle.training.engine import PlainEngine
    from muscle.training.student import build_student

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    student, tokenizer = build_student(job, device, half_adapter=False)
    train(job, student, tokenizer, lambda s: PlainEngine(s, job.training, device), on_progress)
