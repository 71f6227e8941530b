"""The training loop, the same for one process and for many workers.

Every worker knows the whole order of the data, so the number of tokens of an update is
known everywhere before its first backward, and the split over workers changes nothing
but the order of additions.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import fields
from typing import Any

import torch

from muscle.errors import NotFiniteError
from muscle.losses.distillation import LossSums
from muscle.models.sequences import Batch, micro_batches
from muscle.training.batches import Batches, MicroBatch, Split, share
from muscle.training.cached import CachedTeachers
from muscle.training.checkpoint import TrainState, load_state, save_state
from muscle.training.data import for_old, left_out, read_splits
from muscle.training.dropout import drawn, has_dropout
from muscle.training.engine import Engine
from muscle.training.export import write_trained
from muscle.training.job import EpochRecord, OnProgress, Progress, TrainJob, UpdateRecord
from muscle.training.order import permutation, updates
from muscle.training.schedule import learning_rate
from muscle.training.student import Student, check_start
from muscle.training.tracking import Tracking, open_tracking

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
    *,
    save_now: Callable[[], bool] = lambda: False,
) -> list[EpochRecord]:
    """Train a job's adapter, to the end or as far as it says, and write it to `job.output`.

    Returns the curve.

    Goes on from `job.checkpoints` where a state is there.

    after_epoch: called on every worker after an epoch's state is written.
    save_now: asked on every worker at every update; True on any of them saves the state.

    Raises:
        UserError: a loss that isn't finite, no examples, storage that can't be written,
            a tracker that isn't installed, a teacher cache that doesn't belong to the job,
            a compat adapter that doesn't start at the new task model.
    """
    splits = read_splits(job, tokenizer, tree=student.masks is not None)
    data = splits["train"]
    state, damage = load_state(job.checkpoints)
    if state.updates:
        # Before the engine: DeepSpeed copies its master weights from these, never back.
        with torch.no_grad():
            for name, parameter in student.trainable().items():
                parameter.copy_(state.optimizer[f"param/{name}"])
    engine = make_engine(student)
    if state.updates:
        engine.load_state(state.optimizer, state.updates)
        state.optimizer = {}
    if engine.rank:
        state.best = {}  # rank 0 alone keeps and writes them
    _check_agreement(engine, state)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    with (
        CachedTeachers(job, data) as cached,
        Batches(splits, pad, engine.device, cached.attach, for_old(job, data)) as batches,
        _Trainer(job, engine, student, batches, state, on_progress, save_now) as trainer,
    ):
        cached.give_heads(student, engine.device)
        for remark in (damage, left_out(data)):
            if remark is not None:
                trainer.remark(remark)
        if not state.updates:
            trainer.check_start()
        while state.epoch < (job.until or job.training.epochs):
            cached.ahead(trainer.order()[state.position :])
            after_epoch(trainer.epoch())
        if engine.rank == 0:
            write_trained(job, student, state, data.truncated)
    return state.curve


class _Trainer:
    """One epoch at a time: updates, then the validation loss; checkpoints on the way."""

    def __init__(
        self,
        job: TrainJob,
        engine: Engine,
        student: Student,
        batches: Batches,
        state: TrainState,
        on_progress: OnProgress,
        save_now: Callable[[], bool],
    ):
        self.job, self.engine, self.student = job, engine, student
        self.batches, self.state, self.save_now = batches, state, save_now
        self.data, self.validation = batches.splits["train"], batches.splits["validation"]
        self.on_progress = on_progress
        self.remarks: list[str] = []
        self.tokens = job.training_tokens or TOKENS[torch.device(engine.device).type]
        self.updates = updates(len(self.data), job.training.update_size)
        # Without trackers on other workers: these have nothing to write.
        self.tracking = Tracking(self.remark)
        if engine.rank == 0:
            self.tracking = open_tracking(job, state.records, self.remark)
        self.saved_at = self.ended_at = time.monotonic()

    def __enter__(self) -> "_Trainer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        whole = self.state.epoch >= self.job.training.epochs
        self.tracking.close(done=kind is None and whole)

    def order(self) -> list[int]:
        """The rows of the present epoch, in order."""
        order: list[int] = permutation(len(self.data), self.job.seed, self.state.epoch).tolist()
        return order

    def check_start(self) -> None:
        """Before the first update: the student is the new teacher (`student.check_start`)."""
        split: Split = "train"
        rows = self._share(self.order()[self.updates[0]])[0].rows
        if self.job.questions is not None:  # in folds other adapters teach the training split
            split, rows = "validation", list(range(min(len(rows), len(self.validation))))
        self.student.eval()
        with torch.no_grad():
            check_start(self.student, self.engine.forward, self.batches.make(split, rows))

    def epoch(self) -> EpochRecord:
        """Train what is left of the present epoch, validate, and save."""
        state, order = self.state, self.order()
        state.sums = state.sums or [0.0] * len(SUMS)
        parts = [part for part in self.updates if part.start >= state.position]
        plan = (micro for part in parts for micro in self._share(order[part]))
        self.student.training_mode()
        with closing(self.batches.stream("train", plan)) as stream:
            for part in parts:
                save = self._update(stream, order[part])
                if save:
                    self._save()
        validation, loss = self._validate()
        self._check_finite(validation, "validation loss")
        mean = [value / state.tokens for value in state.sums]
        record = EpochRecord(
            epoch=state.epoch + 1,
            cross_entropy=mean[SUMS.index("cross_entropy")],
            validation_cross_entropy=validation,
            validation_loss=loss,
            **self._means(mean),
        )
        state.curve.append(record)
        state.epoch, state.position, state.sums, state.tokens = state.epoch + 1, 0, [], 0
        weights = self.engine.weights()  # on all workers: gathering is collective
        if state.best_epoch == state.epoch and self.engine.rank == 0:
            state.best = weights
        self.tracking.epoch(record, state.updates)
        self._save()
        return record

    def _update(self, stream: Iterator[tuple[MicroBatch, Batch]], rows: list[int]) -> bool:
        """One optimizer update; returns whether the state is to be saved now."""
        state, settings = self.state, self.job.training
        tokens = sum(self.data.targets(row) for row in rows)
        sums, due = self._gradient(stream, tokens)
        self._check_finite(sums[SUMS.index("loss")], "loss")
        rate = learning_rate(state.updates, len(self.updates) * settings.epochs, settings)
        norm = self.engine.step(rate)
        if norm is not None:
            self._check_finite(norm, "gradient norm")
        state.updates += 1
        state.position += len(rows)
        state.tokens += tokens
        state.sums = [a + b for a, b in zip(state.sums, sums, strict=True)]
        mean = [value / tokens for value in sums]
        computes_ce = self.job.loss is None or self.job.loss.ce_weight > 0
        record = UpdateRecord(
            update=state.updates,
            epoch=state.epoch + 1,
            examples=state.epoch * len(self.data) + state.position,
            tokens=tokens,
            cross_entropy=mean[SUMS.index("cross_entropy")] if computes_ce else None,
            learning_rate=rate,
            gradient_norm=norm,
            **self._means(mean),
        )
        state.records.append(record)
        now = time.monotonic()
        self.tracking.update(record, now - self.ended_at)
        self.ended_at = now
        loss = state.sums[SUMS.index("loss")] / state.tokens
        self._tell(f"epoch {state.epoch + 1}/{settings.epochs}, loss {loss:.3f}")
        return due

    def _gradient(
        self, stream: Iterator[tuple[MicroBatch, Batch]], tokens: int
    ) -> tuple[list[float], bool]:
        """Backward of an update's micro-batches; the sums over all workers, and if to save.

        The decision to save travels with the sums, so that it costs no exchange of its own
        and no worker is ever of another opinion.
        """
        state, engine = self.state, self.engine
        sums = torch.zeros(len(SUMS) + 1, dtype=torch.float64, device=engine.device)
        for micro, batch in stream:
            position = (self.job.seed, state.updates, micro.number)
            with drawn(self.student, engine.device, *position):
                result = engine.forward(batch)
                engine.backward(result.loss * (micro.weight / tokens), last=micro.last)
            values = [getattr(result, name).detach().double() for name in SUMS]
            sums[:-1] += torch.stack(values) * micro.weight
            if micro.last:
                break
        waited = time.monotonic() - self.saved_at
        mine = engine.rank == 0 and waited >= self.job.checkpoint_seconds
        sums[-1] = float(self.save_now() or mine)
        *values, saves = engine.total(sums).tolist()
        return values, saves > 0

    def _means(self, mean: Sequence[float]) -> dict[str, Any]:
        """What every record says of a mean over tokens; the teachers' share where they teach."""
        loss = self.job.loss
        distils = loss is not None and loss.ce_weight < 1
        named = dict(zip(SUMS, mean, strict=True))
        return {
            "loss": named["loss"],
            "old_share": named["old_tokens"] if distils else None,
            "kl_old": named["kl_old"] if distils else None,
            "kl_new": named["kl_new"] if distils else None,
        }

    def _save(self) -> None:
        self.state.optimizer = self.engine.state()  # on all workers
        if self.engine.rank == 0:
            save_state(self.job.checkpoints, self.state)
            self.tracking.saved()
        self.state.optimizer = {}
        self.saved_at = time.monotonic()

    def remark(self, text: str) -> None:
        """Say something once that stays to be read beside the progress."""
        self.remarks.append(text)
        self._tell("")

    def _tell(self, text: str) -> None:
        state, epochs = self.state, self.job.training.epochs
        done, total = state.epoch * len(self.data) + state.position, epochs * len(self.data)
        remark = "; ".join([*([text] if text else []), *self.remarks])
        self.on_progress(Progress(self.job.title, done, total, "examples", remark))

    def _check_finite(self, value: float, what: str) -> None:
        if math.isfinite(value):
            return
        setting = "compatibility" if self.job.role == "compat" else "training"
        raise NotFiniteError(
            f"training {self.job.role}: the {what} is {value} in epoch {self.state.epoch + 1}, "
            f"update {self.state.updates + 1}: lower {setting}.learning_rate or set "
            "training.clip_norm"
        )

    def _share(self, rows: list[int]) -> list[MicroBatch]:
        # Dropout draws by micro-batch: these must then be the same for any number of workers.
        workers = 1 if has_dropout(self.student) else self.engine.world
        batches = micro_batches(self.data, rows, self.tokens, workers)
        return share(batches, self.engine.rank, self.engine.world)

    def _validate(self) -> tuple[float, float | None]:
        """The validation split over all workers: mean next-token loss, and None; of questions
        the mean cross-entropy of their answers, and the mean of the loss in training."""
        self.student.eval()
        everything = range(len(self.validation))
        batches = micro_batches(self.validation, everything, self.tokens, self.engine.world)
        plan = share(batches, self.engine.rank, self.engine.world)
        by_choice = self.job.questions is not None
        total = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad(), closing(self.batches.stream("validation", plan)) as stream:
            for micro, batch in stream:
                sums = self.engine.forward(batch, plain=not by_choice)
                first = sums.cross_entropy if by_choice else sums.loss
                total += torch.stack([first, sums.loss]).double().cpu() * micro.weight
        mean, loss = (self.engine.total(total) / self.validation.all_targets()).tolist()
        return mean, loss if by_choice else None


def _check_agreement(engine: Engine, state: TrainState) -> None:
    """All workers must go on from one state, else they would wait for each other for ever."""
    values = torch.tensor([float(state.updates), float(state.epoch)], dtype=torch.float64)
    if engine.total(values).tolist() != (values * engine.world).tolist():
        raise RuntimeError("the workers read different checkpoints")


def train_alone(job: TrainJob, on_progress: OnProgress, device: str | None = None) -> None:
    """Train a job in this process, without Ray and DeepSpeed (`PlainEngine`)."""
    from muscle.training.engine import PlainEngine
    from muscle.training.student import build_student

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    student, tokenizer = build_student(job, device, half_adapter=False)
    train(job, student, tokenizer, lambda s: PlainEngine(s, job.training, device), on_progress)
