"""Real Ray clusters of this machine's processes: own ports, own directory, loopback only.

    with head(tmp_path, num_cpus=2) as cluster:
        node = cluster.add_node(num_cpus=1)
        subprocess.run([..., "--address", cluster.address], env=cluster.env)
        node.kill()

Nothing here runs `ray stop`, which ends every Ray of the machine.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
import yaml

LOOPBACK = "127.0.0.1"
START_S = 180
"""A busy machine takes its time to start a node."""

STORE_BYTES = 100 * 2**20
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}
"""A node that is killed is noticed in seconds, not in half a minute."""

STARTED = "Ray runtime started."
TOO_SLOW = "The current node timed out during startup"
ATTEMPTS = 4

# RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 keeps all of Ray's processes on the loopback, and makes
# `ray start` refuse to add a node: here alone it is told otherwise.
# And a node that outlived the process which was to end it would stay for ever.
START = f"""
import os, signal, threading, time
parent = os.getppid()
def follow():
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=follow, daemon=True).start()
from ray._private import ray_constants, services
from ray.scripts import scripts
ray_constants.ENABLE_RAY_CLUSTER = True
services.get_node_ip_address = lambda address=None: {LOOPBACK!r}
scripts.main()
"""


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        return int(taken.getsockname()[1])


def processes_of(pid: int) -> list[psutil.Process]:
    """A process, its descendants, and what shares a session with any of them.

    A Ray node's processes share the session that it was started in, even those whose parent
    has died; a submitted job's driver has its own, and is found as a descendant.
    """
    try:
        leader = psutil.Process(pid)
        tree = [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        tree = []
    sessions = {pid} | {session for one in tree if (session := _session(one.pid))}
    sessions.discard(os.getsid(0))
    known = {one.pid for one in tree}
    others = [
        one
        for one in psutil.process_iter()
        if one.pid not in known and _session(one.pid) in sessions
    ]
    return tree + others


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def kill_all(pid: int) -> None:
    """SIGKILL a node that leads its own session, whole; returns when it is gone."""
    deadline = time.monotonic() + 30
    while found := [one for one in processes_of(pid) if _alive(one)]:
        assert time.monotonic() < deadline, f"can't be ended: {found}"
        for one in found:
            try:
                os.kill(one.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        psutil.wait_procs(found, timeout=1)


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def ray_start(
    arguments: list[str], environment: Mapping[str, str], log: IO[bytes]
) -> "subprocess.Popen[bytes]":
    """`ray start ARGUMENTS --block` in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", START, "start", *arguments, "--block"],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _ports() -> list[str]:
    """A node's own: Ray's defaults are for one node per machine.

    Chosen here, since a node that leaves them to its agents dies where those take more than
    15 seconds to start.
    """
    agents = (
        "--dashboard-agent-listen-port",
        "--dashboard-agent-grpc-port",
        "--runtime-env-agent-port",
        "--metrics-export-port",
    )
    chosen = [text for agent in agents for text in (agent, str(free_port()))]
    return ["--min-worker-port", "0", "--max-worker-port", "0", *chosen]


def worker_arguments(
    address: str,
    resources: Mapping[str, float],
    labels: Mapping[str, str] | None,
    temporary: Path,
) -> list[str]:
    """What makes a worker node of `ray start`; CPU and GPU are among the resources.

    Each node has its own directory: two that start at once in a shared one take the same
    names for their sockets, and one of them dies.
    """
    others = {name: n for name, n in resources.items() if name not in ("CPU", "GPU")}
    arguments = [
        *("--address", address, "--node-ip-address", LOOPBACK),
        *("--num-cpus", str(int(resources.get("CPU", 0)))),
        *("--num-gpus", str(int(resources.get("GPU", 0)))),
        *("--resources", json.dumps(others)),
        *("--temp-dir", str(temporary)),
        *("--object-store-memory", str(STORE_BYTES), "--disable-usage-stats"),
        *_ports(),
    ]
    if labels:
        arguments += ["--labels", ",".join(f"{key}={value}" for key, value in labels.items())]
    return arguments


