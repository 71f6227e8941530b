"""`muscle compare` from its arguments to its files and exit codes."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from muscle import compare as comparing
from muscle.cli import app
from muscle.compare import WRITTEN, Comparison, compare
from muscle.errors import UserError
from muscle.tables import write_predictions
from muscle.tasks.rows import row_hash
from muscle.types import Prediction

DATA = Path(__file__).parent / "data" / "harness"
CHOICE = "testbed_choice"
DRAWS = 200


@pytest.fixture
def page() -> None:
    """For tests that look at the page: it is really drawn."""


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the page takes longer than all the rest; most tests only ask for the numbers."""

    def blank(folder: str) -> None:
        Path(folder, "report.html").write_text("")

    if "page" not in request.fixturenames:
        monkeypatch.setattr("muscle.report.write_page", blank)


def run(output: Path, old: Any, new: Any = None, compat: Any = None, **flags: Any) -> str:
    """Compare, expecting exit code 0; what was printed."""
    code, text = outcome(output, old, new, compat, **flags)
    assert code == 0
    return text


def outcome(
    output: Path, old: Any, new: Any = None, compat: Any = None, **flags: Any
) -> tuple[int, str]:
    console = Console(record=True, width=300, file=open("/dev/null", "w"))
    paths = [None if path is None else str(path) for path in (old, new, compat)]
    assert paths[0] is not None
    request = Comparison(paths[0], *paths[1:], output=str(output), **{"draws": DRAWS, **flags})
    return compare(request, console), console.export_text()


def report_of(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "report.json").read_text(encoding="utf-8")))


def task_of(output: Path) -> dict[str, Any]:
    (task,) = report_of(output)["tasks"].values()
    return dict(task)


def scores(path: Path, values: Sequence[float | None], **more: Sequence[Any]) -> Path:
    """A plain file of scores, and of other columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": i, "score": value} for i, value in enumerate(values)]
    for name, column in more.items():
        rows = [row | {name: value} for row, value in zip(rows, column, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def log_rows(task: str, version: str) -> list[dict[str, Any]]:
    (path,) = DATA.glob(f"*-{version}/*/samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def naive(old: Sequence[float], new: Sequence[float]) -> Mapping[str, int]:
    names = {(1, 1): "both_right", (1, 0): "negative", (0, 1): "positive", (0, 0): "both_wrong"}
    return Counter(names[int(a), int(b)] for a, b in zip(old, new, strict=True))


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_logs_of_the_harness(metric: str, tmp_path: Path) -> None:
    old, new = ([r[metric] for r in log_rows(CHOICE, v)] for v in ("v1", "v2"))
    expected = naive(old, new)
    assert expected["negative"] > 0 < expected["positive"]
    text = run(tmp_path, DATA / "testbed-v1", DATA / "testbed-v2", task=(CHOICE,), metric=metric)
    task = report_of(tmp_path)["tasks"][CHOICE]
    pair = task["pairs"]["old->new"]
    assert task["metric"] == metric and task["n"] == 40 and task["comparability"] == []
    for name in ("both_right", "negative", "positive"):
        assert pair[name] == expected[name]
    assert pair["both_wrong_same"] + pair["both_wrong_different"] == expected["both_wrong"]
    assert pair["nfr"] == pytest.approx(expected["negative"] / 40)
    assert pair["pfr"] == pytest.approx(expected["positive"] / 40)
    assert task["versions"]["new"]["score"] == pytest.approx(sum(new) / 40)
    assert "NFR %" in text and str(tmp_path / "report.html") in text
    written = {path.name for path in tmp_path.iterdir()}
    assert written == set(WRITTEN) - {"gate.json", "junit.xml"}


def test_tasks_of_a_group(tmp_path: Path) -> None:
    """The group of the harness's results file, and one that is asked for."""
    tasks = "testbed_arithmetic,testbed_choice"
    run(tmp_path, DATA / "testbed-v1", DATA / "testbed-v2", group=(f"mine={tasks}",))
    report = report_of(tmp_path)
    assert set(report["tasks"]) == set(tasks.split(","))
    assert set(report["groups"]) == {"testbed_both", "mine"}
    assert set(report["groups"]["mine"]["tasks"]) == set(tasks.split(","))


