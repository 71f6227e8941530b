"""Which chains share a trunk, and which share a row: the plan of a scoring run.

A *trunk* is a prefix so long, or shared by so many, that it is run once and its keys and
values are kept; everything else that is shared is shared inside a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from muscle.evaluation.trie import Chain, Ints, shared_length, shared_with_previous

MIN_TRUNK = 16
"""Tokens: a trunk costs a forward pass of its own, and each row a copy of its keys."""

WORTH = 8
"""Chains share a row when that saves one node in so many: longer rows attend longer."""

ROW_OF_TRUNK = 4
"""On a trunk of P tokens rows are filled to P / 4 nodes, as each row copies the trunk."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows on one trunk.

    trunk_L: its token ids, perhaps none.
    rows: the chains of each row, as numbers in lexicographic order.
    """

    trunk_L: Ints
    rows: tuple[tuple[int, ...], ...]


def plan_alone(chains: Sequence[Chain]) -> list[Group]:
    """Each chain in a row of its own: no branches, so a causal model needs no mask."""
    return [Group(np.zeros(0, np.int64), tuple((number,) for number in range(len(chains))))]


def plan_tree(
    chains: Sequence[Chain], budget: int, kept_L: Ints, may_trunk: bool = True
) -> list[Group]:
    """The chains as trees: groups by trunk, neighbours together where that saves tokens.

    Args:
        chains: in lexicographic order.
        budget: nodes that a row should not exceed if it can be split.
        kept_L: a trunk whose keys and values are at hand.
        may_trunk: False shares inside rows only.
    """
    lengths = np.array([len(chain.tokens_L) for chain in chains], dtype=np.int64)
    shared = shared_with_previous(chains)
    starts = np.array([chain.start if may_trunk else 0 for chain in chains], dtype=np.int64)
    trunks: dict[bytes, Ints] = {}
    ranges: dict[bytes, list[tuple[int, int]]] = {}
    for low, high, trunk_L in _split(chains, lengths, shared, starts, budget, kept_L):
        key = trunk_L.tobytes()
        trunks[key] = trunk_L
        ranges.setdefault(key, []).append((low, high))
    return [
        Group(trunk_L, _rows(ranges[key], lengths, shared, len(trunk_L), budget))
        for key, trunk_L in trunks.items()
    ]


def _split(
    chains: Sequence[Chain],
    lengths: Ints,
    shared: Ints,
    starts: Ints,
    budget: int,
    kept_L: Ints,
) -> Iterator[tuple[int, int, Ints]]:
    """(low, high, trunk): ranges of neighbours that belong in one row, and their trunk.

    Walks down the tree: a node whose subtree fits a row, and whose branches share enough,
    is one range; a larger one is a trunk if it is long, and otherwise taken apart.
    """
    stack = [(0, len(chains), chains[0].tokens_L[:0])]
    while stack:
        low, high, trunk_L = stack.pop()
        base = len(trunk_L)
        first_L = chains[low].tokens_L
        inner = shared[low + 1 : high]
        depth = int(inner.min()) if len(inner) else len(first_L)
        nodes = int(lengths[low:high].sum() - inner.sum()) - base
        cuts = [low, *(low + 1 + np.flatnonzero(inner == depth)).tolist(), high]
        fits = nodes <= budget
        # The position of a score has to be in the row, not in the trunk.
        trunk = min(depth, int(starts[low:high].min()))
        known = min(shared_length(kept_L, first_L), trunk)
        if known - base >= MIN_TRUNK and (fits or trunk - known < MIN_TRUNK):
            trunk_L = first_L[:known]
        elif trunk - base >= MIN_TRUNK and not fits and len(cuts) > 2:
            trunk_L = first_L[:trunk]
        elif len(cuts) == 2 or (fits and WORTH * (len(cuts) - 2) * (depth - base) >= nodes):
            yield low, high, trunk_L
            continue
        else:
            stack += [(a, b, trunk_L) for a, b in zip(cuts[-2::-1], cuts[:0:-1], strict=True)]
            continue
        stack.append((low, high, trunk_L))


def _rows(
    ranges: list[tuple[int, int]], lengths: Ints, shared: Ints, trunk: int, budget: int
) -> tuple[tuple[int, ...], ...]:
    """Ranges in rows, the longest first, each row filled up to a part of the trunk."""

    def nodes(item: tuple[int, int]) -> int:
        low, high = item
        return int(lengths[low:high].sum() - shared[low + 1 : high].sum()) - trunk

    target = min(budget, trunk // ROW_OF_TRUNK)
    rows: list[list[int]] = []
    filled = 0
    for item in sorted(ranges, key=nodes, reverse=True):
        size = nodes(item)
        if not rows or filled + size > target:
            rows.append([])
            filled = 0
        rows[-1] += range(*item)
        filled += size
    return tuple(tuple(sorted(row)) for row in rows)
