"""One run, one job: submitting, following, stopping, against a job server in this process."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from submitting import FakeServer, write

from muscle import __version__, credentials, submitting
from muscle.cli import main
from muscle.errors import UserError
from muscle.launch import jobs as ray_jobs
from muscle.storage import sha256
from muscle.submission import arrival, jobs, returning
from muscle.submission.packing import ENTRY, EXPERIMENT, Package, pack
from muscle.submission.server import Job, LostError


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 0.0)
    monkeypatch.setattr(jobs, "WAITING_S", 0.0)


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return pack(write(tmp_path))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    found = FakeServer()
    monkeypatch.setattr(ray_jobs, "connect", lambda address: found)
    return found


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--address", FakeServer.url])
    code = stopped.value.code
    return int(code or 0)


# --- submitting -------------------------------------------------------------------------


def test_a_job_holds_nothing_of_this_machines_environment(
    tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in credentials.NAMES:
        monkeypatch.setenv(name, f"canary-{name.lower()}")
    monkeypatch.setenv("PRIVATE", "canary-private")
    package = pack(write(tmp_path))
    id_, there = jobs.submit(server, package)
    (order,) = server.orders
    assert order.id == id_ and not there
    assert order.entrypoint == (
        f"python {ENTRY} run {__version__} {EXPERIMENT} --output '${{MUSCLE_STORAGE}}/runs/tiny'"
    )
    assert server.packages == [package.files]
    assert not order.folder.exists(), "nothing stays here"
    assert "canary" not in repr((order, server.packages))


def test_submitted_twice_is_one_job(package: Package, server: FakeServer) -> None:
    first = jobs.submit(server, package)
    assert jobs.submit(server, package) == (first[0], True)
    assert len(server.orders) == 1


def test_after_its_end_the_next_number_is_submitted(package: Package, server: FakeServer) -> None:
    ids = []
    for _ in range(3):
        id_, there = jobs.submit(server, package)
        assert not there
        ids.append(id_)
        server.stop(id_)
    assert ids == [ids[0], f"{ids[0]}-2", f"{ids[0]}-3"]
    assert ids[0] == f"muscle-tiny-{package.identity}"


def test_an_id_that_was_deleted_is_passed_over(package: Package, server: FakeServer) -> None:
    """Ray forgets a deleted job, and still refuses its id."""
    listed = server.jobs
    id_, _ = jobs.submit(server, package)
    server.jobs = lambda: [job for job in listed() if job.id != id_]  # type: ignore[method-assign]
    assert jobs.submit(server, package) == (f"{id_}-2", False)


def test_who_is_second_by_a_moment_attaches(package: Package, server: FakeServer) -> None:
    barrier = threading.Barrier(2)
    looked = threading.local()
    listed = server.jobs

    def both_look_first() -> list[Job]:
        found = listed()
        if not getattr(looked, "once", False):
            looked.once = True
            barrier.wait(10)
        return found

    server.jobs = both_look_first  # type: ignore[method-assign]
    results: list[tuple[str, bool]] = []
    threads = [
        threading.Thread(target=lambda: results.append(jobs.submit(server, package)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(there for _, there in results) == [False, True]
    assert len({id_ for id_, _ in results}) == 1 == len(server.orders)


def test_another_run_into_the_same_place_is_refused(tmp_path: Path, server: FakeServer) -> None:
    id_, _ = jobs.submit(server, pack(write(tmp_path)))
    other = pack(write(tmp_path), ["training.epochs=2"])
    with pytest.raises(UserError, match=f"job {id_} writes to .*tiny with other settings"):
        jobs.submit(server, other)
    server.stop(id_)
    assert jobs.submit(server, other)[1] is False


def test_odd_names_make_ids_that_ray_takes(tmp_path: Path) -> None:
    package = pack(write(tmp_path, name="A.b_c-1"))
    assert jobs.id_of(package, 2) == f"muscle-A.b_c-1-{package.identity}-2"


# --- following --------------------------------------------------------------------------

LOG = "begin\nträin: 1/2\n" + "".join(f"line {n}\n" for n in range(50)) + "end\n"


class Heard:
    """What a follower said and showed."""

    def __init__(self, server: FakeServer) -> None:
        self.said: list[str] = []
        self.shown: list[str] = []
        self.follower = jobs.Follower(server, self.said.append, self.shown.append)

    def __call__(self, id_: str) -> Job:
        return self.follower.follow(id_)


def started(server: FakeServer, package: Package, **change: Any) -> str:
    id_, _ = jobs.submit(server, package)
    server.text[id_] = LOG
    if change:
        server.endings.insert(0, change)
        server._next(id_)
    return id_


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_a_log_is_shown_once_through_lost_connections(
    lost: int, package: Package, server: FakeServer
) -> None:
    id_ = started(server, package)
    server.endings = [{"status": "SUCCEEDED", "exit_code": 0}]
    server.lose = lost
    heard = Heard(server)
    job = heard(id_)
    assert "".join(heard.shown) == LOG == heard.follower.log
    assert job.status == "SUCCEEDED" and jobs.exit_code(job) == 0
    losses = [text for text in heard.said if "connection lost" in text]
    assert len(losses) == (1 if lost else 0), "said once, not for each try"


def test_a_connection_that_stays_lost_ends_the_following_not_the_job(
    package: Package, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PATIENCE_S", 0.0)
    id_ = started(server, package)
    server.lose = 10
    with pytest.raises(UserError, match=f"muscle jobs logs {id_}"):
        Heard(server)(id_)
    assert not server.known[id_].over


def test_a_job_that_waits_says_for_what_once(package: Package, server: FakeServer) -> None:
    id_ = started(server, package, status="PENDING", message="may be waiting for resources")
    server.endings = [
        {"message": "may be waiting for resources"},
        {"message": "setting up"},
        {"status": "RUNNING"},
        {"status": "SUCCEEDED", "exit_code": 0},
    ]
    heard = Heard(server)
    heard(id_)
    assert [text for text in heard.said if "one CPU" in text] == heard.said[:1]
    assert [text for text in heard.said if text.startswith(id_)] == [
        f"{id_} is pending: may be waiting for resources",
        f"{id_} is pending: setting up",
    ]


def test_terminal_codes_of_a_log_are_not_passed_on() -> None:
    assert jobs.harmless("a\x1b[31mb\r50%\rc\n\u202ed") == "a[31mb\r50%\rc\nd"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"status": "SUCCEEDED", "exit_code": 0}, 0),
        ({"status": "SUCCEEDED"}, 0),
        ({"status": "FAILED", "exit_code": 2}, 2),
        ({"status": "FAILED", "exit_code": 3}, 3),
        ({"status": "FAILED", "exit_code": -9}, 137),
        ({"status": "STOPPED"}, jobs.STOPPED),
    ],
)
def test_the_drivers_exit_code_is_the_commands(change: dict[str, Any], code: int) -> None:
    assert jobs.exit_code(Job("x", **change)) == code


def test_a_driver_that_never_began_is_one_line() -> None:
    job = Job("x", "FAILED", message="runtime_env setup failed:\n  no such\nfile")
    with pytest.raises(UserError, match="runtime_env setup failed: no such file") as error:
        jobs.exit_code(job)
    assert "\n" not in str(error.value)


# --- the commands -----------------------------------------------------------------------


@pytest.fixture
def finished(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place where a job has put a report; the job says so in its log, and ends well."""
    place = tmp_path / "shared" / "tiny"
    place.mkdir(parents=True)
    (place / "report.json").write_text('{"n": 1}')
    (place / "report.html").write_text("<html>")
    (place / "predictions.parquet").write_bytes(b"large")
    server.endings = [{"status": "SUCCEEDED", "exit_code": 0}]
    said = f"{arrival.MARK}{place} (report.json {sha256(str(place / 'report.json'))})\n"
    monkeypatch.setattr(server, "text", Always(LOG + said))
    monkeypatch.chdir(tmp_path)
    return place


