"""Experiment files: YAML, environment variables, `--set`, one-line errors."""

import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from muscle.config import Evaluation, Experiment, TaskConfig
from muscle.credentials import find_secret, know
from muscle.errors import UserError
from muscle.overrides import FLEET, Loader, apply_override, base_urls, message_of
from muscle.released import with_release, with_releases

P = TypeVar("P", bound=BaseModel)

UNFILLED = "FILL-IN"
"""Stands in cluster files where users put names of their own."""

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_PATHS = (
    "include_path",
    "inputs.path",
    "train",
    "test",
    "validation",
    "adapter",
    "model",
    "chat_template",
    "release",
    "noise_floor",
    "must_keep",
    "waive",
    "deepspeed",  # where it ends in .json; else the name of a stage
)


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and apply `key.sub=value` overrides.

    `${NAME}` in any string is replaced by the environment variable NAME. Relative
    paths of files that exist beside the experiment file are taken from there, others
    from the working directory.

    Raises:
        UserError: missing or malformed file, unset variable, unknown or invalid key, a secret
            in a setting, a place that is still to be filled in, a fleet's file.
    """
    file = Path(path)
    raw = read_raw(file, overrides)
    if FLEET in raw:
        raise UserError(
            f"{file} holds a fleet (setting '{FLEET}'): `muscle run` and `muscle submit` take it, "
            "this command takes one experiment"
        )
    return experiment_of(raw, file)


def experiment_of(raw: dict[str, Any], file: Path, entry: str = "") -> Experiment:
    """The experiment of settings as they stand in a file, its `${NAME}`s and paths resolved.

    entry: which entry of a fleet they are, for messages.

    Raises:
        UserError: as `load_experiment`.
    """
    where = f"{file}: {entry}" if entry else str(file)
    try:
        settings = with_releases(expand(raw), file.parent)
    except UserError as error:
        raise UserError(f"{entry}: {error}" if entry else error) from None
    return _locate(_validated(Experiment, settings, where), file.parent)


def read_raw(file: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """An experiment file's settings as they stand there, with overrides applied.

    Raises:
        UserError: missing or malformed file, malformed override.
    """
    raw = _read(file, "experiment file")
    for override in overrides:
        apply_override(raw, override)
    return raw


def check_raw(raw: dict[str, Any], file: Path, entry: str = "") -> None:
    """Validate settings whose `${NAME}`s another machine will read; what these stand for counts
    as valid where they aren't set here.

    Raises:
        UserError: unknown or invalid key.
    """
    settings = expand(raw, lenient=True)
    for name in ("old", "new"):
        version = settings.get(name)
        if isinstance(version, dict) and version.get("release") is not None:
            # Read where it runs; what it stands for is a model in any case.
            settings[name] = {"model": str(version["release"]), **version}
    try:
        Experiment.model_validate(settings)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        inputs = [problem["input"] for problem in problems]
        if not all(isinstance(given, str) and VARIABLE.search(given) for given in inputs):
            where = f"{file}: {entry}" if entry else str(file)
            raise UserError(f"{where}: {describe(error)}") from None


def refuse_secrets(settings: Any) -> None:
    """Refuse what would be stored beside every artifact and can't be taken back.

    Raises:
        UserError: names the setting, not the secret.
    """
    found = find_secret(settings)
    if found is not None:
        raise UserError(
            f"setting '{found[0]}' holds {found[1]}, which would be stored with the results: leave "
            "it out and set it in the environment where the work is done (HF_TOKEN, "
            "WANDB_API_KEY, MLFLOW_TRACKING_TOKEN, AWS_…)"
        )


def refuse_unfilled(value: str, setting: str) -> None:
    """Refuse a place whose name a user was to fill in.

    Raises:
        UserError: it still says so.
    """
    if UNFILLED in value:
        raise UserError(
            f"{setting} is {value!r}: put your own in the place of {UNFILLED} (it may come from "
            "the environment, as MUSCLE_STORAGE in cluster.yaml and cluster/kuberay)"
        )


def load_task_settings(path: str | Path) -> TaskConfig:
    """The task of a YAML file: its settings alone, or those under `task` of an experiment.

    Raises:
        UserError: as `load_experiment`.
    """
    file = Path(path)
    raw = _read(file, "task file")
    settings = raw.get("task", raw)
    if isinstance(settings, str):
        settings = {"name": settings}
    return _locate(_validated(TaskConfig, expand(settings, "task"), str(file)), file.parent)


def given_settings(
    tasks: Sequence[str],
    models: Sequence[str],
    include_path: str | None = None,
    num_fewshot: int | None = None,
    chat_template: str | None = None,
) -> dict[str, Any]:
    """The `tasks` and `models` of an `Evaluation`, from what is typed.

    Args:
        tasks: names, several in one with commas, or YAML files.
        models: NAME=BASE[+ADAPTER], a BASE that isn't a path may end with @REVISION; or
            NAME=release.json.
        chat_template: a Jinja file, by which all models read chats; other names are no file's.

    Raises:
        UserError: a model that isn't written so, a name given twice, a bad task file.
    """
    found: list[dict[str, Any]] = []
    for text in tasks:
        for name in [text] if os.path.exists(text) else text.split(","):
            if name.endswith((".yaml", ".yml")):
                found.append(load_task_settings(name).model_dump())
            elif name.strip():
                found.append({"name": name.strip()})
    if not found:
        raise UserError("--task names no task")
    given = {"include_path": include_path, "num_fewshot": num_fewshot}
    for task in found:
        task.update({k: v for k, v in given.items() if v is not None})
    versions: dict[str, Any] = {}
    for text in models:
        name, equals, rest = text.partition("=")
        if not equals or not name or not rest:
            raise UserError(f"--model {text!r}: write it as NAME=BASE or NAME=BASE+ADAPTER")
        if name in versions:
            raise UserError(f"--model: the name '{name}' is given twice")
        versions[name] = _model(rest, f"models.{name}")
        if is_template_file(chat_template):
            versions[name]["chat_template"] = chat_template
    return {"tasks": found, "models": versions}


def is_template_file(chat_template: str | None) -> bool:
    """Whether what `--chat-template` names is a file, not one of a tokenizer's templates."""
    return chat_template is not None and os.path.isfile(chat_template)


