"""A report without the examples' texts, for private data (`--text none`)."""

from collections.abc import Mapping
from typing import Any

from muscle.metrics.comparable import INSTRUCTION, SHOWN, UNKNOWN, short_hash
from muscle.metrics.slice_columns import GOLD_POSITION

LENGTHS = ("answer length", GOLD_POSITION)
"""Slices that show nothing of a text but its length and place."""

LEFT_OUT = "the reason is left out with the texts"


def slices_without_texts(named: tuple[str, ...] | None) -> tuple[str, ...]:
    """What to slice by: columns of the data only where they were named."""
    return LENGTHS if named is None else named


def without_instructions(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report with short hashes for the system instructions that it speaks of.

    For the Markdown, whose readers may be others than the page's.
    """

    def hidden(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        return {
            key: short_hash(value)
            if key == INSTRUCTION and value and isinstance(value, str)
            else hidden(value)
            for key, value in node.items()
        }

    tasks = {name: _hashed_notes(task) for name, task in report["tasks"].items()}
    return {**report, "provenance": hidden(report["provenance"]), "tasks": tasks}


def _hashed_notes(block: Mapping[str, Any]) -> dict[str, Any]:
    """A task's block, or an older release's in it."""
    found = {**block, "comparability": [_hashed(n) for n in block.get("comparability") or []]}
    if block.get("also"):
        found["also"] = {label: _hashed_notes(older) for label, older in block["also"].items()}
    return found


def _hashed(note: Mapping[str, Any]) -> dict[str, Any]:
    if note["what"] != SHOWN[INSTRUCTION]:
        return dict(note)
    values = {
        version: text if text in (UNKNOWN, "none") else short_hash(text)
        for version, text in note["values"].items()
    }
    return {**note, "values": values}


def without_texts(block: dict[str, Any]) -> dict[str, Any]:
    """A task's block with choices called by their position and reasons only counted.

    A reason may quote what could not be scored.
    """
    for part in (block, *block["by_seed"].values()):
        for pair in part["pairs"].values():
            table = pair["replaced"]
            if table is not None:
                labels = [str(k + 1) for k in range(len(table["labels"]))]
                pair["replaced"] = {**table, "labels": labels, "by": "position"}
    for entry in block["excluded"].values():
        unscored = sum(entry["reasons"].values())
        entry["reasons"] = {LEFT_OUT: unscored} if unscored else {}
    return block
