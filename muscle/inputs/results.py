"""What lm-evaluation-harness says of a run in the `results_TIME.json` beside its sample logs."""

import re
from collections.abc import Mapping
from typing import Any

from muscle.inputs.source import Source, entries
from muscle.storage import join, read_json

Results = Mapping[str, Any]


def read_results(source: Source) -> tuple[Results, str | None]:
    """(content, path) of the results file of the same moment; ({}, None) without one."""
    folder, _, name = source.path.rpartition("/")
    if not source.stamp:
        return {}, None
    for other in entries(folder or ".")[0]:
        if other != name and other.endswith(f"_{source.stamp}.json"):
            path = join(folder, other) if folder else other
            found = read_json(path)
            if isinstance(found, dict) and isinstance(found.get("versions"), dict):
                return found, path
    return {}, None


def delimiter_of(results: Results, task: str) -> str:
    """What stands between a question and each of its choices."""
    found = _part(_part(results, "configs"), task).get("target_delimiter")
    return found if isinstance(found, str) else " "


def higher_is_better(results: Results, task: str) -> dict[str, bool]:
    """Of the task's metrics, where it is known."""
    found = _part(_part(results, "higher_is_better"), task)
    return {name: better for name, better in found.items() if isinstance(better, bool)}


def about_log(results: Results, task: str) -> dict[str, Any]:
    """The keys of `Side.about`, as far as the results file says them."""
    if not results:
        return {"backend": "lm-evaluation-harness"}
    config = _part(results, "config")
    source = results.get("model_source")
    found: dict[str, Any] = {
        "task_version": _text(_part(results, "versions").get(task)),
        "num_fewshot": _part(results, "n-shot").get(task),
        "dtype": _dtype(config),
        "backend": "lm-evaluation-harness" + (f" ({source})" if isinstance(source, str) else ""),
        "model": _text(results.get("model_name")),
        "base": _text(config.get("model_sha")),
        "groups": _groups(_part(results, "group_subtasks"), task) or None,
        "software": _software(results) or None,
    }
    found = {key: value for key, value in found.items() if value not in (None, "")}
    # Here null is knowledge: no template, no limit.
    found |= {key: results[key] for key in ("max_length", "system_instruction") if key in results}
    if "chat_template" in results:
        found["chat_template"] = results.get("chat_template_sha") or results["chat_template"]
    if "fewshot_as_multiturn" in results:
        found["fewshot_as_multiturn"] = bool(results["fewshot_as_multiturn"])
    if "limit" in config:
        limit = config["limit"]
        whole = isinstance(limit, float) and limit.is_integer()
        found["limit"] = int(limit) if whole else limit
    return found


def _part(value: Any, key: str) -> Mapping[str, Any]:
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _dtype(config: Mapping[str, Any]) -> str | None:
    """As loaded, else as asked for: "auto" says nothing."""
    found = config.get("model_dtype")
    if found is None:
        arguments = config.get("model_args")
        if isinstance(arguments, str):
            match = re.search(r"(?:^|,)dtype=([^,]+)", arguments)
            found = match.group(1) if match else None
        else:
            found = _part(config, "model_args").get("dtype")
    name = str(found).removeprefix("torch.")
    return None if found is None or name == "auto" else name


def _groups(groups: Mapping[str, Any], task: str) -> list[str]:
    """The groups that a task is in, also through another group."""
    found: dict[str, None] = {}
    waiting = [task]
    while waiting:
        child = waiting.pop()
        for group, children in groups.items():
            if isinstance(children, list) and child in children and group not in found:
                if group != task:
                    found[group] = None
                    waiting.append(group)
    return sorted(found)


def _software(results: Results) -> dict[str, str]:
    found = {
        name: results.get(f"{name}_version")
        for name in ("lm_eval", "transformers")
        if isinstance(results.get(f"{name}_version"), str)
    }
    torch = re.match(r"PyTorch version: (\S+)", str(results.get("pretty_env_info", "")))
    if torch:
        found["torch"] = torch.group(1)
    return {name: str(version) for name, version in found.items()}
