"""One step of an experiment: what it runs, how long, and what one GPU holds of it."""

from dataclasses import dataclass

from muscle.config import Experiment, ResourcesConfig
from muscle.models.load import torch_dtype
from muscle.planning.facts import Facts, Wing
from muscle.planning.flops import body_forward, head_forward
from muscle.planning.hardware import Hardware
from muscle.planning.memory import MARGIN, Memory, forward_memory
from muscle.planning.meta import MetaModel
from muscle.planning.work import Asked

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


def of_actors(
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
    """A step of scoring actors; `what` is its kind and its label, the sums are of all repeats."""
    hardware, actors = facts.hardware, resources.max_actors
    return StepEstimate(
        kind=what[0],
        label=what[1],
        count=count,
        parameters=model.base,
        adapter=model.adapter,
        tokens=tokens,
        flops=flops,
        hours=seconds / 3600,
        gpus=actors,
        dollars=dollars_of(hardware, seconds, actors),
        memory=memory,
        available=available_to(hardware, actor_share(resources), 2 * actors),
    )


def asking(
    facts: Facts,
    resources: ResourcesConfig,
    wing: Wing,
    asked: Asked,
    what: tuple[str, str],
    count: int,
    adapters: int,
) -> StepEstimate:
    """What the evaluation engine runs of a base.

    Args:
        what: the step's kind and label.
        count: how many adapters are asked it.
        adapters: how many share the base meanwhile.
    """
    hardware, model = facts.hardware, wing.asked_model
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
    seconds = seconds_of(hardware, model.dtype, flops, count * peak.operations * batches, actors)
    seconds += count * decoding / (actors if hardware.kind == "cuda" else 1)
    cache = float(held * model.cache_width * model.layers * itemsize)
    head = min(budget, max(1, facts.head_elements // model.vocabulary)) * model.vocabulary
    masks = rows * longest * longest * itemsize
    memory = forward_memory(
        model, adapters, peak.most + masks, (4.0 + itemsize) * head, cache, hardware.kind
    )
    tokens = count * asked.tokens
    return of_actors(facts, resources, model, what, count, tokens, flops, seconds, memory)


def identity_of(experiment: Experiment, version: str, run: tuple[int, int]) -> int | None:
    """What tells apart the adapters of a version over the runs: the task seed, if trained."""
    given = experiment.old if version == "old" else experiment.new
    return None if given.adapter is not None else run[0]


def signals_of(experiment: Experiment, version: str) -> int:
    """How many adapters of a version there are."""
    return len({identity_of(experiment, version, run) for run in experiment.runs})


def seconds_of(
    hardware: Hardware, dtype: str, flops: float, operations: float, workers: int
) -> float:
    """Time of a step on `workers` GPUs; several workers on one CPU share its rate."""
    shared = workers if hardware.kind == "cuda" else 1
    arithmetic = flops / hardware.rate(dtype) / shared
    starting = operations * OPERATION_SECONDS[hardware.kind] / shared
    # A GPU computes while Python starts the next operation; a CPU does one after the other.
    return max(arithmetic, starting) if hardware.kind == "cuda" else arithmetic + starting


def dollars_of(hardware: Hardware, seconds: float, gpus: int) -> float | None:
    """What so long on so many GPUs costs; None without a price."""
    return None if hardware.price is None else seconds / 3600 * gpus * hardware.price


def available_to(hardware: Hardware, share: float | str, side_by_side: int) -> float:
    """Bytes that one worker may take: a share of a GPU, or of the machine's memory."""
    if hardware.kind == "cpu":
        return MARGIN * hardware.memory / side_by_side
    part = share if isinstance(share, float | int) and 0 < share < 1 else 1.0
    return MARGIN * hardware.memory * float(part)


def actor_share(resources: ResourcesConfig) -> float:
    """GPUs of one actor: "auto" is a share where the trainings' GPUs are fewer than the actors
    of both bases, which work side by side (`launch.cluster.scoring_gpus`)."""
    if resources.gpus_per_actor != "auto":
        return float(resources.gpus_per_actor)
    per_worker = resources.gpus_per_worker
    gpus = resources.workers * (1.0 if per_worker == "auto" else float(per_worker))
    return min(1.0, gpus / 2)
