"""Ray Train with DeepSpeed: any stage and number of workers gives the plain loop's adapter."""

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from muscle.config import (
    ResourcesConfig,
)
from muscle.errors import UserError
from muscle.training.job import Progress, TrainJob
from muscle.training.loop import train_alone
from muscle.training.settings import read_deepspeed

pytestmark = pytest.mark.slow

MakeJob = Callable[..., TrainJob]


def silent(progress: Progress) -> None:
    pass


@pytest.fixture(scope="module")
def compat(make_compat: MakeJob) -> TrainJob:
    """A compatibility job with some cross-entropy; every test gives it its own folders."""
    return make_compat(Path("nowhere"), ce_weight=0.25)


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
    compat: TrainJob, tmp_path: Path, ray_local: None, kill_worker: Callable[[str], bool]
) -> None:
    from muscle.launch.training import train_all

    job = into(compat, tmp_path)
    killed = threading.Event()

    def kill_after_first_epoch() -> None:
        latest = Path(job.checkpoints) / "latest.json"
        deadline = time.monotonic() + 120
        while not latest.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        if kill_worker("RayTrainWorker"):
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
    make_job: MakeJob, tmp_path: Path, ray_local: None
) -> None:
    from muscle.launch.training import train_all

    jobs = [make_job(tmp_path / role, role) for role in ("old", "new")]
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
