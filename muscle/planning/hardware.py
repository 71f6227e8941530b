"""The GPUs that a plan reckons with: known cards, given numbers, or this machine."""

import time
from dataclasses import dataclass

from muscle.config import HardwareConfig
from muscle.errors import UserError


@dataclass(frozen=True)
class Card:
    """One GPU: memory as the driver reports it (GiB), dense rates without sparsity
    (TFLOP/s, bf16 with fp32 sums, and fp32 outside of tensor cores), memory rate (GB/s)."""

    memory_gib: float
    bf16: float
    fp32: float
    bandwidth: float


# Rates: NVIDIA's data sheets, dense (half of what they print "with sparsity").
# Memory: `nvidia-smi --query-gpu=memory.total`, a little less than the name says.
CARDS: dict[str, Card] = {
    "A10G": Card(22.5, 70.0, 31.2, 600),  # A10 data sheet; AWS g5 has the A10G
    "L4": Card(22.5, 121.0, 30.3, 300),  # L4 data sheet
    "L40S": Card(45.0, 362.0, 91.6, 864),  # L40S data sheet
    "A6000": Card(48.0, 154.8, 38.7, 768),  # RTX A6000, GA102 white paper
    "A100-40GB": Card(39.6, 312.0, 19.5, 1555),  # A100 data sheet
    "A100-80GB": Card(79.2, 312.0, 19.5, 2039),  # A100 data sheet, SXM
    "H100": Card(79.6, 989.0, 67.0, 3350),  # H100 data sheet, SXM
    "H200": Card(139.8, 989.0, 67.0, 4800),  # H200 data sheet, SXM
    "B200": Card(179.0, 2250.0, 75.0, 7700),  # HGX B200 data sheet, one of eight
    "RTX-3090": Card(24.0, 71.0, 35.6, 936),  # GA102 white paper
    "RTX-4090": Card(24.0, 165.2, 82.6, 1008),  # Ada white paper
}

CPU_BANDWIDTH = 20.0
"""GB/s of a machine's memory, where nothing better is known."""


@dataclass(frozen=True)
class Hardware:
    """What one worker runs on.

    name        for the reader
    kind        "cuda" or "cpu": decides the default token budgets
    memory      bytes of one GPU, or of the machine
    rates       FLOP/s at full rate by training dtype
    bandwidth   bytes/s of its memory
    utilisation share of the rate that is reached: assumed
    price       dollars for an hour of one; None: unknown
    measured    whether the rate was measured here instead of read from a data sheet
    """

    name: str
    kind: str
    memory: float
    rates: dict[str, float]
    bandwidth: float
    utilisation: float
    price: float | None
    measured: bool = False

    def rate(self, dtype: str) -> float:
        """FLOP/s that a training in `dtype` is assumed to reach."""
        return self.rates["float32" if dtype == "float32" else "bfloat16"] * self.utilisation


def find_hardware(config: HardwareConfig) -> Hardware:
    """The hardware of a config; without a card or numbers, this machine's GPU or CPU.

    Raises:
        UserError: an unknown card, or a rate without a memory (or the other way round)
            where no card fills in the rest.
    """
    given = (config.memory_gib, config.tflops)
    if config.gpu is not None:
        return _of_card(config, _card(config.gpu), config.gpu)
    if all(given):
        return _of_card(config, None, "GPU as given")
    if any(given):
        missing = "hardware.tflops" if config.tflops is None else "hardware.memory_gib"
        raise UserError(f"{missing} is missing: give it, or a card's name in hardware.gpu")
    return _this_machine(config)


def _card(name: str) -> Card:
    known = {key.lower().replace("-", "").replace(" ", ""): key for key in CARDS}
    key = known.get(name.lower().replace("-", "").replace(" ", "").replace("_", ""))
    if key is None:
        raise UserError(
            f"hardware.gpu {name!r} is unknown: use one of {', '.join(CARDS)}, or give "
            "hardware.memory_gib and hardware.tflops"
        )
    return CARDS[key]


def _of_card(config: HardwareConfig, card: Card | None, name: str) -> Hardware:
    memory = config.memory_gib or (card.memory_gib if card else 0.0)
    bf16 = config.tflops or (card.bf16 if card else 0.0)
    # Without a card its fp32 rate isn't known; a third is usual outside of tensor cores.
    share = card.fp32 / card.bf16 if card else 1 / 3
    return Hardware(
        name=name,
        kind="cuda",
        memory=memory * 2**30,
        rates={"bfloat16": bf16 * 1e12, "float32": bf16 * share * 1e12},
        bandwidth=(card.bandwidth if card else 1000.0) * 1e9,
        utilisation=config.utilisation,
        price=config.price_per_hour,
    )


def _this_machine(config: HardwareConfig) -> Hardware:
    import psutil
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        kind, memory, name = "cuda", float(properties.total_memory), str(properties.name)
        bandwidth = 1000.0 * 1e9
        for key, card in CARDS.items():
            model = key.lower().removeprefix("rtx-").split("-")[0]
            if model in name.lower().replace(" ", "-").split("-"):
                bandwidth = card.bandwidth * 1e9
    else:
        kind, memory, name = "cpu", float(psutil.virtual_memory().total), "this machine's CPU"
        bandwidth = CPU_BANDWIDTH * 1e9
    return Hardware(
        name=name,
        kind=kind,
        memory=memory,
        rates={dtype: matrix_rate(kind, dtype) for dtype in ("float32", "bfloat16")},
        bandwidth=bandwidth,
        utilisation=config.utilisation,
        price=config.price_per_hour,
        measured=True,
    )


def matrix_rate(device: str, dtype: str, seconds: float = 0.4) -> float:
    """FLOP/s of square matrix products on a device: the fastest within `seconds`, since other
    programs only ever slow one down."""
    import torch

    size = 8192 if device == "cuda" else 1024
    a = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
    fastest, end = float("inf"), time.perf_counter() + seconds
    a @ a  # the first one sets things up
    while time.perf_counter() < end or fastest == float("inf"):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - start)
    return 2.0 * size**3 / fastest
