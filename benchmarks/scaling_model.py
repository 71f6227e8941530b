"""What docs/scaling.md reckons with: sizes, measured rates, assumptions, one update.

The work of an update is `muscle plan`'s own arithmetic (muscle/planning) on shapes without
weights; rates and sizes come from benchmarks/results/; what nobody measured is in `Assumptions`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from object_store import UNIT, per_unit
from record import RESULTS

from muscle.config import AdapterConfig, Experiment, HardwareConfig, ResourcesConfig
from muscle.models.sequences import Sequences
from muscle.planning.estimate import Reckoned, StepEstimate, reckon
from muscle.planning.facts import Facts, Wing
from muscle.planning.flops import forward_pass, training_pass
from muscle.planning.hardware import CARDS, find_hardware
from muscle.planning.meta import MetaModel, meta_model
from muscle.planning.work import Asked, Work

GB, MB = 1e9, 1e6


def assumed(value: float, unit: str, why: str) -> Any:
    """A field of `Assumptions` with what the table says of it."""
    return field(default=value, metadata={"unit": unit, "why": why})


@dataclass(frozen=True)
class Assumptions:
    """What nobody measured here; `--set NAME=VALUE` changes one."""

    h100_dollars: float = assumed(4.0, "$ per GPU hour", "on demand, eight to a node")
    b200_dollars: float = assumed(8.0, "$ per GPU hour", "the same")
    put_rate: float = assumed(200.0, "MB/s", "one writer to the object store")
    get_rate: float = assumed(1000.0, "MB/s", "one node from the object store, several readers")
    disk_rate: float = assumed(1000.0, "MB/s", "a GPU node's gp3 disk, as cluster.yaml asks for it")
    request_ms: float = assumed(30.0, "ms", "one request to the object store")
    write_dollars: float = assumed(0.005, "$ per 1,000", "PUT, LIST (DELETE is free)")
    read_dollars: float = assumed(0.0004, "$ per 1,000", "GET, HEAD")
    month_dollars: float = assumed(0.023, "$ per GB and month", "object storage")
    start_seconds: float = assumed(300.0, "s", "from a request to a node with Ray, image pulled")
    idle_minutes: float = assumed(10.0, "min", "`idle_timeout_minutes` of cluster.yaml")
    checkpoint_seconds: float = assumed(300.0, "s", "`resources.checkpoint_seconds`")
    gather_rate: float = assumed(300.0, "GB/s", "ZeRO-3 gathers weights inside a node, per GPU")


@dataclass(frozen=True)
class Size:
    """A Llama and what it runs on; `rates` names the shape in rates-cuda.json."""

    hidden: int
    wide: int
    layers: int
    heads: int
    keys: int
    workers: int
    deepspeed: str
    scoring: str  # the card of its actors
    rates: str

    @property
    def gpus(self) -> int:
        """Of old's and new's trainings, side by side."""
        return 2 * self.workers


SIZES = {
    "7B": Size(4096, 11008, 32, 32, 32, 1, "zero2", "H100", "7b"),
    "13B": Size(5120, 13824, 40, 40, 40, 1, "zero2", "H100", "13b"),
    "70B": Size(8192, 28672, 80, 64, 8, 8, "zero3", "B200", "70b"),
}
EPOCHS, VALIDATION, UPDATE = 10, 0.2, 32  # the paper's, and our default of examples an update
TOKENS = 2048  # `resources.training_tokens`: an update in two or more batches pads less
TRAIN, TEST = 40_000, 10_000  # HellaSwag


@cache
def result(name: str) -> Any:
    """A recorded measurement."""
    return json.loads((RESULTS / f"{name}.json").read_text())


@cache
def model(size: Size, layers: int | None = None, adapter_fp32: bool = False) -> MetaModel:
    """Base and LoRA r 128 on all linear layers, without memory."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.wide,
        num_hidden_layers=layers or size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.keys,
        max_position_embeddings=4096,
    )
    return meta_model(config, AdapterConfig(), "bfloat16", adapter_fp32, "a Llama")


@dataclass(frozen=True)
class Shares:
    """Of the H100's data sheet rate, what was measured: a LoRA step, and a forward."""

    train: float
    forward: float


