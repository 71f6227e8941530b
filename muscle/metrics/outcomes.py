"""Answers by outcome: what a task's scorer says of them, counted."""

from typing import Any

import pyarrow.compute as pc

from muscle.metrics.pairing import JoinedTask

MOST = 12
"""Outcomes that are counted by name; a scorer of the user's own may give any number of them."""

OTHERS = "other reasons"
KNOWN = (
    "right",
    "another text",
    "another label",
    "not a label",
    "other fields",
    "no JSON object",
    "invalid JSON",
    "the scorer failed",
)
"""Outcomes of our own scorers: none of them quotes an example."""


def outcome_of(reason: str) -> str:
    """What of a reason is counted: its part before the first colon."""
    return reason.partition(":")[0]


def outcome_block(task: JoinedTask, hidden: bool = False) -> dict[str, dict[str, int]] | None:
    """version -> outcome -> answers, of all examples and seeds, the commonest first over all
    versions; None where no answer has a reason.

    Args:
        hidden: name no outcome that may quote an example.
    """
    found = {version: _of_version(task, version) for version in task.names}
    totals: dict[str, int] = {}
    for counts in found.values():
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
    if not totals:
        return None
    names = [n for n in totals if n in KNOWN or not hidden]
    names.sort(key=lambda name: (-totals[name], name))
    kept = names[:MOST]
    block = {}
    for version, counts in found.items():
        block[version] = {name: counts.get(name, 0) for name in kept}
        rest = sum(counts.values()) - sum(block[version].values())
        if len(kept) < len(totals):
            block[version][OTHERS] = rest
    return block


def _of_version(task: JoinedTask, version: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for seed in task.seeds:
        reasons = task.column(seed, version, "reason", all=True)
        if reasons is None or reasons.null_count == len(reasons):
            continue
        outcomes: Any = pc.replace_substring_regex(pc.drop_null(reasons), r"(?s):.*", "")
        for item in pc.value_counts(outcomes).to_pylist():
            counts[item["values"]] = counts.get(item["values"], 0) + item["counts"]
    return counts
