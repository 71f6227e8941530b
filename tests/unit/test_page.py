"""The page, its Markdown and its CSV: what stands in them, and what can't get out of it."""

import base64
import csv
import hashlib
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import fsspec
import numpy as np
import pages
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muscle.errors import UserError
from muscle.report import payload, view, write_csv, write_markdown, write_page
from muscle.report.charts import ROWS, Dot, DotPlot, draw
from muscle.report.csv_files import harmless
from muscle.report.example_rows import OUTCOMES, id_keys, rows_at
from muscle.report.payload import LONG, make_payload, safe_json, shorten
from muscle.report.text import markdown, p_value, visible
from muscle.report.verdict import is_stale, verdict_view


def hostile(text, i):
    return f"{pages.ATTACKS[i % len(pages.ATTACKS)]} {text}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A comparison of two tasks with a noise floor, and what was written of it."""
    path = tmp_path_factory.mktemp("calm")
    about = {"old": {"dtype": "float32"}, "new": {"dtype": "bfloat16"}}
    report = pages.comparison(path, n=240, texts=60, about=about, draws=60)
    (path / "gate.json").write_text(json.dumps(pages.gate_of(report)))
    for write in (write_page, write_markdown, write_csv):
        write(str(path))
    return path


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """A comparison in which every foreign string is an attack."""
    path = tmp_path_factory.mktemp("attacked")
    report = pages.comparison(
        path, n=120, texts=48, foreign=hostile, name=pages.ATTACKS[1], text="all", draws=60,
        about={"old": {"dtype": pages.ATTACKS[0]}, "new": {"dtype": pages.ATTACKS[2]}},
    )  # fmt: skip
    report["provenance"] |= {"command": pages.ATTACKS[2], pages.ATTACKS[0]: pages.ATTACKS[6]}
    (path / "report.json").write_text(json.dumps(report))
    gate = pages.gate_of(report)
    gate |= {"reason": pages.ATTACKS[0], "notes": [pages.ATTACKS[1]]}
    for waiver in gate["waivers"]:
        waiver |= {"id": pages.ATTACKS[5], "reason": pages.ATTACKS[7]}
    (path / "gate.json").write_text(json.dumps(gate))
    for write in (write_page, write_markdown, write_csv):
        write(str(path))
    return path


def report_of(path):
    return json.loads((path / "report.json").read_text())