def _model(text: str, name: str) -> dict[str, Any]:
    """BASE[@REVISION][+ADAPTER] or a release.json; an existing path may itself hold '+' or '@'."""
    if text.endswith(".json"):
        return with_release({"release": text}, name, Path())
    base, plus, adapter = (text, "", "") if os.path.exists(text) else text.rpartition("+")
    if not plus:
        base = text
    found: dict[str, Any] = {"model": base}
    if not os.path.exists(base) and "@" in base:
        found["model"], _, found["revision"] = base.rpartition("@")
    return found | ({"adapter": adapter} if plus else {})


def build_evaluation(settings: dict[str, Any], overrides: Sequence[str] = ()) -> Evaluation:
    """An `Evaluation` of nested settings with `key.sub=value` overrides applied.

    Raises:
        UserError: unknown or invalid key.
    """
    for override in overrides:
        apply_override(settings, override)
    evaluation = settings.get("evaluation")
    server = evaluation.get("server") if isinstance(evaluation, dict) else None
    if isinstance(server, dict):
        if isinstance(server.get("base_url"), list):  # as typed
            server["base_url"] = base_urls(server["base_url"])
        if isinstance(server.get("api_key_env"), str):
            know(server["api_key_env"])
    return _validated(Evaluation, settings, "")


