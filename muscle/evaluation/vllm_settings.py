"""What a vLLM engine is started with: one base, several adapters, by vLLM's names."""

from dataclasses import dataclass
from typing import Any

from muscle import copies, storage
from muscle.errors import UserError
from muscle.evaluation.job import BaseJob
from muscle.models.fingerprint import read_adapter_config
from muscle.models.resolve import open_model

GPU_ADAPTERS = 8
"""Adapters side by side on the GPU; more wait in the host's memory."""

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for `max_lora_rank`."""


@dataclass(frozen=True)
class EngineSettings:
    """One vLLM engine, as `ray.data.llm` starts it on every actor.

    model     directory or hub id of the base, which a row without adapter names
    adapters  version -> what its rows name: a directory, or `model` for the bare base
    """

    model: str
    adapters: dict[str, str]
    engine: dict[str, Any]
    concurrency: tuple[int, int]


def engine_settings(
    base: BaseJob, dtype: str, window: int, actors: tuple[int, int], one_machine: bool
) -> EngineSettings:
    """What the engines of one base are started with.

    Args:
        dtype: of the base's weights, and so of the adapters'.
        window: in tokens, for prompt and answer together.
        actors: how many engines, at least and at most.
        one_machine: whether engines see this machine's files.

    Raises:
        UserError: an adapter, or a dtype with adapters, that vLLM can't run; a base or adapter
            on a store, where engines run on other machines.
    """
    _check_seen("base", base.base.model, one_machine)
    model, revision = open_model(base.base.model, base.base.revision)
    engine: dict[str, Any] = {
        "dtype": dtype,
        "max_model_len": window,
        "tensor_parallel_size": 1,
        "trust_remote_code": False,
        "load_format": "safetensors",  # else it falls back to pickles
    }
    if revision is not None:
        engine |= {"revision": revision, "tokenizer_revision": revision}
    adapters: dict[str, str] = {}
    ranks: dict[str, int] = {}
    for version, path in base.adapters.items():
        adapters[version] = model if path is None else _local_adapter(path, one_machine)
        if path is not None:
            ranks[adapters[version]] = _rank(adapters[version])
    if ranks:
        if dtype == "float32":  # its LoRA kernels assert half precision
            raise UserError(
                "backend 'vllm' runs adapters in bfloat16 or float16 only: "
                "set evaluation.dtype (--dtype bfloat16)"
            )
        engine |= {
            "enable_lora": True,
            "max_loras": min(len(ranks), GPU_ADAPTERS),
            "max_cpu_loras": len(ranks),
            "max_lora_rank": min(rank for rank in RANKS if rank >= max(ranks.values())),
        }
    return EngineSettings(model, adapters, engine, actors)


def _local_adapter(path: str, one_machine: bool) -> str:
    """An adapter's directory on the engines' machines, where ray.data.llm opens it by path."""
    _check_seen("adapter", path, one_machine)
    return copies.fetch(path)


def _check_seen(what: str, path: str, one_machine: bool) -> None:
    """Refuse what engines on other machines would have to fetch: vLLM opens paths."""
    if storage.is_remote(path) and not one_machine:
        mend = (
            "keep artifacts in a folder that all machines share (storage)"
            if what == "adapter"
            else "name a hub id or a folder that all machines share"
        )
        raise UserError(
            f"backend 'vllm' reads {what}s by path and {path!r} is none: {mend}, or use "
            "--backend transformers"
        )


def _rank(path: str) -> int:
    """An adapter's rank.

    Raises:
        UserError: vLLM would refuse the adapter, or silently scale it in another way.
    """
    config = read_adapter_config(path)
    for name in ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias", "target_parameters"):
        if config.get(name):
            raise UserError(
                f"adapter {path!r} has {name}, which vLLM does not know: use --backend transformers"
            )
    rank = int(config.get("r", 0))
    if rank > RANKS[-1]:
        raise UserError(
            f"adapter {path!r} has rank {rank} and vLLM takes up to {RANKS[-1]}: "
            "use --backend transformers"
        )
    return rank
