"""LoRA adapters: make, attach, switch and save them on one shared, frozen base.

Whether a directory's adapter fits a base is `muscle.models.compatibility`'s question.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muscle.config import AdapterConfig
from muscle.errors import UserError
from muscle.models.fingerprint import read_adapter_config

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel

WEIGHTS = "adapter_model.safetensors"
NOTE = "muscle.json"


def new_adapter(
    model: Any, config: AdapterConfig, seed: int, name: str, fp32: bool = True
) -> "PeftModel":
    """A fresh LoRA adapter on `model`: B is zero, A is drawn from `seed` alone.

    The global random state is neither read nor changed. `all-linear` is PEFT's: every
    linear layer but the head.

    Args:
        model: a base, or a PeftModel that gets one more adapter (activated).
        fp32: keep the adapter in fp32 whatever the base's dtype (PEFT's default);
            False takes the base's dtype, as DeepSpeed ZeRO-3 needs.

    Raises:
        UserError: the targets are not in this model, or name its head.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    lora = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.targets,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with _private_rng(model, seed):
        try:
            if isinstance(model, PeftModel):
                model.add_adapter(name, lora, autocast_adapter_dtype=fp32)
                model.set_adapter(name)
                peft_model = model
            else:
                peft_model = get_peft_model(
                    model, lora, adapter_name=name, autocast_adapter_dtype=fp32
                )
        except ValueError as error:
            raise UserError(f"adapter targets {config.targets!r}: {error}") from error
    if head_is_adapted(peft_model):
        raise UserError(
            f"adapter targets {config.targets!r} include the output head: leave it out, "
            "since the teachers' hidden states are projected through a frozen head"
        )
    return peft_model


def attach_adapter(
    model: Any, path: str, name: str, trainable: bool = False, fp32: bool = True
) -> "PeftModel":
    """Load the LoRA adapter in directory `path` onto `model` as `name`.

    The first adapter wraps the base and is active; later ones are added and are not
    (unless trainable): choose with `using_adapter` or `set_adapter`. Run `check_adapter`
    first, which says in one line what does not fit.

    Raises:
        UserError: files missing, tensors missing, left over, misshapen or not finite.
    """
    from peft import PeftModel, get_peft_model

    config = copy_adapter_config(path)
    # PEFT would fall back to a pickle, so the safetensors must be there.
    if not (Path(path) / WEIGHTS).is_file():
        raise UserError(f"adapter {path!r} has no {WEIGHTS}")
    config.inference_mode = not trainable
    config.base_model_name_or_path = None  # PEFT fills in the base it is put on
    was_training = model.training
    with _private_rng(model, seed=0):  # PEFT draws an init before it loads the weights
        try:
            if not isinstance(model, PeftModel):
                model = get_peft_model(model, config, name, autocast_adapter_dtype=fp32)
            loaded = model.load_adapter(
                path,
                adapter_name=name,
                is_trainable=trainable,
                torch_device=str(model.device),
                autocast_adapter_dtype=fp32,
            )
            if loaded.missing_keys or loaded.unexpected_keys:
                raise ValueError("its tensors are not those of this base's layers")
            if trainable:
                model.set_adapter(name)
        except (ValueError, RuntimeError, KeyError) as error:
            text = " ".join(str(error).split())[:200]
            raise UserError(f"adapter {path!r} cannot be loaded on this base: {text}") from error
    model.train(was_training)
    for key, tensor in adapter_parameters(model, name).items():
        if not tensor.isfinite().all():
            raise UserError(f"adapter {path!r}: {key} holds NaN or infinity")
    return model


@contextmanager
def using_adapter(model: Any, name: str | None) -> Iterator[None]:
    """Inside the block `name` is the active adapter; None switches all adapters off.

    Unlike PEFT's `set_adapter` and `disable_adapter` it leaves `requires_grad` alone, so
    a teacher pass in the middle of a training step cannot unfreeze or freeze anything.
    Dropout is not touched: put the model in eval mode for a teacher. Works on a plain
    base too, where only None is possible.

    Raises:
        KeyError: no adapter of that name.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if name is not None and name not in getattr(model, "peft_config", {}):
        raise KeyError(name)
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def adapter_parameters(model: Any, name: str) -> "dict[str, torch.nn.Parameter]":
    """The parameters of one adapter, by their names in `model`, in the model's order."""
    mine = re.compile(rf"\.lora_\w+\.{re.escape(name)}(\.|$)")
    return {key: value for key, value in model.named_parameters() if mine.search(key)}


def save_adapter(model: Any, name: str, directory: str, base_fingerprint: str) -> None:
    """Write one adapter as PEFT files (and muscle.json) directly into `directory`.

    `PeftModel.from_pretrained(base, directory)` reads it. The same weights give the same
    bytes. Tensors keep the adapter's dtype.

    Raises:
        ValueError: an empty tensor, as a ZeRO-3 partition that was not gathered leaves it.
    """
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    write_adapter(state, model.peft_config[name], directory, base_fingerprint)


def write_adapter(
    state: "dict[str, torch.Tensor]", config: "LoraConfig", directory: str, base_fingerprint: str
) -> None:
    """`save_adapter` for weights gathered elsewhere, under PEFT's names without an adapter name."""
    from copy import copy

    from safetensors.torch import save_file

    empty = [key for key, tensor in state.items() if tensor.numel() == 0]
    if empty or not state:
        raise ValueError(f"adapter has empty tensors, first {empty[:1]}: gather the weights first")
    os.makedirs(directory, exist_ok=True)
    tensors = {k: v.detach().to("cpu").contiguous().clone() for k, v in sorted(state.items())}
    save_file(tensors, os.path.join(directory, WEIGHTS), metadata={"format": "pt"})
    config = copy(config)
    config.inference_mode = True
    config.save_pretrained(directory)
    file = Path(directory) / "adapter_config.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    # PEFT keeps targets in a set, whose order changes from process to process.
    for key in ("target_modules", "exclude_modules"):
        if isinstance(fields.get(key), list):
            fields[key] = sorted(fields[key])
    file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    note = json.dumps({"base_fingerprint": base_fingerprint}, indent=2) + "\n"
    (Path(directory) / NOTE).write_text(note, encoding="utf-8")


def copy_adapter_config(path: str) -> "LoraConfig":
    """The LoRA settings of an existing adapter, to make another one like it (trainable).

    Raises:
        UserError: no adapter there, or not LoRA.
    """
    from peft import LoraConfig

    kind = read_adapter_config(path).get("peft_type")
    if kind != "LORA":
        raise UserError(f"adapter {path!r} is {kind}, not LoRA: only LoRA adapters are read")
    config = LoraConfig.from_pretrained(path)
    config.inference_mode = False
    return config


def head_is_adapted(model: Any) -> bool:
    """Whether any adapter changes the output head."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(model.get_base_model().get_output_embeddings(), BaseTunerLayer)


@contextmanager
def _private_rng(model: Any, seed: int) -> Iterator[None]:
    """Inside, torch's generators start at `seed`; outside, they never notice."""
    import torch

    device = next(model.parameters()).device
    cuda = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.random.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield
