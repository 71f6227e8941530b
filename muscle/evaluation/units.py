"""The unit of evaluation: one group of queries, answered and written, whoever dies on the way.

A group's answers appear at once as one Parquet part, so what is there is whole, and who
starts again goes on from there. A group that was begun leaves a claim. Who finds a claim
knows that the worker before it died with this group: it is asked as a whole once more, since
most deaths have nothing to do with the group, and then row by row, so that a row that
kills its worker is bounded, named, and costs no other row its answer.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from muscle import storage
from muscle.errors import UserError, breaks_device
from muscle.evaluation.job import Ask, BaseJob, EvaluateJob, QuerySet
from muscle.remote import StoreError
from muscle.tables import count_rows, group_sizes, read_answers, read_query_group, write_answers
from muscle.types import Answer, Query

Unit = tuple[int, int]
"""(set, group) of a `BaseJob`."""

WHOLE_ATTEMPTS = 2
"""How often a group is asked as a whole before it is asked row by row."""

ROW_DEATHS = 2
"""How many workers one row may take with it."""


PASSING = "the server failed: "
"""What the error of an answer begins with that another try may well have."""


class Answerer(Protocol):
    """What answers: an `Engine`, or a stand-in for it."""

    batch_tokens: int

    def answer(self, version: str, queries: Sequence[Query]) -> list[Answer]:
        """Each query's answer, in the order given."""
        ...


class WorkerBrokenError(RuntimeError):
    """The device is in a state that only a new process mends."""


def part(ask: Ask, group: int) -> str:
    """The path of a group's answers."""
    return storage.join(ask.answers, f"{group:06d}.parquet")


def kept_part(ask: Ask, group: int) -> str:
    """The path of what is answered of a group that isn't whole (served models)."""
    return storage.join(ask.answers, "kept", f"{group:06d}.parquet")


def pending(base: BaseJob) -> dict[Unit, int]:
    """The units of a base that lack answers, with how many are lacking. Drops broken parts."""
    found: dict[Unit, int] = {}
    for s, queries in enumerate(base.sets):
        sizes = group_sizes(queries.queries)
        for ask in queries.asks:
            there = _whole_parts(ask)
            for group, size in enumerate(sizes):
                if there.get(group) != size:
                    found[s, group] = found.get((s, group), 0) + size
    return found


@dataclass(frozen=True)
class Outstanding:
    """How far a job is: for each base the units that lack answers, and answers in all."""

    units: dict[int, dict[Unit, int]]
    done: int
    total: int


def outstanding(job: EvaluateJob) -> Outstanding:
    """What is left to ask; bases that lack nothing are not in `units`."""
    units = {number: pending(base) for number, base in enumerate(job.bases)}
    total = sum(
        sum(group_sizes(queries.queries)) * len(queries.asks)
        for base in job.bases
        for queries in base.sets
    )
    missing = sum(sum(lacking.values()) for lacking in units.values())
    return Outstanding({n: u for n, u in units.items() if u}, total - missing, total)


def answer_unit(
    engine: Answerer, base: BaseJob, unit: Unit, on_answers: Callable[[int], None]
) -> None:
    """Write a unit's missing parts.

    Raises:
        UserError: what the user can mend; the unit counts as not begun.
        WorkerBrokenError: the process must end; the unit counts as begun.
    """
    queries = base.sets[unit[0]]
    rows = read_query_group(queries.queries, unit[1])
    for ask in queries.asks:
        if not storage.exists(part(ask, unit[1])):
            claim = Claim(ask, unit[1])
            answers = claim.answer(engine, rows)
            write_answers(part(ask, unit[1]), answers)
            claim.release()
            on_answers(len(rows))


def collect(queries: QuerySet, ask: Ask) -> list[Answer]:
    """All answers of one ask: exactly one for each query.

    Raises:
        UserError: a part is missing or isn't whole.
    """
    answers = []
    for group, size in enumerate(group_sizes(queries.queries)):
        found = read_answers(part(ask, group))
        if len(found) != size:
            raise UserError(
                f"{part(ask, group)} has {len(found)} answers for {size} queries: "
                "delete it and run again"
            )
        answers += found
    return answers


def to_ask_again(answers: Sequence[Answer]) -> int:
    """How many answers lack for a reason that may pass."""
    return sum((answer.error or "").startswith(PASSING) for answer in answers)