@dataclass
class Node:
    """A worker node."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def kill(self) -> None:
        """End the whole node at once, as a machine that is switched off."""
        kill_all(self.process.pid)
        self.process.wait()


@dataclass
class Head:
    """A running head and the worker nodes added to it."""

    address: str
    """HOST:PORT of the GCS, for `--address` and `ray.init`."""
    url: str
    """http://HOST:PORT of the job server; nothing listens there without a dashboard."""
    env: dict[str, str]
    """The whole environment of a client: this process's, and what the cluster asks for."""
    folder: Path
    temporary: Path
    node_env: dict[str, str]
    process: "subprocess.Popen[bytes]"
    nodes: list[Node] = field(default_factory=list)

    def add_node(
        self,
        *,
        num_cpus: int = 1,
        num_gpus: int = 0,
        labels: Mapping[str, str] | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> Node:
        """Start a worker node and wait until the cluster knows it."""
        wanted = {"CPU": num_cpus, "GPU": num_gpus, **(resources or {})}
        name = f"node-{len(self.nodes)}"
        log, temporary = self.folder / f"{name}.log", self.temporary / name
        arguments = worker_arguments(self.address, wanted, labels, temporary)
        node = Node(_start(arguments, self.node_env, log), log)
        self.nodes.append(node)
        return node

    def kill(self) -> None:
        """End the head alone at once; worker nodes follow by themselves, or at the end."""
        kill_all(self.process.pid)
        self.process.wait()


def _start(
    arguments: list[str], environment: Mapping[str, str], log: Path
) -> "subprocess.Popen[bytes]":
    """`ray start` until it says that it has; again where Ray's own 30 seconds didn't suffice."""
    for attempt in range(ATTEMPTS):
        with log.open("wb") as out:
            process = ray_start(arguments, environment, out)
        try:
            _wait(process, log, lambda: STARTED in log.read_text(errors="replace"))
            return process
        except BaseException as error:
            kill_all(process.pid)
            process.wait()
            again = attempt + 1 < ATTEMPTS and TOO_SLOW in log.read_text(errors="replace")
            if not (again and isinstance(error, AssertionError)):
                raise
    raise AssertionError("no attempt was made")


def _wait(process: "subprocess.Popen[bytes]", log: Path, ready: Any) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        text = log.read_text(errors="replace")
        assert process.poll() is None, f"ray start ended with {process.returncode}:\n{text}"
        assert time.monotonic() < deadline, f"ray start is not ready:\n{text}"
        time.sleep(0.1)


def _answers(url: str, token: str | None) -> bool:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(f"{url}/api/version", headers=headers)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _environments(
    token: str | None, extra: Mapping[str, str] | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Of clients, and of nodes: nodes get `extra` too."""
    client = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDR")}
    client["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray stays on the loopback
    client.pop("RAY_AUTH_TOKEN", None)
    client["RAY_AUTH_MODE"] = "token" if token else "disabled"
    if token:
        client["RAY_AUTH_TOKEN"] = token
    # Ray's workers give way to everything else: on a busy machine, for ever.
    return client, {**client, "RAY_worker_niceness": "0", **(extra or {})}


@contextmanager
def head(
    folder: Path,
    *,
    token: str | None = None,
    dashboard: bool = True,
    autoscaling: dict[str, Any] | None = None,
    num_cpus: int = 0,
    labels: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Head]:
    """A head node, ended at exit with all that was started on it.

    Args:
        folder: gets what the nodes print, and Ray's logs at the end.
        token: turns Ray's token authentication on.
        autoscaling: a cluster's configuration; its provider is told `gcs_address`
            and `temporary`, a directory with a short path.
        env: more environment variables of the nodes, so of everything that runs on them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    client, node_env = _environments(token, env)
    address, url = f"{LOOPBACK}:{free_port()}", f"http://{LOOPBACK}:{free_port()}"
    # Sockets lie in it, and their paths may have about a hundred bytes.
    temporary = Path(tempfile.mkdtemp(prefix="mr"))
    arguments = [
        *("--head", "--node-ip-address", LOOPBACK, "--port", address.rpartition(":")[2]),
        *("--num-cpus", str(num_cpus), "--num-gpus", "0", "--temp-dir", str(temporary)),
        *("--include-dashboard", str(dashboard).lower(), "--dashboard-host", LOOPBACK),
        *("--dashboard-port", url.rpartition(":")[2]),
        *("--ray-client-server-port", str(free_port()), *_ports()),
        *("--object-store-memory", str(STORE_BYTES), "--disable-usage-stats"),
        *("--system-config", json.dumps(HEALTH)),
    ]
    if labels:
        arguments += ["--labels", ",".join(f"{key}={value}" for key, value in labels.items())]
    if autoscaling:
        arguments += [
            "--autoscaling-config",
            _write_autoscaling(folder, autoscaling, address, temporary),
        ]
        node_env |= _autoscaler_env(autoscaling)
    log = folder / "head.log"
    cluster: Head | None = None
    try:
        process = _start(arguments, node_env, log)
        cluster = Head(address, url, client, folder, temporary, node_env, process)
        if dashboard:
            _wait(process, log, lambda: _answers(url, token))
        yield cluster
    finally:
        if cluster is not None:
            for node in cluster.nodes:
                node.kill()
            cluster.kill()
        for logs in temporary.glob("**/session_2*/logs"):
            node_name = logs.parent.parent.relative_to(temporary)
            shutil.copytree(logs, folder / "logs" / node_name, dirs_exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)


def _write_autoscaling(
    folder: Path, autoscaling: dict[str, Any], address: str, temporary: Path
) -> str:
    path = folder / "autoscaling.yaml"
    known = {"gcs_address": address, "temporary": str(temporary)}
    provider = {**autoscaling["provider"], **known}
    path.write_text(yaml.safe_dump({**autoscaling, "provider": provider}), encoding="utf-8")
    return str(path)


def _autoscaler_env(autoscaling: dict[str, Any]) -> dict[str, str]:
    """What the autoscaler knows the head by, where it finds the provider, and a quick pulse."""
    here = str(Path(__file__).parent)
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    return {
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": "head",
        "RAY_NODE_TYPE_NAME": autoscaling["head_node_type"],
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "AUTOSCALER_METRIC_PORT": str(free_port()),
        "PYTHONPATH": path,
    }
