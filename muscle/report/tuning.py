"""A search's result as tune.json, as tune.md and on the console."""

import math
from collections.abc import Mapping
from textwrap import fill
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from muscle.report import tuning_view as view
from muscle.report.page import environment, flat
from muscle.report.table import literal
from muscle.report.text import one_line
from muscle.report.view import Row
from muscle.tuning.ranking import feasible
from muscle.tuning.records import Candidate, Found, Measured, Trial

SCHEMA = "muscle.tune/1"
TEMPLATE = "tune.md.j2"
SHOWN_TRIALS = 15


def found_to_json(found: Found) -> dict[str, Any]:
    """The content of tune.json: plain JSON values, fractions, null where unknown.

    `feasible` of a trial is null unless it finished: only then it was scored on all of
    half A. `promised` holds the chosen one on A, on B and on the test split side by side;
    it is null without a chosen one, and so is a part of it that was not measured.
    """
    return {
        "schema": SCHEMA,
        "name": found.name,
        "why": found.why,
        "continuous": found.continuous,
        "settings": _plain(
            {"epsilon": found.epsilon, "pareto": found.pareto, "space": found.space}
        ),
        "tuning_examples": {
            "a": found.n_a,
            "b": found.n_b,
            "smallest_difference": _plain(found.smallest_difference),
        },
        "promised": _promised(found),
        "chosen": _candidate(found.chosen),
        "closest": _candidate(found.closest),
        "test": [
            {
                "name": contender.name,
                "compatibility": _plain(contender.compatibility),
                "test": _measured(contender.test),
                "difference": _plain(contender.difference),
            }
            for contender in found.test
        ],
        "candidates": [_candidate(c) for c in found.candidates],
        "trials": [_trial(t, found.epsilon) for t in found.trials],
        "front": list(found.front),
        "importances": _plain(found.importances),
        "seconds": _plain(found.seconds),
        "provenance": _plain(found.provenance),
    }


def print_found(found: Found, console: Console | None = None) -> None:
    """Print what a search tried, what it chose, and what that is worth on the test split."""
    console = console or Console()
    title = f"{one_line(found.name, 60)}: {view.heading(found)}"
    console.print(literal(title, console, "bold"))
    _print_trials(found, console)
    for grid in (view.candidates(found), view.promised(found), view.test(found)):
        if grid is not None and grid.rows:
            _print_grid(grid, console)
    console.print(literal(view.importances(found), console))
    if found.chosen is None:
        console.print(literal(view.missed(found), console, "bold"))
    console.print(literal(one_line(found.why, 600), console))


def write_tables(found: Found) -> str:
    """The same as a Markdown page, tune.md, with all trials; all foreign text is escaped."""
    grids = (
        view.promised(found),
        view.test(found),
        view.settings(found),
        view.candidates(found),
        view.trials(found),
    )
    facts = {
        "epsilon": found.epsilon,
        "pareto": found.pareto,
        "space": found.space,
        "seconds": found.seconds,
        "provenance": found.provenance,
    }
    return (
        environment()
        .get_template(TEMPLATE)
        .render(
            name=found.name,
            heading=view.heading(found),
            sentences=[s for s in (one_line(found.why, 600), view.missed(found)) if s],
            grids=[grid for grid in grids if grid is not None and grid.rows],
            lines=[view.importances(found), view.front(found)],
            facts=[(key, value) for key, value in flat(_plain(facts)) if value != "null"],
        )
    )


def _print_trials(found: Found, console: Console) -> None:
    """The best trials; parameters share a column where they would not fit side by side."""
    grid = _first(view.trials(found, reason_limit=60))
    table = _table(grid, console, whole=True)
    if not _fits(table, console):
        grid = _first(view.trials(found, reason_limit=60, compact=True))
        table = _narrow(grid, console)
    _print_under(grid, table, console)
    if len(found.trials) > SHOWN_TRIALS:
        more = f"... and {len(found.trials) - SHOWN_TRIALS} more in tune.json"
        console.print(literal(more, console))
        console.print()


