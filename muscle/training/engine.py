"""Engines: who holds the optimizer. The loop speaks only this protocol.

`PlainEngine` is torch alone in one process; `muscle.training.deepspeed_engine` is
DeepSpeed ZeRO on any number of workers. Both keep their state in the same form, named
by parameter and whole (not partitioned), so a run goes on with another number of
workers, another ZeRO stage or the other engine.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from muscle.config import TrainingConfig
from muscle.losses.distillation import LossSums
from muscle.models.sequences import Batch
from muscle.training.student import Student

BETAS = (0.9, 0.999)
EPSILON = 1e-8
MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine(Protocol):
    """Forward, backward and step of a student, on one of `world` workers."""

    rank: int
    world: int
    device: str

    def forward(self, batch: Batch, plain: bool = False) -> LossSums:
        """Loss sums of one micro-batch."""
        ...

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a micro-batch's gradient; `loss` is already divided by the update's tokens."""
        ...

    def step(self, learning_rate: float) -> float | None:
        """One optimizer update from the gradients added since the last one.

        Returns the 2-norm of the whole gradient before clipping; None if it isn't known.
        """
        ...

    def total(self, values: Tensor) -> Tensor:
        """The sum over all workers of a 1-dim tensor."""
        ...

    def state(self) -> dict[str, Tensor]:
        """fp32 `param/<name>`, `exp_avg/<name>`, `exp_avg_sq/<name>`, whole, on the CPU."""
        ...

    def load_state(self, state: dict[str, Tensor], updates: int) -> None:
        """The inverse of `state`, after `updates` optimizer updates.

        The student's weights were already copied in before the engine was made.
        """
        ...

    def weights(self) -> dict[str, Tensor]:
        """The trained parameters as the forward uses them, whole, on the CPU."""
        ...


class PlainEngine:
    """One process, torch's AdamW on fp32 adapter weights."""

    rank = 0
    world = 1

    def __init__(self, student: Student, settings: TrainingConfig, device: str):
        self.device = device
        self.student = student
        self.clip_norm = settings.clip_norm
        self.parameters = student.trainable()
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.learning_rate,
            betas=BETAS,
            eps=EPSILON,
            weight_decay=settings.weight_decay,
        )

    def forward(self, batch: Batch, plain: bool = False) -> LossSums:
        result: LossSums = self.student(batch, plain)
        return result

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> float | None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        limit = math.inf if self.clip_norm is None else self.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def total(self, values: Tensor) -> Tensor:
        return values

    def state(self) -> dict[str, Tensor]:
        state = {}
        for name, parameter in self.parameters.items():
            state[f"param/{name}"] = parameter.detach().float().cpu().clone()
            for moment in MOMENTS:
                state[f"{moment}/{name}"] = self.optimizer.state[parameter][moment].cpu().clone()
        return state

    def load_state(self, state: dict[str, Tensor], updates: int) -> None:
        for name, parameter in self.parameters.items():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(updates)),
                **{m: state[f"{m}/{name}"].to(parameter) for m in MOMENTS},
            }

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach().cpu().clone() for n, p in self.parameters.items()}
