"""What an experiment will need: every step's work, time and memory, and the cache."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from muscle.config import Experiment, ResourcesConfig
from muscle.losses.needs import CHUNK_LOGITS, READS_OLD, needed_teachers
from muscle.models.load import torch_dtype
from muscle.planning.answers import asking_steps, fold_steps, score_bytes
from muscle.planning.distilled import Distilled
from muscle.planning.facts import Facts, Wing
from muscle.planning.flops import forward_pass, head_forward, training_pass
from muscle.planning.memory import (
    Memory,
    forward_memory,
    logit_bytes,
    read_sharding,
    training_memory,
)
from muscle.planning.steps import (
    StepEstimate,
    asking,
    available_to,
    dollars_of,
    identity_of,
    of_actors,
    seconds_of,
    signals_of,
)
from muscle.planning.work import Work
from muscle.teachers.choose import Choice, choose
from muscle.training.settings import read_deepspeed, zero_stage
from muscle.types import VERSIONS, Version


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
    if facts.distilled is not None:
        for teacher in needed_teachers(experiment.compatibility):
            steps += fold_steps(facts, _training(facts, resources, teacher, 1, cache), teacher)
        steps += asking_steps(facts, resources, facts.distilled)
    elif cache.choice.cached:
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
    """Bytes: positions in the loss x hidden size x bytes of the dtype, for every signal; of level
    choice the scores, which are always kept."""
    experiment = facts.experiment
    if facts.distilled is not None:
        size, scored = score_bytes(facts, facts.distilled), experiment.compatibility.ce_weight < 1
        choice = Choice(scored, "scores of whole answers are always kept")
        passes = experiment.compat_training.epochs * len(experiment.runs)
        return CacheEstimate(size, len(facts.distilled.scoring), passes, facts.disk_free, choice)
    needs = needed_teachers(experiment.compatibility)
    itemsize = torch_dtype(experiment.training.dtype).itemsize
    total = signals = 0
    for teacher in needs:
        wing = facts.wing(teacher)
        times = signals_of(experiment, teacher)
        total += times * wing.train.all_targets() * wing.trained.hidden * itemsize
        signals += times
    pairs = {tuple(identity_of(experiment, t, run) for t in needs) for run in experiment.runs}
    passes = experiment.compat_training.epochs * len(experiment.runs) // max(1, len(pairs))
    zero3 = zero_stage(resources.deepspeed) == 3
    mask = experiment.compatibility.mask
    choice = choose(resources.teachers, passes, total, facts.disk_free, zero3, mask)
    return CacheEstimate(total, signals, passes, facts.disk_free, choice)


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
    trees = facts.distilled if compat else None
    train, validate = (None, None) if trees is None else (trees.train, trees.validation)
    work = facts.training_work(wing, budget, resources.workers, train)
    validation = facts.validation_work(wing, budget, resources.workers, validate)
    online = compat and not cache.choice.cached
    # Whole answers are read as scores: no teacher is there.
    teachers = needed_teachers(experiment.compatibility) if compat and trees is None else ()
    once = training_pass(model, work, checkpointing)
    waiting = once * (work.waiting - 1)
    if trees is not None and work.most_scored > CHUNK_LOGITS[hardware.kind] // model.vocabulary:
        once += head_forward(model, work.scored)  # of several chunks each has its logits twice
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
    seconds = seconds_of(
        hardware,
        settings.dtype,
        flops + settings.epochs * waiting,
        operations,
        resources.workers,
    )
    memory = _training_memory(facts, resources, wing, work, teachers, online, trees)
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
        dollars=dollars_of(hardware, count * seconds, resources.workers),
        memory=memory,
        available=available_to(hardware, resources.gpus_per_worker, resources.workers),
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
    work: Work,
    teachers: tuple[str, ...],
    online: bool,
    trees: Distilled | None,
) -> Memory:
    model, kind = wing.trained, facts.hardware.kind
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
    loss = facts.experiment.compatibility if teachers or trees is not None else None
    logits = logit_bytes(work.most_scored, vocabulary, model.dtype, kind, loss)
    if trees is not None:
        signals += float(trees.masks * work.rows * work.length**2 * itemsize)
    sharding = read_sharding(read_deepspeed(resources.deepspeed), resources.workers)
    return training_memory(
        model, sharding, peaks, logits, kind, second_adapter, old_teacher, signals
    )


def _caching(facts: Facts, resources: ResourcesConfig, teacher: str) -> StepEstimate:
    wing, hardware = facts.wing(teacher), facts.hardware
    model, count = wing.trained, signals_of(facts.experiment, teacher)
    work = facts.caching_work(wing, facts.scoring_budget(resources))
    flops = count * forward_pass(model, work, head=False)
    peak = facts.forward_peak(wing, model, work.rows, work.length)
    actors = resources.max_actors
    seconds = seconds_of(
        hardware, model.dtype, flops, count * peak.operations * work.batches, actors
    )
    memory = forward_memory(model, count, peak.most, 0.0, 0.0, hardware.kind)
    tokens = count * work.tokens
    return of_actors(
        facts,
        resources,
        model,
        ("cache", f"cache {teacher}"),
        count,
        tokens,
        flops,
        seconds,
        memory,
    )


def _evaluation(facts: Facts, resources: ResourcesConfig, version: Version) -> StepEstimate:
    """Answers of one version; `new` and `compat` share a base and so its memory."""
    experiment = facts.experiment
    times = {v: signals_of(experiment, v) for v in ("old", "new")}
    times["compat"] = len(experiment.runs)
    times["old"] += trains_again(experiment) or isinstance(experiment.noise_floor, str)
    times["old"] += len(experiment.also)  # older releases, whose bases are about old's size
    adapters = times["old"] if version == "old" else times["new"] + times["compat"]
    wing = facts.wing(version)
    label = ("evaluate", f"evaluate {version}")
    return asking(facts, resources, wing, wing.asked, label, times[version], adapters)


def totals(steps: tuple[StepEstimate, ...]) -> Mapping[str, Any]:
    """Sums over all steps: flops, hours of one after the other, dollars."""
    dollars = [s.dollars for s in steps if s.dollars is not None]
    return {
        "flops": sum(s.flops for s in steps),
        "hours": sum(s.hours for s in steps),
        "dollars": sum(dollars) if dollars else None,
    }
