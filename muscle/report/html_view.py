"""What the page shows, as words and rows; the template only lays it out.

Everything foreign in it is left as it is: the template escapes all.
"""

from collections.abc import Mapping
from typing import Any

from muscle.report import view
from muscle.report.charts import Dot, DotPlot, Picture, draw
from muscle.report.closer import (
    BLANK,
    DASH,
    Figure,
    figure,
    group_columns,
    group_view,
    histogram_view,
    replaced_view,
    slice_rows,
)
from muscle.report.older_view import older_views
from muscle.report.page import flat
from muscle.report.verdict import engine_line, excluded_lines, notes_view, verdict_view
from muscle.types import VERSIONS

MANY = 4
"""Tasks up to which all of them stand open on the page."""


def page_view(report: Mapping[str, Any], gate: Mapping[str, Any] | None) -> dict[str, Any]:
    """Everything above, between and below the flip browser."""
    tasks = [_task(i, name, task) for i, (name, task) in enumerate(sorted(report["tasks"].items()))]
    provenance = report["provenance"]
    return {
        "verdict": verdict_view(report, gate),
        "tasks": tasks,
        "notes": notes_view(report),
        "engine": engine_line(report),
        "open": len(tasks) <= MANY,
        "overview": _overview(report),
        "charts": charts(report),
        "changes": any("compat" in t["versions"] for t in report["tasks"].values()),
        "older": any(task["older"] for task in tasks),
        "groups": [group_view(name, group) for name, group in report.get("groups", {}).items()],
        "group_columns": group_columns(report),
        "command": provenance.get("command"),
        "provenance": [row for row in flat(provenance) if row[0] != "command"],
        "schema": report["schema"],
        "text": report.get("text", "page"),
    }


# A task


def _task(index: int, name: str, task: Mapping[str, Any]) -> dict[str, Any]:
    block = dict(task)
    pairs = view.pairs(block)
    return {
        "index": index,
        "name": name,
        "heading": view.heading(block),
        "reading": view.reading(block),
        "versions": view.versions(block),
        "pairs": [(p, view.arrow(p)) for p in pairs],
        "headline": headline(block),
        "unscored": task["unscored"],
        "excluded": excluded_lines(block),
        "measures": view.rate_rows(block, full=True),
        "score": view.score_row(block),
        "counts": view.count_rows(block),
        "outcomes": view.outcome_rows(block),
        "reduction": view.reduction_rows(block),
        "older": older_views(block),
        "seeds": _seeds(block),
        "histograms": [h for p in pairs if (h := histogram_view(p, block["pairs"][p]))],
        "slices": slice_rows(block),
        "slices_note": task.get("slices_note"),
        "replaced": [r for p in pairs if (r := replaced_view(p, block["pairs"][p]))],
        "tests": view.tests_in_words(block),
        "percent": view.in_percent(block),
    }


def headline(task: dict[str, Any]) -> list[tuple[str, str, list[Figure]]]:
    """The few numbers that matter: (name, explanation, a figure for each version)."""
    versions, points = view.versions(task), view.in_percent(task)
    unit = " %" if points else ""
    after = {v: task["pairs"].get(f"old->{v}") for v in versions}

    def row(key: str, in_percent: bool = True, signed: bool = False) -> list[Figure]:
        return [
            BLANK
            if e is None
            else figure(e.get(key), e["ci95"].get(key), in_percent=in_percent, signed=signed)
            for e in after.values()
        ]

    scores = [task["versions"][v] for v in versions]
    rows = [
        (f"Score{unit}", f"mean {task['metric']}",
         [figure(s["score"], s["ci95"], in_percent=points) for s in scores]),
        ("Change" + (", points" if points else ""), "against old", row("gain", points, True)),
        ("NFR %", "negative flips: worse than old", row("nfr")),
        ("PFR %", "positive flips: better than old", row("pfr")),
        ("Relative NFR", "1: errors unrelated to old's", row("relative_nfr", False)),
    ]  # fmt: skip
    noise = task.get("noise_floor")
    if noise:
        floor = figure(noise["nfr"], noise["ci95"]["nfr"])
        rows.append(
            ("Noise floor %", "NFR of old trained again", [floor, *(BLANK for _ in versions[1:])])
        )
        found = [noise["excess"].get(f"old->{v}") for v in versions]
        beyond = [
            BLANK if e is None else figure(e["nfr"], e["ci95"]["nfr"], signed=True) for e in found
        ]
        rows.append(("Beyond it, points", "NFR less the noise floor", beyond))
    return [row for row in rows if any(f not in (BLANK, DASH) for f in row[2])]


