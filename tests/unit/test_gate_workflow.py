"""The workflow that users copy: its commands exist, and a fork's pull request can't harm."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from muscle.cli import app
from muscle.gate import make_limits

FILE = Path(__file__).parents[2] / "docs" / "ci" / "github.yml"
WORKFLOW: dict[Any, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
JOBS: dict[str, dict[str, Any]] = WORKFLOW["jobs"]
STEPS = [(name, step) for name, job in JOBS.items() for step in job["steps"]]


def commands() -> list[list[str]]:
    """Every `muscle …` of the file, as the shell would split it, with the file's variables."""
    found = []
    for _, step in STEPS:
        for line in step.get("run", "").replace("\\\n", " ").splitlines():
            words = shlex.split(line.split(">>")[0])
            if words[:1] == ["muscle"]:
                values = WORKFLOW["env"]
                found.append([values[w[1:]] if w.startswith("$") else w for w in words[1:]])
    return found


def test_it_compares_and_holds_against_limits() -> None:
    assert [words[0] for words in commands()] == ["compare", "gate"]


@pytest.mark.parametrize("words", commands(), ids=lambda words: str(words[0]))
def test_our_command_line_takes_every_command(words: list[str]) -> None:
    group = typer.main.get_command(app)
    command = group.commands[words[0]]  # type: ignore[attr-defined]
    with command.make_context(words[0], list(words[1:])) as context:
        given = context.params
    if words[0] == "gate":
        names = ("max_nfr", "max_excess_nfr", "max_relative_nfr", "min_gain")
        assert make_limits(**{name: given[name] for name in names}).given()
        assert given["pair"] == "old->new"  # quoted: not a file that the shell wrote
        assert given["report"] == "report"
    else:
        assert given["output"] == "report"
        assert (given["old"], given["new"]) == ("predictions/old", "predictions/new")


def test_a_command_that_we_lack_would_be_seen() -> None:
    group = typer.main.get_command(app)
    command = group.commands["gate"]  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="No such option"):
        command.make_context("gate", ["report", "--max-nrf", "0.02"])


def test_actions_are_pinned_by_commit() -> None:
    used = [step["uses"] for _, step in STEPS if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action), action


def test_untrusted_code_never_meets_a_secret_or_a_writing_token() -> None:
    text = "\n".join(
        line for line in FILE.read_text(encoding="utf-8").splitlines() if "#" != line.strip()[:1]
    )
    triggers = WORKFLOW[True]  # YAML 1.1 takes the key "on" for a truth value
    assert set(triggers) == {"pull_request"} and "pull_request_target" not in text
    assert "secrets." not in text and "secrets: inherit" not in text
    assert WORKFLOW["permissions"] == {}
    assert JOBS["gate"]["permissions"] == {"contents": "read"}
    writing = [name for name, job in JOBS.items() if "write" in job["permissions"].values()]
    assert writing == ["comment"]
    comment = JOBS["comment"]
    assert not any("uses" in step for step in comment["steps"])  # above all: no checkout
    assert "head.repo.full_name == github.repository" in comment["if"]
    for _, step in STEPS:
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False
    # The package comes from outside, not from the checked out pull request.
    assert not re.search(r"pip install[^\n]*(?:\s\.|-e|requirements)", text)


def test_nothing_of_the_event_is_pasted_into_a_script() -> None:
    """A branch may be called `$(curl …)`: expressions go through variables."""
    for _, step in STEPS:
        assert "${{" not in step.get("run", "")


def test_the_report_is_shown_after_a_failed_gate_too() -> None:
    steps = {step.get("name"): step for step in JOBS["gate"]["steps"]}
    for name in ("Summary", "Upload"):
        assert "!cancelled()" in steps[name]["if"]
    assert "report/report.html" in steps["Upload"]["with"]["path"]
    assert "GITHUB_STEP_SUMMARY" in steps["Summary"]["run"]
    assert "!cancelled()" in JOBS["comment"]["if"]
