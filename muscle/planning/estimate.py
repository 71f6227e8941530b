"""What an experiment will need: every step's work, time and memory, and the cache."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from muscle.config import Experiment, ResourcesConfig
from muscle.losses.needs import READS_OLD, needed_teachers
from muscle.models.load import torch_dtype
from muscle.planning.facts import Facts, Wing
from muscle.planning.flops import body_forward, forward_pass, head_forward, training_pass
from muscle.planning.hardware import Hardware
from muscle.planning.memory import (
    MARGIN,
    Memory,
    forward_memory,
    logit_bytes,
    read_sharding,
    training_memory,
)
from muscle.planning.meta import MetaModel
from muscle.teachers.choose import Choice, choose
from muscle.training.settings import read_deepspeed, zero_stage
from muscle.types import VERSIONS, Version

OPERATION_SECONDS = {"cpu": 12e-6, "cuda": 8e-6}
"""Time to start one tensor operation from Python: what small models cost. Assumed."""


@dataclass(frozen=True)
class StepEstimate:
    """One kind of step, all its repeats (seeds) together.

    kind        "train", "cache" or "evaluate"
    count       how often it runs; tokens, flops, hours and dollars are of all of them
    parameters  of the base; `adapter`: of one adapter
    tokens      run through the model, padding included
    gpus        at work at once in one of them
    hours       of one after the other
    memory      of one GPU, in bytes; `available` what it may take
    """

    kind: str
    label: str
    count: int
    parameters: int
    adapter: int
    tokens: int
    flops: float
    hours: float
    gpus: int
    dollars: float | None
    memory: Memory
    available: float
    note: str = ""

    @property
    def fits(self) -> bool:
        """Whether one GPU can hold it."""
        return self.memory.total <= self.available


@dataclass(frozen=True)
class CacheEstimate:
    """The teachers' cache on disk: bytes of all signals, whether or not it is chosen."""

    bytes: int
    signals: int
    passes: int
    free: int | None
    choice: Choice


@dataclass(frozen=True)
class Reckoned:
    """All steps under given resources."""

    resources: ResourcesConfig
    steps: tuple[StepEstimate, ...]
    cache: CacheEstimate

    def without_room(self, kinds: tuple[str, ...]) -> list[StepEstimate]:
        """The steps of these kinds that don't fit."""
        return [s for s in self.steps if s.kind in kinds and not s.fits]


def reckon(facts: Facts, resources: ResourcesConfig) -> Reckoned:
    """All steps of an experiment under `resources`, in the order in which they run."""
    cache = reckon_cache(facts, resources)
    experiment = facts.experiment
    seeds = len({run[0] for run in experiment.runs})
    steps = []
    for version in VERSIONS[:2]:
        if facts.given(version).adapter is None:
            more = version == "old" and trains_again(experiment)
            steps.append(_training(facts, resources, version, seeds + more, cache))
    if cache.choice.cached:
        for teacher in needed_teachers(experiment.compatibility):
            steps.append(_caching(facts, resources, teacher))
    steps.append(_training(facts, resources, "compat", len(experiment.runs), cache))
    for version in VERSIONS:
        steps.append(_evaluation(facts, resources, version))
    return Reckoned(resources, tuple(steps), cache)


def trains_again(experiment: Experiment) -> bool:
    """Whether the noise floor takes a training of old by itself; several seeds have it anyway."""
    return experiment.noise_floor is True and len(experiment.seeds) == 1


def reckon_cache(facts: Facts, resources: ResourcesConfig) -> CacheEstimate:
    """Bytes: positions in the loss x hidden size x bytes of the dtype, for every signal."""
    experiment = facts.experiment
    needs = needed_teachers(experiment.compatibility)
    itemsize = torch_dtype(experiment.training.dtype).itemsize
    total = signals = 0
    for teacher in needs:
        wing = facts.wing(teacher)
        times = _signals(experiment, teacher)
        total += times * wing.train.all_targets() * wing.trained.hidden * itemsize
        signals += times
    pairs = {tuple(_identity(experiment, t, run) for t in needs) for run in experiment.runs}
    passes = experiment.compat_training.epochs * len(experiment.runs) // max(1, len(pairs))
    zero3 = zero_stage(resources.deepspeed) == 3
    mask = experiment.compatibility.mask
    choice = choose(resources.teachers, passes, total, facts.disk_free, zero3, mask)
    return CacheEstimate(total, signals, passes, facts.disk_free, choice)


def _identity(experiment: Experiment, version: str, run: tuple[int, int]) -> int | None:
    """What tells apart the adapters of a version over the runs: the task seed, if trained."""
    given = experiment.old if version == "old" else experiment.new
    return None if given.adapter is not None else run[0]


def _signals(experiment: Experiment, version: str) -> int:
    return len({_identity(experiment, version, run) for run in experiment.runs})


