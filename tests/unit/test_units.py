"""A group of queries: written once, resumed, and bounded when it kills its worker."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from muscle.config import VersionConfig
from muscle.errors import UserError
from muscle.evaluation import units
from muscle.evaluation.job import Ask, BaseJob, QuerySet
from muscle.evaluation.units import WorkerBrokenError, answer_unit, collect, pending
from muscle.tables import write_queries
from muscle.types import Answer, Output, Query, Request


class Fake:
    """Answers with the length of the context; `misbehave` sees every call first."""

    def __init__(self, misbehave: Callable[[set[str]], None] = lambda ids: None):
        self.batch_tokens = 100
        self.misbehave = misbehave
        self.calls: list[list[str]] = []
        self.budgets: list[int] = []

    def answer(self, version: str, queries: Sequence[Query]) -> list[Answer]:
        self.calls.append([q.id for q in queries])
        self.budgets.append(self.batch_tokens)
        self.misbehave({q.id for q in queries})
        return [Answer(q.id, (Output(text=q.requests[0].context),)) for q in queries]


def make(folder: Path, count: int = 10, repeat: int = 0) -> BaseJob:
    path = str(folder / "queries.parquet")
    queries = [
        Query(f"q{i}", (Request("generate_until", f"c{i}", generation="{}"),)) for i in range(count)
    ]
    write_queries(path, queries, group_rows=4)
    ask = Ask("new", str(folder / "answers"), repeat)
    return BaseJob(VersionConfig(model="m"), {"new": None}, (QuerySet(path, (ask,)),))


def answer_all(engine: Fake, base: BaseJob) -> list[Answer]:
    for unit in pending(base):
        answer_unit(engine, base, unit, lambda rows: None)
    return collect(base.sets[0], base.sets[0].asks[0])


def dies(engine: Fake, base: BaseJob, unit: units.Unit) -> None:
    """The unit, in a process that ends on the way."""
    child = os.fork()
    if child == 0:
        try:
            answer_unit(engine, base, unit, lambda rows: None)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9


def kill_on(name: str) -> Callable[[set[str]], None]:
    def misbehave(ids: set[str]) -> None:
        if name in ids:
            os._exit(9)

    return misbehave


def raise_on(name: str, error: Exception) -> Callable[[set[str]], None]:
    def misbehave(ids: set[str]) -> None:
        if name in ids:
            raise error

    return misbehave


def test_every_row_once_and_nothing_twice(tmp_path: Path) -> None:
    base, engine = make(tmp_path), Fake()
    assert pending(base) == {(0, 0): 4, (0, 1): 4, (0, 2): 2}
    answers = answer_all(engine, base)
    assert [a.id for a in answers] == [f"q{i}" for i in range(10)]
    assert [a.outputs[0].text for a in answers] == [f"c{i}" for i in range(10)]
    assert pending(base) == {}
    assert not list(tmp_path.rglob("*.claim.json"))
    assert [len(call) for call in engine.calls] == [4, 4, 2]


def test_a_lost_or_half_written_part_is_made_again(tmp_path: Path) -> None:
    base = make(tmp_path)
    before = answer_all(Fake(), base)
    (tmp_path / "answers" / "000000.parquet").unlink()
    (tmp_path / "answers" / "000002.parquet").write_bytes(b"PAR1 half")
    assert pending(base) == {(0, 0): 4, (0, 2): 2}
    engine = Fake()
    assert answer_all(engine, base) == before
    assert [call[0] for call in engine.calls] == ["q0", "q8"]


def test_a_death_costs_nothing(tmp_path: Path) -> None:
    base = make(tmp_path)
    dies(Fake(kill_on("q5")), base, (0, 1))
    engine = Fake()
    assert all(a.error is None for a in answer_all(engine, base))
    assert ["q4", "q5", "q6", "q7"] in engine.calls  # as a whole: most deaths are no row's fault


def test_a_row_that_kills_is_named_and_the_others_are_answered(tmp_path: Path) -> None:
    base, engine = make(tmp_path), Fake(kill_on("q5"))
    deaths = units.WHOLE_ATTEMPTS + units.ROW_DEATHS
    for _ in range(deaths):
        dies(engine, base, (0, 1))
    answers = {a.id: a for a in answer_all(engine, base)}  # in this process: it must not die
    assert answers["q5"].error == "it killed its worker 2 times" and not answers["q5"].outputs
    assert all(a.error is None for name, a in answers.items() if name != "q5")


def test_a_row_that_raises_is_named_and_the_others_are_answered(tmp_path: Path) -> None:
    base = make(tmp_path)
    answers = {a.id: a for a in answer_all(Fake(raise_on("q5", RuntimeError("a\nbug"))), base)}
    assert answers["q5"].error == "the engine failed: RuntimeError: a bug"
    assert sum(a.error is None for a in answers.values()) == 9


def test_what_a_user_can_mend_stops_and_leaves_no_claim(tmp_path: Path) -> None:
    base = make(tmp_path)
    with pytest.raises(UserError, match="bad setting"):
        answer_all(Fake(raise_on("q5", UserError("bad setting"))), base)
    assert not list(tmp_path.rglob("*.claim.json"))
    assert pending(base) == {(0, 1): 4, (0, 2): 2}  # what was done stays done


def test_a_broken_device_ends_the_process_and_counts_as_a_death(tmp_path: Path) -> None:
    base = make(tmp_path)
    broken = Fake(raise_on("q5", RuntimeError("CUDA error: device-side assert triggered")))
    for _ in range(units.WHOLE_ATTEMPTS + units.ROW_DEATHS):
        with pytest.raises(WorkerBrokenError):
            answer_unit(broken, base, (0, 1), lambda rows: None)
    answers = {a.id: a.error for a in answer_all(broken, base)}
    assert answers.pop("q5") == "it killed its worker 2 times"
    assert set(answers.values()) == {None}


def test_answers_of_other_rows_are_an_error(tmp_path: Path) -> None:
    class Wrong(Fake):
        def answer(self, version: str, queries: Sequence[Query]) -> list[Answer]:
            return super().answer(version, queries)[:-1]

    errors = [a.error or "" for a in answer_all(Wrong(), make(tmp_path, 3))]
    assert len(errors) == 3 and all("not those of its queries" in e for e in errors)


def test_a_repeat_asks_in_another_order_and_smaller_batches(tmp_path: Path) -> None:
    base, engine = make(tmp_path, repeat=1), Fake()
    answers = answer_all(engine, base)
    assert [a.id for a in answers] == [f"q{i}" for i in range(10)]
    assert [a.outputs[0].text for a in answers] == [f"c{i}" for i in range(10)]
    assert engine.calls[0] != ["q0", "q1", "q2", "q3"] and set(engine.budgets) == {50}
    assert engine.batch_tokens == 100


def test_a_missing_part_is_not_overlooked(tmp_path: Path) -> None:
    base = make(tmp_path)
    answer_all(Fake(), base)
    (tmp_path / "answers" / "000001.parquet").unlink()
    with pytest.raises(UserError, match="no such file"):
        collect(base.sets[0], base.sets[0].asks[0])
