"""A report without the examples' texts, for private data (`--text none`)."""

from typing import Any

from muscle.metrics.slice_columns import GOLD_POSITION

LENGTHS = ("answer length", GOLD_POSITION)
"""Slices that show nothing of a text but its length and place."""

LEFT_OUT = "the reason is left out with the texts"


def slices_without_texts(named: tuple[str, ...] | None) -> tuple[str, ...]:
    """What to slice by: columns of the data only where they were named."""
    return LENGTHS if named is None else named


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
