"""The page in a real Chromium: clicks, filters, keys, attacks, phones, the dark."""

import json
import re
from pathlib import Path
from typing import Any

import pages
import pytest

from muscle.report import write_page
from muscle.report.build import ReportOptions, report_of
from muscle.report.example_table import write_example_table

PAGE = 50


def hostile(text: str, i: int) -> str:
    return f"{pages.ATTACKS[i % len(pages.ATTACKS)]} {text}"


@pytest.fixture(scope="module")
def calm(tmp_path_factory: Any) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("calm")
    report = pages.comparison(folder, n=300, texts=80, draws=60)
    (folder / "gate.json").write_text(json.dumps(pages.gate_of(report)))
    write_page(str(folder))
    return folder / "report.html", report


def count(page: Any) -> int:
    return int(re.match(r"[\d,]+", page.inner_text("#count"))[0].replace(",", ""))


def until(page: Any, condition: str) -> None:
    """Wait for an expression to hold; the page's policy forbids Playwright's own way."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {condition}")


def ids(page: Any) -> list[str]:
    return [text.rsplit("· ", 1)[-1] for text in page.locator("#list .id").all_inner_texts()]


def values(page: Any) -> dict[str, str]:
    return page.evaluate(
        "() => Object.fromEntries([...document.querySelector('.filters').elements]"
        ".filter(e => e.name).map(e => [e.name, e.value]))"
    )


def test_quadrants_filter_and_their_counts_are_the_reports(calm: Any, visit: Any) -> None:
    path, report = calm
    with visit(path) as page:
        tasks = sorted(report["tasks"])
        for place, name in enumerate(tasks):
            box = page.locator(f".quadrants[data-task='{place}']")
            for pair, entry in report["tasks"][name]["pairs"].items():
                box.locator(f"[data-choice='{pair}']").click()
                shown = box.locator(".q").evaluate_all(
                    "all => all.map(q => [q.dataset.outcome, q.querySelector('b').textContent])"
                )
                assert len(shown) == (3 if report["tasks"][name]["continuous"] else 5)
                for outcome, number in shown:
                    assert int(number.replace(",", "")) == entry[outcome]
                    box.locator(f"[data-outcome='{outcome}']").click()
                    assert count(page) == entry[outcome]
                    now = values(page)
                    assert (now["task"], now["pair"], now["outcome"]) == (name, pair, outcome)
        assert page.evaluate("document.activeElement.id") == "list"


def test_what_compat_changed_filters(calm: Any, visit: Any) -> None:
    path, report = calm
    with visit(path) as page:
        for name in report["tasks"]:
            pairs = report["tasks"][name]["pairs"]
            got = {}
            for change in ("fixed", "kept", "made"):
                button = page.locator(f".fatecard[data-task='{name}'] [data-change='{change}']")
                got[change] = int(button.locator("b").inner_text().replace(",", ""))
                button.click()
                assert count(page) == got[change] and values(page)["change"] == change
            assert got["fixed"] + got["kept"] == pairs["old->new"]["negative"]
            assert got["kept"] + got["made"] == pairs["old->compat"]["negative"]


def test_verdict_is_a_word(calm: Any, visit: Any) -> None:
    with visit(calm[0]) as page:
        assert re.search(r"✖\s*FAIL", page.inner_text("h1"))
        assert "Fail" in page.title()


def test_filters_search_and_slices(calm: Any, visit: Any) -> None:
    path, _ = calm
    with visit(path) as page:
        page.click("#reset")
        everything = count(page)
        assert everything == 380
        page.select_option("[name=task]", "testbed_choice")
        page.select_option("[name=field]", "subject")
        page.select_option("[name=value]", "logic")
        assert count(page) == 75
        page.select_option("[name=ties]", "only")
        ties = count(page)
        page.select_option("[name=ties]", "no")
        assert 0 < count(page) == 75 - ties
        page.click("#reset")
        page.select_option("[name=cut]", "only")
        assert count(page) == 2 + 4  # every 50th answer, every 97th prompt
        page.click("#reset")
        page.fill("[name=q]", "Q-00012")
        until(page, "document.querySelector('#count').textContent.startsWith('1 ')")
        assert ids(page) == ["q-00012"]
        page.fill("[name=q]", "glove heaviest")
        until(page, "!document.querySelector('#count').textContent.startsWith('1 ')")
        assert 1 < count(page) < 300
        for text in page.locator("#list .id").all_inner_texts():
            assert text.startswith("testbed_choice")
        page.fill("[name=q]", "no such words anywhere")
        page.wait_for_selector("#list .empty")
        assert count(page) == 0 and "No example" in page.inner_text("#detail")


def test_slices_open_their_flips_and_tables_sort(calm: Any, visit: Any) -> None:
    path, report = calm
    with visit(path) as page:
        table = page.locator("table.slices").nth(1)
        table.get_by_role("button", name="= logic").click()
        part = next(s for s in report["tasks"]["testbed_choice"]["slices"] if s["value"] == "logic")
        assert count(page) == part["pairs"]["old->new"]["negative"]
        table.locator("thead button").nth(1).click()
        sizes = [
            int(t.split()[0]) for t in table.locator("tbody tr td:nth-child(2)").all_inner_texts()
        ]
        assert sizes == sorted(sizes, reverse=True)
        table.locator("thead button").nth(1).click()
        assert table.locator("thead th").nth(1).get_attribute("aria-sort") == "ascending"


def test_sorting(calm: Any, visit: Any) -> None:
    path, _ = calm
    with visit(path) as page:
        page.select_option("[name=task]", "testbed_choice")
        page.select_option("[name=pair]", "old->new")
        assert ids(page) == sorted(ids(page))
        page.select_option("[name=sort]", "margin")
        texts = page.locator("#list .snip").all_inner_texts()
        margins = [float(re.match(r"margin ([\d.]+)", text)[1]) for text in texts]
        assert len(margins) > 5 and margins == sorted(margins, reverse=True)
        page.click("#reset")
        page.select_option("[name=task]", "summaries")
        page.select_option("[name=sort]", "difference")
        assert "▼ worse" in page.locator("#list li").first.inner_text()
        changes = []
        for _ in range(3):
            text = page.inner_text("#detail")
            changes.append(float(re.search(r"old→new ([−+\d.]+)", text)[1].replace("−", "-")))
            page.keyboard.press("Tab")
            page.focus("#list")
            page.keyboard.press("ArrowDown")
        assert changes == sorted(changes)


def test_keyboard_alone(calm: Any, visit: Any) -> None:
    path, _ = calm
    with visit(path) as page:
        assert page.evaluate("scrollY") == 0  # the verdict is what opens
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.click("#reset")
        page.focus("#list")

        def chosen() -> str:
            return page.locator("#list [aria-selected=true] .id").inner_text()

        first = chosen()
        page.keyboard.press("j")
        second = chosen()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("k")
        assert first != second == chosen()
        active = page.get_attribute("#list", "aria-activedescendant")
        assert page.locator(f"#{active} .id").inner_text() == second
        assert second.rsplit("· ", 1)[-1] in page.inner_text("#detail h3")
        page.keyboard.press("PageDown")
        assert page.inner_text("#place").startswith(f"{PAGE + 1}–")
        page.keyboard.press("End")
        assert page.inner_text("#place").endswith("380 of 380")
        inside = """() => {
          const box = (s) => document.querySelector(s).getBoundingClientRect();
          const list = box("#list"), row = box("#list [aria-selected=true]");
          return row.top >= list.top - 1 && row.bottom <= list.bottom + 1;
        }"""
        assert page.evaluate(inside)
        page.keyboard.press("Home")
        assert chosen() == first
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "detail"
        page.keyboard.press("j")
        assert chosen() == second
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.name") == "q"
        page.keyboard.type("jk")
        assert page.input_value("[name=q]") == "jk"  # letters are letters there
        # Every control shows where the focus is.
        for selector in (".q", ".filters select", "summary", "#list", "nav a", "th button"):
            page.locator(selector).first.focus()
            page.keyboard.press("Shift")
            style = "e => getComputedStyle(e).outlineStyle + getComputedStyle(e).outlineWidth"
            assert page.locator(selector).first.evaluate(style) == "solid3px", selector


def test_the_address_keeps_the_view(calm: Any, visit: Any) -> None:
    path, _ = calm
    with visit(path) as page:
        page.select_option("[name=pair]", "old->new")
        page.select_option("[name=outcome]", "positive")
        page.select_option("[name=sort]", "margin")
        page.locator("#list li").nth(3).click()
        address = page.evaluate("location.hash")
        seen = (values(page), page.inner_text("#detail"), ids(page))
    with visit(path, address) as page:
        assert (values(page), page.inner_text("#detail"), ids(page)) == seen
    with visit(path, "#browser?task=nonsense&pair=x&page=-7&field=%3Cscript%3E&outcome=zz") as page:
        assert count(page) == 0


def test_a_copied_link_opens_the_same_seeds_example(tmp_path: Path, visit: Any) -> None:
    """Every seed, and often every task, has the same ids."""
    pages.comparison(tmp_path, n=60, texts=0, seeds=(0, 1), draws=20)
    write_page(str(tmp_path))
    with visit(tmp_path / "report.html") as page:
        page.click("#reset")
        until(page, "document.querySelector('#count').textContent.startsWith('120 ')")
        page.locator("#list").focus()
        page.keyboard.press("End")
        seen, address = page.inner_text("#detail"), page.evaluate("location.hash")
        assert "seed 1" in seen
    with visit(tmp_path / "report.html", address) as page:
        assert page.inner_text("#detail") == seen


def test_detail_shows_answers_diff_and_choices(calm: Any, visit: Any) -> None:
    path, _ = calm
    with visit(path) as page:
        page.locator(".quadrants[data-task='1'] [data-choice='old->new']").click()
        page.locator(".quadrants[data-task='1'] [data-outcome='negative']").click()
        text = page.inner_text("#detail")
        said = ["Prompt", "Right answer", "✓ right", "✗ wrong", "✓ the right one", "◀"]
        said += ["Log-likelihoods", "Margin: new prefers", "old→new: ▼ negative flip"]
        for words in said:
            assert words in text, words
        table = page.locator("#detail table")
        rows = [row.split("\t") for row in table.locator("tbody tr").all_inner_texts()]
        numbers = [float(row[2].replace("−", "-").split()[0]) for row in rows]
        assert ["◀" in row[2] for row in rows].index(True) == numbers.index(max(numbers))
        # Beside a long name (old, trained again) the verdict stays on one line.
        lines = page.evaluate("""() => {
          document.querySelectorAll("#detail .answer header > :first-child")
            .forEach((name) => { name.textContent = "trained again ".repeat(5); });
          return [...document.querySelectorAll("#detail .answer header :is(.right, .wrong)")]
            .map((mark) => {
              const words = document.createRange();
              words.selectNodeContents(mark);
              return words.getClientRects().length;
            });
        }""")
        assert len(lines) > 1 and set(lines) == {1}
        page.locator(".quadrants[data-task='0'] [data-outcome='negative']").click()
        page.locator("#detail summary", has_text="raw response").first.click()
        page.get_by_text("Dialogue: and so on").first.wait_for()


def test_word_diff(visit: Any, calm: Any) -> None:
    """What is marked as inserted and deleted turns one text into the other."""
    path, _ = calm
    with visit(path) as page:
        page.click("#reset")
        page.select_option("[name=task]", "summaries")
        page.focus("#list")
        marked = 0
        for _ in range(40):
            boxes = page.evaluate("""() => {
              const text = (side) => document.querySelector(`#detail .answer.${side} .text`);
              const parts = [...text("new").childNodes].map((n) => [n.nodeName, n.textContent]);
              return [text("old").textContent, parts];
            }""")
            old, parts = boxes
            if any(kind in ("INS", "DEL") for kind, _ in parts):
                marked += 1
                assert "".join(t for kind, t in parts if kind != "INS").split() == old.split()
            page.keyboard.press("j")
        assert marked > 3


def test_attacks_do_nothing(tmp_path: Path, visit: Any) -> None:
    report = pages.comparison(
        tmp_path, n=120, texts=48, foreign=hostile, name=pages.ATTACKS[2], draws=40,
        about={"old": {"dtype": pages.ATTACKS[0]}, "new": {"dtype": pages.ATTACKS[1]}},
    )  # fmt: skip
    report["provenance"] |= {"command": pages.ATTACKS[2], pages.ATTACKS[7]: pages.ATTACKS[0]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    gate = pages.gate_of(report) | {"reason": pages.ATTACKS[7], "notes": [pages.ATTACKS[1]]}
    (tmp_path / "gate.json").write_text(json.dumps(gate))
    write_page(str(tmp_path))
    with visit(tmp_path / "report.html") as page:
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        page.click("#reset")
        for select in ("task", "field", "value"):
            options = page.locator(f"[name={select}] option").count()
            page.select_option(f"[name={select}]", index=options - 1)
        page.click("#reset")
        page.fill("[name=q]", "<script>")
        page.wait_for_timeout(250)
        page.click("#reset")
        page.focus("#list")
        unfold = "document.querySelectorAll('#detail details').forEach((d) => { d.open = true; })"
        for _ in range(40):
            page.keyboard.press("j")
            page.evaluate(unfold)
        attacked = page.evaluate("window.attacked")
        assert attacked is None
        tags = page.evaluate("[...document.querySelectorAll('iframe, script, style')].length")
        assert tags == 4  # ours: two of data, the script, the style
        images = page.evaluate("[...document.images].every((i) => i.src.startsWith('data:'))")
        assert images and "49" not in page.inner_text("#detail .text")
        assert page.evaluate("({}).polluted") is None
        # What can't be seen is named.
        page.fill("[name=q]", "gnp.exe")
        until(page, "document.querySelector('#list .id') !== null")
        page.wait_for_timeout(250)
        assert "U+202E" in page.inner_text("#detail")


def test_a_script_put_in_by_hand_is_refused(calm: Any, chromium: Any, tmp_path: Path) -> None:
    """The policy holds by itself: markup that escaping had missed still runs nothing."""
    text = calm[0].read_text()
    bad = '<script>window.attacked=1</script><img src=x onerror="window.attacked=2">'
    (tmp_path / "bad.html").write_text(text.replace("<main", bad + "<main", 1))
    page = chromium.new_page()
    page.goto((tmp_path / "bad.html").as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    assert page.evaluate("window.attacked") is None
    page.close()


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_the_screen(calm: Any, visit: Any, width: int, scheme: str) -> None:
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with visit(calm[0], **options) as page:
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        image = page.evaluate("document.querySelector('figure img').currentSrc")
        svg = page.evaluate("(u) => atob(u.split(',')[1])", image)
        assert ("#e9eaed" in svg) == (scheme == "dark")


def luminance(colour: str) -> float:
    parts = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(calm: Any, visit: Any, scheme: str) -> None:
    """Every text has the contrast that WCAG asks for, 4.5 to 1, on what lies below it."""
    with visit(calm[0], color_scheme=scheme) as page:
        found = page.evaluate("""() => {
          const seen = new Map();
          for (const e of document.querySelectorAll("body *")) {
            if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
            if (e.disabled || e.closest("noscript, script, style, svg, option")) continue;
            let below = e;
            const clear = (b) => /rgba\\(.*, 0\\)/.test(getComputedStyle(b).backgroundColor);
            while (below && clear(below)) below = below.parentElement;
            const s = getComputedStyle(e);
            const paper = getComputedStyle(below || document.body).backgroundColor;
            seen.set(s.color + paper, [s.color, paper, e.outerHTML.slice(0, 80)]);
          }
          return [...seen.values()];
        }""")
    assert len(found) > 8
    for ink, paper, where in found:
        if "color(" in paper:
            continue
        one, two = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (one + 0.05) / (two + 0.05) >= 4.5, (ink, paper, where)


def test_print_has_no_controls(calm: Any, visit: Any) -> None:
    with visit(calm[0]) as page:
        page.emulate_media(media="print")
        assert not page.is_visible(".filters") and page.is_visible("h1")


def test_a_hundred_thousand_examples(tmp_path: Path, visit: Any) -> None:
    """However many there are, a page of them is drawn."""
    import numpy as np
    import pyarrow as pa

    from muscle.metrics.pairing import join_sides
    from muscle.side import Side

    n = 100_000
    rng = np.random.default_rng(0)
    base = {
        "id": pa.array([f"example-{i:06d}" for i in range(n)]),
        "question": pa.array([f"What is {i} and {i % 977}?" for i in range(n)]),
        "gold": pa.array([str(i) for i in range(n)]),
    }

    def side(version: str, right: float) -> Side:
        good = rng.random(n) < right
        answers = np.where(good, np.arange(n).astype(str), "no idea")
        columns = base | {"score": pa.array(good.astype(float)), "prediction": pa.array(answers)}

        def read(name: str) -> pa.ChunkedArray | None:
            return pa.chunked_array([columns[name]]) if name in columns else None

        return Side("large", "acc", version, n, read, {})

    tasks = join_sides(
        {0: {"old": {"large": side("old", 0.6)}, "new": {"large": side("new", 0.7)}}}
    )
    report = report_of(tasks, {}, ReportOptions(draws=20))
    (tmp_path / "report.json").write_text(json.dumps(report))
    write_example_table(str(tmp_path / "examples.parquet"), tasks, "page")
    write_page(str(tmp_path))
    assert (tmp_path / "report.html").stat().st_size < 60_000_000
    pair = report["tasks"]["large"]["pairs"]["old->new"]
    with visit(tmp_path / "report.html") as page:
        assert count(page) == pair["negative"] > 10_000
        assert page.locator("#list li").count() == PAGE
        page.fill("[name=q]", "example-0000")
        until(page, "/^[0-9]{1,3} /.test(document.querySelector('#count').textContent)")
        assert 0 < count(page) < 100 and page.locator("#list li").count() <= PAGE
        page.click("#reset")
        page.focus("#list")
        page.keyboard.press("End")
        assert page.locator("#list li").count() <= PAGE
        page.select_option("[name=outcome]", "both_right")
        shown, every = re.findall(r"[\d,]+", page.inner_text("#count"))[:2]
        assert int(every.replace(",", "")) == pair["both_right"] > int(shown.replace(",", ""))
        assert "not in this page" in page.inner_text("#count")
