"""Curves: one file that a resumed training leaves as an undisturbed one does, and trackers."""

import dataclasses
import json
import struct
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from muscle.config import TrackingConfig
from muscle.errors import UserError
from muscle.training.job import EpochRecord, Progress, TrainJob, UpdateRecord
from muscle.training.loop import train_alone
from muscle.training.settings import check_tracking
from muscle.training.tracking import open_tracking, run_id

MakeJob = Callable[..., TrainJob]


class Killed(Exception):
    pass


def record(update: int) -> UpdateRecord:
    return UpdateRecord(update, 1, 4 * update, 10, 1 / update, None, 0.5, 0.25, 0.125, 1e-3, 2.0)


EPOCH = EpochRecord(1, 1.0, 1.0, None, None, None, 0.75)


def silent(progress: Progress) -> None:
    pass


def lines(folder: str | Path) -> list[dict[str, Any]]:
    text = (Path(folder) / "curve.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def events(folder: str | Path) -> Iterator[Any]:
    """Every event of a folder's TensorBoard files, in the order of the files' names."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(Path(folder).glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event()
            event.ParseFromString(data[12 : 12 + length])
            yield event
            data = data[12 + length + 4 :]


def scalars(folder: str | Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: a session's start hides the steps from there on."""
    found: dict[str, dict[int, float]] = {}
    for event in events(folder):
        if event.HasField("session_log") and event.session_log.status == 1:
            for values in found.values():
                for step in [s for s in values if s >= event.step]:
                    del values[step]
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


# --- the curve and TensorBoard --------------------------------------------------------


def test_a_resumed_training_leaves_the_curve_of_an_undisturbed_one(
    make_job: MakeJob, tmp_path: Path
) -> None:
    whole = make_job(tmp_path / "a", logs=str(tmp_path / "a" / "logs"))
    train_alone(whole, silent, "cpu")
    # A checkpoint at the first epoch's end only; killed two updates later.
    killed = make_job(tmp_path / "b", logs=str(tmp_path / "b" / "logs"))
    seen: list[Progress] = []

    def kill(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == 7:
            raise Killed

    with pytest.raises(Killed):
        train_alone(killed, kill, "cpu")
    assert len(lines(killed.logs or "")) == 7  # live, past the checkpoint
    train_alone(killed, silent, "cpu")
    text = (Path(whole.logs or "") / "curve.jsonl").read_bytes()
    assert (Path(killed.logs or "") / "curve.jsonl").read_bytes() == text
    for job in (whole, killed):
        assert (Path(job.output) / "curve.jsonl").read_bytes() == text
    a, b = scalars(whole.logs or ""), scalars(killed.logs or "")
    assert a.keys() == b.keys()
    assert a["train/loss"] == b["train/loss"] and list(a["train/loss"]) == list(range(1, 11))
    got = [r["loss"] for r in lines(whole.logs or "")]
    assert list(a["train/loss"].values()) == pytest.approx(got, rel=1e-6)
    assert list(a["train/validation_cross_entropy"]) == [5, 10]
    assert min(a["train/seconds"].values()) > 0


def test_without_tensorboard_there_are_no_event_files(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(
        tmp_path, logs=str(tmp_path / "logs"), tracking=TrackingConfig(tensorboard=False)
    )
    train_alone(job, silent, "cpu")
    assert [p.name for p in (tmp_path / "logs").iterdir()] == ["curve.jsonl"]


def test_remote_logs_are_there_after_a_checkpoint(make_job: MakeJob, tmp_path: Path) -> None:
    from muscle import storage

    logs = f"memory://{tmp_path.name}/logs"
    tracking = open_tracking(make_job(tmp_path, logs=logs), [], print)
    tracking.update(record(1), 0.5)
    tracking.saved()
    fs, inside = storage.filesystem(logs)
    names = [p.rsplit("/", 1)[-1] for p in fs.find(inside)]
    assert names[0] == "curve.jsonl" and names[1].startswith("events.out.tfevents.")
    assert json.loads(fs.cat_file(storage.join(inside, "curve.jsonl")))["update"] == 1
    tracking.close(True)


# --- MLflow and Weights & Biases ------------------------------------------------------


class FakeClient:
    """An MLflow server in memory, with the calls of `MlflowClient` that are used."""

    runs: dict[str, dict[str, Any]]
    broken = False

    def __init__(self, tracking_uri: str):
        self.uri = tracking_uri

    def get_experiment_by_name(self, name: str) -> Any:
        return types.SimpleNamespace(experiment_id="e") if FakeClient.runs else None

    def create_experiment(self, name: str) -> str:
        return "e"

    def search_runs(self, experiments: list[str], query: str) -> list[Any]:
        name, value = query.removeprefix("tags.").split(" = ")
        return [
            types.SimpleNamespace(info=types.SimpleNamespace(run_id=run))
            for run, what in FakeClient.runs.items()
            if what["tags"][name] == value.strip("'")
        ]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
        run = f"run-{len(FakeClient.runs)}"
        FakeClient.runs[run] = {"tags": tags, "name": run_name, "metrics": [], "params": {}}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run))

    def update_run(self, run: str, status: str) -> None:
        FakeClient.runs[run]["status"] = status

    set_terminated = update_run

    def log_param(self, run: str, key: str, value: str) -> None:
        FakeClient.runs[run]["params"][key] = value

    def log_batch(self, run: str, metrics: list[Any]) -> None:
        if FakeClient.broken:
            raise ConnectionError("the server\nis gone")
        FakeClient.runs[run]["metrics"] += metrics

    def get_metric_history(self, run: str, key: str) -> list[Any]:
        return [m for m in FakeClient.runs[run]["metrics"] if m.key == key]


@dataclasses.dataclass
class Metric:
    key: str
    value: float
    timestamp: int
    step: int


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    FakeClient.runs, FakeClient.broken = {}, False
    module, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    module.MlflowClient, entities.Metric = FakeClient, Metric  # type: ignore[attr-defined]
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    for name in ("RETRIES", "TIMEOUT"):  # set by the tracker: gone after the test
        key = "MLFLOW_HTTP_REQUEST_" + {"RETRIES": "MAX_RETRIES", "TIMEOUT": "TIMEOUT"}[name]
        monkeypatch.setenv(key, "0")
    return FakeClient


def test_mlflow_goes_on_in_the_same_run(
    mlflow: type[FakeClient], make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(tmp_path, tracking=TrackingConfig(mlflow="http://server"))
    first = open_tracking(job, [], print)
    for update in (1, 2, 3):
        first.update(record(update), 0.5)
    first.close(False)
    (run,) = mlflow.runs.values()
    assert run["status"] == "KILLED" and run["params"]["training.learning_rate"] == "0.005"
    second = open_tracking(job, [record(1), record(2)], print)  # the third one wasn't saved
    assert run["status"] == "RUNNING"
    for update in (3, 4):
        second.update(record(update), 0.5)
    second.epoch(EPOCH, 4)
    second.close(True)
    assert len(mlflow.runs) == 1 and run["status"] == "FINISHED"
    named = {(m.key, m.step): m.value for m in run["metrics"]}
    assert len(named) == len(run["metrics"])  # nothing twice
    assert [named["loss", step] for step in (1, 2, 3, 4)] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert named["validation_cross_entropy", 4] == 0.75
    assert ("cross_entropy", 1) not in named  # this loss has none
    other = open_tracking(dataclasses.replace(job, checkpoints=str(tmp_path / "x")), [], print)
    assert len(mlflow.runs) == 2
    other.close(True)


def test_a_tracker_that_fails_ends_with_a_remark_and_the_training_goes_on(
    mlflow: type[FakeClient], make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(
        tmp_path, logs=str(tmp_path / "logs"), tracking=TrackingConfig(mlflow="http://server")
    )
    seen: list[str] = []

    def progress(progress: Progress) -> None:
        seen.append(progress.remark)
        mlflow.broken = len(seen) >= 3

    train_alone(job, progress, "cpu")
    assert "MLflow" not in seen[2] and "MLflow stopped: the server is gone" in seen[-1]
    assert seen[-1].count("MLflow") == 1
    assert len(lines(tmp_path / "logs")) == 10


def test_wandb_resumes_its_run(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, float]] = []
    calls: list[dict[str, Any]] = []

    class Run:
        @property
        def summary(self) -> dict[str, float]:
            return logged[-1] if logged else {}

        def define_metric(self, name: str, step_metric: str) -> None:
            assert (name, step_metric) == ("*", "update")

        def log(self, values: dict[str, float]) -> None:
            logged.append(values)

        def finish(self, exit_code: int) -> None:
            calls[-1]["exit_code"] = exit_code

    def init(**arguments: Any) -> Run:
        calls.append(arguments)
        return Run()

    module = types.ModuleType("wandb")
    module.init, module.Settings = init, dict  # type: ignore[attr-defined]
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "wandb", module)
    job = make_job(tmp_path, tracking=TrackingConfig(wandb="flips"))
    for done, updates, whole in ((0, (1, 2, 3), False), (2, (3, 4), True)):
        tracking = open_tracking(job, [record(u + 1) for u in range(done)], print)
        for update in updates:
            tracking.update(record(update), 0.5)
        tracking.close(whole)
    assert [c["id"] for c in calls] == [run_id(job)] * 2
    assert [c["resume"] for c in calls] == ["allow"] * 2
    assert [c["exit_code"] for c in calls] == [1, 0]
    assert [values["update"] for values in logged] == [1, 2, 3, 4]
    assert calls[0]["project"] == "flips" and calls[0]["config"]["role"] == "new"


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named_with_its_extra(
    name: str, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    config = TrackingConfig(**{name: "somewhere"})
    for refuse in (
        lambda: check_tracking(config),
        lambda: train_alone(make_job(tmp_path, tracking=config), silent, "cpu"),
    ):
        with pytest.raises(UserError, match=rf"tracking\.{name}.*muscle-llm\[{name}\]"):
            refuse()
    check_tracking(TrackingConfig())
    check_tracking(None)