def _seeds(task: dict[str, Any]) -> list[dict[str, Any]]:
    if len(task["by_seed"]) < 2:
        return []
    return [
        {
            "seed": seed,
            "score": view.score_row(block),
            "rates": view.rate_rows(block)[:4],
            "counts": view.count_rows(block),
            "reduction": view.reduction_rows(block),
        }
        for seed, block in task["by_seed"].items()
    ]


def _overview(report: Mapping[str, Any]) -> dict[str, Any]:
    """All tasks in one table: scores, NFR, relative NFR."""
    tasks = sorted(report["tasks"].items())
    versions = [v for v in VERSIONS if any(v in t["versions"] for _, t in tasks)]
    pairs = [p for p in view.PAIRS[:2] if any(p in t["pairs"] for _, t in tasks)]
    rows = []
    for i, (name, task) in enumerate(tasks):
        points = view.in_percent(task)
        scores = [task["versions"].get(v) for v in versions]
        found = [task["pairs"].get(p) for p in pairs]
        cells = [
            DASH if s is None else figure(s["score"], s["ci95"], in_percent=points) for s in scores
        ]
        cells += [DASH if e is None else figure(e["nfr"], e["ci95"]["nfr"]) for e in found]
        cells += [
            DASH
            if e is None
            else figure(e["relative_nfr"], e["ci95"]["relative_nfr"], in_percent=False)
            for e in found
        ]
        rows.append(
            {"index": i, "name": name, "metric": task["metric"], "n": task["n"], "cells": cells}
        )
    columns: list[tuple[str, str]] = [("score", v) for v in versions]
    columns += [("NFR %", view.arrow(p)) for p in pairs]
    columns += [("relative NFR", view.arrow(p)) for p in pairs]
    return {"columns": columns, "rows": rows}


def charts(report: Mapping[str, Any]) -> list[Picture]:
    """Scores, then flips, each with 95 % intervals; scores in percent apart from others."""
    tasks = sorted(report["tasks"].items())

    def dot(series: str, entry: Mapping[str, Any], key: str, times: float) -> list[Dot]:
        bounds = entry["ci95"] if key == "score" else entry["ci95"][key]
        if entry[key] is None:
            return []
        whisker = None if bounds is None else (times * bounds[0], times * bounds[1])
        return [Dot(series, times * entry[key], whisker)]

    plots = []
    for points, unit in ((True, "score in %"), (False, "score")):
        groups = [
            (name, [d for v in view.versions(t)
                    for d in dot(v, t["versions"][v], "score", 100 if points else 1)])
            for name, t in tasks if view.in_percent(t) == points
        ]  # fmt: skip
        plots.append(DotPlot("Scores", unit, groups))
    flips = []
    for name, task in tasks:
        dots = [d for p in view.pairs(task) for d in dot(p, task["pairs"][p], "nfr", 100)]
        noise = task.get("noise_floor")
        flips.append((name, dots + (dot("noise floor", noise, "nfr", 100) if noise else [])))
    plots.append(DotPlot("Negative flips", "NFR in % of all examples", flips, from_zero=True))
    return [picture for plot in plots for picture in draw(plot)]
