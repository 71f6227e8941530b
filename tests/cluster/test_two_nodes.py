"""On two nodes data, training and scoring really spread, to the report of one machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from heads import Head, head
from updates import update

pytestmark = [pytest.mark.slow, pytest.mark.long]

EXPERIMENT = update("spread", evaluated=60, epochs=2, limit=60)
WORK = str(Path(__file__).parent / "work.py")

# A node holds one training worker, or one actor of each of the two bases.
TWO_NODES = {
    "workers": 2,
    "cpus_per_worker": 2,
    "min_actors": 2,
    "max_actors": 2,
    "teachers": "cached",
    "scoring_labels": {"muscle-role": "in(scoring,training)"},
}


def run(file: Path, output: Path, env: dict[str, str], *more: str) -> str:
    arguments = ["run", str(file), "--output", str(output), *more]
    result = subprocess.run(
        [sys.executable, "-m", "muscle.cli", *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def places(cluster: Head) -> dict[str, list[str]]:
    result = subprocess.run(
        [sys.executable, WORK, "places", "-", cluster.address],
        env=cluster.env,
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    found: dict[str, list[str]] = json.loads(result.stdout.splitlines()[-1])
    return found


def rates(output: Path) -> dict[str, object]:
    """What the report counts; provenance names places and times."""
    report = json.loads((output / "report.json").read_text())
    task = report["tasks"]["testbed_choice"]
    return {"versions": task["versions"], "pairs": task["pairs"]}


def test_work_spreads_over_two_nodes_to_the_report_of_one(tmp_path: Path) -> None:
    alone = tmp_path / "alone.yaml"
    alone.write_text(yaml.safe_dump({**EXPERIMENT, "resources": {"teachers": "cached"}}))
    spread = tmp_path / "spread.yaml"
    spread.write_text(yaml.safe_dump({**EXPERIMENT, "resources": TWO_NODES}))
    run(alone, tmp_path / "one", dict(os.environ))
    with head(tmp_path / "head", dashboard=False, labels={"muscle-role": "head"}) as cluster:
        for role in ("scoring", "training"):
            cluster.add_node(num_cpus=2, labels={"muscle-role": role})
        run(spread, tmp_path / "two", cluster.env, "--address", cluster.address)
        found = places(cluster)
    training = next(nodes for name, nodes in found.items() if name.startswith("RayTrainWorker"))
    assert len(training) == 2
    for actor in ("Scorer", "Teacher"):
        (nodes,) = [nodes for name, nodes in found.items() if f"({actor})" in name]
        assert len(nodes) == 2, found
    assert rates(tmp_path / "two") == rates(tmp_path / "one")