def _training(
    facts: Facts,
    resources: ResourcesConfig,
    version: Version,
    count: int,
    cache: CacheEstimate,
) -> StepEstimate:
    experiment, hardware = facts.experiment, facts.hardware
    compat = version == "compat"
    settings = experiment.compat_training if compat else experiment.training
    wing = facts.wing(version)
    model, checkpointing = wing.trained, resources.gradient_checkpointing
    budget = facts.training_budget(resources)
    work = facts.training_work(wing, budget, resources.workers)
    validation = facts.validation_work(wing, budget, resources.workers)
    online = compat and not cache.choice.cached
    teachers = needed_teachers(experiment.compatibility) if compat else ()
    once = training_pass(model, work, checkpointing)
    waiting = once * (work.waiting - 1)
    for teacher in teachers:
        other = facts.wing(teacher).trained
        # The mask gives each token one teacher, but some masks look at old everywhere.
        share = 1.0 if len(teachers) == 1 else _head_share(experiment, teacher)
        once += share * head_forward(other, work.scored)
        if online:
            once += forward_pass(other, work, head=False)
    epoch = once + forward_pass(model, validation, head=True)
    flops = settings.epochs * epoch
    peaks = facts.training_peaks(wing, work, checkpointing)
    operations = settings.epochs * (peaks.operations * work.batches + peaks.operations / 4)
    seconds = _seconds(
        hardware,
        settings.dtype,
        flops + settings.epochs * waiting,
        operations,
        resources.workers,
    )
    memory = _training_memory(facts, resources, wing, teachers, online, budget)
    return StepEstimate(
        kind="train",
        label=f"train {version}",
        count=count,
        parameters=model.base,
        adapter=model.adapter,
        tokens=count * settings.epochs * (work.tokens + validation.tokens),
        flops=count * flops,
        hours=count * seconds / 3600,
        gpus=resources.workers,
        dollars=_dollars(hardware, count * seconds, resources.workers),
        memory=memory,
        available=_available(hardware, resources.gpus_per_worker, resources.workers),
        note=_waiting_note(work.waiting, resources.workers),
    )


def _head_share(experiment: Experiment, teacher: str) -> float:
    """Of the positions, how many go through a teacher's head; half each is assumed."""
    looks = experiment.compatibility.mask in READS_OLD
    return 1.0 if teacher == "old" and looks else 0.5


def _waiting_note(waiting: float, workers: int) -> str:
    if waiting < 1.1 or workers == 1:
        return ""
    idle = 1 - 1 / waiting
    return (
        f"{idle:.0%} of the workers' time is waiting: an update has too few micro-batches for "
        f"{workers} workers; lower resources.training_tokens or raise training.batch_size"
    )


def _training_memory(
    facts: Facts,
    resources: ResourcesConfig,
    wing: Wing,
    teachers: tuple[str, ...],
    online: bool,
    budget: int,
) -> Memory:
    model, kind = wing.trained, facts.hardware.kind
    work = facts.training_work(wing, budget, resources.workers)
    peaks = facts.training_peaks(wing, work, resources.gradient_checkpointing)
    itemsize = torch_dtype(model.dtype).itemsize
    second_adapter = old_teacher = 0.0
    signals = 2.0 * work.most_scored * model.hidden * itemsize
    for teacher in teachers:
        other = facts.wing(teacher).trained
        signals += work.most_scored * other.hidden * itemsize
        if not online and teacher == "old":
            old_teacher += other.hidden * other.vocabulary * itemsize  # its frozen head
        elif online and teacher == "old":
            old_teacher += other.weight_bytes + 4.0 * other.adapter
        elif online:
            second_adapter = float(model.adapter * itemsize)
    vocabulary = max([model.vocabulary, *(facts.wing(t).trained.vocabulary for t in teachers)])
    loss = facts.experiment.compatibility if teachers else None
    logits = logit_bytes(work.most_scored, vocabulary, model.dtype, kind, loss)
    sharding = read_sharding(read_deepspeed(resources.deepspeed), resources.workers)
    return training_memory(
        model, sharding, peaks, logits, kind, second_adapter, old_teacher, signals
    )


def _caching(facts: Facts, resources: ResourcesConfig, teacher: str) -> StepEstimate:
    wing, hardware = facts.wing(teacher), facts.hardware
    model, count = wing.trained, _signals(facts.experiment, teacher)
    work = facts.caching_work(wing, facts.scoring_budget(resources))
    flops = count * forward_pass(model, work, head=False)
    peak = facts.forward_peak(wing, model, work.rows, work.length)
    actors = resources.max_actors
    seconds = _seconds(hardware, model.dtype, flops, count * peak.operations * work.batches, actors)
    memory = forward_memory(model, count, peak.most, 0.0, 0.0, hardware.kind)
    tokens = count * work.tokens
    return _of_actors(
        facts, resources, model, ("cache", teacher), count, tokens, flops, seconds, memory
    )


