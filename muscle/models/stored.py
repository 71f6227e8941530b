"""Base models in a folder of an object store: what is read of them, and what they are now.

Only safetensors, JSON and tokenizer files are looked at. A model's revision is a hash of
their names, sizes and checksums, so nothing is downloaded to know it; each machine that
loads the model fetches its own copy of that revision, once.
"""

import json
from typing import Any

from muscle import copies, storage
from muscle.copies import Listing
from muscle.errors import UserError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def stored_revision(model: str, revision: str | None = None) -> str:
    """What identifies the files of a model on a store as they are now.

    Raises:
        UserError: no such folder, no config.json, no safetensors, or it isn't `revision`.
    """
    now = _with_weights(model).revision
    if revision not in (None, now):
        raise UserError(
            f"model {model!r} is at revision {now}, not {revision!r}: name that one, or none to "
            "take what is there"
        )
    return now


def fetch_stored(model: str, revision: str | None, weights: bool) -> str:
    """This machine's copy of a model on a store; without `weights` all but the safetensors.

    Args:
        revision: what must be there; None: whatever is.

    Raises:
        UserError: it can't be read, holds other files, or doesn't fit on the disk.
    """
    # Found without asking the store where it is pinned and there already.
    now = revision or _listing(model).revision
    try:
        return str(
            copies.fetch_listed(
                model,
                now,
                lambda name: weights or not name.endswith(".safetensors"),
                among=is_read,
            )
        )
    except FileNotFoundError:
        raise _nothing(model) from None


def check_stored_weights(model: str) -> None:
    """Refuse safetensors that are cut short or none, by their headers alone.

    Raises:
        UserError: names the file.
    """
    files = {n: f.size for n, f in _with_weights(model).files.items() if n.endswith(".safetensors")}
    tiny = [name for name, size in files.items() if size <= 8]
    if tiny:
        raise _damaged(model, tiny[0])
    ends = dict.fromkeys(files, 8)
    fs, inside = storage.filesystem(model)
    paths = [storage.join(inside, name) for name in files]
    headers: list[bytes] = []
    for start in (0, 8):
        stops = list(ends.values())
        headers = fs.cat_ranges(paths, [start] * len(paths), stops, on_error="raise")
        if start == 0:
            lengths = (int.from_bytes(head[:8], "little") for head in headers)
            ends = {n: 8 + length for n, length in zip(files, lengths, strict=True)}
            broken = [name for name, size in files.items() if not 8 < ends[name] <= size]
            if broken:
                raise _damaged(model, broken[0])
    for (name, size), head in zip(files.items(), headers, strict=True):
        if ends[name] + _data_size(head) != size:
            raise _damaged(model, name)


def _data_size(header: bytes) -> int:
    """How many bytes of tensors a safetensors header announces; -1: it is none."""
    try:
        tensors: dict[str, Any] = json.loads(header)
        entries = [t for name, t in tensors.items() if name != "__metadata__"]
        return max((int(t["data_offsets"][1]) for t in entries), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return -1


def is_read(name: str) -> bool:
    """Whether a file of a model's folder is one of those that are read."""
    return "/" not in name and (
        name in TOKENIZER_FILES or name.endswith((".safetensors", ".json", ".tiktoken", ".jinja"))
    )


def _with_weights(model: str) -> Listing:
    found = _listing(model)
    if not any(name.endswith(".safetensors") for name in found.files):
        raise UserError(
            f"model {model!r} has no *.safetensors (pickles are never read): "
            "save the model with save_pretrained(..., safe_serialization=True)"
        )
    return found


def _listing(model: str) -> Listing:
    try:
        found = copies.list_files(model)
    except FileNotFoundError:
        raise _nothing(model) from None
    found = found.only(is_read)
    if found.single:
        raise UserError(f"model {model!r} is a file: give the folder that holds config.json")
    if "config.json" not in found.files:
        raise UserError(f"model {model!r} has no config.json: give a folder in Hugging Face format")
    return found


def _nothing(model: str) -> UserError:
    return UserError(f"model {model!r} does not exist, or its folder is empty")


def _damaged(model: str, name: str) -> UserError:
    return UserError(f"model {model!r}: {name} is cut short or damaged: copy it again")
