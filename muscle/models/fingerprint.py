"""Fingerprints: what makes two models, adapters or tokenizers the same for our numbers."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from muscle.errors import UserError
from muscle.models.resolve import resolve_model
from muscle.models.stored import TOKENIZER_FILES, stored_revision
from muscle.storage import is_remote

# Only what changes the adapter's function; not names, versions or bookkeeping.
_ADAPTER_FIELDS = (
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "bias",
    "lora_bias",
    "fan_in_fan_out",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "target_parameters",
)

# Spaces, digits, case, punctuation, other scripts, emoji, control characters: where
# tokenizers of one vocabulary differ in how they normalise and split.
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    " leading and  double   spaces, trailing \n",
    "Line one\nline two\r\n\n\ttabbed",
    "1234567890 3.14159 -42 1,000,000 50%",
    "Question: What's 2+2?\nAnswer: it's 4; I'd say so.",
    "naïve café Ünïcödé ﬁ ½ ２",
    "日本語のテキスト and русский текст, مرحبا",
    "emoji 👩‍👩‍👧 🇪🇺 and zero\u200bwidth",
    "CamelCase snake_case http://example.com/a?b=c#d <s> </s> <|endoftext|>",
    "",
)

_digests: dict[tuple[str, int, int], str] = {}


def fingerprint_base(model: str, revision: str | None = None) -> str:
    """What identifies a base model's weights, config and tokenizer.

    A directory: sha256 over names and contents of config.json, the safetensors (with
    their index) and the tokenizer's files; a hub id: its commit hash; a folder on a store:
    a hash of what it lists. The last two are also a valid `revision`, so load with it what
    was fingerprinted.

    Raises:
        UserError: no such directory or hub model, hub unreachable and nothing cached,
            or a directory without config.json or without safetensors.
    """
    ref = resolve_model(model)
    if is_remote(ref):
        return stored_revision(ref, revision)
    if not os.path.isdir(ref):
        return _hub_commit(ref, revision)
    return _combine((path.name, _digest(path)) for path in base_files(Path(ref)))


def base_files(directory: Path) -> list[Path]:
    """The files of a local base model that decide its numbers, sorted by name.

    Raises:
        UserError: config.json or the safetensors are missing.
    """
    if not (directory / "config.json").is_file():
        hint = (
            ": it holds an adapter, give its base under 'model' and this one under 'adapter'"
            if (directory / "adapter_config.json").is_file()
            else ": give a directory in Hugging Face format"
        )
        raise UserError(f"model directory {str(directory)!r} has no config.json{hint}")
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        old = sorted(directory.glob("*.bin")) + sorted(directory.glob("*.pt*"))
        why = f" but {old[0].name}, which is never read (pickle)" if old else ""
        raise UserError(
            f"model directory {str(directory)!r} has no *.safetensors{why}: "
            "save the model with save_pretrained(..., safe_serialization=True)"
        )
    names = ["config.json", "model.safetensors.index.json", *TOKENIZER_FILES]
    others = [directory / name for name in names if (directory / name).is_file()]
    return sorted({*weights, *others, *directory.glob("*.tiktoken")})


def has_tokenizer(directory: Path) -> bool:
    """Whether a local model brings any tokenizer; a chat template alone is none."""
    names = [name for name in TOKENIZER_FILES if not name.startswith("chat_template")]
    return any((directory / n).is_file() for n in names) or any(directory.glob("*.tiktoken"))


def fingerprint_adapter(path: str) -> str:
    """sha256 over adapter_model.safetensors and the config fields that change its function.

    The base it was made for is not part of it, nor are version or bookkeeping fields.

    Raises:
        UserError: adapter_config.json or adapter_model.safetensors is missing or unreadable.
    """
    config = read_adapter_config(path)
    weights = Path(path) / "adapter_model.safetensors"
    if not weights.is_file():
        raise UserError(f"adapter {path!r} has no adapter_model.safetensors")
    return _combine([("config", _canonical(config)), ("weights", _digest(weights))])


def read_adapter_config(path: str) -> dict[str, Any]:
    """The JSON object in an adapter directory's adapter_config.json.

    Raises:
        UserError: the directory or the file is missing, or it is not a JSON object.
    """
    if not os.path.isdir(path):
        raise UserError(f"adapter directory {path!r} does not exist")
    file = Path(path) / "adapter_config.json"
    if not file.is_file():
        raise UserError(f"adapter {path!r} has no adapter_config.json: is it a PEFT adapter?")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"adapter {path!r}: adapter_config.json is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"adapter {path!r}: adapter_config.json is not a JSON object")
    return config


def fingerprint_tokenizer(tokenizer: Any) -> str:
    """sha256 over vocabulary, bos/eos ids and the encodings of the probe texts."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return _combine(
        [
            ("vocabulary", json.dumps(vocabulary)),
            ("special", json.dumps([tokenizer.bos_token_id, tokenizer.eos_token_id])),
            ("probes", json.dumps(_encodings(tokenizer))),
        ]
    )


