"""How far the examples of a continuous metric moved: counts of D(x)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from muscle.metrics.flips import ROUNDING
from muscle.metrics.pairing import JoinedTask, Pair

SIDE_BINS = 20


def histogram(task: JoinedTask, seeds: Sequence[int], pair: Pair) -> dict[str, Any] | None:
    """Counts of D = score after - score before, in bins that mirror each other around 0.

    The middle one of the 41 bins holds D = 0 alone; the others are equally wide and end at
    the largest |D|, so that all examples are in one. Several seeds are counted together.

    Returns:
        {"edges": 42 increasing numbers, "counts": 41 integers}; None for a 0/1 metric.
    """
    if not task.continuous:
        return None
    before, after = pair
    change = np.concatenate([task.scores[s, after] - task.scores[s, before] for s in seeds])
    size = np.abs(change)
    moved = size > ROUNDING
    largest = float(size.max(initial=0.0))
    edges = np.linspace(ROUNDING, largest if largest > ROUNDING else 1.0, SIDE_BINS + 1)
    better, _ = np.histogram(change[moved], edges)
    worse, _ = np.histogram(-change[moved], edges)
    return {
        "edges": [*(-edges[::-1]).tolist(), *edges.tolist()],
        "counts": [*worse[::-1].tolist(), int((~moved).sum()), *better.tolist()],
    }
