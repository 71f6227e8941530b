"""What the page shows, as words and rows; the template only lays it out.

Everything foreign in it is left as it is: the template escapes all.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from muscle.report import view
from muscle.report.charts import Dot, DotPlot, Picture, draw
from muscle.report.page import flat
from muscle.report.text import NOTHING, number, p_value, percent
from muscle.types import VERSIONS

MANY = 4
"""Tasks up to which all of them stand open on the page."""
WORDS = {"pass": ("✔", "Pass"), "fail": ("✖", "Fail"), "not enough evidence": ("?", "Not enough evidence")}
LIMITS = {
    "max_nfr": "NFR at most",
    "max_excess_nfr": "NFR beyond the noise floor at most",
    "max_relative_nfr": "relative NFR at most",
    "min_gain": "change of score at least",
    "must_keep": "examples that may not flip",
}


class Figure(NamedTuple):
    """A number and its interval, shown apart so that columns line up; `sort` orders rows."""

    value: str
    interval: str = ""
    note: str = ""
    sort: float | None = None


BLANK = Figure("")
DASH = Figure(NOTHING)


def figure(
    value: float | None,
    bounds: list[float] | None = None,
    *,
    in_percent: bool = True,
    signed: bool = False,
) -> Figure:
    """A fraction as percent (or a plain number) with its interval."""
    if value is None:
        return DASH
    show, digits = (percent, 2) if in_percent else (number, 3)
    interval = ""
    if bounds is not None:
        low, high = (show(b, digits, signed) for b in bounds)
        interval = f"{low} to {high}"
    return Figure(show(value, digits, signed), interval, "", value)


def page_view(report: Mapping[str, Any], gate: Mapping[str, Any] | None) -> dict[str, Any]:
    """Everything above, between and below the flip browser."""
    tasks = [_task(i, name, task) for i, (name, task) in enumerate(sorted(report["tasks"].items()))]
    provenance = report["provenance"]
    return {
        "verdict": verdict_view(report, gate),
        "tasks": tasks,
        "open": len(tasks) <= MANY,
        "overview": _overview(report),
        "charts": charts(report),
        "changes": any("compat" in t["versions"] for t in report["tasks"].values()),
        "groups": [_group(name, group) for name, group in report.get("groups", {}).items()],
        "command": provenance.get("command"),
        "provenance": [row for row in flat(provenance) if row[0] != "command"],
        "schema": report["schema"],
        "text": report.get("text", "page"),
    }


# The verdict


def verdict_view(report: Mapping[str, Any], gate: Mapping[str, Any] | None) -> dict[str, Any]:
    """The gate's verdict, or that no limit was set."""
    readings = [(name, view.reading(task)) for name, task in sorted(report["tasks"].items())]
    if gate is None:
        return {"kind": "none", "symbol": "○", "word": "No limit was set", "readings": readings}
    symbol, word = WORDS[gate["verdict"]]
    order = {"fail": 0, "not enough evidence": 1, "pass": 2}
    checks = sorted(gate.get("checks", []), key=lambda c: order[c["verdict"]])
    return {
        "kind": gate["verdict"].replace(" ", "-"),
        "symbol": symbol,
        "word": word,
        "reason": gate["reason"],
        "readings": readings,
        "pair": view.arrow(gate.get("pair") or ""),
        "checks": [_check(report, check) for check in checks],
        "must_keep": gate.get("must_keep"),
        "waivers": gate.get("waivers") or [],
    }


def _check(report: Mapping[str, Any], check: Mapping[str, Any]) -> dict[str, Any]:
    task = report["tasks"].get(check["task"])
    points = check["limit"] != "max_relative_nfr" and not (
        check["limit"] == "min_gain" and task is not None and not view.in_percent(task)
    )
    signed = check["limit"] in ("min_gain", "max_excess_nfr")

    def show(value: float | None) -> str:
        text = (percent if points else number)(value, 2 if points else 3, signed)
        return text if value is None or not points else f"{text} %"

    symbol, word = WORDS[check["verdict"]]
    part = check.get("slice")
    return {
        "kind": check["verdict"].replace(" ", "-"),
        "symbol": symbol,
        "word": word,
        "task": check["task"],
        "slice": f"{part['column']} = {part['value']}" if part else "",
        "limit": LIMITS.get(check["limit"], check["limit"]),
        "delta": show(check["delta"]) if isinstance(check["delta"], int | float) else "",
        "value": show(check["value"]),
        "bounds": f"{show(check['lower'])} to {show(check['upper'])}",
        "n": check["n"],
        "needed": check.get("needed_n"),
        "text": check.get("text") or "",
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
        "notes": [_note(note) for note in task.get("comparability") or []],
        "excluded": excluded_lines(block),
        "measures": view.rate_rows(block, full=True),
        "score": view.score_row(block),
        "counts": view.count_rows(block),
        "reduction": view.reduction_rows(block),
        "seeds": _seeds(block),
        "histograms": [h for p in pairs if (h := _histogram(p, block["pairs"][p]))],
        "slices": _slices(block),
        "slices_note": task.get("slices_note"),
        "replaced": [r for p in pairs if (r := _replaced(p, block["pairs"][p]))],
        "tests": _tests(block),
        "percent": view.in_percent(block),
    }


