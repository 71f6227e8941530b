"""What a gate can't see is no pass: examples without a score, slices that are too small."""

import json
from dataclasses import replace
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gating import answers, report_block, slice_block, task_block, write_report
from hypothesis import given, settings
from hypothesis import strategies as st
from joined import joined, rows, scored
from scipy.stats import beta

from muscle.cli import main
from muscle.errors import UserError
from muscle.gate import judge, make_limits
from muscle.gate.decide import decide
from muscle.report.build import ReportOptions, report_of
from muscle.report.example_table import write_example_table
from muscle.report.page import read_comparison
from muscle.report.verdict import is_stale, verdict_view

UNSURE = "not enough evidence"
TODAY = date(2026, 6, 30)


def checks_of(report: dict[str, Any], **limits: Any) -> list[dict[str, Any]]:
    return list(decide(report, make_limits(**limits))["checks"])


def compared(folder: Path, old: Any, new: Any, options: ReportOptions | None = None) -> Any:
    """A comparison of lists of predictions in a folder; its one task in the report."""
    task = joined({"old": old, "new": new})
    report = report_of({"t": task}, {}, options or ReportOptions(draws=50))
    write_report(folder, report)
    write_example_table(str(folder / "examples.parquet"), {"t": task}, "page")
    return report["tasks"]["t"]


def judged(folder: Path, **limits: Any) -> dict[str, Any]:
    made = make_limits(**limits)
    return judge(str(folder), made, today=TODAY, output=str(folder / "out")).gate


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a wrong usage."""
    with pytest.raises(SystemExit) as stopped:
        main(["gate", *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1, error
    return error


# Examples without a score


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6), st.integers(100, 900), st.integers(1, 20), st.floats(0.005, 0.3))
def test_every_unscored_example_might_be_a_flip(k: int, n: int, m: int, delta: float) -> None:
    """A pass holds were all of them flips, by scipy's exact bound of k + m flips of n + m."""
    block = task_block(*answers(n - k, k, 0, 0)) | {"unscored": m}
    (check,) = checks_of(report_block(a=block), max_nfr=delta)
    seen, worst = beta.ppf(0.95, k + 1, n - k), beta.ppf(0.95, k + m + 1, n - k)
    assert (check["verdict"] == "pass") == (worst <= delta)
    assert bool(check["but"]) == (seen <= delta < worst)
    if check["but"]:
        assert check["verdict"] == UNSURE and f"{m:,} more example" in check["text"]
    block["pairs"]["old->new"] |= {"negative": None, "positive": None}  # as with several seeds
    assert checks_of(report_block(a=block), max_nfr=delta)[0]["verdict"] == check["verdict"]


def test_a_failure_stays_one() -> None:
    block = task_block(*answers(900, 100, 0, 0)) | {"unscored": 5}
    assert checks_of(report_block(a=block), max_nfr=0.02)[0]["verdict"] == "fail"


@pytest.mark.parametrize("m", [0, 10, 60, 1200])
@pytest.mark.parametrize(
    ("limit", "delta"), [("max_excess_nfr", 0.05), ("max_relative_nfr", 0.2), ("min_gain", -0.05)]
)
def test_other_limits_as_if_the_unscored_were_scored_at_their_worst(
    limit: str, delta: float, m: int
) -> None:
    old, new = answers(6000, 60, 60, 3880)
    block = task_block(old, new, again=old.copy()) | {"unscored": m}
    block["versions"] = {"old": {"score": old.mean()}, "new": {"score": new.mean()}}
    (found,) = checks_of(report_block(a=block), **{limit: delta})
    old, new = answers(6000, 60 + m, 60, 3880)
    worst = task_block(old, new, again=old.copy())
    (expected,) = checks_of(report_block(a=worst), **{limit: delta})
    assert (found["verdict"] == "pass") == (expected["verdict"] == "pass") == (m < 1200)


def test_scores_without_a_worst_are_only_noted() -> None:
    block = task_block(*answers(9000, 0, 900, 100)) | {"unscored": 9000}
    block |= {"continuous": True, "versions": {"old": {"score": -5.0}, "new": {"score": -4.0}}}
    gate = decide(report_block(a=block), make_limits(min_gain=0.01))
    assert gate["verdict"] == "pass" and "9,000 of 19,000" in gate["notes"][0]


def test_who_answers_only_what_is_easy_does_not_pass(tmp_path: Path) -> None:
    new = rows([1.0 if i % 2 else None for i in range(600)])
    compared(tmp_path, rows([1.0] * 600), new)
    result = judge(str(tmp_path), make_limits(max_nfr="2%", min_gain="-2%"), today=TODAY)
    checks = result.gate["checks"]
    assert [c["verdict"] for c in checks] == [UNSURE] * 2 and result.exit_code == 3
    assert checks[0]["upper"] <= 0.02  # of the scored ones alone it is inside
    said = "300 more examples have no score in some version"
    assert said in result.gate["reason"] and said in (tmp_path / "report.html").read_text()
    shown = verdict_view(*read_comparison(str(tmp_path)))["checks"]
    assert said in shown[0]["more"] and "would decide" not in shown[0]["more"]


