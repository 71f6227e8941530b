"""What listens on a node, and that without the token nobody gets anything: the port table of
docs/cluster.md."""

import http.client
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

import psutil
import pytest
from heads import LOOPBACK, Head, free_port, head, processes_of

pytestmark = pytest.mark.slow

TOKEN, WRONG = "a" * 64, "b" * 64

DOORS = {
    "gcs_server": ["NodeInfoGcsService/GetAllNodeInfo", "JobInfoGcsService/GetAllJobInfo"],
    "raylet": ["NodeManagerService/GetNodeStats", "ObjectManagerService/Pull"],
    "ray.util.client.server": ["RayletDriver/ClusterInfo"],
    "dashboard.py": ["/api/jobs/", "/api/version", "/metrics"],
    "monitor.py": ["/metrics"],
    "DashboardAgent": [
        "ReporterService/GetTraceback",
        "/api/job_agent/jobs/",
        "/metrics",
    ],
    "RuntimeEnvAgent": ["/get_or_create_runtime_env"],
    "ray::Busy": ["CoreWorkerService/GetCoreWorkerStats"],
}
"""Process to what it may be asked: a path is HTTP, the rest gRPC."""

OPEN = {"/metrics"}
"""What anybody may ask: numbers, nothing of a run."""

DRIVER = """
import ray, sys
ray.init(sys.argv[1])

@ray.remote(num_cpus=0)
class Busy:
    def ready(self):
        return True

busy = Busy.remote()
print(ray.get(busy.ready.remote()), flush=True)
sys.stdin.read()
"""


class Door(NamedTuple):
    """A listening socket and the process behind it, as `DOORS` names it."""

    process: str
    host: str
    port: int


def doors_of(pid: int) -> list[Door]:
    found = []
    for one in processes_of(pid):
        try:
            command, connections = " ".join(one.cmdline()), one.net_connections(kind="inet")
            # The raylet's command line quotes those of the agents that it starts.
            name = "raylet" if one.name() == "raylet" else None
        except psutil.Error:  # ended since
            continue
        name = name or next((name for name in DOORS if name in command), command[:120])
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                host = connection.laddr.ip.removeprefix("::ffff:")
                found.append(Door(name, host, connection.laddr.port))
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head with a token, on which an actor lives."""
    # Two of Ray's ports are fixed, and left out where another Ray has them.
    own = {name: str(free_port()) for name in ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")}
    folder = tmp_path_factory.mktemp("ports")
    with head(folder, token=TOKEN, num_cpus=1, env=own) as started:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, started.address],
            env=started.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert driver.stdout is not None and driver.stdin is not None
        said = driver.stdout.readline()
        assert said == "True\n", f"the driver said {said!r} and ended with {driver.poll()}"
        yield started
        driver.stdin.close()
        driver.wait(timeout=60)


@pytest.fixture(scope="module")
def doors(cluster: Head) -> list[Door]:
    deadline = time.monotonic() + 120
    found = doors_of(cluster.process.pid)
    # An agent gets its name, and opens its ports, a while after its start.
    while {door.process for door in found} != set(DOORS) and time.monotonic() < deadline:
        time.sleep(1)
        found = doors_of(cluster.process.pid)
    return found


def ask(door: Door, question: str, token: str | None) -> str:
    """ "given", "refused", or why there is no such question at this door."""
    if question.startswith("/"):
        return _ask_http(door, question, token)
    return _ask_grpc(door, question, token)


def _ask_http(door: Door, path: str, token: str | None) -> str:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    data = b"" if "create" in path else None
    request = urllib.request.Request(f"http://{LOOPBACK}:{door.port}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=20):
            return "given"
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return "refused"
        return "given" if error.code == 405 else str(error.code)  # not by GET, but to who asks
    except (OSError, http.client.HTTPException) as error:  # it speaks no HTTP
        return type(error).__name__


def _ask_grpc(door: Door, method: str, token: str | None) -> str:
    import grpc

    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(f"{LOOPBACK}:{door.port}") as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=20, metadata=metadata)
            return "given"
        except grpc.RpcError as error:
            code = error.code().name  # type: ignore[attr-defined]
    known = {"UNAUTHENTICATED": "refused", "NOT_FOUND": "given"}  # no such client, but it looked
    return known.get(code, code)


def test_only_what_the_table_names_listens(doors: list[Door]) -> None:
    assert {door.process for door in doors} == set(DOORS)
    # As tests start them; a cluster's nodes talk to each other over the network.
    assert {door.host for door in doors} == {LOOPBACK}


@pytest.mark.parametrize("process", DOORS)
def test_without_the_token_nothing_is_given(cluster: Head, doors: list[Door], process: str) -> None:
    questions = {question for question in DOORS[process] if question not in OPEN}
    given = answered(doors, process, questions)
    deadline = time.monotonic() + 120
    while given != questions and time.monotonic() < deadline:
        time.sleep(1)  # an agent opens its ports one after the other
        given = answered(doors_of(cluster.process.pid), process, questions)
    assert given == questions, "with the token each is answered by one of the doors"


def answered(doors: list[Door], process: str, questions: set[str]) -> set[str]:
    """The questions that one of a process's doors answers to who has the token, and to nobody
    else; fails where one answers anybody."""
    behind = [door for door in doors if door.process == process]
    # The metrics' own server has but one answer, whatever the path.
    behind = [door for door in behind if ask(door, "/metrics", None) != "given"]
    found = set()
    for question in questions:
        for door in behind:
            answers = [ask(door, question, token) for token in (TOKEN, None, WRONG)]
            assert "given" not in answers[1:], (door, question, answers)
            if answers == ["given", "refused", "refused"]:
                found.add(question)
    return found
