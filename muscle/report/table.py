"""The report on the console."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from muscle.report import view
from muscle.report.examples import FlipExample
from muscle.report.older_view import older_views
from muscle.report.text import one_line

_ASCII = str.maketrans({"→": "->", "−": "-", "Δ": "d", "–": "-", "…": "...", "κ": "kappa"})


def literal(content: str, console: Console, style: str = "") -> Text:
    """Text that no markup or terminal code in it can change; ASCII where there's no more."""
    if console.options.ascii_only:
        content = content.translate(_ASCII).encode("ascii", "replace").decode()
    return Text(content, style=style)


def print_table(report: dict[str, Any], console: Console | None = None) -> None:
    """Print one table for each task of a report, and its reading in one sentence."""
    console = console or Console()
    for name, task in report["tasks"].items():
        title = literal(
            f"{one_line(name, 60)}: {one_line(view.heading(task), 120)}", console, "bold"
        )
        console.print(title)
        console.print(_table(task, console))
        console.print(literal(one_line(view.reading(task), 600), console))
        for older in older_views(task):
            said = f"Since {older['label']}: {older['reading']}"
            console.print(literal(one_line(said, 600), console))
        console.print()


def _table(task: dict[str, Any], console: Console) -> Table:
    columns = max(len(view.versions(task)), len(view.pairs(task)))
    table = Table(show_header=False, pad_edge=False, padding=(0, 1), box=box.SIMPLE)
    for _ in range(1 + columns):
        table.add_column(overflow="fold")

    def add(label: str, cells: Iterable[str], style: str = "", last: bool = False) -> None:
        texts = [literal(c, console, style) for c in (label, *cells)]
        table.add_row(*texts, end_section=last)

    score, rates, reduction = view.score_row(task), view.rate_rows(task), view.reduction_rows(task)
    add("", view.versions(task), "bold")
    add(*score, last=True)
    add("", map(view.arrow, view.pairs(task)), "bold")
    for row in rates:
        add(*row, last=row is rates[-1] and bool(reduction))
    if reduction:
        add("", ["compat against new", "95 % interval"], "bold")
    for row in reduction:
        add(*row)
    return table


def print_examples(
    examples: Sequence[FlipExample], console: Console | None = None, limit: int = 300
) -> None:
    """Print flips side by side; every text in them is shown literally and cut."""
    console = console or Console()
    for example in examples:
        table = Table(show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        rows = [
            ("question", example.old.question),
            ("right answer", example.old.gold),
            ("old", example.old.prediction),
            ("new", example.new.prediction),
        ]
        if example.compat is not None:
            rows.append(("compat", example.compat.prediction))
        for label, content in rows:
            table.add_row(literal(label, console), literal(one_line(content, limit), console))
        console.print(table)
