"""Finds and builds tasks of lm-evaluation-harness.

The harness's `TaskManager` reads 14,000 YAML files (6 s and more). So ours are looked up
first, then a folder of the task's own name, and only then everything.
"""

import contextlib
import io
import logging
import random
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from muscle.config import TaskConfig
from muscle.errors import UserError
from muscle.tasks.files import read_rows, to_dataset

# Our names of the splits and the settings that name them in a harness YAML.
_SPLITS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}


def build_harness_task(config: TaskConfig) -> Any:
    """The `ConfigurableTask` of that name, with `data_files` and `num_fewshot` applied.

    Raises:
        UserError: unknown name, a group of tasks, unreachable data, files that don't
            fit, a task of a kind that can't be judged example by example.
    """
    name = config.name
    manager = _manager_with(name, config.include_path)
    entry = manager.task_index[name]
    _refuse_groups(manager, entry)
    _refuse_unsafe(name, entry.cfg)
    overrides = _data_overrides(config, entry) if config.data_files else {}
    # An inline group is the public way to a registered task with changed settings.
    spec = {"group": "muscle", "task": [{"task": name, **overrides}]}
    try:
        with quiet(progress=config.data_files is None):
            (task,) = manager.load(spec)["tasks"].values()
    except UserError:
        raise
    except Exception as error:
        raise _explain(config, entry, error) from error
    _refuse_kinds(name, task)
    _set_shots(task, config)
    return task


def build_harness_group(config: TaskConfig) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The tasks and groups under a group or tag, both by name, as the harness orders them.

    None if `config.name` is a single task.

    Raises:
        UserError: as `build_harness_task`; data_files, which belong to one task.
    """
    name = config.name
    manager = _manager_with(name, config.include_path)
    entry = manager.task_index[name]
    if not _is_group(entry):
        return None
    if config.data_files is not None:
        raise UserError(
            f"setting 'task.data_files': '{name}' is a group of tasks with data of their own: "
            "name one task, or leave data_files out"
        )
    leaves = _leaves(manager.task_index, name, set())
    if any(leaf not in manager.task_index for leaf in leaves):
        # A user's group may name stock tasks.
        with quiet(progress=True):
            stock = _stock_manager().task_index
        for other, found in stock.items():
            manager.task_index.setdefault(other, found)
        leaves = _leaves(manager.task_index, name, set())
    for leaf in leaves:
        if leaf not in manager.task_index:
            raise UserError(f"setting 'task.name': group '{name}' lists '{leaf}', which is no task")
        _refuse_unsafe(leaf, manager.task_index[leaf].cfg)
    try:
        with quiet(progress=True):
            loaded = manager.load(name)
    except Exception as error:
        raise _explain(config, entry, error) from error
    if not loaded["tasks"]:
        raise UserError(f"setting 'task.name': group '{name}' has no tasks")
    for leaf, task in loaded["tasks"].items():
        _refuse_kinds(leaf, task)
        _set_shots(task, config)
    return loaded["tasks"], loaded["groups"]


def _set_shots(task: Any, config: TaskConfig) -> None:
    if config.num_fewshot is not None:
        # Not the harness's own argument: a YAML's `num_fewshot: 0` would silently win.
        task.set_config("num_fewshot", config.num_fewshot)


@contextlib.contextmanager
def quiet(progress: bool = False) -> Iterator[None]:
    """Let the harness work without its log and, unless `progress`, its progress bars.

    It also compiles each Jinja template once: the harness does so anew for every row and
    field, which takes nine tenths of the time. And it seeds the generators that a task's
    own code may draw from (GPQA shuffles its choices whenever it is read), as the harness
    does: the same task has the same rows in every process.
    """
    from lm_eval.utils import env

    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    nested = "from_string" in vars(env)
    if not nested:
        env.from_string = lru_cache(maxsize=64)(env.from_string)
    try:
        with (
            contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO()),
            _seeded(),
        ):
            yield
    finally:
        log.setLevel(level)
        if not nested:
            del env.from_string


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Python's and NumPy's global generators with the harness's default seeds, then as before."""
    import numpy as np

    ours, numpys = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(1234)
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)


