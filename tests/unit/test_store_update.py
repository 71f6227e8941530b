"""A whole update whose artifacts and results lie on an object store."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from colours import colour_settings, write_data
from s3_server import S3Server
from searching import Played, search_settings, usual

from muscle import storage
from muscle.alone import Alone
from muscle.cli import main
from muscle.config import Experiment
from muscle.errors import UserError
from muscle.evaluation.job import EvaluateJob
from muscle.gate import judge, make_limits
from muscle.pipeline import Pipeline
from muscle.plan import make_plan
from muscle.search import plan_search
from muscle.teachers.job import TeacherJob
from muscle.training.job import OnProgress, Progress, TrainJob
from muscle.tune import Search

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


@pytest.mark.long
def test_a_search_on_s3_finds_the_same(
    s3: S3Server, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    data = write_data(tmp_path, test=24, train=100)
    plan = plan_search(Experiment.model_validate(search_settings(tiny_models, data)))
    bucket = s3.bucket()
    found = {}
    for output in (str(tmp_path / "out"), f"{bucket}/out"):
        Search(plan, output, Played(usual), silent).run()
        root, content = storage.absolute(output), files(output)
        kept = {n: data for n, data in content.items() if not n.startswith("artifacts/")}
        best = kept["best.yaml"].decode().replace(root, "ROOT")
        chosen = {n: data for n, data in kept.items() if n.startswith("chosen/")}
        found[output] = {"best": best, "names": sorted(kept), **chosen}
        assert not [name for name in content if name.endswith("lease.json")]
    here, there = found.values()
    assert [name for name in here if here[name] != there.get(name)] == []
    assert "chosen/adapter/adapter_model.safetensors" in here
    s3.calm()
    Search(plan, f"{bucket}/out", Refusing("cpu"), silent).run()
    assert not [path for path in s3.puts() if "/artifacts/" in path]


def test_comparing_and_judging_files_on_s3(
    s3: S3Server, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = s3.bucket()
    for version in ("old", "new"):
        storage.upload(finished / version, f"{bucket}/{version}")
    (tmp_path / "keep.txt").write_text("0\n")
    storage.upload(tmp_path, f"{bucket}/rules")
    sides = {
        str(tmp_path / "out"): (str(finished / "old"), str(finished / "new")),
        f"{bucket}/out": (f"{bucket}/old", f"{bucket}/new"),
    }
    reports = []
    for output, (old, new) in sides.items():
        with pytest.raises(SystemExit) as ended:
            main(["compare", old, new, "--output", output, "--draws", "50"])
        assert ended.value.code == 0
        reports.append(storage.read_json(f"{output}/report.json")["tasks"])
    assert reports[0] == reports[1]
    codes = []
    for output in sides:
        with pytest.raises(SystemExit) as ended:
            main(["gate", output, "--max-nfr", "100%"])
        codes.append(ended.value.code)
        assert {"gate.json", "junit.xml"} <= set(storage.sizes(output))
    assert codes == [0, 0]
    capsys.readouterr()


def test_a_store_that_fails_again_and_again_only_costs_time(
    s3: S3Server, settings: dict[str, Any], finished: Path
) -> None:
    """Every start gets 40 writes: each goes on where the last one stopped."""
    bucket = s3.bucket()
    store, output = f"{bucket}/store", f"{bucket}/out"
    starts = 0
    while True:
        s3.calm()
        s3.fail = lambda method, path: (
            (507, "QuotaExceeded") if method == "PUT" and len(s3.puts()) > 40 else None
        )
        starts += 1
        assert starts < 12
        try:
            update(settings, store, output, Alone("cpu"))
        except UserError as error:
            assert "no space left while writing s3://" in str(error)
            assert not [n for n in storage.sizes(store) if n.endswith("lease.json")]
        else:
            break
    assert starts > 1
    report = "report.json"
    fs, inside = storage.filesystem(f"{output}/{report}")
    assert fs.cat_file(inside) == (finished / report).read_bytes()
