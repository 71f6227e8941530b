"""The verdict: a pure function of a report and limits.

A gate is a test of non-inferiority. It passes a limit only when the one-sided 95 % bound
lies inside, fails it when the other bound lies outside, and says so when neither is the
case. All tasks have to pass, each at 95 %: a gate that lets a bad update through must err
in the one task where it is bad, which happens in at most 5 % of cases (the
intersection-union test: Berger 1982), so no correction for many tasks is needed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any, Literal

from muscle.errors import UserError
from muscle.gate import words
from muscle.gate.limits import MUST_KEEP, LimitName, Limits
from muscle.gate.reading import Found, choose_pair, find, part
from muscle.gate.slices import (
    Rare,
    Sizes,
    rare_slices,
    refuse_unknown,
    unscored_in,
    wanted_slices,
    where_of,
)
from muscle.gate.unscored import worst_bound
from muscle.metrics.power import examples_for_bound, examples_for_difference, examples_for_rate
from muscle.report.text import one_line

SCHEMA = "muscle.gate/1"
SLICE_LIMITS = ("max_nfr", "min_gain")
FLIPS = ("max_nfr", "max_excess_nfr")

Verdict = Literal["pass", "fail", "not enough evidence"]
PASS: Verdict = "pass"
FAIL: Verdict = "fail"
UNSURE: Verdict = "not enough evidence"
EXIT_CODES: dict[Verdict, int] = {PASS: 0, FAIL: 1, UNSURE: 3}


@dataclass(frozen=True, slots=True)
class Check:
    """One limit on one task or slice; an entry of gate.json.

    value, lower, upper  the number and its one-sided 95 % bounds, fractions or None
    unwaived             the value before waivers, where there are any
    plain                whether the numbers are no shares: a gain of other scores
    but                  why a number whose bound is inside is no pass, else empty
    needed_n             for "not enough evidence": about how many examples would do
    """

    task: str
    slice: dict[str, str] | None
    limit: str
    delta: float
    value: float | None
    lower: float | None
    upper: float | None
    n: int
    verdict: Verdict
    needed_n: int | None
    text: str
    unwaived: float | None = None
    plain: bool = False
    but: str = ""


@dataclass(frozen=True, slots=True)
class _Place:
    """What a check looks at: a task of the report, or a slice of it.

    pooled  whether it is a pool of values that have too few examples each
    """

    task: str
    where: dict[str, str] | None
    pair: str
    graded: bool
    no_shares: bool
    unscored: int
    pooled: bool = False

    def __str__(self) -> str:
        if self.where is None:
            return f"task {one_line(self.task, 60)!r}"
        name = one_line(words.slice_name(self.where), 80)
        return f"slice {name} of {one_line(self.task, 60)!r}"


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of the examples that may not flip; ids are those of their task.

    counts   how many of them each task has
    flipped  task, id and whether a waiver allows it
    wrong    task and id of those that the pair's first version has wrong in every seed
    """

    file: str
    ids: int
    counts: Mapping[str, int]
    flipped: Sequence[Mapping[str, Any]]
    unscored: Sequence[Mapping[str, str]]
    wrong: Sequence[Mapping[str, str]] = ()


def decide(
    report: Mapping[str, Any],
    limits: Limits,
    *,
    pair: str | None = None,
    kept: Kept | None = None,
    waivers: Sequence[Mapping[str, Any]] = (),
    before: Mapping[str, Any] | None = None,
    sizes: Mapping[str, Sizes] | None = None,
    today: date | None = None,
) -> dict[str, Any]:
    """Hold a report against limits.

    Args:
        report: report.json's content, its waived flips not counted.
        pair: "old->compat" or another; None: that one where it is, else old->new.
        kept: what became of the must-keep examples, if there is such a list.
        waivers: entries of gate.json's `waivers`, copied.
        before: the report with waived flips counted, to show both numbers.
        sizes: of slices, by task, from `read_sizes`; without them a slice may hold all
            unscored examples of its task, and single values left out as rare aren't known.
        today: stands in gate.json as `created`.

    Returns:
        The content of gate.json.

    Raises:
        UserError: a limit that this report can't be held against.
    """
    chosen = choose_pair(report, pair)
    checks = list(_checks(report, limits, chosen, before, sizes or {}))
    notes = list(_notes(report, limits))
    if kept is not None:
        checks += _keep_checks(kept, chosen.partition("->")[0])
        notes += _wrong_notes(kept, chosen.partition("->")[0])
    verdict = overall([check.verdict for check in checks])
    return {
        "schema": SCHEMA,
        "verdict": verdict,
        "reason": words.reason(verdict, [asdict(c) for c in checks], chosen, waivers),
        "pair": chosen,
        "limits": limits.given(),
        "slices": [*limits.slices],
        "checks": [asdict(check) for check in checks],
        "must_keep": None if kept is None else _kept_block(kept),
        "waivers": [dict(waiver) for waiver in waivers],
        "notes": notes,
        "created": None if today is None else today.isoformat(),
    }


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """Fail if one fails, else unsure if one is; nothing checked is no evidence either."""
    if FAIL in verdicts:
        return FAIL
    return UNSURE if UNSURE in verdicts or not verdicts else PASS


