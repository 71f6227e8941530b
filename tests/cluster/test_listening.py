"""What listens while a run, a search and a head are there: only the loopback; and the tokens of
such a run stand in no file of its, Ray's logs included."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from canaries import NAMES, SECRETS, found_in
from heads import head, processes_of

pytestmark = [pytest.mark.slow, pytest.mark.long]

UPDATE: dict[str, Any] = {
    "task": "testbed_choice",
    "old": {"model": "testbed:v1"},
    "new": {"model": "testbed:v2"},
    "adapter": {"r": 2, "alpha": 4},
    "training": {
        "limit": 100,
        "epochs": 1,
        "batch_size": 16,
        "accumulation": 1,
        "loss_on": "answer",
        "dtype": "float32",
    },
    "evaluation": {"limit": 30},
    "resources": {"workers": 2, "cpus_per_worker": 1, "teachers": "cached"},
}
SEARCH = {"trials": 2, "difference": 0.3, "interpolations": [0.5], "finalists": 1}

WATCH = """
import json, sys, threading, time
import psutil
from muscle.cli import main

def look():
    me = psutil.Process()
    while True:
        mine = {p.pid: p for p in [me, *me.children(recursive=True)]}
        for c in psutil.net_connections("inet"):
            if c.status == psutil.CONN_LISTEN and c.pid in mine:
                try:
                    seen.add((mine[c.pid].name(), c.laddr.ip))
                except psutil.Error:
                    continue
        time.sleep(0.2)

seen = set()
threading.Thread(target=look, daemon=True).start()
try:
    main(sys.argv[2:])
finally:
    time.sleep(0.5)
    with open(sys.argv[1], "w") as file:
        json.dump(sorted(seen), file)
"""


@dataclass
class Watched:
    """What a command printed and left, and who listened where meanwhile: (process, address)."""

    printed: str
    folder: Path
    listened: list[tuple[str, str]]


def watch(arguments: list[str], folder: Path, environment: dict[str, str]) -> Watched:
    """Run `muscle ARGUMENTS`, looking several times a second at what it and its children open."""
    listened = folder / "listened.json"
    words = [sys.executable, "-c", WATCH, str(listened), *arguments]
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode in (0, 3), done.stdout + done.stderr
    seen = [(name, address) for name, address in json.loads(listened.read_text())]
    return Watched(done.stdout + done.stderr, folder, seen)


@pytest.fixture(scope="module", params=["run", "tune"])
def watched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    """A whole small run, and a whole small search, with secrets in the environment."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = {"name": request.param, **UPDATE}
    if request.param == "tune":
        settings |= {"tuning": SEARCH, "training": {**UPDATE["training"], "tuning_fraction": 0.5}}
    file = folder / "update.yaml"
    file.write_text(yaml.safe_dump(settings))
    temporary = Path(tempfile.mkdtemp(prefix="mr"))  # short: Ray's sockets lie in it
    environment = {**os.environ, **SECRETS, "TMPDIR": str(temporary), "RAY_AUTH_MODE": "token"}
    environment["RAY_TMPDIR"] = str(temporary)
    output = folder / "out"
    try:
        command = [request.param, str(file), "--output", str(output)]
        found = watch(command, folder, environment)
        for logs in temporary.glob("**/session_2*/logs"):
            shutil.copytree(logs, folder / "ray-logs", dirs_exist_ok=True)
        yield found
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_loopback(address: str) -> bool:
    return address == "::1" or address.startswith("127.") or address.startswith("::ffff:127.")


def test_nothing_listens_beyond_the_loopback(watched: Watched) -> None:
    names = {name for name, _ in watched.listened}
    assert {"gcs_server", "raylet"} <= names  # Ray was seen
    beyond = [(name, address) for name, address in watched.listened if not is_loopback(address)]
    assert beyond == []


def test_no_token_stands_in_what_a_run_leaves(watched: Watched) -> None:
    assert list((watched.folder / "ray-logs").glob("*"))  # there are logs to look into
    assert found_in(watched.folder) == []
    assert [name for name in NAMES if SECRETS[name] in watched.printed] == []


def test_the_watch_sees_a_public_socket(tmp_path: Path) -> None:
    """The control: with a socket open to all in it, the same look finds it."""
    opened = "import socket\ns = socket.socket()\ns.bind(('0.0.0.0', 0))\ns.listen()\n"
    code = opened + WATCH.replace("main(sys.argv[2:])", "time.sleep(1)")
    listened = tmp_path / "listened.json"
    subprocess.run([sys.executable, "-c", code, str(listened)], check=True, timeout=120)
    assert [address for _, address in json.loads(listened.read_text())] == ["0.0.0.0"]


def test_a_head_s_dashboard_is_for_this_machine_alone(tmp_path: Path) -> None:
    """Started with cluster.yaml's `--dashboard-host=127.0.0.1`."""
    with head(tmp_path / "head", token="t" * 64) as cluster:
        port = int(cluster.url.rpartition(":")[2])
        listening = {}
        for process in processes_of(cluster.process.pid):
            try:
                for c in process.net_connections(kind="inet"):
                    if c.status == psutil.CONN_LISTEN:
                        listening[c.laddr.port] = c.laddr.ip
            except psutil.Error:
                continue
        assert listening[port] == "127.0.0.1"
        gcs = int(cluster.address.rpartition(":")[2])
        assert gcs in listening  # others were looked at, too
        assert [a for a in listening.values() if not is_loopback(a)] == []
    config = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text())
    (start,) = [c for c in config["head_start_ray_commands"] if c.startswith("ray start --head")]
    assert "--dashboard-host=127.0.0.1" in start
