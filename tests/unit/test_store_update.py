"""A whole update whose artifacts and results lie on an object store."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from colours import colour_settings, write_data
from s3_server import S3Server

from muscle import storage
from muscle.alone import Alone
from muscle.config import Experiment
from muscle.evaluation.job import EvaluateJob
from muscle.gate import judge, make_limits
from muscle.pipeline import Pipeline
from muscle.plan import make_plan
from muscle.teachers.job import TeacherJob
from muscle.training.job import OnProgress, Progress, TrainJob

pytestmark = pytest.mark.slow


def silent(progress: Progress) -> None:
    pass


class Refusing(Alone):
    """Runs nothing: all is there."""

    def train(self, jobs: Sequence[TrainJob], on_progress: OnProgress) -> None:
        raise AssertionError("trains again")

    def cache(self, job: TeacherJob, on_progress: OnProgress) -> None:
        raise AssertionError("caches again")

    def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> tuple[str, ...]:
        raise AssertionError("evaluates again")


def update(settings: dict[str, Any], store: str | None, output: str, launcher: Alone) -> None:
    experiment = Experiment.model_validate({**settings, "storage": store})
    Pipeline(make_plan(experiment), output, launcher, silent).run()


def files(folder: str) -> dict[str, bytes]:
    fs, inside = storage.filesystem(folder)
    return {name: fs.cat_file(storage.join(inside, name)) for name in storage.sizes(folder)}


def same_results(local: Path, remote: str) -> None:
    """All but the time stamps of TensorBoard, and the names of its files."""
    here, there = files(str(local)), files(remote)
    for found in (here, there):
        for name in [n for n in found if "tfevents" in n]:
            found[name.split("out.tfevents")[0] + "tfevents"] = b""
            del found[name]
    assert "report.json" in here and "compat/adapter/adapter_model.safetensors" in here
    assert here.keys() == there.keys()
    assert {name for name in here if here[name] != there[name]} == set()


@pytest.fixture(scope="module")
def settings(
    tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    data = write_data(tmp_path_factory.mktemp("data"), test=12)
    cached = {"resources": {"teachers": "cached"}, "tracking": {"tensorboard": True}}
    return {**colour_settings(tiny_models, data), **cached}


@pytest.fixture(scope="module")
def finished(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    update(settings, str(folder / "store"), str(folder / "out"), Alone("cpu"))
    return folder / "out"


def test_on_s3_it_gives_the_same_files_and_is_done_once(
    s3: S3Server, settings: dict[str, Any], finished: Path
) -> None:
    bucket = s3.bucket()
    store, output = f"{bucket}/store", f"{bucket}/out"
    update(settings, store, output, Alone("cpu"))
    same_results(finished, output)
    assert not [name for name in storage.sizes(store) if "lease" in name or "checkpoints" in name]
    s3.calm()
    update(settings, store, output, Refusing("cpu"))
    same_results(finished, output)
    assert not [path for path in s3.puts() if "/store/" in path]
    result = judge(output, make_limits(max_nfr="100%"))
    assert storage.read_json(f"{output}/gate.json")["verdict"] == result.gate["verdict"]
    assert storage.exists(f"{output}/junit.xml")


def test_in_memory_it_gives_the_same_files(settings: dict[str, Any], finished: Path) -> None:
    root = f"memory://update-{os.getpid()}"
    try:
        update(settings, f"{root}/store", f"{root}/out", Alone("cpu"))
        same_results(finished, f"{root}/out")
        update(settings, f"{root}/store", f"{root}/out", Refusing("cpu"))
        same_results(finished, f"{root}/out")
    finally:
        storage.remove(root)
