"""Does the adapter in a directory fit a base model? Said before any weights are loaded."""

import json
from pathlib import Path
from typing import Any

from muscle.config import AdapterConfig
from muscle.errors import UserError
from muscle.models.adapters import NOTE, WEIGHTS
from muscle.models.fingerprint import read_adapter_config
from muscle.models.load import load_config
from muscle.models.resolve import looks_like_hub_id

Shapes = dict[str, tuple[int, ...]]


def check_adapter(path: str, base: str, base_fingerprint: str | None, hf_config: Any) -> None:
    """Refuse an adapter that is not a plain LoRA adapter for this base.

    Args:
        path: the adapter's directory.
        base: the base as the user wrote it, for the messages.
        base_fingerprint: of `fingerprint_base`; compared with the adapter's muscle.json
            when it has one. None skips that.
        hf_config: of `load_config(base)`; the layers' shapes come from it, on the meta
            device, so no weights are read.

    Raises:
        UserError: one line that names the adapter, the base and what is wrong.
    """
    config = read_adapter_config(path)
    _check_kind(path, config)
    shapes = tensor_shapes(path)
    noted = noted_fingerprint(path)
    made_for = config.get("base_model_name_or_path") or "an unnamed base"
    if noted and base_fingerprint and _one_kind(noted, base_fingerprint):
        if noted != base_fingerprint:
            raise UserError(
                f"adapter {path!r} was made for another base: it was trained on {made_for!r} "
                f"(fingerprint {noted[:12]}), not on {base!r} (fingerprint {base_fingerprint[:12]})"
                f"; if that is the same base, stored again, delete the adapter's {NOTE}"
            )
    elif looks_like_hub_id(str(made_for)) and looks_like_hub_id(base) and made_for != base:
        raise UserError(
            f"adapter {path!r} was made for another base: its adapter_config.json names "
            f"{made_for!r}, not {base!r}"
        )
    problem = _misfit(shapes, _expected_shapes(path, base, hf_config))
    if problem:
        raise UserError(
            f"adapter {path!r} was made for another base ({made_for!r}) and does not fit "
            f"{base!r}: {problem}"
        )


def _one_kind(first: str, second: str) -> bool:
    """Whether two fingerprints can tell bases apart: a directory's is of contents, a hub id's a
    commit, a store's of what it lists."""
    kinds = {20, 40, 64}  # their lengths
    return not {len(first), len(second)} <= kinds or len(first) == len(second)


def _check_kind(path: str, config: dict[str, Any]) -> None:
    """Plain LoRA only: everything else changes the base or the head for all versions."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"adapter {path!r} is {kind}, not LoRA: only LoRA adapters are read")
    for field in ("modules_to_save", "layer_replication", "trainable_token_indices"):
        if config.get(field):
            raise UserError(
                f"adapter {path!r} has {field}: {config[field]!r}: only LoRA on frozen layers is "
                "supported, since all versions of one base share its other weights"
            )
    if config.get("bias", "none") != "none":
        raise UserError(f"adapter {path!r} trains biases ({config['bias']!r}): use bias='none'")
    init = config.get("init_lora_weights", True)
    if init not in (True, False, "gaussian"):
        raise UserError(
            f"adapter {path!r} was initialised by {init!r}, which changes the base's weights: "
            "convert it to plain LoRA (path_initial_model_for_weight_conversion) first"
        )


def tensor_shapes(path: str) -> Shapes:
    """Names and shapes in adapter_model.safetensors, from its header.

    Raises:
        UserError: no file, a damaged one, or one without tensors or with empty ones.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(path) / WEIGHTS
    if not file.is_file():
        pickled = (Path(path) / "adapter_model.bin").is_file()
        why = ", only adapter_model.bin, which is never read (pickle)" if pickled else ""
        raise UserError(f"adapter {path!r} has no {WEIGHTS}{why}: save it as safetensors")
    try:
        with safe_open(file, framework="pt") as opened:
            shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"adapter {path!r}: {WEIGHTS} is damaged or corrupt ({error})") from error
    for key, shape in sorted(shapes.items()):
        if 0 in shape:
            raise UserError(
                f"adapter {path!r}: {key} is empty (shape {list(shape)}): it was saved from a "
                "sharded model without gathering; save it again"
            )
    if not shapes:
        raise UserError(f"adapter {path!r}: {WEIGHTS} holds no tensors")
    return shapes


def noted_fingerprint(path: str) -> str | None:
    """The base fingerprint in our own note beside the adapter, if there is one.

    Raises:
        UserError: the note is damaged.
    """
    file = Path(path) / NOTE
    if not file.is_file():
        return None
    try:
        noted = json.loads(file.read_text(encoding="utf-8"))["base_fingerprint"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"adapter {path!r}: {NOTE} is damaged: remove it or save again") from None
    return str(noted)


def check_targets(config: AdapterConfig, base: str, revision: str | None) -> None:
    """Refuse LoRA targets that this base doesn't have; reads no weights.

    Raises:
        UserError: no such layers, or the output head among them.
    """
    from muscle.models.adapters import new_adapter

    new_adapter(_without_memory(load_config(base, revision)), config, 0, "check")


def _without_memory(hf_config: Any) -> Any:
    """The base on the meta device: layers and shapes, no weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(hf_config)


def _expected_shapes(path: str, base: str, hf_config: Any) -> Shapes:
    """The tensors PEFT would make for this adapter's config on this base, without memory."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    from muscle.models.adapters import head_is_adapted

    model = _without_memory(hf_config)
    lora = LoraConfig.from_pretrained(path)
    made_for, lora.base_model_name_or_path = lora.base_model_name_or_path, None
    lora.init_lora_weights = True
    try:
        adapted = get_peft_model(model, lora, low_cpu_mem_usage=True)
    except ValueError as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"adapter {path!r} was made for another base ({made_for!r}) and does not fit "
            f"{base!r}: {text}"
        ) from error
    if head_is_adapted(adapted):
        raise UserError(
            f"adapter {path!r} changes the output head: only adapters that leave it alone are "
            "supported, since hidden states are projected through a frozen head"
        )
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _misfit(given: Shapes, expected: Shapes) -> str | None:
    """The first difference between an adapter's tensors and those a base needs, as a phrase."""
    for key in sorted(expected.keys() & given.keys()):
        if given[key] != expected[key]:
            return f"{key} has shape {list(given[key])}, this base needs {list(expected[key])}"
    missing = sorted(expected.keys() - given.keys())
    if missing:
        return f"it has no {missing[0]} ({len(missing)} tensors missing)"
    extra = sorted(given.keys() - expected.keys())
    if extra:
        return f"this base has no place for its {extra[0]} ({len(extra)} tensors left over)"
    return None
