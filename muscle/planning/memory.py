"""What one GPU holds at its worst, part by part.

Adapter of p parameters, N workers, as DeepSpeed keeps it (Rajbhandari et al. 2020, ZeRO,
§5; fp32 copy and two moments of Adam are 12 bytes a parameter):

    stage 1     optimizer 12 p / N; gradients whole, in the weights' dtype and summed in fp32
    stage 2     optimizer 12 p / N; gradients in fp32 4 p / N beside those of the weights' dtype
    stage 3     as 2, and weights / N with the gathered ones of a few blocks at a time
    offload     weights and optimizer in the host's memory
"""

import math
from dataclasses import dataclass, fields
from typing import Any

from muscle.config import CompatibilityConfig
from muscle.losses.needs import BLOCK_LOGITS, CHUNK_LOGITS, READS_OLD, needed_teachers
from muscle.models.load import torch_dtype
from muscle.planning.meta import MetaModel, Peaks

RUNTIME = {"cuda": 1.0 * 2**30, "cpu": 0.6 * 2**30}
"""Libraries, kernels' workspaces, communication: outside of tensors. Assumed on a GPU."""

MARGIN = 0.95
"""Share of a memory that may be planned for: an allocator loses some to fragments."""


@dataclass(frozen=True)
class Sharding:
    """How training is spread: what of a DeepSpeed configuration changes memory.

    stage    of ZeRO; 0: plain torch in one process
    buffers  elements of DeepSpeed's buffers for communication, in the weights' dtype
    live     most elements that stage 3 keeps gathered
    """

    stage: int
    workers: int
    offload_weights: bool = False
    offload_optimizer: bool = False
    buffers: int = 0
    live: int = 0


def read_sharding(config: dict[str, Any], workers: int) -> Sharding:
    """What a DeepSpeed configuration says about memory."""
    zero = config["zero_optimization"]
    stage = int(zero["stage"])
    bucket = int(zero.get("reduce_bucket_size", 5e8))
    # Stages 1 and 2 make a second bucket to fill while the first is sent.
    buckets = 2 if zero.get("overlap_comm") and stage < 3 else 1
    prefetch = int(zero.get("stage3_prefetch_bucket_size", 5e7)) if stage == 3 else 0
    return Sharding(
        stage=stage,
        workers=workers,
        offload_weights=_offloads(zero, "offload_param"),
        offload_optimizer=_offloads(zero, "offload_optimizer"),
        buffers=buckets * bucket + prefetch,
        live=int(zero.get("stage3_max_live_parameters", 1e9)) if stage == 3 else 0,
    )