def _manager_with(name: str, include_path: str | None) -> Any:
    """A TaskManager that knows `name`; the user's tasks win over ours, ours over stock."""
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"setting 'task.include_path': {include_path} is not a directory")
    here = Path(__file__).parent
    folders = [here / "yaml", here.parent / "testbed" / "tasks"]
    paths = [str(p) for p in folders if p.is_dir()]
    if include_path is not None:
        paths.append(include_path)
    with quiet(progress=True):
        from lm_eval.tasks import TaskManager

        ours = TaskManager(include_path=paths, include_defaults=False)
        if name in ours.task_index:
            return ours
        import lm_eval

        folder = Path(lm_eval.__file__).parent / "tasks" / name
        if folder.is_dir():
            near = TaskManager(include_path=str(folder), include_defaults=False)
            if name in near.task_index:
                return near
        stock = _stock_manager()
    if name in stock.task_index:
        return stock
    known = [*ours.all_tasks, *stock.all_tasks]
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(close)}?" if close else "`lm-eval ls tasks` lists them"
    raise UserError(
        f"setting 'task.name': no task is called '{name}': {hint} "
        "(own files need task.prompt, own harness YAMLs task.include_path or --include-path)"
    )


@cache
def _stock_manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _is_group(entry: Any) -> bool:
    return entry.kind.name in {"GROUP", "TAG"}


def _refuse_groups(manager: Any, entry: Any) -> None:
    if not _is_group(entry):
        return
    leaves = _leaves(manager.task_index, entry.name, set())
    some = ", ".join(leaves[:4]) + (", …" if len(leaves) > 4 else "")
    raise UserError(
        f"setting 'task.name': '{entry.name}' is a group of {len(leaves)} tasks: "
        f"name one of them ({some}); whole groups are for `muscle evaluate`"
    )


def _leaves(index: dict[str, Any], name: str, seen: set[str]) -> list[str]:
    """The tasks under a group or tag, in order, each once; unknown names stand for themselves.

    Tasks and groups that a group defines itself are left out: they are in no index.
    """
    if name in seen:
        return []
    seen.add(name)
    entry = index.get(name)
    if entry is None or not _is_group(entry):
        return [name]
    if entry.kind.name == "TAG":
        return [leaf for child in sorted(entry.tags) for leaf in _leaves(index, child, seen)]
    return _members(index, (entry.cfg or {}).get("task") or [], seen)


def _members(index: dict[str, Any], listed: Any, seen: set[str]) -> list[str]:
    found = []
    for child in [listed] if isinstance(listed, str) else listed:
        if isinstance(child, str):
            found += _leaves(index, child, seen)
            continue
        name = child.get("group") or child.get("task")
        if name in index:
            found += _leaves(index, name, seen)
        elif "group" in child:
            found += _members(index, child.get("task") or [], seen)
        elif not {"dataset_path", "custom_dataset"} & child.keys():
            found.append(name)  # changes of a task that is not in this index
    return found


def _data_overrides(config: TaskConfig, entry: Any) -> dict[str, Any]:
    """Settings that make a task read local files under its own names of the splits."""
    assert config.data_files is not None
    given = config.data_files.given()
    settings = entry.cfg or {}
    if entry.kind.name == "PY_TASK":
        raise UserError(
            f"setting 'task.data_files': task '{config.name}' is written in Python and loads "
            "its own data; leave data_files out"
        )
    judged = "test" if settings.get("test_split") else "validation"
    if judged not in given:
        raise UserError(
            f"setting 'task.data_files': no '{judged}' file is given, the split on which task "
            f"'{config.name}' is evaluated"
        )
    if "test" in given and judged != "test":
        raise UserError(
            f"setting 'task.data_files': task '{config.name}' has no test split, it is "
            "evaluated on its validation split: give that and leave 'test' out"
        )
    overrides: dict[str, Any] = {}
    files: dict[str, str] = {}
    for part, setting in _SPLITS.items():
        split = settings.get(setting)
        if part == "train" and not split:
            split = "train"  # a file makes a training split where the task has none
        overrides[setting] = split if part in given else None
        if split and part in given:
            files[split] = given[part]
    return overrides | _fewshot_overrides(config, settings, files) | _loader(files)