def keep_answered(queries: QuerySet, ask: Ask) -> None:
    """Leave of the parts what another run need not ask again."""
    for group in range(len(group_sizes(queries.queries))):
        found = read_answers(part(ask, group))
        good = [answer for answer in found if not to_ask_again([answer])]
        if len(good) < len(found):
            write_answers(kept_part(ask, group), good)
            storage.remove(part(ask, group))


def discard(ask: Ask) -> None:
    """Remove the parts, once what was made of them is safe."""
    storage.remove(ask.answers)


class Claim:
    """How a group's earlier workers fared: {"attempts": n, "row": id, "deaths": {id: n}}."""

    def __init__(self, ask: Ask, group: int):
        self.ask = ask
        self.path = storage.join(ask.answers, f"{group:06d}.claim.json")
        before = storage.read_json(self.path) or {}
        self.attempts: int = before.get("attempts", 0)
        self.deaths: dict[str, int] = before.get("deaths", {})
        if before.get("row") is not None:
            self.deaths[before["row"]] = self.deaths.get(before["row"], 0) + 1
        self.attempts += 1
        self._write(None)

    def release(self) -> None:
        """Forget the claim: the group is done, or was stopped in an orderly way."""
        storage.remove(self.path)

    def answer(self, engine: Answerer, rows: Sequence[Query]) -> list[Answer]:
        """The group's answers; each row has one, and one that can't be had says why."""
        try:
            if self.attempts <= WHOLE_ATTEMPTS:
                try:
                    return _matched(rows, ask_engine(engine, self.ask, rows))
                except Exception as error:
                    _end_if_broken(error)
            return [self._one(engine, row) for row in rows]
        except WorkerBrokenError:
            raise
        except BaseException:
            self.release()
            raise

    def _one(self, engine: Answerer, row: Query) -> Answer:
        if self.deaths.get(row.id, 0) >= ROW_DEATHS:
            return Answer(row.id, (), f"it killed its worker {ROW_DEATHS} times")
        self._write(row.id)
        try:
            (answer,) = _matched([row], ask_engine(engine, self.ask, [row]))
        except Exception as error:
            _end_if_broken(error)
            text = " ".join(f"{type(error).__name__}: {error}".split())
            return Answer(row.id, (), f"the engine failed: {text[:300]}")
        return answer

    def _write(self, row: str | None) -> None:
        storage.write_json(
            self.path, {"attempts": self.attempts, "row": row, "deaths": self.deaths}
        )


def ask_engine(engine: Answerer, ask: Ask, rows: Sequence[Query]) -> list[Answer]:
    """`engine.answer`; a repeat sees the rows in another order and in smaller batches, which
    changes nothing but the rounding."""
    if ask.repeat == 0:
        return engine.answer(ask.version, rows)
    order = list(range(len(rows)))
    random.Random(ask.repeat).shuffle(order)
    budget = engine.batch_tokens
    engine.batch_tokens = max(1, budget // (ask.repeat + 1))
    try:
        answers = engine.answer(ask.version, [rows[i] for i in order])
    finally:
        engine.batch_tokens = budget
    return [answer for _, answer in sorted(zip(order, answers, strict=True), key=lambda x: x[0])]


def _matched(rows: Sequence[Query], answers: list[Answer]) -> list[Answer]:
    if [row.id for row in rows] != [answer.id for answer in answers]:
        raise RuntimeError("the engine's answers are not those of its queries")
    return answers


def _end_if_broken(error: Exception) -> None:
    """Let through what the row isn't to blame for, or what a new process must mend."""
    if isinstance(error, UserError | OSError):
        raise error
    if breaks_device(error):
        raise WorkerBrokenError(str(error)) from error


def _whole_parts(ask: Ask) -> dict[int, int]:
    """group -> rows of the parts that are there and whole."""
    fs, inside = storage.filesystem(ask.answers)
    if not fs.exists(inside):
        return {}
    sizes: dict[int, int] = {}
    for path in fs.ls(inside, detail=False):
        name = str(path).rsplit("/", 1)[1]
        if not name.endswith(".parquet"):
            continue
        try:
            rows = count_rows(storage.join(ask.answers, name))
        except StoreError:  # not to be had, which says nothing of it
            raise
        except UserError:  # half-written by a store without atomic writes
            fs.rm(path)
        else:
            sizes[int(name.removesuffix(".parquet"))] = rows
    return sizes
