"""Attention for generation: rows on top of one shared prefix, whose keys exist once.

transformers' models call the function registered here instead of their own attention and
hand it the `memory` given to the forward pass, which keeps the keys and values. A `Prefill`
runs several prompts packed one after another, without padding; a `Decode` runs one new
token of each row in place.

Shapes: H query heads, K key heads, G = H / K, D head size, P tokens of the shared prefix,
N packed tokens, R places for rows, B rows in use, T columns (own tokens) of a place.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "muscle_generation"

# Tensors that attention functions get but need not use; others (gpt-oss's sinks) change it.
_HARMLESS = {"position_ids", "cache_position", "position_embeddings"}


class UnsupportedError(Exception):
    """This architecture's attention is not of the kind known here."""


class Layers:
    """Keys and values of some tokens, [1, K, tokens, D] for each layer."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def crop(self, length: int) -> None:
        """Keep the first `length` tokens."""
        for store in (self.keys, self.values):
            for layer in store:
                store[layer] = store[layer][:, :, :length]

    def append(self, other: "Layers") -> None:
        """Put other tokens after these."""
        for mine, new in ((self.keys, other.keys), (self.values, other.values)):
            for layer, states in new.items():
                mine[layer] = torch.cat([mine[layer], states], 2) if layer in mine else states


class Prefill:
    """The pass that runs N tokens of several rows, packed, after a shared prefix.

    Args:
        prefix: of P tokens, unchanged by the pass.
        lengths: tokens of each row; the rows begin at position P.

    After the pass `made` holds the N tokens' keys and values, `windows` what each layer
    said of its sliding window.
    """

    def __init__(self, prefix: Layers, prefix_length: int, lengths: Sequence[int], device: Any):
        self.prefix, self.prefix_length = prefix, prefix_length
        self.made = Layers()
        self.windows: dict[int, int | None] = {}
        self.rows = len(lengths)
        counts = torch.tensor(lengths)
        ends = counts.cumsum(0)
        self.last_B = (ends - 1).to(device)
        rows_N = torch.arange(len(lengths)).repeat_interleave(counts)
        columns_N = torch.arange(int(ends[-1])) - (ends - counts)[rows_N]
        self.rows_N, self.columns_N = rows_N.to(device), columns_N.to(device)
        self.position_ids = (self.columns_N + prefix_length)[None]
        self._masks: dict[int | None, Tensor] = {}

    def attend(
        self,
        layer: int,
        query_1HND: Tensor,
        key_1KND: Tensor,
        value_1KND: Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """[1, H, N, D]: every token over the prefix and its own row up to itself."""
        self.made.keys[layer], self.made.values[layer] = key_1KND, value_1KND
        self.windows[layer] = window
        if self.prefix_length:
            key_1KND = torch.cat([self.prefix.keys[layer], key_1KND], 2)
            value_1KND = torch.cat([self.prefix.values[layer], value_1KND], 2)
        groups = query_1HND.shape[1] // key_1KND.shape[1]
        key_1HLD = key_1KND.repeat_interleave(groups, dim=1)
        value_1HLD = value_1KND.repeat_interleave(groups, dim=1)
        attention = nn.functional.scaled_dot_product_attention
        if softcap is None and window is None and self.rows == 1 and not self.prefix_length:
            # The faster kernels take no mask.
            return attention(query_1HND, key_1HLD, value_1HLD, is_causal=True, scale=scaling)
        mask = self._mask(window, query_1HND.dtype)
        if softcap is None:
            return attention(query_1HND, key_1HLD, value_1HLD, mask, scale=scaling)
        scores = torch.matmul(query_1HND * scaling, key_1HLD.transpose(2, 3))
        return _weights(scores, softcap, mask) @ value_1HLD

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[1, 1, N, P + N], added to the scores: 0 where a token may look, else -inf."""
        if window not in self._masks:
            query_N1 = self.position_ids[0, :, None]
            shared_P = torch.arange(self.prefix_length, device=query_N1.device)
            key_L = torch.cat([shared_P, self.position_ids[0]])
            seen_NL = key_L <= query_N1
            if window is not None:
                seen_NL &= query_N1 - key_L < window
            seen_NL[:, self.prefix_length :] &= self.rows_N[:, None] == self.rows_N
            self._masks[window] = _additive(seen_NL, dtype)[None, None]
        return self._masks[window]


