"""What travels to a cluster, what is refused, and that no secret goes along."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from submitting import write

from muscle import credentials
from muscle.errors import UserError
from muscle.submission import packing
from muscle.submission.packing import ENTRY, EXPERIMENT, pack


def experiment_in(package: packing.Package) -> dict[str, Any]:
    return yaml.safe_load(package.files[EXPERIMENT])


def test_only_settings_travel(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("x")
    (tmp_path / "data.jsonl").write_text("{}\n")
    package = pack(write(tmp_path), ["training.epochs=2"])
    assert set(package.files) == {EXPERIMENT, ENTRY}
    found = experiment_in(package)
    assert found["training"] == {"epochs": 2}
    assert found["storage"] == "${MUSCLE_STORAGE}", "read on the cluster"
    assert package.output == "${MUSCLE_STORAGE}/runs/tiny"
    assert package.kind == "run" and package.name == "tiny"


def test_variables_of_this_machine_stay_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSCLE_STORAGE", "/here")
    monkeypatch.delenv("ELSEWHERE", raising=False)
    package = pack(write(tmp_path), ["training.epochs=${ELSEWHERE}"])
    assert b"/here" not in package.files[EXPERIMENT]
    assert "/here" not in package.output
    with pytest.raises(UserError, match=r"training\.epochs"):
        pack(write(tmp_path), ["training.epochs=many"])
    with pytest.raises(UserError, match="'old' is missing"):
        pack(write(tmp_path, old=None), ["training.epochs=${ELSEWHERE}"])


def test_small_settings_files_travel_under_plain_names(tmp_path: Path) -> None:
    (tmp_path / "tasks" / "deep").mkdir(parents=True)
    (tmp_path / "tasks" / "a.yaml").write_text("task: a")
    (tmp_path / "tasks" / "deep" / "utils.py").write_text("x = 1")
    (tmp_path / "tasks" / "rows.jsonl").write_text("{}")
    (tmp_path / "tasks" / ".hidden.yaml").write_text("x: 1")
    (tmp_path / "must keep.txt").write_text("1\n")
    (tmp_path / "stage.json").write_text('{"zero_optimization": {"stage": 2}}')
    file = write(
        tmp_path,
        task={"name": "a", "include_path": "tasks"},
        gate={"max_nfr": 0.1, "must_keep": "must keep.txt"},
        resources={"deepspeed": str(tmp_path / "stage.json")},
    )
    package = pack(file)
    assert package.files["tasks/a.yaml"] == b"task: a"
    assert package.files["tasks/deep/utils.py"] == b"x = 1"
    assert package.files["must_keep-must_keep.txt"] == b"1\n"
    assert set(package.files) == {
        EXPERIMENT,
        ENTRY,
        "tasks/a.yaml",
        "tasks/deep/utils.py",
        "must_keep-must_keep.txt",
        "deepspeed-stage.json",
    }
    found = experiment_in(package)
    assert found["task"]["include_path"] == "tasks"
    assert found["gate"]["must_keep"] == "must_keep-must_keep.txt"
    assert found["resources"]["deepspeed"] == "deepspeed-stage.json"
    assert any("1 files that are neither YAML" in note for note in package.notes)


def test_what_is_packed_loads_where_it_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from muscle.experiment import load_experiment
    from muscle.training.settings import check_settings

    (tmp_path / "keep.txt").write_text("1\n")
    (tmp_path / "stage.json").write_text('{"zero_optimization": {"stage": 2}}')
    file = write(
        tmp_path,
        gate={"max_nfr": 0.1, "must_keep": "keep.txt"},
        resources={"deepspeed": "stage.json"},
    )
    there = tmp_path / "there"
    package = pack(file)
    package.write(there)
    monkeypatch.setenv("MUSCLE_STORAGE", "s3://bucket")
    monkeypatch.chdir(tmp_path.parent)
    experiment = load_experiment(there / EXPERIMENT)
    assert experiment.gate.must_keep == str(there / "must_keep-keep.txt")
    assert experiment.resources.deepspeed == str(there / "deepspeed-stage.json")
    check_settings(experiment)


def test_the_folder_of_an_inputs_task_travels_beside_the_tasks_own(tmp_path: Path) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "task.yaml").write_text(f"task: {name}")
    file = write(
        tmp_path,
        task={"name": "mine", "include_path": "mine"},
        compatibility={
            "level": "choice",
            "inputs": [
                {"path": "s3://bucket/traffic.jsonl"},
                {"task": {"name": "theirs", "include_path": "theirs"}},
                {"task": "piqa"},
                {"path": "${MUSCLE_DATA}/more.parquet"},
            ],
        },
    )
    package = pack(file)
    assert package.files["tasks/task.yaml"] == b"task: mine"
    assert package.files["tasks-1/task.yaml"] == b"task: theirs"
    found = experiment_in(package)
    assert found["task"]["include_path"] == "tasks"
    inputs = found["compatibility"]["inputs"]
    assert inputs[1]["task"]["include_path"] == "tasks-1"
    assert inputs[3]["path"] == "${MUSCLE_DATA}/more.parquet", "read on the cluster"


def test_a_fleets_inputs_are_looked_at_too(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"gate": {"max_nfr": 0.1}, "compatibility": {"level": "choice"}}
    inputs = {"inputs": [{"task": {"name": "a", "include_path": "tasks"}}]}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "a.yaml").write_text("task: a")
    entries = [{"name": "x"}, {"name": "y", "compatibility": inputs}]
    package = pack(write(tmp_path, **settings, adapters=entries))
    assert package.files["tasks-y-0/a.yaml"] == b"task: a"
    asked = experiment_in(package)["adapters"][1]["compatibility"]["inputs"]
    assert asked == [{"task": {"name": "a", "include_path": "tasks-y-0"}}]
    entries[1]["compatibility"] = {"inputs": [{"path": "traffic.jsonl"}]}
    with pytest.raises(UserError, match=r"'adapters\.y\.compatibility\.inputs\.0\.path'"):
        pack(write(tmp_path, **settings, adapters=entries))


REFUSED = {
    "relative data": (
        {"task": {"name": "piqa", "data_files": {"test": "data.jsonl"}}},
        ["task.data_files.test", "aws s3 cp data.jsonl", "--set task.data_files.test=s3://"],
    ),
    "data that isn't here either": (
        {"task": {"name": "piqa", "data_files": {"train": "nowhere.jsonl"}}},
        ["task.data_files.train", "nowhere.jsonl"],
    ),
    "unlabelled inputs": (
        {"compatibility": {"level": "choice", "inputs": ["train", {"path": "data.jsonl"}]}},
        [
            "compatibility.inputs.1.path",
            "aws s3 cp data.jsonl",
            "--set compatibility.inputs.1.path=s3://",
        ],
    ),
    "another task's inputs": (
        {
            "compatibility": {
                "level": "choice",
                "inputs": [{"task": {"name": "a", "data_files": {"train": "nowhere.jsonl"}}}],
            }
        },
        ["compatibility.inputs.0.task.data_files.train", "nowhere.jsonl"],
    ),
    "inputs that are searched": (
        {"tuning": {"space": {"inputs": [["train"], ["train", {"path": "data.jsonl"}]]}}},
        ["tuning.space.inputs.1.1.path", "aws s3 cp data.jsonl"],
    ),
    "a model folder": ({"new": {"model": "model"}}, ["new.model", "hub id", "--recursive model"]),
    "a model's path": ({"old": {"model": "./nowhere"}}, ["old.model", "hub id"]),
    "home": ({"new": {"model": "~/models/v2"}}, ["new.model"]),
    "an adapter": ({"old": {"model": "a/b", "adapter": "model"}}, ["old.adapter", "s3 cp"]),
    "a second old": ({"noise_floor": "model"}, ["noise_floor"]),
    "storage": ({"storage": "runs"}, ["storage", "'runs'", "MUSCLE_STORAGE"]),
    "no storage": ({"storage": None}, ["storage", "MUSCLE_STORAGE"]),
    "unfilled storage": ({"storage": "s3://FILL-IN/x"}, ["storage", "FILL-IN"]),
    "unfilled model": ({"new": {"model": "s3://FILL-IN/x"}}, ["new.model", "FILL-IN"]),
    "mlflow": ({"tracking": {"mlflow": "mlruns"}}, ["tracking.mlflow"]),
    "must_keep": ({"gate": {"max_nfr": 0.1, "must_keep": "no.txt"}}, ["gate.must_keep", "no.txt"]),
    "include_path": ({"task": {"name": "a", "include_path": "model"}}, ["include_path", "no YAML"]),
    "a stage": ({"resources": {"deepspeed": "data.json"}}, ["DeepSpeed", "not JSON"]),
    "a password": ({"storage": "s3://me:word@bucket"}, ["storage", "password"]),
    "a wandb key": ({"tracking": {"wandb": "0123456789" * 4}}, ["tracking.wandb", "W&B key"]),
    "a signed URL": ({"storage": "s3://x?X-Amz-Signature=1"}, ["storage", "signed URL"]),
    "a token": ({"assumed": {"x": "hf_" + "a1" * 12}}, ["assumed.x", "Hugging Face token"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_cluster_cant_use_is_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text("{}\n")
    (tmp_path / "data.json").write_text("no")
    (tmp_path / "model").mkdir()
    changes, named = REFUSED[case]
    with pytest.raises(UserError) as error:
        pack(write(tmp_path, **changes))
    text = str(error.value)
    assert "\n" not in text
    assert all(part in text for part in named), text
    assert "word@" not in text and "0123456789" not in text and "a1a1" not in text


@pytest.mark.parametrize(
    "changes",
    [
        {"storage": "/shared/muscle"},
        {"storage": "s3://bucket/x"},
        {"new": {"model": "/shared/model"}, "old": {"model": "gs://bucket/model"}},
        {"new": {"model": "owner/name", "revision": "abc"}},
        {"task": {"name": "piqa", "data_files": {"test": "${MUSCLE_DATA}/x.jsonl"}}},
        {"noise_floor": "/shared/adapter"},
        {"gate": {"max_nfr": 0.1, "must_keep": "/shared/keep.txt"}},
        {"tracking": {"mlflow": "https://mlflow.example.org"}},
    ],
)
def test_places_that_nodes_see_pass(changes: dict[str, Any], tmp_path: Path) -> None:
    package = pack(write(tmp_path, **changes))
    assert set(package.files) == {EXPERIMENT, ENTRY} and not package.notes


def test_a_model_without_revision_is_noted(tmp_path: Path) -> None:
    package = pack(write(tmp_path, new={"model": "owner/name"}))
    assert package.notes == (
        "new.model 'owner/name' has no revision: the hub's newest; pin it by new.revision",
    )


def test_the_output_is_a_place_that_nodes_see(tmp_path: Path) -> None:
    file = write(tmp_path, storage=None)
    assert pack(file, (), "/shared/out").output == "/shared/out"
    assert pack(write(tmp_path), tune=True).output == "${MUSCLE_STORAGE}/runs/tiny-tune"
    with pytest.raises(UserError, match="--output is 'runs/x'"):
        pack(file, (), "runs/x")
    with pytest.raises(UserError, match="--output is 's3://FILL-IN"):
        pack(file, (), "s3://FILL-IN/x")
    with pytest.raises(UserError, match="--output' holds a URL with a password"):
        pack(file, (), "s3://a:b@c/x")


def test_a_package_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keep.txt").write_text("1\n" * 3000)
    file = write(tmp_path, gate={"max_nfr": 0.1, "must_keep": "keep.txt"})
    pack(file)
    monkeypatch.setattr(packing, "LIMIT", 7000)
    with pytest.raises(UserError, match=r"mostly must_keep-keep\.txt"):
        pack(file)
    monkeypatch.setattr(packing, "LIMIT", 4000)
    with pytest.raises(UserError, match=r"gate\.must_keep.*too large"):
        pack(file)


def test_a_folder_of_everything_is_no_folder_of_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_LISTED", 3)
    (tmp_path / "t").mkdir()
    for number in range(4):
        (tmp_path / "t" / f"{number}.yaml").write_text("task: a")
    with pytest.raises(UserError, match="more than 3 files"):
        pack(write(tmp_path, task={"name": "a", "include_path": "t"}))


def test_a_secret_in_a_file_that_travels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "a.yaml").write_text("path: https://me:word@host/x")
    with pytest.raises(UserError, match=r"a\.yaml holds a URL with a password") as error:
        pack(write(tmp_path, task={"name": "a", "include_path": "tasks"}))
    assert "word@" not in str(error.value)


def test_no_secret_of_the_environment_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canaries = {name: f"canary-{name.lower()}" for name in credentials.NAMES}
    for name, value in canaries.items():
        monkeypatch.setenv(name, value)
    package = pack(write(tmp_path))
    everything = json.dumps([package.arguments, package.name, package.output, package.identity])
    everything += "".join(data.decode() for data in package.files.values())
    assert "canary" not in everything
    with pytest.raises(UserError, match="the value of RAY_AUTH_TOKEN"):
        pack(write(tmp_path), ["storage=s3://canary-ray_auth_token/x"])


def test_the_same_run_has_the_same_identity(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("1\n")
    gate = {"max_nfr": 0.1, "must_keep": "keep.txt"}
    file = write(tmp_path, gate=gate)
    first = pack(file).identity
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "keep.txt").write_text("1\n")
    assert pack(write(elsewhere, gate=gate)).identity == first, "from any folder or machine"
    others = [
        pack(file, tune=True),
        pack(file, ["training.epochs=2"]),
        pack(file, output="/other"),
    ]
    (tmp_path / "keep.txt").write_text("2\n")
    others.append(pack(file))
    identities = {first, *(package.identity for package in others)}
    assert len(identities) == 5


@pytest.mark.parametrize(
    "place",
    ["s3://", "memory://x", "file:///tmp/x", "nowhere://bucket/x", "s3://bucket/${MUSCLE_STORAGE"],
)
def test_a_place_that_nodes_cant_share_is_refused(place: str, tmp_path: Path) -> None:
    """By whichever way it is named, before anything is submitted."""
    with pytest.raises(UserError, match=r"setting 'storage' is .*: (give|write) "):
        pack(write(tmp_path, storage=place))
    with pytest.raises(UserError, match=r"--output is .*: (give|write) "):
        pack(write(tmp_path), output=place)
    with pytest.raises(UserError, match=r"setting 'old.model' is .*: (give|write) "):
        pack(write(tmp_path, old={"model": place}))


def test_an_adapter_that_isnt_there_is_copied_as_a_folder(tmp_path: Path) -> None:
    file = write(tmp_path, new={"model": "testbed:v2", "adapter": "adapters/v2"})
    with pytest.raises(UserError, match="aws s3 cp --recursive adapters/v2"):
        pack(file)


def test_emitting_refuses_what_it_would_ignore() -> None:
    from muscle.submitting import only_emits

    only_emits({"--address": None, "--no-wait": False, "--save": None})
    with pytest.raises(UserError, match="--no-wait is for a job server"):
        only_emits({"--address": None, "--no-wait": True, "--save": None})
