"""One seeded train/validation split, the same for old, new and compat.

The order is that of a hash of (seed, example), not of a random number generator: it
is the same on every machine and in every version of every library, and equal
examples stand side by side.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence

from muscle.errors import UserError
from muscle.types import TrainingExample


def split(
    examples: Sequence[TrainingExample], data_seed: int, validation_fraction: float
) -> tuple[list[TrainingExample], list[TrainingExample]]:
    """(training, validation) examples, each in the order of `examples`.

    Examples with the same prompt and answer go to the same side, so validation never
    measures what was trained on. Validation holds about `validation_fraction` of the
    examples (exactly, rounded to whole examples, if none occurs twice).

    Raises:
        UserError: one of the sides would be empty.
    """
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        groups[_rank(data_seed, "split", example.prompt, example.answer)].append(index)
    wanted = round(len(examples) * validation_fraction)
    held_out: set[int] = set()
    for _, group in sorted(groups.items()):
        if len(held_out) >= wanted:
            break
        held_out.update(group)
    validation = [e for i, e in enumerate(examples) if i in held_out]
    training = [e for i, e in enumerate(examples) if i not in held_out]
    if not training or not validation:
        side = "training" if not training else "validation"
        raise UserError(
            f"{len(examples)} training examples ({len(groups)} different) leave no {side} "
            f"example at training.validation_fraction {validation_fraction}: give more examples"
        )
    return training, validation


def limit_examples(
    examples: Sequence[TrainingExample], limit: int | None, data_seed: int
) -> list[TrainingExample]:
    """A seeded subset of `limit` examples, in their order; all of them without a limit."""
    if limit is None or limit >= len(examples):
        return list(examples)
    # Another word than in `split`: else validation would be the subset's first ones.
    order = sorted(range(len(examples)), key=lambda i: _rank(data_seed, "limit", examples[i].id))
    return [examples[i] for i in sorted(order[:limit])]


def _rank(seed: int, *parts: str) -> bytes:
    # JSON keeps ("ab", "c") and ("a", "bc") apart.
    return hashlib.sha256(json.dumps([seed, *parts]).encode()).digest()
