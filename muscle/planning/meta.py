"""Models without memory: on torch's meta device a tensor has a shape and no content.

The real classes of transformers and PEFT are built there, so every parameter is counted
and none is loaded. A training step is run on them too, and every allocation and release
is written down: what a step holds at its worst follows from the architecture's own code,
with gradient checkpointing as it really works, and not from a formula for one of them.
"""

import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from muscle.config import AdapterConfig
from muscle.errors import UserError
from muscle.models.adapters import adapter_parameters, copy_adapter_config, new_adapter
from muscle.models.load import torch_dtype
from muscle.models.structure import hidden_states, unwrap

ATTENTION = "muscle_plan"
ADAPTER = "plan"


class Peaks(NamedTuple):
    """Bytes of a training step's body (hidden states and what their gradient needs).

    kept        held when the forward has ended, the final hidden states included
    backward    most that is held at any moment of forward and backward
    operations  how many tensor operations it is made of: each costs some time to start
    """

    kept: int
    backward: int
    operations: int


class ForwardPeak(NamedTuple):
    """Bytes and operations of a forward without gradient, as in `Peaks`."""

    most: int
    operations: int


@dataclass
class MetaModel:
    """A base on the meta device with one LoRA adapter on it."""

    model: Any
    dtype: str
    fused: bool  # its attention keeps no scores

    @cached_property
    def adapter(self) -> int:
        """Parameters of the adapter."""
        return sum(p.numel() for p in adapter_parameters(self.model, ADAPTER).values())

    @cached_property
    def base(self) -> int:
        """Parameters of the base; tied ones count once."""
        return sum(p.numel() for p in self.model.parameters()) - self.adapter

    @property
    def weight_bytes(self) -> int:
        """Bytes of the base in its dtype."""
        return self.base * torch_dtype(self.dtype).itemsize

    @cached_property
    def linear(self) -> int:
        """Multiply-adds of one token in the body's linear layers, adapter and head apart.

        Every weight matrix meets each token once (Kaplan et al. 2020, §2.1, who count 2
        FLOPs for a multiply-add); of a mixture's stacked experts only those chosen.
        """
        body = unwrap(self.model).get_decoder()
        tables = {id(m.weight) for m in body.modules() if isinstance(m, nn.Embedding)}
        total = 0.0
        for name, parameter in body.named_parameters():
            if ".lora_" in name or id(parameter) in tables:
                continue
            if parameter.dim() == 2:
                total += parameter.numel()
            elif parameter.dim() == 3:
                total += parameter.numel() * self._chosen(parameter.shape[0])
        return int(total)

    def _chosen(self, experts: int) -> float:
        return float(getattr(self.config, "num_experts_per_tok", None) or experts) / experts

    @property
    def config(self) -> Any:
        """The text model's config."""
        config = unwrap(self.model).config
        return getattr(config, "text_config", None) or config

    @property
    def hidden(self) -> int:
        """D, the width of a hidden state."""
        return int(self.config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """V, the rows of the head."""
        return int(unwrap(self.model).get_output_embeddings().weight.shape[0])

    @property
    def layers(self) -> int:
        """Transformer blocks."""
        return int(self.config.num_hidden_layers)

    @property
    def attention_width(self) -> int:
        """Heads x size of a head."""
        heads = int(self.config.num_attention_heads)
        size = getattr(self.config, "head_dim", None) or self.hidden // heads
        return heads * int(size)

    @property
    def cache_width(self) -> int:
        """Key heads x size of a head, twice (keys and values): numbers a token leaves a layer."""
        heads = int(self.config.num_attention_heads)
        keys = int(getattr(self.config, "num_key_value_heads", None) or heads)
        return 2 * keys * self.attention_width // heads

    @property
    def can_checkpoint(self) -> bool:
        """Whether its blocks can recompute their activations."""
        return bool(getattr(unwrap(self.model), "supports_gradient_checkpointing", False))

    @cached_property
    def largest_block(self) -> int:
        """Parameters of the biggest repeated block."""
        lists = [m for m in self.model.modules() if isinstance(m, nn.ModuleList)]
        sizes = [sum(p.numel() for p in block.parameters()) for m in lists for block in m]
        return max(sizes, default=self.base)


def meta_model(
    hf_config: Any, adapter: AdapterConfig | str, dtype: str, fp32_adapter: bool, name: str
) -> MetaModel:
    """Build base and adapter without memory.

    Args:
        hf_config: of `load_config`.
        adapter: settings of a new one, or the directory of one that exists.
        fp32_adapter: whether it stays in fp32 or takes the base's dtype.
        name: the base as the user wrote it, for errors.

    Raises:
        UserError: no causal language model, or targets that it doesn't have.
    """
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        try:
            base = AutoModelForCausalLM.from_config(hf_config, dtype=torch_dtype(dtype))
        except (ValueError, KeyError, AttributeError) as error:
            text = " ".join(str(error).split())[:200]
            raise UserError(f"model {name!r}: unsupported architecture: {text}") from error
        base.requires_grad_(False)
        base.eval()
        if isinstance(adapter, AdapterConfig):
            model = new_adapter(base, adapter, 0, ADAPTER, fp32=fp32_adapter)
        else:
            lora = copy_adapter_config(adapter)
            lora.init_lora_weights = True
            model = get_peft_model(base, lora, ADAPTER, autocast_adapter_dtype=fp32_adapter)
    fused = base.config._attn_implementation == "sdpa"
    if fused:
        _register()
        base.set_attn_implementation(ATTENTION)
    return MetaModel(model, dtype, fused)


class _Kernel(torch.autograd.Function):
    """What a fused attention keeps: query, key, value, output and a number for each row.

    Dao 2023 (FlashAttention-2, §3.1): scores are recomputed, only the logsumexp is kept.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        rows, heads, length, _ = query.shape
        out = query.new_empty(rows, length, heads, value.shape[-1])
        sums = query.new_empty(rows, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[no-untyped-def, override]
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: [B, H, L, D] -> [B, L, H, D]."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # ragged rows have a mask, and then transformers repeats keys and values
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return _Kernel.apply(query, key, value), None


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attend)


class Ledger(TorchDispatchMode):
    """Inside, every allocation and release of tensor memory is counted, in bytes."""

    def __init__(self, known: Iterator[Tensor]):
        super().__init__()
        self.live = self.peak = self.operations = 0
        self._known: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()
        for tensor in known:
            self._known[tensor.untyped_storage()] = None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        self.operations += 1
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known[storage] = None
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.live -= size


@contextmanager
def _counting(meta: MetaModel) -> Iterator[Ledger]:
    tensors = [*meta.model.parameters(), *meta.model.buffers()]
    with Ledger(iter(tensors)) as ledger:
        yield ledger


def trace_training(meta: MetaModel, rows: int, length: int, checkpointing: bool) -> Peaks:
    """Run forward and backward of [rows, length] tokens; LoRA's gradients aren't counted."""
    from muscle.training.student import Student, Teachers

    _set_checkpointing(meta.model, checkpointing)
    Student(meta.model, ADAPTER, Teachers((), None), None).training_mode()
    hooks = [
        p.register_post_accumulate_grad_hook(_drop)
        for p in meta.model.parameters()
        if p.requires_grad
    ]
    try:
        with _counting(meta) as ledger:
            hidden = _forward(meta, rows, length)
            kept = ledger.live
            hidden.backward(torch.empty_like(hidden))
            return Peaks(kept, ledger.peak, ledger.operations)
    finally:
        for hook in hooks:
            hook.remove()
        meta.model.eval()


def _forward(meta: MetaModel, rows: int, length: int) -> Tensor:
    """Final hidden states [rows, length, D]."""
    input_ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    if meta.fused:
        return hidden_states(meta.model, input_ids)
    # An attention that keeps its scores adds a mask to them; making one looks at contents.
    shape = (rows, 1, length, length)
    mask = torch.zeros(shape, dtype=torch_dtype(meta.dtype), device="meta")
    kinds = set(getattr(meta.config, "layer_types", None) or ())
    by_kind = dict.fromkeys(kinds, mask)
    return hidden_states(meta.model, input_ids, by_kind if len(kinds) > 1 else mask)


def _set_checkpointing(model: Any, on: bool) -> None:
    """As PEFT models are told to, without a library's notice to itself about names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def trace_forward(meta: MetaModel, rows: int, length: int) -> ForwardPeak:
    """What a forward of [rows, length] tokens holds at most when no gradient is wanted."""
    meta.model.eval()
    with torch.no_grad(), _counting(meta) as ledger:
        _forward(meta, rows, length)
        return ForwardPeak(ledger.peak, ledger.operations)
