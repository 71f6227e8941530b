"""A fleet's page, Markdown, table and console: what needs somebody first, nothing foreign runs."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fleets import DECIDED, record
from pages import ATTACKS
from rich.console import Console

from muscle.report import fleet_view as view
from muscle.report.fleet import (
    print_fleet,
    render_csv,
    render_markdown,
    render_page,
    write_fleet,
)
from muscle.report.html import _hash


class Seen(HTMLParser):
    """Tags, with the attributes that could do something, and texts of cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.dangerous: list[tuple[str, str]] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name.startswith("on") or name in ("src", "srcdoc", "style"):
                self.dangerous.append((tag, name))
            if name == "href":
                self.links.append(str(value))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_needs_somebody_stands_first() -> None:
    order = [row.decision for row in view.rows(record())]
    assert order == sorted(DECIDED, key=view.ORDER.index)
    assert order[0] == "failed" and order[-1] == "move"
    assert view.heading(record()) == (
        "6 adapters: 2 move, 1 move with compat, 1 without enough evidence, 1 stay, 1 failed"
    )
    assert view.heading(record(decided=("move",))) == "1 adapter: 1 move"


@pytest.mark.parametrize(
    ("decided", "kind"),
    [(("move",), "pass"), (("move", "stay"), "fail"), (("not enough evidence",), "not-enough")],
)
def test_the_pages_colour_is_the_exit_codes(decided: tuple[str, ...], kind: str) -> None:
    assert f'class="verdict {kind}' in render_page(record(decided=decided))


def test_the_numbers_are_those_of_what_is_served() -> None:
    rows = {row.decision: row for row in view.rows(record())}
    columns = [what for what, _ in view.COLUMNS]
    stay = dict(zip(columns, rows["stay"].figures, strict=True))
    assert (stay["n"].value, stay["compat"].value) == ("1,234", "50.00")
    assert (stay["gain"].value, stay["relative NFR"].value) == ("−0.73", "0.210")
    assert stay["gate's bounds"].value == "1.10 to 3.10"
    assert stay["gate's bounds"].interval == "NFR % ≤ 2.00"
    assert stay["noise floor %"].value == "1.00"
    assert {figure.value for figure in rows["failed"].figures} == {"–"}
    unsure = rows["not enough evidence"]
    assert "4,000 examples" in unsure.why and "when: always" in unsure.why


@pytest.mark.parametrize("attack", ATTACKS)
def test_foreign_text_is_only_text(attack: str) -> None:
    plain, page = Seen(render_page(record())), render_page(record(attack))
    found = Seen(page)
    assert found.tags.count("script") == plain.tags.count("script") == 3
    assert set(found.tags) == set(plain.tags)
    assert found.dangerous == [] and found.links == plain.links
    markdown = render_markdown(record(attack))
    assert "<script" not in markdown and not re.search(r"(?<!\\)\]\(", markdown)
    assert len(markdown.splitlines()) == len(render_markdown(record("x")).splitlines())
    rows = list(csv.DictReader(io.StringIO(render_csv(record(attack)))))
    assert len(rows) == len(DECIDED)
    assert not any(str(value).startswith(("=", "@")) for row in rows for value in row.values())


def test_the_page_runs_its_own_script_only_and_fetches_nothing() -> None:
    page = render_page(record())
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None and "default-src 'none'" in policy[1]
    for tag in ("style", "script"):
        (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        assert f"{tag}-src '{_hash(inner)}'" in policy[1]
    links = [link for link in Seen(page).links if not link.startswith("#")]
    assert sorted(links) == [f"adapter-{i}/report.html" for i in (0, 2, 3, 4, 5)]


def test_what_is_written(tmp_path: Path) -> None:
    paths = write_fleet(str(tmp_path), record())
    assert {path.name for path in tmp_path.iterdir()} == {
        "fleet.html",
        "fleet.md",
        "fleet.csv",
        "fleet.json",
    }
    assert [Path(path).name for path in paths] == ["fleet.html", "fleet.md", "fleet.json"]
    assert json.loads((tmp_path / "fleet.json").read_text()) == record()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_fleet(str(tmp_path), record())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def printed(found: dict[str, Any]) -> str:
    console = Console(width=120, file=io.StringIO(), force_terminal=False)
    print_fleet(found, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_console_says_who_can_not_simply_move_and_why() -> None:
    text = printed(record())
    for i, decision in enumerate(DECIDED):
        assert re.search(rf"adapter-{i}\s+{decision}\s", text)
    said = text.splitlines()
    assert any(line.startswith("adapter-1: failed since") for line in said)
    assert not any(line.startswith("adapter-0:") for line in said)
    assert "\x1b[31m" not in printed(record("\x1b[31m[bold]"))
    assert "[bold]" in printed(record("[bold]"))
