"""Load base models and adapters, name them by fingerprint, split them in body and head.

Nothing here imports torch or transformers before a function needs them, so resolving
names and fingerprints stays cheap.
"""

from muscle.models.adapters import (
    adapter_parameters,
    attach_adapter,
    copy_adapter_config,
    new_adapter,
    save_adapter,
    using_adapter,
    write_adapter,
)
from muscle.models.compatibility import check_adapter
from muscle.models.fingerprint import (
    fingerprint_adapter,
    fingerprint_base,
    fingerprint_tokenizer,
    same_tokenizer,
)
from muscle.models.head import Head, head_of, load_head, save_head
from muscle.models.load import (
    chosen_window,
    context_window,
    load_base,
    load_config,
    load_tokenizer,
)
from muscle.models.resolve import open_model, resolve_model
from muscle.models.structure import check_structure, hidden_states, project

__all__ = [
    "Head",
    "adapter_parameters",
    "attach_adapter",
    "check_adapter",
    "check_structure",
    "chosen_window",
    "context_window",
    "copy_adapter_config",
    "fingerprint_adapter",
    "fingerprint_base",
    "fingerprint_tokenizer",
    "head_of",
    "hidden_states",
    "load_base",
    "load_config",
    "load_head",
    "load_tokenizer",
    "new_adapter",
    "open_model",
    "project",
    "resolve_model",
    "same_tokenizer",
    "save_adapter",
    "save_head",
    "using_adapter",
    "write_adapter",
]
