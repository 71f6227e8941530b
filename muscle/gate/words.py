"""A gate's checks and verdict in plain words; every foreign name in them is harmless."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from muscle.report.text import number, one_line, percent

if TYPE_CHECKING:
    from muscle.gate.reading import Found

LABELS = {
    "max_nfr": "NFR",
    "max_excess_nfr": "excess NFR",
    "max_relative_nfr": "relative NFR",
    "min_gain": "gain",
    "must_keep": "must-keep examples",
}
RATIO = "max_relative_nfr"
POOLED = (
    "but each of these values has too few examples to be judged alone "
    "(`muscle compare --min-slice` says how many it takes)"
)


def slice_name(where: Mapping[str, str]) -> str:
    """A slice as `--slice` takes it."""
    return f"{where['column']}={where['value']}"


def arrow(pair: str) -> str:
    """A pair's name with a true arrow."""
    return pair.replace("->", "→")


def amount(limit: str, value: float | None, unit: bool = True, plain: bool = False) -> str:
    """A number in its limit's unit: percent, points of a gain or an excess, or a ratio.

    `plain`: of scores that are no shares, such as log-likelihoods.
    """
    signed = limit in ("min_gain", "max_excess_nfr")
    if value is None or limit == RATIO or plain:
        return number(value, 3, signed)
    return percent(value, 2, signed) + ((" points" if signed else " %") if unit else "")


def name(limit: str, delta: float, pair: str, plain: bool = False) -> str:
    """What a check asks: "NFR old→compat ≤ 2.00 %"."""
    if limit == "must_keep":
        return f"must-keep examples {arrow(pair)}"
    return f"{LABELS[limit]} {arrow(pair)} {sign(limit)} {amount(limit, delta, plain=plain)}"


def short_name(limit: str, delta: float, plain: bool = False) -> str:
    """The same for a table of one pair: "NFR % ≤ 2.00"; values below it need no unit."""
    if limit == "must_keep":
        return "must-keep flips"
    unit = "" if limit == RATIO or plain else " %" if limit == "max_nfr" else " points"
    return f"{LABELS[limit]}{unit} {sign(limit)} {amount(limit, delta, False, plain)}"


def sign(limit: str) -> str:
    """Which side of a limit is inside."""
    return "≥" if limit == "min_gain" else "≤"


def place(task: str, where: Mapping[str, str] | None) -> str:
    """Where a check looks: a task, or a slice of it."""
    return one_line(task, 60) + (f", {one_line(slice_name(where), 60)}" if where else "")


def check(
    asked: str,
    limit: str,
    found: "Found",
    unsure: bool,
    needed: int | None,
    plain: bool,
    but: str = "",
) -> str:
    """One check in a sentence's worth of words, with what would settle it if nothing has.

    `asked` says where and what, from `place` and `name`; `but` why what was seen is no pass.
    """
    if found.value is None:
        return f"{asked}: {found.why}"
    of = "of" if limit == "max_nfr" else "on"
    value = f"it is {amount(limit, found.value, plain=plain)} {of} {found.n:,} examples"
    if found.lower is None or found.upper is None:
        return f"{asked}: {value}, without bounds: {found.why}"
    low, high = (amount(limit, bound, False, plain) for bound in (found.lower, found.upper))
    said = f"{asked}: {value} (one-sided 95 % bounds {low} and {high})"
    more = _would_do(limit, needed) if unsure else but
    return f"{said}; {more}" if more else said


def _would_do(limit: str, needed: int | None) -> str:
    if needed is None:
        side = "not above" if limit == "min_gain" else "not below"
        return f"no number of examples would do: what was seen is {side} the limit itself"
    return f"at what was seen, about {needed:,} examples would do"


def unscored(limit: str, n: int, worst: float | None, at_most: bool) -> str:
    """That examples without a score could break a limit; `at_most`: some may be elsewhere."""
    have = "example has" if n == 1 else "examples have"
    count = f"{'up to ' if at_most else ''}{n:,} more {have}"
    they = "it might be a flip" if n == 1 else "they might all be flips"
    bound = f", with a bound of {amount(limit, worst)}" if worst is not None else ""
    return f"but {count} no score in some version: {they}{bound}"


def too_few(n: int) -> str:
    """Why a slice that isn't in the report by itself is no pass."""
    count = "1 example is" if n == 1 else f"{n:,} examples are"
    return f"{count} too few to be judged (`muscle compare --min-slice` says how many it takes)"


def nothing_right(before: str) -> str:
    """Why no flips are no evidence where the first version has nothing to lose."""
    return (
        f"but {before} has no right answer, so nothing can flip (is it the right filter or metric?)"
    )


def already_wrong(ids: Sequence[str], n: int, before: str) -> str:
    """The must-keep examples that can't flip."""
    shown = ", ".join(one_line(i, 40) for i in ids[:3]) + (" …" if len(ids) > 3 else "")
    were, it = ("was", "it protects") if len(ids) == 1 else ("were", "they protect")
    return f"{len(ids)} of {n} {were} already wrong in {before} ({shown}): {it} nothing"


def must_keep(task: str, n: int, flips: Sequence[str], waived: int, unscored: int) -> str:
    """The must-keep check of a task."""
    parts = [f"{len(flips)} of {n} flipped" if flips else f"none of {n} flipped"]
    if flips:
        shown = ", ".join(one_line(i, 40) for i in flips[:3])
        parts[0] += f" ({shown}{' …' if len(flips) > 3 else ''})"
    if waived:
        parts.append(f"{waived} waived")
    if unscored:
        parts.append(f"{unscored} not scored in every version")
    return f"{one_line(task, 60)}: must-keep examples: {', '.join(parts)}"


def reason(
    verdict: str,
    checks: Sequence[Mapping[str, Any]],
    pair: str,
    waivers: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Why the verdict is what it is, in one sentence."""
    used = sum(waiver["state"] == "used" for waiver in waivers)
    allowed = f", with {used} waived {'flip' if used == 1 else 'flips'}" if used else ""
    if not checks:
        return "Nothing was checked: the report has no task."
    if verdict == "pass":
        which = "The one check is" if len(checks) == 1 else f"All {len(checks)} checks are"
        return f"{which} inside the limit for {arrow(pair)} at one-sided 95 %{allowed}."
    decisive = [c for c in checks if c["verdict"] == verdict]
    others = len(decisive) - 1
    more = f" (and {others} more {'check' if others == 1 else 'checks'})" if others else ""
    return f"{decisive[0]['text']}{more}{allowed}."
