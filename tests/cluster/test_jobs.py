"""Jobs over a real job server that wants a token."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from heads import Head, head
from updates import update

from muscle import credentials

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TOKEN = "canary-ray-token-0123456789"
CANARIES = {name: f"canary-{name.lower()}-0123456789" for name in credentials.NAMES}
CANARIES["RAY_AUTH_TOKEN"] = TOKEN
SETTINGS = {**update("tiny", 8, epochs=1, limit=16), "storage": "${MUSCLE_STORAGE}"}


@dataclass
class Place:
    """A cluster in token mode whose nodes have secrets, and a folder that they and we see."""

    cluster: Head
    folder: Path
    seen: list[str]
    """All that clients printed."""

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def experiment(self, **changes: Any) -> str:
        file = self.folder / "tiny.yaml"
        file.write_text(yaml.safe_dump({**SETTINGS, **changes}))
        return str(file)

    def muscle(
        self, *words: str, env: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """A `muscle` command on another machine, as it were: it doesn't know MUSCLE_STORAGE."""
        environment = {**self.cluster.env, **CANARIES} if env is None else dict(env)
        return self._run([sys.executable, "-m", "muscle.cli", *words], environment)

    def _run(self, words: list[str], env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            words, env=env, cwd=self.folder, capture_output=True, text=True, timeout=500
        )
        self.seen += [done.stdout, done.stderr]
        return done

    def submit(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return self.muscle("submit", *words, "--address", self.cluster.url)

    def ray_submit(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Plain `ray job submit`, from a folder that holds jobs/."""
        ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
        where = ["--address", self.cluster.url, "--working-dir", "."]
        return self._run([*ray, *where, "--", *words], self.cluster.env)

    def get(self, path: str) -> str:
        """An answer of the job server's."""
        request = urllib.request.Request(
            f"{self.cluster.url}{path}", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()


def node_environment(folder: Path) -> dict[str, str]:
    """What cluster.yaml and pods give their nodes."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**CANARIES, "MUSCLE_STORAGE": str(folder / "store"), "PATH": path}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("jobs")
    shutil.copytree(ROOT / "jobs", folder / "jobs", ignore=shutil.ignore_patterns("experiments"))
    nodes = node_environment(folder)
    labels = {"muscle-role": "cpu"}
    with head(folder / "head", token=TOKEN, num_cpus=4, labels=labels, env=nodes) as cluster:
        found = Place(cluster, folder, [])
        yield found
    everything = "".join(found.seen)
    logs = [path for path in (folder / "head" / "logs").rglob("*job*") if path.is_file()]
    assert logs
    everything += "".join(path.read_text(errors="replace") for path in logs)
    for canary in CANARIES.values():
        assert canary not in everything


def one_line(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_without_the_token_nothing_is_told_and_nothing_runs(place: Place) -> None:
    wrong = {**place.cluster.env, "RAY_AUTH_TOKEN": "another-token-0123456789"}
    none = {k: v for k, v in place.cluster.env.items() if not k.startswith("RAY_AUTH")}
    none["HOME"] = str(place.folder)  # where no token lies
    words = ["submit", place.experiment(), "--address", place.cluster.url]
    assert "refuses the token" in one_line(place.muscle(*words, env=wrong))
    assert "wants a token: set RAY_AUTH_MODE=token" in one_line(place.muscle(*words, env=none))
    assert json.loads(place.get("/api/jobs/")) == []


@pytest.fixture(scope="module")
def prepared(place: Place) -> Place:
    """The storage as an earlier run left it."""
    from muscle.alone import Alone
    from muscle.config import Experiment
    from muscle.pipeline import Pipeline
    from muscle.plan import make_plan

    experiment = Experiment.model_validate({**SETTINGS, "storage": str(place.store)})
    output = str(place.folder / "before")
    Pipeline(make_plan(experiment), output, Alone("cpu"), lambda progress: None).run()
    return place


def test_a_run_is_followed_and_its_report_comes_back(prepared: Place) -> None:
    """The token lies where Ray keeps it, and nothing says that it is to be used."""
    place = prepared
    home = place.folder / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(TOKEN)
    secrets = {k: v for k, v in CANARIES.items() if k != "RAY_AUTH_TOKEN"}
    env = {k: v for k, v in place.cluster.env.items() if not k.startswith("RAY_AUTH")}
    words = ["submit", place.experiment(), "--address", place.cluster.url]
    done = place.muscle(*words, env={**env, **secrets, "HOME": str(home)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train compat: 1/1 artifact, reused" in done.stdout, "it continues what is there"
    results = place.store / "runs" / "tiny"
    assert f"results are in {results}, the report also in runs/tiny" in done.stderr
    for name in ("report.json", "report.html", "report.md", "report.csv"):
        copy = place.folder / "runs" / "tiny" / name
        assert copy.read_bytes() == (results / name).read_bytes()
    listed = json.loads(
        place.muscle("jobs", "list", "--json", "--address", place.cluster.url).stdout
    )
    (job,) = [job for job in listed if job["output"] == "${MUSCLE_STORAGE}/runs/tiny"]
    assert job["status"] == "SUCCEEDED" and job["exit_code"] == 0
    # What Ray keeps of it: no environment, no secret, and a driver off the GPU nodes.
    text = place.get(f"/api/jobs/{job['id']}")
    kept = json.loads(text)
    assert set(kept["runtime_env"]) <= {"working_dir", "_ray_commit"}
    for path in place.store.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not any(canary.encode() in data for canary in CANARIES.values()), path
    assert not any(canary in text for canary in CANARIES.values())


def test_submitted_twice_is_one_job_and_stop_ends_it(place: Place) -> None:
    url = ["--address", place.cluster.url]
    words = [place.experiment(name="twice", data_seed=1), "--no-wait"]
    first = place.submit(*words)
    id_ = first.stdout.strip()
    assert first.returncode == 0 and "is submitted" in first.stderr
    second = place.submit(*words)
    assert second.stdout.strip() == id_ and "is running already" in second.stderr
    assert f"did you mean '{id_}'" in one_line(place.muscle("jobs", "stop", id_[:-1], *url))
    stopped = place.muscle("jobs", "stop", id_, *url)
    assert stopped.returncode == 0 and "has ended: STOPPED" in stopped.stderr, stopped.stderr
    assert place.muscle("jobs", "logs", id_, *url).returncode == 143


@pytest.mark.long
def test_what_the_cluster_refuses_is_the_drivers_exit_code(place: Place) -> None:
    done = place.submit(place.experiment(name="nowhere", new={"model": "/nowhere/model"}))
    assert done.returncode == 2
    assert "muscle: new: model directory '/nowhere/model' does not exist" in done.stdout
    assert "ended with exit code 2" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("kind", ["run", "tune"])
def test_the_entry_points_work_with_plain_ray_job_submit(kind: str, place: Place) -> None:
    experiment = place.experiment(name=f"plain-{kind}", training={"dtype": "float32"})
    output = ["--output", f"{place.store}/plain", "--dry-run"]
    small = ["--set", "tuning.difference=0.9"] if kind == "tune" else []
    done = place.ray_submit("python", f"jobs/{kind}.py", Path(experiment).name, *output, *small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "results would go to" in done.stdout and str(place.store) in done.stdout


@pytest.mark.long
def test_a_run_from_nothing_and_once_more(place: Place) -> None:
    experiment = place.experiment(name="whole", data_seed=2)
    first = place.submit(experiment)
    assert first.returncode == 0, first.stdout + first.stderr
    assert re.search(r"train compat: (\d+)/\1 examples", first.stdout)
    report = place.folder / "runs" / "whole" / "report.json"
    made = report.read_bytes()
    again = place.submit(experiment)
    assert again.returncode == 0 and "train compat: 1/1 artifact, reused" in again.stdout
    ids = [line.split()[2] for line in (first.stderr + again.stderr).splitlines() if "job" in line]
    assert f"{ids[0]}-2" in ids, "another job, which continues"
    assert report.read_bytes() == made


SUBMIT = """
import sys
from pathlib import Path
from muscle.launch.jobs import connect
from muscle.submission.server import Order
server = connect(sys.argv[1])
assert server.submit(Order("here", "echo here", Path(sys.argv[2]), {}))
assert not server.submit(Order("here", "echo there", Path(sys.argv[2]), {}))
"""


@pytest.mark.long
def test_a_driver_waits_for_a_node_that_isnt_for_gpus(tmp_path: Path) -> None:
    from muscle.launch.jobs import NOT_ON_GPUS

    assert NOT_ON_GPUS == {"muscle-role": "!in(scoring,training)"}
    (tmp_path / "package").mkdir()
    with head(tmp_path / "head", token=TOKEN, env=node_environment(tmp_path)) as cluster:
        place = Place(cluster, tmp_path, [])
        cluster.add_node(num_cpus=2, labels={"muscle-role": "scoring"})
        words = [sys.executable, "-c", SUBMIT, cluster.url, str(tmp_path / "package")]
        submitted = place._run(words, cluster.env)
        assert submitted.returncode == 0, submitted.stderr
        follow = [sys.executable, "-m", "muscle.cli", "jobs", "logs", "here"]
        following = subprocess.Popen(
            [*follow, "--address", cluster.url],
            env=cluster.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert following.stderr is not None
        assert "no node has taken the job yet" in following.stderr.readline()
        assert json.loads(place.get("/api/jobs/here"))["status"] == "PENDING"
        cluster.add_node(num_cpus=1, labels={"muscle-role": "cpu"})
        out, err = following.communicate(timeout=200)
        assert following.returncode == 0, err
        assert "Runtime env is setting up" in out
        # On one machine all nodes have one address, so Ray's agents read the head's folder of
        # logs; what the driver printed is in its own node's.
        logs = list(cluster.temporary.glob("node-1/session_2*/logs/job-driver-here.log"))
        assert ["here" in log.read_text().splitlines() for log in logs] == [True]
        node = json.loads(place.get("/api/jobs/here"))["driver_node_id"]
        nodes = json.loads(place.get("/api/v0/nodes"))["data"]["result"]["result"]
        (labels,) = [n["labels"] for n in nodes if n["node_id"] == node]
        assert labels["muscle-role"] == "cpu"


@pytest.mark.long
def test_ctrl_c_leaves_the_job_running(place: Place) -> None:
    experiment = place.experiment(name="left", data_seed=3)
    words = [sys.executable, "-m", "muscle.cli", "submit", experiment]
    client = subprocess.Popen(
        [*words, "--address", place.cluster.url],
        env=place.cluster.env,
        cwd=place.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Who runs in the background ignores it, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert client.stdout is not None
    for line in client.stdout:
        if "Running entrypoint" in line:
            break
    client.send_signal(signal.SIGINT)
    said, _ = client.communicate(timeout=60)
    assert client.returncode == 130 and "goes on without this terminal" in said
    assert "Traceback" not in said
    again = place.submit(experiment)
    assert again.returncode == 0 and "is running already" in again.stderr, again.stderr
    assert "Running entrypoint" in again.stdout, "the log from its beginning"
