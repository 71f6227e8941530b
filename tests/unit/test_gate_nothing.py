"""Where nothing can flip there is nothing to pass: no right answer, or none among those listed."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from joined import joined, rows

from muscle.errors import UserError
from muscle.gate import judge, make_limits
from muscle.gate.decide import decide
from muscle.gate.waivers import read_waivers
from muscle.report.build import ReportOptions, report_of
from muscle.report.example_table import write_example_table
from muscle.report.page import read_comparison
from muscle.report.verdict import NOTHING_RIGHT, excluded_lines

TODAY = date(2026, 6, 30)
WRONG = [0.0] * 3000


def report_for(old: Any, new: Any, **more: Any) -> dict[str, Any]:
    task = joined({"old": old, "new": new, **more})
    return report_of({"t": task}, {}, ReportOptions(draws=50))


def write(folder: Path, old: Any, new: Any) -> None:
    task = joined({"old": old, "new": new})
    report = report_of({"t": task}, {}, ReportOptions(draws=50))
    (folder / "report.json").write_text(json.dumps(report))
    write_example_table(str(folder / "examples.parquet"), {"t": task}, "page")


@pytest.mark.parametrize(
    ("limit", "verdict"), [("max_nfr", "not enough evidence"), ("gain", "pass")]
)
def test_no_right_answer_is_no_pass(limit: str, verdict: str) -> None:
    """NFR 0 of 3,000 would pass any limit; a gain is one all the same."""
    report = report_for(rows(WRONG), rows([1.0, *WRONG[1:]]))
    limits = make_limits(max_nfr=0.01) if limit == "max_nfr" else make_limits(min_gain=-0.01)
    gate = decide(report, limits)
    assert gate["verdict"] == verdict
    said = "old has no right answer, so nothing can flip (is it the right filter or metric?)"
    assert (said in gate["reason"]) == (limit == "max_nfr")
    assert any(NOTHING_RIGHT[4:] in line for line in excluded_lines(report["tasks"]["t"]))
    one = report_for(rows([1.0, *WRONG[1:]]), rows([1.0, *WRONG[1:]]))
    assert decide(one, make_limits(max_nfr=0.01))["verdict"] == "pass"
    assert not any(NOTHING_RIGHT[4:] in line for line in excluded_lines(one["tasks"]["t"]))


def test_no_right_answer_beyond_a_noise_floor() -> None:
    report = report_for(rows(WRONG), rows(WRONG), again=rows(WRONG))
    gate = decide(report, make_limits(max_excess_nfr=0.01))
    assert gate["verdict"] == "not enough evidence" and "no right answer" in gate["reason"]


def kept(folder: Path, ids: str) -> dict[str, Any]:
    """The gate on must-keep examples, a digit for each."""
    (folder / "ids.txt").write_text("".join(f"{int(i):06d}\n" for i in ids))
    limits = make_limits(must_keep=str(folder / "ids.txt"))
    return judge(str(folder), limits, today=TODAY, output=str(folder / "out")).gate


def test_must_keep_examples_that_were_wrong(tmp_path: Path) -> None:
    """0 is right in both, 1 wrong in both, 2 mended, 3 broken, 4 unscored in new."""
    old, new = [1.0, 0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0, None]
    write(tmp_path, rows(old), rows(new))
    gate = kept(tmp_path, "12")
    assert gate["verdict"] == "not enough evidence"
    assert (
        "2 of 2 were already wrong in old (000001, 000002): they protect nothing" in gate["reason"]
    )
    assert [entry["id"] for entry in gate["must_keep"]["wrong"]] == ["000001", "000002"]
    gate = kept(tmp_path, "1")
    assert "1 of 1 was already wrong in old (000001): it protects nothing" in gate["reason"]
    gate = kept(tmp_path, "01")
    assert gate["verdict"] == "pass"
    assert any("1 of 2 was already wrong in old (000001)" in note for note in gate["notes"])
    gate = kept(tmp_path, "0")
    assert gate["verdict"] == "pass" and gate["must_keep"]["wrong"] == []
    assert not any("already wrong" in note for note in gate["notes"])
    assert kept(tmp_path, "13")["verdict"] == "fail"
    gate = kept(tmp_path, "4")
    assert gate["verdict"] == "not enough evidence" and gate["must_keep"]["wrong"] == []


def test_graded_answers_are_never_wrong(tmp_path: Path) -> None:
    write(tmp_path, rows([0.5, 0.25]), rows([0.75, 0.25]))
    gate = kept(tmp_path, "01")
    assert gate["verdict"] == "pass" and gate["must_keep"]["wrong"] == []
    assert read_comparison(str(tmp_path))[0]["tasks"]["t"]["continuous"]


ENTRY = "- {id: '7', reason: x, until: 2026-12-31}\n"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (ENTRY * 2, "entry 2: id '7' is waived a second time, first in entry 1"),
        (ENTRY + ENTRY.replace("id:", "task: t, id:") * 2, "entry 3: .* first in entry 2"),
        ("", "is empty"),
        (" \n\n", "is empty"),
    ],
)
def test_waivers_that_are_a_mistake(content: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(content)
    with pytest.raises(UserError, match=text) as caught:
        read_waivers(str(tmp_path / "w.yaml"))
    assert "\n" not in str(caught.value)


def test_waivers_of_one_id_in_two_tasks(tmp_path: Path) -> None:
    two = ENTRY.replace("id:", "task: t, id:") + ENTRY.replace("id:", "task: u, id:")
    (tmp_path / "w.yaml").write_text(two)
    assert len(read_waivers(str(tmp_path / "w.yaml"))) == 2


def test_what_only_the_second_old_has_no_score_for() -> None:
    """4 is missing in new too, and would be left out without any noise floor."""
    old, new = [1.0] * 6, [1.0, 0.0, 1.0, 1.0, None, 1.0]
    again = [1.0, None, 1.0, None, None, 1.0]
    task = report_for(rows(old), rows(new), again=rows(again))["tasks"]["t"]
    (note,) = task["comparability"]
    assert task["n"] == 3 and note["note"].startswith("2 examples are left out")
    assert "second seed" in note["what"]
    for floor in ({}, {"again": rows([1.0] * 4 + [None, 1.0])}):
        assert report_for(rows(old), rows(new), **floor)["tasks"]["t"]["comparability"] == []