def judge_bounds(limit: str, delta: float, lower: float | None, upper: float | None) -> Verdict:
    """One limit: pass with the bound inside (on the limit counts), fail with all outside."""
    if lower is None or upper is None:
        return UNSURE
    if limit == "min_gain":
        return PASS if lower >= delta else FAIL if upper < delta else UNSURE
    return PASS if upper <= delta else FAIL if lower > delta else UNSURE


def needed(limit: str, delta: float, found: Found) -> int | None:
    """About how many examples would bring the bound inside; None where none would do."""
    value, bound = found.value, found.lower if limit == "min_gain" else found.upper
    if (
        value is None
        or bound is None
        or (value <= delta if limit == "min_gain" else value >= delta)
    ):
        return None
    if found.changed is not None:
        n = examples_for_difference(value, delta, found.changed)
    elif limit == "max_nfr":
        n = examples_for_rate(value, delta)
    else:
        n = examples_for_bound(value, bound, delta, found.n)
    return None if n is None else max(n, found.n + 1)  # these n were not enough


def _checks(
    report: Mapping[str, Any],
    limits: Limits,
    pair: str,
    before: Mapping[str, Any] | None,
    sizes: Mapping[str, Sizes],
) -> Iterator[Check]:
    full = (before or report)["tasks"]
    rare = {name: rare_slices(t, limits.slices, sizes.get(name)) for name, t in full.items()}
    refuse_unknown(report, limits.slices, list(rare.values()))
    for name, task in report["tasks"].items():
        graded = bool(part(task, "continuous", of=f"task {one_line(name, 60)!r}"))
        unscored = unscored_in(task, None, None)
        place = _Place(name, None, pair, graded, _no_shares(task), unscored)
        whole = None if before is None else before["tasks"][name]
        for limit, delta in limits.given().items():
            if limit == "max_relative_nfr" and graded:
                raise UserError(
                    f"max-relative-nfr needs right and wrong answers, and {place} has the graded "
                    f"metric {one_line(str(task.get('metric')), 40)}: use max-nfr or min-gain"
                )
            yield _check(place, limit, delta, task, whole)
        for piece in wanted_slices(task, limits.slices):
            where = where_of(piece)
            unscored = unscored_in(full[name], where, sizes.get(name))
            pooled = bool(piece.get("small"))
            yield from _slice_checks(
                replace(place, where=where, unscored=unscored, pooled=pooled), piece, limits, whole
            )
        for one in rare[name].values():
            yield from _rare_checks(replace(place, where=one.where), one, limits)


def _slice_checks(
    place: _Place, piece: Mapping[str, Any], limits: Limits, whole: Mapping[str, Any] | None
) -> Iterator[Check]:
    same = [s for s in (whole or {}).get("slices") or [] if where_of(s) == place.where]
    for limit, delta in limits.given().items():
        if limit in SLICE_LIMITS:
            yield _check(place, limit, delta, piece, same[0] if same else None)


def _rare_checks(place: _Place, rare: Rare, limits: Limits) -> Iterator[Check]:
    for limit, delta in limits.given().items():
        if limit in SLICE_LIMITS:
            plain = limit == "min_gain" and place.no_shares
            text = f"{_asked(place, limit, delta, plain)}: {words.too_few(rare.n)}"
            yield Check(
                place.task, place.where, limit, delta, None, None, None, rare.n,
                UNSURE, None, text, plain=plain,
            )  # fmt: skip


def _both(
    block: Mapping[str, Any],
    whole: Mapping[str, Any] | None,
    pair: str,
    limit: LimitName,
    of: str,
    graded: bool,
) -> tuple[Found, float | None]:
    """A number without its waived flips, and its value with them where there are any.

    A waiver allows a flip, no lower score: a gain is always that of all examples.
    """
    if whole is None:
        return find(block, pair, limit, of, graded), None
    full = find(whole, pair, limit, of, graded)
    if limit == "min_gain":
        return full, None
    return find(block, pair, limit, of, graded), full.value


def _no_shares(task: Mapping[str, Any]) -> bool:
    """Whether scores lie outside of [0, 1], so that points and percent mean nothing."""
    scores = [version.get("score") for version in (task.get("versions") or {}).values()]
    return any(score is not None and not 0 <= score <= 1 for score in scores)


def _asked(place: _Place, limit: str, delta: float, plain: bool) -> str:
    where = words.place(place.task, place.where)
    return f"{where}: {words.name(limit, delta, place.pair, plain)}"


