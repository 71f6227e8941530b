"""`--set a.b=value` on settings as they stand in a YAML file."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from muscle.errors import UserError

FLEET = "adapters"
"""The setting by which a file is a fleet's (`muscle.fleet`), not one experiment's."""

SHORT = {"task": "name", "old": "adapter", "new": "adapter"}
"""What a plain text stands for in an entry of a fleet; at the top only `task` may be one."""


class Loader(yaml.SafeLoader):
    """YAML without its silent trap: of a key given twice, the first would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if key != "<<" and keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key}' is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in a nested mapping; the value is parsed as YAML. In a fleet,
    `adapters.NAME.a.b` is a setting of the entry of that name; `a.0.b` is one of a list's first
    item.

    Raises:
        UserError: it isn't written so, or names no group of settings, no item and no entry.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r}: write it as key.sub=value")
    try:
        # A Jinja template is text, though to YAML its braces are a mapping.
        template = "{{" in text and text[:1] not in {'"', "'"}
        value = text if template else yaml.load(text, Loader) if text else None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--set {key}: the value is not YAML: {message_of(error)}") from None
    node, names, short = raw, key.split("."), {"task": "name"}
    if names[0] == FLEET and len(names) > 1 and isinstance(raw.get(FLEET), list):
        node, names = find_entry(raw[FLEET], key)
        short = SHORT
    *parents, last = names
    group: Any = node
    for name in parents:
        group = _group(group, name, key, short)
    if isinstance(group, list):
        last = _place(group, last, key)
    group[last] = value


def _group(group: Any, name: str, key: str, short: Mapping[str, str]) -> Any:
    """The group of settings, or the list, of a name in a group; made where there is none."""
    if isinstance(group, list):
        place: Any = _place(group, name, key)
        child = group[place]
    else:
        place, child = name, group.get(name)
        child = {} if child is None else child
    if name in short and isinstance(child, str):
        child = {short[name]: child}
    if not isinstance(child, dict | list):
        raise UserError(f"--set {key}: '{name}' is not a group of settings")
    group[place] = child
    return child


def _place(items: list[Any], name: str, key: str) -> Any:
    """Which item of a list a name is."""
    if name.isdecimal() and int(name) < len(items):
        return int(name)
    raise UserError(
        f"--set {key}: '{name}' is no item of a list of {len(items)}: they are numbered from 0"
    )


def find_entry(entries: list[Any], key: str) -> tuple[dict[str, Any], list[str]]:
    """The entry of a fleet that `adapters.NAME.a.b` is about, and the names a, b.

    Raises:
        UserError: there is none of that name.
    """
    rest = key.removeprefix(f"{FLEET}.")
    known = {str(one["name"]): one for one in entries if isinstance(one, dict) and "name" in one}
    # A name may hold dots itself.
    fits = [name for name in known if rest.startswith(f"{name}.")]
    if not fits:
        raise UserError(
            f"--set {key}: no adapter of the fleet is called so: write {FLEET}.NAME.setting, with "
            f"one of {', '.join(known) or 'the names in the file'}"
        )
    name = max(fits, key=len)
    return known[name], rest.removeprefix(f"{name}.").split(".")


def message_of(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())


def base_urls(given: Sequence[str]) -> str | dict[str, str] | None:
    """The value of `evaluation.server.base_url`: one URL, or NAME=URL for each model's name.

    Raises:
        UserError: both kinds, or several servers without names.
    """
    if not given:
        return None
    named = [re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.*)", text, re.DOTALL) for text in given]
    if len(given) == 1 and named[0] is None:
        return given[0]
    found: dict[str, str] = {}
    for text, match in zip(given, named, strict=True):
        if match is None:
            raise UserError(
                f"--base-url {text!r}: with several servers write each as NAME=URL, where NAME is "
                "that of a --model"
            )
        if match[1] in found:
            raise UserError(f"--base-url: the name '{match[1]}' is given twice")
        found[match[1]] = match[2]
    return found
