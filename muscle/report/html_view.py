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
        "notes": _notes(report),
        "open": len(tasks) <= MANY,
        "overview": _overview(report),
        "charts": charts(report),
        "changes": any("compat" in t["versions"] for t in report["tasks"].values()),
        "groups": [_group(name, group) for name, group in report.get("groups", {}).items()],
        "group_columns": group_columns(report),
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
    if is_stale(report, gate):
        return {"kind": "stale", "symbol": "!", "word": "Limits to be judged again",
                "readings": readings}  # fmt: skip
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
        "notes": gate.get("notes") or [],
    }


def is_stale(report: Mapping[str, Any], gate: Mapping[str, Any]) -> bool:
    """Whether a gate's numbers are not those of this report: limits judged on another one."""
    keys = {"max_nfr": "nfr", "max_relative_nfr": "relative_nfr", "min_gain": "gain"}
    for check in gate.get("checks") or []:
        task = report["tasks"].get(check["task"])
        if task is None:
            return True
        if check.get("slice") or check["limit"] not in keys:
            continue
        unwaived = check.get("unwaived")
        judged = check["value"] if unwaived is None else unwaived
        found = task["pairs"].get(gate["pair"], {}).get(keys[check["limit"]])
        if (judged is None) != (found is None) or abs((judged or 0.0) - (found or 0.0)) > 1e-9:
            return True
    return False


def _check(report: Mapping[str, Any], check: Mapping[str, Any]) -> dict[str, Any]:
    task = report["tasks"][check["task"]]
    limit = check["limit"]
    counts = limit == "must_keep"
    points = limit != "max_relative_nfr" and not counts
    if limit == "min_gain":
        points = view.in_percent(task)
    signed = limit in ("min_gain", "max_excess_nfr")
    unit = " points" if signed else " %"

    def show(value: float | None, unit: str = unit) -> str:
        if counts:
            return NOTHING if value is None else f"{value:.0f}"
        text = (percent if points else number)(value, 2 if points else 3, signed)
        return text if value is None or not points else f"{text}{unit}"

    symbol, word = WORDS[check["verdict"]]
    part, known = check.get("slice"), check["lower"] is not None and check["upper"] is not None
    unwaived, needed = check.get("unwaived"), check.get("needed_n")
    more = []
    if unwaived is not None and unwaived != check["value"]:
        more.append(f"{show(unwaived)} with waived flips")
    if check["value"] is None:
        more.append(check.get("text") or "")
    elif check["verdict"] == "not enough evidence" and known:
        more.append(f"about n = {needed:,} would decide" if needed else "no n would decide")
    return {
        "kind": check["verdict"].replace(" ", "-"),
        "symbol": symbol,
        "word": word,
        "task": check["task"],
        "slice": f"{part['column']} = {part['value']}" if part else "",
        "limit": LIMITS.get(limit, limit) + ("" if counts else f" {show(check['delta'])}"),
        "value": show(check["value"]) + (" flipped" if counts else ""),
        "bounds": f"{show(check['lower'], '')} to {show(check['upper'])}" if known else NOTHING,
        "n": check["n"],
        "more": "; ".join(more),
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
        ("Change" + (", points" if points else ""), "against old", row("gain", points, True)),
        ("NFR %", "negative flips: worse than old", row("nfr")),
        ("PFR %", "positive flips: better than old", row("pfr")),
        ("Relative NFR", "1: errors unrelated to old's", row("relative_nfr", False)),
    ]  # fmt: skip
    noise = task.get("noise_floor")
    if noise:
        floor = figure(noise["nfr"], noise["ci95"]["nfr"])
        rows.append(("Noise floor %", "NFR of old trained again", [floor, *(BLANK for _ in versions[1:])]))
        found = [noise["excess"].get(f"old->{v}") for v in versions]
        beyond = [
            BLANK if e is None else figure(e["nfr"], e["ci95"]["nfr"], signed=True) for e in found
        ]
        rows.append(("Beyond it, points", "NFR less the noise floor", beyond))
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