def test_ours_against_a_log(tmp_path: Path) -> None:
    """The same answers, once as `muscle evaluate` would have kept them."""
    rows = [
        Prediction(
            CHOICE,
            r["doc"]["id"],
            r["arguments"]["gen_args_0"]["arg_0"],
            r["doc"]["choices"][r["doc"]["gold"]],
            r["doc"]["choices"][0],
            "acc",
            r["acc"],
            document=row_hash(r["doc"]),
        )
        for r in log_rows(CHOICE, "v2")
    ]
    write_predictions(tmp_path / "new" / f"{CHOICE}.parquet", rows)
    log = DATA / "testbed-v1"
    run(tmp_path / "mixed", log, tmp_path / "new", task=(CHOICE,))
    run(tmp_path / "logs", log, DATA / "testbed-v2", task=(CHOICE,))
    mixed, logs = (task_of(tmp_path / name)["pairs"]["old->new"] for name in ("mixed", "logs"))
    assert mixed["negative"] == logs["negative"] and mixed["nfr"] == logs["nfr"]
    other = [rows[0].__class__(**{**_fields(rows[0]), "gold": "another"}), *rows[1:]]
    write_predictions(tmp_path / "new" / f"{CHOICE}.parquet", other)
    with pytest.raises(UserError, match="another gold"):
        run(tmp_path / "mixed", log, tmp_path / "new", task=(CHOICE,))


def _fields(prediction: Prediction) -> dict[str, Any]:
    return {name: getattr(prediction, name) for name in Prediction.__slots__}


OLD, NEW = [1, 1, 1, 1, 0, 0, 1, 0, 1, 1], [1, 0, 0, 1, 1, 0, 1, 0, 1, 0]
COMPAT, AGAIN = [1, 1, 0, 1, 1, 0, 1, 0, 1, 1], [1, 1, 1, 0, 0, 1, 1, 0, 1, 1]


def test_compat_and_a_second_old(tmp_path: Path) -> None:
    paths = {
        name: scores(tmp_path / f"{name}.jsonl", values)
        for name, values in (("old", OLD), ("new", NEW), ("compat", COMPAT), ("again", AGAIN))
    }
    run(
        tmp_path / "out", paths["old"], paths["new"], paths["compat"],
        noise_floor=str(paths["again"]),
    )  # fmt: skip
    task = task_of(tmp_path / "out")
    for pair, after in (("old->new", NEW), ("old->compat", COMPAT)):
        assert task["pairs"][pair]["negative"] == naive(OLD, after)["negative"]
    assert task["noise_floor"]["counts"]["negative"] == naive(OLD, AGAIN)["negative"]
    assert list(report_of(tmp_path / "out")["tasks"]) == ["examples"]  # files of other names


def test_seeds_and_the_folder_of_a_run(tmp_path: Path) -> None:
    """Paths with commas between them are what a run leaves as seed-0/, seed-1/."""
    runs = {3: (OLD, NEW, AGAIN), 5: (AGAIN, COMPAT, OLD)}
    given: dict[str, list[str]] = {"old": [], "new": [], "again": []}
    for seed, versions in runs.items():
        for name, values in zip(given, versions, strict=True):
            path = scores(tmp_path / "run" / f"seed-{seed}" / name / "t.jsonl", values)
            given[name].append(str(path.parent))
    (tmp_path / "run" / "experiment.json").write_text("{}")
    run(
        tmp_path / "a", ",".join(given["old"]), ",".join(given["new"]),
        noise_floor=",".join(given["again"]),
    )  # fmt: skip
    run(tmp_path / "b", tmp_path / "run")
    a, b = (task_of(tmp_path / name) for name in "ab")
    assert list(a["by_seed"]) == ["0", "1"] and list(b["by_seed"]) == ["3", "5"]
    for mine, theirs in zip(a["by_seed"].values(), b["by_seed"].values(), strict=True):
        assert mine["pairs"]["old->new"]["negative"] == theirs["pairs"]["old->new"]["negative"]
    rates = [naive(old, new)["negative"] / 10 for old, new, _ in runs.values()]
    assert b["pairs"]["old->new"]["nfr"] == pytest.approx(sum(rates) / 2)
    assert b["noise_floor"] is not None
    # One seed: the versions lie in the folder itself.
    run(tmp_path / "c", tmp_path / "run" / "seed-3")
    assert task_of(tmp_path / "c")["pairs"]["old->new"]["nfr"] == rates[0]


