"""A closer look as rows: histograms of D(x), slices, which answer replaced which, groups."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from muscle.report import view
from muscle.report.text import NOTHING, number, p_value, percent
from muscle.types import VERSIONS


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


def histogram_view(pair: str, entry: Mapping[str, Any]) -> dict[str, Any] | None:
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


def slice_rows(task: dict[str, Any]) -> list[dict[str, Any]]:
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
            cells.append(
                Figure(shown, "", "significant" if holm is not None and holm < 0.05 else "", holm)
            )
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
    columns: list[tuple[str, str]] = [("score", v) for v in VERSIONS if v in task["versions"]]
    for pair in pairs:
        columns += [("NFR %", pair), ("p, Holm", pair)]
    return columns


def replaced_view(pair: str, entry: Mapping[str, Any]) -> dict[str, Any] | None:
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
        "before": pair.split("->")[0],
        "after": pair.split("->")[1],
        "labels": labels,
        "by": found["by"],
        "negative": rows(found["negative"]),
        "both_wrong": rows(found["both_wrong"]) if any(map(any, found["both_wrong"])) else None,
    }


def group_view(name: str, group: Mapping[str, Any]) -> dict[str, Any]:
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
