"""A version's base model and given adapter, pinned to what their files are now."""

import os
from dataclasses import dataclass

from muscle import copies, storage
from muscle.config import Experiment, VersionConfig
from muscle.errors import UserError
from muscle.losses.needs import aligns_tokens, different_tokenizers
from muscle.released import check_base


@dataclass(frozen=True)
class Base:
    """A base model pinned to what was fingerprinted, and its given adapter if any."""

    config: VersionConfig
    fingerprint: str
    given_adapter: str | None  # fingerprint


def resolve_base(version: VersionConfig, name: str) -> Base:
    """A version pinned to what its files are now; errors say whose they are."""
    try:
        base = _resolve(version)
        if version.release is not None:
            check_base(version.release, base.fingerprint)
        return base
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _resolve(version: VersionConfig) -> Base:
    from muscle.models.fingerprint import fingerprint_base
    from muscle.models.load import check_files
    from muscle.models.resolve import resolve_model

    ref = resolve_model(version.model)
    if storage.is_remote(ref):
        fingerprint = fingerprint_base(ref, version.revision)
        check_files(ref, fingerprint)
    else:
        check_files(version.model, version.revision)
        fingerprint = fingerprint_base(version.model, version.revision)
    # A hub model's fingerprint is its commit, a store's what it lists: workers load exactly that.
    revision = None if os.path.isdir(ref) else fingerprint
    base = Base(VersionConfig(model=ref, revision=revision), fingerprint, None)
    return base if version.adapter is None else with_adapter(base, version.adapter, version.model)


def with_adapter(base: Base, path: str, called: str | None = None) -> Base:
    """A base with an adapter that exists.

    Args:
        called: the base, in messages.

    Raises:
        UserError: no adapter there, or one that doesn't fit the base.
    """
    from muscle.models.compatibility import check_adapter
    from muscle.models.fingerprint import fingerprint_adapter
    from muscle.models.load import load_config

    model, revision = base.config.model, base.config.revision
    # Pinned: whatever machine fetches it later gets what is fingerprinted here.
    pinned = _pinned(storage.absolute(path))
    adapter = copies.fetch(pinned)
    check_adapter(adapter, called or model, base.fingerprint, load_config(model, revision))
    config = base.config.model_copy(update={"adapter": pinned})
    return Base(config, base.fingerprint, fingerprint_adapter(adapter))


def _pinned(path: str) -> str:
    try:
        return copies.pin(path)
    except FileNotFoundError:
        raise UserError(f"adapter {path!r} does not exist") from None


def versions_of(experiment: Experiment) -> list[tuple[str, VersionConfig]]:
    """The two bases of an update, with the names by which errors call them."""
    return [("old", experiment.old), ("new", experiment.new)]


def check_tokenizers(experiment: Experiment) -> str:
    """Token-level distillation needs one tokenizer; say early what still works.

    Returns the fingerprint of new's, by which both teachers read.
    """
    from muscle.models.fingerprint import fingerprint_tokenizer, same_ids
    from muscle.models.load import load_tokenizer

    old, new = (load_tokenizer(v.model, v.revision) for _, v in versions_of(experiment))
    if aligns_tokens(experiment.compatibility):
        reason = same_ids(old, new)
        if reason is not None:
            raise UserError(different_tokenizers(reason))
    return fingerprint_tokenizer(new)


def vocabulary_notes(experiment: Experiment) -> tuple[str, ...]:
    """What a user should know where old and new share ids but not all of them; only where old
    teaches."""
    from muscle.models.fingerprint import vocabulary_note
    from muscle.models.load import load_tokenizer

    if not aligns_tokens(experiment.compatibility):
        return ()
    note = vocabulary_note(
        *(load_tokenizer(v.model, v.revision) for _, v in versions_of(experiment))
    )
    return () if note is None else (note,)