def test_tasks_are_called_as_the_files_are(tmp_path: Path) -> None:
    paths = [scores(tmp_path / v / "law.jsonl", OLD) for v in ("old", "new")]
    run(tmp_path / "a", *paths)
    run(tmp_path / "b", paths[0].parent, paths[1])
    assert list(report_of(tmp_path / "a")["tasks"]) == ["law"]
    assert list(report_of(tmp_path / "b")["tasks"]) == ["law"]
    other = scores(tmp_path / "other.jsonl", NEW)
    run(tmp_path / "c", paths[0], other, task=("mine",))
    assert list(report_of(tmp_path / "c")["tasks"]) == ["mine"]
    # Two folders of one file each: the names are all that tells which task it is.
    med = scores(tmp_path / "med" / "med.jsonl", OLD)
    with pytest.raises(UserError, match=r"task 'law' is not in all.*give the files themselves"):
        run(tmp_path / "d", paths[0].parent, med.parent)
    run(tmp_path / "d", paths[0].parent, med, task=("law",))
    assert list(report_of(tmp_path / "d")["tasks"]) == ["law"]


def test_all_right_and_all_unscored(tmp_path: Path) -> None:
    right = scores(tmp_path / "right.jsonl", [1] * 10)
    run(tmp_path / "out", right, right)
    task = task_of(tmp_path / "out")
    assert task["pairs"]["old->new"]["nfr"] == 0 and task["versions"]["new"]["score"] == 1
    with pytest.raises(
        UserError, match=r"no example is scored in all versions: .* 10 are unscored"
    ):
        run(tmp_path / "none", right, scores(tmp_path / "no.jsonl", [None] * 10))
    assert not (tmp_path / "none").exists()


def test_where_nothing_can_flip(tmp_path: Path) -> None:
    wrong, new = (scores(tmp_path / f"{n}.jsonl", v) for n, v in (("w", [0.0] * 10), ("n", NEW)))
    said = "note: examples: old has no right answer, so nothing can flip: is it the right filter"
    assert said in run(tmp_path / "out", wrong, new)
    assert said not in run(tmp_path / "out", new, wrong)


def test_one_model_twice_is_said(tmp_path: Path) -> None:
    """A gate lets a file compared with itself pass: whoever named it twice must see that."""
    said = "old and new agree on every example: are they two models?"
    one = scores(tmp_path / "one.jsonl", OLD, prediction=["a"] * 10)
    assert f"note: one: {said}" in run(tmp_path / "out", one, one, max_nfr="0.9")
    assert said.capitalize() in (tmp_path / "out" / "report.md").read_text()
    other = scores(tmp_path / "other.jsonl", OLD, prediction=["b"] * 10)
    assert said not in run(tmp_path / "answers", one, other)  # wrong in other words
    assert said not in run(tmp_path / "flips", one, scores(tmp_path / "new.jsonl", NEW))
    graded = scores(tmp_path / "graded.jsonl", [value / 3 for value in OLD])
    assert said in run(tmp_path / "graded", graded, graded)


def test_real_scores(tmp_path: Path) -> None:
    old, new = [0.5, 0.25, 0.75, 0.1], [0.6, 0.25, 0.5, 0.0]
    paths = [scores(tmp_path / f"{n}.jsonl", v) for n, v in (("old", old), ("new", new))]
    run(tmp_path / "out", *paths, metric="rouge1", score="score")
    task = task_of(tmp_path / "out")
    assert task["metric"] == "rouge1" and task["continuous"]
    pair = task["pairs"]["old->new"]
    assert (pair["negative"], pair["positive"], pair["equal"]) == (2, 1, 1)


# --- what is refused --------------------------------------------------------------------------


