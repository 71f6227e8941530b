"""A frozen lm_head by itself: logits from hidden states, and the gradient's way back.

Losses and the teacher cache need a model's head without its body: a teacher whose hidden
states are cached is nothing but its head. Shapes: N positions, D hidden size, V rows of the
head (the padded vocabulary).
"""

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from muscle.errors import UserError
from muscle.models.structure import finish_logits, logit_settings, unwrap

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FORMAT = "muscle head 1"


@dataclass(frozen=True)
class Head:
    """weight [V, D], bias [V], and what some models do to their logits afterwards.

    scale multiplies (Cohere), divisor divides (Granite), cap is a soft-cap,
    cap * tanh(x / cap) (Gemma). Frozen: nothing here records a gradient.
    """

    weight: "Tensor"
    bias: "Tensor | None" = None
    scale: float | None = None
    divisor: float | None = None
    cap: float | None = None

    @property
    def width(self) -> int:
        """V, the number of logits."""
        return self.weight.shape[0]

    @property
    def logits_dtype(self) -> "torch.dtype":
        """Of the logits: fp32, or fp64 for a head in fp64."""
        import torch

        return torch.promote_types(self.weight.dtype, torch.float32)

    def logits(self, hidden: "Tensor", out: "Tensor | None" = None) -> "Tensor":
        """[N, D] -> [N, V] in fp32 (fp64 for fp64), the same bits as the model's own logits.

        The product runs in the head's dtype. `out` is filled and returned if it is given.
        """
        import torch

        with torch.no_grad():
            hidden = hidden.detach().to(self.weight.dtype)
            into = out if out is not None and out.dtype == self.weight.dtype else None
            if self.bias is None:
                raw = torch.mm(hidden, self.weight.t(), out=into)
            else:
                raw = torch.addmm(self.bias, hidden, self.weight.t(), out=into)
            finished = finish_logits(raw, self.scale, self.divisor, self.cap)
            if out is None:
                return finished.to(self.logits_dtype)
            return out if finished is out else out.copy_(finished)

    def hidden_gradient(self, gradient: "Tensor", logits: "Tensor | None" = None) -> "Tensor":
        """d loss / d hidden [N, D], in the head's dtype, from d loss / d logits [N, W].

        W may be less than V: the gradient is 0 on the rest. `logits` [N, W] are read by a
        capped head only, and may be None for others.
        """
        import torch

        with torch.no_grad():
            if self.cap is not None:
                assert logits is not None, "a soft-cap's slope depends on the logits"
                gradient = gradient * (1 - (logits / self.cap) ** 2)
            weight = self.weight[: gradient.shape[1]]
            result = torch.mm(gradient.to(weight.dtype), weight)
            factor = (1.0 if self.scale is None else self.scale) / (self.divisor or 1.0)
            return result if factor == 1.0 else result.mul_(factor)


NEVER = -1e4
"""The bias of an id that a model can't mean: its probability is 0."""


def exchanged(head: Head, pair: tuple[int, int]) -> Head:
    """A head in which two ids have changed places, so that (what old means by its own) is read
    as (the student's own): [max(V, id + 1), D].

    An id beyond the head's width is new to it: it gets the other's row, whose own place is
    then never meant, and neither are the ids between.
    """
    import torch

    one, other = sorted(pair)
    width = head.width
    order = list(range(max(width, other + 1)))
    order[one], order[other] = order[other], order[one]
    rows = torch.tensor(order, device=head.weight.device)
    known = rows < width
    weight = head.weight[rows.clamp(max=width - 1)]
    bias = head.bias
    if bool(known.all()):
        bias = None if bias is None else bias[rows]
    else:
        bias = (
            torch.zeros(width, dtype=weight.dtype, device=weight.device) if bias is None else bias
        )
        bias = torch.where(known, bias[rows.clamp(max=width - 1)], torch.full_like(bias[:1], NEVER))
        weight = weight * known[:, None]
    return replace(head, weight=weight, bias=bias)


def head_of(model: Any) -> Head:
    """The head of a causal LM, plain or in a PeftModel; its tensors are shared, not copied.

    Raises:
        UserError: the head is adapted or trains, or isn't one matrix.
    """
    from torch import nn

    causal = unwrap(model)
    module = causal.get_output_embeddings()
    if type(module).__module__.startswith("peft."):
        raise UserError(
            "the adapter changes lm_head, which must be frozen here: leave it out of the "
            "adapter's target_modules and modules_to_save"
        )
    if not isinstance(module, nn.Linear):
        raise UserError(
            f"unsupported architecture {type(causal).__name__}: its output head is a "
            f"{type(module).__name__}, not a linear layer"
        )
    if any(parameter.requires_grad for parameter in module.parameters()):
        raise UserError("lm_head is in training, but it must be frozen here: freeze it")
    bias = None if module.bias is None else module.bias.detach()
    return Head(module.weight.detach(), bias, **logit_settings(causal.config))


def save_head(head: Head, path: str) -> None:
    """Write a head as one local safetensors file, in its own dtype."""
    from safetensors.torch import save_file

    tensors = {"weight": head.weight}
    if head.bias is not None:
        tensors["bias"] = head.bias
    scalars = {"scale": head.scale, "divisor": head.divisor, "cap": head.cap}
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        path,
        # One entry: safetensors writes several in any order, and equal heads are equal files.
        {FORMAT: json.dumps(scalars)},
    )


def load_head(path: str, device: "str | torch.device" = "cpu") -> Head:
    """The inverse of `save_head`: the same bits in the same dtype.

    Raises:
        UserError: no such file, or not a whole head.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt", device=str(device)) as file:
            notes = file.metadata() or {}
            if FORMAT not in notes:
                raise UserError(f"{path} is not a head that muscle has written: write it again")
            scalars = json.loads(notes[FORMAT])
            found = {name: file.get_tensor(name) for name in file.keys()}
        return Head(found["weight"], found.get("bias"), **scalars)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"head {path} can't be read ({reason}): write it again") from error