def _check(
    place: _Place,
    limit: LimitName,
    delta: float,
    block: Mapping[str, Any],
    whole: Mapping[str, Any] | None,
) -> Check:
    """One limit on a task's or slice's block of the report; `whole` has its waived flips."""
    found, unwaived = _both(block, whole, place.pair, limit, str(place), place.graded)
    plain = limit == "min_gain" and place.no_shares
    verdict = judge_bounds(limit, delta, found.lower, found.upper)
    more = needed(limit, delta, found) if verdict == UNSURE else None
    unsure, but = verdict == UNSURE, ""
    if verdict == PASS:
        but = _but(place, limit, delta, found, block, plain)
        verdict = UNSURE if but else PASS
    text = words.check(_asked(place, limit, delta, plain), limit, found, unsure, more, plain, but)
    return Check(
        place.task, place.where, limit, delta, found.value, found.lower, found.upper, found.n,
        verdict, more, text, unwaived, plain, but,
    )  # fmt: skip


def _but(
    place: _Place,
    limit: LimitName,
    delta: float,
    found: Found,
    block: Mapping[str, Any],
    plain: bool,
) -> str:
    """Why a limit that is kept by what was seen is no pass; empty where it is one."""
    before = place.pair.partition("->")[0]
    first = (block.get("versions") or {}).get(before) or {}
    if limit in FLIPS and not place.graded and first.get("score") == 0:
        return words.nothing_right(before)
    # Scores that are no shares have no worst, so nothing can be said of those that are missing.
    if place.unscored and not plain:
        worst = worst_bound(limit, found, place.unscored, block, place.pair, str(place))
        if judge_bounds(limit, delta, worst, worst) != PASS:
            return words.unscored(limit, place.unscored, worst, place.where is not None)
    return words.POOLED if place.pooled else ""


def _notes(report: Mapping[str, Any], limits: Limits) -> Iterator[str]:
    """What was asked for and not judged, and what no limit sees."""
    left = [name for name in limits.given() if name not in SLICE_LIMITS]
    if limits.slices and left:
        names = " and ".join(name.replace("_", "-") for name in left)
        yield f"{names}: for whole tasks, not for slices"
    for name, task in report["tasks"].items():
        if limits.slices and task.get("slices_note"):
            yield f"{one_line(name, 60)}, slices: {one_line(task['slices_note'], 300)}"
    yield from _unjudged(report)


def _unjudged(report: Mapping[str, Any]) -> Iterator[str]:
    """What a limit can't see: examples without a score, and inputs that were not alike."""
    tasks = report["tasks"].items()
    missing = [
        f"{one_line(name, 60)} {task['unscored']:,} of {task['unscored'] + task['n']:,}"
        for name, task in tasks
        if task.get("unscored")
    ]
    if missing:
        yield f"in no check, as some version has no score for them: {_some(missing)}"
    other = [
        f"{one_line(name, 60)} ({', '.join(one_line(note['what'], 40) for note in notes)})"
        for name, task in tasks
        if (notes := task.get("comparability"))
    ]
    if other:
        yield f"the versions were not evaluated alike: {_some(other)}"


def _some(parts: Sequence[str], most: int = 4) -> str:
    more = f" and {len(parts) - most} more tasks" if len(parts) > most else ""
    return "; ".join(parts[:most]) + more


def _wrong_of(kept: Kept, task: str) -> list[str]:
    return [str(entry["id"]) for entry in kept.wrong if entry["task"] == task]


def _wrong_notes(kept: Kept, before: str) -> Iterator[str]:
    """The listed examples that can't flip, of tasks where others can."""
    for task, n in sorted(kept.counts.items()):
        wrong = _wrong_of(kept, task)
        if wrong and len(wrong) < n:
            said = words.already_wrong(wrong, n, before)
            yield f"{one_line(task, 60)}: must-keep examples: {said}"


def _keep_checks(kept: Kept, before: str) -> Iterator[Check]:
    for task, n in sorted(kept.counts.items()):
        flips = [f for f in kept.flipped if f["task"] == task and not f["waived"]]
        waived = sum(f["task"] == task and bool(f["waived"]) for f in kept.flipped)
        missing = sum(entry["task"] == task for entry in kept.unscored)
        wrong = _wrong_of(kept, task)
        verdict = FAIL if flips else UNSURE if missing or len(wrong) == n else PASS
        ids = [str(flip["id"]) for flip in flips]
        text = words.must_keep(task, n, ids, waived, missing)
        text += f", {words.already_wrong(wrong, n, before)}" if wrong else ""
        unwaived = float(len(flips) + waived) if waived else None
        yield Check(
            task, None, MUST_KEEP, 0.0, float(len(flips)), None, None, n,
            verdict, None, text, unwaived,
        )  # fmt: skip


def _kept_block(kept: Kept) -> dict[str, Any]:
    return {
        "file": kept.file,
        "ids": kept.ids,
        "flipped": [dict(flip) for flip in kept.flipped],
        "unscored": [dict(entry) for entry in kept.unscored],
        "wrong": [dict(entry) for entry in kept.wrong],
        "unknown": [],  # an unknown id is wrong usage, and no gate.json is written
    }