def headline(task: dict[str, Any]) -> list[tuple[str, str, list[Figure]]]:
    """The few numbers that matter: (name, explanation, a figure for each version)."""
    versions, points = view.versions(task), view.in_percent(task)
    unit = " %" if points else ""
    after = {v: task["pairs"].get(f"old->{v}") for v in versions}

    def row(key: str, in_percent: bool = True, signed: bool = False) -> list[Figure]:
        return [
            BLANK if e is None else figure(e.get(key), e["ci95"].get(key), in_percent=in_percent, signed=signed)
            for e in after.values()
        ]  # fmt: skip

    scores = [task["versions"][v] for v in versions]
    rows = [
        (f"Score{unit}", f"mean {task['metric']}",
         [figure(s["score"], s["ci95"], in_percent=points) for s in scores]),
        ("Change" + (", points" if points else ""), "score less old's", row("gain", points, True)),
        ("Negative flips, NFR %", "worse than old, of all examples", row("nfr")),
        ("Positive flips, PFR %", "better than old, of all examples", row("pfr")),
        ("Relative NFR", "1: as many as if errors had nothing to do with old's",
         row("relative_nfr", False)),
    ]  # fmt: skip
    noise = task.get("noise_floor")
    if noise:
        floor = figure(noise["nfr"], noise["ci95"]["nfr"])
        rows.append(("Noise floor, NFR %", "old against old trained again",
                     [floor, *(DASH for _ in versions[1:])]))  # fmt: skip
        found = [noise["excess"].get(f"old->{v}") for v in versions]
        beyond = [
            BLANK if e is None else figure(e["nfr"], e["ci95"]["nfr"], signed=True) for e in found
        ]
        rows.append(("Beyond the noise floor, points", "NFR less the noise floor", beyond))
    return [row for row in rows if any(f not in (BLANK, DASH) for f in row[2])]


def _tests(task: dict[str, Any]) -> list[str]:
    """The tests in words: did accuracy change, did compat change the flips."""
    said = []
    for pair in view.pairs(task):
        p = task["pairs"][pair].get("gain_p")
        if p is not None:
            said.append(f"Did accuracy change, {view.arrow(pair)}: {p_value(p)} (exact McNemar).")
    if task["reduction"] is not None and task["reduction"]["p"] is not None:
        p = task["reduction"]["p"]
        said.append(f"Does compat have another number of flips than new: {p_value(p)} (exact McNemar).")
    chance = (task.get("chance") or {}).get("score")
    if chance is not None:
        said.append(f"Guessing would score {percent(chance)} %.")
    for pair in view.pairs(task):
        entry = task["pairs"][pair]
        if entry.get("independent_nfr") is not None and entry.get("least_nfr") is not None:
            said.append(
                f"{view.arrow(pair)}: NFR would be {percent(entry['independent_nfr'])} % if errors "
                "had nothing to do with each other, and can't be less than "
                f"{percent(entry['least_nfr'])} % at these scores."
            )
    return said


def _note(note: Mapping[str, Any]) -> dict[str, Any]:
    values = [(v, str(value)) for v, value in (note.get("values") or {}).items()]
    return {"what": note["what"], "values": values, "note": note.get("note") or ""}


def excluded_lines(task: Mapping[str, Any]) -> list[str]:
    """What was left out of the numbers, and what is doubtful in them, one line each."""
    lines = []
    if task["unscored"]:
        lines.append(
            f"{task['unscored']} examples are unscored in some version and left out of every number."
        )
    if task.get("common_only"):
        lines.append(f"{task['common_only']} examples are not in all inputs and left out.")
    for version, found in (task.get("excluded") or {}).items():
        if found["unscored"]:
            reasons = "; ".join(f"{k} × {reason}" for reason, k in found["reasons"].items())
            lines.append(f"{version}: {found['unscored']} unscored" + (f" ({reasons})" if reasons else ""))
        cut = {what: k for what, k in (found.get("truncated") or {}).items() if k}
        if cut:
            parts = ", ".join(f"{what} {k}" for what, k in cut.items())
            lines.append(f"{version}: did not fit and was cut, but scored: {parts}")
    ties = task.get("near_ties")
    if ties and any(ties["versions"].values()):
        counts = ", ".join(f"{v} {k}" for v, k in ties["versions"].items())
        lines.append(
            "Near ties, decided by less than numeric noise "
            f"(a relative gap below {ties['tolerance']:g}): {counts}."
        )
        lines += [
            f"{view.arrow(p)}: {e['negative']} of the negative flips are near ties"
            + (f"; NFR without them {percent(e['nfr_without'])} %." if e.get("nfr_without") is not None else ".")
            for p, e in ties["pairs"].items()
            if e["negative"]
        ]  # fmt: skip
    return lines


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
        cells = [DASH if s is None else figure(s["score"], s["ci95"], in_percent=points) for s in scores]
        cells += [DASH if e is None else figure(e["nfr"], e["ci95"]["nfr"]) for e in found]
        cells += [
            DASH if e is None else figure(e["relative_nfr"], e["ci95"]["relative_nfr"], in_percent=False)
            for e in found
        ]  # fmt: skip
        rows.append({"index": i, "name": name, "metric": task["metric"], "n": task["n"], "cells": cells})
    columns = [f"score, {v}" for v in versions]
    columns += [f"NFR %, {view.arrow(p)}" for p in pairs]
    columns += [f"relative NFR, {view.arrow(p)}" for p in pairs]
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