@cache
def shares(name: str) -> Shares:
    """Measured tokens/s times the plan's FLOPs of a token, over the card's rate."""
    size, found = SIZES[name], result("rates-cuda")
    rows, length = found["rows"], found["length"]
    rates = found["tokens_per_second"][size.rates]
    same = rates["layers"] == size.layers
    built = model(size) if same else model(size, rates["layers"])
    tokens = rows * length
    work = Work(tokens, tokens * length, rows * (length - 1), 1, tokens, rows, length, tokens)
    peak = CARDS["H100"].bf16 * 1e12 * tokens
    return Shares(
        training_pass(built, work, True) * rates["train"]["median"] / peak,
        forward_pass(built, work, False) * rates["forward"]["median"] / peak,
    )


def asked() -> Asked:
    """HellaSwag's test questions as prefix trees."""
    work = result("hellaswag-v2-cpu-float32")["work"]
    tokens = round(TEST * work["tokens_of_prefix_tree"] / work["rows"])
    mean = round(work["tokens"] / work["sequences"])
    return Asked(TEST, tokens, tokens * mean, tokens // 2, longest=work["longest"])


def sequences(examples: int) -> Sequences:
    """Training sequences of the lengths that were measured."""
    quantiles = result("lengths")["tasks"]["hellaswag"]["quantiles"]
    sizes = np.random.default_rng(0).choice(quantiles, examples)
    return Sequences([np.zeros(n, dtype=np.int64) for n in sizes], [1] * examples)


_SHARED: dict[Any, Any] = {}
"""What `Facts` keeps of work and memory: sizes have the same examples."""


@cache
def tokens() -> tuple[Sequences, Sequences]:
    """HellaSwag's training and validation sequences, as an experiment splits them."""
    held = int(TRAIN * VALIDATION)
    return sequences(TRAIN - held), sequences(held)


@cache
def facts(name: str) -> Facts:
    """What `muscle plan` reads of an experiment, made of a shape and lengths; old and new have
    the same shape, so they are one wing."""
    settings = {"name": name, "task": {"name": "hellaswag"}}
    experiment = Experiment.model_validate(
        {**settings, "old": {"model": "v1"}, "new": {"model": "v2"}}
    )
    size = SIZES[name]
    wing = Wing("both", model(size), model(size, adapter_fp32=True), *tokens(), asked())
    hardware = find_hardware(HardwareConfig(gpu="H100"))
    return Facts(experiment, hardware, wing, wing, TEST, None, _kept=_SHARED)


@cache
def update(name: str, workers: int, given: Assumptions) -> "Update":
    """The steps of an update: trainings on H100s, scoring on its own card."""
    size, share = SIZES[name], shares(name)
    resources = ResourcesConfig(
        workers=workers,
        gpus_per_worker=1,
        gpus_per_actor=1,
        deepspeed=size.deepspeed,
        gradient_checkpointing=True,
        teachers="cached",
        training_tokens=TOKENS,
    )

    def steps(card: str, part: float) -> Reckoned:
        price = getattr(given, f"{card.lower()}_dollars")
        config = HardwareConfig(gpu=card, utilisation=part, price_per_hour=price)
        return reckon(replace(facts(name), hardware=find_hardware(config)), resources)

    training, scoring = steps("H100", share.train), steps(size.scoring, share.forward)
    chosen = [
        s if s.kind == "train" else t for s, t in zip(training.steps, scoring.steps, strict=True)
    ]
    return Update(size, given, {s.label: s for s in chosen}, training.cache.bytes)


@dataclass(frozen=True)
class Update:
    """One update of HellaSwag's size: steps by label, and what delays it."""

    size: Size
    given: Assumptions
    steps: Mapping[str, StepEstimate]
    cache_bytes: int

    def of(self, kind: str) -> list[StepEstimate]:
        """The steps of a kind."""
        return [s for s in self.steps.values() if s.kind == kind]

    @property
    def adapter(self) -> int:
        """Parameters of an adapter."""
        return self.steps["train compat"].adapter

    @property
    def base_bytes(self) -> float:
        """Of one base in bfloat16."""
        return 2.0 * self.steps["train compat"].parameters

    @property
    def gpu_hours(self) -> float:
        """Of all steps."""
        return sum(s.hours * s.gpus for s in self.steps.values())

    @property
    def dollars(self) -> float:
        """Of GPUs at work."""
        return sum(s.dollars or 0.0 for s in self.steps.values())

    @property
    def training_seconds(self) -> float:
        """Task adapters side by side, then compat."""
        hours = {label: s.hours for label, s in self.steps.items()}
        return 3600 * (max(hours["train old"], hours["train new"]) + hours["train compat"])

    @property
    def scoring_seconds(self) -> float:
        """Both bases' pools side by side, an actor each."""
        hours = {label: s.hours for label, s in self.steps.items()}
        asking = max(hours["evaluate old"], hours["evaluate new"] + hours["evaluate compat"])
        return 3600 * (max(s.hours for s in self.of("cache")) + asking)

    @property
    def checkpoint_bytes(self) -> float:
        """fp32 weights and two moments."""
        return 12.0 * self.adapter

    def gather_seconds(self) -> float:
        """ZeRO-3 brings every weight to every GPU three times a micro-batch."""
        if self.size.deepspeed != "zero3":
            return 0.0
        updates = -(-int(0.8 * TRAIN) // UPDATE) * EPOCHS
        once = 3 * self.base_bytes * (1 - 1 / self.size.workers) / (self.given.gather_rate * GB)
        return 2 * updates * once

    def requests(self) -> dict[str, float]:
        """Requests to the object store by kind: the testbed's counts, scaled by units."""
        found = per_unit(result("object-store")["runs"])
        hours = sum(s.hours for s in self.of("train"))
        saves = 3 * EPOCHS + 3600 * hours / self.given.checkpoint_seconds
        times = {"update": 1, "shard": 2 * self.shards, "group": 3 * self.groups, "save": saves}
        kinds = found["update"]
        return {k: sum(n * found[what][k] for what, n in times.items()) for k in kinds}

    @property
    def shards(self) -> int:
        """Of one teacher."""
        return -(-int(0.8 * TRAIN) // UNIT)

    @property
    def groups(self) -> int:
        """Of one version's questions."""
        return -(-TEST // UNIT)

    def request_dollars(self) -> float:
        """All of them, by price class."""
        n = self.requests()
        written, read = n["PUT"] + n["LIST"], n["GET"] + n["HEAD"]
        return (written * self.given.write_dollars + read * self.given.read_dollars) / 1000

    @property
    def units_per_second(self) -> float:
        """Groups of questions that one actor of this size finishes."""
        step = self.steps["evaluate old"]
        return self.groups * step.count / (3600 * step.hours)

    @property
    def cached_bytes_per_second(self) -> float:
        """What one actor would write of its teacher if writing took no time."""
        return self.cache_bytes / 2 / (3600 * self.steps["cache old"].hours)

    @property
    def read_bytes_per_second(self) -> float:
        """What one training GPU reads of both teachers."""
        return (
            self.cache_bytes
            * EPOCHS
            / (3600 * self.steps["train compat"].hours)
            / self.size.workers
        )

    def delays(self) -> dict[str, float]:
        """Seconds of wall time that are not arithmetic, by cause: each an upper end, nothing
        overlaps."""
        given, saves = self.given, self.training_seconds / self.given.checkpoint_seconds
        starts = 3 if self.steps["train compat"].hours * 60 > given.idle_minutes else 2
        loads = starts * self.base_bytes * (1 / given.get_rate + 1 / given.disk_rate) / MB
        pay = sum(self.requests().values()) * given.request_ms / 1000
        return {
            "starting nodes": starts * given.start_seconds,
            "fetching and loading bases": loads,
            "uploading checkpoints": saves * self.checkpoint_bytes / (given.put_rate * MB),
            "uploading the cache": self.cache_bytes / 2 / (given.put_rate * MB),
            "requests, one after the other": pay,
            "gathering weights (ZeRO-3)": self.gather_seconds(),
        }

    def alone_dollars(self) -> float:
        """What is paid where nothing else runs: whole training nodes for all of the wall time,
        scoring GPUs for their two appearances, and everybody's idle time-outs."""
        given, nodes = self.given, -(-self.size.gpus // 8)
        scoring_price = getattr(given, f"{self.size.scoring.lower()}_dollars")
        idle = 60 * given.idle_minutes
        scoring = self.scoring_seconds + 2 * (given.start_seconds + idle)
        training = 8 * nodes * (self.wall_seconds + idle)
        return (training * given.h100_dollars + 2 * scoring * scoring_price) / 3600

    @property
    def wall_seconds(self) -> float:
        """Arithmetic and all delays."""
        return self.training_seconds + self.scoring_seconds + sum(self.delays().values())
