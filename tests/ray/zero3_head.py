"""Run by test_ray_training: ZeRO-3 with every parameter partitioned, in one process.

The head is read in both ways that a loss may: called as a module, and its weight read in
forward alone (the gradient to the hidden states is worked out there).
"""

import copy
import os
import sys
from contextlib import nullcontext
from typing import Any

import torch

from muscle.config import TrainingConfig
from muscle.losses.distillation import LossSums, TokenOutputs
from muscle.models.sequences import Batch
from muscle.models.structure import unwrap
from muscle.training import deepspeed_engine as ds
from muscle.training import student as module
from muscle.training.engine import PlainEngine
from muscle.training.job import TrainJob
from muscle.training.settings import read_deepspeed


class Fused(torch.autograd.Function):
    """Cross-entropy that needs the head in forward only."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, gold: torch.Tensor) -> Any:
        assert weight.numel() > 0, "the head was not gathered"
        logits = hidden @ weight.T
        gradient = logits.softmax(-1)
        gradient[torch.arange(len(gold)), gold] -= 1
        ctx.save_for_backward(gradient @ weight)
        return torch.nn.functional.cross_entropy(logits, gold, reduction="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None


class Fusing(module.Student):
    """A student whose loss reads the head's weight itself."""

    def forward(self, batch: Batch, plain: bool = False) -> LossSums:
        if plain:
            return super().forward(batch, plain)
        outputs: TokenOutputs = module._outputs(self.model, batch)
        with self.gathered():
            head = unwrap(self.model).get_output_embeddings()
            loss = Fused.apply(outputs.hidden, head.weight, batch.gold)
        zero = loss.detach().new_zeros(())
        return LossSums(loss, loss.detach(), zero, zero, zero)


class Calling(module.Student):
    """A student that calls the head as a module inside `gathered`, twice."""

    def forward(self, batch: Batch, plain: bool = False) -> LossSums:
        with self.gathered():
            super().forward(batch, True)
            return super().forward(batch, True)


def five_updates(engine: Any, batch: Batch) -> list[float]:
    losses = []
    for _ in range(5):
        sums = engine.forward(batch)
        engine.backward(sums.loss / len(batch.gold), last=True)
        engine.step(1e-2)
        losses.append(float(sums.loss))
    with torch.no_grad():
        losses.append(float(engine.forward(batch, plain=True).loss))
    return losses


def main(model: str, kind: str, scratch: str) -> None:
    settings = TrainingConfig(dtype="float32", warmup_steps=0)
    config = copy.deepcopy(read_deepspeed("zero3"))
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
    ds.prepare_environment(has_gpu=False)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{scratch}", rank=0, world_size=1
    )
    ds.join_workers()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 200, (3, 9), generator=generator)
    scored = torch.ones(3, 8, dtype=torch.bool)
    row = torch.arange(3)[:, None].expand(3, 8)[scored]
    batch = Batch(ids, torch.ones_like(ids), scored, ids[:, 1:][scored], row)
    student_class = {"fused": Fusing, "called": Calling}[kind]
    results = []
    for partitioned in (False, True):
        job = TrainJob.from_json({**JOB, "base": {"model": model}})
        loading: Any = (
            ds.partitioned_loading(config, settings) if partitioned else nullcontext(False)
        )
        built, _ = module.build_student(job, "cpu", half_adapter=partitioned, loading=loading)
        built.__class__ = student_class
        built.training_mode()
        engine: Any
        if partitioned:
            engine = ds.DeepSpeedEngine(built, settings, "cpu", config)
            head = ds.output_head(built)[0]
            assert head.numel() == 0, "nothing was partitioned, so nothing is tested"
        else:
            engine = PlainEngine(built, settings, "cpu")
        results.append(five_updates(engine, batch))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=0)
    assert results[0][-1] < results[0][0]
    print("equal", results)


JOB: dict[str, Any] = {
    "role": "new",
    "title": "train new",
    "base_fingerprint": "f",
    "adapter": {"r": 4, "alpha": 8},
    "start": None,
    "old": None,
    "teachers": {},
    "loss": None,
    "training": {"dtype": "float32"},
    "deepspeed": {},
    "gradient_checkpointing": False,
    "training_tokens": None,
    "examples": "",
    "seed": 0,
    "output": "",
    "checkpoints": "",
    "tracking": None,
}

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3])
