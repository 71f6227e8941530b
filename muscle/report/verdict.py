"""What stands above the numbers: the gate's verdict, what was not alike, what was left out."""

from collections.abc import Mapping
from typing import Any

from muscle.report import view
from muscle.report.text import NOTHING, number, percent

WORDS = {
    "pass": ("✔", "Pass"),
    "fail": ("✖", "Fail"),
    "not enough evidence": ("?", "Not enough evidence"),
}
NOTHING_RIGHT = "old has no right answer, so nothing can flip: is it the right filter or metric?"
NOTHING_NEW = "old and new agree on every example: are they two models?"
READINGS = 4
"""Tasks whose result is said in words at the top; of more, those with the most flips."""
LIMITS = {
    "max_nfr": "NFR at most",
    "max_excess_nfr": "NFR beyond the noise floor at most",
    "max_relative_nfr": "relative NFR at most",
    "min_gain": "change of score at least",
    "must_keep": "examples that may not flip",
}


def verdict_view(report: Mapping[str, Any], gate: Mapping[str, Any] | None) -> dict[str, Any]:
    """The gate's verdict, or that no limit was set."""
    tasks = sorted(report["tasks"].items())
    if len(tasks) > READINGS:
        tasks = sorted(tasks, key=lambda item: -_flips(item[1]))[:READINGS]
    readings = [(name, view.reading(task)) for name, task in tasks]
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


def _flips(task: Mapping[str, Any]) -> float:
    """NFR of what would ship: of compat if there is one, else of new."""
    pair = task["pairs"].get("old->compat") or task["pairs"]["old->new"]
    return float(pair["nfr"] or 0.0)


def is_stale(report: Mapping[str, Any], gate: Mapping[str, Any]) -> bool:
    """Whether a gate's numbers are not those of this report: limits judged on another one.

    A gate that names the report.json it judged has `stale` from `read_comparison`; of an
    older one the numbers are compared.
    """
    if any(check["task"] not in report["tasks"] for check in gate.get("checks") or []):
        return True
    if "report_sha256" in gate:
        return bool(gate.get("stale"))
    keys = {"max_nfr": "nfr", "max_relative_nfr": "relative_nfr", "min_gain": "gain"}
    for check in gate.get("checks") or []:
        task = report["tasks"][check["task"]]
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
    elif check.get("but"):
        more.append(check["but"])
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


def notes_view(report: Mapping[str, Any]) -> list[dict[str, Any]]:
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
            "where": ""
            if len(names) == every
            else f"{', '.join(names[:5])}"
            + (f" and {len(names) - 5} more tasks" if len(names) > 5 else ""),
        }
        for (what, values, note), names in found.items()
    ]


def engine_line(report: Mapping[str, Any]) -> str | None:
    """Who answered, where that is known to be one engine; others stand in `notes_view`."""
    provenance = report["provenance"]
    if isinstance(provenance.get("experiment"), Mapping):
        sides = [provenance["experiment"].get("evaluation")]
    else:
        versions = provenance.get("inputs")
        tasks = versions.values() if isinstance(versions, Mapping) else ()
        sides = [side for found in tasks if isinstance(found, Mapping) for side in found.values()]
    named = {side.get("backend") if isinstance(side, Mapping) else None for side in sides}
    engine = named.pop() if len(named) == 1 else None
    return engine if isinstance(engine, str) else None


def nothing_right(task: Mapping[str, Any]) -> bool:
    """Whether old has no right answer, so that no flip could be seen."""
    return bool(task["n"] and not task.get("continuous") and task["versions"]["old"]["score"] == 0)


def nothing_new(task: Mapping[str, Any]) -> bool:
    """Whether new answers every example as old does, as far as that is known.

    Mostly one model, or one file, was given twice: a gate would let it pass.
    """
    pair = task["pairs"]["old->new"]
    changed = (pair["nfr"], pair["pfr"], pair["nfr_mc"] or 0)
    return bool(task["n"] and not any(changed))


def doubts(task: Mapping[str, Any]) -> list[str]:
    """Why the numbers may say nothing at all, one line each."""
    lines = [NOTHING_RIGHT] if nothing_right(task) else []
    return [*lines, NOTHING_NEW] if nothing_new(task) else lines


def excluded_lines(task: Mapping[str, Any]) -> list[str]:
    """What was left out of the numbers, and what is doubtful in them, one line each."""
    lines = []
    if task["unscored"]:
        lines.append(
            f"{_examples(task['unscored'])} unscored in some version and left out of all numbers."
        )
    if task.get("common_only"):
        lines.append(f"{_examples(task['common_only'])} not in all inputs and left out.")
    lines += [text[0].upper() + text[1:] for text in doubts(task)]
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
        f"Cut because it did not fit, and scored all the same ({what}): {', '.join(counts)}."
        for what, counts in cut.items()
    ]
    return lines + _tie_lines(task.get("near_ties"))


def _examples(n: int) -> str:
    return "1 example is" if n == 1 else f"{n} examples are"


def _named(version: str) -> str:
    return "old trained again" if version == "again" else version


def _tie_lines(ties: Mapping[str, Any] | None) -> list[str]:
    if not ties or not any(ties["versions"].values()):
        return []
    counts = ", ".join(f"{_named(v)} {k}" for v, k in ties["versions"].items() if k is not None)
    flips = "; ".join(
        f"{view.arrow(p)} {e['negative']}"
        + (
            ""
            if e["nfr_without"] is None
            else f" (NFR without near ties {percent(e['nfr_without'])} %)"
        )
        for p, e in ties["pairs"].items()
        if e["negative"]
    )
    lines = [
        "Near ties, where numeric noise may have decided "
        f"(the two best choices differ by less than {100 * ties['tolerance']:.2g} %): {counts}."
    ]
    lines += [f"Negative flips among them: {flips}."] if flips else []
    return lines + ([f"Near ties: {ties['note']}."] if ties.get("note") else [])
