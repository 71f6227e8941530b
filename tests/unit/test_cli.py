"""The command line: dry run, bad input in one line with exit code 2."""

import json
from pathlib import Path

import pytest
import yaml

from muscle.cli import main
from muscle.metrics.power import needed_examples


@pytest.fixture
def experiment(tiny_models: dict[str, str], tmp_path: Path) -> Path:
    for name, size in (("train", 10), ("test", 6)):
        rows = [{"q": f"{name} {i}", "a": ["red", "blue"][i % 2]} for i in range(size)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    file = tmp_path / "colours.yaml"
    settings = {
        "name": "colours",
        "task": {
            "name": "colours",
            "train": "train.jsonl",
            "test": "test.jsonl",
            "prompt": "{{q}} is",
            "choices": ["red", "blue"],
            "target": "a",
        },
        "old": {"model": tiny_models["old"]},
        "new": {"model": tiny_models["new"]},
        "training": {"dtype": "float32"},
    }
    file.write_text(yaml.safe_dump(settings))
    return file


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    """Run a command that must end with exit code 2 and one line; returns the line."""
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--output", str(tmp_path / "out")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("muscle: ") and "\n" not in error, error
    assert not (tmp_path / "out").exists()
    return error


BAD = {
    "unknown key": (["--set", "training.epoch=3"], "did you mean 'epochs'"),
    "unknown mask": (["--set", "compatibility.mask=student"], "student-wrong"),
    "unknown task": (["--set", "task={name: pqia}"], "piqa"),
    "unknown stage": (["--set", "resources.deepspeed=zero9"], "zero2"),
    "missing model": (["--set", "old.model=./nowhere"], "nowhere"),
    "missing data": (["--set", "task.test=nowhere.jsonl"], "nowhere.jsonl"),
    "no training split": (["--set", "task.train=null"], "train"),
    "empty choices": (["--set", "task.choices=[]"], "choices"),
    "wrong metric": (["--set", "task.metric=rouge1"], "rouge1"),
    "malformed --set": (["--set", "training.epochs"], "key.sub=value"),
    "unknown targets": (["--set", "adapter.targets=[foo]"], "adapter targets ['foo']"),
    "too few rows": (["--set", "training.limit=1"], "validation"),
    "wrong type": (["--set", "training.epochs=many"], "training.epochs"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(
    case: str, experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra, expected = BAD[case]
    assert expected in fails(["run", str(experiment), *extra], capsys, tmp_path)


@pytest.mark.parametrize("case", BAD)
def test_a_dry_run_refuses_the_same(
    case: str, experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra, expected = BAD[case]
    assert expected in fails(["run", str(experiment), *extra, "--dry-run"], capsys, tmp_path)


BAD_SEARCH = {
    "epsilon": (["--set", "tuning.epsilon=0.5"], "'tuning.epsilon'"),
    "negative epsilon": (["--set", "tuning.epsilon=-0.1"], "'tuning.epsilon'"),
    "no trials": (["--trials", "0"], "'tuning.trials'"),
    "unknown parameter": (["--set", "tuning.space={rank: [1, 2]}"], "'tuning.space.rank'"),
    "misspelt parameter": (["--set", "tuning.space={temprature: [1, 2]}"], "'temperature'"),
    "empty space": (["--set", "tuning.space={}"], "tuning.space"),
    "unknown mask": (["--set", "tuning.space={mask: [student]}"], "tuning.space.mask"),
    "turned interval": (["--set", "tuning.space={ce_weight: {min: 1, max: 0}}"], "not below"),
    "an unread value": (["--set", "tuning.space={learning_rate: [2.0, 0.1]}"], "learning_rate.0"),
    "interpolation": (["--set", "tuning.interpolations=[3]"], "tuning.interpolations"),
    "small halves": (["--set", "training.tuning_fraction=0.4"], "tuning.difference"),
    "all held out": (["--set", "training.tuning_fraction=0.95"], "training.tuning_fraction"),
    "no training split": (["--set", "task.train=null"], "task.train"),
    "missing model": (["--set", "old.model=./nowhere"], "nowhere"),
}


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize("case", BAD_SEARCH)
def test_a_search_that_cant_be_is_one_line(
    case: str, dry: bool, experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra, expected = BAD_SEARCH[case]
    arguments = ["tune", str(experiment), *extra, *(["--dry-run"] if dry else [])]
    assert expected in fails(arguments, capsys, tmp_path)


def test_small_halves_say_how_many_examples_are_needed(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = ["--set", "training.tuning_fraction=0.4", "--set", "tuning.difference=0.2"]
    error = fails(["tune", str(experiment), *extra], capsys, tmp_path)
    assert "has 2," in error and "wants 20 points" in error
    assert f"takes {needed_examples(0.2)}" in error


def test_tune_options_are_settings(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"q": f"thing {i}", "a": ["red", "blue"][i % 2]} for i in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    extra = ["--set", "training.tuning_fraction=0.5", "--set", "tuning.difference=0.9"]
    arguments = ["--trials", "7", "--pareto", "--dry-run", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        main(["tune", str(experiment), *extra, *arguments])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "trials: 7, of which 0 are done" in said
    assert "half A: 10 examples, half B: 10" in said
    assert not (tmp_path / "out").exists()


def test_an_unwritable_place_is_one_line(
    experiment: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(experiment), "--output", "/proc/nowhere"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("muscle: ") and "/proc/nowhere" in error


def test_ctrl_c_is_said(
    experiment: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("muscle.commands.make_plan", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(experiment)])
    assert stopped.value.code == 130
    assert "run the same command again" in capsys.readouterr().err


def test_an_empty_split_is_named(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test.jsonl").write_text("")
    assert "test.jsonl" in fails(["run", str(experiment)], capsys, tmp_path)


def test_a_missing_experiment_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml" in fails(["run", "nowhere.yaml"], capsys, tmp_path)


def test_two_tokenizers(
    experiment: Path,
    tiny_models: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokens = ["--set", "compatibility.level=token"]
    extra = ["--set", f"old.model={tiny_models['other']}", *tokens]
    assert "ce_weight: 1" in fails(["run", str(experiment), *extra], capsys, tmp_path)


def test_dry_run_prints_settings_and_steps_and_writes_nothing(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        arguments = ["--dry-run", "--output", str(tmp_path / "out"), "--set", "training.epochs=2"]
        main(["run", str(experiment), *arguments])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "epochs: 2" in text and "train compat" in text and "evaluate old" in text
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_the_settings_of_its_level(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for level, there, other in (
        ("choice", "teacher: confident", "mask:"),
        ("token", "mask:", "teacher:"),
    ):
        with pytest.raises(SystemExit) as stopped:
            extra = ["--set", f"compatibility.level={level}", "--output", str(tmp_path / "out")]
            main(["run", str(experiment), "--dry-run", *extra])
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        assert f"level: {level}" in text and there in text and other not in text
        assert ("score answers by old" in text) == (level == "choice")


def test_an_unreachable_cluster_is_one_line(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = fails(["run", str(experiment), "--address", "127.0.0.1:1"], capsys, tmp_path)
    assert error.startswith("muscle: Ray cluster '127.0.0.1:1' can't be reached")


def test_a_job_servers_address_is_not_a_clusters(
    experiment: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "http://127.0.0.1:8265"
    error = fails(["run", str(experiment), "--address", url], capsys, tmp_path)
    assert f"{url} is a job server's address: `muscle submit EXPERIMENT --address {url}`" in error
    monkeypatch.setenv("RAY_ADDRESS", url)
    assert "job server's address" in fails(["run", str(experiment)], capsys, tmp_path)


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "nowhere.yaml", "--debug"])
    assert "Traceback" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["--help"], ["run", "--help"], ["tune", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
    assert "0.1.0" in capsys.readouterr().out
