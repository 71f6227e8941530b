"""Joined tasks from plain arrays, for the tests of what reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

from muscle.metrics.pairing import JoinedTask, join_sides
from muscle.side import side_of
from muscle.types import Prediction


def rows(scores: Sequence[float | None], **columns: Any) -> list[Prediction]:
    """One prediction for each score; a column is one value for all or a list of values."""
    fixed: dict[str, Any] = {"task": "t", "metric": "acc", "question": "q", "gold": "g"}
    fixed |= {"prediction": None} | columns
    n = len(scores)
    made = []
    for i, score in enumerate(scores):
        values = {k: v[i] if isinstance(v, list) and len(v) == n else v for k, v in fixed.items()}
        made.append(Prediction(id=f"{i:06d}", score=score, **values))
    return made


def joined(
    *seeds: Mapping[str, Sequence[Prediction]], about: Mapping[str, Any] | None = None
) -> JoinedTask:
    """One task of any versions, one mapping for each seed; `about` by version."""
    about = about or {}
    sides = {
        seed: {v: {"t": side_of(p, v, about.get(v))} for v, p in versions.items()}
        for seed, versions in enumerate(seeds)
    }
    (task,) = join_sides(sides).values()
    return task


def scored(*seeds: Mapping[str, Sequence[float]], **columns: Any) -> JoinedTask:
    """The same from scores alone; columns are for all versions."""
    return joined(
        *(
            {v: rows(list(map(float, s)), **columns) for v, s in versions.items()}
            for versions in seeds
        )
    )