def _offloads(zero: dict[str, Any], name: str) -> bool:
    return bool(zero.get(name, {}).get("device", "none") != "none")


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU; `host` in the memory of the machine for all its workers.

    Activations and logits have their worst moments apart, so `total` may be less than
    the sum of the parts: `overlap` is what doesn't come together.
    """

    weights: float = 0.0
    adapter: float = 0.0
    optimizer: float = 0.0
    gradients: float = 0.0
    buffers: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    old_teacher: float = 0.0
    runtime: float = 0.0
    overlap: float = 0.0
    host: float = 0.0

    @property
    def total(self) -> float:
        """The most that is held at once on one GPU."""
        parts = sum(getattr(self, f.name) for f in fields(self) if f.name not in _APART)
        return parts - self.overlap


_APART = ("overlap", "host")


def logit_bytes(
    scored: int, width: int, dtype: str, kind: str, loss: CompatibilityConfig | None
) -> float:
    """What the loss of `scored` positions holds: fp32 buffers of a chunk and of a block.

    A chunk's: the student's logits, the teacher's, old's where the mask reads them, and the
    product in the head's dtype before it becomes fp32. A block's: exponentials, the rows of one
    teacher among two (of student and old), cross-entropy beside a KL. Of level choice a chunk has
    the logits and their log-softmax, or the gradient.
    """
    rows = max(1, CHUNK_LOGITS[kind] // width)
    chunk = math.ceil(scored / math.ceil(scored / rows)) if scored else 0
    block = min(chunk, max(1, BLOCK_LOGITS[kind] // width))
    product = torch_dtype(dtype).itemsize if dtype != "float32" else 0
    if loss is not None and loss.by_choice:
        return float(width * (8 + product) * chunk)
    teachers = needed_teachers(loss) if loss is not None else ()
    chunks, blocks = 1, 0
    if loss is not None and teachers:
        reads_old = loss.mask in READS_OLD
        chunks += 1 + reads_old
        blocks += 1 + (len(teachers) == 2) + reads_old + (loss.ce_weight > 0)
    return float(width * ((4 * chunks + product) * chunk + 4 * blocks * block))


def training_memory(
    model: MetaModel,
    sharding: Sharding,
    peaks: Peaks,
    logits: float,
    kind: str,
    teacher: float = 0.0,
    old_teacher: float = 0.0,
    signals: float = 0.0,
) -> Memory:
    """One worker of a training.

    Args:
        model: with the adapter in the dtype that the engine trains.
        peaks: of its largest micro-batch.
        logits: of `logit_bytes`.
        kind: "cuda" or "cpu".
        teacher: bytes of a second adapter on the student's base.
        old_teacher: bytes of a whole frozen model beside it.
        signals: bytes of the hidden states at scored positions: the student's, the gradient
            they get, and the teachers'.
    """
    size = torch_dtype(model.dtype).itemsize
    p, workers, stage = model.adapter, sharding.workers, sharding.stage
    shares = workers if stage == 3 else 1
    gathered = min(model.base, max(sharding.live, 2 * model.largest_block)) * size
    weights = model.weight_bytes / shares + (gathered if stage == 3 and workers > 1 else 0)
    optimizer, host = 12.0 * p / workers, 0.0
    own = _adapter_bytes(model)
    if stage == 0:  # torch alone: the trained weights are their own fp32 copy
        optimizer, gradients = 8.0 * p, float(own)
    elif stage == 1:
        gradients = (size + 4.0) * p
    else:
        gradients = size * p + 4.0 * p / workers
    if sharding.offload_weights:
        host += model.weight_bytes
        weights = float(gathered)
    if sharding.offload_optimizer:
        host += 12.0 * p
        optimizer = 0.0
    worst = max(peaks.kept + signals + logits, peaks.backward)
    return Memory(
        weights=weights,
        adapter=own / shares + teacher,
        optimizer=optimizer,
        gradients=gradients,
        buffers=_buffers(sharding, model.dtype, kind),
        activations=float(peaks.backward) + signals,
        logits=logits,
        old_teacher=old_teacher,
        runtime=RUNTIME[kind],
        overlap=peaks.backward + signals + logits - worst,
        host=host,
    )


def _buffers(sharding: Sharding, dtype: str, kind: str) -> float:
    """Bytes of DeepSpeed's buckets: allocated whole, so a GPU holds them, while a CPU holds
    only what is written. At stage 1 in bfloat16 another optimizer of its works without."""
    if kind == "cpu" or (sharding.stage == 1 and dtype == "bfloat16"):
        return 0.0
    return float(sharding.buffers * torch_dtype(dtype).itemsize)


def _adapter_bytes(model: MetaModel) -> int:
    from muscle.models.adapters import adapter_parameters
    from muscle.planning.meta import ADAPTER

    tensors = adapter_parameters(model.model, ADAPTER).values()
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def forward_memory(
    model: MetaModel, adapters: int, transient: float, logits: float, cache: float, kind: str
) -> Memory:
    """One actor that caches hidden states or answers questions.

    Args:
        adapters: how many share the base; they stay in fp32.
        transient: of `trace_forward`.
        logits: at the positions that are scored.
        cache: keys and values.
    """
    return Memory(
        weights=float(model.weight_bytes),
        adapter=4.0 * model.adapter * adapters,
        activations=transient + cache,
        logits=logits,
        runtime=RUNTIME[kind],
    )
