"""Attention over a tree in transformers' models: masks, a kept trunk, and who can take them.

transformers hands a 4-D mask to every layer as it is. So one that says "your ancestors
only" makes any causal decoder run a tree, if the mask also does what the model's own
masks would do in each layer: sliding windows, by position instead of by place.

Shapes: B rows, L nodes of the longest row, P tokens of the trunk, K = P + L, D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from muscle.evaluation.trie import Ints, Row, make_chains, make_row, shared_length
from muscle.models.structure import hidden_states, unwrap

KERNELS = ("sdpa", "eager")
"""transformers' attention implementations that add a 4-D mask to the scores."""

MODELS = {
    "llama": "full",
    "phi": "full",
    "mistral": "sliding",
    "phi3": "sliding",
    "qwen2": "by layer",
    "qwen3": "by layer",
    "gemma2": "by layer",
    "gemma3_text": "by layer",
}
"""Model types whose masks are known, and whether `sliding_window` bounds no layer, all
layers (None bounds none), or those that `layer_types` names. Each has a test."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Of the norm of the hidden states; a mask that is ignored misses it by far."""


@dataclass(frozen=True, slots=True)
class TreeMasks:
    """How a model takes its masks.

    windows: layer type -> number of positions a token sees, itself included; None is all.
        A single entry "" is a mask for all layers.
    """

    windows: Mapping[str, int | None]

    def __call__(self, rows: Sequence[Row], trunk: int, like: Tensor) -> "Masks":
        """Masks to add, [B, 1, L, P + L] in the dtype and on the device of `like`."""
        length = max(len(row.token_L) for row in rows)
        end_BL = pad([row.end_L for row in rows], length, like.device)
        position_BL = pad([row.position_L for row in rows], length, like.device)
        return self.of(end_BL, position_BL, like, trunk)

    def of(self, end_BL: Tensor, position_BL: Tensor, like: Tensor, trunk: int = 0) -> "Masks":
        """The same from `Row.end_L` and `Row.position_L`, padded with 0."""
        node_L = torch.arange(end_BL.shape[1], device=like.device)
        # A node of padding sees itself, since a softmax over nothing is NaN.
        end_BL = torch.where(end_BL == 0, node_L + 1, end_BL)
        sees_BLL = (node_L <= node_L[:, None]) & (node_L[:, None] < end_BL[:, None, :])
        sees_BLK = torch.nn.functional.pad(sees_BLL, (trunk, 0), value=True)
        trunk_P = torch.arange(trunk, device=like.device).expand(len(end_BL), trunk)
        position_BK = torch.cat([trunk_P, position_BL], dim=1)
        masks = {}
        for kind, window in self.windows.items():
            allowed_BLK = sees_BLK
            if window is not None:
                allowed_BLK = sees_BLK & (
                    position_BL[:, :, None] - position_BK[:, None, :] < window
                )
            mask_BLK = torch.zeros(allowed_BLK.shape, dtype=like.dtype, device=like.device)
            mask_BLK.masked_fill_(~allowed_BLK, torch.finfo(like.dtype).min)
            masks[kind] = mask_BLK[:, None]
        return masks.get("", masks)


Masks = Tensor | dict[str, Tensor]


class Trunk:
    """Keys and values of one prefix, run once and kept for every row that begins with it."""

    def __init__(self) -> None:
        self.tokens_P: Ints = np.zeros(0, dtype=np.int64)
        self.layers: list[tuple[Tensor, Tensor]] = []  # [1, heads, P, head_dim] each

    def extend(self, model: Any, masks: TreeMasks, tokens_P: Ints) -> int:
        """Make `tokens_P` the kept prefix, or the beginning of it; the number of tokens run."""
        have = shared_length(self.tokens_P, tokens_P)
        if have == len(tokens_P):
            return 0
        (chain,) = make_chains([tokens_P], [0])
        cache = TrunkCache(self, have, record=True)
        run_rows(model, masks, [make_row([chain], have)], cache)
        self.tokens_P, self.layers = tokens_P, cache.recorded
        return len(tokens_P) - have

    def clear(self) -> None:
        """Forget it, for another version or for memory."""
        self.tokens_P, self.layers = np.zeros(0, dtype=np.int64), []


