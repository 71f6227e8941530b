"""A fleet travels to a cluster as an experiment does, and its reports come back."""

import json
from pathlib import Path
from typing import Any

import pytest
from submitting import SETTINGS, write

from muscle.errors import UserError
from muscle.fleet.settings import load_fleet
from muscle.storage import sha256
from muscle.submission.arrival import Said, said_results, say_results
from muscle.submission.packing import EXPERIMENT, pack
from muscle.submission.returning import bring_back

GATE = {"max_nfr": 0.1}


def fleet(folder: Path, *entries: dict[str, Any], **common: Any) -> Path:
    return write(folder, gate=GATE, adapters=list(entries), **common)


def test_each_entrys_settings_files_travel_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, ids in (("a", "1\n"), ("b.c", "2\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keep.txt").write_text(ids)
    entries = [
        {"name": name, "old": "s3://bucket/x", "gate": {"must_keep": f"{name}/keep.txt"}}
        for name in ("a", "b.c")
    ]
    package = pack(fleet(tmp_path, *entries), ["adapters.b.c.seeds=[3]"])
    target = tmp_path / "there"
    package.write(target)
    monkeypatch.setenv("MUSCLE_STORAGE", "/shared")
    monkeypatch.chdir(target)
    a, b = load_fleet(target / EXPERIMENT).entries
    kept = [str(entry.experiment.gate.must_keep) for entry in (a, b)]
    assert [Path(path).read_text() for path in kept] == ["1\n", "2\n"]
    assert a.experiment.old.adapter == "s3://bucket/x" and a.experiment.old.model == "testbed:v1"
    assert (a.experiment.seeds, b.experiment.seeds) == ([0], [3])
    assert package.output == "${MUSCLE_STORAGE}/runs/tiny" and package.kind == "run"


def test_what_only_this_machine_has_is_refused_by_its_entry(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    file = fleet(tmp_path, {"name": "a"}, {"name": "b", "new": "mine"})
    with pytest.raises(
        UserError, match=r"'adapters\.b\.new\.adapter' is 'mine'.*--set adapters\.b"
    ):
        pack(file)
    pack(file, ["adapters.b.new.adapter=s3://bucket/mine"])


def test_a_fleet_is_not_tuned_and_is_checked_before_it_travels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one experiment"):
        pack(fleet(tmp_path, {"name": "a"}), tune=True)
    with pytest.raises(UserError, match=r"adapters\[0\] \(a\): unknown setting 'sed'"):
        pack(fleet(tmp_path, {"name": "a", "sed": 1}))
    assert "adapters" not in SETTINGS


def test_the_reports_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, here = tmp_path / "cluster", tmp_path / "here"
    for name in ("a", "b"):
        (output / name).mkdir(parents=True)
        (output / name / "report.html").write_text(name)
    adapters = [
        {"folder": "a", "report": "a/report.html"},
        {"folder": "b", "report": None},
        {"folder": "../../outside", "report": "x"},
    ]
    (output / "fleet.json").write_text(json.dumps({"adapters": adapters}))
    say_results("run", str(output))
    said = said_results(capsys.readouterr().out)
    assert said == Said(str(output), "fleet.json", sha256(str(output / "fleet.json")))
    package = pack(fleet(tmp_path, {"name": "a"}))
    assert bring_back(said, package, str(here)).folder == str(here)
    there = {str(p.relative_to(here)) for p in here.rglob("*") if p.is_file()}
    assert there == {"fleet.json", "a/report.html"}