def _notes(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was not alike in the inputs; said once where it holds for several tasks."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for name, task in sorted(report["tasks"].items()):
        for note in task.get("comparability") or []:
            values = tuple((v, str(value)) for v, value in (note.get("values") or {}).items())
            found.setdefault((note["what"], values, note.get("note") or ""), []).append(name)
    every = len(report["tasks"])
    return [
        {
            "what": what,
            "parts": values,
            "note": note,
            "where": "" if len(names) == every else f"{', '.join(names[:5])}"
            + (f" and {len(names) - 5} more tasks" if len(names) > 5 else ""),
        }
        for (what, values, note), names in found.items()
    ]


def excluded_lines(task: Mapping[str, Any]) -> list[str]:
    """What was left out of the numbers, and what is doubtful in them, one line each."""
    lines = []
    if task["unscored"]:
        lines.append(
            f"{task['unscored']} examples are unscored in some version and left out of every number."
        )
    if task.get("common_only"):
        lines.append(f"{task['common_only']} examples are not in all inputs and left out.")
    said: dict[str, list[str]] = {}
    cut: dict[str, list[str]] = {}
    for version, found in (task.get("excluded") or {}).items():
        for reason, k in found["reasons"].items() if found["unscored"] else ():
            said.setdefault(reason, []).append(f"{_named(version)} {k}")
        for what, k in (found.get("truncated") or {}).items():
            if k:
                cut.setdefault(what, []).append(f"{_named(version)} {k}")
    lines += [f"Unscored, {', '.join(counts)}: {reason}" for reason, counts in said.items()]
    lines += [
        f"The {what} did not fit and was cut, and yet is scored: {', '.join(counts)}."
        for what, counts in cut.items()
    ]
    return lines + _tie_lines(task.get("near_ties"))


def _named(version: str) -> str:
    return "old trained again" if version == "again" else version


def _tie_lines(ties: Mapping[str, Any] | None) -> list[str]:
    if not ties or not any(ties["versions"].values()):
        return []
    counts = ", ".join(f"{_named(v)} {k}" for v, k in ties["versions"].items() if k is not None)
    flips = "; ".join(
        f"{view.arrow(p)} {e['negative']}"
        + ("" if e["nfr_without"] is None else f" (NFR without near ties {percent(e['nfr_without'])} %)")
        for p, e in ties["pairs"].items()
        if e["negative"]
    )
    lines = [
        "Near ties, where numeric noise may have decided "
        f"(the two best choices are closer than {ties['tolerance']:.1e} of their size): {counts}."
    ]
    lines += [f"Negative flips among them: {flips}."] if flips else []
    return lines + ([f"Near ties: {ties['note']}."] if ties.get("note") else [])


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
    columns = [("score", v) for v in versions]
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


# A closer look


def _histogram(pair: str, entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Bars of D(x) in a box of 100 by 40, for a drawing that stretches to any width."""
    found = entry.get("histogram")
    if not found or not any(found["counts"]):
        return None
    edges, counts = found["edges"], found["counts"]
    low, span = edges[0], (edges[-1] - edges[0]) or 1.0
    shown = [c for c, a, b in zip(counts, edges, edges[1:], strict=False) if b - a >= span / 1000]
    most = max(shown, default=0) or 1
    bars = []
    equal = 0
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        if left < 0 < right and right - left < span / 1000:
            equal = count  # the bin of D = 0 alone has no width to show
            continue
        middle = (left + right) / 2
        kind = "negative" if middle < 0 else "positive"
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
        "equal": equal,
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


def slice_columns(task: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The heads of the slices' table: what, of which version or pair."""
    pairs = [view.arrow(p) for p in view.PAIRS[:2] if p in task["pairs"]]
    columns = [("score", v) for v in VERSIONS if v in task["versions"]]
    for pair in pairs:
        columns += [("NFR %", pair), ("p, Holm", pair)]
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
    pooled = group.get("pooled")

    def of(entry: Mapping[str, Any], key: str, bounds: list[float] | None) -> Figure:
        """The pooled number, else the mean over tasks, named as such."""
        if entry.get(key) is not None:
            return figure(entry[key], bounds)
        mean = figure(entry.get(f"mean_{key}"))
        return mean._replace(interval="mean of tasks") if mean is not DASH else DASH

    return {
        "name": name,
        "tasks": group["tasks"],
        "n": pooled["n"] if pooled else group["n"],
        "note": group.get("note") or "",
        "scores": [of(e, "score", e.get("ci95")) for e in group["versions"].values()],
        "flips": [
            of(group["pairs"][p], "nfr", (group["pairs"][p].get("ci95") or {}).get("nfr"))
            for p in view.PAIRS
            if p in group["pairs"]
        ],
    }


def group_columns(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The heads of the groups' table."""
    first = next(iter((report.get("groups") or {}).values()), None)
    if first is None:
        return []
    columns = [("score %", v) for v in first["versions"]]
    return columns + [("NFR %", view.arrow(p)) for p in view.PAIRS if p in first["pairs"]]
