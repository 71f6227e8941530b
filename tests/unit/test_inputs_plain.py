"""Plain JSONL, Parquet and CSV, and what is said of files that are none of these."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from muscle.errors import UserError
from muscle.inputs import Asked, Columns, open_sides
from muscle.side import Side

ROWS: list[dict[str, Any]] = [
    {"id": 7, "score": 1, "subject": "law", "year": 2001, "gold": "yes", "prediction": "yes"},
    {"id": 8, "score": 0, "subject": "art", "year": 2002, "gold": "no", "prediction": "yes"},
    {"id": 9, "score": None, "subject": None, "year": 2003, "gold": "no", "prediction": None},
]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def packed(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(gzip.compress(jsonl(path, rows).read_bytes()))
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def comma(path: Path, rows: list[dict[str, Any]]) -> Path:
    csv.write_csv(pa.Table.from_pylist(rows), path)
    return path


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Path]] = {
    "a.jsonl": jsonl,
    "a.jsonl.gz": packed,
    "a.parquet": parquet,
    "a.csv": comma,
}
# The extension says nothing: each writer under another's name too.
MISNAMED = {
    "a.parquet": jsonl,
    "a.csv": parquet,
    "a.jsonl": packed,
    "noend": parquet,
    "a.jsonl.gz": jsonl,
    "other": comma,
}
every = pytest.mark.parametrize("name", WRITERS)


def column(side: Side, name: str) -> list[Any]:
    found = side.read(name)
    assert found is not None and len(found) == side.n
    return list(found.to_pylist())


def one(path: Path, columns: Columns | None = None, **asked: Any) -> Side:
    (side,) = open_sides(str(path), Asked(columns or Columns(), **asked)).values()
    return side


@pytest.mark.parametrize(
    ("name", "write"),
    [*WRITERS.items(), *MISNAMED.items()],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_every_kind_says_the_same(
    name: str, write: Callable[[Path, list[dict[str, Any]]], Path], tmp_path: Path
) -> None:
    side = one(write(tmp_path / name, ROWS))
    assert (side.task, side.metric, side.n) == ("examples", "score", 3)
    assert column(side, "id") == ["7", "8", "9"]
    assert column(side, "score") == [1.0, 0.0, None]
    assert column(side, "gold") == ["yes", "no", "no"]
    assert column(side, "prediction") == ["yes", "yes", None]
    assert [dict(fields) for fields in column(side, "fields")] == [
        {"subject": "law", "year": "2001"},
        {"subject": "art", "year": "2002"},
        {"year": "2003"},
    ]
    assert set(column(side, "metric")) == {"score"} and set(column(side, "task")) == {"examples"}
    assert side.read("choices") is None and side.read("question") is None
    assert side.about == {"files": [{"path": str(tmp_path / name)}]}


def test_named_columns_after_hundreds_of_others(tmp_path: Path) -> None:
    """An id is found wherever it stands; of the others some are looked at."""
    rows = [{f"c{i}": "x" for i in range(300)} | row | {"task": "a"} for row in ROWS]
    side = one(jsonl(tmp_path / "wide.jsonl", rows))
    assert column(side, "id") == ["7", "8", "9"]
    assert column(side, "gold") == ["yes", "no", "no"]
    rows[1]["task"] = "b"
    with pytest.raises(UserError, match="several tasks"):
        one(jsonl(tmp_path / "wide.jsonl", rows))


@every
def test_columns_by_their_flags(name: str, tmp_path: Path) -> None:
    rows = [{"key": f"k{i}", "ok": i != 1, "out": f"o{i}", "ref": "r", "in": "q"} for i in range(3)]
    columns = Columns(id="key", correct="ok", answer="out", gold="ref", question="in")
    side = one(WRITERS[name](tmp_path / name, rows), columns)
    assert side.metric == "ok" and column(side, "score") == [1.0, 0.0, 1.0]
    assert column(side, "id") == ["k0", "k1", "k2"]
    assert column(side, "prediction") == ["o0", "o1", "o2"]
    assert column(side, "gold") == ["r"] * 3 and column(side, "question") == ["q"] * 3
    assert column(side, "fields") == [[]] * 3
    named = one(tmp_path / name, Columns(id="key", score="ok"), metric="accuracy")
    assert named.metric == "accuracy"


@every
@pytest.mark.parametrize("flag", ["id", "score", "correct", "answer", "gold", "question", "task"])
def test_a_missing_column_names_those_that_are_there(name: str, flag: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name, [{"id": 1, "score": 1, "other": "x"}])
    with pytest.raises(UserError, match=r"no column 'nope' \(--.*\); there are id, score, other"):
        one(path, Columns(**{flag: "nope"}))


@every
def test_no_score_at_all(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name, [{"id": 1, "em": 1}])
    with pytest.raises(UserError, match="no column 'score' or 'correct': name one with --score"):
        one(path)
    assert column(one(path, metric="em"), "score") == [1.0]
    with pytest.raises(UserError, match=r"no column 'f1' \(--metric\); there are id, em"):
        one(path, metric="f1")
    with pytest.raises(UserError, match="--correct and --score: give one"):
        one(path, Columns(correct="em", score="em"))
    with pytest.raises(UserError, match=r"--filter strict: .* has no filters"):
        one(path, filter="strict")


@every
def test_scores_that_are_none(name: str, tmp_path: Path) -> None:
    write = WRITERS[name]
    row = "line" if "json" in name else "row"

    def of(*values: Any) -> Path:
        return write(tmp_path / name, [{"id": i, "score": v} for i, v in enumerate(values)])

    for text in ("good", "0.5x"):
        with pytest.raises(UserError, match=rf"{row} 1: 'score' is '{text}': it must be a number"):
            one(of(text, "bad"))
    with pytest.raises(UserError, match=f"{row} 3: the score is inf: a score must be finite"):
        one(of(0.5, 1.5, float("inf")))
    with pytest.raises(UserError, match=f"{row} 2: the score is -inf"):
        one(of(0.5, float("-inf")))
    for value in (1e308, -1.1e100):
        with pytest.raises(UserError, match=rf"{row} 2: the score is -?1.*: scores go up to 1e"):
            one(of(0.5, value))
    assert column(one(of(0.5, 1e100)), "score") == [0.5, 1e100]
    assert column(one(of(0.5, float("nan"))), "score") == [0.5, None]
    assert column(one(of(0.5, None, 2)), "score") == [0.5, None, 2.0]


@every
def test_right_or_wrong_is_that(name: str, tmp_path: Path) -> None:
    row = "line" if "json" in name else "row"
    path = WRITERS[name](tmp_path / name, [{"id": i, "correct": v} for i, v in enumerate((1, 0.5))])
    with pytest.raises(UserError, match=rf"{row} 2: 'correct' is 0\.5: --correct takes true/false"):
        one(path)
    assert column(one(path, Columns(score="correct")), "score") == [1.0, 0.5]
    path = WRITERS[name](tmp_path / name, [{"id": i, "correct": v} for i, v in enumerate((1, 0))])
    assert column(one(path), "score") == [1.0, 0.0]


@every
def test_ids(name: str, tmp_path: Path) -> None:
    write = WRITERS[name]
    row = "line" if "json" in name else "row"
    path = write(tmp_path / name, [{"id": "a", "score": 1}, {"id": None, "score": 1}])
    with pytest.raises(UserError, match=f"{row} 2: 'id' is empty"):
        one(path)
    path = write(tmp_path / name, [{"id": x, "score": 1} for x in "aba"])
    with pytest.raises(UserError, match=rf"{row} 3: the id 'a' .* first in .*, {row} 1"):
        one(path)
    path = write(tmp_path / name, [{"id": "007", "score": 1}, {"id": "7", "score": 0}])
    assert column(one(path), "id") == ["007", "7"]


def test_ids_that_are_no_texts(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"id": ["x"], "score": 1}])
    with pytest.raises(UserError, match=r"line 1: 'id' is \['x'\]: it must be a text or a w"):
        one(path)
    path = parquet(tmp_path / "a.parquet", [{"id": ["x"], "score": 1}])
    with pytest.raises(UserError, match=r"column 'id' is list<.*>: it must be texts or numbers"):
        one(path)
    for value, shown in ((1.5, r"1\.5"), (True, "true")):
        for write, row in ((jsonl, "line"), (parquet, "row")):
            rows = [{"id": value if write is parquet else 1, "score": 1}, {"id": value, "score": 0}]
            text = rf"{row} {1 if write is parquet else 2}: 'id' is {shown}: it must be a text or a"
            with pytest.raises(UserError, match=text):
                one(write(tmp_path / "bad", rows))
    large = [{"id": 1234567890123.0, "score": 1}, {"id": 2.0, "score": 0}]
    for write in (jsonl, parquet):
        assert column(one(write(tmp_path / "large", large)), "id") == ["1234567890123", "2"]
    # Another tool's integers with a gap are floats.
    assert column(one(parquet(tmp_path / "b", [{"id": 7.0, "score": 1}])), "id") == ["7"]
    assert column(one(jsonl(tmp_path / "c", [{"id": 7.0, "score": 1}])), "id") == ["7"]


@every
def test_several_tasks_in_a_file(name: str, tmp_path: Path) -> None:
    rows = [{"id": i // 2, "score": i % 2, "task": "ab"[i % 2], "n": i} for i in range(6)]
    path = WRITERS[name](tmp_path / name, rows)
    with pytest.raises(UserError, match=r"several tasks \(a, b\): say so with --task-column task"):
        one(path)
    columns = Columns(task="task")
    sides = open_sides(str(path), Asked(columns))
    assert list(sides) == ["a", "b"]
    for task, scores, ns in (("a", [0.0] * 3, "024"), ("b", [1.0] * 3, "135")):
        assert column(sides[task], "score") == scores
        assert column(sides[task], "id") == ["0", "1", "2"]
        assert column(sides[task], "fields") == [[("n", n)] for n in ns]
        assert set(column(sides[task], "task")) == {task}
    assert list(open_sides(str(path), Asked(columns, tasks=("b",)))) == ["b"]
    rows[4] |= {"id": 0}
    path = WRITERS[name](tmp_path / name, rows)
    row = "line" if "json" in name else "row"
    with pytest.raises(UserError, match=f"{row} 5: the id '0' .* {row} 1"):
        open_sides(str(path), Asked(columns))


def test_a_folder_of_files(tmp_path: Path) -> None:
    for name, score in (("piqa.jsonl", 1), ("law.csv", 0)):
        WRITERS["a" + Path(name).suffix](tmp_path / name, [{"id": 1, "score": score}])
    (tmp_path / "README.md").write_text("no predictions")
    (tmp_path / "adapter").mkdir()
    sides = open_sides(str(tmp_path))
    assert {task: column(side, "score") for task, side in sides.items()} == {
        "piqa": [1.0],
        "law": [0.0],
    }
    # The only file of a folder is a task of its name too: law is not compared with medicine.
    (tmp_path / "piqa.jsonl").rename(tmp_path / "adapter" / "piqa.jsonl")
    assert list(open_sides(str(tmp_path))) == ["law"]
    assert list(open_sides(str(tmp_path), Asked(unnamed="other"))) == ["law"]
    (tmp_path / "adapter" / "piqa.jsonl").rename(tmp_path / "piqa.jsonl")
    jsonl(tmp_path / "piqa.ndjson", ROWS)
    with pytest.raises(UserError, match=r"two files hold task 'piqa': .*piqa\.jsonl and .*ndjson"):
        open_sides(str(tmp_path))


def test_values_that_are_too_long_for_a_slice(tmp_path: Path) -> None:
    rows = [{"id": i, "score": 1, "text": "x" * (80 + i), "short": "x" * 80} for i in range(2)]
    side = one(jsonl(tmp_path / "a", rows))
    assert [list(dict(fields)) for fields in column(side, "fields")] == [["short"]] * 2


def test_half_of_a_surrogate_pair(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a", "score": 1, "prediction": "\\ud83d"}\n')
    assert column(one(path), "prediction") == ["?"]


def test_a_mark_before_the_first_line(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv"):
        path = WRITERS[name](tmp_path / name, [{"id": "a", "score": 1}])
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert column(one(path), "id") == ["a"]


# --- what can't be read -----------------------------------------------------------------------

LINE = b'{"id": 1, "score": 1}\n'
BAD = {
    "empty": (b"", "is empty"),
    "blank": (b"\n \n", "is empty"),
    "list": (b'[{"id": 1, "score": 1}]', r"is one JSON list: write one JSON object per line"),
    "text": (b"hello\n", "can't tell what this is"),
    "bytes": (b"\x00\x01\x02\xff\xfe", "can't tell what this is"),
    "number": (LINE + b"3\n", "line 2: is no JSON object"),
    "broken": (LINE + b'{"id": 2, "sc\n' + LINE, "line 2: broken JSON"),
    "cut off": (LINE * 2 + b'{"id": 2, "sc', "line 3: the last line is cut off: .* half-written"),
    "cut first": (b'{"id": 2, "sc', "line 1: the last line is cut off: the file is half-written"),
    "latin": (LINE + '{"id": "é", "score": 1}\n'.encode("latin-1"), "line 2: is not UTF-8"),
    "deep": (LINE + b'{"id": ' + b"[" * 200_000 + b"\n", "line 2: is nested too deeply|broken"),
    "no score": (LINE + b'{"id": 2}\n', "line 2: has no 'score'"),
    "long number": (LINE + b'{"id": 2, "score": 1e999}\n', "line 2: the score is inf"),
    "huge number": (LINE + b'{"id": 2, "score": 1' + b"0" * 400 + b"}\n", "line 2: the score is i"),
    "double name": (LINE + b'{"id": 2, "score": 1, "id": 3}\n', "line 2: has 'id' twice"),
    "double inside": (LINE + b'{"id": 2, "score": 1, "x": {"y": 1, "y": 2}}', "line 2: has 'y' tw"),
    "double column": (b"id,id,correct\n1,2,1\n", "two columns are called 'id'"),
    "double other": (b"id,x,x,correct\n1,2,2,1\n", "two columns are called 'x'"),
    "cut gzip": (gzip.compress(LINE * 9)[:-9], "half-written: its gzip data is cut off"),
    "bad gzip": (gzip.compress(LINE)[:10] + b"\xff" * 30, "broken gzip data"),
    "header": (b"id,score\n", "has no rows"),
    "ragged": (b"id,score\n1,2,3\n", "is no CSV file"),
    "latin csv": ("id,score,x\n1,1,é\n".encode("latin-1"), "is no CSV file: .*UTF8"),
    "parquet": (b"PAR1" + b"\x00" * 50, "is not a whole Parquet file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_unreadable_files_are_one_line(kind: str, tmp_path: Path) -> None:
    data, text = BAD[kind]
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(UserError, match=text) as caught:
        one(tmp_path / "a.jsonl")
    assert str(tmp_path / "a.jsonl") in str(caught.value) and "\n" not in str(caught.value)


def test_half_a_parquet(tmp_path: Path) -> None:
    data = parquet(tmp_path / "a.parquet", ROWS * 500).read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"a\.parquet is not a whole Parquet file"):
        one(tmp_path / "a.parquet")
    parquet(tmp_path / "none.parquet", ROWS)
    empty = pa.table({"id": pa.array([], pa.string()), "score": pa.array([], pa.float64())})
    pq.write_table(empty, tmp_path / "none.parquet")
    with pytest.raises(UserError, match="has no rows"):
        one(tmp_path / "none.parquet")


def test_a_parquet_with_a_column_twice(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array([1.0])], ["id", "id", "correct"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: two columns are called 'id'"):
        one(tmp_path / "a.parquet")


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: there is no such file or folder"):
        open_sides(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="this folder holds no predictions"):
        open_sides(str(tmp_path))
    (tmp_path / "evaluation.json").write_text("{}")
    for version in ("old", "new"):
        (tmp_path / version).mkdir()
    with pytest.raises(UserError, match=r"output folder of a command: .*\(there are: new, old\)"):
        open_sides(str(tmp_path))


def test_other_places_than_disks() -> None:
    import fsspec

    with fsspec.open("memory://inputs/a.jsonl", "wb") as file:
        file.write(LINE)
    assert open_sides("memory://inputs")["a"].n == 1
    assert open_sides("memory://inputs/a.jsonl")["examples"].n == 1
