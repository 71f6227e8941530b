"""From what a user writes under `model:` to what transformers can open."""

import os
import re
from pathlib import Path

from muscle.errors import UserError
from muscle.models.stored import fetch_stored
from muscle.storage import is_remote

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def resolve_model(model: str) -> str:
    """The absolute directory, the folder on a store or the hub id that `model` names.

    `testbed:NAME` is a model shipped with the package, an existing directory becomes
    an absolute path, `s3://bucket/folder` stays as it is, anything else is a hub id.

    Raises:
        UserError: `model` looks like a path and no such directory exists.
    """
    if model.startswith("testbed:"):
        from muscle import testbed  # late: testbed is a leaf that models must not drag in

        return str(testbed.model_path(model.removeprefix("testbed:")))
    if is_remote(model):
        return model.rstrip("/")
    path = Path(model.removeprefix("file://")).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if path.is_file():
        raise UserError(f"model {model!r} is a file: give the directory that holds config.json")
    if not looks_like_hub_id(model):
        raise UserError(
            f"model directory {model!r} does not exist: give an existing directory, "
            "a hub id (owner/name), s3://BUCKET/FOLDER or testbed:v1 / testbed:v2"
        )
    return model


def open_model(
    model: str, revision: str | None = None, weights: bool = True
) -> tuple[str, str | None]:
    """What transformers can open: a directory (this machine's copy, for a model on a store) or
    a hub id, and the revision to name with it.

    weights: False: config and tokenizer are enough.

    Raises:
        UserError: as `resolve_model` and `fetch_stored`.
    """
    ref = resolve_model(model)
    if is_remote(ref):
        return fetch_stored(ref, revision, weights), None
    return ref, revision


def looks_like_hub_id(name: str) -> bool:
    """Whether `name` could be a hub id: `owner/name` or `name`, and not a path."""
    return _HUB_ID.fullmatch(name) is not None and not os.path.isdir(name)
