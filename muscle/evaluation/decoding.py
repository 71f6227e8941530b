"""Decoding many prompts at once: shared beginnings run once, every row stops by itself.

The prompts of a family run on top of their shared prefix in a fixed number of places. A
row that ends frees its place at once; when a quarter is free, waiting rows take them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from muscle.evaluation.plan import NAN
from muscle.evaluation.prefix_attention import Decode, Layers, Prefill
from muscle.evaluation.sampling import Chooser, seeded
from muscle.evaluation.scoring import OUT_OF_MEMORY
from muscle.evaluation.sharing import common
from muscle.evaluation.stopping import Stops
from muscle.models.structure import project, unwrap

PACKED_TOKENS = 2048
"""Most tokens of one pass, unless a single row has more: packed rows are masked from each
other, so the work of attention grows with the square of this."""

LEAST_PIECE = 64
"""Tokens: a prefix that does not fit in memory in smaller pieces does not fit."""


@dataclass(slots=True, eq=False)
class Row:
    """A prompt on its way: its tokens, those made so far, how many there may be.

    `seed_key` seeds its sampling. `made` ends with the token at which it `stopped`, or at
    its limit.
    """

    number: int
    context: list[int]
    limit: int
    seed_key: str = ""
    made: list[int] = field(default_factory=list)
    stopped: bool = False
    generator: "torch.Generator | None" = None

    def need(self, shared: int) -> int:
        """The tokens it comes to keep after `shared` ones; its last one is never run."""
        return len(self.context) - shared + self.limit - 1


OnEnd = Callable[[Row, str | None], None]
"""Gets each row when it has ended, and why it has no text (None: it has)."""


class Decoder:
    """A model and the keys and values of the prefix that its rows share.

    Args:
        batch_tokens: of one forward pass.
        held_tokens: the rows decoded together keep at most so many tokens of their own
            (one row may always keep all of its).
    """

    def __init__(self, model: Any, batch_tokens: int, held_tokens: int) -> None:
        self.model, self.held_tokens = model, held_tokens
        self.batch_tokens = min(batch_tokens, PACKED_TOKENS)
        self.body = unwrap(model).get_decoder()
        self.device = model.device
        self.prefix = Layers()
        self.prefix_tokens: list[int] = []

    def share(self, tokens: list[int]) -> None:
        """Make `tokens` the prefix, running only those that the last one did not have.

        Raises:
            torch.cuda.OutOfMemoryError: not even small pieces fit.
        """
        kept = common(tokens, self.prefix_tokens)
        self.prefix.crop(kept)
        self.prefix_tokens = tokens[:kept]
        while len(self.prefix_tokens) < len(tokens):
            start = len(self.prefix_tokens)
            piece = tokens[start : start + self.batch_tokens]
            memory = Prefill(self.prefix, start, [len(piece)], self.device)
            try:
                self.run(piece, memory)
            except torch.cuda.OutOfMemoryError:
                if self.batch_tokens <= LEAST_PIECE:
                    raise
                self.batch_tokens //= 2
                continue
            self.prefix.append(memory.made)
            self.prefix_tokens = tokens[: start + len(piece)]

    def decode(self, rows: Iterable[Row], chooser: Chooser, stops: Stops, on_end: OnEnd) -> None:
        """Run rows that begin with the prefix to their ends, longest first."""
        shared = len(self.prefix_tokens)
        waiting = sorted(rows, key=lambda row: row.need(shared), reverse=True)
        held_tokens = self.held_tokens
        while waiting:
            columns = waiting[0].need(shared)
            alike = waiting
            if len(waiting) * columns > held_tokens:
                # All places are as long as the longest row: much shorter rows come later.
                alike = [row for row in waiting if 2 * row.need(shared) >= columns]
            places = min(len(alike), max(1, held_tokens // columns))
            ended: set[int] = set()

            def end(row: Row, problem: str | None, ended: set[int] = ended) -> None:
                ended.add(row.number)
                on_end(row, problem)

            memory = Decode(self.prefix, shared, places, columns)
            fits = _Places(self, memory, chooser, stops, end).run(alike)
            waiting = [row for row in waiting if row.number not in ended]
            if fits:
                continue
            del memory
            torch.cuda.empty_cache()
            held_tokens = places // 2 * columns
            if places == 1:
                on_end(waiting.pop(0), OUT_OF_MEMORY)

    def run(self, tokens: list[int], memory: Prefill | Decode) -> Tensor:
        """One forward pass of the body: N packed tokens, or one of each row -> [N, D]."""
        ids = torch.tensor(tokens, device=self.device).view(memory.position_ids.shape)
        out = self.body(
            input_ids=ids, position_ids=memory.position_ids, use_cache=False, memory=memory
        )
        return out.last_hidden_state.flatten(0, 1)


class _Places:
    """The rows being decoded together; the b-th active row is in place b of `memory`."""

    def __init__(
        self, decoder: Decoder, memory: Decode, chooser: Chooser, stops: Stops, on_end: OnEnd
    ) -> None:
        self.decoder, self.memory = decoder, memory
        self.chooser, self.stops, self.on_end = chooser, stops, on_end
        self.active: list[Row] = []

    def run(self, rows: list[Row]) -> bool:
        """Decode all rows, in their order; False when memory did not hold them."""
        waiting = rows[::-1]
        try:
            while waiting or self.active:
                free = self.memory.places - len(self.active)
                if waiting and (not self.active or 4 * free >= self.memory.places):
                    self._admit(waiting, free)
                else:
                    self._step()
        except torch.cuda.OutOfMemoryError:
            return False
        return True

    def _admit(self, waiting: list[Row], free: int) -> None:
        """One packed pass over the own tokens of rows that wait, as many as may run."""
        shared = self.memory.prefix_length
        rows: list[Row] = []
        tokens = 0
        while waiting and len(rows) < free:
            tokens += len(waiting[-1].context) - shared
            if rows and tokens > self.decoder.batch_tokens:
                break
            rows.append(waiting.pop())
        hidden_BD = self._prefill(rows, len(self.active))
        for row in rows:
            row.made = []  # an earlier attempt may have run out of memory
            if self.chooser.sampled:
                row.generator = seeded(row.seed_key, self.decoder.device)
        self.active += rows
        self._choose(rows, hidden_BD)

    def _prefill(self, rows: list[Row], place: int) -> Tensor:
        """Fill the places from `place` on; [B, D] hidden states of the rows' last tokens."""
        shared = self.memory.prefix_length
        own = [row.context[shared:] for row in rows]
        memory = Prefill(self.memory.prefix, shared, [len(o) for o in own], self.decoder.device)
        hidden_ND = self.decoder.run([token for tokens in own for token in tokens], memory)
        if len(rows) > 1 and bool(hidden_ND.isnan().any()):
            # A mask does not hide NaN from neighbours: only those it belongs to may fail.
            alone = [self._prefill([row], place + b) for b, row in enumerate(rows)]
            return torch.cat(alone)
        self.memory.insert(memory.made, memory.rows_N + place, memory.columns_N)
        return hidden_ND[memory.last_B]

    def _step(self) -> None:
        """One more token for every active row."""
        shared = self.memory.prefix_length
        lengths = [len(row.context) + len(row.made) - 1 - shared for row in self.active]
        self.memory.begin(lengths, self.decoder.device)
        hidden_BD = self.decoder.run([row.made[-1] for row in self.active], self.memory)
        self._choose(list(self.active), hidden_BD)

    def _choose(self, rows: list[Row], hidden_BD: Tensor) -> None:
        """Choose the last active rows' next tokens and let go of those that end with them."""
        first = len(self.active) - len(rows)
        tokens = self.chooser(project(self.decoder.model, hidden_BD), rows)
        for row, token in zip(rows, tokens, strict=True):
            if token is not None:
                row.made.append(token)
        stopped = self.stops([row.made for row in rows])
        for b in reversed(range(len(rows))):
            row, broken = rows[b], tokens[b] is None
            if not (broken or stopped[b] or len(row.made) >= row.limit):
                continue
            row.stopped = stopped[b]
            last = self.active.pop()
            self.memory.release(first + b, len(self.active), broken)
            if last is not row:
                self.active[first + b] = last
            self.on_end(row, NAN if broken else None)
