"""Micro-batches: which a worker gets, and made ready one ahead of the training.

A background thread collates the next micro-batch, reads its cached teacher rows and copies
it to the device, while the present one computes.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from muscle.models.sequences import Batch, Moved, Rows, Sequences, collate

Split = Literal["train", "validation"]

Attach = Callable[[Sequence[int]], Mapping[str, Tensor]]
"""Cached teacher signals of training sequences: rows -> {name: hidden [N, D]}, N as `collate`'s."""


@dataclass(frozen=True)
class MicroBatch:
    """Sequences of one forward. `number` counts an update's micro-batches over all workers."""

    rows: list[int]
    weight: float
    number: int
    last: bool


def share(batches: list[list[int]], rank: int, world: int) -> list[MicroBatch]:
    """A worker's micro-batches of one update or pass; all workers get equally many.

    Engines synchronise at every backward, so a worker short of a batch repeats the last
    one with weight 0.
    """
    most = math.ceil(len(batches) / world)
    numbers = [rank + turn * world for turn in range(most)]
    return [
        MicroBatch(
            rows=batches[min(number, len(batches) - 1)],
            weight=float(number < len(batches)),
            number=number,
            last=turn == most - 1,
        )
        for turn, number in enumerate(numbers)
    ]


class Batches:
    """Makes batches of the two splits; a context manager that ends its thread.

    attach: adds cached teacher signals to training batches; called in the thread.
    old: the training split as an old teacher beside the student reads it, and its padding,
        where its chat template is another.
    """

    def __init__(
        self,
        splits: Mapping[Split, Rows],
        pad: int,
        device: str,
        attach: Attach | None = None,
        old: tuple[Sequences, int] | None = None,
    ):
        self.old = old
        self.splits, self.pad, self.device, self.attach = splits, pad, torch.device(device), attach
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="muscle-batches")
        # Copies of their own stream run beside the computation.
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def make(self, split: Split, rows: Sequence[int]) -> Any:
        """One batch on the device, whole and ready."""
        batch, copied = self._make(split, rows)
        return self._ready(batch, copied)

    def stream(
        self, split: Split, plan: Iterable[MicroBatch]
    ) -> Generator[tuple[MicroBatch, Any], None, None]:
        """The batches of a plan in order, the next one always under way.

        Raises:
            whatever making a batch raised, when that batch's turn comes.
        """
        ahead: deque[tuple[MicroBatch, Future[tuple[Any, Any]]]] = deque()
        for micro in plan:
            ahead.append((micro, self._pool.submit(self._make, split, micro.rows)))
            if len(ahead) > 1:
                yield self._next(ahead)
        while ahead:
            yield self._next(ahead)

    def _next(
        self, ahead: deque[tuple[MicroBatch, Future[tuple[Any, Any]]]]
    ) -> tuple[MicroBatch, Any]:
        micro, future = ahead.popleft()
        return micro, self._ready(*future.result())

    def _make(self, split: Split, rows: Sequence[int]) -> tuple[Any, Any]:
        batch = self.splits[split].collate(rows, self.pad)
        if split == "train" and self.attach is not None and isinstance(batch, Batch):
            batch = replace(batch, teachers=dict(self.attach(rows)))
        if split == "train" and self.old is not None and isinstance(batch, Batch):
            other = collate(self.old[0], rows, self.old[1])
            names = ("input_ids", "attention_mask", "scored")
            batch = replace(batch, old={name: getattr(other, name) for name in names})
        if self._stream is None:
            return batch.to(self.device), None
        with torch.cuda.stream(self._stream):
            # Only from pinned memory does a copy leave the processor free.
            batch = batch.each(lambda t: t.pin_memory().to(self.device, non_blocking=True))
            return batch, self._stream.record_event()

    def _ready(self, batch: Moved, copied: Any) -> Any:
        if copied is None:
            return batch
        here = torch.cuda.current_stream(self.device)
        here.wait_event(copied)

        def used_here(tensor: Tensor) -> Tensor:
            tensor.record_stream(here)  # else its memory could be given away too early
            return tensor

        return batch.each(used_here)