def _read(file: Path, what: str) -> dict[str, Any]:
    try:
        raw = yaml.load(file.read_text(encoding="utf-8"), Loader)  # a SafeLoader
    except FileNotFoundError:
        raise UserError(f"{what} {file} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {file} can't be read: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date like 2024-13-45
        raise UserError(f"{what} {file} is not YAML: {message_of(error)}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{what} {file} must be a mapping of settings, see the README")
    return raw


def _validated(kind: type[P], settings: Any, where: str) -> P:
    try:
        found = kind.model_validate(settings)
    except ValidationError as error:
        text = describe(error, kind)
        raise UserError(f"{where}: {text}" if where else text) from None
    refuse_secrets(settings)
    return found


def describe(
    error: ValidationError, root: type[BaseModel] = Experiment, but: Collection[str] = ()
) -> str:
    """The first problem of a validation error as `setting 'a.b' is VALUE: what to do`.

    but: kinds of problems, as pydantic calls them, that are none here; empty where no other is.
    """
    found = [p for p in error.errors(include_url=False) if p["type"] not in but]
    if not found:
        return ""
    problems = _likely(found)
    first, wheres = problems[0], [_where(problem["loc"], root) for problem in problems]
    where = wheres[0]
    # A setting of two types (a number or 'auto') has a problem with each of them.
    same = [p["msg"] for p, w in zip(problems, wheres, strict=True) if w == where]
    message = " or ".join(text.removeprefix("Value error, ") for text in dict.fromkeys(same))
    others = len(set(wheres)) - 1
    more = f" (and {others} more)" if others else ""
    if first["type"] == "extra_forbidden":
        return f"unknown setting '{where}'{_nearest(where, root)}{more}"
    if first["type"] == "missing":
        return f"setting '{where}' is missing{more}"
    if first["type"] == "value_error":
        return f"setting '{where}': {message}{more}" if where else f"{message}{more}"
    if first["type"] == "model_type":
        names = ", ".join(getattr(_part(where.split("."), root), "model_fields", {}))
        message = f"give a group of settings ({names})"
    value = repr(first["input"])
    value = value if len(value) <= 80 else value[:77] + "..."
    return f"setting '{where}' is {value}: {message}{more}"


def _likely(problems: Sequence[Any]) -> Sequence[Any]:
    """Without the problems of the other type, where a setting is a list or a group."""
    kinds: dict[str, type] = {"list_type": dict, "model_type": list}
    kept = [p for p in problems if not isinstance(p["input"], kinds.get(p["type"], ()))]
    return kept or problems


def _where(loc: tuple[int | str, ...], root: type[BaseModel]) -> str:
    """The setting's name from pydantic's location, without its tags for unions and validators."""
    part: Any = root
    names: list[str] = []
    for name in loc:
        if isinstance(name, str) and ("[" in name or name == getattr(part, "__name__", None)):
            continue  # which of a union's types was tried
        if part is not None:
            names.append(str(name))
            part = _part(names, root)
        elif isinstance(name, int):
            names.append(str(name))
    return ".".join(names)


def _part(names: Sequence[str], root: type[BaseModel]) -> Any:
    """The model that the setting holds (or can hold), None if it holds none."""
    part: Any = root
    many = False  # a list or mapping of models: the next name only says which
    for name in names:
        if many:
            many = False
            continue
        field = part.model_fields.get(name) if part else None
        types = list(_nested(field.annotation)) if field else []
        models = [t for t in types if isinstance(t, type) and issubclass(t, BaseModel)]
        part = models[0] if models else None
        many = part is not None and get_origin(types[0]) in (list, dict)
    return part


def _nested(annotation: Any) -> Iterator[Any]:
    """A type, and all that it consists of."""
    yield annotation
    for inner in get_args(annotation):
        yield from _nested(inner)


def _nearest(where: str, root: type[BaseModel]) -> str:
    """A suggestion for a misspelt setting, or the empty string."""
    from difflib import get_close_matches

    *parents, last = where.split(".")
    names = list(getattr(_part(parents, root), "model_fields", {}))
    close = get_close_matches(last, names, n=1)
    if close:
        return f": did you mean '{close[0]}'?"
    return f": known are {', '.join(names)}" if names else ""


def expand(value: Any, where: str = "", lenient: bool = False) -> Any:
    """Replace ${NAME} in all strings of a nested value by environment variables.

    Args:
        where: the setting's name, for messages.
        lenient: leave a variable that isn't set as it stands.

    Raises:
        UserError: a variable isn't set.
    """
    if isinstance(value, dict):
        return {
            k: expand(v, f"{where}.{k}" if where else str(k), lenient) for k, v in value.items()
        }
    if isinstance(value, list):
        return [expand(v, f"{where}[{i}]", lenient) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ and not lenient:
            raise UserError(f"setting '{where}' needs the environment variable {name}: set it")
        return os.environ.get(name, match.group(0))

    return VARIABLE.sub(replace, value)


def _locate(settings: P, folder: Path) -> P:
    """Make relative paths that exist beside the settings' file absolute."""

    def walk(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {k: walk(v, f"{key}.{k}" if key == "inputs" else k) for k, v in value.items()}
        if key in (*_PATHS, "storage") and isinstance(value, str):
            refuse_unfilled(value, f"setting '{key}'")
        if key == "deepspeed" and not str(value).endswith(".json"):
            return value
        if key == "also" and isinstance(value, list):
            return [_older_path(one, walk) for one in value]
        if isinstance(value, list):  # inputs, and the lists of them that are searched
            return [walk(one, key) for one in value] if key == "inputs" else value
        if key in _PATHS and isinstance(value, str) and value and "://" not in value:
            for candidate in (folder / value, Path(value).expanduser()):
                if os.path.exists(candidate):  # unlike Path.exists: False for any odd string
                    return str(candidate.resolve())
        return value

    return type(settings).model_validate(walk(settings.model_dump(), ""))


def _older_path(text: str, walk: Callable[[str, str], Any]) -> str:
    """PATH or NAME=PATH, the path found as other paths are."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name:
        return str(walk(text, "release"))
    return f"{name}={walk(path, 'release')}"
