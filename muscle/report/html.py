"""report.html: one file that opens offline, runs its own script only and fetches nothing."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muscle.report import view
from muscle.report.closer import slice_columns
from muscle.report.example_rows import COUNTED
from muscle.report.html_view import page_view
from muscle.report.page import read_comparison
from muscle.report.payload import make_payload, safe_json
from muscle.report.text import visible
from muscle.report.verdict import is_stale
from muscle.storage import exists, join, write_bytes

if TYPE_CHECKING:
    import jinja2

PAGE = "report.html"
EXAMPLES = "examples.parquet"
TEMPLATES = Path(__file__).parent / "templates"
TEMPLATE = "report.html.j2"
SCRIPTS = ("start", "diff", "state", "list", "detail", "quadrant", "tables", "end")
"""The parts of the page's one script, in the order in which they run."""
# Where the examples go in. Foreign text can't hold it: its "<" is escaped.
_HERE = "<!--examples-->"


def write_page(folder: str, *, max_bytes: int = 60_000_000) -> None:
    """Write report.html from report.json, examples.parquet and, if there, gate.json.

    Args:
        folder: where a comparison wrote its files; any fsspec path.
        max_bytes: of the page. All flips are on it while they fit, then some other
            examples; the page says how many of how many.

    Raises:
        UserError: report.json is missing or broken, examples.parquet is broken or of
            another comparison, the page can't be written.
    """
    report, gate = read_comparison(folder)
    before, after = _render(report, gate).split(_HERE)
    room = (
        max_bytes - len(before.encode("utf-8", "replace")) - len(after.encode("utf-8", "replace"))
    )
    examples = join(folder, EXAMPLES)
    carried = make_payload(examples, report, room).text() if exists(examples) else "null"
    page = f"{before}{carried}{after}"
    write_bytes(join(folder, PAGE), page.encode("utf-8", "replace"))


def _render(report: Mapping[str, Any], gate: Mapping[str, Any] | None) -> str:
    import markupsafe

    shown = page_view(report, gate)
    if gate is not None and is_stale(report, gate):
        gate = None  # the page says so; its waivers are of other flips
    return (
        page_environment()
        .get_template(TEMPLATE)
        .render(
            **shown,
            **fixed_parts(SCRIPTS),
            facts=markupsafe.Markup(safe_json(_facts(report, gate))),
            here=markupsafe.Markup(_HERE),
            slice_columns=[slice_columns(report["tasks"][t["name"]]) for t in shown["tasks"]],
        )
    )


def fixed_parts(scripts: Sequence[str], more_style: str = "") -> dict[str, Any]:
    """A page's style and script, and their hashes for its content security policy.

    Args:
        scripts: of `templates/page`, in the order in which they run.
        more_style: put after the common one.
    """
    import markupsafe

    style = (TEMPLATES / "page.css").read_text(encoding="utf-8") + more_style
    script = "".join(
        (TEMPLATES / "page" / f"{name}.js").read_text(encoding="utf-8") for name in scripts
    )
    return {
        "style": markupsafe.Markup(style),
        "script": markupsafe.Markup(script),
        "style_hash": _hash(style),
        "script_hash": _hash(script),
    }


def _hash(text: str) -> str:
    """What a content security policy calls this very text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def page_environment() -> "jinja2.Environment":
    """Templates in which every value is escaped and no character is invisible."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )


def _facts(report: Mapping[str, Any], gate: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the script needs of the report: the counts of every task, seed and pair."""
    tasks = []
    for name, task in sorted(report["tasks"].items()):
        counts = {
            seed: {
                pair: {c: block["pairs"][pair].get(c) for c in COUNTED}
                for pair in view.pairs(block)
            }
            for seed, block in task["by_seed"].items()
        }
        tasks.append(
            {
                "name": name,
                "n": task["n"],
                "unscored": task["unscored"],
                "percent": view.in_percent(dict(task)),
                "metric": task["metric"],
                "continuous": "equal" in task["pairs"]["old->new"],
                "counts": counts,
            }
        )
    waived = [w for w in (gate or {}).get("waivers") or [] if w.get("state") == "used"]
    return {
        "tasks": tasks,
        "pair": (gate or {}).get("pair") or "old->new",
        "waived": [[w.get("task"), w["id"], w["reason"], str(w.get("until"))] for w in waived],
        "text": report.get("text", "page"),
    }
