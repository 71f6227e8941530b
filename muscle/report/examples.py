"""Picks a few negative flips to show, the same ones every time."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from muscle.metrics.flips import ROUNDING
from muscle.types import Prediction, Version


@dataclass(frozen=True, slots=True)
class FlipExample:
    """One example that got worse, side by side; compat is None when there is none."""

    old: Prediction
    new: Prediction
    compat: Prediction | None = None


def pick_examples(
    predictions: Mapping[Version, Sequence[Prediction]], limit: int = 5
) -> list[FlipExample]:
    """Up to `limit` negative flips for each task: old's score above new's.

    The order is that of the ids' hashes: the same everywhere, but not the first rows of
    the file, which are seldom a fair sample.

    Args:
        predictions: version -> predictions of one seed; old, new and maybe compat.

    Returns:
        By task name, then by hash.
    """
    old, new, compat = (
        {(p.task, p.id): p for p in predictions.get(version, ())}
        for version in ("old", "new", "compat")
    )
    picked: dict[str, list[FlipExample]] = {}
    for key in sorted(old.keys() & new.keys(), key=_order):
        before, after = old[key].score, new[key].score
        chosen = picked.setdefault(key[0], [])
        if (
            before is not None
            and after is not None
            and before - after > ROUNDING
            and len(chosen) < limit
        ):
            chosen.append(FlipExample(old[key], new[key], compat.get(key)))
    return [example for chosen in picked.values() for example in chosen]


def _order(key: tuple[str, str]) -> tuple[str, str]:
    task, name = key
    return task, hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
