"""A task's report as rows and one sentence; the page and the console show the same."""

from typing import Any, NamedTuple

from muscle.report.text import NOTHING, number, p_value, percent
from muscle.types import VERSIONS

PAIRS = ("old->new", "old->compat", "new->compat")


class Row(NamedTuple):
    """One line of a table: a name and a cell for each column."""

    label: str
    cells: tuple[str, ...]


class Measure(NamedTuple):
    """How one number is shown: its key in the report, its name, in percent or plain.

    `bound_digits` are the decimals of the interval: one less than the value's, so that
    a table fits 80 columns, except where the sign of a bound is the news.
    """

    key: str
    label: str
    in_percent: bool = True
    bound_digits: int = 1


MEASURES = (
    Measure("nfr", "NFR %"),
    Measure("pfr", "PFR %"),
    Measure("nfr_mc", "NFR_mc %"),
    Measure("relative_nfr", "relative NFR", False, 2),
    Measure("btc", "BTC %"),
    Measure("nfi", "NFI %"),
    Measure("m_g", "m_g points"),
    Measure("m_r", "m_r points"),
)
KAPPA = Measure("kappa", "κ", False, 2)
CAPA = Measure("capa", "CAPA", False, 2)
REDUCTIONS = (
    Measure("nfr", "ΔNFR points", bound_digits=2),
    Measure("nfr_relative", "Δ% NFR"),
    Measure("relative_nfr_relative", "Δ% relative NFR"),
)
COUNTS = {
    "both_right": "both right",
    "negative": "worse (negative flips)",
    "positive": "better (positive flips)",
    "equal": "equal",
    "both_wrong_same": "both wrong, same answer",
    "both_wrong_different": "both wrong, other answer",
}


SCORE = Measure("score", "score %")
GAIN = Measure("gain", "Δscore points")
NOISE = Measure("nfr", "noise floor %")
EXCESS = Measure("nfr", "excess points")
RIGHT = ("correct", "is_correct", "right", "is_right")
"""What columns of right and wrong are called, whose mean is an accuracy."""
OF_SCORES = ("score", "gain", "m_g", "m_r")
"""Measures in the unit of the score; all others are shares of examples or ratios."""


def in_percent(block: dict[str, Any]) -> bool:
    """Whether scores read as percentages: all lie in [0, 1]. Log-likelihoods do not."""
    scores = [entry["score"] for entry in block["versions"].values()]
    return all(score is None or 0 <= score <= 1 for score in scores)


def fit(block: dict[str, Any], measure: Measure) -> Measure:
    """The measure as this task's scores ask for: plain numbers where percent means nothing."""
    if measure.key not in OF_SCORES or in_percent(block):
        return measure
    label = measure.label.removesuffix(" %").removesuffix(" points")
    return Measure(measure.key, label, False, 3)


def _value(measure: Measure, value: float | None, signed: bool = False) -> str:
    show = percent if measure.in_percent else number
    return show(value, 2 if measure.in_percent else 3, signed)


def _interval(measure: Measure, bounds: list[float] | None, signed: bool = False) -> str:
    if bounds is None:
        return ""
    show = percent if measure.in_percent else number
    low, high = (show(b, measure.bound_digits, signed) for b in bounds)
    return f"[{low}, {high}]"


def cell(
    measure: Measure, value: float | None, bounds: list[float] | None, signed: bool = False
) -> str:
    """A number and its interval, as a measure shows them."""
    return f"{_value(measure, value, signed)} {_interval(measure, bounds, signed)}".rstrip()


def versions(task: dict[str, Any]) -> list[str]:
    """The versions of this task, in the usual order."""
    return [v for v in VERSIONS if v in task["versions"]]


def pairs(task: dict[str, Any]) -> list[str]:
    """The pairs of this task, in the usual order."""
    return [p for p in PAIRS if p in task["pairs"]]


def arrow(pair: str) -> str:
    """A pair's name with a true arrow."""
    return pair.replace("->", "→")


def score_row(task: dict[str, Any]) -> Row:
    """The scores, a cell for each version."""
    entries = [task["versions"][v] for v in versions(task)]
    score = fit(task, SCORE)
    return Row(score.label, tuple(cell(score, e["score"], e["ci95"]) for e in entries))


