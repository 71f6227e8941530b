"""What a gate reads of report.json, refused in one line where it isn't there."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from muscle.errors import UserError
from muscle.gate.limits import LimitName
from muscle.report.build import SCHEMA
from muscle.report.text import one_line

AGAIN = "run `muscle compare` again"


@dataclass(frozen=True, slots=True)
class Found:
    """One number of a report with its one-sided 95 % bounds; None where it can't be had.

    changed  the share of examples that went either way, where the number is a difference of
             two counts: it says how many examples are needed
    why      in words, where the number or its bounds are None
    """

    value: float | None
    lower: float | None
    upper: float | None
    n: int
    changed: float | None = None
    why: str = ""


def parsed(data: bytes, where: str) -> Any:
    """The JSON of a report; every number in it is finite.

    Raises:
        UserError: it is no whole JSON, or holds NaN, infinity or a number too large.
    """

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise UserError(
                f"{where}: holds {one_line(text, 40)}, which is no finite number: {AGAIN}"
            )
        return value

    try:
        return json.loads(data, parse_constant=number, parse_float=number)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: is not whole JSON: {AGAIN}") from None


def checked(report: Any, where: str) -> dict[str, Any]:
    """A report that this version can judge.

    Raises:
        UserError: it is none, is of another version, or has no tasks.
    """
    schema = report.get("schema") if isinstance(report, dict) else None
    if not isinstance(schema, str) or not schema.startswith("muscle.report/"):
        raise UserError(f"{where}: is not a report of muscle; name a report.json or its folder")
    if schema != SCHEMA:
        made = "an earlier" if schema == "muscle.report/1" else "another"
        raise UserError(f"{where}: made by {made} version: {AGAIN}")
    if not isinstance(report.get("tasks"), dict):
        raise UserError(f"{where}: has no tasks: {AGAIN}")
    return report


def part(holder: Any, *names: str, of: str) -> Any:
    """`holder[a][b]…`. Raises UserError: the report lacks it, as a half-edited one does."""
    for name in names:
        if not isinstance(holder, Mapping) or name not in holder:
            raise UserError(f"{of}: the report has no {'.'.join(names)}: {AGAIN}")
        holder = holder[name]
    return holder


def _real(value: Any, of: str) -> Any:
    """A number or null. Raises UserError: anything else, as in a report edited by hand."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{of}: {one_line(str(value), 40)!r} is no number: {AGAIN}")
    return value


def choose_pair(report: Mapping[str, Any], wanted: str | None) -> str:
    """The pair to judge: the one asked for, else old->compat where it is, else old->new.

    Raises:
        UserError: no task, or not every task, has the pair.
    """
    tasks = report["tasks"]
    known = [
        set(part(task, "pairs", of=f"task {one_line(name, 60)}")) for name, task in tasks.items()
    ]
    common = set.intersection(*known) if known else set()
    if wanted is None:
        return "old->compat" if "old->compat" in common else "old->new"
    pair = wanted.replace("→", "->").replace(":", "->")
    if tasks and pair not in common:
        names = ", ".join(f"'{name}'" for name in sorted(common))
        # Without quotes the shell takes ">compat" for a file to write to.
        cut = " (quote it, or the shell cuts it at '>')" if wanted.endswith("-") else ""
        raise UserError(f"pair {one_line(wanted, 40)!r} is not in this report{cut}: it has {names}")
    return pair


def find(task: Mapping[str, Any], pair: str, limit: LimitName, of: str, continuous: bool) -> Found:
    """What a limit is held against, of a task or of a slice: the report's one-sided bounds.

    Raises:
        UserError: the report has no noise floor where one is needed, or isn't whole.
    """
    n = int(_real(part(task, "n", of=of), of) or 0)
    if n == 0:
        return Found(None, None, None, 0, why="no example is scored in every version")
    if limit == "max_excess_nfr":
        return _excess(task, pair, n, of)
    entry = part(task, "pairs", pair, of=of)
    name = {"max_nfr": "nfr", "max_relative_nfr": "relative_nfr", "min_gain": "gain"}[limit]
    value, bounds = part(entry, name, of=of), part(entry, "bounds95", name, of=of)
    worse, better = entry.get("negative"), entry.get("positive")
    changed = None
    if limit == "min_gain" and None not in (worse, better) and not continuous:
        changed = (int(worse) + int(better)) / n
    return _found(value, bounds, n, of, changed)


def _excess(task: Mapping[str, Any], pair: str, n: int, of: str) -> Found:
    if not pair.startswith("old->"):
        raise UserError(
            f"max-excess-nfr is only for pairs that begin with old, as the noise floor does, and "
            f"the pair is {pair}: use max-nfr, or another --pair"
        )
    floor = part(task, "noise_floor", of=of)
    if floor is None:
        raise UserError(
            f"max-excess-nfr needs a noise floor, and {of} has none: set `noise_floor: true` in "
            "the experiment, or give `muscle compare --noise-floor` old's second seed"
        )
    entry = part(floor, "excess", pair, of=f"{of}, noise floor")
    return _found(part(entry, "nfr", of=of), part(entry, "bounds95", "nfr", of=of), n, of)


def _found(
    value: float | None,
    bounds: Sequence[float] | None,
    n: int,
    of: str,
    changed: float | None = None,
) -> Found:
    if bounds is not None and (not isinstance(bounds, list) or len(bounds) != 2):
        raise UserError(f"{of}: the report has no pair of bounds: {AGAIN}")
    for number in (value, *(bounds or ())):
        _real(number, of)
    if value is None:
        return Found(None, None, None, n, why="it is undefined here: its denominator is 0")
    if bounds is None:
        return Found(value, None, None, n, why="the report has no bounds for it")
    return Found(value, bounds[0], bounds[1], n, changed)
