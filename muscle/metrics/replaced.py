"""Multiple choice: which answer replaced which."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from muscle.metrics.choices import first_match, lengths_of, values_of
from muscle.metrics.columns import Column
from muscle.metrics.pairing import JoinedTask, Pair

MOST_CHOICES = 20


def replaced(task: JoinedTask, seed: int, pair: Pair) -> dict[str, Any] | None:
    """The answers before and after, of examples that got worse or are wrong in another way.

    Returns:
        {"labels": K texts if all examples have the same choices in the same order, else the
             positions "1" to "K",
         "by": "text" or "position",
         "negative": K x K counts [answer before][answer after] of the negative flips,
         "both_wrong": the same of the examples where both are wrong with different answers}.
        Several equal choices of one example count as the first of them. None for continuous
        metrics, and where an answer is not one of at most 20 choices that both versions had.
    """
    if task.continuous:
        return None
    before, after = pair
    choices = task.column(seed, before, "choices")
    others = task.column(seed, after, "choices")
    if choices is None or others is None or choices.null_count or not choices.equals(others):
        return None
    lengths = lengths_of(choices)
    size = int(lengths.max(initial=0))
    if not 0 < size <= MOST_CHOICES:
        return None
    answers = []
    for version in pair:
        prediction = task.column(seed, version, "prediction")
        if prediction is None:
            return None
        answers.append(first_match(choices, prediction))
    old, new = answers
    if (old < 0).any() or (new < 0).any():
        return None
    wrong = (task.scores[seed, before] == 0) & (task.scores[seed, after] == 0)
    labels = _labels(choices, lengths)
    return {
        "labels": [str(k + 1) for k in range(size)] if labels is None else labels,
        "by": "position" if labels is None else "text",
        "negative": _table(old, new, task.worse(seed, pair), size),
        "both_wrong": _table(old, new, wrong & (old != new), size),
    }


def _labels(choices: Column, lengths: NDArray[np.int64]) -> list[str] | None:
    """The texts of the choices if all examples have the same, else None."""
    size = int(lengths[0])
    if (lengths != size).any():
        return None
    if not choices[0].equals(choices[-1]):
        return None  # as in most tasks, and a million different texts are slow to encode
    encoded = values_of(choices).dictionary_encode()
    codes = np.asarray(encoded.indices).reshape(-1, size)
    if (codes != codes[0]).any():
        return None
    return [str(encoded.dictionary[int(code)].as_py()) for code in codes[0]]


def _table(
    old: NDArray[np.int64], new: NDArray[np.int64], which: NDArray[np.bool_], size: int
) -> list[list[int]]:
    cells = np.bincount(old[which] * size + new[which], minlength=size * size)
    table: list[list[int]] = cells.reshape(size, size).tolist()
    return table