def outcome_rows(task: dict[str, Any]) -> list[Row]:
    """Answers by what the task's scorer says of them, a cell for each version."""
    outcomes: dict[str, dict[str, int]] = task.get("outcomes") or {}
    names: dict[str, int] = next(iter(outcomes.values()), {})
    return [
        Row(name, tuple(str(outcomes[v].get(name, 0)) for v in versions(task))) for name in names
    ]


def rate_rows(task: dict[str, Any], full: bool = False) -> list[Row]:
    """The measures, a cell for each pair, and what lies beyond the noise floor if there is
    one; `full` adds error consistency, CAPA and the change of the score."""
    entries = [task["pairs"][p] for p in pairs(task)]
    rows = []
    for measure in (*MEASURES, *((KAPPA, CAPA, GAIN) if full else ())):
        m = fit(task, measure)
        if all(m.key in e for e in entries):
            signed = m.key == "gain"
            cells = tuple(cell(m, e[m.key], e["ci95"].get(m.key), signed) for e in entries)
            rows.append(Row(m.label, cells))
    return rows + noise_rows(task)


def noise_rows(task: dict[str, Any]) -> list[Row]:
    """The noise floor and what each pair has beyond it; empty without a second old."""
    noise = task.get("noise_floor")
    if not noise:
        return []
    floor = cell(NOISE, noise["nfr"], noise["ci95"]["nfr"])
    found = [noise["excess"].get(p) for p in pairs(task)]
    beyond = [
        NOTHING if e is None else cell(EXCESS, e["nfr"], e["ci95"]["nfr"], True) for e in found
    ]
    return [
        Row(NOISE.label, tuple(NOTHING if e is None else floor for e in found)),
        Row(EXCESS.label, tuple(beyond)),
    ]


def count_rows(task: dict[str, Any]) -> list[Row]:
    """The counts, a cell for each pair; empty for several seeds."""
    entries = [task["pairs"][p] for p in pairs(task)]
    rows = [
        Row(label, tuple(NOTHING if e.get(key) is None else str(e[key]) for e in entries))
        for key, label in COUNTS.items()
    ]
    return [row for row in rows if set(row.cells) != {NOTHING}]


def reduction_rows(task: dict[str, Any]) -> list[Row]:
    """What compat changes, as three cells: value, interval and, in the first row, p. With
    several seeds there is no p; below a row stands its interval over examples and seeds."""
    reduction = task["reduction"]
    if reduction is None:
        return []
    p = "" if reduction["p"] is None else p_value(reduction["p"])
    seeds = reduction.get("ci95_seeds") or {}
    rows = []
    for m in REDUCTIONS:
        shown = _interval(m, reduction["ci95"][m.key], signed=True)
        value = _value(m, reduction[m.key], signed=True)
        rows.append(Row(m.label, (value, shown, p if m.key == "nfr" else "")))
        if seeds.get(m.key):
            rows.append(Row("… over seeds too", ("", _interval(m, seeds[m.key], signed=True), "")))
    return rows


def heading(task: dict[str, Any]) -> str:
    """What the numbers rest on: metric, n, seeds, what was left out."""
    seeds = len(task["by_seed"])
    parts = [f"metric {task['metric']}", f"n = {task['n']}"]
    if seeds > 1:
        parts.append(f"mean of {seeds} seeds")
    if task["unscored"]:
        parts.append(f"{task['unscored']} unscored and left out")
    return ", ".join(parts)


def _change(task: dict[str, Any], before: str, after: str) -> str:
    """How the score changed, with its name and unit: "accuracy +0.30 points"."""
    scores = task["versions"]
    change = scores[after]["score"] - scores[before]["score"]
    if in_percent(task):
        return f"{_score_name(task)} {percent(change, 2, signed=True)} points"
    return f"{_score_name(task)} {number(change, 3, signed=True)}"


def _score_name(task: dict[str, Any]) -> str:
    metric = str(task["metric"])
    graded = task.get("continuous") or "equal" in task["pairs"]["old->new"]
    right = metric.startswith("acc") or metric.lower() in RIGHT
    return "accuracy" if right and not graded else metric


