"""A search's result as tables and sentences; the console and the page show the same."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from muscle.compatibility_config import InputsConfig, inputs_text
from muscle.report.text import NOTHING, number, one_line, p_value, percent
from muscle.report.view import Row
from muscle.tuning.ranking import feasible, rank
from muscle.tuning.records import Bounds, Candidate, Contender, Found, Measured, Trial

MARK = " *"
"""Behind a score that is further below new's than allowed."""
SETTINGS = "settings"
"""The column of a compact table that holds all parameters."""
CONTENDERS = {
    "chosen": "chosen",
    "default": "paper's default",
    "always-old": "always-old",
    "control": "control",
}


class Grid(NamedTuple):
    """A table: the first column's name is `label`, each row has a cell for each column.

    `note` says what the marks in it mean; it is empty where there are none.
    """

    title: str
    label: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""


def heading(found: Found) -> str:
    """What the numbers rest on, in one line."""
    states = [t.state for t in found.trials]
    fit = sum(feasible(t, found.epsilon) is True for t in found.trials)
    return (
        f"{len(states)} trials, {states.count('finished')} finished, {fit} feasible; "
        f"half A n = {found.n_a}, half B n = {found.n_b}, each can show a change of NFR of "
        f"{percent(found.smallest_difference)} points; {_word(found)} may be "
        f"{percent(found.epsilon)} points below new's"
    )


def trials(found: Found, reason_limit: int = 300, compact: bool = False) -> Grid:
    """Every trial, best first; a stopped one's numbers are those of its last look.

    Args:
        reason_limit: characters left of why a trial did not finish.
        compact: all parameters in one column, behind the numbers.
    """
    names = _parameters(found)
    numbers = ("NFR %", "ΔNFR points", f"Δ{_word(found)} points")
    rows = []
    for trial in rank(found.trials, found.epsilon):
        values = {name: _setting(trial.params.get(name)) for name in names}
        measured = _brief(trial.a, found.epsilon, reduction=True)
        state = _state(trial, reason_limit)
        line = ", ".join(f"{one_line(name, 40)} {value}" for name, value in values.items())
        split = (*values.values(), *measured, state)
        cells = (*measured, line, state) if compact else split
        rows.append(Row(str(trial.number), cells))
    split = (*(one_line(name, 40) for name in names), *numbers, "state")
    columns = (*numbers, SETTINGS, "state") if compact else split
    note = _note(found, (t.a for t in found.trials))
    return Grid("Trials on half A, best first", "trial", columns, tuple(rows), note)


def candidates(found: Found) -> Grid:
    """What could be served: the best trials and their interpolations, on both halves."""
    rows = tuple(
        Row(
            c.name + (" (chosen)" if _is_chosen(c, found) else ""),
            (*_brief(c.a, found.epsilon), *_brief(c.b, found.epsilon)),
        )
        for c in found.candidates
    )
    gain = f"Δ{_word(found)} points"
    columns = ("A: NFR %", f"A: {gain}", "B: NFR %", f"B: {gain}")
    note = _note(found, (m for c in found.candidates for m in (c.a, c.b)))
    return Grid("Candidates, best on half A first", "candidate", columns, rows, note)


def promised(found: Found) -> Grid | None:
    """The chosen one on A, on B and on the test split; None without a chosen one."""
    if found.chosen is None:
        return None
    test = chosen_on_test(found)
    all_three = (found.chosen.a, found.chosen.b, None if test is None else test.test)

    def row(label: str, show: Any) -> Row:
        return Row(label, tuple(NOTHING if m is None else show(m) for m in all_three))

    rows = (
        row("NFR %", _nfr),
        row("ΔNFR points", _reduction),
        row(f"Δ{_word(found)} points", lambda m: _gain(m, found.epsilon)),
        row("n", lambda m: str(m.n)),
    )
    title = f"Promised on A, kept on B, delivered on test: {found.chosen.name}"
    columns = ("promised on A", "kept on B", "delivered on test")
    return Grid(title, "", columns, rows, _note(found, all_three))


