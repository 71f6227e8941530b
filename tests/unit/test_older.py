"""`--also`: the flips since an older release, and since when."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from muscle.compare import compare_files
from muscle.errors import UserError
from muscle.report import write_markdown, write_page
from muscle.report.older import labelled

# Of each example whether it is right in: v1, old (v2), new, compat.
KINDS = {
    (1, 1, 1, 1): 40,
    (1, 1, 0, 1): 7,  # lost by the update, mended by compat
    (1, 1, 0, 0): 5,  # lost by the update
    (1, 0, 0, 0): 9,  # lost by the update before: an old debt
    (1, 0, 1, 1): 3,  # lost then, back now
    (0, 1, 0, 0): 6,  # v1 never had it
    (0, 0, 0, 0): 20,
    (0, 0, 1, 1): 10,
}
N = sum(KINDS.values())
VERSIONS = ("v1", "old", "new", "compat")


def write(folder: Path, version: str, skip: Sequence[int] = (), rename: str = "") -> str:
    column = VERSIONS.index(version)
    flags = [kind[column] for kind, count in KINDS.items() for _ in range(count)]
    rows = [
        {
            "id": f"{rename}{i}",
            "correct": bool(flag),
            "gold": "x",
            "prediction": "x" if flag else "y",
        }
        for i, flag in enumerate(flags)
        if i not in skip
    ]
    path = folder / f"{rename}{version}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return {version: write(tmp_path, version) for version in VERSIONS}


def compare(tmp_path: Path, files: dict[str, str], *also: str, **more: Any) -> dict[str, Any]:
    given = {"old": files["old"], "new": files["new"], "compat": files["compat"], "draws": 200}
    compare_files(output=str(tmp_path / "out"), **{**given, **more}, also=list(also))
    return dict(json.loads((tmp_path / "out" / "report.json").read_text()))


def only(report: dict[str, Any]) -> dict[str, Any]:
    return dict(next(iter(report["tasks"].values())))


def test_flips_since_an_older_release_and_since_when(tmp_path: Path, files: dict[str, str]) -> None:
    task = only(compare(tmp_path, files, files["v1"]))
    block = task["also"]["v1"]
    assert block["n"] == N and block["unscored"] == 0
    assert block["score"]["score"] == pytest.approx(64 / N)
    assert [*block["pairs"]] == ["also->old", "also->new", "also->compat"]
    # Lost by the first update: the debts, and what has come back since.
    assert block["pairs"]["also->old"]["counts"]["negative"] == 9 + 3
    new, compat = block["pairs"]["also->new"], block["pairs"]["also->compat"]
    assert new["counts"]["negative"] == 7 + 5 + 9
    assert new["lost"] == {
        "before": {"count": 9, "share": 9 / N},
        "now": {"count": 12, "share": 12 / N},
    }
    assert compat["lost"]["before"]["count"] == 9 and compat["lost"]["now"]["count"] == 5
    assert new["nfr"] == pytest.approx(21 / N) and new["ci95"]["nfr"][0] < 21 / N
    assert new["counts"]["positive"] == 10
    assert new["bounds95"]["nfr"][0] < 21 / N < new["bounds95"]["nfr"][1]
    for pair in block["pairs"].values():
        assert sum(pair["counts"].values()) == N
    # The update's own flips are those that they are without it.
    (tmp_path / "plain").mkdir()
    plain = only(compare(tmp_path / "plain", files))
    assert "also" not in plain
    assert {k: v for k, v in task.items() if k != "also"} == plain


def test_old_as_its_own_elder_has_no_old_debts(tmp_path: Path, files: dict[str, str]) -> None:
    """The same answers in another file: since then is since old, to the digit."""
    copy = tmp_path / "copy.jsonl"
    copy.write_text(Path(files["old"]).read_text() + "\n")
    task = only(compare(tmp_path, files, f"twin={copy}"))
    for version in ("new", "compat"):
        mine, update = (
            task["also"]["twin"]["pairs"][f"also->{version}"],
            task["pairs"][f"old->{version}"],
        )
        assert mine["lost"]["before"]["count"] == 0
        assert mine["lost"]["now"]["count"] == mine["counts"]["negative"] == update["negative"]
        assert mine["nfr"] == update["nfr"] and mine["ci95"]["nfr"] == update["ci95"]["nfr"]
    assert task["also"]["twin"]["pairs"]["also->old"]["nfr"] == 0


def test_it_takes_no_example_from_the_update(tmp_path: Path, files: dict[str, str]) -> None:
    short = write(tmp_path, "v1", skip=[0, 1], rename="short-")
    Path(short).write_text(Path(short).read_text().replace('"short-', '"'))
    with pytest.raises(UserError, match=r"the ids of .* differ"):
        compare(tmp_path, files, f"v1={short}")
    task = only(compare(tmp_path, files, f"v1={short}", common=True))
    assert task["n"] == N and task["common_only"] == 0
    assert task["also"]["v1"]["n"] == N - 2 and task["also"]["v1"]["common_only"] == 2


def test_several_older_releases_over_seeds(tmp_path: Path, files: dict[str, str]) -> None:
    other = tmp_path / "seed1"
    other.mkdir()
    swapped = {v: write(other, v) for v in VERSIONS}
    # Another seed whose new is compat: half of the mended flips, on average.
    given = {
        "old": f"{files['old']},{swapped['old']}",
        "new": f"{files['new']},{swapped['compat']}",
        "compat": f"{files['compat']},{swapped['compat']}",
    }
    task = only(compare(tmp_path, files, f"first={files['v1']}", files["v1"], **given))
    assert [*task["also"]] == ["first", "v1"]
    new = task["also"]["first"]["pairs"]["also->new"]
    assert new["counts"]["negative"] is None and new["lost"]["now"]["count"] is None
    assert new["lost"]["now"]["share"] == pytest.approx((12 + 5) / 2 / N)
    assert new["nfr"] == pytest.approx((21 + 14) / 2 / N)
    with pytest.raises(UserError, match="names 3 paths for 2 seeds"):
        compare(tmp_path, files, ",".join([files["v1"]] * 3), **given)


def test_graded_scores(tmp_path: Path) -> None:
    def graded(name: str, scores: Sequence[float]) -> str:
        path = tmp_path / f"{name}.jsonl"
        rows = [{"id": str(i), "score": s} for i, s in enumerate(scores)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    files = {
        "old": graded("old", [0.5, 0.2, 0.9, 0.1]),
        "new": graded("new", [0.4, 0.2, 0.9, 0.3]),
        "compat": graded("compat", [0.5, 0.3, 0.9, 0.3]),
    }
    task = only(compare(tmp_path, files, graded("v1", [0.5, 0.4, 0.9, 0.1])))
    pairs = task["also"]["v1"]["pairs"]
    assert pairs["also->new"]["counts"] == {"negative": 2, "positive": 1, "equal": 1}
    assert pairs["also->new"]["lost"]["before"]["count"] == 1  # fell to 0.2 at old already
    assert pairs["also->new"]["lost"]["now"]["count"] == 1
    assert pairs["also->compat"]["lost"]["before"]["count"] == 1  # 0.3 is less than v1's 0.4
    assert pairs["also->new"]["relative_nfr"] is None
    text = (tmp_path / "out" / "report.md").read_text()
    assert "50.00 % score lower in compat than in v1" not in text
    assert "25.00 % score lower in compat than in v1: 25.00 % since old already" in text


def test_the_console_says_it(
    tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    compare(tmp_path, files, files["v1"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Since v1: Of all examples, 14.00 % were right in v1 and are wrong in compat" in said


def test_the_pages_show_it(tmp_path: Path, files: dict[str, str]) -> None:
    evil = "<b>v1 & co"
    with pytest.raises(UserError, match="can't be an older release's name"):
        compare(tmp_path, files, f"{evil}={files['v1']}")
    report = compare(tmp_path, files, files["v1"])
    page, text = ((tmp_path / "out" / n).read_text() for n in ("report.html", "report.md"))
    for shown in (page, text):
        assert "Since older releases" in shown or "### Since v1" in shown
        assert "5.00 % by this update" in shown and "9.00 % since old already" in shown
        assert "worse, and at old already" in shown
    # A label of a report that somebody wrote by hand is text all the same.
    name = next(iter(report["tasks"]))
    report["tasks"][name]["also"] = {evil: report["tasks"][name]["also"]["v1"]}
    (tmp_path / "out" / "report.json").write_text(json.dumps(report))
    write_page(str(tmp_path / "out"))
    write_markdown(str(tmp_path / "out"))
    assert evil not in (tmp_path / "out" / "report.html").read_text()
    assert "<b>" not in (tmp_path / "out" / "report.md").read_text()


def test_a_page_without_older_releases_has_no_such_section(
    tmp_path: Path, files: dict[str, str]
) -> None:
    compare(tmp_path, files)
    assert 'id="older"' not in (tmp_path / "out" / "report.html").read_text()
    assert "Since" not in (tmp_path / "out" / "report.md").read_text()


def test_what_was_asked_otherwise_is_said(tmp_path: Path, files: dict[str, str]) -> None:
    rows = [json.loads(line) for line in Path(files["v1"]).read_text().splitlines()]
    odd = tmp_path / "odd.jsonl"
    odd.write_text("".join(json.dumps({**r, "question": "in other words"}) + "\n" for r in rows))
    for version in ("old", "new", "compat"):
        lines = [json.loads(line) for line in Path(files[version]).read_text().splitlines()]
        Path(files[version]).write_text(
            "".join(json.dumps({**r, "question": "q"}) + "\n" for r in lines)
        )
    notes = only(compare(tmp_path, files, f"v1={odd}"))["also"]["v1"]["comparability"]
    assert notes[0]["what"] == "rendered prompts"
    assert set(notes[0]["values"]) == {"also", "old", "new", "compat"}


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("nowhere.jsonl", "nowhere"),
        ("v1=", "write it as PATH or NAME=PATH"),
        ("old=x.jsonl", "'old' can't be an older release's name"),
        ("../a=b/x.jsonl", "b/x"),
        ("r/release.json", "a release holds no predictions"),
    ],
)
def test_wrong_paths_and_names(
    tmp_path: Path, files: dict[str, str], also: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compare(tmp_path, files, also)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_old_itself_and_a_name_twice_are_refused(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(UserError, match="is the same file as old's"):
        compare(tmp_path, files, f"v0={files['old']}")
    with pytest.raises(UserError, match="'v1' comes twice"):
        compare(tmp_path, files, files["v1"], files["v1"])
    other = write(tmp_path, "v1", rename="other-")
    Path(other).write_text(Path(other).read_text().replace('"gold": "x"', '"gold": "z"'))
    with pytest.raises(UserError, match="differ"):
        compare(tmp_path, files, f"v1={other}")


def test_labels() -> None:
    given = ["runs/v1/release.json", "runs/v2/compat", "a/b.jsonl.gz", "runs/lr=1/v3", "v9=x=y/z"]
    assert [*labelled(given, "--also")] == ["v1", "v2", "b", "v3", "v9"]
    assert labelled(given, "--also")["v9"] == "x=y/z"
