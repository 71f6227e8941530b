"""A strict check of a Kubernetes object against the OpenAPI schema of its custom resource.

JSON Schema accepts properties it doesn't know, and so does `kubectl apply` where validation is
off: a misspelt field would be dropped without a word. Here it is an error, except below
`x-kubernetes-preserve-unknown-fields`.
"""

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


@cache
def schema(resource: str) -> dict[str, Any]:
    """The schema of `rayclusters` or `rayjobs`: MUSCLE_SCHEMAS, else `schemas/` beside us."""
    places = [os.environ.get("MUSCLE_SCHEMAS"), ROOT.parent / "schemas"]
    places += [folder / "shared" / "schemas" for folder in (ROOT, ROOT.parent)]
    for place in places:
        file = Path(place or "") / f"{resource}.v1.json"
        if place and file.is_file():
            return json.loads(file.read_text("utf-8"))
    pytest.skip(
        f"no {resource}.v1.json: KubeRay's schemas stand beside the checkout in schemas/, or "
        "where MUSCLE_SCHEMAS says"
    )


def faults(value: Any, schema: dict[str, Any], where: str = "") -> list[str]:
    """What the schema does not allow, each with its path; empty for a valid object."""
    if value is None:
        return [] if schema.get("nullable") else [f"{where}: null"]
    if schema.get("x-kubernetes-int-or-string"):
        right = isinstance(value, int | str) and not isinstance(value, bool)
    else:
        kind = TYPES.get(schema.get("type", ""), object)
        right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not right:
        return [f"{where}: {value!r} is no {schema.get('type', 'integer or string')}"]
    found = [f"{where}: {reason}" for reason in _bounds(value, schema)]
    if isinstance(value, dict):
        found += _members(value, schema, where)
    elif isinstance(value, list):
        for position, item in enumerate(value):
            found += faults(item, schema["items"], f"{where}[{position}]")
    return found


def _bounds(value: Any, schema: dict[str, Any]) -> list[str]:
    """Enumerations, patterns, lengths and ranges of one value."""
    wrong = {
        f"{value!r} is none of {schema.get('enum')}": "enum" in schema
        and value not in schema["enum"],
        f"{value!r} is not like {schema.get('pattern')}": "pattern" in schema
        and not re.search(schema["pattern"], str(value)),
        f"{value!r} is below {schema.get('minimum')}": "minimum" in schema
        and value < schema["minimum"],
        "too short": hasattr(value, "__len__")
        and len(value) < schema.get("minLength", schema.get("minItems", 0)),
        "too long": isinstance(value, str) and len(value) > schema.get("maxLength", len(value)),
    }
    return [reason for reason, broken in wrong.items() if broken]


def _members(value: dict[str, Any], schema: dict[str, Any], where: str) -> list[str]:
    named, others = schema.get("properties", {}), schema.get("additionalProperties")
    free = schema.get("x-kubernetes-preserve-unknown-fields") or others is True
    found = [f"{where}: {key} is missing" for key in schema.get("required", ()) if key not in value]
    for key, item in value.items():
        place = f"{where}.{key}"
        if key in named:
            found += faults(item, named[key], place)
        elif isinstance(others, dict):
            found += faults(item, others, place)
        elif not free and where != ".metadata":  # Kubernetes' own: `type: object` and no more
            found.append(f"{place}: unknown")
    return found
