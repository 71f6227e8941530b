"""Which prompts go together because they begin alike."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

MIN_SHARED = 16
"""Tokens: a shorter common beginning is not worth a pass of its own."""


@dataclass(frozen=True, slots=True)
class Family:
    """Prompts that share their first `shared` tokens; `members` are numbers of prompts."""

    shared: int
    members: list[int]


@dataclass(slots=True)
class _Open:
    """A node of the trie on the way to the current prompt, with the prompts under it."""

    depth: int
    members: list[int] = field(default_factory=list)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common beginning."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)


def families(prompts: Sequence[list[int]], cost: int) -> list[Family]:
    """Every prompt in one family, in an order in which neighbours begin alike.

    A branch of the prompts' trie becomes a family of its own when the tokens this saves,
    (prompts - 1) x (tokens shared beyond those of the branch around it), exceed `cost`,
    the price in tokens of not decoding together with the others. A family leaves every
    prompt at least one token of its own, from which its first new token comes.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    found: list[list[int]] = []
    way = [_Open(0)]
    for here, after in zip_longest(order, order[1:]):
        depth = 0 if after is None else common(prompts[here], prompts[after])
        if depth > way[-1].depth:
            way.append(_Open(depth))
        way[-1].members.append(here)
        while way[-1].depth > depth:
            node = way.pop()
            if way[-1].depth < depth:
                way.append(_Open(depth))
            saved = (len(node.members) - 1) * (node.depth - way[-1].depth)
            if saved > cost:
                found.append(node.members)
            else:
                way[-1].members += node.members
    if way[0].members:
        found.append(way[0].members)
    made = [_family(prompts, members) for members in found]
    return sorted(made, key=lambda family: (family.shared == 0, prompts[family.members[0]]))


def _family(prompts: Sequence[list[int]], members: list[int]) -> Family:
    shortest = min(len(prompts[i]) for i in members)
    ends = min(members, key=lambda i: prompts[i]), max(members, key=lambda i: prompts[i])
    shared = min(common(prompts[ends[0]], prompts[ends[1]]), shortest - 1)
    return Family(shared if len(members) > 1 and shared >= MIN_SHARED else 0, members)
