"""Must-keep lists, waivers and JUnit XML: users' files as they come, hostile text harmless."""

from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from gating import answers, report_block, task_block, write_outcomes
from hypothesis import given, settings
from hypothesis import strategies as st

from muscle.errors import UserError
from muscle.gate import make_limits
from muscle.gate.decide import Kept, decide
from muscle.gate.junit import MOST_FLIPS, clean, junit_xml
from muscle.gate.must_keep import keep, read_must_keep
from muscle.gate.outcomes import Outcomes, read_outcomes
from muscle.gate.waivers import Waiver, apply, read_waivers

TODAY = date(2026, 6, 30)


def written(folder: Path, text: str | bytes, name: str = "file.txt") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


OUTCOMES = Outcomes(
    known=frozenset({("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("b", "9")}),
    flipped=frozenset({("a", "1"), ("a", "2"), ("b", "1")}),
    unscored=frozenset({("a", "3")}),
)

# Must keep


def test_a_must_keep_file_as_editors_write_it(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf# the ones that broke before\r\n1\r\n\r\na\t2\r\n 9 \r\n1\r\nx\ty\r\n"
    entries, comments = read_must_keep(written(tmp_path, text), {"a", "b"})
    assert comments == ["# the ones that broke before"]
    assert entries == [(None, "1"), ("a", "2"), (None, "9"), (None, "x\ty")]


def test_a_must_keep_file_of_nothing_proves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lists no id"):
        read_must_keep(written(tmp_path, "# nothing\n\n"), {"a"})


@pytest.mark.parametrize(("data", "said"), [(None, "does not exist"), (b"\xff\xfe1", "UTF-8")])
def test_an_unreadable_list_is_one_line(tmp_path: Path, data: bytes | None, said: str) -> None:
    path = str(tmp_path / "nowhere.txt") if data is None else written(tmp_path, data)
    with pytest.raises(UserError, match=said):
        read_must_keep(path, {"a"})


def test_kept_flipped_waived_and_unscored() -> None:
    found = keep("ids", [(None, "1"), ("a", "3"), ("b", "9"), ("b", "1")], OUTCOMES, {("b", "1")})
    assert found.ids == 4 and found.counts == {"a": 2, "b": 2}
    assert found.flipped == [
        {"task": "a", "id": "1", "waived": False},
        {"task": "b", "id": "1", "waived": True},
    ]
    assert found.unscored == [{"task": "a", "id": "3"}]


@pytest.mark.parametrize("wanted", [(None, "77"), ("b", "2"), ("c", "1")])
def test_an_unknown_must_keep_id_is_named(wanted: tuple[str | None, str]) -> None:
    with pytest.raises(UserError) as refused:
        keep("ids.txt", [(None, "1"), wanted], OUTCOMES, set())
    assert f"ids.txt: id '{wanted[1]}' is " in str(refused.value)


def kept(flipped: list[dict[str, Any]], unscored: list[dict[str, str]]) -> dict[str, Any]:
    report = report_block(a=task_block(*answers(990, 2, 8, 0)))
    found = Kept("ids.txt", 3, {"a": 3}, flipped, unscored)
    return decide(report, make_limits(must_keep="ids.txt"), kept=found)


NOTHING_FLIPPED = kept([], [])


def test_a_flip_fails_a_waived_one_does_not_an_unscored_one_is_unsure() -> None:
    flip = {"task": "a", "id": "7", "waived": False}
    missing = [{"task": "a", "id": "8"}]
    assert kept([], [])["verdict"] == "pass"
    assert kept([flip], missing)["verdict"] == "fail" and "7" in kept([flip], [])["reason"]
    assert kept([{**flip, "waived": True}], [])["verdict"] == "pass"
    assert kept([{**flip, "waived": True}], missing)["verdict"] == "not enough evidence"


# What flipped


def rows() -> list[dict[str, Any]]:
    outcomes = {"x": ["negative", "both_right"], "y": ["both_right", "negative"]}
    outcomes |= {"z": ["unscored", "unscored"], "w": ["positive", "both_wrong_same"]}
    return [
        {"task": "a", "id": i, "seed": seed, "old_new": said[seed]}
        for i, said in outcomes.items()
        for seed in (0, 1)
    ]


def test_a_flip_in_any_seed_is_one(tmp_path: Path) -> None:
    write_outcomes(tmp_path, rows())
    found = read_outcomes(str(tmp_path), "old->new", ["x", "y", "z", "w", "v"], "must-keep")
    assert found.known == {("a", i) for i in "xyzw"}
    assert found.flipped == {("a", "x"), ("a", "y")}
    assert found.unscored == {("a", "z")}


def test_outcomes_of_others_are_not_read(tmp_path: Path) -> None:
    write_outcomes(tmp_path, rows())
    assert read_outcomes(str(tmp_path), "old->new", ["w"], "waive").known == {("a", "w")}


def test_examples_that_cant_be_read_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must-keep needs examples.parquet beside the report"):
        read_outcomes(str(tmp_path), "old->new", ["x"], "must-keep")
    write_outcomes(tmp_path, rows())
    with pytest.raises(UserError, match="no column 'old_compat'"):
        read_outcomes(str(tmp_path), "old->compat", ["x"], "must-keep")
    file = tmp_path / "examples.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match="is not a whole table") as refused:
        read_outcomes(str(tmp_path), "old->new", ["x"], "must-keep")
    assert "\n" not in str(refused.value)


# Waivers

GOOD = """
- {id: 0012, task: a, reason: known typo, until: 2026-12-31}
- {id: 1, reason: gold is wrong, until: 2026-06-30}
"""


def test_waivers_are_read_as_they_stand(tmp_path: Path) -> None:
    first, second = read_waivers(written(tmp_path, GOOD))
    assert first == Waiver(id="0012", task="a", reason="known typo", until=date(2026, 12, 31))
    assert (second.id, second.task) == ("1", None)


def test_an_empty_file_waives_nothing(tmp_path: Path) -> None:
    assert read_waivers(written(tmp_path, "# none yet\n")) == []
    assert read_waivers(written(tmp_path, "[]")) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {id: 1, reason: x}", "'until' is missing"),
        ("- {id: 1, reason: ' ', until: 2026-12-31}", "reason"),
        ("- {id: '', reason: x, until: 2026-12-31}", "'id'"),
        ("- {id: 1, reason: x, until: 20261231}", "write it as 2026-12-31"),
        ("- {id: 1, reason: x, until: 2026-13-45}", "until"),
        ("- {id: 1, reason: x, until: 2026-12-31, who: me}", "unknown setting 'who'"),
        ("- {id: 1, reason: [x], until: 2026-12-31}", "'reason'"),
        ("- 17", "must have id, reason and until"),
        ("id: 1", "must be a list"),
        ("- {id: 1", "is not YAML"),
        ("- !!python/object/apply:os.system ['false']", "must have id"),
    ],
)
def test_a_wrong_waiver_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        read_waivers(written(tmp_path, text, "waivers.yaml"))
    message = str(refused.value)
    assert said in message and "waivers.yaml" in message and "\n" not in message


def waiver(name: str, until: str, task: str | None = None) -> Waiver:
    return Waiver(id=name, task=task, reason="because", until=date.fromisoformat(until))


def test_waivers_are_used_unused_or_expired() -> None:
    given = [
        waiver("1", "2026-06-30"),  # the last day counts; both tasks have this id
        waiver("2", "2026-06-29"),
        waiver("9", "2027-01-01"),
        waiver("1", "2027-01-01", "b"),
    ]
    applied = apply(given, OUTCOMES, "w.yaml", TODAY)
    assert applied.waived == {("a", "1"), ("b", "1")}
    assert [entry["state"] for entry in applied.entries] == ["used", "expired", "unused", "used"]
    assert applied.entries[1] == {
        "id": "2", "task": None, "reason": "because", "until": "2026-06-29", "state": "expired",
    }  # fmt: skip


def test_a_waiver_for_nobody_is_refused() -> None:
    with pytest.raises(UserError, match="'77' is in no task"):
        apply([waiver("77", "2027-01-01")], OUTCOMES, "w.yaml", TODAY)


# JUnit


def parsed(gate: dict[str, Any]) -> ElementTree.Element:
    return ElementTree.fromstring(junit_xml(gate))


def test_junit_has_a_suite_for_each_task_and_a_case_for_each_check() -> None:
    report = report_block(
        good=task_block(*answers(990, 0, 10, 0)),
        bad=task_block(*answers(900, 100, 0, 0)),
        few=task_block(*answers(20, 0, 0, 0)),
    )
    root = parsed(decide(report, make_limits(max_nfr=0.02)))
    suites = {suite.get("name"): suite for suite in root}
    assert set(suites) == {"good", "bad", "few"}
    assert suites["good"][0].get("name") == "NFR old→new ≤ 2.00 %"
    assert len(suites["good"][0]) == 0
    assert suites["bad"][0][0].tag == "failure"
    error = suites["few"][0][0]
    assert (error.tag, error.get("type")) == ("error", "not enough evidence")
    counts = {name: root.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "3", "failures": "1", "errors": "1", "skipped": "0"}


def test_flipped_must_keep_examples_are_cases_up_to_a_thousand() -> None:
    flips = [{"task": "a", "id": str(i), "waived": i == 0} for i in range(MOST_FLIPS + 5)]
    root = parsed(kept(flips, []))
    names = [case.get("name") or "" for case in root.iter("testcase")]
    assert sum(name.startswith("must keep ") for name in names) == MOST_FLIPS
    assert "must keep: 5 more flipped" in names
    assert root.get("skipped") == "1" and root.get("failures") == str(MOST_FLIPS + 1)


@settings(max_examples=50, deadline=None)
@given(st.text(), st.text())
def test_any_name_makes_well_formed_xml(task: str, name: str) -> None:
    flip = {"task": task, "id": name, "waived": False}
    gate = {**NOTHING_FLIPPED, "must_keep": {"flipped": [flip]}}
    cases = [case for case in parsed(gate).iter("testcase")]
    assert cases[-1].get("classname") is not None

    def kept_by_xml(text: str) -> str:  # attribute values normalize white space
        return clean(text).replace("\t", " ").replace("\n", " ").replace("\r", " ")

    assert kept_by_xml(cases[-1].get("name") or "") == kept_by_xml(f"must keep {name}")


def test_what_xml_cant_hold_is_left_out() -> None:
    assert clean("a\x00b\x1b\ud800\ufffe<&\n") == "ab<&\n"
