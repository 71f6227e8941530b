"""A fleet's record as rows and words; page, Markdown and console show the same. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from muscle.report.closer import DASH, Figure, figure
from muscle.report.text import NOTHING, one_line

ORDER = ("failed", "stay", "not enough evidence", "move with compat", "move")
"""What needs somebody first."""
SYMBOLS = {
    "move": "✔",
    "move with compat": "✔",
    "stay": "✖",
    "not enough evidence": "?",
    "failed": "!",
}
KINDS = {
    "move": "good",
    "move with compat": "good",
    "stay": "neg",
    "not enough evidence": "wait",
    "failed": "neg",
}
PLURALS = {
    "move": "move",
    "move with compat": "move with compat",
    "stay": "stay",
    "not enough evidence": "without enough evidence",
    "failed": "failed",
}
COLUMNS = (
    ("n", "examples"),
    ("old", "score %"),
    ("new", "score %"),
    ("compat", "score %"),
    ("NFR %", "old→new"),
    ("NFR %", "old→compat"),
    ("relative NFR", "of what is served"),
    ("gain", "points"),
    ("gate's bounds", "one-sided 95 %"),
    ("noise floor %", "NFR of two olds"),
)


@dataclass(frozen=True)
class Row:
    """One adapter as it is shown: text is foreign and not yet escaped.

    figures  one for each of `COLUMNS`
    """

    name: str
    task: str
    decision: str
    kind: str
    symbol: str
    why: str
    note: str
    report: str | None
    figures: tuple[Figure, ...]


def rows(record: Mapping[str, Any]) -> list[Row]:
    """The adapters, those that need somebody first; in one decision, in the file's order."""
    found = sorted(record["adapters"], key=lambda a: ORDER.index(a["decision"]))
    return [_row(adapter) for adapter in found]


def counts(record: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """(decision, its kind, how many), of those that there are."""
    decisions = record["decisions"]
    return [(name, KINDS[name], decisions[name]) for name in ORDER if decisions.get(name)]


def heading(record: Mapping[str, Any]) -> str:
    """The result in one line: "8 adapters: 5 move, 2 move with compat, 1 failed"."""
    n = len(record["adapters"])
    parts = [f"{count} {PLURALS[name]}" for name, _, count in reversed(counts(record))]
    return f"{n} {'adapter' if n == 1 else 'adapters'}: {', '.join(parts)}"


def kind(record: Mapping[str, Any]) -> str:
    """The page's colour: what the exit code says."""
    return {0: "pass", 1: "fail", 3: "not-enough-evidence"}[record["exit_code"]]


def served(adapter: Mapping[str, Any]) -> str:
    """The pair that the decision rests on."""
    return str(adapter["pair"] or "old->new")


def deciding_check(adapter: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The gate's check that decides: the first one with the gate's verdict."""
    gate = adapter["gates"].get(served(adapter))
    if gate is None:
        return None
    same = [check for check in gate["checks"] if check["verdict"] == gate["verdict"]]
    return same[0] if same else None


def bounds(adapter: Mapping[str, Any]) -> Figure:
    """The one-sided bounds of the deciding check, and the limit."""
    from muscle.gate.words import RATIO, amount, short_name

    check = deciding_check(adapter)
    if check is None or check["lower"] is None or check["upper"] is None:
        return DASH
    limit = check["limit"]
    plain = limit == RATIO or (limit == "min_gain" and not _in_percent(adapter))
    low, high = (amount(limit, check[side], False, plain) for side in ("lower", "upper"))
    return Figure(f"{low} to {high}", short_name(limit, check["delta"], plain), "", check["upper"])


def _row(adapter: Mapping[str, Any]) -> Row:
    decision = adapter["decision"]
    return Row(
        name=adapter["name"],
        task=adapter["task"],
        decision=decision,
        kind=KINDS[decision],
        symbol=SYMBOLS[decision],
        why=why(adapter),
        note=one_line(adapter["note"], 300) if adapter["note"] else "",
        report=adapter["report"],
        figures=_figures(adapter),
    )


def why(adapter: Mapping[str, Any]) -> str:
    """The decision's reason, and how many examples would settle it."""
    text = one_line(adapter["reason"], 500)
    if adapter["needed_n"] is not None and f" {adapter['needed_n']:,} examples" not in text:
        text += f" All checks together take about {adapter['needed_n']:,} examples."
    if adapter["decision"] == "not enough evidence" and not adapter["trained_compat"]:
        text += " No compat adapter was trained, since new didn't fail (when: always trains one)."
    return text


def _figures(adapter: Mapping[str, Any]) -> tuple[Figure, ...]:
    shares = _in_percent(adapter)
    n, pairs = adapter["n"], adapter["pairs"]
    pair = pairs.get(served(adapter))
    floor = adapter["noise_floor"]
    relative = DASH
    gain = DASH
    if pair is not None:
        ci95 = pair["ci95"]
        relative = figure(pair["relative_nfr"], ci95["relative_nfr"], in_percent=False)
        gain = figure(pair["gain"], ci95["gain"], in_percent=shares, signed=True)
    return (
        DASH if n is None else Figure(f"{n:,}", "", "", float(n)),
        *(_score(adapter["scores"].get(name), shares) for name in ("old", "new", "compat")),
        *(_nfr(pairs.get(name)) for name in ("old->new", "old->compat")),
        relative,
        gain,
        bounds(adapter),
        DASH if floor is None else figure(floor["nfr"], floor["ci95"]),
    )


def _score(version: Mapping[str, Any] | None, shares: bool) -> Figure:
    if version is None:
        return DASH
    return figure(version["score"], version["ci95"], in_percent=shares)


def _nfr(pair: Mapping[str, Any] | None) -> Figure:
    return DASH if pair is None else figure(pair["nfr"], pair["ci95"]["nfr"])


def _in_percent(adapter: Mapping[str, Any]) -> bool:
    scores = [version["score"] for version in adapter["scores"].values()]
    return all(score is None or 0 <= score <= 1 for score in scores)


def cell(found: Figure, digits_only: bool = False) -> str:
    """A figure as one text."""
    if digits_only or not found.interval:
        return found.value or NOTHING
    return f"{found.value} ({found.interval})"