SUBJECTS = [{"subject": "law" if i < 60 else "maths"} for i in range(600)]


def test_unscored_examples_count_in_their_own_slice(tmp_path: Path) -> None:
    """Two in a hundred of maths, were they there, but a sixth of law."""
    new = rows([None if i < 10 else 1.0 for i in range(600)], fields=SUBJECTS)
    options = ReportOptions(draws=50, slices=("subject",))
    compared(tmp_path, rows([1.0] * 600, fields=SUBJECTS), new, options)
    limits = {"max_nfr": "6%", "slices": ["subject"]}
    whole, law, maths = judged(tmp_path, **limits)["checks"]
    assert [c["verdict"] for c in (whole, law, maths)] == ["pass", UNSURE, "pass"]
    assert law["upper"] <= 0.06 and "up to 10 more examples" in law["but"]
    limits["max_nfr"] = "2.5%"
    assert judged(tmp_path, **limits)["checks"][2]["verdict"] == "pass"
    (tmp_path / "examples.parquet").unlink()  # then all ten could be of maths
    assert judged(tmp_path, **limits)["checks"][2]["but"]


# Slices that are too small

RARE = [{"subject": "law" if i < 400 else f"rare {i % 2}"} for i in range(430)]


@pytest.mark.parametrize(
    ("few", "asked", "n", "value"),
    [
        (20, "subject", 30, "2 values with fewer than 20 examples each"),  # a pool
        (20, "subject=rare 1", 15, "rare 1"),
        (50, "subject", 30, "2 values with fewer than 50 examples each"),  # left out
        (50, "subject=rare 0", 15, "rare 0"),
    ],
)
def test_a_slice_that_is_too_small_is_no_pass(
    tmp_path: Path, few: int, asked: str, n: int, value: str
) -> None:
    old = rows([1.0] * 430, fields=RARE)
    compared(tmp_path, old, old, ReportOptions(draws=50, slices=("subject",), min_slice=few))
    assert judged(tmp_path, max_nfr="20%", slices=["subject=law"])["verdict"] == "pass"
    found = judged(tmp_path, max_nfr="20%", min_gain="-50%", slices=[asked])
    assert found["verdict"] == UNSURE
    small = [c for c in found["checks"] if c["verdict"] != "pass"]
    assert [c["limit"] for c in small] == ["max_nfr", "min_gain"]
    for check in small:
        assert check["verdict"] == UNSURE and check["n"] == n
        assert check["slice"] == {"column": "subject", "value": value}
        assert "too few" in check["text"] and f"{n} examples" in check["text"]
    with pytest.raises(UserError, match="is not in this report"):
        judged(tmp_path, max_nfr="20%", slices=["subject=nothing"])
    (tmp_path / "examples.parquet").unlink()
    if asked == "subject":  # the report alone knows of it
        assert judged(tmp_path, max_nfr="20%", slices=[asked])["verdict"] == UNSURE


def test_a_pool_that_fails_is_a_failure() -> None:
    block = task_block(*answers(3000, 20, 40, 0))
    block["slices"] = [slice_block("s", "9 rare values", *answers(20, 20, 0, 0), small=True)]
    _, pool = checks_of(report_block(a=block), max_nfr=0.02, slices=["s"])
    assert pool["verdict"] == "fail" and not pool["but"]


def test_a_value_that_only_some_rows_have(tmp_path: Path) -> None:
    """Nine of 400 have it: they are too few, the others are no slice."""
    made = rows([1.0] * 400, fields=[{"k": "a"} if i < 9 else {"l": "x"} for i in range(400)])
    made[-1] = replace(made[-1], fields={"k": "b"})
    compared(tmp_path, made, made, ReportOptions(draws=50, slices=("k",)))
    whole, rare = judged(tmp_path, max_nfr="20%", slices=["k"])["checks"]
    assert (whole["verdict"], rare["verdict"], rare["n"]) == ("pass", UNSURE, 10)


