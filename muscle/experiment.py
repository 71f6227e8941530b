"""Experiment files: YAML, environment variables, `--set`, one-line errors."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from muscle.config import Experiment
from muscle.errors import UserError

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_PATHS = ("include_path", "train", "test", "validation", "adapter", "model")


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and apply `key.sub=value` overrides.

    `${NAME}` in any string is replaced by the environment variable NAME. Relative
    paths of files that exist beside the experiment file are taken from there, others
    from the working directory.

    Raises:
        UserError: missing or malformed file, unset variable, unknown or invalid key.
    """
    file = Path(path)
    try:
        raw = yaml.load(file.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except FileNotFoundError:
        raise UserError(f"experiment file {file} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"experiment file {file} can't be read: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date like 2024-13-45
        raise UserError(f"experiment file {file} is not YAML: {_one_line(error)}") from None
    if not isinstance(raw, dict):
        raise UserError(f"experiment file {file} must be a mapping of settings, see the README")
    for override in overrides:
        _apply(raw, override)
    expanded = _expand(raw, "")
    try:
        experiment = Experiment.model_validate(expanded)
    except ValidationError as error:
        raise UserError(f"{file}: {describe(error)}") from None
    return _locate(experiment, file.parent)


def describe(error: ValidationError) -> str:
    """The first problem of a validation error as `setting 'a.b' is VALUE: what to do`."""
    problems = error.errors(include_url=False)
    first, wheres = problems[0], [_where(problem["loc"]) for problem in problems]
    where = wheres[0]
    # A setting of two types (a number or 'auto') has a problem with each of them.
    same = [p["msg"] for p, w in zip(problems, wheres, strict=True) if w == where]
    message = " or ".join(dict.fromkeys(same)).removeprefix("Value error, ")
    others = len(set(wheres)) - 1
    more = f" (and {others} more)" if others else ""
    if first["type"] == "extra_forbidden":
        return f"unknown setting '{where}'{_nearest(where)}{more}"
    if first["type"] == "missing":
        return f"setting '{where}' is missing{more}"
    if first["type"] == "value_error":
        return f"setting '{where}': {message}{more}" if where else f"{message}{more}"
    if first["type"] == "model_type":
        names = ", ".join(getattr(_part(where.split(".")), "model_fields", {}))
        message = f"give a group of settings ({names})"
    value = repr(first["input"])
    value = value if len(value) <= 80 else value[:77] + "..."
    return f"setting '{where}' is {value}: {message}{more}"


def _where(loc: tuple[int | str, ...]) -> str:
    """The setting's name from pydantic's location, without its tags for unions and validators."""
    part: Any = Experiment
    names: list[str] = []
    for name in loc:
        if part is not None:
            names.append(str(name))
            part = _part(names)
        elif isinstance(name, int):
            names.append(str(name))
    return ".".join(names)


def _part(names: Sequence[str]) -> Any:
    """The model that the setting holds (or can hold), None if it holds none."""
    part: Any = Experiment
    for name in names:
        field = part.model_fields.get(name) if part else None
        types = (field.annotation, *get_args(field.annotation)) if field else ()
        models = [t for t in types if isinstance(t, type) and issubclass(t, BaseModel)]
        part = models[0] if models else None
    return part


def _nearest(where: str) -> str:
    """A suggestion for a misspelt setting, or the empty string."""
    from difflib import get_close_matches

    *parents, last = where.split(".")
    names = list(getattr(_part(parents), "model_fields", {}))
    close = get_close_matches(last, names, n=1)
    if close:
        return f": did you mean '{close[0]}'?"
    return f": known are {', '.join(names)}" if names else ""


class _Loader(yaml.SafeLoader):
    """YAML without its silent trap: of a key given twice, the first would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if key != "<<" and keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key}' is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


def _apply(raw: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in a nested mapping; the value is parsed as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r}: write it as key.sub=value")
    try:
        # A Jinja template is text, though to YAML its braces are a mapping.
        template = "{{" in text and text[:1] not in {'"', "'"}
        value = text if template else yaml.load(text, _Loader) if text else None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--set {key}: the value is not YAML: {_one_line(error)}") from None
    *parents, last = key.split(".")
    node = raw
    for name in parents:
        child = node.get(name)
        if name == "task" and isinstance(child, str):
            child = {"name": child}
        if child is None:
            child = {}
        if not isinstance(child, dict):
            raise UserError(f"--set {key}: '{name}' is not a group of settings")
        node[name] = child
        node = child
    node[last] = value


def _expand(value: Any, where: str) -> Any:
    """Replace ${NAME} in all strings of a nested value."""
    if isinstance(value, dict):
        return {k: _expand(v, f"{where}.{k}" if where else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise UserError(f"setting '{where}' needs the environment variable {name}: set it")
        return os.environ[name]

    return _VARIABLE.sub(replace, value)


def _locate(experiment: Experiment, folder: Path) -> Experiment:
    """Make relative paths that exist beside the experiment file absolute."""

    def walk(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {k: walk(v, k) for k, v in value.items()}
        if key in _PATHS and isinstance(value, str) and value and "://" not in value:
            for candidate in (folder / value, Path(value).expanduser()):
                if os.path.exists(candidate):  # unlike Path.exists: False for any odd string
                    return str(candidate.resolve())
        return value

    return Experiment.model_validate(walk(experiment.model_dump(), ""))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
