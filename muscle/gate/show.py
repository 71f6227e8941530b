"""The verdict on the console."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from muscle.gate import words
from muscle.report.table import literal
from muscle.report.text import one_line

STYLES = {"pass": "green", "fail": "bold red", "not enough evidence": "yellow"}
_MOST_NAMED = 5


def print_gate(gate: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the checks as a table, what waivers did, and the verdict with its reason."""
    console = console or Console()
    if gate["checks"]:
        console.print(_table(gate, console))
    decisive = [check for check in gate["checks"] if check["verdict"] == gate["verdict"]]
    for check in gate["checks"]:
        if check["verdict"] != "pass" and check is not decisive[0]:  # that one is the reason
            line = f"{check['verdict']}: {check['text']}"
            console.print(literal(line, console), soft_wrap=True)
    for line in [*gate["notes"], *waiver_lines(gate)]:
        console.print(literal(one_line(line, 400), console), soft_wrap=True)
    verdict = literal(gate["verdict"], console, STYLES[gate["verdict"]])
    console.print(verdict, literal(gate["reason"], console), sep=": ", soft_wrap=True)


def waiver_lines(gate: Mapping[str, Any]) -> list[str]:
    """Waivers by what became of them; expired ones by name, since they no longer help."""
    lines = []
    for state, meaning in (
        ("used", "allow a flip"),
        ("unused", "allow nothing that flipped"),
        ("expired", "expired and don't count"),
    ):
        found = [w for w in gate["waivers"] if w["state"] == state]
        if found:
            named = ", ".join(
                f"{one_line(w['id'], 40)} (until {w['until']})" for w in found[:_MOST_NAMED]
            )
            more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
            lines.append(f"waivers that {meaning}: {named}{more}")
    return lines


def _table(gate: Mapping[str, Any], console: Console) -> Table:
    title = literal(words.arrow(gate["pair"]), console, "bold")
    table = Table(title=title, title_justify="left", pad_edge=False, padding=(0, 1), box=box.SIMPLE)
    widths = {"where": 10, "limit": 16, "seen": None, "95 % bounds": None, "n": None, "verdict": 10}
    for header, width in widths.items():
        name = literal(header, console)
        table.add_column(name, overflow="fold", no_wrap=width is None, min_width=width)
    for check in gate["checks"]:
        limit, plain = check["limit"], check["plain"]
        value, *bounds = (
            words.amount(limit, check[key], False, plain) for key in ("value", "lower", "upper")
        )
        keep = limit == "must_keep"
        cells = (
            words.place(check["task"], check["slice"]),
            words.short_name(limit, check["delta"], plain),
            f"{check['value']:.0f}" if keep else value,
            "" if keep else f"[{bounds[0]}, {bounds[1]}]",
            f"{check['n']:,}",
        )
        style = STYLES[check["verdict"]]
        table.add_row(
            *(literal(cell, console) for cell in cells), literal(check["verdict"], console, style)
        )
    return table