def test_waivers_leave_what_is_missing_as_it_is(tmp_path: Path) -> None:
    fields = [{"s": "a" if i < 300 else "b" if i < 580 else "c"} for i in range(600)]
    scores = [0.0 if i < 4 else None if i > 590 else 1.0 for i in range(600)]
    old, new = rows([1.0] * 600, fields=fields), rows(scores, fields=fields)
    compared(tmp_path, old, new, ReportOptions(draws=50, slices=("s",)))
    (tmp_path / "w.yaml").write_text("- {id: '000001', reason: gold, until: 2026-12-31}\n")
    for asked in (["s"], ["s=c"], ["s=a", "s=c"]):
        limits: dict[str, Any] = {"max_nfr": "6%", "slices": asked}
        plain = judged(tmp_path, **limits)["checks"]
        waived = judged(tmp_path, **limits, waive=str(tmp_path / "w.yaml"))["checks"]
        for one, other in zip(plain, waived, strict=True):
            assert all(one[key] == other[key] for key in ("slice", "n", "verdict"))
            assert bool(one["but"]) == bool(other["but"])
        assert plain[-1]["slice"]["value"] in ("c", "1 value with fewer than 50 examples each")
        assert plain[-1]["n"] == 11 and plain[-1]["verdict"] == UNSURE


def test_examples_of_another_report_say_nothing_of_slices(tmp_path: Path) -> None:
    old = rows([1.0] * 430, fields=RARE)
    compared(tmp_path, old, old, ReportOptions(draws=50, slices=("subject",)))
    report = (tmp_path / "report.json").read_bytes()
    compared(tmp_path, old[:99], old[:99])
    (tmp_path / "report.json").write_bytes(report)
    with pytest.raises(UserError, match=r"is not that of report.json"):
        judged(tmp_path, max_nfr="20%", slices=["subject"])


# The report that was judged


def test_a_verdict_belongs_to_the_bytes_it_judged(tmp_path: Path) -> None:
    compared(tmp_path, rows([1.0] * 400), rows([1.0] * 400))
    path = tmp_path / "report.json"
    limits = make_limits(max_nfr="3%")
    first = judge(str(tmp_path), limits, today=TODAY).gate
    assert first["report_sha256"] == sha256(path.read_bytes()).hexdigest()
    assert judge(str(tmp_path), limits, today=TODAY).gate == first
    report, gate = read_comparison(str(tmp_path))
    assert gate is not None and not is_stale(report, gate)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))  # other bytes
    report, gate = read_comparison(str(tmp_path))
    assert gate is not None and is_stale(report, gate)
    assert verdict_view(report, gate)["kind"] == "stale"
    del gate["report_sha256"]  # as an earlier version wrote it: its numbers are this report's
    assert not is_stale(report, gate)


GOOD = report_block(piqa=task_block(*answers(990, 0, 10, 0)))


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_one_line(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_report(tmp_path, GOOD)
    text = path.read_text()
    path.write_text(text.replace('"nfr": 0.0', f'"nfr": {number}', 1))
    assert path.read_text() != text
    error = refused([str(path), "--max-nfr", "0.02"], capsys)
    assert number in error and "no finite number" in error


@pytest.mark.parametrize("broken", ["isdir", "cat_file"])
@pytest.mark.parametrize("raised", [PermissionError(13, "denied"), KeyError("denied")])
def test_a_report_that_can_not_be_read_is_one_line(
    broken: str,
    raised: Exception,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stores have errors of their own, which are no OSError."""
    from fsspec.implementations.local import LocalFileSystem

    def refuse(*_: Any, **__: Any) -> None:
        raise raised

    path = write_report(tmp_path, GOOD)
    monkeypatch.setattr(LocalFileSystem, broken, refuse)
    error = refused([str(path), "--max-nfr", "0.02"], capsys)
    assert "denied" in error and "can't be read" in error and str(path) in error


def test_an_excess_needs_a_pair_that_begins_with_old(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = list(np.repeat([1.0, 0.0], [90, 10]))
    task = scored({"old": right, "new": right, "compat": right, "again": right})
    write_report(tmp_path, report_of({"t": task}, {}, ReportOptions(draws=50)))
    words = [str(tmp_path), "--max-excess-nfr", "2%", "--pair", "new:compat"]
    error = refused(words, capsys)
    assert "begin with old" in error and "new->compat" in error


@pytest.mark.parametrize("line", ["#7", "#b"])
def test_an_id_that_reads_as_a_comment_is_refused(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An id "#7" would be passed over; so would "b" in a line that lost its space."""
    made = [replace(p, id=i) for p, i in zip(rows([1.0] * 3), ("#7", "a", "b"), strict=True)]
    compared(tmp_path, made, made)
    keep = tmp_path / "ids.txt"
    keep.write_text(f"# a comment\na\n{line}\n")
    error = refused([str(tmp_path), "--must-keep", str(keep)], capsys)
    assert "task<TAB>id" in error and repr(line) in error
    keep.write_text(f"# a comment\n# b\na\nt\t{line.replace('#b', 'b')}\n")
    assert judged(tmp_path, must_keep=str(keep))["must_keep"]["ids"] == 2
    keep.write_text("#7\n")
    assert "task<TAB>id" in refused([str(tmp_path), "--must-keep", str(keep)], capsys)