def test_files_that_cannot_be_compared(tmp_path: Path) -> None:
    old = scores(tmp_path / "old.jsonl", OLD)
    with pytest.raises(UserError, match=r"the ids of .*old\.jsonl and .*few\.jsonl differ"):
        run(tmp_path / "out", old, scores(tmp_path / "few.jsonl", NEW[:7]))
    run(tmp_path / "out", old, tmp_path / "few.jsonl", common=True)
    task = task_of(tmp_path / "out")
    assert task["n"] == 7 and task["common_only"] == 3
    rows = [{"id": f"x{i}", "score": 1} for i in range(10)]
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="no example is in all versions"):
        run(tmp_path / "out", old, other, common=True)
    with pytest.raises(UserError, match="task 'testbed_arithmetic' is not in all versions"):
        run(tmp_path / "out", DATA / "testbed-v1", DATA / "work-v2")


def test_other_settings_are_shown_first(tmp_path: Path) -> None:
    for version, precision in (("v1", "float32"), ("v2", "bfloat16")):
        (folder,) = (DATA / f"testbed-{version}").iterdir()
        target = tmp_path / version
        target.mkdir()
        for path in folder.iterdir():
            text = path.read_text(encoding="utf-8").replace("torch.float32", f"torch.{precision}")
            (target / path.name).write_text(text, encoding="utf-8")
    text = run(tmp_path / "out", tmp_path / "v1", tmp_path / "v2", task=(CHOICE,))
    note = f"note: {CHOICE}: number format; old: float32, new: bfloat16"
    assert text.index(note) < text.index("NFR %")
    results = next((tmp_path / "v2").glob("results_*"))
    later = json.loads(results.read_text(encoding="utf-8"))
    later["versions"][CHOICE] = 2.0
    results.write_text(json.dumps(later))
    with pytest.raises(UserError, match=r"task version '1.0' in .* but '2.0'"):
        run(tmp_path / "out", tmp_path / "v1", tmp_path / "v2", task=(CHOICE,))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"text": "some"}, "--text is 'some': give page, all or none"),
        ({"group": ("law",)}, "--group 'law': write it as NAME=TASK,TASK"),
        ({"group": ("a=old", "a=old")}, "--group: the name 'a' is given twice"),
        ({"group": ("a=nope",)}, "--group a: no task 'nope', only old"),
        ({"pair": "old->new"}, "--pair says what limits are for"),
        ({"max_nfr": "2"}, "max-nfr is 2: limits are fractions"),
        ({"waive": "w.yaml"}, "no limit was given"),
        ({"slice": ("nope", "kind")}, "no column 'nope' to slice by; there are: 'kind'"),
        ({"noise_floor": "a,b"}, "OLD names 1 seeds and --noise-floor 2"),
        ({"task": ("nope",), "task_column": "kind"}, "--task nope: .* has no such task, only a"),
        ({"compat": ""}, "^COMPAT is empty: leave it out$"),
        ({"noise_floor": ""}, "^--noise-floor is empty: leave it out$"),
        ({"task_column": ""}, "^--task-column is empty: leave it out$"),
        ({"slice": ("kind", "")}, "^--slice is empty: leave it out$"),
    ],
)
def test_wrong_flags(flags: dict[str, Any], text: str, tmp_path: Path) -> None:
    path = scores(tmp_path / "old.jsonl", OLD, kind=["a"] * 10)
    with pytest.raises(UserError, match=text):
        run(tmp_path / "out", path, path, **flags)
    assert not (tmp_path / "out").exists()


def test_wrong_arguments(tmp_path: Path) -> None:
    path = scores(tmp_path / "old.jsonl", OLD)
    with pytest.raises(UserError, match=r"old\.jsonl is one file: give OLD and NEW"):
        run(tmp_path / "out", path)
    with pytest.raises(UserError, match="nowhere does not exist: give OLD and NEW"):
        run(tmp_path / "out", tmp_path / "nowhere")
    (tmp_path / "run" / "old").mkdir(parents=True)
    with pytest.raises(UserError, match="run holds old: give OLD and NEW, or the output folder"):
        run(tmp_path / "out", tmp_path / "run")
    (tmp_path / "run" / "new").mkdir()
    with pytest.raises(UserError, match="--noise-floor belongs to OLD and NEW"):
        run(tmp_path / "out", tmp_path / "run", noise_floor=str(path))
    with pytest.raises(UserError, match="this folder holds no predictions"):
        run(tmp_path / "out", tmp_path / "run")


