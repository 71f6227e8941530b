"""Which methods are the best by tuning data: the fewest flips at new's score."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from effect_records import Record
from effect_stats import POINT, Cell, cell_of

EPSILON = 0.5 * POINT


class Ranked(NamedTuple):
    """A method on the screened cells that it ran on.

    ratio    its relative NFR over new's, the mean over the cells
    gains    score less new's, by cell
    allowed  no gain below -0.5 points
    missing  screened cells that have new and not this method
    """

    method: str
    ratio: float
    gains: dict[str, float]
    allowed: bool
    missing: int = 0


def ranked(records: Sequence[Record], cells: Sequence[str], methods: Sequence[str]) -> list[Ranked]:
    """The methods that ran: the allowed first, then those that ran on all cells, by their flips."""
    tuned = {name: cell_of(records, name, "tuning") for name in cells}
    there = {name: cell for name, cell in tuned.items() if cell is not None}
    found = [row for method in methods if (row := _row(there, method)) is not None]
    return sorted(found, key=lambda row: (not row.allowed, row.missing, row.ratio))


def _row(cells: dict[str, Cell], method: str) -> Ranked | None:
    ratios, gains = [], {}
    for name, cell in cells.items():
        # The first seed alone: other seeds have only what was chosen.
        if 0 not in cell.seeds(method):
            continue
        mine, new = cell.rates(method, [0]), cell.rates("new", [0])
        ratios.append(mine.flips[0] / new.flips[0] if new.flips[0] else np.nan)
        gains[name] = float(mine.score[0] - new.score[0])
    if not ratios:
        return None
    allowed = all(gain >= -EPSILON for gain in gains.values())
    return Ranked(method, float(np.mean(ratios)), gains, allowed, len(cells) - len(gains))