def _of_actors(
    facts: Facts,
    resources: ResourcesConfig,
    model: MetaModel,
    what: tuple[str, str],
    count: int,
    tokens: int,
    flops: float,
    seconds: float,
    memory: Memory,
) -> StepEstimate:
    """A step of scoring actors; `what` is its kind and whose it is, the sums are of all repeats."""
    hardware, actors = facts.hardware, resources.max_actors
    return StepEstimate(
        kind=what[0],
        label=" ".join(what),
        count=count,
        parameters=model.base,
        adapter=model.adapter,
        tokens=tokens,
        flops=flops,
        hours=seconds / 3600,
        gpus=actors,
        dollars=_dollars(hardware, seconds, actors),
        memory=memory,
        available=_available(hardware, _actor_share(resources), 2 * actors),
    )


def _evaluation(facts: Facts, resources: ResourcesConfig, version: Version) -> StepEstimate:
    """Answers of one version; `new` and `compat` share a base and so its memory."""
    experiment, hardware = facts.experiment, facts.hardware
    wing = facts.wing(version)
    model, asked = wing.asked_model, wing.asked
    times = {v: _signals(experiment, v) for v in ("old", "new")}
    times["compat"] = len(experiment.runs)
    times["old"] += trains_again(experiment) or isinstance(experiment.noise_floor, str)
    times["old"] += len(experiment.also)  # older releases, whose bases are about old's size
    count = times[version]
    adapters = times["old"] if version == "old" else times["new"] + times["compat"]
    budget = facts.scoring_budget(resources)
    longest = max(2, asked.longest)
    rows = max(1, budget // longest)
    peak = facts.forward_peak(wing, model, rows, longest)
    flops = count * (
        body_forward(model, asked.tokens, asked.squares) + head_forward(model, asked.scored)
    )
    batches = -(-asked.tokens // budget) if budget else 0
    itemsize = torch_dtype(model.dtype).itemsize
    held = longest
    actors = resources.max_actors
    decoding = 0.0
    if asked.requests:
        held = max(budget, facts.held_tokens)
        together = max(1, held // longest)
        turns = -(-asked.generated // together)
        decoding = turns * max(
            model.weight_bytes / hardware.bandwidth,
            peak.operations * OPERATION_SECONDS[hardware.kind],
        )
    seconds = _seconds(hardware, model.dtype, flops, count * peak.operations * batches, actors)
    seconds += count * decoding / (actors if hardware.kind == "cuda" else 1)
    cache = float(held * model.cache_width * model.layers * itemsize)
    head = min(budget, max(1, facts.head_elements // model.vocabulary)) * model.vocabulary
    masks = rows * longest * longest * itemsize
    memory = forward_memory(
        model, adapters, peak.most + masks, (4.0 + itemsize) * head, cache, hardware.kind
    )
    tokens = count * asked.tokens
    return _of_actors(
        facts, resources, model, ("evaluate", version), count, tokens, flops, seconds, memory
    )


def _seconds(
    hardware: Hardware, dtype: str, flops: float, operations: float, workers: int
) -> float:
    """Time of a step on `workers` GPUs; several workers on one CPU share its rate."""
    shared = workers if hardware.kind == "cuda" else 1
    arithmetic = flops / hardware.rate(dtype) / shared
    starting = operations * OPERATION_SECONDS[hardware.kind] / shared
    # A GPU computes while Python starts the next operation; a CPU does one after the other.
    return max(arithmetic, starting) if hardware.kind == "cuda" else arithmetic + starting


def _dollars(hardware: Hardware, seconds: float, gpus: int) -> float | None:
    return None if hardware.price is None else seconds / 3600 * gpus * hardware.price


def _available(hardware: Hardware, share: float | str, side_by_side: int) -> float:
    """Bytes that one worker may take: a share of a GPU, or of the machine's memory."""
    if hardware.kind == "cpu":
        return MARGIN * hardware.memory / side_by_side
    part = share if isinstance(share, float | int) and 0 < share < 1 else 1.0
    return MARGIN * hardware.memory * float(part)


def _actor_share(resources: ResourcesConfig) -> float:
    """GPUs of one actor: "auto" is a share where the trainings' GPUs are fewer than the actors
    of both bases, which work side by side (`launch.cluster.scoring_gpus`)."""
    if resources.gpus_per_actor != "auto":
        return float(resources.gpus_per_actor)
    per_worker = resources.gpus_per_worker
    gpus = resources.workers * (1.0 if per_worker == "auto" else float(per_worker))
    return min(1.0, gpus / 2)


def totals(steps: tuple[StepEstimate, ...]) -> Mapping[str, Any]:
    """Sums over all steps: flops, hours of one after the other, dollars."""
    dollars = [s.dollars for s in steps if s.dollars is not None]
    return {
        "flops": sum(s.flops for s in steps),
        "hours": sum(s.hours for s in steps),
        "dollars": sum(dollars) if dollars else None,
    }
