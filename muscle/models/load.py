"""Load tokenizers and frozen base models: safetensors only, no remote code, one-line errors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muscle.errors import UserError
from muscle.models.fingerprint import base_files, has_tokenizer
from muscle.models.resolve import open_model, resolve_model
from muscle.models.stored import check_stored_weights
from muscle.storage import is_remote

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_config(
    model: str, revision: str | None = None, weights: bool = True
) -> "PretrainedConfig":
    """The model's Hugging Face config; `weights` False: of a directory that may have none.

    Raises:
        UserError: missing directory or config, unknown model type, unreachable hub.
    """
    from transformers import AutoConfig

    ref, revision = _checked(model, revision, weights)
    try:
        return AutoConfig.from_pretrained(ref, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"model {model!r}: {_explain(error)}") from error


def load_tokenizer(
    model: str, revision: str | None = None, weights: bool = True
) -> "PreTrainedTokenizerBase":
    """The model's tokenizer, with its own default special tokens; `weights` as `load_config`.

    Raises:
        UserError: missing directory or tokenizer files, unreachable hub.
    """
    from transformers import AutoTokenizer

    ref, revision = _checked(model, revision, weights)
    if os.path.isdir(ref) and not has_tokenizer(Path(ref)):
        raise UserError(
            f"model directory {model!r} has no tokenizer files: copy tokenizer.json and "
            "tokenizer_config.json of the model it was made from"
        )
    try:
        return AutoTokenizer.from_pretrained(ref, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"tokenizer of model {model!r} can't be read (tokenizer.json, "
            f"tokenizer_config.json): {_explain(error)}"
        ) from error


def check_files(model: str, revision: str | None = None) -> None:
    """Refuse a base that can't be loaded before any worker tries to.

    Raises:
        UserError: a config or tokenizer that can't be read; for a directory also safetensors
            that are cut short or damaged.
    """
    from safetensors import SafetensorError, safe_open

    ref = resolve_model(model)
    load_config(model, revision)
    load_tokenizer(model, revision)
    if is_remote(ref):
        check_stored_weights(ref)
    if not os.path.isdir(ref):
        return
    for path in sorted(Path(ref).glob("*.safetensors")):
        try:
            with safe_open(str(path), "pt"):  # reads the header, and that all of it is there
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"model {model!r}: {path.name}: {_explain(error)}: copy it again"
            ) from error


def load_base(
    model: str,
    revision: str | None = None,
    dtype: str = "float32",
    device: "str | torch.device | None" = None,
) -> "PreTrainedModel":
    """A base model, frozen and in evaluation mode.

    Args:
        model: a directory, a folder on a store, a hub id or `testbed:NAME`.
        dtype: "float32", "bfloat16" or "float16".
        device: where to put it; None leaves it where transformers loads it (as
            DeepSpeed ZeRO-3 wants it).

    Raises:
        UserError: missing directory, config or weights; unknown architecture; corrupt,
            incomplete or misshapen weights.
    """
    from transformers import AutoModelForCausalLM

    ref, revision = _checked(model, revision, load=True)
    try:
        with _no_progress_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                ref,
                revision=revision,
                dtype=torch_dtype(dtype),
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise UserError(f"model {model!r} cannot be loaded: {_explain(error)}") from error
    base, info = loaded
    # transformers fills missing weights at random and only warns.
    for problem in ("missing_keys", "mismatched_keys"):
        if info.get(problem):
            first = str(sorted(map(str, info[problem]))[0])
            raise UserError(
                f"model {model!r}: its safetensors do not fit its config.json "
                f"({problem.replace('_', ' ')}: {first}): is the directory complete?"
            )
    base.requires_grad_(False)
    base.eval()
    return base if device is None else base.to(device)


def torch_dtype(dtype: str) -> "torch.dtype":
    """The torch dtype of a setting's name.

    Raises:
        UserError: not one of float32, bfloat16, float16.
    """
    import torch

    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"dtype {dtype!r} is unknown: use float32, bfloat16 or float16")
    return getattr(torch, dtype)


def _checked(
    model: str, revision: str | None, weights: bool = True, load: bool = False
) -> tuple[str, str | None]:
    """Of `open_model`; a directory must hold a config, safetensors (`weights`), no adapter.

    load: the weights are wanted, not only that there are some.
    """
    ref, revision = open_model(model, revision, load)
    if os.path.isdir(ref):
        # Without its config a directory is refused in the same words either way. That a store
        # has weights is known without a copy of them.
        here = weights and (load or not is_remote(model))
        if here or not (Path(ref) / "config.json").is_file():
            base_files(Path(ref))
        # transformers would quietly put such an adapter on the base.
        if (Path(ref) / "adapter_config.json").is_file():
            raise UserError(
                f"model directory {model!r} also holds an adapter (adapter_config.json): "
                "move it away and name it under 'adapter'"
            )
    return ref, revision


def _explain(error: BaseException) -> str:
    """A library's exception as one line."""
    text = " ".join(str(error).split())
    if not text:
        text = type(error).__name__
    if ("model type" in text and "does not recognize" in text) or "Unrecognized" in text:
        text = "unsupported architecture: " + text
    elif type(error).__name__ == "SafetensorError" or "deserializing header" in text:
        text = f"corrupt safetensors ({text})"
    return text if len(text) <= 300 else text[:297] + "..."


def context_window(config: Any, tokenizer: Any = None, default: int = 2048) -> int:
    """The model's maximum sequence length in tokens, found where the harness finds it.

    The config's own length, else the tokenizer's, else `default`.
    """
    config = getattr(config, "text_config", None) or config
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit is not None and limit < 10**12 else default


def chosen_window(model: str, config: Any, tokenizer: Any, max_length: int | None) -> int:
    """`max_length`, or the model's own context window, in tokens.

    Raises:
        UserError: `max_length` is more than the model has.
    """
    window = context_window(config, tokenizer)
    if max_length is not None and max_length > window:
        raise UserError(
            f"max_length {max_length} is more than the context window of {model!r} ({window})"
        )
    return max_length or window


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Inside, transformers draws no bar for its weights: progress is the caller's to show."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
