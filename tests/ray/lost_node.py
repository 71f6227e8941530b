"""Run by test_ray_elastic: trains on a cluster of two nodes, of which one is killed and comes back.

Arguments: a job as a JSON file, and a file for what was seen.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray stays on the loopback
os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "20"

import psutil
from ray.cluster_utils import Cluster

from muscle.config import ResourcesConfig
from muscle.launch import cluster as connection
from muscle.launch import training
from muscle.training.job import TrainJob

LOOPBACK = "127.0.0.1"
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}


NOTICED_S = 25
"""Ray looks for new nodes every 20 seconds."""


def workers() -> list[psutil.Process]:
    """The training workers that are alive."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


class Watcher:
    """Takes the second node away in the middle, and gives it back; notes what it saw."""

    def __init__(self, job: TrainJob, nodes: Cluster, second: Any):
        self.job, self.nodes, self.second = job, nodes, second
        self.seen: dict[str, Any] = {}

    def updates(self) -> int:
        try:
            text = (Path(self.job.checkpoints) / "latest.json").read_text(encoding="utf-8")
            return int(json.loads(text)["updates"])
        except (OSError, ValueError):
            return 0

    def wait(self, what: str, ready: Any) -> None:
        deadline = time.monotonic() + 200
        while not ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"never seen: {what}, after {self.seen}")
            time.sleep(0.05)
        self.seen[what] = self.updates()

    def run(self) -> None:
        self.wait("two workers", lambda: len(workers()) == 2 and self.updates() >= 3)
        self.nodes.remove_node(self.second, allow_graceful=False)
        lost_at = self.updates()
        self.wait("one worker", lambda: len(workers()) == 1 and self.updates() >= lost_at + 3)
        # It would be done before Ray notices the new node: it sleeps until then.
        (alone,) = workers()
        alone.suspend()
        self.nodes.add_node(num_cpus=1, node_ip_address=LOOPBACK)
        time.sleep(NOTICED_S)
        alone.resume()
        back_at = self.updates()
        self.wait("two again", lambda: len(workers()) == 2 and self.updates() >= back_at + 3)


def main(job_file: str, seen_file: str) -> None:
    job = TrainJob.from_json(json.loads(Path(job_file).read_text(encoding="utf-8")))
    training.RESIZE_SECONDS = 2.0
    head = {"num_cpus": 0, "node_ip_address": LOOPBACK, "include_dashboard": False}
    nodes = Cluster(
        initialize_head=True,
        head_node_args={**head, "_system_config": HEALTH, "object_store_memory": 100 * 2**20},
    )
    both = [nodes.add_node(num_cpus=1, node_ip_address=LOOPBACK) for _ in range(2)]
    connection.connect(nodes.address)
    watcher = Watcher(job, nodes, both[1])
    resources = ResourcesConfig(workers=2, min_workers=1, cpus_per_worker=1)
    with ThreadPoolExecutor(1) as pool:
        # Nodes can be started from the main thread only.
        done = pool.submit(training.train_all, [job], resources, lambda progress: None)
        watcher.run()
        done.result()
    Path(seen_file).write_text(json.dumps(watcher.seen), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