class Parsed(HTMLParser):
    """Elements with their attributes, and the text of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.inline, self._open = [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inline.append([tag, dict(attrs), ""])
            self._open = tag

    def handle_endtag(self, tag):
        if tag == self._open:
            self._open = None

    def handle_data(self, data):
        if self._open:
            self.inline[-1][2] += data


def parsed(path):
    return Parsed((path / "report.html").read_text(encoding="utf-8"))


def payload_of(path):
    (found,) = [text for _, attrs, text in parsed(path).inline if attrs.get("id") == "examples"]
    return json.loads(found)


# The page can't be left


@pytest.mark.parametrize("which", ["folder", "attacked"])
def test_the_page_runs_its_own_script_only(which, request):
    page = parsed(request.getfixturevalue(which))
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    scripts = [text for tag, attrs, text in page.inline if tag == "script" and "type" not in attrs]
    styles = [text for tag, _, text in page.inline if tag == "style"]
    assert len(scripts) == len(styles) == 1
    for text, rule in ((scripts[0], "script-src"), (styles[0], "style-src")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"
    kinds = [attrs.get("type") for tag, attrs, _ in page.inline if tag == "script"]
    assert kinds == ["application/json", "application/json", None]


@pytest.mark.parametrize("which", ["folder", "attacked"])
def test_no_element_or_attribute_comes_from_outside(which, request):
    page = parsed(request.getfixturevalue(which))
    allowed = {"#", "d"}  # to a place in the page, or a data image
    for tag, attrs in page.elements:
        assert tag not in ("iframe", "object", "embed", "base", "link", "textarea")
        for name, value in attrs.items():
            assert not name.startswith("on") and name != "style", (tag, name)
            if name in ("src", "srcset", "href"):
                assert value[0] in allowed and (value[0] == "#" or value.startswith("data:image"))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 3 and tags.count("style") == 1
    assert "innerHTML" not in (text := page.inline[-1][2]) and "eval(" not in text


@pytest.mark.parametrize("which", ["folder", "attacked"])
def test_nothing_hidden_stands_in_the_page(which, request):
    """Characters that turn text around or are not seen are named in what the template wrote."""
    text = (request.getfixturevalue(which) / "report.html").read_text(encoding="utf-8")
    static = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    assert not set("\u202e\u200b\x1b\x07\u2028\u2029") & set(static)


def test_attacks_reach_the_script_as_they_were(attacked):
    data = payload_of(attacked)
    texts = json.dumps(data, ensure_ascii=False)
    for attack in pages.ATTACKS:
        assert json.dumps(attack, ensure_ascii=False)[1:-1] in texts


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
        max_leaves=8,
    )
)
@settings(max_examples=30, deadline=None)
def test_safe_json_is_json_that_no_parser_leaves(value):
    text = safe_json(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_safe_json_has_no_nan():
    assert safe_json([float("nan"), {"x": float("-inf")}, 1.5]) == '[null,{"x":null},1.5]'


def test_visible():
    assert visible("a\u202eb\x1b[0m\tc\n") == "a[U+202E]b[U+001B][0m\tc\n"
    assert visible("Größe 漢字 😀") == "Größe 漢字 😀"


# What the page carries


def test_counts_are_the_reports(folder):
    report, data = report_of(folder), payload_of(folder)
    totals = {(t, s, p, o): n for t, s, p, o, n in data["totals"]}
    for name, task in report["tasks"].items():
        for pair, entry in task["pairs"].items():
            for outcome in (*OUTCOMES[:5], "equal"):
                count = entry.get(outcome) or 0
                assert totals.get((name, 0, pair, outcome), 0) == count
        change = next(row[2:] for row in data["changes"] if row[0] == name)
        fixed, kept, made, _ = change
        assert fixed + kept == task["pairs"]["old->new"]["negative"]
        assert kept + made == task["pairs"]["old->compat"]["negative"]
        assert sum(change) == task["n"]
        floor = task["noise_floor"]["counts"]["negative"]
        assert totals[name, 0, "old->again", "negative"] == floor
    assert data["shown"]["flips"] == data["shown"]["all_flips"] > 100
    assert len(data["rows"]) == pq.read_metadata(folder / "examples.parquet").num_rows


def test_rows_are_the_tables(folder):
    data = payload_of(folder)
    at = {name: i for i, name in enumerate(data["row"])}
    of = {name: i for i, name in enumerate(data["of_side"])}
    rows = {(r["task"], r["id"]): r for r in pq.read_table(folder / "examples.parquet").to_pylist()}
    for packed in data["rows"]:
        row = rows.pop((data["tasks"][packed[at["task"]]], packed[at["id"]]))
        choices = packed[at["choices"]]

        def text(value, choices=choices):
            return choices[value] if isinstance(value, int) else value

        assert choices == row["choices"] and packed[at["question"]] == row["question"]
        assert text(packed[at["gold"]]) == row["gold"]
        fields = {data["fields"][f][0]: data["fields"][f][1][v] for f, v in packed[at["fields"]]}
        assert fields == dict(row["fields"])
        for i, side in enumerate(data["sides"]):
            values = packed[at["sides"]][i] + [None] * len(of)
            assert values[of["score"]] == pytest.approx(row[f"{side}_score"], abs=1e-6)
            assert text(values[of["answer"]]) == row[f"{side}_answer"]
            assert values[of["error"]] == row[f"{side}_error"]
            assert (values[of["truncated"]]) == row[f"{side}_truncated"]
            assert bool(values[of["near_tie"]]) == bool(row[f"{side}_near_tie"])
            likely = row[f"{side}_loglikelihoods"]
            if likely is not None:
                assert values[of["loglikelihoods"]] == pytest.approx(likely, abs=1e-4)
        for i, pair in enumerate(data["pairs"]):
            assert OUTCOMES[packed[at["outcomes"]][i]] == row[pair.replace("->", "_")]
    assert not rows


def test_what_does_not_fit_is_left_out_by_hash(folder):
    report, path = report_of(folder), str(folder / "examples.parquet")
    whole = make_payload(path, report, 10**8)
    full = len(whole.text().encode())
    seen = None
    for room in (full // 2, full // 4, full // 10, 400):
        part = make_payload(path, report, room)
        assert len(part.text().encode()) <= max(room, 5_000)
        shown = part.head["shown"]
        assert shown["all_flips"] == whole.head["shown"]["all_flips"]
        assert shown["others"] == 0 or shown["flips"] == shown["all_flips"]
        ids = {(r[0], r[2]) for r in map(json.loads, part.rows)}
        assert seen is None or ids < seen  # a smaller page has fewer of the same
        seen = ids
    assert not seen


def test_the_examples_keep_to_their_room(folder):
    report, path = report_of(folder), str(folder / "examples.parquet")
    full = make_payload(path, report, 10**8)
    size = len(full.text().encode())
    for less in (0, 1, 2, 5, 12, 25, 50, 100):
        part = make_payload(path, report, size - less)
        assert size - 3_000 < len(part.text().encode()) <= size - less


@pytest.mark.parametrize("guess", [None, 1e-3, 1e9])
@pytest.mark.parametrize("share", [0.2, 0.7, 2.0])
def test_a_wrong_guess_of_their_size_changes_no_example(folder, monkeypatch, guess, share):
    """What is tried first is a guess; what is shown is not."""

    def read(found):
        fields, rows = found.head["fields"], {}
        for row in map(json.loads, found.rows):
            slices = {fields[f][0]: fields[f][1][v] for f, v in row[6]}
            rows[row[0], row[2]] = [*row[:6], slices, *row[7:]]
        return rows

    report, path = report_of(folder), str(folder / "examples.parquet")
    room = int(share * len(make_payload(path, report, 10**8).text().encode()))
    before = read(make_payload(path, report, room))
    monkeypatch.setattr(payload, "SAMPLE", 7)
    if guess is not None:
        monkeypatch.setattr(payload, "_sizes", lambda *_: guess)
    after = read(make_payload(path, report, room))
    # Values of slices that were tried in vain take some bytes.
    assert abs(len(after) - len(before)) <= 2 and len(after.keys() ^ before.keys()) <= 2
    assert all(row == before[key] for key, row in after.items() if key in before)


def test_rows_are_read_from_their_row_groups_only(tmp_path):
    path = str(tmp_path / "rows.parquet")
    pq.write_table(pa.table({"x": list(range(100))}), path, row_group_size=9)
    asked = []

    class File(pq.ParquetFile):
        def iter_batches(self, batch_size, row_groups):
            asked.append(row_groups)
            return super().iter_batches(batch_size=4, row_groups=row_groups)

    with File(path) as file:
        for places in ([], [0], [8, 9], [3, 40, 41, 42, 98, 99], list(range(100))):
            rows = list(rows_at(file, np.array(places, dtype=np.int64)))
            assert [row["x"] for row in rows] == places
    assert asked[:3] == [[0], [0, 1], [0, 4, 10, 11]]


def test_others_are_a_sample_by_hash(folder):
    report, path = report_of(folder), str(folder / "examples.parquet")
    few = make_payload(path, report, 10**8, others=20)
    assert few.head["shown"]["others"] == 20
    assert few.head["shown"]["flips"] == few.head["shown"]["all_flips"]
    table = pq.read_table(path, columns=["id"])["id"]
    keys = dict(zip(table.to_pylist(), id_keys(table).tolist(), strict=True))
    code = {i for i, o in enumerate(OUTCOMES) if o in ("negative", "positive")}
    rows = [json.loads(r) for r in few.rows]
    others = [r for r in rows if not code & set(r[9])]
    most = max(keys[r[2]] for r in others)
    shown = {r[2] for r in rows}
    assert all(k > most or i in shown for i, k in keys.items())


def test_a_page_keeps_to_its_bytes(folder, tmp_path):
    for name in ("report.json", "examples.parquet"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    write_page(str(tmp_path))
    whole = (tmp_path / "report.html").stat().st_size
    examples = len(json.dumps(payload_of(tmp_path)["rows"]))
    limit = whole - examples // 2
    write_page(str(tmp_path), max_bytes=limit)
    assert whole - examples < (tmp_path / "report.html").stat().st_size <= limit
    assert 0 < len(payload_of(tmp_path)["rows"]) < len(payload_of(folder)["rows"])


def test_long_texts_are_cut_and_say_so():
    assert shorten(None) is None and shorten("x" * LONG) == "x" * LONG
    head, tail, left = shorten("a" * LONG + "b" * LONG)
    assert head + tail == "a" * len(head) + "b" * len(tail)
    assert len(head) + len(tail) + left == 2 * LONG and left == LONG


def test_texts_left_out(tmp_path):
    pages.comparison(tmp_path, n=80, texts=30, text="none", draws=40)
    for write in (write_page, write_markdown, write_csv):
        write(str(tmp_path))
    text = (tmp_path / "report.html").read_text()
    assert "Texts were left out" in text
    data = payload_of(tmp_path)
    assert all(row[3] is row[4] is row[5] is None for row in data["rows"])
    for name in ("report.html", "report.md", "report.csv", "flips.csv"):
        found = (tmp_path / name).read_text()
        assert "Which is the heaviest" not in found and "Amanda" not in found
        assert "glove" not in found


def test_several_seeds_and_two_versions(tmp_path):
    report = pages.comparison(
        tmp_path, n=80, texts=0, seeds=(0, 3), versions=("old", "new"), draws=40
    )
    for write in (write_page, write_markdown, write_csv):
        write(str(tmp_path))
    data = payload_of(tmp_path)
    assert {row[1] for row in data["totals"]} == {0, 3} and data["changes"] == []
    for seed in ("0", "3"):
        counted = report["tasks"]["testbed_choice"]["by_seed"][seed]["pairs"]["old->new"]
        row = ["testbed_choice", int(seed), "old->new", "negative", counted["negative"]]
        assert row in data["totals"]
    assert "Seed 3" in (tmp_path / "report.html").read_text()
    with open(tmp_path / "report.csv") as file:
        assert {row["seed"] for row in csv.DictReader(file)} == {"all", "0", "3"}


# The verdict


def test_verdict_words(folder):
    report = report_of(folder)
    words = {
        "pass": ("pass", "✔", "Pass"),
        "fail": ("fail", "✖", "Fail"),
        "not enough evidence": ("not-enough-evidence", "?", "Not enough evidence"),
    }
    for verdict, (kind, symbol, word) in words.items():
        shown = verdict_view(report, pages.gate_of(report, verdict))
        assert (shown["kind"], shown["symbol"], shown["word"]) == (kind, symbol, word)
        assert shown["checks"][0]["kind"] == kind  # what decided comes first
    unsure = shown["checks"][0]
    assert "3,200" in unsure["more"]
    kept = next(c for c in shown["checks"] if c["limit"].startswith("examples"))
    assert kept["value"] == "0 flipped" and "1 with waived" in kept["more"]
    none = verdict_view(report, None)
    assert none["word"] == "No limit was set" and len(none["readings"]) == 2


def test_a_verdict_of_other_numbers_is_not_shown(folder, tmp_path):
    report = report_of(folder)
    gate = pages.gate_of(report)
    assert not is_stale(report, gate)
    gate["checks"][0]["value"] -= 0.001
    assert is_stale(report, gate) and verdict_view(report, gate)["kind"] == "stale"
    gate["checks"][0]["unwaived"] = report["tasks"]["testbed_choice"]["pairs"]["old->compat"]["nfr"]
    assert not is_stale(report, gate)  # waived flips are why they differ
    gate["checks"][0]["task"] = "another"
    assert is_stale(report, gate)
    for name in ("report.json", "examples.parquet"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "gate.json").write_text(json.dumps(gate))
    write_page(str(tmp_path))
    write_markdown(str(tmp_path))
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert "ticket 481" not in text and "judged again" in text.lower()


def test_the_page_says_what_must_be_known_first(folder):
    text = (folder / "report.html").read_text()
    order = ["Fail</h1>", "ticket 481", "expired: not counted", "The inputs were not made alike",
             "bfloat16", "Left out, cut or in doubt", "the prompt has 613 tokens", "Near ties",
             "Noise floor", "Scores and flips with", "From new to compat", "Examples</h2>",
             "How far scores moved", "All measures</h2>", "muscle compare runs/v1"]  # fmt: skip
    places = [text.index(words) for words in order]
    assert places == sorted(places)


# Markdown


def test_markdown_is_for_pull_requests(folder):
    text = (folder / "report.md").read_text()
    order = ["FAIL", "ticket 481", "not made alike", "## summaries", "## testbed", "How to read"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert "Which is the heaviest" not in text and "side by side" not in text
    assert "noise floor" in text and "Cut because it did not fit" in text
    report = json.loads((folder / "report.json").read_text())
    task = report["tasks"]["testbed_choice"]
    said = view.tests_in_words(task)
    assert any(p_value(task["pairs"]["old->new"]["gain_p"]) in line for line in said[:1])
    assert said[0].startswith("Did accuracy change") and "Guessing would score 25.00 %." in said
    assert all(f"- {markdown(line)}\n" in text for line in said)


def test_markdown_shows_texts_only_where_asked(attacked):
    text = (attacked / "report.md").read_text()
    assert text.count("| right answer |") == 10  # five of each task
    assert "<" not in text.replace("&lt;", "").replace("<!-- -->", "") and not re.search(
        r"(?<!\\)\]\(", text
    )
    for rows in [b.splitlines() for b in text.split("\n\n") if b.startswith("|")]:
        assert len({len(re.sub(r"\\.", "", row).split("|")) for row in rows}) == 1, rows


def test_markdown_to_another_path(folder, tmp_path):
    write_markdown(str(folder), str(tmp_path / "comment.md"))
    assert (tmp_path / "comment.md").read_bytes() == (folder / "report.md").read_bytes()


# CSV


def test_csv_has_the_reports_numbers(folder):
    report = report_of(folder)
    with open(folder / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(r["task"], r["seed"], r["what"], r["name"], r["measure"]): r for r in rows}
    assert len(found) == len(rows)
    for name, task in report["tasks"].items():
        for pair, entry in task["pairs"].items():
            row = found[name, "all", "pair", pair, "nfr"]
            assert float(row["value"]) == entry["nfr"] and int(row["n"]) == task["n"]
            assert [float(row["low"]), float(row["high"])] == entry["ci95"]["nfr"]
            row = found[name, "all", "pair", pair, "nfr_bounds95"]
            assert [float(row["low"]), float(row["high"])] == entry["bounds95"]["nfr"]
        excess = found[name, "all", "noise_floor", "old->new", "excess_nfr"]
        assert float(excess["value"]) == task["noise_floor"]["excess"]["old->new"]["nfr"]
        for part in task["slices"]:
            name_ = f"{part['column']}={part['value']} old->new"
            assert (
                float(found[name, "all", "slice", name_, "nfr"]["value"])
                == (part["pairs"]["old->new"]["nfr"])
            )


def test_flips_csv_has_every_flip(folder):
    with open(folder / "flips.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(folder / "examples.parquet").to_pylist()
    pairs = ("old_new", "old_compat", "new_compat", "old_again")
    flips = {
        (r["task"], r["id"]) for r in table if {r[p] for p in pairs} & {"negative", "positive"}
    }
    assert {(r["task"], r["id"]) for r in rows} == flips and len(rows) == len(flips)
    assert not any("question" in name or "answer" in name for name in rows[0])


def test_no_cell_is_a_formula(attacked):
    for name in ("report.csv", "flips.csv"):
        with open(attacked / name, newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert name == "report.csv" or any(cell.startswith("'=cmd") for cell in cells)
        for cell in cells:
            if cell[:1] in ("=", "+", "-", "@", "\t", "\r"):
                float(cell)  # a number of ours
    assert harmless("=1") == "'=1" and harmless("a=1") == "a=1" and harmless("\tx") == "'\tx"


# Charts


def test_pictures_have_markers_words_and_two_modes():
    groups = [("a $x_1$ <b>&", [Dot("old", 70.0, (68.0, 72.0)), Dot("compat", 71.0, None)])]
    (picture,) = draw(DotPlot("Scores", "%", groups))
    assert set(picture.images) == {"light-wide", "light-narrow", "dark-wide", "dark-narrow"}
    assert "old 70.00 (68.00 to 72.00)" in picture.alt and "compat 71.00" in picture.alt
    texts = {}
    for name, uri in picture.images.items():
        svg = base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,"))
        root = ET.fromstring(svg)
        texts[name] = "".join(root.itertext())
        assert "a $x_1$ <b>&" in texts[name]  # no mathematics, no markup
        assert (b"#1b1d21" in svg) == name.startswith("light")
    assert texts["light-wide"] == texts["dark-wide"]
    again = draw(DotPlot("Scores", "%", groups))
    assert again[0].images == picture.images  # the same bytes every time


def test_many_tasks_become_several_pictures():
    groups = [(f"t{i}", [Dot("old", float(i), None)]) for i in range(ROWS + 1)]
    first, second = draw(DotPlot("Scores", "%", groups))
    assert "(1 of 2)" in first.title and "(2 of 2)" in second.title
    assert draw(DotPlot("Scores", "%", [("t", [])])) == []


def test_scores_that_are_no_shares_are_no_percentages():
    block = {"versions": {"old": {"score": -1.25, "ci95": None}}}
    assert view.score_row(block) == ("score", ("−1.250",))
    block["versions"]["old"]["score"] = 0.25
    assert view.score_row(block) == ("score %", ("25.00",))


# Files


def test_missing_and_broken_files(folder, tmp_path):
    with pytest.raises(UserError, match="no whole report"):
        write_page(str(tmp_path))
    (tmp_path / "report.json").write_text('{"schema": "muscle.report/1", "tasks": {}}')
    with pytest.raises(UserError, match="compare the predictions again"):
        write_csv(str(tmp_path))
    (tmp_path / "report.json").write_bytes((folder / "report.json").read_bytes())
    write_page(str(tmp_path))  # without examples there are still the numbers
    assert "examples.parquet was not beside" in (tmp_path / "report.html").read_text()
    whole = (folder / "examples.parquet").read_bytes()
    (tmp_path / "examples.parquet").write_bytes(whole[: len(whole) // 2])
    report, table = report_of(folder), str(tmp_path / "examples.parquet")
    with pytest.raises(UserError, match="not a whole Parquet file"):
        make_payload(table, report, 10**6)
    del report["tasks"]["summaries"]
    (tmp_path / "examples.parquet").write_bytes(whole)
    with pytest.raises(UserError, match=r"60 rows of task 'summaries'.* it 0: they are of two"):
        make_payload(table, report, 10**6)


def test_remote_folder(folder):
    fs = fsspec.filesystem("memory")
    for name in ("report.json", "examples.parquet", "gate.json"):
        fs.pipe_file(f"/muscle-page/{name}", (folder / name).read_bytes())
    for write in (write_page, write_markdown, write_csv):
        write("memory://muscle-page")
    for name in ("report.html", "report.md", "report.csv", "flips.csv"):
        assert fs.cat_file(f"/muscle-page/{name}") == (folder / name).read_bytes()


def test_empty_and_all_right(tmp_path):
    from muscle.report.build import ReportOptions, report_of
    from muscle.report.example_table import write_example_table
    from muscle.types import Prediction

    for name, score in (("right", 1.0), ("unscored", None)):
        rows = [Prediction("t", str(i), "q", "a", "a", "acc", score) for i in range(9)]
        tasks = pages.joined([{0: {"old": rows, "new": rows, "compat": rows}}])
        path = tmp_path / name
        path.mkdir()
        report = report_of(tasks, {}, ReportOptions(draws=20))
        (path / "report.json").write_text(json.dumps(report))
        write_example_table(str(path / "examples.parquet"), tasks, "page")
        for write in (write_page, write_markdown, write_csv):
            write(str(path))
    assert "nothing to remove" in (tmp_path / "right" / "report.html").read_text()
    assert "Nothing can be said" in (tmp_path / "unscored" / "report.html").read_text()


def test_drawing_is_loaded_only_to_draw():
    code = (
        "import muscle.report, sys;"
        "heavy = {'matplotlib', 'jinja2', 'pandas', 'scipy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hashes_of_ids_are_spread():
    keys = id_keys(pa.array([f"q-{i}" for i in range(20_000)]))
    assert len(np.unique(keys)) == 20_000
    assert np.mean(keys / 2**64) == pytest.approx(0.5, abs=0.01)
