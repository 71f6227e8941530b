"""Batches filled by a token budget, and what happens when one does not fit in memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def fill(rows: Sequence[T], length: Callable[[T], int], budget: int) -> Iterator[list[T]]:
    """Batches of `rows`, longest first, each with rows x longest <= budget.

    A row longer than the budget is a batch of its own. Sorting wastes the least padding
    and meets the largest batch first. The order among equals is that of `rows`.
    """
    batch: list[T] = []
    for row in sorted(rows, key=length, reverse=True):
        if batch and (len(batch) + 1) * length(batch[0]) > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def halves(batch: list[T]) -> list[list[T]]:
    """Two halves of a batch; nothing of a single row."""
    middle = len(batch) // 2
    return [batch[:middle], batch[middle:]] if middle else []


def run_in_parts(
    batch: list[T], run: Callable[[list[T]], None], halves: Callable[[list[T]], list[list[T]]]
) -> None:
    """`run(batch)`; out of GPU memory, its `halves`, which has none for what can't be split."""
    import torch

    try:
        return run(batch)
    except torch.cuda.OutOfMemoryError:
        pass
    # Outside the handler, so that the exception no longer holds the batch's tensors.
    torch.cuda.empty_cache()
    for half in halves(batch):
        run_in_parts(half, run, halves)
