"""Ray Train with DeepSpeed: any stage and number of workers gives the plain loop's adapter."""

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from muscle.config import (
    AdapterConfig,
    CompatibilityConfig,
    ResourcesConfig,
    TrainingConfig,
    VersionConfig,
)
from muscle.errors import UserError
from muscle.tables import write_examples
from muscle.training.job import Progress, TrainJob
from muscle.training.loop import train_alone
from muscle.training.settings import read_deepspeed
from muscle.types import TrainingExample

pytestmark = pytest.mark.slow

WORDS = ["red", "blue", "green", "one", "two", "seven"]


def silent(progress: Progress) -> None:
    pass


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("examples")
    rows = [
        TrainingExample(str(i), f"item {'x' * (i % 5)} {i}:", f" {WORDS[i % len(WORDS)]}")
        for i in range(24)
    ]
    write_examples(folder / "train.parquet", rows[:20])
    write_examples(folder / "validation.parquet", rows[20:])
    return str(folder)


def task_job(models: dict[str, str], examples: str, folder: Path, role: str = "new") -> TrainJob:
    return TrainJob(
        role=role,  # type: ignore[arg-type]
        title=f"train {role}",
        base=VersionConfig(model=models[role]),
        base_fingerprint="f",
        adapter=AdapterConfig(r=4, alpha=8),
        start=None,
        old=None,
        loss=None,
        training=TrainingConfig(
            learning_rate=3e-3,
            warmup_steps=2,
            epochs=2,
            batch_size=4,
            dtype="float32",
            accumulation=2,
        ),
        deepspeed=read_deepspeed("zero2"),
        gradient_checkpointing=False,
        training_tokens=64,
        examples=examples,
        seed=0,
        output=str(folder / "out"),
        checkpoints=str(folder / "checkpoints"),
    )


@pytest.fixture(scope="module")
def compat(
    tiny_models: dict[str, str], examples: str, tmp_path_factory: pytest.TempPathFactory
) -> TrainJob:
    """A compatibility job on trained task adapters; every test replaces its folders."""
    folders = {role: tmp_path_factory.mktemp(role) for role in ("old", "new")}
    for role, folder in folders.items():
        train_alone(task_job(tiny_models, examples, folder, role), silent, "cpu")
    base = task_job(tiny_models, examples, folders["new"])
    return dataclasses.replace(
        base,
        role="compat",
        title="train compat",
        start=str(folders["new"] / "out"),
        old=VersionConfig(model=tiny_models["old"], adapter=str(folders["old"] / "out")),
        loss=CompatibilityConfig(ce_weight=0.25),
    )


@pytest.fixture(scope="module")
def plain(compat: TrainJob, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What the plain loop in one process makes of the compatibility job."""
    job = into(compat, tmp_path_factory.mktemp("plain"))
    train_alone(job, silent, "cpu")
    return adapter(job)


def into(job: TrainJob, folder: Path) -> TrainJob:
    return dataclasses.replace(
        job, output=str(folder / "out"), checkpoints=str(folder / "checkpoints")
    )


def adapter(job: TrainJob) -> dict[str, torch.Tensor]:
    return load_file(Path(job.output) / "adapter_model.safetensors")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("stage", "workers"),
    [("zero1", 1), ("zero2", 1), ("zero3", 1), ("zero3-offload", 1), ("zero2", 2), ("zero3", 2)],
)
def test_every_stage_and_any_number_of_workers_equal_the_plain_loop(
    stage: str,
    workers: int,
    compat: TrainJob,
    plain: dict[str, torch.Tensor],
    tmp_path: Path,
    ray_local: None,
) -> None:
    from muscle.launch.training import train_all

    job = dataclasses.replace(into(compat, tmp_path), deepspeed=read_deepspeed(stage))
    train_all([job], ResourcesConfig(workers=workers, cpus_per_worker=1), silent)
    assert_same(adapter(job), plain)


def test_a_killed_worker_changes_nothing(
    compat: TrainJob, plain: dict[str, torch.Tensor], tmp_path: Path, ray_local: None
) -> None:
    from muscle.launch.training import train_all

    job = into(compat, tmp_path)
    killed = threading.Event()

    def kill_after_first_epoch() -> None:
        latest = Path(job.checkpoints) / "latest.json"
        deadline = time.monotonic() + 120
        while not latest.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for process in psutil.Process().children(recursive=True):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
                killed.set()

    killer = threading.Thread(target=kill_after_first_epoch)
    killer.start()
    # Many epochs, so that the worker is still at work when it is killed.
    longer = dataclasses.replace(job, training=job.training.model_copy(update={"epochs": 30}))
    train_all([longer], ResourcesConfig(cpus_per_worker=1), silent)
    killer.join()
    assert killed.is_set()
    undisturbed = into(longer, tmp_path / "undisturbed")
    train_all([undisturbed], ResourcesConfig(cpus_per_worker=1), silent)
    got, expected = adapter(longer), adapter(undisturbed)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_two_trainings_side_by_side_report_their_progress(
    tiny_models: dict[str, str], examples: str, tmp_path: Path, ray_local: None
) -> None:
    from muscle.launch.training import train_all

    jobs = [task_job(tiny_models, examples, tmp_path / role, role) for role in ("old", "new")]
    seen: dict[str, Progress] = {}
    train_all(jobs, ResourcesConfig(), lambda p: seen.update({p.stage: p}))
    assert {stage: p.done for stage, p in seen.items()} == {"train old": 40, "train new": 40}
    for job in jobs:
        alone = into(job, Path(job.output).parent / "alone")
        train_alone(alone, silent, "cpu")
        assert_same(adapter(job), adapter(alone))


def test_a_workers_user_error_is_one_line_and_not_retried(
    compat: TrainJob, tmp_path: Path, ray_local: None
) -> None:
    from muscle.launch.training import train_all

    broken = tmp_path / "start"
    broken.mkdir()
    with pytest.raises(UserError) as caught:
        train_all(
            [dataclasses.replace(into(compat, tmp_path), start=str(broken))],
            ResourcesConfig(cpus_per_worker=1),
            silent,
        )
    assert "adapter" in str(caught.value) and "\n" not in str(caught.value)
    assert not Path(tmp_path / "out").exists()
