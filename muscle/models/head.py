"""A frozen head as a thing of its own: hidden states to logits without the rest of its model."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from muscle.models.structure import unwrap


@dataclass(frozen=True)
class Head:
    """weight [V, D], bias [V] or None, and what a model does to its logits afterwards."""

    weight: Tensor
    bias: Tensor | None
    scale: float | None
    divisor: float | None
    cap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits as `muscle.models.structure.project` gives them: [N, D] -> [N, V], fp32."""
        logits = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.scale is not None:
            logits = logits * self.scale
        if self.divisor is not None:
            logits = logits / self.divisor
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits.float()


def head_of(model: Any) -> Head:
    """The head of a causal LM, sharing its memory."""
    causal = unwrap(model)
    head = causal.get_output_embeddings()
    config = getattr(causal.config, "text_config", None) or causal.config
    names = ("logit_scale", "logits_scaling", "final_logit_softcapping")
    bias = getattr(head, "bias", None)
    return Head(
        head.weight.detach(),
        None if bias is None else bias.detach(),
        *(getattr(config, name, None) for name in names),
    )


def save_head(head: Head, path: str) -> None:
    """Write a head as one safetensors file."""
    from safetensors.torch import save_file

    tensors = {"weight": head.weight.cpu().contiguous()}
    if head.bias is not None:
        tensors["bias"] = head.bias.cpu().contiguous()
    after = {"scale": head.scale, "divisor": head.divisor, "cap": head.cap}
    save_file(tensors, path, metadata={"after": json.dumps(after, sort_keys=True)})


def load_head(path: str, device: str | torch.device) -> Head:
    """The inverse of `save_head`."""
    from safetensors import safe_open

    with safe_open(path, "pt", device=str(device)) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        after = json.loads(file.metadata()["after"])
    return Head(tensors["weight"], tensors.get("bias"), **after)
