"""Progress in a log: a line now and then, the last one always, foreign text as it is."""

import io

import pytest
from rich.console import Console

from muscle import display
from muscle.display import ProgressDisplay
from muscle.training.job import Progress


def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(display.time, "monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    console = Console(file=stream, width=200)
    with ProgressDisplay(console) as show:
        for done in (0, 100, 200, 300, 400):
            show(Progress("train [red]old", done, 400, "examples", "loss [b]1.0"))
    return stream.getvalue().splitlines()


def test_a_log_gets_stage_rows_rate_remaining(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lines(monkeypatch)
    assert found == [
        "train [red]old: 0/400 examples, loss [b]1.0",
        "train [red]old: 200/400 examples, 10/s, 20 s left, loss [b]1.0",
        "train [red]old: 400/400 examples, 10/s, loss [b]1.0",
    ]


def test_a_stage_that_comes_again_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search evaluates several times: neither rates nor times below nothing."""
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(display.time, "monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    with ProgressDisplay(Console(file=stream, width=200)) as show:
        for done, total in ((500, 1000), (1000, 1000), (100, 300), (300, 300)):
            show(Progress("evaluate", done, total, "answers"))
    assert stream.getvalue().splitlines() == [
        "evaluate: 500/1000 answers",
        "evaluate: 1000/1000 answers, 50/s",
        "evaluate: 300/300 answers, 20/s",
    ]
