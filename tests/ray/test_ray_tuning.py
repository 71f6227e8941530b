"""`muscle tune` on Ray Tune: its trials are those of one process, whoever dies on the way."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import kill_when, muscle
from updates import update

from muscle.alone import Alone
from muscle.bench import Bench
from muscle.config import Experiment
from muscle.experiment import load_experiment
from muscle.launch.ray_launcher import RayLauncher
from muscle.pipeline import Pipeline
from muscle.plan import make_plan
from muscle.search import plan_search
from muscle.training.job import Progress
from muscle.trials import Trials
from muscle.tune import Search, SearchLauncher
from muscle.tuning.records import Trial

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {
    **update("searched", evaluated=100, epochs=2, limit=800, tuning_fraction=0.5),
    # A rate of 1 ruins the adapter: that trial is stopped on the way.
    "tuning": {
        "trials": 3,
        "concurrent": 1,
        "epsilon": 0.05,
        "difference": 0.2,
        "interpolations": [0.5],
        "finalists": 1,
        "space": {"learning_rate": [0.002, 0.001, 1.0]},
    },
    "resources": {"checkpoint_seconds": 0},
}


def silent(progress: Progress) -> None:
    pass


def experiment(**changes: Any) -> Experiment:
    return Experiment.model_validate({**SETTINGS, **changes})


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the same search without Ray."""
    output = tmp_path_factory.mktemp("alone") / "out"
    Search(plan_search(experiment()), str(output), Alone("cpu"), silent).run()
    return output


def begun(alone: Path, output: Path) -> Path:
    """An output folder with the task adapters, the caches and the references of another: no
    trial yet."""
    for kind in ("examples", "task-adapter", "teacher"):
        shutil.copytree(alone / "artifacts" / kind, output / "artifacts" / kind)
    for manifest in (alone / "artifacts" / "compat-adapter").glob("*/manifest.json"):
        loss = json.loads(manifest.read_text())["inputs"]["loss"]
        if loss.get("mask", "control") in ("always-old", "control"):
            name = manifest.parent.name
            shutil.copytree(manifest.parent, output / "artifacts" / "compat-adapter" / name)
    return output


def trials_of(output: Path) -> list[dict[str, Any]]:
    """The records, without what differs from start to start."""
    files = sorted((output / "trials").glob("*.json"))
    return [{**json.loads(f.read_text()), "seconds": None} for f in files]


def tried(output: Path, changes: dict[str, Any], launcher: SearchLauncher) -> list[Trial]:
    """The trials alone, of a folder in which everything before them is done."""
    plan = plan_search(experiment(**changes))
    bench = Bench(plan.plan, str(output), launcher, silent)
    parts = (plan.parts.a, plan.parts.look)
    wanted = [
        one
        for part in parts
        for one in bench.wanted(plan.plan.experiment.compatibility, part, ["old", "new"])
    ]
    bench.predictor(parts[0]).run(wanted)
    trials = Trials(bench, plan.parts, plan.space)
    launcher.search(trials, bench.experiment.tuning.concurrent, silent)
    trials.close()
    assert trials.error is None
    return trials.trials


def test_killed_in_a_trial_and_started_again_ends_like_an_undisturbed_search(
    alone: Path, tmp_path: Path
) -> None:
    undisturbed = trials_of(alone)
    assert sorted(t["state"] for t in undisturbed) == ["finished", "finished", "stopped"]
    file = tmp_path / "searched.yaml"
    file.write_text(yaml.safe_dump(SETTINGS))
    output = begun(alone, tmp_path / "killed")
    before = set(output.glob("artifacts/compat-adapter/*"))
    arguments = ["tune", str(file), "--output", str(output)]

    def second_trial_trains() -> bool:
        found = sorted((output / "trials").glob("*.json"))
        training = list((output / "artifacts").glob("compat-adapter/*/checkpoints/latest.json"))
        return len(found) >= 2 and len(training) >= 1

    kill_when(second_trial_trains, arguments)
    found = set(output.glob("artifacts/compat-adapter/*/manifest.json"))
    first = {p: p.stat().st_mtime_ns for p in found if p.parent not in before}
    assert len(first) == 1 and not (output / "tune.json").exists()
    printed = muscle(*arguments).stdout
    assert {p: p.stat().st_mtime_ns for p in first} == first  # trained before, and never again
    assert trials_of(output) == undisturbed
    result, expected = (json.loads((o / "tune.json").read_text()) for o in (output, alone))
    for same in ("chosen", "candidates", "front", "why"):
        assert result[same] == expected[same]
    for word in ("promised", "delivered on test", "best.yaml", "always-old"):
        assert word in printed.replace("\n", " ")
    best = make_plan(load_experiment(output / "best.yaml"))
    Pipeline(best, str(tmp_path / "best"), Alone("cpu"), silent).run()
    report = json.loads((tmp_path / "best" / "report.json").read_text())["tasks"]["testbed_choice"]
    assert report["pairs"]["old->compat"]["nfr"] == result["test"][0]["test"]["nfr"]


@pytest.mark.long
def test_a_lost_trial_process_changes_nothing(
    alone: Path, tmp_path: Path, ray_local: None, kill_worker: Callable[[str], bool]
) -> None:
    output = begun(alone, tmp_path / "out")
    checkpoints = "artifacts/compat-adapter/*/checkpoints/latest.json"
    killed = threading.Event()

    def kill_one() -> None:
        waiting = threading.Event()
        while not any(output.glob(checkpoints)):
            waiting.wait(0.05)
        if kill_worker("ray::ImplicitFunc"):
            killed.set()

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    two = {"tuning": {**SETTINGS["tuning"], "trials": 2}}
    tried(output, two, RayLauncher(experiment().resources))
    killer.join()
    assert killed.is_set()
    assert trials_of(output) == trials_of(alone)[:2]


@pytest.mark.long
def test_trials_of_several_workers_side_by_side_end(
    alone: Path, tmp_path: Path, ray_local: None
) -> None:
    """Two trials at once, each waiting for a Ray Train of two workers, on two cores."""
    output = begun(alone, tmp_path / "out")
    space = {"learning_rate": [0.002, 0.001], "epochs": [1]}  # one epoch: no looks
    tuning = {**SETTINGS["tuning"], "trials": 2, "concurrent": 2, "space": space}
    resources = {"workers": 2, "cpus_per_worker": 1}
    changes = {"tuning": tuning, "resources": resources}
    launcher = RayLauncher(experiment(**changes).resources)
    trials = tried(output, changes, launcher)
    assert [t.state for t in trials] == ["finished", "finished"]
    assert {t.params["learning_rate"] for t in trials} == {0.002, 0.001}
    plain = tried(begun(alone, tmp_path / "plain"), {"tuning": tuning}, Alone("cpu"))
    for one, other in zip(trials, plain, strict=True):
        assert one.params == other.params and one.a is not None and other.a is not None
        assert one.a.nfr == pytest.approx(other.a.nfr, abs=0.02)
