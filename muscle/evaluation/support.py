"""Whether a model can decode on a shared prefix; any other goes through transformers' generate."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from muscle.evaluation.prefix_attention import NAME, Decode, Prefill
from muscle.models.structure import hidden_states, unwrap

_known: "WeakKeyDictionary[Any, bool]" = WeakKeyDictionary()

_LAYERS = {"full_attention", "sliding_attention"}

# Rotary embeddings that change with the longest row of a batch.
_BATCH_DEPENDENT = {"dynamic", "longrope"}


@contextmanager
def shared_attention(model: Any) -> Iterator[None]:
    """Inside, the model's layers attend through `muscle.evaluation.prefix_attention`."""
    causal = unwrap(model)
    before = causal.config._attn_implementation
    causal.set_attn_implementation(NAME)
    try:
        yield
    finally:
        causal.set_attn_implementation(before)


def can_decode(model: Any) -> bool:
    """Known by trying: a few tokens, both ways, must have the same hidden states."""
    causal = unwrap(model)
    if causal not in _known:
        _known[causal] = _plausible(causal) and _agrees(model)
    return _known[causal]


def _plausible(causal: Any) -> bool:
    """What a few tokens could not show: chunked or linear attention, changing embeddings."""
    config = getattr(causal.config, "text_config", None) or causal.config
    if not getattr(causal, "_supports_attention_backend", False) or config.is_encoder_decoder:
        return False
    if not set(getattr(config, "layer_types", None) or ()) <= _LAYERS:
        return False
    if getattr(config, "attention_chunk_size", None) is not None:
        return False
    ropes = getattr(config, "rope_parameters", None) or {}
    kinds = [ropes, *(rope for rope in ropes.values() if isinstance(rope, dict))]
    return not any(kind.get("rope_type") in _BATCH_DEPENDENT for kind in kinds)


def _agrees(model: Any) -> bool:
    """Two rows on a prefix of three tokens, one step each, against each row alone."""
    rows = [[0, 1, 2, 3, 4], [0, 1, 2, 5, 6, 7]]
    made = [3, 1]
    try:
        with torch.inference_mode():
            alone = torch.stack(
                [
                    hidden_states(model, torch.tensor([[*row, new]], device=model.device))[0, -1]
                    for row, new in zip(rows, made, strict=True)
                ]
            ).float()
            with shared_attention(model):
                shared = _shared(model, rows, made).float()
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception:  # whatever a foreign architecture does with arguments that it never had
        return False
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    scale = float(alone.nan_to_num().abs().max())
    return torch.allclose(alone, shared, rtol=0, atol=tolerance * scale, equal_nan=True)


def _shared(model: Any, rows: list[list[int]], made: list[int]) -> Tensor:
    """[2, D] hidden states of the last tokens.

    Raises:
        ValueError: a layer's window is not that of the config.
    """
    from muscle.evaluation.decoding import Decoder

    decoder = Decoder(model, batch_tokens=16, held_tokens=16)
    decoder.share(rows[0][:3])
    first = Prefill(decoder.prefix, 3, [2, 3], decoder.device)
    decoder.run([token for row in rows for token in row[3:]], first)
    _check_windows(model, first.windows)
    memory = Decode(decoder.prefix, 3, places=2, columns=4)
    memory.insert(first.made, first.rows_N, first.columns_N)
    memory.begin([2, 3], decoder.device)
    return decoder.run(made, memory)


def _check_windows(model: Any, windows: dict[int, int | None]) -> None:
    """Every sliding layer must have named its window, which a few tokens do not fill."""
    causal = unwrap(model)
    config = getattr(causal.config, "text_config", None) or causal.config
    width = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    for layer, window in windows.items():
        sliding = width is not None if kinds is None else kinds[layer] == "sliding_attention"
        if window != (width if sliding else None):
            raise ValueError(f"layer {layer} has the window {window}")
