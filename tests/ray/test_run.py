"""`muscle run` on the testbed, as a user runs it: killed twice, it ends with the same report."""

import json
from pathlib import Path

import pytest
import yaml
from processes import kill_when, muscle
from updates import update

from muscle.alone import Alone
from muscle.config import Experiment
from muscle.pipeline import Pipeline
from muscle.plan import make_plan
from muscle.tables import read_predictions

pytestmark = pytest.mark.slow

EXPERIMENT = update("killed", evaluated=300, epochs=3, limit=150)


def run(file: Path, output: Path) -> str:
    """A whole run; returns what it printed."""
    return muscle("run", str(file), "--output", str(output)).stdout


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "killed.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT))
    return path


def test_killed_in_training_and_in_evaluation_gives_the_same_report(
    file: Path, tmp_path: Path
) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    # In one process: it isn't disturbed there, and Ray is to come to the same bytes.
    plan = make_plan(Experiment.model_validate(EXPERIMENT))
    Pipeline(plan, str(undisturbed), Alone("cpu"), lambda _: None).run()
    artifacts = killed / "artifacts"

    def in_training() -> bool:
        return any(artifacts.glob("task-adapter/*/checkpoints/latest.json"))

    def in_evaluation() -> bool:
        return any(artifacts.glob("predictions/*/lease.json"))

    kill_when(in_training, ["run", str(file), "--output", str(killed)])
    assert not any(artifacts.glob("compat-adapter/*/manifest.json"))
    kill_when(in_evaluation, ["run", str(file), "--output", str(killed)])
    adapters = {p: p.stat().st_mtime_ns for p in artifacts.glob("*-adapter/*/manifest.json")}
    assert len(adapters) == 3  # trained before the second kill, and never again
    printed = run(file, killed)
    for word in ("NFR", "relative NFR", "report.json", "compat"):
        assert word in printed
    assert {p: p.stat().st_mtime_ns for p in adapters} == adapters
    assert (killed / "report.json").read_bytes() == (undisturbed / "report.json").read_bytes()
    assert (killed / "report.md").read_bytes() == (undisturbed / "report.md").read_bytes()


@pytest.mark.long
def test_a_task_of_generated_answers_runs_too(tmp_path: Path) -> None:
    """Generation end to end on Ray; ROUGE's numbers are the unit tests' and conformance's."""
    task = "testbed_arithmetic"
    settings = {**EXPERIMENT, "name": task, "task": task, "evaluation": {"limit": 60}}
    path = tmp_path / f"{task}.yaml"
    path.write_text(yaml.safe_dump(settings))
    run(path, tmp_path / task)
    report = json.loads((tmp_path / task / "report.json").read_text())["tasks"][task]
    assert report["metric"] == "exact_match" and report["n"] == 60
    rows = read_predictions(tmp_path / task / "compat" / f"{task}.parquet")
    assert all(r.prediction is not None and r.error is None for r in rows)
