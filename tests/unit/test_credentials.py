"""Secrets are refused where they would be stored, and blotted out where they would be shown."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from colours import colour_settings, write_data

from muscle import credentials
from muscle.cli import main
from muscle.credentials import find_secret, redacted, secret_in
from muscle.errors import UserError
from muscle.experiment import build_evaluation, load_experiment

TOKEN = "hf_" + "a1B2" * 8
KEY = "AKIA" + "ABCD" * 4
WANDB = "0123456789abcdef" * 2 + "01234567"

SECRETS = {
    "hub": f"model {TOKEN}",
    "aws": KEY,
    "github": "ghp_" + "x1" * 18,
    "wandb": "wandb_v1_" + "x1" * 18,
    "password": "https://me:word@host/path",
    "password alone": "redis://:word@host",
    "signed": "https://bucket/x?X-Amz-Date=1&X-Amz-Signature=abcdef&x=1",
    "azure": "https://account/x?sv=1&sig=abc%3D",
    "query": "https://tracking/?api_key=abcdef",
    "api": "sk-" + "x1" * 18,
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_found_and_blotted_out(name: str) -> None:
    text = SECRETS[name]
    assert secret_in(text) is not None
    shown = redacted(f"before {text} after")
    assert credentials.HIDDEN in shown and shown.startswith("before ") and shown.endswith(" after")
    assert secret_in(shown.replace(credentials.HIDDEN, "")) is None
    for secret in ("word", "abcdef", "abc%3D", "x1x1", TOKEN, KEY):
        assert secret not in shown


@pytest.mark.parametrize(
    "text",
    [
        "abfs://container@account.dfs.core.windows.net/path",
        "hf://datasets/owner/name@main/x",
        "http://host:8080/path",
        "s3://bucket/hf_model",
        "meta-llama/Llama-2-7b-hf",
        "{{q}} is x@y: what?",
        WANDB,  # a commit, wherever it isn't tracking's
    ],
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert secret_in(text, "new.revision") is None
    assert redacted(text) == text


def test_the_setting_is_named_wherever_it_is() -> None:
    assert find_secret({"a": [1, {"b": TOKEN}]}) == ("a[1].b", "a Hugging Face token")
    assert find_secret({"tracking": {"wandb": WANDB}}) == ("tracking.wandb", "a W&B key")
    found = find_secret({"assumed": {TOKEN: "x"}})
    assert found is not None and TOKEN not in found[0]
    assert find_secret({"a": 1, "b": None, "c": ["x"]}) is None


def test_the_environments_own_secrets_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "canary-of-mlflow")
    assert secret_in("uri canary-of-mlflow") == "the value of MLFLOW_TRACKING_TOKEN"
    assert redacted("said canary-of-mlflow!") == "said ***!"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a")  # would be found in any text
    assert secret_in("a banana") is None


def test_an_error_never_shows_a_secret() -> None:
    assert str(UserError(f"can't read {SECRETS['password']}")) == (
        "can't read https://***@host/path"
    )


@pytest.fixture
def settings(tiny_models: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    return colour_settings(tiny_models, write_data(tmp_path, test=12))


def write(settings: dict[str, Any], folder: Path) -> Path:
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"], ["plan"], ["tune"]])
def test_an_experiment_with_a_secret_is_refused(
    command: list[str],
    settings: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write({**settings, "storage": "s3://me:word@bucket/x"}, tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([command[0], str(file), *command[1:], "--output", str(tmp_path / "out")])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert "setting 'storage' holds a URL with a password" in said.err
    assert "word@" not in said.err + said.out
    assert not (tmp_path / "out").exists()


def test_a_secret_may_not_come_by_a_variable(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    file = write({**settings, "assumed": {"hub": "with ${HF_TOKEN}"}}, tmp_path)
    with pytest.raises(UserError, match=r"setting 'assumed\.hub' holds the value of HF_TOKEN"):
        load_experiment(file)


def test_an_evaluation_with_a_secret_is_refused() -> None:
    models = {"a": {"model": "https://me:word@host/x"}}
    with pytest.raises(UserError, match=r"'models\.a\.model' holds a URL with a password"):
        build_evaluation({"tasks": [{"name": "piqa"}], "models": models})


def test_a_place_that_is_to_be_filled_in_is_refused(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSCLE_STORAGE", "s3://FILL-IN/muscle")
    file = write({**settings, "storage": "${MUSCLE_STORAGE}"}, tmp_path)
    with pytest.raises(UserError, match="setting 'storage' is 's3://FILL-IN/muscle'"):
        load_experiment(file)


CANARIES = {name: f"canary-{name.lower()}-0123456789" for name in credentials.NAMES}


@pytest.mark.slow
def test_no_file_of_a_run_holds_a_secret_of_the_environment(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from muscle.alone import Alone
    from muscle.pipeline import Pipeline
    from muscle.plan import make_plan

    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    experiment = load_experiment(write(settings, tmp_path))
    output = tmp_path / "out"
    Pipeline(make_plan(experiment), str(output), Alone("cpu"), lambda progress: None).run()
    files = [path for path in output.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"report.json", "report.html", "experiment.json", "manifest.json"} <= names
    assert "curve.jsonl" in names
    for path in files:
        data = path.read_bytes()
        assert not any(value.encode() in data for value in CANARIES.values()), path
    said = capfd.readouterr()
    assert not any(value in said.out + said.err for value in CANARIES.values())
