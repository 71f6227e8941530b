"""DeepSpeed ZeRO 1, 2, 3 around the student; the only file that imports DeepSpeed.

State is read and written whole, by parameter name, with DeepSpeed's own tensor
fragment functions. Its checkpoint format is not used: it binds a run to one number of
workers and is a pickle.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from muscle.config import TrainingConfig
from muscle.copies import locked
from muscle.losses.distillation import LossSums
from muscle.models.sequences import Batch
from muscle.models.structure import unwrap
from muscle.storage import scratch
from muscle.training.engine import BETAS, EPSILON, MOMENTS
from muscle.training.student import Student

RELEASE_SECONDS = 0.5
"""How long torch may take between the closing of a lock file and its removal."""


def complete_config(config: dict[str, Any], settings: TrainingConfig) -> dict[str, Any]:
    """The configuration with what the experiment decides filled in."""
    return {
        **config,
        # The loop counts examples itself and marks the boundaries of updates.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.clip_norm or 0.0,
        # Not immediate, stage 1 adds a micro-batch's gradient again with each later one.
        "bf16": {"enabled": settings.dtype == "bfloat16", "immediate_grad_update": True},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


@contextmanager
def partitioned_loading(config: dict[str, Any], settings: TrainingConfig) -> Iterator[bool]:
    """Inside, `from_pretrained` partitions weights while it loads them if this is ZeRO-3.

    Yields whether it does.
    """
    if config["zero_optimization"]["stage"] != 3:
        yield False
        return
    from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

    keep = HfDeepSpeedConfig(complete_config(config, settings))  # transformers holds a weak ref
    try:
        yield True
    finally:
        del keep
        unset_hf_deepspeed_config()


class DeepSpeedEngine:
    """One of `world` workers; torch.distributed is already initialised."""

    def __init__(
        self, student: Student, settings: TrainingConfig, device: str, config: dict[str, Any]
    ):
        import deepspeed

        deepspeed.logger.setLevel(logging.ERROR)
        self.rank = torch.distributed.get_rank()
        self.world = torch.distributed.get_world_size()
        self.device = device
        self.student = student
        self.stage = config["zero_optimization"]["stage"]
        self.parameters = student.trainable()
        if self.stage == 3:
            student.gathered = partial(_gathered, output_head(student))
        optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.learning_rate,
            betas=BETAS,
            eps=EPSILON,
            weight_decay=settings.weight_decay,
        )
        self.engine, *_ = deepspeed.initialize(
            model=student, optimizer=optimizer, config=complete_config(config, settings)
        )

    def forward(self, batch: Batch, plain: bool = False) -> LossSums:
        result: LossSums = self.engine(batch, plain)
        return result

    def backward(self, loss: Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over workers; ours are sums over a global token count.
        self.engine.backward(loss * self.world, scale_wrt_gas=False)
        if not last:
            self.engine.step()

    def step(self, learning_rate: float) -> float | None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def total(self, values: Tensor) -> Tensor:
        result = values.to(self.device, copy=True)  # the sum is put in its place
        torch.distributed.all_reduce(result)
        return result.cpu()

    def state(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        state = {}
        for name, parameter in self.parameters.items():
            state[f"param/{name}"] = safe_get_full_fp32_param(parameter).cpu().clone()
            for moment in MOMENTS:
                value = safe_get_full_optimizer_state(parameter, moment)
                state[f"{moment}/{name}"] = value.reshape(parameter_shape(parameter)).cpu().clone()
        return state

    def load_state(self, state: dict[str, Tensor], updates: int) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._make_optimizer_state()
        for name, parameter in self.parameters.items():
            safe_set_full_fp32_param(parameter, state[f"param/{name}"].to(self.device))
            for moment in MOMENTS:
                value = state[f"{moment}/{name}"].to(self.device)
                safe_set_full_optimizer_state(parameter, value, moment)
        for slot in self.engine.optimizer.optimizer.state.values():
            slot["step"] = torch.tensor(float(updates))

    def _make_optimizer_state(self) -> None:
        """One step at rate 0 with zero gradients: before it, there is no state to set."""
        two_tokens = torch.ones(1, 2, dtype=torch.long)
        batch = Batch(
            input_ids=two_tokens,
            attention_mask=two_tokens,
            scored=torch.ones(1, 1, dtype=torch.bool),
            gold=torch.ones(1, dtype=torch.long),
            sequence=torch.zeros(1, dtype=torch.long),
        )
        sums = self.forward(batch.to(self.device), plain=True)
        self.backward(sums.loss * 0.0, last=True)
        self.step(0.0)

    def weights(self) -> dict[str, Tensor]:
        import deepspeed

        parameters = list(self.parameters.values())
        with deepspeed.zero.GatheredParameters(parameters, enabled=self.stage == 3):
            return {n: p.detach().cpu().clone() for n, p in self.parameters.items()}


def output_head(student: Student) -> list[torch.nn.Parameter]:
    """The parameters of the student's output head; a tied one is the input embedding too."""
    return list(unwrap(student.model).get_output_embeddings().parameters())


@contextmanager
def _gathered(parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Inside, partitioned parameters are whole, to be read with or without their module.

    Unlike `deepspeed.zero.GatheredParameters` it lets the module's own hooks, and those of a
    module that read the parameter from outside, work in it.
    """
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    shards: list[Any] = list(parameters)
    mine = [p for p in shards if p.ds_status is ZeroParamStatus.NOT_AVAILABLE]
    if mine:
        mine[0].all_gather(param_list=mine)
    hold = object()  # hooks release only what nobody has in use
    for parameter in shards:
        parameter.ds_active_sub_modules.add(hold)
    try:
        yield
    finally:
        for parameter in shards:
            parameter.ds_active_sub_modules.discard(hold)
        mine = [p for p in mine if not p.ds_active_sub_modules]
        if mine:
            mine[0].partition(param_list=mine)


def join_workers() -> None:
    """Let DeepSpeed take over the process group that torch.distributed has."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.comm.torch import build_shm_op
    from torch.utils import cpp_extension

    # What init_distributed compiles on a CPU, the first time on a machine. Trainings side by
    # side take turns: torch's own lock outlives a killed worker, this one doesn't.
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is not None:
        folder = Path(cpp_extension._get_build_directory(builder.name, False))
        with locked(scratch("compiling.lock")):
            forget_abandoned(folder / "lock")
            build_shm_op()
    deepspeed.init_distributed(verbose=False)


def forget_abandoned(lock: Path) -> bool:
    """Remove a compilation's lock file that no process holds open any more; whether it was one.

    A worker that is killed while it compiles leaves it, and torch waits for it for ever.
    """
    # Torch closes the file before it removes it: only one that stays so is abandoned.
    for pause in (RELEASE_SECONDS, 0.0):
        if not lock.exists() or any(_holds(process, lock) for process in psutil.process_iter()):
            return False
        time.sleep(pause)
    lock.unlink(missing_ok=True)
    return True


def _holds(process: psutil.Process, file: Path) -> bool:
    try:
        return any(Path(opened.path) == file for opened in process.open_files())
    except (psutil.Error, OSError):  # it ended, or is another user's
        return False


def parameter_shape(parameter: Any) -> torch.Size:
    """The whole shape of a parameter, partitioned (ZeRO-3) or not."""
    return parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape


def prepare_environment(has_gpu: bool) -> None:
    """What DeepSpeed reads from the environment, before its first import."""
    if not has_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
