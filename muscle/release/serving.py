"""Does an adapter serve in vLLM? Said before anyone deploys it, from its config and header.

What vLLM takes is read from its sources (`vllm/lora/peft_helper.py`, `lora_model.py`,
`config/lora.py`). It refuses some features when it loads an adapter; others it doesn't know, so
that it would serve another function than the one that was trained and judged. Both fail here.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from muscle import copies
from muscle.errors import UserError
from muscle.release.findings import Finding, fails, note, ok
from muscle.release.peft_config import PeftConfig, read_config
from muscle.release.shapes import Layers, layer_findings
from muscle.release.tensors import Tensor, not_finite, read_tensors

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` may be; an adapter's rank is any number up to it."""
DEFAULT_RANK = 16

# Field -> what vLLM does with it. Truthy means used.
_REFUSED = {
    "use_dora": ("DoRA", "vLLM does not load it", "train without use_dora"),
    "modules_to_save": (
        "modules_to_save",
        "vLLM loads LoRA weights only, no whole layers",
        "train without modules_to_save, or merge the adapter into its base and serve that",
    ),
    "lora_bias": ("lora_bias", "vLLM does not load biases", "train without lora_bias"),
    "trainable_token_indices": (
        "trainable_token_indices",
        "vLLM does not load changed token embeddings",
        "train without it, or merge the adapter into its base and serve that",
    ),
}
_IGNORED = (
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
"""They change what an adapter computes, and vLLM would leave them out without a word."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_KNOWN_INIT = ("gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Serving:
    """What `check_serving` found; `max_lora_rank` is the least that vLLM needs, if any does."""

    adapter: str
    rank: int | None
    max_lora_rank: int | None
    findings: tuple[Finding, ...]

    @property
    def serves(self) -> bool:
        """Whether nothing fails."""
        return all(finding.level != "fails" for finding in self.findings)

    def json(self) -> dict[str, Any]:
        """Plain JSON values, as `--json` prints and release.json holds them."""
        return {
            "serves": self.serves,
            "rank": self.rank,
            "max_lora_rank": self.max_lora_rank,
            "findings": [asdict(finding) for finding in self.findings],
        }


def check_serving(path: str, max_rank: int | None = None, base: str | None = None) -> Serving:
    """Whether vLLM serves the adapter in a folder.

    Args:
        path: a PEFT adapter's folder, local or on a store.
        max_rank: what the server's `--max-lora-rank` is; None: it can be chosen.
        base: the model it will be served on, checked as `muscle run` checks it.

    Raises:
        UserError: no such folder, or a rank that vLLM can't be given.
    """
    if max_rank is not None and max_rank not in RANKS:
        known = ", ".join(map(str, RANKS))
        raise UserError(f"--max-lora-rank is {max_rank}: vLLM takes {known}")
    folder = copies.fetch(path)
    if not os.path.isdir(folder):
        raise UserError(f"adapter {path!r} is no folder: name the one that holds its files")
    config: PeftConfig | None = None
    tensors: list[Tensor] = []
    findings: list[Finding] = []
    try:
        config = read_config(folder)
        findings += _features(config)
    except UserError as error:
        findings.append(_unread("config", error))
    try:
        tensors = read_tensors(folder)
    except UserError as error:
        findings.append(_unread("weights", error))
    rank = None if config is None or config.peft_type != "LORA" else config.r
    if tensors and rank is not None and config is not None:
        layers = Layers.of(tensors)
        rank = max([rank, *layers.ranks.values()])
        findings += layer_findings(layers, config)
        findings += _values(folder, tensors)
    findings += _rank(rank, max_rank)
    if base is not None and tensors and config is not None:
        findings.append(_base(folder, path, base))
    need = None if rank is None else next((r for r in RANKS if r >= rank), None)
    return Serving(path, rank, need, tuple(sorted(findings, key=lambda f: f.order)))


def _unread(what: str, error: UserError) -> Finding:
    text, _, mend = str(error).rpartition(": ")
    return fails(what, text or str(error), mend if text else "save the adapter again")


def _features(config: PeftConfig) -> Iterator[Finding]:
    if config.peft_type != "LORA":
        yield fails("type", f"it is {config.peft_type}", "vLLM serves LoRA adapters: train one")
        return
    yield ok("type", "LoRA")
    missing = sorted({"r", "lora_alpha", "target_modules"} - config.model_fields_set)
    if missing:
        yield fails("config", f"it has no {missing[0]}, which vLLM needs", "save it by PEFT again")
    given = config.fields()
    for field, (name, why, mend) in _REFUSED.items():
        if given.get(field):
            yield fails(field, f"it uses {name}: {why}", mend)
    if config.bias != "none":
        yield fails("bias", f"bias is {config.bias!r}: vLLM does not load biases", "bias: none")
    for field in _IGNORED:
        if given.get(field):
            yield fails(
                field, f"{field} is set, which vLLM would leave out", f"train without {field}"
            )
    yield from _start(config.init_lora_weights)
    if given.get("target_parameters"):
        yield note(
            "target_parameters",
            "it adapts parameters of mixtures of experts, which not every vLLM loads",
            "try it on the server's version",
        )
    if config.fan_in_fan_out:
        yield ok("fan_in_fan_out", "set, and without effect on LoRA's own matrices")
    if config.layers_to_transform is not None:
        yield ok("layers_to_transform", "only some layers are adapted; the others are the base's")
    if config.use_rslora:
        yield ok("use_rslora", "vLLM scales it by alpha / sqrt(r), as PEFT does")


def _start(init: Any) -> Iterator[Finding]:
    """Some initialisations change the base's own weights, which no adapter file holds."""
    if isinstance(init, bool) or init is None or init in _KNOWN_INIT:
        return
    if isinstance(init, str) and init.startswith(_CHANGES_BASE):
        yield fails(
            "init_lora_weights",
            f"it began as {init!r}, which changes the base: on the plain one it is wrong",
            "convert it to plain LoRA first (path_initial_model_for_weight_conversion)",
        )
        return
    yield note(
        "init_lora_weights", f"{str(init)[:40]!r} is not known here", "compare with the base"
    )


def _values(folder: str, tensors: Sequence[Tensor]) -> Iterator[Finding]:
    bad = not_finite(folder, list(tensors))
    if bad is not None:
        yield fails(
            "values", f"{bad} holds NaN or infinity", "train it again; its training diverged"
        )
    else:
        yield ok("values", "no NaN, no infinity")


def _rank(rank: int | None, max_rank: int | None) -> Iterator[Finding]:
    if rank is None:
        return
    need = next((r for r in RANKS if r >= rank), None)
    if need is None:
        yield fails(
            "rank", f"rank {rank} is above {RANKS[-1]}, vLLM's largest", "train a smaller r"
        )
    elif max_rank is not None and rank > max_rank:
        mend = f"serve with --max-lora-rank {need}"
        yield fails("rank", f"rank {rank} is above --max-lora-rank {max_rank}", mend)
    elif max_rank is None and rank > DEFAULT_RANK:
        mend = f"serve with --max-lora-rank {need}"
        yield note("rank", f"rank {rank} is above vLLM's default of {DEFAULT_RANK}", mend)
    else:
        yield ok("rank", f"rank {rank} fits --max-lora-rank {max_rank or DEFAULT_RANK}")


def _base(folder: str, path: str, base: str) -> Finding:
    """Whether it was made for this base, and every tensor has its place there."""
    from muscle.models.compatibility import check_adapter
    from muscle.models.fingerprint import fingerprint_base
    from muscle.models.load import load_config

    fingerprint, config = fingerprint_base(base), load_config(base, None)
    try:
        check_adapter(folder, base, fingerprint, config)
    except UserError as error:
        text = str(error).replace(repr(folder), repr(path))
        return fails("base", text, "serve it on the base that it was trained on")
    return ok("base", f"it was made for {base}")
