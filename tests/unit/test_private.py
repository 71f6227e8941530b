"""`--text none`: no text of an example in what is written, whatever it was in."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from muscle.metrics.pairing import join_predictions
from muscle.report import write_csv, write_markdown, write_page
from muscle.report.build import ReportOptions, report_of
from muscle.report.example_table import write_example_table
from muscle.storage import write_json
from muscle.types import Prediction

SECRET = "XSECRETX"


def rows(version: str) -> list[Prediction]:
    choices = (f"yes {SECRET}", f"no {SECRET}")
    found = []
    for i in range(120):
        right = (i % 3 != 0) if version == "old" else (i % 4 != 0)
        found.append(
            Prediction(
                task="t",
                id=str(i),
                question=f"{version} asks {SECRET} {i}",
                gold=choices[0],
                prediction=None if i == 7 else choices[0 if right else 1],
                metric="acc",
                score=None if i == 7 else float(right),
                choices=choices,
                loglikelihoods=(-1.0, -2.0),
                error=f"can't read {SECRET}" if i == 7 else None,
                response=f"so: {SECRET}",
                fields={"name": f"{SECRET} {i % 2}"},
            )
        )
    return found


def test_no_text_is_left_in_any_file(tmp_path: Path) -> None:
    tasks = join_predictions({0: {"old": rows("old"), "new": rows("new")}})
    for text, there in (("all", True), ("none", False)):
        folder = tmp_path / text
        folder.mkdir()
        report = report_of(tasks, {}, ReportOptions(draws=50, text=text))
        write_example_table(str(folder / "examples.parquet"), tasks, text)
        write_json(str(folder / "report.json"), report)
        write_page(str(folder))
        write_markdown(str(folder))
        write_csv(str(folder))
        files = sorted(p for p in folder.iterdir() if p.suffix != ".parquet")
        assert any(SECRET in p.read_text() for p in files) == there
        kept = str(pq.read_table(folder / "examples.parquet").to_pylist())
        assert (SECRET in kept) == there
        assert len(files) >= 5
    columns = {
        s["column"]
        for s in json.loads((folder / "report.json").read_text())["tasks"]["t"]["slices"]
    }
    assert not any("name" in c for c in columns)
    named = ReportOptions(draws=50, text="none", slices=("name",), min_slice=10)
    (task,) = report_of(tasks, {}, named)["tasks"].values()
    assert {s["column"] for s in task["slices"]} == {"name"}
