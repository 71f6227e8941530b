"""Which setting makes it fit: each is tried by reckoning everything again."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from muscle.config import ResourcesConfig
from muscle.planning.estimate import Reckoned, reckon
from muscle.planning.facts import Facts
from muscle.planning.steps import StepEstimate

TRAINING = ("train",)
ACTORS = ("cache", "evaluate")
WORKERS = (2, 4, 8, 16)


@dataclass(frozen=True)
class Advice:
    """What doesn't fit, and what would make it fit.

    steps     labels of the steps without room
    needs     bytes of the worst of them; `available` is what it may take
    settings  changes of `resources` under which all of these kinds fit; empty: none was found
    then      bytes of the worst step under them; without settings, of the smallest that was tried
    """

    steps: tuple[str, ...]
    needs: float
    available: float
    settings: dict[str, Any]
    then: float


def advise(facts: Facts, reckoned: Reckoned) -> list[Advice]:
    """One advice for the trainings and one for the actors, where something doesn't fit."""
    found = []
    for kinds, candidates in ((TRAINING, _for_training), (ACTORS, _for_actors)):
        bad = reckoned.without_room(kinds)
        if bad:
            found.append(_first_that_fits(facts, reckoned, kinds, bad, candidates))
    return found


def _first_that_fits(
    facts: Facts,
    reckoned: Reckoned,
    kinds: tuple[str, ...],
    bad: list[StepEstimate],
    candidates: Any,
) -> Advice:
    worst = max(bad, key=lambda s: s.memory.total - s.available)
    settings: dict[str, Any] = {}
    then = worst.memory.total
    for change in candidates(facts, reckoned):
        tried = reckon(facts, ResourcesConfig(**{**reckoned.resources.model_dump(), **change}))
        most = max(s.memory.total for s in tried.steps if s.kind in kinds)
        if not tried.without_room(kinds):
            settings, then = change, most
            break
        then = min(then, most)
    return Advice(tuple(s.label for s in bad), worst.memory.total, worst.available, settings, then)


def _for_training(facts: Facts, reckoned: Reckoned) -> Iterator[dict[str, Any]]:
    """Changes, the cheapest first: of this many GPUs as they are, then partitioned ones."""
    resources = reckoned.resources
    local = list(_local(facts, reckoned))
    for change in local:
        if change:
            yield change
    spreads: list[dict[str, Any]] = []
    if resources.workers > 1 and resources.deepspeed != "zero3":
        spreads.append({"deepspeed": "zero3"})
    if resources.deepspeed != "zero3-offload":
        spreads.append({"deepspeed": "zero3-offload"})
    spreads += [{"deepspeed": "zero3", "workers": n} for n in WORKERS if n > resources.workers]
    for spread in spreads:
        for change in local:
            # Partitioned parameters want cached teachers, which `auto` sees to.
            online = {"teachers": "cached"} if resources.teachers == "online" else {}
            yield {**change, **online, **spread}


def _local(facts: Facts, reckoned: Reckoned) -> Iterator[dict[str, Any]]:
    """Checkpointing, smaller micro-batches, cached teachers, and all combinations."""
    resources = reckoned.resources
    wings = (facts.old, facts.new)
    checkpoint: list[dict[str, Any]] = [{}]
    if not resources.gradient_checkpointing and all(w.trained.can_checkpoint for w in wings):
        checkpoint.append({"gradient_checkpointing": True})
    teachers: list[dict[str, Any]] = [{}]
    if reckoned.cache.bytes and not reckoned.cache.choice.cached:
        teachers.append({"teachers": "cached"})
    tokens = [{"training_tokens": n} for n in _smaller(facts, resources)]
    for cached in teachers:
        for recompute in checkpoint:
            yield {**recompute, **cached}
        for recompute in checkpoint:
            for fewer in tokens:
                yield {**recompute, **fewer, **cached}


def _smaller(facts: Facts, resources: ResourcesConfig) -> list[int]:
    """Halves of the largest micro-batch, down to the longest example alone."""
    budget = facts.training_budget(resources)
    works = [facts.training_work(w, budget, resources.workers) for w in (facts.old, facts.new)]
    longest = max(len(ids) for w in (facts.old, facts.new) for ids in w.train.ids)
    if facts.distilled is not None:
        trees = facts.distilled.train
        works.append(facts.training_work(facts.new, budget, resources.workers, trees))
        longest = max(longest, *map(trees.size, range(len(trees))))
    size, found = budget, []
    while size // 2 >= longest:
        size //= 2
        found.append(size)
    if longest < size:
        found.append(longest)
    largest = max(w.rows * w.length for w in works)
    return [n for n in found if n < largest]


def _for_actors(facts: Facts, reckoned: Reckoned) -> Iterator[dict[str, Any]]:
    # A whole GPU each: where there is but one, the bases then take turns.
    whole: list[dict[str, Any]] = [{}]
    if reckoned.resources.gpus_per_actor == "auto" and facts.hardware.kind == "cuda":
        whole = [{"gpus_per_actor": 1}]
        yield whole[0]
    size = facts.scoring_budget(reckoned.resources)
    while size > 256:
        size //= 2
        yield {**whole[0], "scoring_tokens": size}
