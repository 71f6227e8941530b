"""Work that waits for a node says so and ends when it comes; what can never come is refused."""

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
from heads import Head, head

from muscle.launch.waiting import TRIAL
from muscle.training.job import TrainJob

pytestmark = pytest.mark.slow

SCRIPT = str(Path(__file__).parent / "work.py")
TRAINING = {"muscle-role": "training"}

HOLD = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)
@ray.remote(num_cpus=1, label_selector={"muscle-role": "training"})
class Holder:
    def here(self): return True
held = Holder.remote()
ray.get(held.here.remote())
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A head without CPUs and one node for training."""
    folder = tmp_path_factory.mktemp("head")
    with head(folder, dashboard=False, labels={"muscle-role": "head"}) as started:
        started.add_node(num_cpus=1, labels=TRAINING)
        yield started


def start(code: list[str], cluster: Head, **more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *code],
        env={**cluster.env, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(words: str, out: IO[str]) -> list[str]:
    """Lines up to one with these words; there must be one."""
    lines: list[str] = []
    deadline = time.monotonic() + 240
    while not lines or words not in lines[-1]:
        assert time.monotonic() < deadline, lines
        line = out.readline()
        assert line, f"ended without {words!r}: {lines}"
        lines.append(line)
    return lines


IMPOSSIBLE: list[tuple[dict[str, object], str]] = [
    (
        {"gpus_per_worker": 2},
        "resources.gpus_per_worker is 2: no node of this cluster has a GPU (training: 1 CPU x 1): "
        "set it to 0",
    ),
    ({"cpus_per_worker": 2}, "no node of this cluster has more than 1 CPU"),
    ({"workers": 3}, "asks for 3 x (1 CPU) and this cluster has room for 1"),
    ({"scoring_labels": {"muscle-role": "scoring"}}, "no node of this cluster carries it"),
    # Ray's own nodes and selectors, not ours: what is possible is not refused.
    ({"training_labels": {"muscle-role": "!in(scoring,head)"}}, "fits"),
]


def test_the_impossible_fails_at_once(cluster: Head) -> None:
    settings = [json.dumps(one) for one, _ in IMPOSSIBLE]
    with start([SCRIPT, "check", "-", cluster.address, *settings], cluster) as work:
        said, _ = work.communicate(timeout=240)
    assert work.returncode == 0, said
    for line, (_, named) in zip(said.splitlines()[-len(IMPOSSIBLE) :], IMPOSSIBLE, strict=True):
        assert named in line, said


def test_a_trial_that_only_drives_others_keeps_off_their_nodes(cluster: Head) -> None:
    with start([SCRIPT, "driver", "-", cluster.address], cluster) as work:
        said, _ = work.communicate(timeout=240)
    assert work.returncode == 0, said
    labels, actor = json.loads(said.splitlines()[-1])
    assert labels["muscle-role"] == "head"  # there is but a training node besides
    assert TRIAL in actor  # else its waiting would not be noticed


def test_a_training_says_what_it_waits_for_and_ends_when_a_node_comes(
    cluster: Head, make_job: Callable[..., TrainJob], tmp_path: Path
) -> None:
    job = make_job(tmp_path)
    (tmp_path / "job").write_bytes(pickle.dumps([job]))
    resources = {"training_labels": TRAINING, "max_failures": 0}
    arguments = [SCRIPT, "jobs", str(tmp_path / "job"), cluster.address, json.dumps(resources)]
    holder = start(["-c", HOLD, cluster.address], cluster)
    try:
        assert holder.stdout is not None
        read_until("held", holder.stdout)
        # Ray gives up a start every 10 seconds, and must not count that as a failure.
        with start(arguments, cluster, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="10") as work:
            try:
                assert work.stdout is not None
                seen = read_until("0 of 1 CPU free", work.stdout)
                assert "waits for 1 x (1 CPU) on muscle-role=training: 0 of 1" in seen[-1]
                cluster.add_node(num_cpus=1, labels=TRAINING)
                rest, _ = work.communicate(timeout=300)
                assert work.returncode == 0, [*seen, rest]
            finally:
                work.kill()
    finally:
        holder.kill()
        holder.wait()
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
