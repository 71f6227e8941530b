"""Nodes come and go: training goes on with what is left, to the same adapter."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from muscle.config import AdapterConfig
from muscle.tables import write_examples
from muscle.training.job import TrainJob
from muscle.training.loop import train_alone
from muscle.types import TrainingExample

pytestmark = [pytest.mark.slow, pytest.mark.long]

MakeJob = Callable[..., TrainJob]


@pytest.fixture(scope="module")
def long_job(make_job: MakeJob, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """80 updates of 40 micro-batches, saved after each: time enough to lose and find nodes."""
    folder = tmp_path_factory.mktemp("long")
    rows = [TrainingExample(str(i), f"item {'x' * (i % 5)} {i}:", " blue") for i in range(404)]
    write_examples(folder / "train.parquet", rows[:400])
    write_examples(folder / "validation.parquet", rows[400:])
    job = make_job(folder, examples=str(folder), training_tokens=1, checkpoint_seconds=0.0)
    settings = {"epochs": 8, "batch_size": 40, "accumulation": 1, "learning_rate": 1e-3}
    return dataclasses.replace(
        job,
        adapter=AdapterConfig(r=4, alpha=8, dropout=0.1),
        training=job.training.model_copy(update=settings),
    )


@pytest.fixture(scope="module")
def undisturbed(long_job: TrainJob) -> dict[str, torch.Tensor]:
    train_alone(long_job, lambda progress: None, "cpu")
    return load_file(Path(long_job.output) / "adapter_model.safetensors")


def test_a_lost_node_and_its_return_change_nothing_but_rounding(
    long_job: TrainJob, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    job = dataclasses.replace(
        long_job,
        output=str(tmp_path / "out"),
        checkpoints=str(tmp_path / "checkpoints"),
    )
    (tmp_path / "job.json").write_text(json.dumps(job.to_json()))
    script = str(Path(__file__).parent / "lost_node.py")
    arguments = [str(tmp_path / "job.json"), str(tmp_path / "seen.json")]
    result = subprocess.run(
        [sys.executable, script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["two workers"] < seen["one worker"] < seen["two again"] < 80
    got = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert got.keys() == undisturbed.keys()
    difference = sum(float((got[n] - undisturbed[n]).norm() ** 2) for n in got) ** 0.5
    size = sum(float(tensor.norm() ** 2) for tensor in undisturbed.values()) ** 0.5
    assert difference < 1e-4 * size
    assert len((tmp_path / "out" / "curve.jsonl").read_text().splitlines()) == 80
