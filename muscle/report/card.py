"""The model card of a compatibility adapter: README.md in its folder, as the hub reads it."""

from collections.abc import Mapping
from typing import Any

from muscle.report.page import environment, flat, task_view

TEMPLATE = "adapter.md.j2"


def adapter_card(report: dict[str, Any], task: str, seed: int, examples: Mapping[str, int]) -> str:
    """A card with scores, flips, data and settings; all foreign text in it is escaped.

    Args:
        report: what `build_report` returned for the whole run.
        task: its name in the report.
        seed: of this adapter; with several, the card shows that seed's own numbers.
        examples: how many were trained and validated on.
    """
    experiment = report["provenance"]["experiment"]
    whole = report["tasks"][task]
    block = whole["by_seed"][str(seed)] if len(whole["by_seed"]) > 1 else whole
    shown = task_view(task, {**whole, **block})
    facts = {
        "seed": seed,
        **{f"{split} examples": n for split, n in examples.items()},
        "fingerprints": {
            name: model["fingerprint"] for name, model in report["provenance"]["models"].items()
        },
        **{
            part: experiment[part]
            for part in ("task", "old", "new", "adapter", "training", "compatibility")
        },
        "muscle": report["provenance"]["muscle"],
        "libraries": report["provenance"]["libraries"],
    }
    return (
        environment()
        .get_template(TEMPLATE)
        .render(
            base=experiment["new"]["model"],
            whole_answers=experiment["compatibility"].get("level") == "choice",
            old=experiment["old"]["model"],
            name=experiment["name"],
            task=shown,
            facts=[(key, value) for key, value in flat(facts) if value != "null"],
        )
    )