def _fewshot_overrides(
    config: TaskConfig, settings: dict[str, Any], files: dict[str, str]
) -> dict[str, Any]:
    """Drop a few-shot split that no file holds, if no shots are asked for."""
    source = (settings.get("fewshot_config") or {}).get("split") or settings.get("fewshot_split")
    if not source or source in files:
        return {}
    shots = config.num_fewshot
    if shots is None:
        shots = settings.get("num_fewshot") or 0
    if shots:
        raise UserError(
            f"setting 'task.data_files': task '{config.name}' takes its {shots} few-shot examples "
            f"from split '{source}', for which no file is given: set task.num_fewshot to 0"
        )
    return {"fewshot_split": None, "fewshot_config": None}


def _loader(files: dict[str, str]) -> dict[str, Any]:
    def load(**_: Any) -> dict[str, Any]:
        return {
            split: to_dataset([row.fields for row in read_rows(path, "task.data_files")], path)
            for split, path in files.items()
        }

    loader: Callable[..., dict[str, Any]] = load
    return {"custom_dataset": loader, "dataset_kwargs": {}, "dataset_name": None}


def _explain(config: TaskConfig, entry: Any, error: Exception) -> UserError:
    """What a failed construction of a task means for the user."""
    name = config.name
    reason = " ".join(str(error).split())[:300]
    source = (entry.cfg or {}).get("dataset_path") or "on the hub"
    if isinstance(error, ImportError):
        return UserError(f"task '{name}' needs a Python package that is not installed: {reason}")
    if config.data_files is None and _is_about_data(error):
        mend = "" if _is_group(entry) else ", or name local copies in task.data_files"
        return UserError(
            f"task '{name}': its data set {source} can't be loaded ({reason}): check the "
            f"network{mend}"
        )
    if isinstance(error, IndexError):
        # The harness renders the first row when it builds a task.
        return UserError(
            f"task '{name}': its evaluation split is empty, or row 1 of it has empty choices"
        )
    files = (
        " (the files of task.data_files may lack fields or have nulls)" if config.data_files else ""
    )
    return UserError(f"task '{name}' can't be built{files}: {type(error).__name__}: {reason}")


def _is_about_data(error: Exception) -> bool:
    # datasets and huggingface_hub raise OSErrors (connection, missing, HTTP), a
    # RuntimeError for data sets with code, a ValueError for a missing offline cache.
    if isinstance(error, OSError):
        return True
    module = type(error).__module__
    if module.startswith(("datasets.", "huggingface_hub.")):
        return True
    return isinstance(error, RuntimeError | ValueError) and any(
        words in str(error) for words in ("scripts are no longer", "find cache", "BuilderConfig")
    )


def _refuse_unsafe(name: str, settings: dict[str, Any] | None) -> None:
    # Before the task is built: its metrics may run code even then.
    if (settings or {}).get("unsafe_code"):
        raise UserError(
            f"setting 'task.name': task '{name}' runs code that the model wrote: refused"
        )


def _refuse_kinds(name: str, task: Any) -> None:
    """Tasks that can't be asked as text, or not safely."""
    if getattr(task, "UNSAFE_CODE", False):
        _refuse_unsafe(name, {"unsafe_code": True})
    if getattr(task, "MULTIMODAL", False):
        raise UserError(
            f"setting 'task.name': task '{name}' needs images or sound: that is not supported"
        )
