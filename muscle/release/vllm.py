"""How to serve what is in a release: vLLM's own command, quoted for a shell."""

import os
import shlex

from muscle.models.resolve import resolve_model
from muscle.release.serving import RANKS
from muscle.released import Engine, Serves

HALVES = ("bfloat16", "float16")
"""What vLLM's LoRA kernels compute in."""


def serve_command(what: Serves, name: str, dtype: str) -> str:
    """`vllm serve …` with the adapter under `name`.

    Args:
        what: its paths as the server will see them.
        dtype: of the engine that judged; vLLM's kernels take no float32, it becomes bfloat16.
    """
    base, largest = what.base, what.adapter.config.r
    rank = next((r for r in RANKS if r >= largest), largest)
    words = ["vllm", "serve", _model(base.model)]
    if base.revision is not None:
        words += ["--revision", base.revision]
    words += ["--enable-lora", "--max-lora-rank", str(rank)]
    words += ["--lora-modules", f"{name}={what.adapter.path}"]
    if what.chat_template is not None and what.chat_template.file is not None:
        words += ["--chat-template", what.chat_template.file]
    words += ["--dtype", dtype if dtype in HALVES else HALVES[0]]
    return shlex.join(words)


def _model(model: str) -> str:
    """As vLLM can open it: a model that ships with us is a folder."""
    return resolve_model(model) if model.startswith("testbed:") else os.path.expanduser(model)


def notes(what: Serves, engine: Engine) -> list[str]:
    """What somebody should know who serves it so."""
    found = []
    if engine.backend not in ("vllm", "openai"):
        found.append(
            f"judged by the engine '{engine.backend}' in {engine.dtype}, not by the one that "
            "serves: `muscle evaluate --backend openai` measures that one"
        )
    if "://" in what.adapter.path:
        found.append(
            f"vLLM reads adapters from disks: copy {what.adapter.path} to the server first"
        )
    return found