def reading(task: dict[str, Any]) -> str:
    """The result in one sentence of plain words; it claims nothing the interval doesn't."""
    if not task["n"]:
        return "Nothing can be said: no example is scored in all versions."
    before = task["pairs"]["old->new"]
    if task["reduction"] is None:
        return _reading_update(task, before)
    change = f"{_change(task, 'new', 'compat')} against new"
    reduction = task["reduction"]
    if before["nfr"] == 0 and reduction["nfr"] == 0:
        return f"New has no negative flips, so compat had nothing to remove; {change}."
    bounds = reduction["ci95"]["nfr"]
    if bounds is None:
        seen = (
            "no difference in negative flips was seen"
            if reduction["nfr"] == 0
            else (
                f"ΔNFR is {percent(reduction['nfr'], 2, signed=True)} points, without an interval"
            )
        )
        return f"No evidence that compat changes the negative flips: {seen}; {change}."
    low, high = bounds
    if low <= 0 <= high:
        return (
            "No evidence that compat changes the negative flips: ΔNFR is "
            f"{percent(reduction['nfr'], 2, signed=True)} points and its 95 % interval, "
            f"{percent(low, 2, signed=True)} to {percent(high, 2, signed=True)}, holds 0; {change}."
        )
    return _reading_change(reduction, change)


def _reading_update(task: dict[str, Any], before: dict[str, Any]) -> str:
    bounds = before["ci95"]["nfr"]
    interval = (
        ""
        if bounds is None
        else (f" (95 % interval {percent(bounds[0])} to {percent(bounds[1])} %)")
    )
    verb = "Scores fell" if "equal" in before else "Answers turned from right to wrong"
    return (
        f"{verb} on {percent(before['nfr'])} % of the examples{interval} and the other way on "
        f"{percent(before['pfr'])} %; {_change(task, 'old', 'new')}."
    )


def _reading_change(reduction: dict[str, Any], change: str) -> str:
    word = "fewer" if reduction["nfr"] < 0 else "more"
    share, bounds = reduction["nfr_relative"], reduction["ci95"]["nfr_relative"]
    if share is None or bounds is None:
        amount = f"{percent(abs(reduction['nfr']))} points {word}"
        low, high = sorted(abs(x) for x in reduction["ci95"]["nfr"])
        interval = f"95 % interval {percent(low)} to {percent(high)} points"
    else:
        amount = f"{percent(abs(share), 0)} % {word}"
        # Shown in the direction of the word: "40 % fewer, 30 to 50 %".
        low, high = sorted((-x if word == "fewer" else x) for x in bounds)
        interval = f"95 % interval {percent(low, 0)} to {percent(high, 0)} %"
    return (
        f"Compat has {amount} negative flips than new ({interval}); {change}{_relative(reduction)}."
    )


def _relative(reduction: dict[str, Any]) -> str:
    """Half of a lower NFR may be a higher accuracy; relative NFR allows for that."""
    value, bounds = reduction["relative_nfr_relative"], reduction["ci95"]["relative_nfr_relative"]
    if value is None or bounds is None:
        return ""
    low, high = bounds
    shown = f"{percent(value, 0, True)} % ({percent(low, 0, True)} to {percent(high, 0, True)} %)"
    verdict = ", which is no evidence of a change" if low <= 0 <= high else ""
    return f"; relative NFR, which allows for the accuracy, {shown}{verdict}"


def tests_in_words(task: dict[str, Any]) -> list[str]:
    """Did accuracy change, did compat change the flips, what would chance alone give."""
    said = []
    found = [(arrow(p), task["pairs"][p]) for p in pairs(task)]
    changed = [f"{name} {p_value(e['gain_p'])}" for name, e in found if e.get("gain_p") is not None]
    if changed:
        said.append(f"Did accuracy change (exact McNemar)? {', '.join(changed)}.")
    if task["reduction"] is not None and task["reduction"]["p"] is not None:
        p = p_value(task["reduction"]["p"])
        said.append(f"Has compat another number of negative flips than new (exact McNemar)? {p}.")
    chance = (task.get("chance") or {}).get("score")
    if chance is not None:
        said.append(f"Guessing would score {percent(chance)} %.")
    known = [(name, e) for name, e in found if e.get("independent_nfr") is not None]
    if known:
        shown = ", ".join(f"{name} {percent(e['independent_nfr'])} %" for name, e in known)
        said.append(f"NFR if errors had nothing to do with each other: {shown}.")
    floors = [(name, e) for name, e in known if e.get("least_nfr")]
    if floors:
        shown = ", ".join(f"{name} {percent(e['least_nfr'])} %" for name, e in floors)
        said.append(f"The least NFR that the fall of accuracy allows: {shown}.")
    return said
