"""Ask servers everything that a job lacks: many requests at once, parts as they become whole.

Rows are taken in order, `concurrency` at a time, over the borders of groups. A row that a server
fails for reasons of its own (busy, silent, cut off, garbage) is asked once more when all others
are done, and is an error row if that fails too. What is answered of a group that isn't whole is
kept beside the parts, every now and then and at a stop, so that a second start asks what is
missing and nothing else.
"""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from muscle import storage
from muscle.config import ServerConfig
from muscle.errors import UserError
from muscle.evaluation.job import Ask, EvaluateJob, QuerySet
from muscle.evaluation.units import PASSING, Unit, kept_part, outstanding, part
from muscle.served.base import ServedBase
from muscle.served.checks import Need, asked_of, check_model
from muscle.served.failures import Endpoint, RowError
from muscle.served.loops import finished, together
from muscle.served.prompting import chat_of
from muscle.served.requests import decoding, output_of, plan_of, with_extra
from muscle.served.scores import score_of, scoring_body
from muscle.tables import read_answers, read_query_group, write_answers
from muscle.training.job import OnProgress, Progress
from muscle.types import Answer, Output, Query, Request, unanswered

if TYPE_CHECKING:
    from muscle.served.server import Server

LIMIT = 20
"""So many rows in a row that a server failed, and it is asked whether it still answers at all."""

KEEP_S = 20.0
"""How often what is answered of unfinished groups is kept."""

STAGE = "evaluate"


@dataclass
class Group:
    """One group of queries under one ask: what is answered so far, by row."""

    ask: Ask
    number: int
    rows: list[Query]
    answers: dict[int, Answer] = field(default_factory=dict)
    kept: int = 0

    @property
    def path(self) -> str:
        """What is answered of a group that isn't whole."""
        return kept_part(self.ask, self.number)

    @property
    def whole(self) -> bool:
        return len(self.answers) == len(self.rows)

    def recall(self) -> int:
        """Take over what an earlier run kept; how many answers."""
        if storage.exists(self.path):
            places = {row.id: place for place, row in enumerate(self.rows)}
            for answer in read_answers(self.path):
                if answer.id in places:
                    self.answers[places[answer.id]] = answer
        self.kept = len(self.answers)
        return self.kept

    def keep(self) -> None:
        """Keep the answers so far."""
        if len(self.answers) > self.kept:
            self.kept = len(self.answers)
            write_answers(self.path, [self.answers[place] for place in sorted(self.answers)])

    def finish(self) -> None:
        """Write the part."""
        write_answers(part(self.ask, self.number), [self.answers[i] for i in range(len(self.rows))])
        if storage.exists(self.path):
            storage.remove(self.path)


class Served:
    """The `Evaluator` of models that servers have.

    Args:
        models: version -> its model.
        needs: an example of everything that will be asked, of `needs_of`.
        rendered: whether contexts are messages (`messages_as_text`).
    """

    def __init__(
        self,
        config: ServerConfig,
        models: Mapping[str, ServedBase],
        needs: Sequence[Need],
        rendered: bool,
    ):
        self.config, self.models = config, models
        self.needs, self.rendered = list(needs), rendered

    def prepare(self, on_progress: OnProgress) -> None:
        """Ask each model one token of everything.

        Raises:
            UserError: what would make all rows fail.
        """
        on_progress(Progress("ask the servers", 0, len(self.models), "models"))
        finished(self._check())
        on_progress(Progress("ask the servers", len(self.models), len(self.models), "models"))

    async def _check(self) -> None:
        from muscle.served.server import Server

        for base in {base.fingerprint: base for base in self.models.values()}.values():
            async with Server(base.url, self.config) as server:
                await self.check(server, base.config.model)

    async def check(self, server: "Server", model: str) -> None:
        """One token of everything."""
        await check_model(server, model, self.config, self.needs, self.rendered)

    def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> tuple[str, ...]:
        """Write every missing part; servers work side by side, the models of one in turn.

        Raises:
            UserError: a server that takes no key or model, or fails row after row.
        """
        left = outstanding(job)
        tell = _Tell(on_progress, left.done, left.total)
        by_url: dict[str, list[Turn]] = {}
        for number, units in left.units.items():
            for turn in _turns(job.bases[number].sets, units):
                by_url.setdefault(self.models[turn.version].url, []).append(turn)
        finished(self._servers(by_url, tell))
        if not tell.failed:
            return ()
        return (
            f"{tell.failed} answers that a server failed to give count as unscored: the same "
            "command asks them again",
        )

    async def _servers(self, by_url: "Mapping[str, Sequence[Turn]]", tell: "_Tell") -> None:
        await together([self._server(url, turns, tell) for url, turns in by_url.items()])

    async def _server(self, url: str, turns: "Sequence[Turn]", tell: "_Tell") -> None:
        from muscle.served.server import Server  # its client is slow to import

        async with Server(url, self.config) as server:
            for turn in turns:
                await _Asking(self, server, turn, tell).run()