# A closer look


def _histogram(pair: str, entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Bars of D(x) in a box of 100 by 40, for a drawing that stretches to any width."""
    found = entry.get("histogram")
    if not found or not any(found["counts"]):
        return None
    edges, counts = found["edges"], found["counts"]
    low, span = edges[0], (edges[-1] - edges[0]) or 1.0
    most = max(counts)
    bars = []
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        middle = (left + right) / 2
        kind = "equal" if left < 0 < right else "negative" if middle < 0 else "positive"
        place, width = 100 * (left - low) / span, 100 * (right - left) / span
        height = 40 * count / most
        bars.append(
            {
                "kind": kind,
                "x": round(place, 3),
                "width": round(0.92 * width, 3),
                "y": round(40 - height, 3),
                "height": round(height, 3),
                "text": f"{number(left)} to {number(right, 3)}: {count}",
            }
        )
    zero = 100 * (0 - low) / span
    return {
        "pair": view.arrow(pair),
        "bars": bars,
        "zero": round(zero, 3) if 0 <= zero <= 100 else None,
        "low": number(low, 2),
        "high": number(edges[-1], 2),
        "most": most,
        "negative": entry.get("negative"),
        "positive": entry.get("positive"),
    }


def _slices(task: dict[str, Any]) -> list[dict[str, Any]]:
    versions, points = view.versions(task), view.in_percent(task)
    pairs = [p for p in view.PAIRS[:2] if p in task["pairs"]]
    rows = []
    for part in task.get("slices") or []:
        cells = []
        for v in versions:
            cells.append(figure((part["versions"].get(v) or {}).get("score"), in_percent=points))
        for pair in pairs:
            entry = part["pairs"].get(pair)
            if entry is None:
                cells += [DASH, DASH]
                continue
            cells.append(figure(entry["nfr"], entry["ci95"]["nfr"]))
            holm = entry.get("p_holm")
            shown = p_value(holm).removeprefix("p = ").removeprefix("p ")
            cells.append(Figure(shown, "", "significant" if holm is not None and holm < 0.05 else "", holm))
        rows.append(
            {
                "column": part["column"],
                "value": str(part["value"]),
                "n": part["n"],
                "small": part.get("small", False),
                "cells": cells,
            }
        )
    return rows


def slice_columns(task: Mapping[str, Any]) -> list[str]:
    """The heads of the slices' table."""
    pairs = [view.arrow(p) for p in view.PAIRS[:2] if p in task["pairs"]]
    columns = [f"score, {v}" for v in VERSIONS if v in task["versions"]]
    for pair in pairs:
        columns += [f"NFR %, {pair}", f"p (Holm), {pair}"]
    return columns


def _replaced(pair: str, entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Which answer took which one's place, as a table with shades."""
    found = entry.get("replaced")
    if not found or not any(map(any, found["negative"])):
        return None

    def rows(counts: list[list[int]]) -> list[tuple[str, list[tuple[int, int]]]]:
        most = max((max(row) for row in counts), default=0) or 1
        return [
            (label, [(c, 0 if c == 0 else 1 + min(4, int(4 * c / most))) for c in row])
            for label, row in zip(labels, counts, strict=True)
        ]

    labels = [str(label) for label in found["labels"]]
    return {
        "pair": view.arrow(pair),
        "after": pair.split("->")[1],
        "labels": labels,
        "by": found["by"],
        "negative": rows(found["negative"]),
        "both_wrong": rows(found["both_wrong"]) if any(map(any, found["both_wrong"])) else None,
    }


def _group(name: str, group: Mapping[str, Any]) -> dict[str, Any]:
    pairs = [p for p in view.PAIRS if p in group["pairs"]]
    points = all(
        v["score"] is None or 0 <= v["score"] <= 1 for v in group["versions"].values()
    )
    return {
        "name": name,
        "tasks": group["tasks"],
        "n": group["n"],
        "note": group.get("note") or "",
        "versions": [
            (v, figure(e["score"], e.get("ci95"), in_percent=points))
            for v, e in group["versions"].items()
        ],
        "pairs": [
            (view.arrow(p), figure(group["pairs"][p].get("nfr"), (group["pairs"][p].get("ci95") or {}).get("nfr")))
            for p in pairs
        ],
    }
