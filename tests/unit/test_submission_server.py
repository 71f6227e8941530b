"""Addresses and servers that are not what was meant, each one line; no Ray needed for that."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from submitting import write

from muscle.cli import main

ANSWER = tuple[int, str]


@contextmanager
def serving(answer: Callable[[str], ANSWER]) -> Iterator[str]:
    """An HTTP server on the loopback; `answer(path)` is (status, body)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1, said
    assert said.err.startswith("muscle: ")
    return said.err


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


COMMANDS = [
    ["submit", "EXPERIMENT"],
    ["jobs", "list"],
    ["jobs", "logs", "x"],
    ["jobs", "stop", "x"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_wants_an_address(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write(tmp_path))
    error = refused([file if word == "EXPERIMENT" else word for word in command], capsys)
    assert "no cluster is named: give --address http://" in error


@pytest.mark.parametrize(
    "address", ["127.0.0.1:6379", "ray://host:10001", "auto", "host:8265", "http://"]
)
def test_an_address_of_another_kind_is_refused(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(["jobs", "list", "--address", address], capsys)
    assert f"--address is '{address}', which is no URL of a job server" in error


def test_the_environment_names_the_server(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "host:6379")
    assert "RAY_ADDRESS is 'host:6379'" in refused(["jobs", "list"], capsys)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert "http://127.0.0.1:1 can't be reached" in refused(["jobs", "list"], capsys)
    given = ["jobs", "list", "--address", "http://127.0.0.1:2"]
    assert "http://127.0.0.1:2 can't be reached" in refused(given, capsys)


def test_an_address_with_a_password_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(["jobs", "list", "--address", "http://me:word@host:8265"], capsys)
    assert "--address holds a secret" in error and "word@" not in error


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nobody_there(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(write(tmp_path)) if word == "EXPERIMENT" else word for word in command]
    error = refused([*words, "--address", "http://127.0.0.1:1"], capsys)
    assert "the job server http://127.0.0.1:1 can't be reached" in error
    assert "nowhere.invalid" in refused(
        [*words, "--address", "http://nowhere.invalid:8265"], capsys
    )


@pytest.mark.parametrize("body", ["<html>hello</html>", "[]", "{}", ""])
def test_a_server_that_is_no_ray(body: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda path: (200, body)) as url:
        assert "not as a Ray job server" in refused(["jobs", "list", "--address", url], capsys)
    with serving(lambda path: (404, body)) as url:
        assert "(HTTP 404)" in refused(["jobs", "list", "--address", url], capsys)


def test_a_port_that_speaks_no_http(capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def answer() -> None:
            connection, _ = listening.accept()
            connection.recv(1000)
            connection.sendall(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00 gRPC")
            connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert "not as a Ray job server" in refused(["jobs", "list", "--address", url], capsys)
        thread.join(10)


def test_another_ray_on_the_cluster(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import ray

    answer = json.dumps({"version": "4", "ray_version": "2.9.1", "ray_commit": "x"})
    with serving(lambda path: (200, answer)) as url:
        error = refused(["submit", str(write(tmp_path)), "--address", url], capsys)
    assert f"Ray is {ray.__version__} here and 2.9.1 at {url}" in error


@pytest.mark.parametrize(
    ("status", "body", "named"),
    [
        (401, "Unauthorized: Missing authentication token", "wants a token"),
        (403, "Forbidden: Invalid authentication token", "refuses the token"),
    ],
)
def test_a_token_that_is_missing_or_wrong(
    status: int, body: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda path: (status, body)) as url:
        error = refused(["jobs", "list", "--address", url], capsys)
    assert f"{url} {named}: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN" in error


def test_help_and_wrong_usage_need_neither_torch_nor_ray() -> None:
    code = """
import sys
from muscle.cli import main
for arguments in (["submit", "--help"], ["jobs", "--help"], ["jobs", "list", "--help"],
                  ["submit"], ["submit", "no.yaml", "--address", "host:1"],
                  ["jobs", "list", "--address", "http://127.0.0.1:1"]):
    try:
        main(arguments)
    except SystemExit as stopped:
        print(arguments, stopped.code)
heavy = {"torch", "ray", "deepspeed", "transformers", "lm_eval"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
