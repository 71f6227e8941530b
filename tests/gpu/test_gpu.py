"""What only a GPU can show; skipped without one."""

import json
from pathlib import Path

import pytest
import torch

from muscle.config import AdapterConfig, TrainingConfig, VersionConfig
from muscle.evaluation import Engine
from muscle.tables import write_examples
from muscle.training.job import Progress, TrainJob
from muscle.training.loop import train_alone
from muscle.types import Query, Request, TrainingExample

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def test_log_likelihoods_agree_with_the_cpu(tiny_models: dict[str, str]) -> None:
    queries = [
        Query(str(i), tuple(Request("loglikelihood", f"thing {i} is", f" {c}") for c in "abc"))
        for i in range(40)
    ]
    found = {}
    for device in ("cpu", "cuda"):
        engine = Engine(tiny_models["new"], None, {"new": None}, "float32", None, device=device)
        answers = engine.answer("new", queries)
        found[device] = [o.loglikelihood for a in answers for o in a.outputs]
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_learns_on_the_gpu(
    dtype: str, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    rows = [TrainingExample(str(i), f"item {i}:", " red" if i % 2 else " blue") for i in range(20)]
    write_examples(tmp_path / "train.parquet", rows[:16])
    write_examples(tmp_path / "validation.parquet", rows[16:])
    training = TrainingConfig(
        learning_rate=1e-2, warmup_steps=1, epochs=3, accumulation=1, dtype=dtype
    )
    job = TrainJob(
        role="new",
        title="train new",
        base=VersionConfig(model=tiny_models["new"]),
        base_fingerprint="f",
        adapter=AdapterConfig(r=4, alpha=8),
        start=None,
        old=None,
        loss=None,
        training=training,
        deepspeed={},
        gradient_checkpointing=True,
        training_tokens=None,
        examples=str(tmp_path),
        seed=0,
        output=str(tmp_path / "out"),
        checkpoints=str(tmp_path / "checkpoints"),
    )

    def silent(progress: Progress) -> None:
        pass

    train_alone(job, silent, "cuda")
    curve = json.loads((tmp_path / "out" / "training.json").read_text())["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]
