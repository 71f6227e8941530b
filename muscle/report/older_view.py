"""What the page and the Markdown show of older releases: a table and a sentence for each."""

from collections.abc import Mapping
from typing import Any

from muscle.report import view
from muscle.report.text import NOTHING, percent

_RATES = tuple(m for m in view.MEASURES if m.key in ("nfr", "pfr", "relative_nfr"))
_LOST = {"before": "worse, and at old already", "now": "worse since old"}


def older_views(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry for each older release of a task's block of the report."""
    return [_view(label, block, task) for label, block in (task.get("also") or {}).items()]


def _view(label: str, block: Mapping[str, Any], task: Mapping[str, Any]) -> dict[str, Any]:
    pairs = block["pairs"]
    score = view.fit(dict(task), view.SCORE)
    entry = block["score"]
    unscored = f", {block['unscored']} unscored and left out" if block["unscored"] else ""
    return {
        "label": label,
        "heading": f"n = {block['n']}{unscored}; {label}'s {score.label}: "
        + view.cell(score, entry["score"], entry["ci95"]),
        "reading": _reading(label, block),
        "pairs": [f"{label} → {pair.partition('->')[2]}" for pair in pairs],
        "rows": [*_rate_rows(pairs), *_lost_rows(pairs)],
        "notes": [_difference(note) for note in block["comparability"]],
    }


def _difference(note: Mapping[str, Any]) -> str:
    """What wasn't alike, in one line."""
    values = ", ".join(f"{version} {text}" for version, text in note["values"].items())
    line = f"{note['what']}: {values}" if values else str(note["what"])
    return f"{line}; {note['note']}" if note["note"] else line


def _rate_rows(pairs: Mapping[str, Mapping[str, Any]]) -> list[view.Row]:
    return [
        view.Row(
            m.label,
            tuple(view.cell(m, entry[m.key], entry["ci95"][m.key]) for entry in pairs.values()),
        )
        for m in _RATES
        if any(entry[m.key] is not None for entry in pairs.values())
    ]


def _lost_rows(pairs: Mapping[str, Mapping[str, Any]]) -> list[view.Row]:
    def cell(entry: Mapping[str, Any], which: str) -> str:
        if entry["lost"] is None:
            return NOTHING
        lost = entry["lost"][which]
        return f"{percent(lost['share'])} %" if lost["count"] is None else str(lost["count"])

    worse = tuple(
        NOTHING if (n := entry["counts"]["negative"]) is None else str(n)
        for entry in pairs.values()
    )
    rows = [view.Row(view.COUNTS["negative"], worse)] if set(worse) != {NOTHING} else []
    for which, words in _LOST.items():
        rows.append(view.Row(words, tuple(cell(entry, which) for entry in pairs.values())))
    return rows


def _reading(label: str, block: Mapping[str, Any]) -> str:
    """How much is lost since, and since when."""
    if not block["n"]:
        return f"Nothing can be said: no example is scored in {label} and in all versions."
    pair = [*block["pairs"]][-1]
    last, entry = pair.partition("->")[2], block["pairs"][pair]
    before, now = (percent(entry["lost"][which]["share"]) for which in ("before", "now"))
    lost = f"were right in {label} and are wrong in {last}"
    if "equal" in entry["counts"]:  # a graded metric
        lost = f"score lower in {last} than in {label}"
    return (
        f"Of all examples, {percent(entry['nfr'])} % {lost}: {before} % since old already, {now} % "
        "by this update."
    )
