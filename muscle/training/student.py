"""The model that is trained, and its frozen teachers.

The student is a base with the adapter in training. For the compatibility adapter the
same base also holds the new task adapter: switched in for the new teacher's forward, it
is that teacher, and a third full model is never loaded. The old teacher is a model of
its own, outside the student's module, so that no engine wraps or casts it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from muscle.config import CompatibilityConfig, VersionConfig
from muscle.copies import fetch
from muscle.errors import UserError
from muscle.evaluation.attention import TreeMasks, known_masks, tree_masks
from muscle.losses.choices import choice_sums
from muscle.losses.distillation import (
    LossSums,
    TokenOutputs,
    cross_entropy_sums,
    distillation_sums,
)
from muscle.losses.needs import different_tokenizers, needed_teachers
from muscle.models.adapters import attach_adapter, new_adapter, using_adapter
from muscle.models.fingerprint import same_ids
from muscle.models.head import Head, exchanged, head_of
from muscle.models.load import load_base, load_tokenizer
from muscle.models.sequences import Batch
from muscle.models.structure import check_structure, hidden_states, unwrap
from muscle.training.job import TrainJob
from muscle.training.questions import ChoiceBatch
from muscle.types import Version

TEACHER = "teacher"
"""The name of the frozen new task adapter beside the one in training."""


MOST_KL = {torch.float32: 1e-6, torch.float64: 1e-6, torch.bfloat16: 1e-2}
"""What rounding makes of a KL of 0 per token, and no more."""

START = {
    "token": CompatibilityConfig(mask="never-old", temperature=1.0),
    "choice": CompatibilityConfig(level="choice", teacher="new", temperature=1.0),
}
"""By level, the loss whose value is the student's distance from the new teacher."""


@dataclass(frozen=True)
class Teachers:
    """Where the teacher signals that a loss names come from.

    old: a frozen PeftModel, where "old" is among the names and isn't cached. A cached signal
    comes with the batch; `old_head` is then what is left of the old teacher. `end_of_turn` are
    the ids of what ends a turn, (old's, the student's), which change places in old's head.
    """

    names: tuple[Version, ...] = ()
    old: Any | None = None
    old_head: Head | None = None
    end_of_turn: tuple[int, int] | None = None


class Student(nn.Module):
    """Forward of one micro-batch to its loss sums; the unit that an engine wraps.

    masks: how the model takes a tree of answers, for a loss of level choice; None runs each
    answer alone.
    """

    def __init__(
        self,
        model: Any,
        adapter: str,
        teachers: Teachers,
        loss: CompatibilityConfig | None,
        masks: TreeMasks | None = None,
    ):
        super().__init__()
        self.masks = masks
        self.model = model
        self.adapter = adapter
        self.loss = loss
        # In a list: a module attribute would become part of the engine's module.
        self._teachers = [teachers]
        # Entered while the head's weight is read; an engine that partitions it gathers it then.
        self.gathered: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def teachers(self) -> Teachers:
        """The teachers beside the student's own base."""
        return self._teachers[0]

    def use_old_head(self, head: Head) -> None:
        """The old teacher is cached: its head is all that is needed of it."""
        pair = self.teachers.end_of_turn
        head = head if pair is None else exchanged(head, pair)
        self._teachers = [replace(self.teachers, old_head=head)]

    def forward(self, batch: Batch | ChoiceBatch, plain: bool = False) -> LossSums:
        """Loss sums over the batch's N tokens; `plain` is next-token loss whatever is trained.
        Of questions, over its Q inputs."""
        if isinstance(batch, ChoiceBatch):
            return self._of_choices(batch)
        loss = None if plain else self.loss
        # Teachers first, under no_grad: the student's graph comes last.
        signals = {} if loss is None else self.hidden_of_teachers(batch)
        hidden_ND = scored_hidden(self.model, batch)
        with self.gathered():
            head = head_of(self.model)
            student = TokenOutputs(hidden_ND, head)
            if loss is None:
                return cross_entropy_sums(student, batch.gold, batch.sequence)
            heads = {"old": self._old_head(), "new": head}  # new and student share their base
            taught = {name: TokenOutputs(h, heads[name] or head) for name, h in signals.items()}
            return distillation_sums(student, taught, batch.gold, batch.sequence, loss)

    def _of_choices(self, batch: ChoiceBatch) -> LossSums:
        assert self.loss is not None, "questions are for a compatibility loss"
        hidden_ND = tree_hidden(self.model, batch, self.masks)
        with self.gathered():
            head = head_of(self.model)
            return choice_sums(hidden_ND, head, batch.targets, batch.teachers, self.loss)

    def hidden_of_teachers(self, batch: Batch) -> dict[str, Tensor]:
        """The teachers' hidden states [N, D] at the batch's scored positions, without a gradient:
        those that came with the batch, and the others by a forward."""
        names = self.teachers.names
        signals: dict[str, Tensor] = {n: batch.teachers[n] for n in names if n in batch.teachers}
        with torch.no_grad():
            if "old" in names and "old" not in signals:
                assert self.teachers.old is not None, "the old teacher is neither here nor cached"
                # Its own rendering of the same answers, where its chat template is another.
                read = replace(batch, **dict[str, Any](batch.old))
                signals["old"] = scored_hidden(self.teachers.old, read)
            if "new" in names and "new" not in signals:
                with using_adapter(self.model, TEACHER):
                    signals["new"] = scored_hidden(self.model, batch)
        return signals

    def _old_head(self) -> Head | None:
        teachers = self.teachers
        if teachers.old_head is None and teachers.old is not None:
            return head_of(teachers.old)
        return teachers.old_head

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