def _first(grid: view.Grid) -> view.Grid:
    return grid._replace(rows=grid.rows[:SHOWN_TRIALS])


def _print_grid(grid: view.Grid, console: Console) -> None:
    table = _table(grid, console)
    if _widths(table, console).maximum > console.width:
        # An interval below its value stays in one piece.
        rows = (Row(r.label, tuple(c.replace(" [", "\n[") for c in r.cells)) for r in grid.rows)
        table = _narrow(grid._replace(rows=tuple(rows)), console)
    _print_under(grid, table, console)


def _narrow(grid: view.Grid, console: Console) -> Table:
    """Numbers in one piece where that fits; else folded, since rich would cut them off."""
    table = _table(grid, console, whole=True)
    return table if _fits(table, console) else _table(grid, console)


def _print_under(grid: view.Grid, table: Table, console: Console) -> None:
    console.print(literal(grid.title, console, "bold"))
    console.print(table)
    if grid.note:
        console.print(literal(grid.note, console))
    console.print()


def _widths(table: Table, console: Console) -> Measurement:
    """The least and the most columns of text a table takes, on a terminal as wide as it likes."""
    return console.measure(table, options=console.options.update(width=10_000))


def _fits(table: Table, console: Console) -> bool:
    return _widths(table, console).minimum <= console.width


def _table(grid: view.Grid, console: Console, whole: bool = False) -> Table:
    """`whole` keeps numbers in one piece: only names and sentences are broken into lines."""
    table = Table(pad_edge=False, padding=(0, 1), collapse_padding=True, box=box.SIMPLE)
    names = (grid.label, *grid.columns)
    for i, name in enumerate(names):
        header = name.replace("_", " ")  # so that a long name can take two lines
        no_wrap = whole and i not in (0, len(names) - 1) and name != view.SETTINGS
        if no_wrap:
            lines = [line for row in grid.rows for line in row.cells[i - 1].split("\n")]
            header = fill(header, max(map(len, [*lines, *header.split()])))
        table.add_column(literal(header, console), overflow="fold", no_wrap=no_wrap)
    for row in grid.rows:
        table.add_row(*(literal(cell, console) for cell in (row.label, *row.cells)))
    return table


def _trial(trial: Trial, epsilon: float) -> dict[str, Any]:
    return {
        "number": trial.number,
        "params": _plain(trial.params),
        "state": trial.state,
        "reason": trial.reason,
        "feasible": feasible(trial, epsilon),
        "a": _measured(trial.a),
        "seconds": _plain(trial.seconds),
    }


def _candidate(candidate: Candidate | None) -> dict[str, Any] | None:
    if candidate is None:
        return None
    return {
        "name": candidate.name,
        "trial": candidate.trial,
        "interpolation": _plain(candidate.interpolation),
        "residual": _plain(candidate.residual),
        "a": _measured(candidate.a),
        "b": _measured(candidate.b),
    }


def _measured(m: Measured | None) -> dict[str, Any] | None:
    """A measurement; `new_score` and `reduction` follow from its other numbers."""
    if m is None:
        return None
    keys = ("n", "unscored", "nfr", "nfr_new", "score", "gain", "new_score", "p")
    return {
        **{key: _plain(getattr(m, key)) for key in keys},
        "reduction": _plain(m.nfr - m.nfr_new),
        "ci95": _plain(m.ci95),
    }


def _promised(found: Found) -> dict[str, Any] | None:
    if found.chosen is None:
        return None
    test = view.chosen_on_test(found)
    return {
        "a": _promise(found.chosen.a),
        "b": _promise(found.chosen.b),
        "test": _promise(None if test is None else test.test),
    }


def _promise(m: Measured | None) -> dict[str, Any] | None:
    keys = ("n", "nfr", "nfr_new", "reduction", "gain", "ci95")
    whole = _measured(m)
    return None if whole is None else {key: whole[key] for key in keys}


def _plain(value: Any) -> Any:
    """A JSON value of nested mappings and sequences; null for what is no number."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
