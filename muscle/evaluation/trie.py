"""Sequences that begin alike become a tree whose shared tokens are there once.

Pure arithmetic on token ids, without a model. Shapes: L tokens of one sequence or nodes
of one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chain:
    """The longest of some sequences that are prefixes of each other, and all of them.

    tokens_L: the ids of the longest.
    members: numbers of the sequences, each a prefix of the next; equal ones are too.
    start: the first position at which a member is scored; a trunk must end before it.
    """

    tokens_L: Ints
    members: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class Row:
    """A forest in depth-first order on top of a trunk, to be run in one row of a batch.

    Node k is an ancestor of node q, or q itself, exactly if k <= q < end_L[k].

    token_L: token ids.
    position_L: position ids, which are the depths in the tree, trunk included.
    end_L: for each node the index after its last descendant.
    paths: for each chain the indices of the nodes from the end of the trunk to its leaf.
    """

    token_L: Ints
    position_L: Ints
    end_L: Ints
    paths: tuple[Ints, ...]


def make_chains(sequences: Sequence[Ints], starts: Sequence[int]) -> list[Chain]:
    """Chains in lexicographic order, so that those which share a prefix are neighbours.

    Args:
        sequences: token ids, none empty.
        starts: for each the first position at which it is scored.
    """
    # Big-endian bytes compare as the lists of ids do, by memcmp.
    keys = [tokens_L.astype(">u4").tobytes() for tokens_L in sequences]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    chains: list[Chain] = []
    members: list[int] = []
    for place, number in enumerate(order):
        members.append(number)
        following = order[place + 1] if place + 1 < len(order) else None
        if following is None or not keys[following].startswith(keys[number]):
            start = min(starts[m] for m in members)
            chains.append(Chain(sequences[number], tuple(members), start))
            members = []
    return chains


def shared_with_previous(chains: Sequence[Chain]) -> Ints:
    """For each chain the number of first tokens that it shares with the one before it."""
    shared = [shared_length(one.tokens_L, other.tokens_L) for one, other in pairwise(chains)]
    return np.array([0, *shared], dtype=np.int64)


def shared_length(one_L: Ints, other_L: Ints) -> int:
    """How many first tokens two sequences have in common."""
    n = min(len(one_L), len(other_L))
    differs = one_L[:n] != other_L[:n]
    first = int(differs.argmax()) if n else 0
    return first if n and differs[first] else n


def make_row(chains: Sequence[Chain], trunk: int) -> Row:
    """The forest of some chains.

    Args:
        chains: in lexicographic order, not necessarily neighbours.
        trunk: number of first tokens that all of them share and that the row leaves out.
    """
    longest = max(len(chain.tokens_L) for chain in chains)
    path = np.zeros(longest, dtype=np.int64)  # depth -> node, of the chain at hand
    tokens: list[Ints] = []
    ends = np.zeros(sum(len(chain.tokens_L) - trunk for chain in chains), dtype=np.int64)
    positions = np.zeros_like(ends)
    paths: list[Ints] = []
    count, previous_L = 0, chains[0].tokens_L[:trunk]
    for chain in chains:
        tokens_L = chain.tokens_L
        branch = trunk + shared_length(previous_L[trunk:], tokens_L[trunk:])
        ends[path[branch : len(previous_L)]] = count
        new = count + len(tokens_L) - branch
        path[branch : len(tokens_L)] = np.arange(count, new)
        positions[count:new] = np.arange(branch, len(tokens_L))
        tokens.append(tokens_L[branch:])
        paths.append(path[trunk : len(tokens_L)].copy())
        count, previous_L = new, tokens_L
    ends[path[trunk : len(previous_L)]] = count
    return Row(np.concatenate(tokens), positions[:count], ends[:count], tuple(paths))