def test(found: Found) -> Grid | None:
    """New, the chosen one and the references on the test split; None where none was scored.

    New's difference to the chosen one is the chosen one's own reduction, turned round.
    """
    chosen = chosen_on_test(found)
    if chosen is None:
        return None
    m = chosen.test
    turned = {
        "nfr": m.nfr_new - m.nfr,
        "ci95": _turned(m.ci95.get("reduction")),
    }
    of_new = (percent(m.nfr_new), percent(m.new_score), NOTHING, NOTHING, _difference(turned))
    rows = [Row("new", of_new)]
    for c in _in_order(found.test):
        gain = _gain(c.test, found.epsilon)
        p = p_value(c.test.p).removeprefix("p = ").removeprefix("p ")
        cells = (_nfr(c.test), percent(c.test.score), gain, p, _difference(c.difference))
        rows.append(Row(contender_label(c), cells))
    columns = (
        "NFR %",
        "score %",
        f"Δ{_word(found)} points",
        "p against new",
        "NFR less chosen's, points",
    )
    note = _note(found, (c.test for c in found.test))
    return Grid(f"On the test split, {_sizes(found.test)}", "", columns, tuple(rows), note)


def settings(found: Found) -> Grid | None:
    """What each row of the last table was trained with; None where none was scored."""
    if not found.test:
        return None
    contenders = _in_order(found.test)
    names = dict.fromkeys(name for c in contenders for name in c.compatibility)
    rows = tuple(
        Row(one_line(name, 60), tuple(_setting(c.compatibility.get(name)) for c in contenders))
        for name in names
    )
    columns = tuple(contender_label(c) for c in contenders)
    return Grid("Settings on the test split", "compatibility", columns, rows)