class Always(dict[str, str]):
    """One text for every key."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def get(self, key: str, default: Any = None) -> Any:
        return self._text


def test_submit_follows_and_brings_the_report_back(
    finished: Path, server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["submit", str(write(tmp_path))]) == 0
    said = capsys.readouterr()
    assert LOG in said.out
    copies = {path.name: path.read_text() for path in (tmp_path / "runs" / "tiny").iterdir()}
    assert copies == {"report.json": '{"n": 1}', "report.html": "<html>"}
    assert f"results are in {finished}, the report also in runs/tiny" in said.err


def test_a_run_of_this_machine_is_not_overwritten(
    finished: Path, server: FakeServer, tmp_path: Path
) -> None:
    mine = tmp_path / "runs" / "tiny"
    mine.mkdir(parents=True)
    (mine / "experiment.json").write_text("{}")
    file = write(tmp_path)
    assert run(["submit", str(file)]) == 0
    assert [path.name for path in mine.iterdir()] == ["experiment.json"]
    beside = tmp_path / "runs" / f"tiny-{pack(file).identity}"
    assert (beside / "report.json").exists()
    server.endings = [{"status": "SUCCEEDED", "exit_code": 0}]
    assert run(["submit", str(file), "--save", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine" / "report.json").exists()


def test_another_report_at_the_same_path_is_not_taken_for_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "report.json").write_text('{"n": 2}')  # this machine's own
    assert run(["submit", str(write(tmp_path))]) == 0
    assert not (tmp_path / "runs").exists()
    assert "what lies there on this machine is something else" in capsys.readouterr().err


def test_a_place_that_isnt_seen_from_here_is_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "report.json").unlink()
    assert run(["submit", str(write(tmp_path))]) == 0
    assert f"results are in {finished} (no copy here: " in capsys.readouterr().err


def test_a_search_brings_its_tables_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "there"
    place.mkdir()
    for name in returning.FILES["tune"]:
        (place / name).write_text(name)
    said = arrival.Said(str(place), "tune.json", sha256(str(place / "tune.json")))
    package = pack(write(tmp_path), tune=True)
    assert returning.bring_back(said, package, None).folder == "runs/tiny-tune"
    found = {path.name for path in (tmp_path / "runs" / "tiny-tune").iterdir()}
    assert found == {"tune.json", "tune.md", "front.png", "best.yaml"}


def test_no_wait_prints_the_id_alone(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["submit", str(write(tmp_path)), "--no-wait"]) == 0
    said = capsys.readouterr()
    (id_,) = server.known
    assert said.out == f"{id_}\n"
    assert f"muscle jobs logs {id_} --address {server.url}" in said.err


def test_a_failed_run_has_the_drivers_code(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.endings = [{"status": "FAILED", "exit_code": 3}]
    assert run(["submit", str(write(tmp_path)), "--tune"]) == 3
    assert "ended with exit code 3" in capsys.readouterr().err
    assert server.orders[0].metadata["kind"] == "tune"


def test_ctrl_c_leaves_the_job_running(
    server: FakeServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(id_: str) -> Iterator[str]:
        yield "begin\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "tail", interrupted)
    assert run(["submit", str(write(tmp_path))]) == submitting.INTERRUPTED
    (id_,) = server.known
    assert not server.stopped and not server.known[id_].over
    said = capsys.readouterr().err
    assert f"muscle jobs logs {id_}" in said and f"muscle jobs stop {id_}" in said


def test_jobs_of_others_are_not_listed(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["jobs", "list"]) == 0
    assert "no jobs of muscle" in capsys.readouterr().err
    server.known["raysubmit_x"] = Job("raysubmit_x", "RUNNING", started=9.0)
    id_, _ = jobs.submit(server, pack(write(tmp_path)))
    assert run(["jobs", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["id"] == id_ and row["status"] == "RUNNING" and row["experiment"] == "tiny"
    assert row["output"] == "${MUSCLE_STORAGE}/runs/tiny" and row["seconds"] > 0
    assert run(["jobs", "list"]) == 0
    shown = capsys.readouterr().out
    assert "RUNNING" in shown and "raysubmit" not in shown


def test_logs_and_stop(
    server: FakeServer, package: Package, capsys: pytest.CaptureFixture[str]
) -> None:
    id_ = started(server, package)
    assert run(["jobs", "logs", id_, "--no-follow"]) == 0
    assert capsys.readouterr().out == LOG
    assert run(["jobs", "stop", id_]) == 0
    assert server.stopped == [id_]
    assert "has ended: STOPPED; submitted again, its run goes on" in capsys.readouterr().err
    assert run(["jobs", "stop", id_]) == 0
    assert "has ended before: STOPPED" in capsys.readouterr().err
    assert server.stopped == [id_], "asked once"
    assert run(["jobs", "logs", id_]) == jobs.STOPPED


def test_a_job_that_waits_stops_later(
    server: FakeServer,
    package: Package,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "STOPPING_S", 0.0)
    id_ = started(server, package, status="PENDING")
    monkeypatch.setattr(server, "stop", lambda id_: None)
    assert run(["jobs", "stop", id_]) == 0
    assert "asked to stop and still PENDING" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["logs", "stop"])
def test_an_unknown_id_names_the_nearest(
    command: str, server: FakeServer, package: Package, capsys: pytest.CaptureFixture[str]
) -> None:
    id_ = started(server, package)
    assert run(["jobs", command, id_[:-1]]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"did you mean '{id_}'?" in error


def test_a_broken_connection_is_one_line(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> list[Job]:
        raise LostError("reset by peer")

    monkeypatch.setattr(server, "jobs", broken)
    assert run(["jobs", "list"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "reset by peer" in error


def test_bad_input_is_said_before_a_server_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(address: str | None) -> None:
        raise AssertionError

    monkeypatch.setattr(ray_jobs, "connect", asked)
    assert run(["submit", str(write(tmp_path, storage="runs"))]) == 2
    assert "setting 'storage'" in capsys.readouterr().err


# --- at the other end -------------------------------------------------------------------


@pytest.mark.parametrize("joined", [True, False])
def test_the_output_is_read_on_the_cluster(joined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    value = "${MUSCLE_STORAGE}/runs/x"
    given = [f"--output={value}"] if joined else ["--output", value]
    monkeypatch.setenv("MUSCLE_STORAGE", "s3://bucket")
    found = arrival.arguments_here(["e.yaml", *given])
    assert arrival.output_in(found) == "s3://bucket/runs/x"
    assert found[:3] == ["--address", "auto", "e.yaml"]
    monkeypatch.setenv("MUSCLE_STORAGE", "s3://FILL-IN")
    with pytest.raises(UserError, match="--output is 's3://FILL-IN"):
        arrival.arguments_here(given)
    monkeypatch.delenv("MUSCLE_STORAGE")
    with pytest.raises(UserError, match="MUSCLE_STORAGE"):
        arrival.arguments_here(given)


def test_other_arguments_are_left_alone() -> None:
    found = arrival.arguments_here(["--address", "1:2", "--set", "storage=${X}"])
    assert found == ["--address", "1:2", "--set", "storage=${X}"]


def test_what_a_job_says_of_its_results_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrival.say_results("run", str(tmp_path))
    assert capsys.readouterr().out == "", "there is no report"
    (tmp_path / "report.json").write_text("{}")
    arrival.say_results("run", str(tmp_path))
    log = f"before\n{capsys.readouterr().out}after\n"
    digest = sha256(str(tmp_path / "report.json"))
    assert arrival.said_results(log) == arrival.Said(str(tmp_path), "report.json", digest)
    assert arrival.said_results("before\nafter\n") is None


@pytest.fixture
def enter(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """`enter(version, path)`: run the entry as a node would; returns its exit code and words."""
    import os
    import subprocess

    package = pack(write(tmp_path))
    package.write(tmp_path / "there")

    def run_entry(version: str, path: str | None) -> tuple[int, str]:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"PYTHONPATH": path} if path is not None else {}
        done = subprocess.run(
            [sys.executable, *(["-S"] if path is None else []), ENTRY, "run", version, EXPERIMENT],
            cwd=tmp_path / "there",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    return run_entry


def test_a_node_without_muscle_says_so(enter: Callable[..., tuple[int, str]]) -> None:
    code, said = enter(__version__, None)
    assert code == 2
    assert said == "muscle: the cluster's nodes lack muscle: give them the image of " + (
        "cluster/Dockerfile\n"
    )


def test_another_version_on_the_cluster_is_one_line(
    enter: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    other = tmp_path / "other" / "muscle"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text('__version__ = "9.9.9"\n')
    code, said = enter(__version__, str(other.parent))
    assert code == 2 and said.count("\n") == 1
    assert f"muscle is {__version__} where the job was submitted and 9.9.9 on the cluster" in said
