"""Run by test_ray_training: ZeRO-3 with every parameter partitioned, the head's too."""

import copy
import os
import sys
from contextlib import nullcontext
from typing import Any

import torch

from muscle.config import TrainingConfig
from muscle.models.sequences import Batch
from muscle.training import deepspeed_engine as ds
from muscle.training.engine import PlainEngine
from muscle.training.job import TrainJob
from muscle.training.settings import read_deepspeed
from muscle.training.student import build_student


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


def main(model: str, scratch: str) -> None:
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
    results = []
    for partitioned in (False, True):
        job = TrainJob.from_json({**JOB, "base": {"model": model}})
        loading: Any = (
            ds.partitioned_loading(config, settings) if partitioned else nullcontext(False)
        )
        built, _ = build_student(job, "cpu", half_adapter=partitioned, loading=loading)
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
    main(sys.argv[1], sys.argv[2])
