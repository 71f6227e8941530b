"""One seeded train/validation split, the same for old, new and compat, and what a search
holds out before it.

The order is that of a hash of (seed, example), not of a random number generator: it
is the same on every machine and in every version of every library, and equal
examples stand side by side.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

from muscle.errors import UserError
from muscle.types import TrainingExample


def split(
    examples: Sequence[TrainingExample],
    data_seed: int,
    validation_fraction: float,
    groups: Mapping[str, str] | None = None,
) -> tuple[list[TrainingExample], list[TrainingExample]]:
    """(training, validation) examples, each in the order of `examples`.

    Examples with the same prompt and answer go to the same side, so validation never
    measures what was trained on. Validation holds about `validation_fraction` of the
    examples (exactly, rounded to whole examples, if none occurs twice).

    Args:
        groups: id -> a group of near-copies, which go to the same side too.

    Raises:
        UserError: one of the sides would be empty.
    """
    found = _groups(examples, data_seed, "split", groups)
    wanted = round(len(examples) * validation_fraction)
    held_out = {index for group in _first(found, wanted) for index in group}
    validation = [e for i, e in enumerate(examples) if i in held_out]
    training = [e for i, e in enumerate(examples) if i not in held_out]
    if not training or not validation:
        side = "training" if not training else "validation"
        raise UserError(
            f"{len(examples)} training examples ({len(found)} different) leave no {side} "
            f"example at training.validation_fraction {validation_fraction}: give more examples"
        )
    return training, validation


def hold_out(
    examples: Sequence[TrainingExample],
    data_seed: int,
    fraction: float,
    groups: Mapping[str, str] | None = None,
) -> tuple[list[TrainingExample], list[TrainingExample], list[TrainingExample]]:
    """(rest, a, b), each in the order of `examples`: a and b are held out for a search.

    Half a ranks its trials, half b judges the finalists, and `rest` is what `split` and the
    training get. Examples with the same prompt and answer go to the same part. a and b hold
    about `fraction` of the examples together (exactly, rounded to whole examples, if none
    occurs twice) and differ by at most one where few occur twice: no group of equal examples
    could change sides to make them more equal.

    Args:
        groups: as in `split`.

    Raises:
        UserError: one of the three would be empty.
    """
    found = _groups(examples, data_seed, "tuning", groups)
    held_out = _first(found, round(len(examples) * fraction))
    halves: tuple[set[int], set[int]] = (set(), set())
    for group in sorted(held_out, key=len, reverse=True):  # the large ones first, else by rank
        min(halves, key=len).update(group)
    a, b = ([e for i, e in enumerate(examples) if i in half] for half in halves)
    taken = halves[0] | halves[1]
    rest = [e for i, e in enumerate(examples) if i not in taken]
    if not rest or not a or not b:
        raise UserError(
            f"{len(examples)} training examples ({len(found)} different) leave "
            f"{'none to train on' if not rest else 'fewer than two different ones to tune on'} "
            f"at training.tuning_fraction {fraction}: give more examples or another fraction"
        )
    return rest, a, b


def fold(
    examples: Sequence[TrainingExample],
    count: int,
    data_seed: int,
    groups: Mapping[str, str] | None = None,
) -> list[list[str]]:
    """The ids of `count` parts of about equal size; equal examples and groups stay together.

    Fewer parts where there are not so many that differ.
    """
    parts: list[list[str]] = [[] for _ in range(count)]
    for group in _groups(examples, data_seed, f"fold {count}", groups):
        least = min(parts, key=len)
        least += [examples[index].id for index in group]
    return [sorted(part) for part in parts if part]


def limit_examples(
    examples: Sequence[TrainingExample], limit: int | None, data_seed: int
) -> list[TrainingExample]:
    """A seeded subset of `limit` examples, in their order; all of them without a limit."""
    return [examples[i] for i in limit_ids([e.id for e in examples], limit, data_seed)]


def limit_ids(ids: Sequence[str], limit: int | None, data_seed: int) -> list[int]:
    """The places of a seeded subset of `limit` ids, in their order; a larger limit only adds."""
    if limit is None or limit >= len(ids):
        return list(range(len(ids)))
    # Another word than in `split`: else validation would be the subset's first ones.
    order = sorted(range(len(ids)), key=lambda i: _rank(data_seed, "limit", ids[i]))
    return sorted(order[:limit])


def _groups(
    examples: Sequence[TrainingExample], seed: int, word: str, near: Mapping[str, str] | None = None
) -> list[list[int]]:
    """The places of equal examples together, and of near-copies, groups in a seeded order; `word`
    tells its use."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        same[_rank(seed, word, example.prompt, example.answer)].append(index)
    if not near:
        return [group for _, group in sorted(same.items())]
    # Equal examples may stand in two groups of near-copies, which are then one.
    first: dict[str, int] = {}
    parent = list(range(len(examples)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    for equal in same.values():
        for index in equal:
            parent[root(index)] = root(equal[0])
            near_one = near.get(examples[index].id)
            if near_one is not None:
                parent[root(index)] = root(first.setdefault(near_one, index))
    merged: dict[int, list[int]] = defaultdict(list)
    for index in range(len(examples)):
        merged[root(index)].append(index)
    ranks = {group[0]: _rank(seed, word, examples[group[0]].id) for group in merged.values()}
    return sorted(merged.values(), key=lambda group: ranks[group[0]])


def _first(groups: Sequence[list[int]], wanted: int) -> list[list[int]]:
    """The first groups that hold `wanted` examples together, or a few more."""
    found: list[list[int]] = []
    size = 0
    for group in groups:
        if size >= wanted:
            break
        found.append(group)
        size += len(group)
    return found


def _rank(seed: int, *parts: str) -> bytes:
    # JSON keeps ("ab", "c") and ("a", "bc") apart.
    return hashlib.sha256(json.dumps([seed, *parts]).encode()).digest()