class Decode:
    """R places that keep rows' own keys and values, and the pass that adds a token to each.

    The rows in use are always the first B places, so a pass works on views, never copies.

    Args:
        prefix: of P tokens, that all rows share.
        places: R.
        columns: T, the own tokens that the longest row can come to.
    """

    def __init__(self, prefix: Layers, prefix_length: int, places: int, columns: int) -> None:
        self.prefix, self.prefix_length = prefix, prefix_length
        self.places, self.columns = places, columns
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self._masks: dict[int | None, Tensor] = {}

    def insert(self, made: Layers, place_N: Tensor, column_N: Tensor) -> None:
        """Put N packed tokens into their places and columns."""
        for mine, new in ((self.keys, made.keys), (self.values, made.values)):
            for layer, states in new.items():
                if layer not in mine:
                    _, heads, _, size = states.shape
                    # Zeros, since what a mask hides is still multiplied by its weight of 0.
                    mine[layer] = states.new_zeros(self.places, heads, self.columns, size)
                mine[layer][place_N, :, column_N] = states[0].transpose(0, 1)

    def release(self, place: int, last: int, broken: bool) -> None:
        """Free a place by moving the row of place `last` there; a broken one held NaN."""
        for store in (self.keys, self.values):
            for states in store.values():
                if broken:
                    states[place].zero_()
                if place != last:
                    states[place] = states[last]

    def begin(self, lengths: Sequence[int], device: Any) -> None:
        """Before a pass: how many own tokens each of the B rows has."""
        self.column_B = torch.tensor(lengths, device=device)
        self.rows_B = torch.arange(len(lengths), device=device)
        self.position_ids = (self.column_B + self.prefix_length)[:, None]
        self.longest = max(lengths) + 1
        self._masks = {}

    def attend(
        self,
        layer: int,
        query_BH1D: Tensor,
        key_BK1D: Tensor,
        value_BK1D: Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """[B, H, 1, D]: every row's token over the prefix and the row's own tokens.

        All rows' queries meet the prefix in one matrix product: its keys are read once, not
        once for each row.
        """
        rows, heads, _, size = query_BH1D.shape
        key_heads = key_BK1D.shape[1]
        groups = heads // key_heads
        self.keys[layer][self.rows_B, :, self.column_B] = key_BK1D[:, :, 0]
        self.values[layer][self.rows_B, :, self.column_B] = value_BK1D[:, :, 0]
        key_BKTD = self.keys[layer][:rows, :, : self.longest]
        value_BKTD = self.values[layer][:rows, :, : self.longest]
        query_BKGD = query_BH1D.reshape(rows, key_heads, groups, size) * scaling
        mask = self._mask(window, query_BH1D.dtype)
        own_BKGT = torch.matmul(query_BKGD, key_BKTD.transpose(2, 3))
        if not self.prefix_length:
            made_BKGD = _weights(own_BKGT, softcap, mask) @ value_BKTD
            return made_BKGD.reshape(rows, heads, 1, -1)
        shared = self.prefix_length
        query_KMD = query_BKGD.transpose(0, 1).reshape(key_heads, rows * groups, size)
        shared_KMP = torch.matmul(query_KMD, self.prefix.keys[layer][0].transpose(1, 2))
        shared_BKGP = shared_KMP.view(key_heads, rows, groups, shared).transpose(0, 1)
        weights_BKGL = _weights(torch.cat([shared_BKGP, own_BKGT], -1), softcap, mask)
        weights_KMP = weights_BKGL[..., :shared].transpose(0, 1).reshape(shared_KMP.shape)
        made_KMD = torch.matmul(weights_KMP, self.prefix.values[layer][0])
        made_BKGD = made_KMD.view(key_heads, rows, groups, -1).transpose(0, 1)
        made_BKGD = made_BKGD + weights_BKGL[..., shared:] @ value_BKTD
        return made_BKGD.reshape(rows, heads, 1, -1)

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[B, 1, 1, P + T], added to the scores."""
        if window not in self._masks:
            key_L = torch.arange(self.prefix_length + self.longest, device=self.column_B.device)
            seen_BL = key_L <= self.position_ids
            if window is not None:
                seen_BL &= self.position_ids - key_L < window
            self._masks[window] = _additive(seen_BL, dtype)[:, None, None]
        return self._masks[window]


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -math.inf)


def _weights(scores: Tensor, softcap: float | None, mask: Tensor) -> Tensor:
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return torch.softmax((scores + mask).float(), dim=-1).to(scores.dtype)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function of transformers' interface: [B, H, L, D] -> [B, L, H, D].

    Raises:
        UnsupportedError: the layer wants something that is not known here.
    """
    memory = kwargs.pop("memory", None)
    if not isinstance(memory, Prefill | Decode):
        raise UnsupportedError("its layers do not hand on the arguments of the forward pass")
    window, softcap = kwargs.pop("sliding_window", None), kwargs.pop("softcap", None)
    for name, value_ in kwargs.items():
        if isinstance(value_, Tensor) and name not in _HARMLESS:
            raise UnsupportedError(f"its attention has {name}")
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    made = memory.attend(module.layer_idx, query, key, value, scaling, window, softcap)
    return made.transpose(1, 2), None


AttentionInterface.register(NAME, attend)