def test_empty_arguments(tmp_path: Path) -> None:
    path = scores(tmp_path / "old.jsonl", OLD)
    with pytest.raises(UserError, match=r"^OLD is empty: give a file or a folder$"):
        run(tmp_path / "out", "", path)
    with pytest.raises(UserError, match=r"^NEW is empty: give a file or a folder$"):
        run(tmp_path / "out", path, "")


def test_the_same_file_is_no_second_seed(tmp_path: Path) -> None:
    """It would show that nothing varies, where nobody looked."""
    old, again = (scores(tmp_path / f"{n}.jsonl", OLD) for n in ("old", "again"))  # a copy
    new, other = (scores(tmp_path / f"{n}.jsonl", v) for n, v in (("new", NEW), ("o", NEW[::-1])))
    with pytest.raises(UserError, match=r"again\.jsonl is the same file as old's .*old\.jsonl"):
        run(tmp_path / "out", old, new, noise_floor=str(again))
    with pytest.raises(UserError, match=r"seed 1 is seed 0 again: .*new\.jsonl and .*new\.jsonl"):
        run(tmp_path / "out", f"{old},{again}", f"{new},{new}")
    assert not (tmp_path / "out").exists()
    # One old under two seeds of new is no repetition; nor is an update that changes nothing.
    run(tmp_path / "out", f"{old},{again}", f"{new},{other}")
    run(tmp_path / "out", old, again, noise_floor=str(other))


def test_folders_that_are_no_comparisons(tmp_path: Path) -> None:
    path = scores(tmp_path / "old.jsonl", OLD)
    with pytest.raises(UserError, match="which is a file: name a folder"):
        run(path, path, path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.json").write_text("{}")
    (tmp_path / "run" / "report.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds 'experiment\.json', which no comparison wrote"):
        run(tmp_path / "run", path, path)
    with pytest.raises(UserError, match=r"holds 'old\.jsonl'"):
        run(tmp_path, path, path)
    assert (tmp_path / "run" / "report.json").read_text() == "{}"


# --- files ------------------------------------------------------------------------------------


def test_a_later_comparison_replaces_an_earlier_one(tmp_path: Path) -> None:
    old, new = (scores(tmp_path / f"{n}.jsonl", v * 30) for n, v in (("old", OLD), ("new", NEW)))
    code, _ = outcome(tmp_path / "out", old, new, max_nfr="0.02")
    assert code == 1 and (tmp_path / "out" / "gate.json").exists()
    (tmp_path / "out" / "report.html.0a1b.part").write_text("stopped")
    run(tmp_path / "out", old, old)
    (tmp_path / "out" / "report.html.0a1b.part").unlink()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == set(WRITTEN) - {"gate.json", "junit.xml"}
    assert task_of(tmp_path / "out")["pairs"]["old->new"]["negative"] == 0


def test_what_fails_leaves_the_earlier_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = scores(tmp_path / "old.jsonl", OLD)
    run(tmp_path / "out", old, old)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError):
        run(tmp_path / "out", old, scores(tmp_path / "few.jsonl", NEW[:7]))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before

    def full(*_: Any) -> None:
        raise UserError("no space left")

    # Stopped while writing: no numbers without their examples, no page of other numbers.
    monkeypatch.setattr("muscle.report.example_table.write_example_table", full)
    with pytest.raises(UserError, match="no space left"):
        run(tmp_path / "out", old, old)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"max_nfr": "0.1", "pair": "old->compat"}, "pair 'old->compat' is not in this report"),
        ({"max_excess_nfr": "0.1"}, "max-excess-nfr needs a noise floor, and task 'examples'"),
        (
            {"max_excess_nfr": "0.1", "pair": "new->compat", "compat": NEW, "noise_floor": NEW},
            "noise floor",
        ),
        ({"must_keep": "nowhere.txt"}, "must-keep 'nowhere.txt' does not exist"),
        ({"max_nfr": "0.1", "waive": "nowhere.yaml"}, "waivers 'nowhere.yaml' does not exist"),
    ],
)
def test_limits_are_looked_at_first(flags: dict[str, Any], text: str, tmp_path: Path) -> None:
    """A report that stood there before stays whole."""
    old, new = (scores(tmp_path / f"{n}.jsonl", v) for n, v in (("old", OLD), ("new", NEW)))
    for name, value in flags.items():
        if value is NEW:
            flags = flags | {name: str(scores(tmp_path / f"{name}.jsonl", NEW))}
    outcome(tmp_path / "out", old, new, max_nfr="0.9")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match=text):
        run(tmp_path / "out", old, new, **flags)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_equal_comparisons_are_equal_byte_by_byte(tmp_path: Path, page: None) -> None:
    old, new = (scores(tmp_path / f"{n}.jsonl", v) for n, v in (("old", OLD), ("new", NEW)))
    found = []
    for _ in range(2):
        run(tmp_path / "out", old, new)
        found.append({p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()})
    assert found[0] == found[1]