def scored_hidden(model: Any, batch: Batch) -> Tensor:
    """Final hidden states [N, D] at the positions whose next token is in the loss."""
    hidden_BLD = hidden_states(model, batch.input_ids, batch.attention_mask)
    hidden_ND: Tensor = hidden_BLD[:, :-1][batch.scored]
    return hidden_ND


def tree_hidden(model: Any, batch: ChoiceBatch, masks: TreeMasks | None) -> Tensor:
    """Final hidden states [N, D] of the nodes at which something is scored."""
    if masks is None:
        # Right padding needs no mask: in a causal model no token sees what follows it.
        hidden_BLD = hidden_states(model, batch.input_ids)
    else:
        weight = unwrap(model).get_input_embeddings().weight
        added = masks.of(batch.ends, batch.position_ids, weight)
        hidden_BLD = hidden_states(model, batch.input_ids, added, batch.position_ids)
    return hidden_BLD.flatten(0, 1)[batch.scored]


def check_start(student: Student, forward: Callable[[Any], LossSums], batch: Any) -> None:
    """Require that an untrained student is the new teacher: mean KL about 0 at T = 1.

    forward: the engine's. Call it in eval mode, without gradients. `batch` is a Batch, or a
    ChoiceBatch.

    Raises:
        UserError: it isn't; a cached signal then belongs to another model.
    """
    loss = student.loss
    if loss is None or "new" not in student.teachers.names:
        return
    count = len(batch.targets.gold) if isinstance(batch, ChoiceBatch) else len(batch.gold)
    student.loss = START[loss.level]
    try:
        kl = forward(batch).kl_new.item() / count
    finally:
        student.loss = loss
    most = MOST_KL[next(student.model.parameters()).dtype]
    if not kl <= most:  # NaN too
        unit = "token" if loss.level == "token" else "input"
        raise UserError(
            f"training compat: at step 0 its KL to the new task model is {kl:.3g} per {unit}, "
            f"where it must be below {most:g}: it doesn't start at the model that was cached as "
            "its teacher; delete the teachers' artifacts and run again, or set "
            "resources.teachers: online"
        )


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
    by_choice = job.loss is not None and job.loss.by_choice  # its teachers are scores
    if job.start is None:
        model = new_adapter(model, job.adapter, job.seed, job.role, fp32=fp32)
    else:
        start = fetch(job.start)
        model = attach_adapter(model, start, job.role, trainable=True, fp32=fp32)
        if not by_choice and "new" in names and "new" not in job.teachers:
            model = attach_adapter(model, start, TEACHER, fp32=fp32)
    if job.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    old = None
    if not by_choice and "old" in names and "old" not in job.teachers:
        old = _old_teacher(job.old, tokenizer, job.training.dtype, device)
    masks: TreeMasks | str | None = None
    if by_choice:
        masks = known_masks(model) if partitioned else tree_masks(model)
    teachers = Teachers(names, old, end_of_turn=job.end_of_turn)
    student = Student(
        model, job.role, teachers, job.loss, None if isinstance(masks, str) else masks
    )
    if old is not None and job.end_of_turn is not None:
        student.use_old_head(head_of(old))
    _only_trains(student, job.role)
    return student, tokenizer


def _old_teacher(old: VersionConfig | None, tokenizer: Any, dtype: str, device: str) -> Any:
    assert old is not None and old.adapter is not None, "the old teacher is a base and its adapter"
    reason = same_ids(load_tokenizer(old.model, old.revision), tokenizer)
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
