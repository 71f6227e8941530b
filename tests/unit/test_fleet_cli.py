"""A fleet on the command line: shown, refused in one line, nothing half-written."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from colours import colour_settings, write_data

from muscle.cli import main


@pytest.fixture
def settings(tiny_models: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    common = {**colour_settings(tiny_models, write_data(tmp_path, test=12)), "name": "desk"}
    return {**common, "gate": {"max_nfr": 0.1}, "adapters": [{"name": "a"}, {"name": "b"}]}


def call(command: str, settings: dict[str, Any], folder: Path, *more: str) -> int:
    file = folder / "desk.yaml"
    file.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as stopped:
        main([command, str(file), "--output", str(folder / "out"), *more])
    return int(stopped.value.code or 0)


def test_a_dry_run_says_what_is_missing(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings["adapters"][1]["new"] = "nowhere"
    assert call("run", settings, tmp_path, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "train old, train new" in printed and "evaluate old" in printed
    assert "b can't be resolved: new: adapter" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["plan", "tune"])
def test_what_takes_one_experiment_says_so(
    command: str,
    settings: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(command, settings, tmp_path) == 2
    said = capsys.readouterr().err.strip()
    assert "holds a fleet" in said and "\n" not in said


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("adapters.b.sed=[1]", "adapters[1] (b): unknown setting 'sed'"),
        ("adapters.c.seeds=[1]", "no adapter of the fleet is called so"),
        ("gate={}", "adapters[0] (a): no gate is set"),
        ("old.model=nowhere", "no adapter of the fleet can be resolved: a: "),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(
    override: str,
    word: str,
    settings: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("run", settings, tmp_path, "--set", override) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("muscle: ") and word in said and "\n" not in said
    assert not (tmp_path / "out").exists()
