"""`muscle gate` as CI calls it: exit codes of a real process, files, one line for bad input."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from gating import answers, report_block, slice_block, task_block, write_outcomes, write_report
from joined import rows, scored

from muscle.cli import main
from muscle.errors import UserError
from muscle.gate import judge, make_limits
from muscle.report.build import ReportOptions, report_of
from muscle.report.example_table import write_example_table

ROOT = Path(__file__).parents[2]


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "muscle.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
    )


GOOD = report_block(piqa=task_block(*answers(990, 0, 10, 0)))
BAD = report_block(piqa=task_block(*answers(900, 100, 0, 0)))
FEW = report_block(piqa=task_block(*answers(20, 0, 0, 0)))


@pytest.mark.parametrize(
    ("report", "code", "word"),
    [(GOOD, 0, "pass"), (BAD, 1, "fail"), (FEW, 3, "not enough evidence")],
)
def test_the_exit_code_is_the_verdict(
    report: dict[str, Any], code: int, word: str, tmp_path: Path
) -> None:
    path = write_report(tmp_path, report)
    done = run("gate", str(path), "--max-nfr", "2%", "--output", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (code, "")
    assert f"\n{word}: " in done.stdout
    gate = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert gate["verdict"] == word and gate["limits"] == {"max_nfr": 0.02}
    suite = ElementTree.parse(tmp_path / "out" / "junit.xml").getroot()
    assert suite.get("tests") == "1" and suite.get("failures") == str(int(code == 1))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["gate.json", "junit.xml"]


def test_a_wrong_usage_is_2_and_one_line_in_a_real_process(tmp_path: Path) -> None:
    write_report(tmp_path, GOOD)
    done = run("gate", "report.json", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("muscle: no limit was given") and done.stderr.count("\n") == 1


def test_our_own_failure_is_70_and_not_a_verdict(tmp_path: Path) -> None:
    """Python's exit code for a traceback is 1, which would read "fail"."""
    code = (
        "import sys, muscle.gate, muscle.cli\n"
        "def broken(*a, **k): raise ZeroDivisionError('a\\nbug')\n"
        "muscle.gate.judge = broken\n"
        "muscle.cli.main(sys.argv[1:])"
    )
    write_report(tmp_path, GOOD)
    words = [sys.executable, "-c", code, "gate", "report.json", "--max-nfr", "0.02"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
    assert done.returncode == 70
    assert done.stderr == (
        "muscle: our own failure: ZeroDivisionError: a bug; --debug shows the traceback\n"
    )
    shown = subprocess.run(
        [*words, "--debug"], capture_output=True, text=True, check=False, cwd=tmp_path, env=env
    )
    assert shown.returncode == 70 and "Traceback" in shown.stderr


def gate(
    arguments: Sequence[str], capsys: pytest.CaptureFixture[str], code: int
) -> tuple[str, str]:
    """The command in this process, which must end with this code; its output and error."""
    with pytest.raises(SystemExit) as stopped:
        main(["gate", *arguments])
    said = capsys.readouterr()
    assert stopped.value.code == code, said
    return said.out, said.err


def test_light_imports_only() -> None:
    code = (
        "import sys, muscle.gate, muscle.gate.judging, muscle.report.example_reader\n"
        "heavy = {'torch', 'ray', 'transformers', 'lm_eval', 'scipy', 'statsmodels', 'pandas',"
        " 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


BAD_INPUT: dict[str, tuple[list[str], str]] = {
    "no limit": ([], "no limit was given"),
    "percent": (["--max-nfr", "2"], "write 0.02 or 2%"),
    "no number": (["--max-nfr", "few"], "'few'"),
    "no noise floor": (["--max-excess-nfr", "0.02"], "noise_floor: true"),
    "unknown pair": (["--max-nfr", "0.02", "--pair", "old->compat"], "'old->new'"),
    "pair cut by the shell": (["--max-nfr", "0.02", "--pair", "old-"], "quote it"),
    "unknown slice": (["--max-nfr", "0.02", "--slice", "topic"], "muscle compare --slice topic"),
    "missing list": (["--must-keep", "nowhere.txt"], "nowhere.txt"),
    "list without examples": (["--must-keep", "ids.txt"], "examples.parquet"),
    "missing waivers": (["--max-nfr", "0.02", "--waive", "nowhere.yaml"], "nowhere.yaml"),
    "waivers without examples": (["--max-nfr", "0.02", "--waive", "w.yaml"], "examples.parquet"),
    "wrong waivers": (["--max-nfr", "0.02", "--waive", "ids.txt"], "ids.txt"),
    "waivers alone": (["--waive", "w.yaml"], "no limit was given"),
    "output is a file": (["--max-nfr", "0.02", "--output", "ids.txt"], "--output"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_writes_nothing(
    case: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_report(tmp_path, BAD)
    (tmp_path / "ids.txt").write_text("17\n")
    (tmp_path / "w.yaml").write_text("- {id: 17, reason: x, until: 2999-01-01}\n")
    before = sorted(tmp_path.iterdir())
    extra, said = BAD_INPUT[case]
    out, error = gate(["report.json", *extra], capsys, 2)
    assert out == "" and said in error
    assert error.startswith("muscle: ") and error.count("\n") == 1, error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        ("{", "is not whole JSON"),
        ("[]", "is not a report of muscle"),
        ('{"schema": "muscle.gate/1"}', "is not a report of muscle"),
        ('{"schema": "muscle.report/1", "tasks": {}}', "run `muscle compare` again"),
        ('{"schema": "muscle.report/9", "tasks": {}}', "made by another version"),
        ('{"schema": "muscle.report/2"}', "has no tasks"),
        ('{"schema": "muscle.report/2", "tasks": {"a": {"n": 3}}}', "has no pairs"),
    ],
)
def test_no_report_is_one_line(
    content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    _, error = gate([str(path), "--max-nfr", "0.02"], capsys, 2)
    assert said in error and error.count("\n") == 1


def test_a_hostile_report_prints_no_terminal_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = task_block(*answers(90, 10, 0, 0))
    block["slices"] = [slice_block("[bold]s\x1b[2J", "\x1b[31mred\u202e", *answers(50, 0, 0, 0))]
    write_report(tmp_path, report_block(**{"a[/b]\x1b]0;x\x07": block}))
    out, _ = gate(
        [str(tmp_path), "--max-nfr", "2%", "--slice", "[bold]s\x1b[2J", "--output", str(tmp_path)],
        capsys,
        1,
    )
    assert not set("\x1b\x07\u202e") & set(out) and "a[/b]" in out


# Waivers and must-keep lists with a whole comparison

TODAY = date(2026, 6, 30)


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    """400 examples of two subjects; ids 000000 to 000011 flip, half of them in each."""
    old = [1.0] * 300 + [0.0] * 100
    new = [0.0] * 12 + [1.0] * 288 + [1.0] * 20 + [0.0] * 80
    task = scored({"old": old, "new": new}, fields=[{"subject": f"s{i % 2}"} for i in range(400)])
    report = report_of({"t": task}, {}, ReportOptions(draws=100, slices=("subject",)))
    write_report(tmp_path, report)
    write_example_table(str(tmp_path / "examples.parquet"), {"t": task}, "page")
    return tmp_path


def waivers(folder: Path, ids: Sequence[int], until: str = "2026-12-31") -> str:
    path = folder / "waivers.yaml"
    lines = [f"- {{id: {i:06d}, reason: gold is wrong, until: {until}}}\n" for i in ids]
    path.write_text("".join(lines))
    return str(path)


def judged(folder: Path, **limits: Any) -> dict[str, Any]:
    made = make_limits(**limits)
    return judge(str(folder), made, today=TODAY, output=str(folder / "out")).gate


def test_waived_flips_do_not_count(compared: Path) -> None:
    limit = {"max_nfr": "3%"}
    assert judged(compared, **limit)["verdict"] == "not enough evidence"
    waive = waivers(compared, range(8))
    found = judged(compared, **limit, waive=waive, slices=["subject"])
    assert found["verdict"] == "not enough evidence"  # the slices have 200 examples each
    whole, *slices = found["checks"]
    assert (whole["value"], whole["unwaived"], whole["n"]) == (4 / 400, 12 / 400, 400)
    assert whole["verdict"] == "pass"
    assert [(s["value"], s["unwaived"], s["n"]) for s in slices] == [(0.01, 0.03, 200)] * 2
    assert [w["state"] for w in found["waivers"]] == ["used"] * 8


def test_a_waiver_changes_no_gain(compared: Path) -> None:
    plain = judged(compared, min_gain=0.01)["checks"]
    assert judged(compared, min_gain=0.01, waive=waivers(compared, range(8)))["checks"] == plain


def test_expired_and_unused_waivers_are_named_and_change_nothing(
    compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = waivers(compared, range(8), until="2020-01-01")
    plain = judged(compared, max_nfr="3%")
    found = judged(compared, max_nfr="3%", waive=old)
    assert found["checks"] == plain["checks"]
    assert {w["state"] for w in found["waivers"]} == {"expired"}
    out, _ = gate(
        [str(compared), "--max-nfr", "3%", "--waive", old, "--output", str(compared / "out")],
        capsys,
        3,
    )
    assert "expired and don't count: 000000 (until 2020-01-01)" in out
    unused = judged(compared, max_nfr="3%", waive=waivers(compared, [200]))
    assert [w["state"] for w in unused["waivers"]] == ["unused"]
    assert unused["checks"] == plain["checks"]


def test_must_keep_fails_on_a_flip_unless_waived(compared: Path) -> None:
    (compared / "ids.txt").write_text("000003\n000200\n")
    keep = str(compared / "ids.txt")
    found = judged(compared, must_keep=keep)
    assert found["verdict"] == "fail" and "000003" in found["reason"]
    assert found["must_keep"]["flipped"] == [{"task": "t", "id": "000003", "waived": False}]
    waived = judged(compared, must_keep=keep, waive=waivers(compared, [3]))
    assert waived["verdict"] == "pass"
    assert waived["must_keep"]["flipped"][0]["waived"] is True


def test_an_unknown_id_is_named(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (compared / "ids.txt").write_text("000003\n3\n")
    _, error = gate([str(compared), "--must-keep", str(compared / "ids.txt")], capsys, 2)
    assert "id '3' is in no task" in error and error.count("\n") == 1
    assert not (compared / "gate.json").exists()


def test_examples_of_another_report_are_refused(compared: Path) -> None:
    other = scored({"old": [1.0] * 9, "new": [0.0] * 9})
    write_example_table(str(compared / "examples.parquet"), {"t": other}, "page")
    with pytest.raises(Exception, match=r"is not that of report.json"):
        judged(compared, max_nfr="3%", waive=waivers(compared, [3]))


def test_examples_of_as_many_but_other_flips_are_refused(compared: Path) -> None:
    """Waived or kept by another comparison's flips, a bad update would pass."""
    other = scored({"old": [1.0] * 400, "new": [1.0] * 400})
    write_example_table(str(compared / "examples.parquet"), {"t": other}, "page")
    (compared / "ids.txt").write_text("000003\n")
    for limits in ({"max_nfr": "3%", "waive": waivers(compared, [3])},
                   {"must_keep": str(compared / "ids.txt")}):  # fmt: skip
        with pytest.raises(UserError, match=r"is not that of report.json"):
            judged(compared, **limits)


def test_slices_that_nobody_named_are_made_again(tmp_path: Path) -> None:
    """A column of numbers with 30 values stands in quartiles unless it was asked for."""
    old, new = [1.0] * 400, [0.0] * 12 + [1.0] * 388
    task = scored({"old": old, "new": new}, fields=[{"length": str(i % 30)} for i in range(400)])
    report = report_of({"t": task}, {}, ReportOptions(draws=100))
    write_report(tmp_path, report)
    write_example_table(str(tmp_path / "examples.parquet"), {"t": task}, "page")
    waive = waivers(tmp_path, range(12))
    _, *slices = judged(tmp_path, max_nfr="3%", waive=waive, slices=["length"])["checks"]
    assert len(slices) == len(report["tasks"]["t"]["slices"]) == 4
    assert [s["value"] for s in slices] == [0.0] * 4
    assert sum(s["unwaived"] * s["n"] for s in slices) == pytest.approx(12)


def test_a_half_written_table_is_one_line(
    compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = compared / "examples.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    (compared / "ids.txt").write_text("000003\n")
    _, error = gate([str(compared), "--must-keep", str(compared / "ids.txt")], capsys, 2)
    assert "is not a whole table" in error and error.count("\n") == 1


def test_an_example_that_some_version_has_no_score_for_is_no_pass(tmp_path: Path) -> None:
    from joined import joined

    task = joined({"old": rows([1.0, 1.0, 1.0]), "new": rows([1.0, None, 1.0])})
    write_report(tmp_path, report_of({"t": task}, {}, ReportOptions(draws=100)))
    write_example_table(str(tmp_path / "examples.parquet"), {"t": task}, "page")
    (tmp_path / "ids.txt").write_text("000001\n")
    found = judged(tmp_path, must_keep=str(tmp_path / "ids.txt"))
    assert found["verdict"] == "not enough evidence"
    assert found["must_keep"]["unscored"] == [{"task": "t", "id": "000001"}]


def test_a_pass_says_what_it_has_not_seen(tmp_path: Path) -> None:
    """The two that are missing could not break the limit."""
    from joined import joined

    new = rows([None if i < 2 else 1.0 for i in range(600)], question="another prompt")
    about = {"old": {"dtype": "float32"}, "new": {"dtype": "bfloat16"}}
    task = joined({"old": rows([1.0] * 600), "new": new}, about=about)
    write_report(tmp_path, report_of({"t": task}, {}, ReportOptions(draws=50)))
    found = judged(tmp_path, max_nfr="2%")
    assert found["verdict"] == "pass"
    unscored, unlike = found["notes"]
    assert unscored.endswith("no score for them: t 2 of 600")
    assert unlike.endswith("not evaluated alike: t (rendered prompts, number format)")


def test_several_seeds_a_flip_in_one_of_them(tmp_path: Path) -> None:
    task = scored(
        {"old": [1.0] * 50, "new": [1.0] * 50}, {"old": [1.0] * 50, "new": [1.0] * 49 + [0.0]}
    )
    write_report(tmp_path, report_of({"t": task}, {}, ReportOptions(draws=100)))
    write_example_table(str(tmp_path / "examples.parquet"), {"t": task}, "page")
    (tmp_path / "ids.txt").write_text("000049\n")
    found = judged(tmp_path, must_keep=str(tmp_path / "ids.txt"), max_nfr="20%")
    assert found["verdict"] == "fail"
    assert [c["verdict"] for c in found["checks"]] == ["pass", "fail"]
    waived = judged(tmp_path, max_nfr="20%", waive=waivers(tmp_path, [49]))
    assert (waived["checks"][0]["value"], waived["checks"][0]["unwaived"]) == (0.0, 0.01)


def test_the_page_shows_the_verdict_afterwards(compared: Path) -> None:
    result = judge(str(compared), make_limits(max_nfr="3%"), today=TODAY)
    assert result.exit_code == 3
    page = (compared / "report.html").read_text(encoding="utf-8")
    assert "not enough evidence" in page.lower()
    assert "not enough evidence" in (compared / "report.md").read_text(encoding="utf-8").lower()


def test_a_report_under_another_name_is_judged_without_its_page(tmp_path: Path) -> None:
    write_report(tmp_path, GOOD).rename(tmp_path / "last week.json")
    result = judge(str(tmp_path / "last week.json"), make_limits(max_nfr="3%"))
    assert result.verdict == "pass"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "gate.json", "junit.xml", "last week.json",
    ]  # fmt: skip


def test_examples_of_a_pair_are_read_for_compat(tmp_path: Path) -> None:
    block = task_block(*answers(90, 5, 5, 0), compat=answers(90, 5, 5, 0)[0])
    write_report(tmp_path, report_block(a=block))
    flips = {"old_new": "negative", "old_compat": "both_right"}
    write_outcomes(tmp_path, [{"task": "a", "id": "7", "seed": 0, **flips}])
    (tmp_path / "ids.txt").write_text("7\n")
    limits = make_limits(must_keep=str(tmp_path / "ids.txt"))
    out = str(tmp_path / "out")
    assert judge(str(tmp_path), limits, output=out).verdict == "pass"
    assert judge(str(tmp_path), limits, pair="old:new", output=out).verdict == "fail"
