"""An evaluation's scores on the console."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from muscle.report.table import literal
from muscle.report.text import number, one_line, percent


def print_scores(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a table of every task and group by model, then the noise of repeats.

    `result` is that of `muscle.evaluate`; intervals are 95 % ones.
    """
    console = console or Console()
    versions = result["versions"]
    title = literal(
        "scores; those from 0 to 1 in %, the deciding ones with 95 % intervals", console
    )
    table = Table(title=title, pad_edge=False, padding=(0, 1), box=box.SIMPLE)
    for name in ("task", "metric", "n", *versions):
        table.add_column(literal(name, console), overflow="fold")
    first = next(iter(versions.values()))
    for task, of_first in first["tasks"].items():
        cells = [_score(v["tasks"][task]) for v in versions.values()]
        row = [task, of_first["metric"], str(of_first["n"]), *cells]
        table.add_row(*(literal(one_line(cell, 80), console) for cell in row))
        for key in of_first["scores"]:
            if key != f"{of_first['metric']},{of_first['filter']}":
                cells = [_plain(v["tasks"][task]["scores"].get(key)) for v in versions.values()]
                table.add_row(*(literal(one_line(c, 80), console) for c in ["", key, "", *cells]))
    for group in first["groups"]:
        for key in first["groups"][group]:
            cells = [_plain(v["groups"][group].get(key)) for v in versions.values()]
            row = [f"group {group}", key, "", *cells]
            table.add_row(*(literal(one_line(cell, 80), console) for cell in row))
    console.print(table)
    for name, version in versions.items():
        _print_noise(name, version["tasks"], console)


def _plain(value: float | None) -> str:
    """A score without an interval: percent in [0, 1], else the number."""
    return (percent if value is not None and 0 <= value <= 1 else number)(value)


def _score(task: Mapping[str, Any]) -> str:
    """The deciding score: percent for what is counted or lies in [0, 1], else the number."""
    if task["score"] is None:
        return "none scored"
    show = percent if 0 <= task["score"] <= 1 else number
    text = show(task["score"])
    if task["ci95"] is not None:
        low, high = task["ci95"]
        text += f" [{show(low)}, {show(high)}]"
    return text + (f", {task['unscored']} unscored" if task["unscored"] else "")


def _print_noise(name: str, tasks: Mapping[str, Any], console: Console) -> None:
    for task, found in tasks.items():
        for number_, noise in enumerate(found.get("repeats", ()), start=2):
            changed = f"{noise['changed']} of {noise['n']} answers"
            if noise["ci95"] is not None:
                low, high = noise["ci95"]
                rate = percent(noise["changed_rate"])
                changed += f" ({rate} % [{percent(low)}, {percent(high)}])"
            text = (
                f"{name}, {one_line(task, 60)}, repeat {number_}: {changed} changed; "
                f"{noise['negative']} worse, {noise['positive']} better"
            )
            if noise["loglikelihood"] is not None:
                text += f"; log-likelihoods differ by up to {noise['loglikelihood']['nats']:.2g}"
            console.print(literal(text, console), soft_wrap=True)
