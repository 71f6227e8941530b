"""The fleet's page in a real Chromium: filter, search, sort, attacks, phones."""

from pathlib import Path
from typing import Any

import fleets
import pages
import pytest

from muscle.report.fleet import write_fleet


@pytest.fixture
def page_file(tmp_path: Path) -> Path:
    write_fleet(str(tmp_path), fleets.record())
    return tmp_path / "fleet.html"


def names(page: Any) -> list[str]:
    shown = page.locator("#fleet tbody tr:visible th").all_inner_texts()
    return [text.split("\n")[0] for text in shown]


def test_filter_search_and_sort(page_file: Path, visit: Any) -> None:
    with visit(page_file) as page:
        assert names(page) == [f"adapter-{i}" for i in (1, 3, 4, 2, 0, 5)]
        page.select_option("#sieve select", "move")
        assert names(page) == ["adapter-0", "adapter-5"]
        assert page.inner_text("#shown") == "2 of 6 adapters"
        page.fill("#sieve input", "ADAPTER-5 since")
        assert names(page) == ["adapter-5"]
        page.select_option("#sieve select", "")
        page.fill("#sieve input", "")
        page.get_by_role("button", name="adapter").click()
        assert names(page) == [f"adapter-{i}" for i in (5, 4, 3, 2, 1, 0)]
        page.get_by_role("button", name="decision").click()
        page.get_by_role("button", name="decision").click()
        assert names(page)[0] == "adapter-1", "sorted by what needs somebody, not by its letters"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_only_the_table_scrolls(page_file: Path, visit: Any, scheme: str) -> None:
    small = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme}
    with visit(page_file, **small) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_nothing_foreign_runs(tmp_path: Path, visit: Any) -> None:
    write_fleet(str(tmp_path), fleets.record("".join(pages.ATTACKS)))
    with visit(tmp_path / "fleet.html") as page:
        page.fill("#sieve input", "script")
        assert page.evaluate("window.attacked === undefined")
        assert len(names(page)) == 6
