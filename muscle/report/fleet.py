"""A fleet's record as fleet.json, fleet.html, fleet.md, fleet.csv, and on the console."""

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from muscle.report import fleet_view as view
from muscle.report.csv_files import harmless
from muscle.report.html import TEMPLATES, fixed_parts, page_environment
from muscle.report.page import environment
from muscle.report.table import literal
from muscle.report.text import one_line
from muscle.storage import join, write_bytes

PAGE, MARKDOWN, TABLE, RECORD = "fleet.html", "fleet.md", "fleet.csv", "fleet.json"
SCRIPTS = ("start", "tables", "fleet")
STYLES = {
    "move": "green",
    "move with compat": "green",
    "stay": "bold red",
    "not enough evidence": "yellow",
    "failed": "bold red",
}
_RATES = ("nfr", "relative_nfr", "gain")


def write_fleet(folder: str, record: Mapping[str, Any]) -> list[str]:
    """Write a fleet's files, fleet.json last; returns their paths, the shortest to read last.

    Args:
        folder: any fsspec path; the adapters' own folders are in it.
        record: the content of fleet.json.

    Raises:
        UserError: a file can't be written.
        ValueError: the record holds NaN or infinity.
    """
    data = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    texts = {
        PAGE: render_page(record),
        MARKDOWN: render_markdown(record),
        TABLE: render_csv(record),
    }
    for name, text in texts.items():
        write_bytes(join(folder, name), text.encode("utf-8", "replace"))
    write_bytes(join(folder, RECORD), data.encode("utf-8", "backslashreplace"))
    return [join(folder, name) for name in (PAGE, MARKDOWN, RECORD)]


def render_page(record: Mapping[str, Any]) -> str:
    """The page: one file that opens offline; every text in it is escaped."""
    extra = (TEMPLATES / "fleet.css").read_text(encoding="utf-8")
    return (
        page_environment()
        .get_template("fleet.html.j2")
        .render(
            **fixed_parts(SCRIPTS, extra),
            name=record["name"],
            heading=view.heading(record),
            kind=view.kind(record),
            counts=view.counts(record),
            columns=view.COLUMNS,
            rows=view.rows(record),
            schema=record["schema"],
            muscle=record["muscle"],
        )
    )


def render_markdown(record: Mapping[str, Any]) -> str:
    """The same for a pull request or a chat; every text in it is literal."""
    return (
        environment()
        .get_template("fleet.md.j2")
        .render(
            name=record["name"],
            heading=view.heading(record),
            columns=[f"{what} ({of})" for what, of in view.COLUMNS],
            rows=[(row, [view.cell(found) for found in row.figures]) for row in view.rows(record)],
        )
    )


def render_csv(record: Mapping[str, Any]) -> str:
    """A line for each adapter with every number, as fractions; no cell runs as a formula."""
    sink = io.StringIO()
    lines = [_line(adapter) for adapter in record["adapters"]]
    writer = csv.DictWriter(sink, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({k: harmless(v) if isinstance(v, str) else v for k, v in line.items()})
    return sink.getvalue()


def _line(adapter: Mapping[str, Any]) -> dict[str, Any]:
    line = {key: adapter[key] for key in ("name", "task", "decision", "reason", "needed_n", "n")}
    line["reason"] = one_line(adapter["reason"], 600)
    for name in ("old", "new", "compat"):
        line[f"score {name}"] = (adapter["scores"].get(name) or {}).get("score")
    for name in ("old->new", "old->compat"):
        pair = adapter["pairs"].get(name) or {}
        for rate in _RATES:
            low, high = (pair.get("ci95") or {}).get(rate) or (None, None)
            line |= {f"{rate} {name}": pair.get(rate)}
            line |= {f"{rate} {name} low": low, f"{rate} {name} high": high}
        line[f"gate {name}"] = (adapter["gates"].get(name) or {}).get("verdict")
    line["noise floor"] = (adapter["noise_floor"] or {}).get("nfr")
    return line


def print_fleet(record: Mapping[str, Any], console: Console) -> None:
    """Print the table of all adapters, why each that can't simply move can't, and the result."""
    table = Table(pad_edge=False, padding=(0, 1), box=box.SIMPLE)
    for header in ("adapter", "decision", "n", "old", "new", "compat", "NFR new", "NFR compat"):
        number = header not in ("adapter", "decision")
        table.add_column(
            literal(header, console), overflow="fold", justify="right" if number else "left"
        )
    for row in view.rows(record):
        numbers = [view.cell(found, digits_only=True) for found in row.figures[:6]]
        table.add_row(
            literal(one_line(row.name, 60), console),
            literal(row.decision, console, STYLES[row.decision]),
            *(literal(number, console) for number in numbers),
        )
    console.print(table)
    for row in view.rows(record):
        if row.decision not in ("move", "move with compat") or row.note:
            text = f"{one_line(row.name, 60)}: {row.why}" + (f" {row.note}" if row.note else "")
            console.print(literal(text, console), soft_wrap=True)
    console.print(literal(view.heading(record), console, "bold"), soft_wrap=True)