def test_where_the_numbers_come_from(tmp_path: Path) -> None:
    import hashlib

    old, new = (scores(tmp_path / f"{n}.jsonl", v) for n, v in (("old", OLD), ("new", NEW)))
    run(tmp_path / "out", old, new)
    provenance = report_of(tmp_path / "out")["provenance"]
    digest = hashlib.sha256(old.read_bytes()).hexdigest()
    files = provenance["inputs"]["old"]["examples"]["files"]
    assert files == {str(old): f"sha256:{digest}"}
    assert shlex.split(provenance["command"])[:4] == ["muscle", "compare", str(old), str(new)]
    assert provenance["muscle"] and provenance["libraries"]["numpy"]


SECRET = "the patient's name"


@pytest.mark.parametrize("text", ["page", "none"])
def test_private_texts(text: str, tmp_path: Path, page: None) -> None:
    names = ("question", "prediction", "gold", "note")
    texts = {name: [f"{SECRET} {name} {i}" for i in range(10)] for name in names}
    paths = []
    for version, values in (("old", OLD), ("new", NEW)):
        paths.append(scores(tmp_path / f"{version}.jsonl", values, **texts))
    out = tmp_path / "out"
    run(out, *paths, text=text)
    assert report_of(out)["text"] == text
    table = pq.read_table(out / "examples.parquet")
    holds = {"examples.parquet"} if SECRET in str(table.to_pylist()) else set()
    holds |= {p.name for p in out.iterdir() if SECRET.encode() in p.read_bytes()}
    # Markdown is for pull requests, whose readers may be others than the page's.
    assert holds == ({"examples.parquet", "report.html"} if text == "page" else set())


SYSTEM = "You work for the Example Clinic."


@pytest.mark.parametrize("text", ["page", "all", "none"])
def test_private_instructions(text: str, tmp_path: Path, page: None) -> None:
    """What all prompts begin with is as private as they are."""
    for version in ("v1", "v2"):
        (folder,) = (DATA / f"testbed-{version}").iterdir()
        (tmp_path / version).mkdir()
        for path in folder.iterdir():
            data = path.read_text(encoding="utf-8")
            if path.name.startswith("results_"):
                said = f"{SYSTEM} Be {version}."
                data = json.dumps(json.loads(data) | {"system_instruction": said})
            (tmp_path / version / path.name).write_text(data, encoding="utf-8")
    out = tmp_path / "out"
    printed = run(out, tmp_path / "v1", tmp_path / "v2", task=(CHOICE,), text=text)
    names = {"v1": "old", "v2": "new"}
    hashes = {
        name: hashlib.sha256(f"{SYSTEM} Be {version}.".encode()).hexdigest()[:12]
        for version, name in names.items()
    }
    table = pq.read_schema(out / "examples.parquet").metadata[b"muscle"].decode()
    holds = {p.name for p in out.iterdir() if SYSTEM.encode() in p.read_bytes()}
    holds |= {"examples.parquet"} if SYSTEM in table else set()
    if text == "none":
        assert holds == set() and SYSTEM not in printed
        note = "; ".join(f"{n}: sha256:{hashes[n]}" for n in ("old", "new")).replace(";", ",")
        assert f"system instruction; {note}" in printed
    else:
        assert {"report.json", "report.html"} <= holds and SYSTEM in printed
        assert ("report.md" in holds) == (text == "all")
    if text != "all":
        markdown = (out / "report.md").read_text(encoding="utf-8")
        assert all(found in markdown for found in hashes.values())


