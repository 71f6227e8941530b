"""The two halves of a causal language model: body (to hidden states) and head (to logits).

Shapes: B batch, L sequence length, D hidden size, V rows of the head (the padded
vocabulary), N any number of positions.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from muscle.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def unwrap(model: Any) -> Any:
    """The causal LM inside a PeftModel, with the adapters' layers still in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hidden_states(
    model: Any,
    input_ids: "Tensor",
    attention_mask: "Tensor | Mapping[str, Tensor] | None" = None,
    position_ids: "Tensor | None" = None,
    past: Any = None,
) -> "Tensor":
    """Final hidden states after the final norm, without the head: [B, L] ids -> [B, L, D].

    `attention_mask` is [B, L], 1 for tokens and 0 for padding; with right padding it may
    be None for a causal model, since no token sees what follows it. Or it is the mask that
    attention adds to its scores, [B, 1, L, K] in the body's dtype, for all layers or by
    layer type; `muscle.evaluation.attention` knows which models take one. `past` is a
    transformers `Cache`. The active adapter applies.
    """
    body = unwrap(model).get_decoder()
    kwargs = {} if position_ids is None else {"position_ids": position_ids}
    if past is not None:
        kwargs["past_key_values"] = past
    out = body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **kwargs)
    return out.last_hidden_state


def project(model: Any, hidden: "Tensor") -> "Tensor":
    """Logits of hidden states through the model's own head: [N, D] -> [N, V], fp32.

    The matrix product runs in the head's dtype and the result is exactly
    `model(...).logits.float()`: bias, Gemma's final soft-cap, Cohere's and Granite's
    logit scales included. Goes through the model's module, so that an adapted head works;
    `muscle.models.head.Head` is the frozen head by itself.
    """
    causal = unwrap(model)
    head = causal.get_output_embeddings()
    logits = head(hidden.to(head.weight.dtype))
    return finish_logits(logits, **logit_settings(causal.config)).float()


def logit_settings(config: Any) -> dict[str, float | None]:
    """What a model does to its logits after the head, as arguments of `finish_logits`."""
    config = getattr(config, "text_config", None) or config
    return {
        "scale": getattr(config, "logit_scale", None),  # Cohere
        "divisor": getattr(config, "logits_scaling", None),  # Granite
        "cap": getattr(config, "final_logit_softcapping", None),  # Gemma 2, 3
    }


def finish_logits(
    logits: "Tensor", scale: float | None, divisor: float | None, cap: float | None
) -> "Tensor":
    """cap * tanh(logits * scale / divisor / cap), each step only where it is given."""
    import torch

    if scale is not None:
        logits = logits * scale
    if divisor is not None:
        logits = logits / divisor
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def check_structure(model: Any) -> None:
    """Run four tokens both ways and require that body + head give the model's own logits.

    An architecture with a step that `project` does not know would otherwise give wrong
    numbers silently.

    Raises:
        UserError: the logits differ, or the model has no separate body and head.
    """
    import torch

    causal = unwrap(model)
    name = type(causal).__name__
    device = causal.get_input_embeddings().weight.device
    input_ids = torch.arange(4, device=device)[None]
    try:
        with torch.no_grad():
            whole = causal(input_ids=input_ids, use_cache=False).logits[0].float()
            halves = project(model, hidden_states(model, input_ids)[0])
    except (AttributeError, TypeError) as error:
        raise UserError(f"unsupported architecture {name}: {error}") from error
    if whole.shape != halves.shape or not torch.allclose(
        whole, halves, rtol=1e-3, atol=1e-3, equal_nan=True
    ):
        raise UserError(
            f"unsupported architecture {name}: it changes its logits after the head "
            "in a way that muscle.models.structure does not know"
        )
