"""What a training step is told and what it tells back: plain records of JSON values."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel

from muscle.config import (
    AdapterConfig,
    CompatibilityConfig,
    TrackingConfig,
    TrainingConfig,
    VersionConfig,
)


@dataclass(frozen=True)
class CachedTeacher:
    """A teacher's cache: its folder, and what it must have been made of."""

    path: str
    identity: Mapping[str, Any]


@dataclass(frozen=True)
class TrainJob:
    """One adapter to train; everything a worker needs, by value or by path.

    role            whose adapter this is
    title           what progress calls it
    base            the student's base model
    base_fingerprint  what the adapter will be bound to
    start           adapter directory to start from; None draws a fresh one
    old             the old teacher (base and adapter); None when it isn't read, or is cached
    teachers        cached signals by name; one that the loss reads and that isn't here is online
    loss            the compatibility loss; None is plain next-token loss
    deepspeed       a DeepSpeed configuration, by value (workers have no checkout)
    examples        folder with train.parquet and validation.parquet
    output          folder that gets the adapter
    checkpoints     folder of the resumable state, one for all attempts
    checkpoint_seconds  how much work a stop may cost; 0 saves after every update
    logs            folder of the training curves; None keeps them in the artifact only
    tracking        where else curves go
    until           stop after so many epochs with the best one's adapter; None: train to the end
    old_examples    the same examples as the old teacher reads them, where its chat template is
                    another; None: as the student
    questions       folder with train.parquet and validation.parquet of questions, for a loss of
                    level choice, whose `teachers` are folders of scores; None: tokens
    end_of_turn     ids of the tokens that end a turn, (old's, student's), where these differ
    """

    role: Literal["old", "new", "compat"]
    title: str
    base: VersionConfig
    base_fingerprint: str
    adapter: AdapterConfig
    start: str | None
    old: VersionConfig | None
    teachers: Mapping[str, CachedTeacher]
    loss: CompatibilityConfig | None
    training: TrainingConfig
    deepspeed: dict[str, Any]
    gradient_checkpointing: bool
    training_tokens: int | None
    examples: str
    seed: int
    output: str
    checkpoints: str
    checkpoint_seconds: float = 300.0
    logs: str | None = None
    tracking: TrackingConfig | None = None
    until: int | None = None
    old_examples: str | None = None
    end_of_turn: tuple[int, int] | None = None
    questions: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON value; `from_json` reads it back."""
        parts = asdict(self)
        for name in ("base", "adapter", "old", "loss", "training", "tracking"):
            part = getattr(self, name)
            parts[name] = None if part is None else part.model_dump()
        return parts

    @staticmethod
    def from_json(value: dict[str, Any]) -> "TrainJob":
        """The inverse of `to_json`."""
        kinds: dict[str, type[BaseModel]] = {
            "base": VersionConfig,
            "adapter": AdapterConfig,
            "old": VersionConfig,
            "loss": CompatibilityConfig,
            "training": TrainingConfig,
            "tracking": TrackingConfig,
        }
        parts = dict(value)
        for name, kind in kinds.items():
            if parts[name] is not None:
                parts[name] = kind.model_validate(parts[name])
        parts["teachers"] = {n: CachedTeacher(**t) for n, t in parts["teachers"].items()}
        if parts.get("end_of_turn") is not None:
            parts["end_of_turn"] = tuple(parts["end_of_turn"])
        return TrainJob(**parts)


@dataclass(frozen=True)
class EpochRecord:
    """The means over one epoch; losses are per token, natural logarithm.

    `old_share` is the share of tokens that the old model taught, None without one.

    At level choice all is per input: `old_share` is old's weight in the teachers' mixture,
    `cross_entropy` that of right answers among the given ones (0 where nobody labelled the
    input). `validation_loss` is there alone, and chooses the epoch instead of the CE.
    """

    epoch: int
    loss: float
    cross_entropy: float
    old_share: float | None
    kl_old: float | None
    kl_new: float | None
    validation_cross_entropy: float
    validation_loss: float | None = None

    @property
    def criterion(self) -> float:
        """What the best epoch has least of."""
        loss = self.validation_loss
        return self.validation_cross_entropy if loss is None else loss


@dataclass(frozen=True)
class UpdateRecord:
    """One optimizer update, a line of `curve.jsonl`; losses are means over its tokens.

    update, epoch   counted from 1
    examples        seen since the training began, this update's included
    tokens          of this update, in the loss; at level choice inputs
    cross_entropy   None where the loss doesn't compute it
    old_share, kl_old, kl_new  None for plain next-token loss
    gradient_norm   2-norm of the whole gradient before clipping
    """

    update: int
    epoch: int
    examples: int
    tokens: int
    loss: float
    cross_entropy: float | None
    old_share: float | None
    kl_old: float | None
    kl_new: float | None
    learning_rate: float
    gradient_norm: float | None


@dataclass(frozen=True)
class Progress:
    """How far a stage is: `done` of `total` `unit`s, and a short remark."""

    stage: str
    done: int
    total: int
    unit: str
    remark: str = ""


OnProgress = Callable[[Progress], None]
