"""From what a user writes under `model:` to what transformers can open."""

import os
import re
from pathlib import Path

from muscle.errors import UserError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def resolve_model(model: str) -> str:
    """The absolute directory or the hub id that `model` names.

    `testbed:NAME` is a model shipped with the package, an existing directory becomes
    an absolute path, anything else is a hub id.

    Raises:
        UserError: `model` looks like a path and no such directory exists.
    """
    if model.startswith("testbed:"):
        from muscle import testbed  # late: testbed is a leaf that models must not drag in

        return str(testbed.model_path(model.removeprefix("testbed:")))
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if path.is_file():
        raise UserError(f"model {model!r} is a file: give the directory that holds config.json")
    if not looks_like_hub_id(model):
        raise UserError(
            f"model directory {model!r} does not exist: give an existing directory, "
            "a hub id (owner/name) or testbed:v1 / testbed:v2"
        )
    return model


def looks_like_hub_id(name: str) -> bool:
    """Whether `name` could be a hub id: `owner/name` or `name`, and not a path."""
    return _HUB_ID.fullmatch(name) is not None and not os.path.isdir(name)
