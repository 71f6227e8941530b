"""Ray Train with DeepSpeed: any stage and number of workers gives the plain loop's adapter."""

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from muscle import storage
from muscle.config import AdapterConfig, ResourcesConfig
from muscle.errors import UserError
from muscle.training.checkpoint import load_state
from muscle.training.job import Progress, TrainJob
from muscle.training.loop import train_alone
from muscle.training.settings import read_deepspeed

pytestmark = pytest.mark.slow

MakeJob = Callable[..., TrainJob]


def silent(progress: Progress) -> None:
    pass


@pytest.fixture(scope="module")
def compat(make_compat: MakeJob) -> TrainJob:
    """Five updates of several micro-batches with some cross-entropy, warm-up and clipping."""
    job = make_compat(Path("nowhere"), ce_weight=0.25)
    settings = job.training.model_copy(update={"epochs": 1, "clip_norm": 0.15})
    return dataclasses.replace(job, training=settings, training_tokens=20)


@pytest.fixture(scope="module")
def plain(compat: TrainJob, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """The compatibility job, done by the plain loop in one process."""
    job = into(compat, tmp_path_factory.mktemp("plain"))
    train_alone(job, silent, "cpu")
    return job


def into(job: TrainJob, folder: Path) -> TrainJob:
    return dataclasses.replace(
        job, output=str(folder / "out"), checkpoints=str(folder / "checkpoints")
    )


def adapter(job: TrainJob) -> dict[str, torch.Tensor]:
    return load_file(Path(job.output) / "adapter_model.safetensors")


def curve(job: TrainJob) -> list[dict[str, Any]]:
    text = (Path(job.output) / "curve.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def assert_same(job: TrainJob, expected: TrainJob) -> None:
    """Both trainings' losses, gradient norms and weights, up to the rounding of fp32."""
    for name in ("loss", "gradient_norm"):
        values, wanted = ([r[name] for r in curve(j)] for j in (job, expected))
        assert values == pytest.approx(wanted, rel=1e-5), name
    # A KL near 0 is a difference of nearly equal numbers: its rounding is that of the loss.
    for name in ("kl_old", "kl_new"):
        values, wanted = ([r[name] for r in curve(j)] for j in (job, expected))
        assert values == pytest.approx(wanted, abs=1e-5 * curve(expected)[0]["loss"]), name
    got, want = adapter(job), adapter(expected)
    assert got.keys() == want.keys()
    difference = sum(float((got[n] - want[n]).norm() ** 2) for n in want) ** 0.5
    assert difference <= 1e-5 * sum(float(t.norm() ** 2) for t in want.values()) ** 0.5


@pytest.mark.parametrize(
    ("stage", "workers"),
    [("zero1", 1), ("zero3-offload", 2)],  # the others below, with cached teachers
)
def test_every_stage_and_any_number_of_workers_equal_the_plain_loop(
    stage: str, workers: int, compat: TrainJob, plain: TrainJob, tmp_path: Path, ray_local: None
) -> None:
    from muscle.launch.training import train_all

    job = dataclasses.replace(into(compat, tmp_path), deepspeed=read_deepspeed(stage))
    train_all([job], ResourcesConfig(workers=workers, cpus_per_worker=1), silent)
    assert len(curve(job)) == 5 and min(r["gradient_norm"] for r in curve(plain)) < 0.15
    assert max(r["gradient_norm"] for r in curve(plain)) > 0.15  # clipping did something
    assert_same(job, plain)


def test_micro_batches_add_up_in_bfloat16_too(
    make_job: MakeJob, tmp_path: Path, ray_local: None
) -> None:
    from muscle.launch.training import train_all

    norms = []
    for tokens in (1000, 20):  # one micro-batch for an update, and several
        job = make_job(tmp_path / str(tokens), training_tokens=tokens)
        settings = job.training.model_copy(update={"dtype": "bfloat16", "epochs": 1})
        job = dataclasses.replace(job, training=settings, deepspeed=read_deepspeed("zero1"))
        train_all([job], ResourcesConfig(cpus_per_worker=1), silent)
        norms.append([r["gradient_norm"] for r in curve(job)])
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


@pytest.mark.parametrize(
    ("stage", "workers"), [pytest.param("zero2", 2, marks=pytest.mark.long), ("zero3", 2)]
)
def test_cached_teachers_serve_every_stage(
    stage: str,
    workers: int,
    compat: TrainJob,
    cached: Callable[[TrainJob, Path], TrainJob],
    tmp_path: Path,
    ray_local: None,
) -> None:
    """Against the plain loop with the same caches; that equals online teachers elsewhere."""
    from muscle.launch.training import train_all

    plain = into(cached(compat, tmp_path / "teachers"), tmp_path / "plain")
    train_alone(plain, silent, "cpu")
    job = dataclasses.replace(into(plain, tmp_path), deepspeed=read_deepspeed(stage))
    train_all([job], ResourcesConfig(workers=workers, cpus_per_worker=1), silent)
    assert_same(job, plain)


@pytest.mark.parametrize(
    ("stage", "workers"),
    [("zero2", 2), pytest.param("zero3-offload", 1, marks=pytest.mark.long)],
)
def test_a_stopped_training_goes_on_at_any_stage_and_number_of_workers(
    stage: str, workers: int, compat: TrainJob, plain: TrainJob, tmp_path: Path, ray_local: None
) -> None:
    """Begun by the plain loop and stopped after two updates, or begun here and ended there."""
    from muscle.launch.training import train_all

    job = into(dataclasses.replace(compat, deepspeed=read_deepspeed(stage)), tmp_path)
    stopped = dataclasses.replace(job, checkpoint_seconds=0.0)
    seen: list[Progress] = []

    def stop(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_alone(stopped, stop, "cpu")
    assert load_state(job.checkpoints)[0].updates == 2
    train_all([job], ResourcesConfig(workers=workers, cpus_per_worker=1), silent)
    assert_same(job, plain)
    # And its last state is one that the plain loop ends with.
    back = dataclasses.replace(job, output=str(tmp_path / "back"))
    train_alone(back, silent, "cpu")
    assert_same(back, plain)


def test_dropout_does_not_know_the_number_of_workers(
    make_job: MakeJob, tmp_path: Path, ray_local: None
) -> None:
    from muscle.launch.training import train_all

    job = make_job(tmp_path, training_tokens=20, adapter=AdapterConfig(r=4, alpha=8, dropout=0.3))
    jobs = [into(job, tmp_path / str(workers)) for workers in (1, 2)]
    train_alone(jobs[0], silent, "cpu")
    train_all([jobs[1]], ResourcesConfig(workers=2, cpus_per_worker=1), silent)
    losses = [[r["loss"] for r in curve(one)] for one in jobs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_partitioned_head_is_gathered_for_the_loss(
    tied: bool, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    model = tiny_models["new"]
    if not tied:
        from transformers import AutoModelForCausalLM

        shutil.copytree(model, tmp_path / "untied")
        loaded = AutoModelForCausalLM.from_pretrained(model)
        loaded.config.tie_word_embeddings = False
        loaded.lm_head.weight = torch.nn.Parameter(loaded.lm_head.weight.detach().flip(0).clone())
        loaded.save_pretrained(tmp_path / "untied")
        model = str(tmp_path / "untied")
    script = str(Path(__file__).parent / "zero3_head.py")
    result = subprocess.run(
        [sys.executable, script, model, str(tmp_path / "rendezvous")],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_worker_killed_in_the_middle_of_an_epoch_changes_nothing(
    compat: TrainJob, tmp_path: Path, ray_local: None, kill_worker: Callable[[str], bool]
) -> None:
    from muscle.launch.training import train_all

    # Many epochs, so that the worker is still at work when it is killed.
    settings = compat.training.model_copy(update={"epochs": 30})
    longer = dataclasses.replace(compat, training=settings, checkpoint_seconds=0.0)
    job = into(longer, tmp_path)
    killed_at: list[int] = []

    def kill_in_an_epoch() -> None:
        latest = Path(job.checkpoints) / "latest.json"
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            state = storage.read_json(str(latest)) or {"position": 0, "updates": 0}
            if 0 < state["position"] < 20 and state["updates"] > 6:
                if kill_worker("RayTrainWorker"):
                    killed_at.append(state["updates"])
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill_in_an_epoch)
    killer.start()
    train_all([job], ResourcesConfig(cpus_per_worker=1), silent)
    killer.join()
    assert killed_at and killed_at[0] < 150
    undisturbed = into(longer, tmp_path / "undisturbed")
    train_all([undisturbed], ResourcesConfig(cpus_per_worker=1), silent)
    assert curve(job) == curve(undisturbed)
    got, expected = adapter(job), adapter(undisturbed)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_a_disk_that_is_full_in_a_worker_is_one_line_and_not_retried(
    compat: TrainJob, tmp_path: Path, ray_local: None
) -> None:
    """A file where the checkpoints' folder should be stands for a place that can't be written."""
    from muscle.launch.training import train_all

    job = into(compat, tmp_path)
    (tmp_path / "file").write_text("in the way")
    job = dataclasses.replace(job, output=str(tmp_path / "file" / "out"))
    with pytest.raises(UserError, match="can't be written") as caught:
        train_all([job], ResourcesConfig(cpus_per_worker=1), silent)
    assert "\n" not in str(caught.value) and "failed:" not in str(caught.value)


@pytest.mark.long
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
        got, expected = adapter(job), adapter(alone)
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-5)


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


def test_a_lost_board_is_no_failure(ray_local: None) -> None:
    """The progress board may be on a node that is lost; trainings go on without it."""
    import ray

    from muscle.launch.progress import failure_of, post_failure, watching

    with watching(silent) as board:
        post_failure(board, "train new", UserError("mend this"))
        assert str(failure_of(board, "train new")) == "mend this"
        ray.kill(board)
        # `ray.kill` asks for an end and returns: the board may answer a little longer.
        deadline = time.monotonic() + 60
        while failure_of(board, "train new") is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert failure_of(board, "train new") is None
        post_failure(board, "train new", UserError("mend this"))
