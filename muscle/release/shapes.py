"""An adapter's layers as its tensors tell them: pairs of A and B, their ranks and places."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from muscle.release.findings import Finding, fails, note, ok
from muscle.release.peft_config import PeftConfig
from muscle.release.tensors import Tensor

_LORA = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<part>[AB])\.weight")
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "wpe", "word_embeddings", "embed_in", "embed_out")
# The linear layers of attention and MLP as the architectures call them that vLLM serves.
LINEARS = frozenset(
    "q_proj k_proj v_proj o_proj out_proj gate_proj up_proj down_proj qkv_proj gate_up_proj "
    "c_attn c_proj c_fc fc1 fc2 fc_in fc_out query_key_value dense dense_h_to_4h dense_4h_to_h "
    "Wqkv wqkv wo w1 w2 w3 W_pack in_proj q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj "
    "qkv linear_1 linear_2 attn.c_attn up_gate_proj".split()
)
_DTYPES = ("F32", "F16", "BF16")
_MOST = 3


@dataclass(frozen=True)
class Layers:
    """The layers of an adapter by name, without PEFT's own prefix; ranks are A's rows.

    parts    layer -> {"A": tensor, "B": tensor}
    others   tensors that are neither
    """

    parts: Mapping[str, Mapping[str, Tensor]]
    others: Sequence[Tensor]
    ranks: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> "Layers":
        """Tensors by layer."""
        parts: dict[str, dict[str, Tensor]] = {}
        others = []
        for tensor in tensors:
            found = _LORA.fullmatch(tensor.name)
            if found is None:
                others.append(tensor)
            else:
                parts.setdefault(found["layer"], {})[found["part"]] = tensor
        ranks = {
            name: pair["A"].shape[0]
            for name, pair in parts.items()
            if "A" in pair and pair["A"].shape
        }
        return Layers(parts, others, ranks)


def layer_findings(layers: Layers, config: PeftConfig) -> Iterator[Finding]:
    """What is wrong with names, shapes, types and scales, or that nothing is."""
    found = [
        *_names(layers),
        *_targets(layers, config),
        *_shapes(layers, config),
        *_dtypes(layers),
        *_scales(layers, config),
    ]
    yield from found
    if not found:
        yield ok("layers", f"{len(layers.parts)} layers, all of them linear, each with A and B")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(name[:120] for name in names[:_MOST]) + more


def _names(layers: Layers) -> Iterator[Finding]:
    magnitudes = [t.name for t in layers.others if "lora_magnitude_vector" in t.name]
    embedded = [t.name for t in layers.others if "lora_embedding_" in t.name]
    others = [t.name for t in layers.others if t.name not in {*magnitudes, *embedded}]
    if embedded:
        yield _embedding(embedded)
    if others:
        yield fails(
            "tensors",
            f"vLLM loads A and B of LoRA layers only, and there is {_some(others)}",
            "save the adapter without it, or merge it into its base and serve that",
        )
    if not layers.parts:
        yield fails("tensors", "no LoRA layer is among its tensors", "save the adapter again")
    halves = [name for name, pair in layers.parts.items() if len(pair) < 2]
    if halves:
        yield fails("tensors", f"A or B is missing: {_some(halves)}", "save the adapter again")


def _embedding(names: Sequence[str]) -> Finding:
    return fails(
        "targets",
        f"it adapts embeddings or the output head ({_some(names)}): vLLM does so for few "
        "architectures, and no longer for added tokens",
        "train on the linear layers of attention and MLP (target_modules: all-linear)",
    )


def _targets(layers: Layers, config: PeftConfig) -> Iterator[Finding]:
    """Judged by the tensors, as in vLLM: `target_modules` may name layers that no model has."""
    last = {name: name.rpartition(".")[2] for name in layers.parts}
    heads = [name for name, end in last.items() if end in _EMBEDDINGS]
    if heads:
        yield _embedding(heads)
    unknown = sorted({e for e in last.values() if e not in LINEARS and e not in _EMBEDDINGS})
    if unknown:
        yield note(
            "targets",
            f"not known here as a layer that vLLM adapts: {_some(unknown)}",
            "load it once on the server's version; it names what it can't take",
        )
    wanted = config.target_modules
    if isinstance(wanted, list):
        # Names are exact or the end of a path; a regular expression is a string, not a list.
        ends = tuple(f".{one}" for one in wanted)
        strange = [n for n in layers.parts if n not in wanted and not n.endswith(ends)]
        if strange:
            yield fails(
                "targets",
                f"tensors of layers that target_modules doesn't name: {_some(strange)}",
                "config and weights are of two adapters: copy both from one folder",
            )


def _shapes(layers: Layers, config: PeftConfig) -> Iterator[Finding]:
    tensors = [t for pair in layers.parts.values() for t in pair.values()]
    empty = [t.name for t in tensors if 0 in t.shape]
    if empty:
        yield fails(
            "shapes",
            f"{_some(empty)} is empty",
            "it was saved from a sharded model without gathering: save it again",
        )
    flat = [t.name for t in tensors if len(t.shape) != 2]
    if flat:
        yield fails("shapes", f"{_some(flat)} is no matrix", "adapt linear layers only")
    if empty or flat:
        return
    allowed = {config.r, *(config.rank_pattern or {}).values()}
    for name, pair in layers.parts.items():
        if len(pair) < 2:
            continue
        rows, columns = pair["A"].shape[0], pair["B"].shape[1]
        if rows != columns or rows not in allowed:
            ranks = " or ".join(map(str, sorted(allowed)))
            yield fails(
                "shapes",
                f"{name[:120]}: A has {rows} rows and B {columns} columns, and adapter_config.json "
                f"says rank {ranks}",
                "config and weights are of two adapters: copy both from one folder",
            )
            return


def _dtypes(layers: Layers) -> Iterator[Finding]:
    tensors = [t for pair in layers.parts.values() for t in pair.values()]
    strange = sorted({t.dtype for t in tensors} - set(_DTYPES))
    if strange:
        yield note(
            "dtypes",
            f"weights are {', '.join(strange)}: vLLM casts them to its own dtype",
            "save them as float32 or bfloat16",
        )


def _scales(layers: Layers, config: PeftConfig) -> Iterator[Finding]:
    """vLLM scales all layers by the config's one alpha / r; PEFT each by its own."""
    patterns = config.alpha_pattern or {}
    odd = [p for p in patterns if not re.fullmatch(r"[\w.]+", p)]
    whole = _scale(config, config.lora_alpha, config.r)
    wrong = []
    for name, rank in layers.ranks.items():
        alpha = next(
            (a for p, a in patterns.items() if name == p or name.endswith(f".{p}")),
            config.lora_alpha,
        )
        if rank and not math.isclose(_scale(config, alpha, rank), whole):
            wrong.append(name)
    if odd:
        wrong = wrong or [f"those of alpha_pattern {odd[0][:60]!r}"]
    if wrong:
        kind = "alpha_pattern" if patterns else "rank_pattern"
        yield fails(
            kind,
            f"vLLM reads no {kind} and scales every layer by {whole:g}, of the config's lora_alpha "
            f"and r; PEFT scales {_some(wrong)} by another number",
            "train with one rank and one alpha, or multiply lora_B by the ratio of the two",
        )
    elif config.rank_pattern:
        yield ok("rank_pattern", "ranks differ, and all layers have one scale")


def _scale(config: PeftConfig, alpha: float, rank: int) -> float:
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)
