"""The model that is trained, and its frozen teachers.

The student is a base with the adapter in training. For the compatibility adapter the
same base also holds the new task adapter: switched in for the new teacher's forward, it
is that teacher, and a third full model is never loaded. The old teacher is a model of
its own, outside the student's module, so that no engine wraps or casts it.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from muscle.config import CompatibilityConfig, VersionConfig
from muscle.errors import UserError
from muscle.losses.distillation import (
    LossSums,
    TokenOutputs,
    cross_entropy_sums,
    distillation_sums,
)
from muscle.losses.needs import different_tokenizers, needed_teachers
from muscle.models.adapters import attach_adapter, new_adapter, using_adapter
from muscle.models.fingerprint import same_tokenizer
from muscle.models.head import head_of
from muscle.models.load import load_base, load_tokenizer
from muscle.models.sequences import Batch
from muscle.models.structure import check_structure, hidden_states
from muscle.storage import fetch
from muscle.training.job import TrainJob

TEACHER = "teacher"
"""The name of the frozen new task adapter beside the one in training."""


@dataclass(frozen=True)
class Teachers:
    """Where the teacher signals that a loss names come from."""

    names: tuple[str, ...]
    old: Any | None  # a frozen PeftModel, when "old" is among the names


class Student(nn.Module):
    """Forward of one micro-batch to its loss sums; the unit that an engine wraps."""

    def __init__(
        self, model: Any, adapter: str, teachers: Teachers, loss: CompatibilityConfig | None
    ):
        super().__init__()
        self.model = model
        self.adapter = adapter
        self.loss = loss
        # In a tuple: a module attribute would become part of the engine's module.
        self._teachers = (teachers,)

    def forward(self, batch: Batch, plain: bool = False) -> LossSums:
        """Loss sums over the batch's N tokens; `plain` is next-token loss whatever is trained."""
        if plain or self.loss is None:
            return cross_entropy_sums(self._outputs(batch), batch.gold, batch.sequence)
        signals = self.signals(batch)  # first, under no_grad: the student's graph comes last
        return distillation_sums(
            self._outputs(batch), signals, batch.gold, batch.sequence, self.loss
        )

    def signals(self, batch: Batch) -> dict[str, TokenOutputs]:
        """The teachers' outputs at the batch's scored positions, without a gradient."""
        (teachers,) = self._teachers
        signals = {}
        with torch.no_grad():
            if "old" in teachers.names:
                assert teachers.old is not None
                signals["old"] = _outputs(teachers.old, batch)
            if "new" in teachers.names:
                with using_adapter(self.model, TEACHER):
                    signals["new"] = _outputs(self.model, batch)
        return signals

    def _outputs(self, batch: Batch) -> TokenOutputs:
        return _outputs(self.model, batch)

    def training_mode(self) -> None:
        """Dropout for the trained adapter only: the frozen base and the teacher stay exact."""
        from peft.tuners.lora import LoraLayer
        from transformers.modeling_layers import GradientCheckpointingLayer

        self.model.eval()
        for module in self.model.modules():
            if isinstance(module, LoraLayer) and self.adapter in module.lora_dropout:
                module.lora_dropout[self.adapter].train()
            # Blocks recompute their activations only in training mode; the flag is set on
            # the block alone, not on what is inside.
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters in training, by name."""
        return {n: p for n, p in self.named_parameters() if p.requires_grad}


def _outputs(model: Any, batch: Batch) -> TokenOutputs:
    hidden_BLD = hidden_states(model, batch.input_ids, batch.attention_mask)
    hidden_ND: Tensor = hidden_BLD[:, :-1][batch.scored]
    return TokenOutputs(hidden_ND, head_of(model))


def build_student(
    job: TrainJob,
    device: str,
    half_adapter: bool,
    loading: AbstractContextManager[bool] | None = None,
) -> tuple[Student, Any]:
    """The student of a job with its teachers, and its tokenizer.

    half_adapter: keep the adapter in the base's dtype (an engine with its own fp32
    master weights) instead of fp32. loading: entered while the student's base is
    loaded; yields whether its weights are partitioned then.

    Raises:
        UserError: a model or adapter that can't be loaded, or two tokenizers.
    """
    tokenizer = load_tokenizer(job.base.model, job.base.revision)
    with loading or nullcontext(False) as partitioned:
        place = None if partitioned else device
        model: Any = load_base(job.base.model, job.base.revision, job.training.dtype, place)
    if not partitioned:  # partitions can't run before the engine has them
        check_structure(model)
    fp32 = not half_adapter
    names = needed_teachers(job.loss) if job.loss is not None else ()
    if job.start is None:
        model = new_adapter(model, job.adapter, job.seed, job.role, fp32=fp32)
    else:
        start = fetch(job.start)
        model = attach_adapter(model, start, job.role, trainable=True, fp32=fp32)
        if "new" in names:
            model = attach_adapter(model, start, TEACHER, fp32=fp32)
    if job.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    old = _old_teacher(job.old, tokenizer, job.training.dtype, device) if "old" in names else None
    student = Student(model, job.role, Teachers(names, old), job.loss)
    _only_trains(student, job.role)
    return student, tokenizer


def _old_teacher(old: VersionConfig | None, tokenizer: Any, dtype: str, device: str) -> Any:
    assert old is not None and old.adapter is not None, "the old teacher is a base and its adapter"
    reason = same_tokenizer(load_tokenizer(old.model, old.revision), tokenizer)
    if reason is not None:
        raise UserError(different_tokenizers(reason))
    model: Any = load_base(old.model, old.revision, dtype, device)
    model = attach_adapter(model, fetch(old.adapter), TEACHER)
    model.requires_grad_(False)
    return model.eval()


def _only_trains(student: Student, adapter: str) -> None:
    """Assert that exactly the adapter's parameters have a gradient."""
    for name, parameter in student.named_parameters():
        if parameter.requires_grad != (f".{adapter}." in name):
            raise AssertionError(f"{name}: requires_grad is {parameter.requires_grad}")