def importances(found: Found) -> str:
    """How much each parameter decides NFR, the most first, in one line."""
    if not found.importances:
        return "Importance for NFR: too few trials tell."
    shares = sorted(found.importances.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{one_line(name, 40)} {percent(share, 0)} %" for name, share in shares)
    return f"Importance for NFR: {shown}."


def front(found: Found) -> str:
    """The trials that no other beats in both numbers, in one line."""
    if not found.front:
        return "Front of NFR and score on half A: no trial finished."
    numbers = ", ".join(str(n) for n in found.front)
    return f"Front of NFR and score on half A, by rising NFR: trials {numbers}."


def missed(found: Found) -> str:
    """Without a chosen one: that there is none, who came closest and what it lacks.

    Empty where there is a chosen one.
    """
    if found.chosen is not None:
        return ""
    closest = found.closest
    if closest is None:
        return "No feasible trial; none finished."
    half, measured = _infeasible_half(closest, found.epsilon)
    lacking = max(0.0, measured.violation(found.epsilon))
    return (
        f"No feasible trial. Closest is {closest.name}: its {_word(found)} on half {half} is "
        f"{percent(measured.gain, signed=True)} points against new's, and misses what is allowed "
        f"by {percent(lacking)} points."
    )


def chosen_on_test(found: Found) -> Contender | None:
    """The chosen one's row of the last table."""
    return next((c for c in found.test if c.name == "chosen"), None)


def contender_label(contender: Contender) -> str:
    """How tables call a row of the last table."""
    return CONTENDERS.get(contender.name, one_line(contender.name, 40))


def _word(found: Found) -> str:
    return "score" if found.continuous else "accuracy"


def _in_order(contenders: Iterable[Contender]) -> list[Contender]:
    """The known ones in our order, then others as they came."""
    order = list(CONTENDERS)
    return sorted(contenders, key=lambda c: order.index(c.name) if c.name in order else len(order))


def _parameters(found: Found) -> list[str]:
    """Parameters that a trial has a value of, in the space's order."""
    tried = dict.fromkeys(name for trial in found.trials for name in trial.params)
    return [n for n in found.space if n in tried] + [n for n in tried if n not in found.space]


def _is_chosen(candidate: Candidate, found: Found) -> bool:
    return found.chosen is not None and candidate.name == found.chosen.name


def _setting(value: Any) -> str:
    if isinstance(value, list):  # of inputs
        return one_line(
            inputs_text([v if v == "train" else InputsConfig.model_validate(v) for v in value]), 60
        )
    if isinstance(value, float):
        return f"{value:.4g}"
    return NOTHING if value is None else one_line(str(value), 60)


def _state(trial: Trial, limit: int) -> str:
    looked = f" at n = {trial.a.n}" if trial.state == "stopped" and trial.a is not None else ""
    reason = "" if trial.reason is None else f": {one_line(trial.reason, limit)}"
    return f"{trial.state}{looked}{reason}"


def _brief(m: Measured | None, epsilon: float, reduction: bool = False) -> tuple[str, ...]:
    """NFR, if wanted its change, and the score's change, without intervals."""
    if m is None:
        return (NOTHING,) * (3 if reduction else 2)
    change = (percent(m.nfr - m.nfr_new, signed=True),) if reduction else ()
    return (percent(m.nfr), *change, percent(m.gain, signed=True) + _mark(m, epsilon))


def _mark(m: Measured, epsilon: float) -> str:
    return MARK if m.violation(epsilon) > 0 else ""


def _note(found: Found, shown: Iterable[Measured | None]) -> str:
    """What the mark means, where one of the shown measurements has it."""
    if not any(m is not None and _mark(m, found.epsilon) for m in shown):
        return ""
    below = f"{_word(found)} is more than {percent(found.epsilon)} points below new's"
    return f"{MARK.strip()} infeasible: {below}"


def _interval(
    value: float,
    bounds: Bounds | Sequence[float],
    digits: int,
    signed: bool = False,
    mark: str = "",
) -> str:
    """ "10.27 [8.1, 12.4]" of fractions; a value without an interval stands alone."""
    shown = percent(value, 2, signed) + mark
    if bounds is None:
        return shown
    low, high = (percent(b, digits, signed) for b in bounds)
    return f"{shown} [{low}, {high}]"


def _nfr(m: Measured) -> str:
    return _interval(m.nfr, m.ci95.get("nfr"), 1)


def _reduction(m: Measured) -> str:
    return _interval(m.nfr - m.nfr_new, m.ci95.get("reduction"), 2, signed=True)


def _gain(m: Measured, epsilon: float) -> str:
    # The sign of a bound is the news, so it keeps its digits.
    return _interval(m.gain, m.ci95.get("gain"), 2, signed=True, mark=_mark(m, epsilon))


def _difference(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return NOTHING
    return _interval(difference["nfr"], difference["ci95"], 2, signed=True)


def _turned(bounds: Bounds) -> Bounds:
    return None if bounds is None else (-bounds[1], -bounds[0])


def _sizes(contenders: Iterable[Contender]) -> str:
    """ "n = 400", or from the fewest to the most; and what could not be scored."""
    measured = [c.test for c in contenders]
    sizes = sorted({m.n for m in measured})
    left = max(m.unscored for m in measured)
    shown = f"n = {sizes[0]}" + (f" to {sizes[-1]}" if len(sizes) > 1 else "")
    upto = "up to " if len({m.unscored for m in measured}) > 1 else ""
    return shown + (f", {upto}{number(left, 0)} unscored and left out" if left else "")


def _infeasible_half(candidate: Candidate, epsilon: float) -> tuple[str, Measured]:
    """Where a candidate fails: half B decides if it was measured there and fails there."""
    if candidate.b is not None and candidate.b.violation(epsilon) > 0:
        return "B", candidate.b
    return "A", candidate.a
