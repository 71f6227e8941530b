"""The node types of cluster.yaml as processes of this machine, for Ray's own autoscaler.

`scaled_down` makes the autoscaler's configuration, `LocalNodeProvider` is what it starts and
ends nodes with, and `nodes` shows any process which there are. Ray's own provider for tests
(`fake_multinode`) isn't whole in its wheel, and starts nodes that can't be killed as one.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from heads import Head, head, kill_all, ray_start, worker_arguments
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import NODE_KIND_HEAD, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

CLUSTER_FILE = Path(__file__).parents[2] / "cluster.yaml"
HEAD = "head"

RESOURCES = {
    "head": {"CPU": 0, "GPU": 0},
    "cpu": {"CPU": 1, "GPU": 0},
    "gpu-scoring": {"CPU": 1, "GPU": 1},
    "gpu-training": {"CPU": 2, "GPU": 2},
}
"""GPUs are only counted. A training node holds two trainings of one CPU, side by side."""

MOST = {"head": 0, "cpu": 1, "gpu-scoring": 2, "gpu-training": 1}
"""Workers: each costs seconds of this machine's cores to start."""


def scaled_down(folder: Path, idle_s: float = 15.0) -> dict[str, Any]:
    """cluster.yaml's node types and their labels, few and small, going after `idle_s` seconds."""
    real = yaml.safe_load(CLUSTER_FILE.read_text(encoding="utf-8"))
    types = {
        name: {
            "resources": RESOURCES[name],
            "labels": kind["labels"],
            "min_workers": kind["min_workers"],
            "max_workers": min(MOST[name], kind["max_workers"]),
            "node_config": {},
        }
        for name, kind in real["available_node_types"].items()
    }
    return {
        "cluster_name": real["cluster_name"],
        "provider": {
            "type": "external",
            "module": "local_nodes.LocalNodeProvider",
            "folder": str(folder),
            # Ray is started by the provider, not over SSH.
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "max_workers": sum(kind["max_workers"] for kind in types.values()),
        "upscaling_speed": real["upscaling_speed"],
        "idle_timeout_minutes": idle_s / 60,
        "head_node_type": real["head_node_type"],
        "available_node_types": types,
        # Ray fills these in for its own kinds of provider only.
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


@dataclass(frozen=True)
class LocalNode:
    """A worker node that the autoscaler started, as its file says."""

    id: str
    type: str
    pid: int
    started: float
    """The process's own start time: with the pid it names one process for ever."""

    def alive(self) -> bool:
        """Whether its first process runs; a node ends with it."""
        try:
            process = psutil.Process(self.pid)
            return process.create_time() == self.started and (
                process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False

    def kill(self) -> None:
        """End the whole node at once, as a machine that is switched off."""
        if self.alive():
            kill_all(self.pid)


def nodes(folder: Path) -> list[LocalNode]:
    """All worker nodes that were ever started on a cluster, oldest first."""
    found = []
    for file in sorted(folder.glob("w*.json")):
        found.append(LocalNode(**json.loads(file.read_text(encoding="utf-8"))))
    return found


class LocalNodeProvider(NodeProvider):
    """Starts a worker node as a process, and ends it with all of its processes.

    Its state lies in the folder. Nodes that die are simply not among the running ones, as
    with a cloud's instances.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self.folder = Path(provider_config["folder"])
        self.address = provider_config["gcs_address"]
        self.temporary = Path(provider_config["temporary"])
        self.lock = threading.RLock()  # the autoscaler launches from several threads
        self.tags: dict[str, dict[str, str]] = {
            HEAD: {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: HEAD}
        }
        self.workers: dict[str, LocalNode] = {}
        self.processes: list[subprocess.Popen[bytes]] = []

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """Those that run, the head among them."""
        with self.lock:
            for process in self.processes:
                process.poll()  # so that none that ended stays a zombie
            running = [name for name in self.tags if self.is_running(name)]
            return [n for n in running if tag_filters.items() <= self.tags[n].items()]

    def is_running(self, node_id: str) -> bool:
        """Whether its first process is alive."""
        return node_id == HEAD or (node_id in self.workers and self.workers[node_id].alive())

    def is_terminated(self, node_id: str) -> bool:
        """Whether it has ended, by itself or by us."""
        return not self.is_running(node_id)

    def node_tags(self, node_id: str) -> dict[str, str]:
        """As given at its creation."""
        return self.tags[node_id]

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        """Start nodes; they join the cluster seconds later."""
        for _ in range(count):
            with self.lock:
                self._start(tags, resources, labels)

    def _start(
        self, tags: dict[str, str], resources: dict[str, float], labels: dict[str, str]
    ) -> None:
        name, kind = f"w{len(self.workers):02}", tags[TAG_RAY_USER_NODE_TYPE]
        # What the autoscaler recognises the Ray node by.
        environment = {**os.environ, "RAY_CLOUD_INSTANCE_ID": name, "RAY_NODE_TYPE_NAME": kind}
        arguments = worker_arguments(self.address, resources, labels, self.temporary / name)
        with (self.folder / f"{name}.log").open("wb") as log:
            process = ray_start(arguments, environment, log)
        node = LocalNode(name, kind, process.pid, psutil.Process(process.pid).create_time())
        self.processes.append(process)
        self.workers[name], self.tags[name] = node, dict(tags)
        new = self.folder / f"{name}.new"
        new.write_text(json.dumps(node.__dict__), encoding="utf-8")
        new.rename(self.folder / f"{name}.json")

    def terminate_node(self, node_id: str) -> None:
        """End a node with all of its processes."""
        self.workers[node_id].kill()

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Nothing to add."""
        return cluster_config


@contextmanager
def autoscaling_head(folder: Path, idle_s: float = 15.0, **more: Any) -> Iterator[Head]:
    """A head whose autoscaler starts and ends the nodes of `scaled_down`; all end at exit."""
    folder.mkdir(parents=True, exist_ok=True)
    config = scaled_down(folder, idle_s)
    labels = config["available_node_types"][HEAD]["labels"]
    try:
        with head(folder, autoscaling=config, labels=labels, **more) as cluster:
            yield cluster
    finally:
        for node in nodes(folder):  # one may have been starting while the autoscaler ended
            node.kill()


def wait_until(ready: Callable[[], bool], what: str, folder: Path, seconds: float = 600) -> None:
    """Poll; a failure shows the autoscaler's last words."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"never seen: {what}\n{last_words(folder)}"
        time.sleep(0.1)


def last_words(folder: Path, lines: int = 40) -> str:
    """The nodes there were, for a failing test's message."""
    seen = [f"{n.id} {n.type} {'alive' if n.alive() else 'gone'}" for n in nodes(folder)]
    return "\n".join(seen[-lines:])


if __name__ == "__main__":  # `python local_nodes.py FOLDER`: see a cluster scale by hand
    with autoscaling_head(Path(sys.argv[1])) as running:
        print(running.address, running.url, flush=True)
        time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 600)
