"""`muscle run` on Ray's own autoscaler: from no worker to the report and back, whatever dies."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from heads import Head, processes_of
from local_nodes import LocalNode, autoscaling_head, last_words, nodes, wait_until
from processes import muscle
from updates import update

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

# One thread each, here and there: their number changes the order of sums.
ANYWHERE = {"cpus_per_worker": 1, "teachers": "cached", "checkpoint_seconds": 0}
ON_THE_CLUSTER = {
    **ANYWHERE,
    "gpus_per_worker": 0,  # GPUs are only counted here, and Ray Train would want a real one
    "training_labels": {"muscle-role": "training"},
    "gpus_per_actor": 1,
    "scoring_labels": {"muscle-role": "scoring"},
}
SCORING, TRAINING = "gpu-scoring", "gpu-training"


def experiment(folder: Path, resources: Mapping[str, Any]) -> Path:
    """The same update with other resources."""
    settings = update("scaled", evaluated=300, epochs=2, limit=96)
    file = folder / "scaled.yaml"
    file.write_text(yaml.safe_dump({**settings, "resources": dict(resources)}))
    return file


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The report of a run on this machine alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    muscle("run", str(experiment(folder, ANYWHERE)), "--output", str(folder / "out"))
    return (folder / "out" / "report.json").read_bytes()


class Run:
    """A run that goes on while the test looks."""

    def __init__(self, cluster: Head, folder: Path):
        self.nodes, self.output, self.log = cluster.folder, folder / "out", folder / "run.log"
        file = experiment(folder, ON_THE_CLUSTER)
        arguments = [str(file), "--address", cluster.address, "--output", str(self.output)]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "muscle.cli", "run", *arguments],
                env=cluster.env,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def has(self, pattern: str) -> bool:
        """Whether an artifact's file is there."""
        return any((self.output / "artifacts").glob(pattern))

    def lose(self, kind: str, worker: str) -> LocalNode:
        """Kill a node of this type that has such a worker at work, whole."""
        while True:
            for node in nodes(self.nodes):
                if node.type == kind and node.alive() and _runs(node, worker):
                    node.kill()
                    return node
            assert self.process.poll() is None, self.said()

    def report(self) -> bytes:
        """Wait for its end; the report."""
        assert self.process.wait(timeout=1500) == 0, self.said()
        return (self.output / "report.json").read_bytes()

    def said(self) -> str:
        """What it printed, and which nodes there were."""
        return f"{self.log.read_text(errors='replace')[-5000:]}\n{last_words(self.nodes)}"


@contextmanager
def running(cluster: Head, folder: Path) -> Iterator[Run]:
    run = Run(cluster, folder)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()


def _runs(node: LocalNode, worker: str) -> bool:
    for process in processes_of(node.pid):
        try:
            if worker in " ".join(process.cmdline()):
                return True
        except psutil.Error:
            continue
    return False


def test_from_no_worker_to_the_report_and_back(undisturbed: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "ray"
    with autoscaling_head(folder, dashboard=False) as cluster, running(cluster, tmp_path) as run:
        report = run.report()
        assert {node.type for node in nodes(folder)} == {SCORING, TRAINING}
        wait_until(
            lambda: not any(node.alive() for node in nodes(folder)), "no node that idles", folder
        )
    assert report == undisturbed


def test_a_node_lost_in_training_and_one_in_scoring_change_nothing(
    undisturbed: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "ray"
    with autoscaling_head(folder, dashboard=False) as cluster, running(cluster, tmp_path) as run:
        wait_until(lambda: run.has("task-adapter/*/checkpoints/latest.json"), "training", folder)
        run.lose(TRAINING, "RayTrainWorker")
        wait_until(lambda: run.has("compat-adapter/*/manifest.json"), "the last adapter", folder)
        run.lose(SCORING, "MapWorker")
        assert not run.has("predictions/*/manifest.json")
        assert run.report() == undisturbed
        # There may be one training node at a time: another came in its place.
        assert sum(node.type == TRAINING for node in nodes(folder)) >= 2