class TrunkCache(Cache):
    """Puts the first P tokens of a trunk before each row's keys and values, and keeps nothing.

    transformers' own caches would hold what they return: a copy of the trunk for every
    row and layer.
    """

    def __init__(self, trunk: Trunk, length: int, record: bool = False) -> None:
        super().__init__(layers=[])
        self.trunk, self.length, self.record = trunk, length, record
        self.recorded: list[tuple[Tensor, Tensor]] = []

    def update(  # type: ignore[override]
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """[B, heads, L, head_dim] twice -> [B, heads, P + L, head_dim] twice."""
        whole = key_states, value_states
        if self.length:
            key, value = (kept[:, :, : self.length] for kept in self.trunk.layers[layer_idx])
            rows = key_states.shape[0]
            whole = (
                torch.cat([key.expand(rows, -1, -1, -1), key_states], dim=2),
                torch.cat([value.expand(rows, -1, -1, -1), value_states], dim=2),
            )
        if self.record:
            self.recorded.append(whole)
        return whole

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """P."""
        return self.length


def run_rows(
    model: Any, masks: TreeMasks | None, rows: Sequence[Row], past: TrunkCache | None
) -> Tensor:
    """Hidden states of all nodes, [B, L, D]; without `masks` the rows have no branches."""
    causal = unwrap(model)
    weight = causal.get_input_embeddings().weight
    length = max(len(row.token_L) for row in rows)
    ids_BL = pad([row.token_L for row in rows], length, weight.device)
    with torch.inference_mode():
        if masks is None:
            # Right padding needs no mask: in a causal model no token sees what follows it.
            return hidden_states(model, ids_BL)
        trunk = 0 if past is None else past.length
        return hidden_states(
            model,
            ids_BL,
            masks(rows, trunk, weight),
            pad([row.position_L for row in rows], length, weight.device),
            past,
        )


def pad(arrays: Sequence[Ints], length: int, device: Any) -> Tensor:
    """[B, length], zeros on the right."""
    out_BL = np.zeros((len(arrays), length), dtype=np.int64)
    for row, array in enumerate(arrays):
        out_BL[row, : len(array)] = array
    return torch.from_numpy(out_BL).to(device)


def tree_masks(model: Any) -> TreeMasks | str:
    """How `model` takes a tree; or, as a phrase, that it isn't known to take one.

    The model's type and attention kernel have to be known, and a tree of a few tokens has
    to give the hidden states that each branch gives alone.
    """
    masks = known_masks(model)
    if not isinstance(masks, str) and not _check(model, masks):
        return f"{_name(model)} gives other numbers under a tree mask: each choice runs alone"
    return masks


def known_masks(model: Any) -> TreeMasks | str:
    """`tree_masks` by type and kernel alone, for a model that can't run yet (partitioned)."""
    config = unwrap(model).get_decoder().config
    windows = known_windows(config)
    if windows is None or config._attn_implementation not in KERNELS:
        return f"{_name(model)} isn't known to take a tree mask: each choice runs alone"
    return TreeMasks(windows)


def _name(model: Any) -> str:
    config = unwrap(model).get_decoder().config
    return f"{config.model_type} with {config._attn_implementation} attention"


def known_windows(config: Any) -> dict[str, int | None] | None:
    """`TreeMasks.windows` of a model's config; None if it isn't known."""
    rule = MODELS.get(config.model_type)
    if rule is None or getattr(config, "use_bidirectional_attention", None):
        return None
    window = getattr(config, "sliding_window", None)
    if rule == "by layer":
        known = {"full_attention": None, "sliding_attention": window}
        kinds = set(config.layer_types)
        return {kind: known[kind] for kind in kinds} if kinds <= known.keys() else None
    return {"": window if rule == "sliding" else None}


def _check(model: Any, masks: TreeMasks) -> bool:
    """Whether trunk and branches of a few tokens have the hidden states of a plain run."""
    weight = unwrap(model).get_input_embeddings().weight
    ids = [np.array(ids) % len(weight) for ids in ([3, 5, 7, 11, 13], [3, 5, 7, 17], [3, 5, 19])]
    chains = make_chains(ids, [2] * len(ids))
    try:
        trunk = Trunk()
        trunk.extend(model, masks, ids[0][:2])
        row = make_row(chains, 2)
        tree_LD = run_rows(model, masks, [row], TrunkCache(trunk, 2))[0]
        for chain, path in zip(chains, row.paths, strict=True):
            alone_LD = run_rows(model, None, [make_row([chain], 0)], None)[0, 2:]
            if not alone_LD.isfinite().all():
                return True  # broken weights: its scores will say so, the mask isn't to blame
            error = (tree_LD[torch.from_numpy(path).to(tree_LD.device)] - alone_LD).float().norm()
            if not error <= TOLERANCE[weight.dtype] * alone_LD.float().norm():
                return False
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError):
        return False
    return True


def rope_switch(model: Any) -> int | None:
    """The length beyond which a model turns *all* its positions differently (longrope).

    Longer and shorter sequences can't share a forward pass then. None: no such length.
    """
    config = unwrap(model).get_decoder().config
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    return int(rope["original_max_position_embeddings"])