def same_tokenizer(a: Any, b: Any) -> str | None:
    """None when two tokenizers give the same ids to every text, else why not, as a phrase.

    Same means same vocabulary and ids, same bos/eos, same encodings of the probe
    texts, whatever files or classes they come from.
    """
    vocab_a, vocab_b = a.get_vocab(), b.get_vocab()
    if len(vocab_a) != len(vocab_b):
        return f"their vocabularies have {len(vocab_a)} and {len(vocab_b)} entries"
    if vocab_a != vocab_b:
        token = min(t for t in vocab_a if vocab_b.get(t) != vocab_a[t])
        other = vocab_b.get(token)
        there = "absent" if other is None else f"id {other}"
        return f"the token {token!r} is id {vocab_a[token]} in one and {there} in the other"
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(a, name) != getattr(b, name):
            return f"their {name} differ ({getattr(a, name)} and {getattr(b, name)})"
    for text, ids_a, ids_b in zip(PROBES, _encodings(a), _encodings(b), strict=True):
        if ids_a != ids_b:
            return f"they encode {text!r} differently"
    return None


def same_ids(old: Any, new: Any) -> str | None:
    """None when two tokenizers give the same ids to every text, up to added tokens that only one
    of them has (the markers of its chats); else why not, as a phrase.

    That is what token-level distillation needs: an id that both have means the same in both.
    """
    added = {**old.get_added_vocab(), **new.get_added_vocab()}
    vocab_old, vocab_new = old.get_vocab(), new.get_vocab()
    alone = {t for t in added if (t in vocab_old) != (t in vocab_new)}
    if not alone:
        return same_tokenizer(old, new)
    plain_old, plain_new = (
        {t: i for t, i in v.items() if t not in alone} for v in (vocab_old, vocab_new)
    )
    if plain_old != plain_new:
        token = min(t for t in {*plain_old, *plain_new} if plain_old.get(t) != plain_new.get(t))
        return f"the token {token!r} is id {plain_old.get(token)} in one and " + (
            f"{plain_new.get(token)} in the other"
        )
    taken: dict[int, str] = {i: t for t, i in plain_old.items()}
    for token in sorted(alone):
        index = added[token]
        if taken.setdefault(index, token) != token:
            return f"the id {index} is {taken[index]!r} in one and {token!r} in the other"
    for text, ids_old, ids_new in zip(PROBES, _encodings(old), _encodings(new), strict=True):
        if ids_old != ids_new:
            return f"they encode {text!r} differently"
    return None


def vocabulary_note(old: Any, new: Any) -> str | None:
    """What to say where two tokenizers with the same ids have other widths; else None."""
    vocab_old, vocab_new = old.get_vocab(), new.get_vocab()
    shared = vocab_old.keys() & vocab_new.keys()
    if len(shared) == len(vocab_old) == len(vocab_new):
        return None
    alone = [
        f"{len(mine) - len(shared)} are {name}'s alone ({', '.join(sorted(mine - shared)[:3])})"
        for name, mine in (("old", vocab_old.keys()), ("new", vocab_new.keys()))
        if len(mine) > len(shared)
    ]
    return (
        f"old has {len(vocab_old):,} token ids and new {len(vocab_new):,}: old teaches by the "
        f"{len(shared):,} shared ones; {' and '.join(alone)}"
    )


def _encodings(tokenizer: Any) -> list[list[int]]:
    return [list(tokenizer.encode(text)) for text in PROBES]


def _canonical(config: dict[str, Any]) -> str:
    """The fields that matter, as JSON without nulls; PEFT writes target sets in any order."""
    kept = {k: config[k] for k in _ADAPTER_FIELDS if config.get(k) not in (None, {}, [], False)}
    for key, value in kept.items():
        if isinstance(value, list):
            kept[key] = sorted(value, key=str)
    return json.dumps(kept, sort_keys=True)


def _combine(parts: Iterable[tuple[str, str]]) -> str:
    whole = hashlib.sha256()
    for name, value in parts:
        whole.update(f"{name}\0{len(value)}\0{value}\0".encode())
    return whole.hexdigest()


def _digest(path: Path) -> str:
    """sha256 of a file, remembered while its time and size stay the same."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_mtime_ns, stat.st_size)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]


def _hub_commit(repo: str, revision: str | None) -> str:
    """The commit a hub model's revision stands for; from the local cache when offline."""
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    import huggingface_hub as hub
    from huggingface_hub import errors

    if not hub.constants.HF_HUB_OFFLINE:
        try:
            sha = hub.HfApi().model_info(repo, revision=revision, timeout=20).sha
            if sha:
                return sha
        except errors.GatedRepoError:
            raise UserError(
                f"model {repo!r} is gated: accept its licence on the hub and set HF_TOKEN"
            ) from None
        except errors.RevisionNotFoundError:
            raise UserError(f"model {repo!r} has no revision {revision!r}") from None
        except errors.RepositoryNotFoundError:
            raise UserError(
                f"model {repo!r} is neither a directory nor a model on the hub "
                "(a private one needs HF_TOKEN)"
            ) from None
        except Exception:  # no network: the cache may still know it
            pass
    cached = hub.try_to_load_from_cache(repo, "config.json", revision=revision or "main")
    if isinstance(cached, str):
        return Path(cached).parent.name
    raise UserError(
        f"model {repo!r} is not a directory, not in the local hub cache, and the hub "
        "cannot be reached: give a directory, or download the model first"
    )