@dataclass(frozen=True)
class Turn:
    """What one model is asked in one manner: repeats have another order and fewer at once."""

    version: str
    repeat: int
    places: tuple[tuple[QuerySet, Ask, int], ...]


class _Tell:
    """Counts answers for the display."""

    def __init__(self, on_progress: OnProgress, done: int, total: int):
        self.on_progress, self.done, self.total = on_progress, done, total
        self.later = self.failed = 0
        self(0)

    def __call__(self, answers: int) -> None:
        self.done += answers
        remark = f"{self.later} failed, are asked again at the end" if self.later else ""
        self.on_progress(Progress(STAGE, self.done, self.total, "answers", remark))


class _Asking:
    """One turn with one model."""

    def __init__(self, served: Served, server: "Server", turn: Turn, tell: _Tell):
        self.served, self.server, self.turn, self.tell = served, server, turn, tell
        self.config = served.config
        self.model = served.models[turn.version].config.model
        self.open: dict[str, Group] = {}
        self.later: list[tuple[Group, int]] = []
        self.streak = 0
        self.last = time.monotonic()

    async def run(self) -> None:
        """Ask every row, those that failed once more at the end, and write the parts."""
        width = max(1, self.config.concurrency // (self.turn.repeat + 1))
        try:
            source = self._rows()
            await together([self._work(source, last=False) for _ in range(width)])
            again, self.later = iter(self.later), []
            self.tell.later = 0
            await together([self._work(again, last=True) for _ in range(width)])
        finally:
            for group in self.open.values():
                group.keep()

    def _rows(self) -> Iterator[tuple[Group, int]]:
        places = list(self.turn.places)
        mixed = random.Random(self.turn.repeat) if self.turn.repeat else None
        if mixed:
            mixed.shuffle(places)
        for queries, ask, number in places:
            group = Group(ask, number, read_query_group(queries.queries, number))
            self.open[group.path] = group
            self.tell(group.recall())
            lacking = [i for i in range(len(group.rows)) if i not in group.answers]
            if not lacking:
                self._close(group)
            if mixed:
                mixed.shuffle(lacking)
            for place in lacking:
                yield group, place

    async def _work(self, source: Iterator[tuple[Group, int]], last: bool) -> None:
        for group, place in source:
            answer, passing = await self._answer(group.rows[place])
            if passing:
                await self._count_failure(answer)
                if not last:
                    self.later.append((group, place))
                    self.tell.later += 1
                    continue
                self.tell.failed += 1
            else:
                self.streak = 0
            group.answers[place] = answer
            self.tell(1)
            if group.whole:
                self._close(group)
            self._keep_now_and_then()

    def _close(self, group: Group) -> None:
        group.finish()
        del self.open[group.path]

    def _keep_now_and_then(self) -> None:
        if time.monotonic() - self.last > KEEP_S:
            self.last = time.monotonic()
            for group in self.open.values():
                group.keep()

    async def _count_failure(self, answer: Answer) -> None:
        """Stop where nothing is answered any more; rows alone that are too much for it don't."""
        self.streak += 1
        if self.streak % LIMIT:
            return
        try:
            await self.served.check(self.server, self.model)
        except UserError as error:
            raise UserError(
                f"{self.streak} rows in a row had no answer ({answer.error}), and then: {error}; "
                "what was answered stays: run again when the server is well"
            ) from None

    async def _answer(self, query: Query) -> tuple[Answer, bool]:
        """A query's answer, and whether it has none for a reason that may pass."""
        outputs = []
        for place, request in enumerate(query.requests):
            try:
                outputs.append(await self._output(query, request, place))
            except RowError as error:
                reason = (PASSING if error.passing else "") + error.reason
                return unanswered(query, place, reason), error.passing
        if not outputs:
            return Answer(query.id, (), "it has no requests"), False
        return Answer(query.id, tuple(outputs)), False

    async def _output(self, query: Query, request: Request, place: int) -> Output:
        extra = self.config.extra_body
        if request.kind != "generate_until":
            body = {"model": self.model, **scoring_body(request)}
            return score_of(await self.server.post("completions", with_extra(body, extra)), request)
        plan = plan_of(request.generation)
        chat = chat_of(query, request, self.served.rendered)
        endpoint: Endpoint = "chat" if chat or self.config.endpoint == "chat" else "completions"
        body = {
            "model": self.model,
            **decoding(plan, f"{query.id}\0{place}"),
            **asked_of(chat, request, self.config),
        }
        return output_of(await self.server.post(endpoint, with_extra(body, extra)), endpoint, plan)


def _turns(sets: Sequence[QuerySet], units: Mapping[Unit, int]) -> list[Turn]:
    """The missing parts by who answers them, repeats apart."""
    found: dict[tuple[str, int], list[tuple[QuerySet, Ask, int]]] = {}
    for number, group in units:
        for ask in sets[number].asks:
            if not storage.exists(part(ask, group)):
                found.setdefault((ask.version, ask.repeat), []).append((sets[number], ask, group))
    return [Turn(*key, tuple(places)) for key, places in found.items()]
