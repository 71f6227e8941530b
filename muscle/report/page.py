"""report.json and report.md, each put in place in one step."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muscle.errors import UserError
from muscle.report import view
from muscle.report.build import SCHEMA
from muscle.report.example_rows import pick_flips
from muscle.report.examples import FlipExample
from muscle.report.older_view import older_views
from muscle.report.private import without_instructions
from muscle.report.text import markdown, one_line, p_value, percent, plain
from muscle.report.verdict import engine_line, excluded_lines, notes_view, verdict_view
from muscle.storage import exists, join, read_json, sha256, write_bytes

if TYPE_CHECKING:
    import jinja2

TEMPLATE = "report.md.j2"
SIGNIFICANT = 0.05


def write_report(
    report: dict[str, Any],
    path_json: str | Path,
    path_md: str | Path,
    examples: Sequence[FlipExample] = (),
) -> None:
    """Write a report as JSON and as a Markdown page, to any fsspec path.

    Each file appears whole or not at all. The JSON comes last, so where it stands the
    page stands too.

    Args:
        report: what `build_report` returned.
        examples: negative flips to show on the page, from `pick_examples`.

    Raises:
        ValueError: the report holds NaN or infinity (JSON has neither).
        TypeError: provenance holds something that is no JSON value.
        UserError: a file can't be written.
    """
    data = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    page = render_page(report, examples)
    write_bytes(str(path_md), page.encode("utf-8", "replace"))
    write_bytes(str(path_json), data.encode("utf-8", "backslashreplace"))


def write_markdown(folder: str, path: str | None = None) -> None:
    """Write report.md for a pull request, from report.json, gate.json and, where texts may be
    shown (`text` is "all"), up to five flips of each task from examples.parquet.

    Args:
        folder: where a comparison wrote its files; any fsspec path.
        path: another file to write instead of report.md in that folder.

    Raises:
        UserError: report.json is missing or broken, or the page can't be written.
    """
    report, gate = read_comparison(folder)
    table = join(folder, "examples.parquet")
    flips = pick_flips(table) if report.get("text") == "all" and exists(table) else {}
    page = _render(report, gate, {name: list(map(_flip, rows)) for name, rows in flips.items()})
    write_bytes(path or join(folder, "report.md"), page.encode("utf-8", "replace"))


def render_page(report: dict[str, Any], examples: Sequence[FlipExample] = ()) -> str:
    """The Markdown page of a report; all foreign text in it is escaped."""
    shown: dict[str, list[dict[str, str]]] = {}
    for example in examples:
        shown.setdefault(example.old.task, []).append(_example(example))
    return _render(report, None, shown)


def _render(
    report: dict[str, Any],
    gate: Mapping[str, Any] | None,
    examples: Mapping[str, list[dict[str, str]]],
) -> str:
    if report.get("text") == "page":
        report = without_instructions(report)
    tasks = [
        {**task_view(name, task), "examples": examples.get(name, [])}
        for name, task in sorted(report["tasks"].items())
    ]
    return (
        environment()
        .get_template(TEMPLATE)
        .render(
            verdict=None if gate is None else verdict_view(report, gate),
            notes=notes_view(report),
            engine=engine_line(report),
            provenance=list(flat(report["provenance"])),
            tasks=tasks,
        )
    )


def read_comparison(folder: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """report.json of a folder, and gate.json where limits were given (with `stale`: whether
    it judged another report.json).

    Raises:
        UserError: report.json is missing, broken or of another version of ours.
    """
    path = join(folder, "report.json")
    report = read_json(path)
    if not isinstance(report, dict):
        raise UserError(f"{path}: is no whole report; write it with muscle compare")
    if report.get("schema") != SCHEMA:
        raise UserError(
            f"{path}: has schema {str(report.get('schema'))[:40]!r}, but this muscle reads "
            f"{SCHEMA!r}; compare the predictions again"
        )
    gate = read_json(join(folder, "gate.json"))
    if not isinstance(gate, dict):
        return report, None
    if "report_sha256" in gate:
        gate["stale"] = gate["report_sha256"] != sha256(path)
    return report, gate


def environment() -> "jinja2.Environment":
    """Our templates; `md` and `yaml` make any text literal in Markdown and in YAML."""
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # The page is Markdown: `md` escapes more than HTML's escaping would.
        autoescape=False,
    )
    found.filters["md"] = markdown
    found.filters["yaml"] = lambda text: json.dumps(plain(str(text)))  # JSON is YAML
    return found


def task_view(name: str, task: dict[str, Any]) -> dict[str, Any]:
    """One task of a report as a template shows it."""
    return {
        "name": name,
        "heading": view.heading(task),
        "reading": view.reading(task),
        "versions": view.versions(task),
        "pairs": [view.arrow(p) for p in view.pairs(task)],
        "score": view.score_row(task),
        "rates": view.rate_rows(task, full=True),
        "counts": view.count_rows(task),
        "outcomes": view.outcome_rows(task),
        "reduction": view.reduction_rows(task),
        "seeds": _seeds(task) if len(task["by_seed"]) > 1 else [],
        "excluded": excluded_lines(task),
        "tests": view.tests_in_words(task),
        "slices": list(significant_slices(task)),
        "older": older_views(task),
    }


def significant_slices(task: Mapping[str, Any]) -> Iterator[str]:
    """Slices whose NFR differs from the rest's, or that compat changes, after Holm's
    correction: one line each."""
    for part in task.get("slices") or []:
        where = f"{part['column']} = {part['value']} (n = {part['n']})"
        for pair, entry in part["pairs"].items():
            p = entry.get("p_holm")
            if p is not None and p < SIGNIFICANT:
                rest = f"NFR {percent(entry['nfr'])} %, of the whole task "
                rest += f"{percent(task['pairs'][pair]['nfr'])} %"
                yield f"{where}, {view.arrow(pair)}: {rest}; corrected {p_value(p)}"
        change = part.get("reduction")
        if change and change.get("p_holm") is not None and change["p_holm"] < SIGNIFICANT:
            points = percent(change["nfr"], 2, signed=True)
            yield (
                f"{where}: ΔNFR of compat against new {points} points; "
                f"corrected {p_value(change['p_holm'])}"
            )


def _seeds(task: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "seed": seed,
            "score": view.score_row(block),
            "counts": view.count_rows(block),
            "rates": view.rate_rows(block)[:2],
            "reduction": view.reduction_rows(block),
        }
        for seed, block in task["by_seed"].items()
    ]


def _example(example: FlipExample) -> dict[str, str]:
    cells = {
        "id": example.old.id,
        "question": one_line(example.old.question, 600),
        "gold": example.old.gold,
        "old": example.old.prediction,
        "new": example.new.prediction,
    }
    if example.compat is not None:
        right = example.compat.score is not None and example.compat.score >= (
            example.old.score or 0.0
        )
        cells["compat"] = example.compat.prediction
        cells["compat_note"] = "no longer worse than old" if right else "still worse than old"
    return {key: one_line(value, 600) for key, value in cells.items()}


def _flip(row: Mapping[str, Any]) -> dict[str, str]:
    """A negative flip of examples.parquet, as `_example` shows one."""
    cells = {"id": row["id"], "question": row["question"], "gold": row["gold"]}
    cells |= {"old": row["old_answer"], "new": row["new_answer"]}
    if "compat_answer" in row:
        cells["compat"] = row["compat_answer"]
        worse = row["old_compat"] == "negative"
        cells["compat_note"] = "still worse than old" if worse else "no longer worse than old"
    return {key: one_line(value, 600) for key, value in cells.items()}


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings or provenance as lines "a.b" -> text."""
    if isinstance(value, Mapping) and (value or not prefix):
        lines = []
        for key, inner in value.items():
            lines += flat(inner, f"{prefix}.{key}" if prefix else str(key))
        return lines
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return [(prefix, one_line(shown, 300))]