# --- the gate ---------------------------------------------------------------------------------


def many(path: Path, flips: int, n: int = 1000) -> Path:
    return scores(path, [float(i >= flips) for i in range(n)])


@pytest.mark.parametrize(("flips", "code"), [(2, 0), (20, 3), (60, 1)])
def test_limits_are_exit_codes(flips: int, code: int, tmp_path: Path, page: None) -> None:
    old, new = many(tmp_path / "old.jsonl", 0), many(tmp_path / "new.jsonl", flips)
    found, text = outcome(tmp_path / "out", old, new, max_nfr="2%")
    verdict = json.loads((tmp_path / "out" / "gate.json").read_text())["verdict"]
    assert found == code
    assert verdict == {0: "pass", 1: "fail", 3: "not enough evidence"}[code]
    assert verdict in text.lower()
    for name in WRITTEN:
        assert (tmp_path / "out" / name).exists()
    assert verdict in (tmp_path / "out" / "report.html").read_text(encoding="utf-8").lower()


def test_the_reason_and_the_page_are_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr("muscle.report.write_page", drawn.append)
    old, new = many(tmp_path / "old.jsonl", 0), many(tmp_path / "new.jsonl", 20)
    for limits in ({}, {"max_nfr": "2%"}):
        drawn.clear()
        _, text = outcome(tmp_path / "out", old, new, **limits)
        assert len(drawn) == 1
        assert text.count("NFR old→new ≤ 2.00 %: it is") == len(limits)


def test_slices_with_limits(tmp_path: Path) -> None:
    """All flips are in one half: the whole passes, the half doesn't."""
    kinds = ["a"] * 200 + ["b"] * 1800
    old, new = ([1.0] * 2000, [float(i >= 20) for i in range(2000)])
    paths = [scores(tmp_path / f"{n}.jsonl", v, kind=kinds) for n, v in (("o", old), ("n", new))]
    assert outcome(tmp_path / "out", *paths, max_nfr="0.02")[0] == 0
    assert outcome(tmp_path / "out", *paths, max_nfr="0.02", slice=("kind",))[0] == 1
    assert outcome(tmp_path / "out", *paths, max_nfr="0.02", slice=("kind=b",))[0] == 0


def test_a_wrong_list_leaves_the_report(tmp_path: Path) -> None:
    path = many(tmp_path / "old.jsonl", 0)
    (tmp_path / "keep.txt").write_text("no such id\n")
    with pytest.raises(UserError, match="no such id"):
        run(tmp_path / "out", path, path, must_keep=str(tmp_path / "keep.txt"))
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == set(WRITTEN) - {"gate.json", "junit.xml"}


# --- the command ------------------------------------------------------------------------------


def parsed(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Comparison:
    """What `compare` is asked for by a command line."""
    asked: list[Comparison] = []
    monkeypatch.setattr(comparing, "compare", lambda request, _: asked.append(request) or 0)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (request,) = asked
    return request


FULL = Comparison(
    old="o 1.jsonl,o2.jsonl",
    new="n.jsonl",
    compat="c",
    output="out it's",
    noise_floor="again",
    also=("v1=p.jsonl", "q/v0"),
    task=("a", "b"),
    metric="acc",
    filter="strict",
    id="key",
    correct="ok",
    score="s",
    answer="said",
    gold="right",
    question="asked",
    task_column="task",
    slice=("subject", "level=2"),
    min_slice=20,
    group=("g=a,b",),
    common=True,
    text="none",
    draws=77,
    seed=5,
    max_nfr="2%",
    max_excess_nfr="0.01",
    max_relative_nfr="0.5",
    min_gain="-0.01",
    must_keep="keep.txt",
    waive="w.yaml",
    pair="old->new",
)


def test_the_command_line_says_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flag arrives, and the report's own command line makes the same comparison."""
    for name in Comparison.__slots__:
        default = getattr(Comparison("o", output="x"), name)
        assert getattr(FULL, name) != default or name in ("old", "output")
    for request in (FULL, Comparison("run", output="out"), Comparison("a", "b", output="out")):
        words = shlex.split(request.command())
        assert words[:2] == ["muscle", "compare"]
        assert parsed(words[1:], monkeypatch) == request


def test_it_starts_light(tmp_path: Path) -> None:
    """A whole comparison, with limits, in a process without any of the heavy libraries."""
    code = f"""
import sys
from muscle.cli import main
try:
    main(["compare", {str(DATA / "testbed-v1")!r}, {str(DATA / "testbed-v2")!r}, "--output",
          {str(tmp_path / "out")!r}, "--draws", "100", "--max-nfr", "0.9", "--task", "{CHOICE}"])
except SystemExit as stopped:
    assert stopped.code == 0, stopped.code
heavy = {{"torch", "ray", "transformers", "lm_eval", "deepspeed", "datasets"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "out" / "report.html").exists()


def test_errors_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    from muscle.cli import main

    with pytest.raises(SystemExit) as stopped:
        main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "o")])
    assert stopped.value.code == 2


def ended(arguments: Sequence[str], stream: str = "stdout") -> tuple[int, str]:
    """Exit code of a command whose reader has left, and what it said elsewhere."""
    reader, writer = os.pipe()
    os.close(reader)
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "muscle.cli", *arguments]
    done = subprocess.run(command, text=True, **streams | {stream: writer})
    os.close(writer)
    return done.returncode, (done.stdout or "") + (done.stderr or "")


def test_a_reader_that_leaves_changes_no_verdict(tmp_path: Path) -> None:
    """1 is a gate's "fail"; `| head -1` must not make one."""
    old, new = many(tmp_path / "old.jsonl", 0), many(tmp_path / "new.jsonl", 2)
    out = tmp_path / "out"
    files = ["compare", str(old), str(new), "--output", str(out), "--draws", "100"]
    assert ended([*files, "--max-nfr", "0.02"]) == (0, "")
    assert {path.name for path in out.iterdir()} == set(WRITTEN)
    assert ended(["gate", str(out), "--max-nfr", "0.0021"]) == (3, "")
    assert ended(["gate", str(out), "--max-nfr", "0"]) == (1, "")
    assert ended(["gate", "--help"]) == (74, "")
    assert ended(["gate", str(tmp_path / "nowhere"), "--max-nfr", "0"], "stderr") == (2, "")


def test_a_hostile_file_writes_no_terminal_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of columns stand in messages."""
    from muscle.cli import main

    for name in ("old", "new"):
        row = {"id": 1, "\x1b]0;owned\x07\u202e": 1}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    files = [str(tmp_path / f"{name}.jsonl") for name in ("old", "new")]
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *files, "--output", str(tmp_path / "o")])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "there are id, ]0;owned" in said
    assert not set("\x1b\x07\u202e") & set(said)


def test_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of many tasks is read for its hash once, not once for each of them."""
    rows = [{"id": i, "task": f"t{i % 9}", "correct": 1} for i in range(90)]
    for name in ("old", "new"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    read: list[str] = []

    def sha256(path: str) -> str:
        read.append(path)
        return "0" * 64

    monkeypatch.setattr("muscle.storage.sha256", sha256)
    files = [tmp_path / f"{name}.jsonl" for name in ("old", "new")]
    run(tmp_path / "out", *files, task_column="task")
    assert sorted(read) == sorted(map(str, files))


def test_every_flag_is_documented() -> None:
    import re

    from typer.main import get_command

    command = get_command(app)
    flags = {
        flag
        for parameter in command.commands["compare"].params  # type: ignore[attr-defined]
        for flag in parameter.opts
        if flag.startswith("--")
    }
    text = (Path(__file__).parents[2] / "docs" / "compare.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"--[a-z][a-z_-]+", text))
    harness = {"--model", "--model_args", "--tasks", "--log_samples", "--output_path"}
    assert documented - harness == flags
