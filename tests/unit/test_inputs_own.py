"""Our own Parquet as sides: today's, an earlier version's, another writer's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from muscle.errors import UserError
from muscle.inputs import Asked, open_sides
from muscle.side import Side
from muscle.tables import (
    NEW_COLUMNS,
    PREDICTION_SCHEMA,
    predictions_to_table,
    write_predictions,
)
from muscle.types import Prediction

CHOICES = ("no", "yes, indeed")


def prediction(i: int, **more: Any) -> Prediction:
    """The first choice has the larger log-likelihood, the second the larger one per letter."""
    made = Prediction(
        task="t",
        id=f"e{i}",
        question=f"question {i}",
        gold="no" if i % 2 else "yes, indeed",
        prediction="no",
        metric="acc",
        score=float(i % 2),
        metrics={"acc": float(i % 2), "acc_norm": float(not i % 2)},
        choices=CHOICES,
        loglikelihoods=(-4.0, -5.0),
        document=f"d{i}",
        fields={"kind": "ab"[i % 2]},
    )
    return replace(made, **more)


def one(path: Path, **asked: Any) -> Side:
    (side,) = open_sides(str(path), Asked(**asked)).values()
    return side


def column(side: Side, name: str) -> list[Any]:
    found = side.read(name)
    assert found is not None and len(found) == side.n
    return list(found.to_pylist())


def save(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path)
    return path


def test_all_columns_come_back(tmp_path: Path) -> None:
    rows = [prediction(i) for i in range(5)]
    rows[3] = prediction(3, score=None, prediction=None, error="lost", response="?", metrics={})
    write_predictions(tmp_path / "t.parquet", rows)
    (tmp_path / "adapter").mkdir()  # as a run leaves it
    for path in (tmp_path, tmp_path / "t.parquet"):
        side = one(path)
        assert (side.task, side.metric, side.n) == ("t", "acc", 5)
        table = predictions_to_table(rows)
        for name in table.column_names:
            assert column(side, name) == table.column(name).to_pylist(), name
        assert side.read("no such column") is None
        assert side.about == {"files": [{"path": str(tmp_path / "t.parquet")}]}


def test_what_the_file_says_of_itself(tmp_path: Path) -> None:
    table = predictions_to_table([prediction(0)])
    about = {"task_version": "1.0", "dtype": "float32", "max_length": None}
    path = tmp_path / "t.parquet"
    save(path, table.replace_schema_metadata({b"muscle": json.dumps(about).encode()}))
    assert one(path).about == {**about, "files": [{"path": str(path)}]}
    save(path, table.replace_schema_metadata({b"muscle": b"{"}))
    with pytest.raises(UserError, match="its metadata 'muscle' is not JSON"):
        one(path)
    save(path, table.replace_schema_metadata({b"muscle": b"[]"}))
    with pytest.raises(UserError, match="its metadata 'muscle' is no JSON object"):
        one(path)


def test_an_earlier_versions_file(tmp_path: Path) -> None:
    table = predictions_to_table([prediction(i) for i in range(3)])
    new = [name for name in NEW_COLUMNS if name in PREDICTION_SCHEMA.names]
    side = one(save(tmp_path / "t.parquet", table.drop_columns(new)))
    assert side.n == 3 and all(side.read(name) is None for name in new)


def test_another_writers_types(tmp_path: Path) -> None:
    """Large and dictionary-encoded texts, single precision, columns of nulls alone."""
    table = predictions_to_table([prediction(i, choices=None) for i in range(3)])
    for name, kind in (
        ("id", pa.large_string()),
        ("question", pa.dictionary(pa.int32(), pa.string())),
        ("score", pa.float32()),
        ("loglikelihoods", pa.large_list(pa.float32())),
        ("choices", pa.null()),
        ("error", pa.null()),
    ):
        place = table.column_names.index(name)
        column_of = table.column(name)
        made = pa.nulls(3) if pa.types.is_null(kind) else column_of.cast(kind)
        table = table.set_column(place, name, made)
    side = one(save(tmp_path / "t.parquet", table))
    assert column(side, "id") == ["e0", "e1", "e2"]
    assert column(side, "question") == [f"question {i}" for i in range(3)]
    assert column(side, "score") == [0.0, 1.0, 0.0]
    assert column(side, "loglikelihoods") == [[-4.0, -5.0]] * 3
    for name, kind in (("choices", pa.list_(pa.string())), ("score", pa.float64())):
        found = side.read(name)
        assert found is not None and found.type == kind


def test_another_metric_of_the_file(tmp_path: Path) -> None:
    rows = [prediction(i) for i in range(4)]
    write_predictions(tmp_path / "t.parquet", rows)
    side = one(tmp_path, metric="acc_norm")
    assert side.metric == "acc_norm" and set(column(side, "metric")) == {"acc_norm"}
    assert column(side, "score") == [1.0, 0.0, 1.0, 0.0]
    assert column(side, "prediction") == ["yes, indeed"] * 4  # -5 / 11 > -4 / 2
    assert column(side, "gold") == [row.gold for row in rows]
    assert column(one(tmp_path, metric="acc"), "prediction") == ["no"] * 4
    with pytest.raises(UserError, match="--metric f1: not in this file; its metrics are acc, acc_"):
        one(tmp_path, metric="f1")
    with pytest.raises(UserError, match="--metric acc --filter strict: not in this file"):
        one(tmp_path, metric="acc", filter="strict")


def test_another_filter_of_the_file(tmp_path: Path) -> None:
    made = prediction(
        0, choices=None, loglikelihoods=None, metric="em", score=0.0, prediction="four"
    )
    made = replace(made, metrics={"em,strict": 0.0, "em,loose": 1.0})
    table = predictions_to_table([made])
    about = json.dumps({"filter": "strict"}).encode()
    path = save(tmp_path / "t.parquet", table.replace_schema_metadata({b"muscle": about}))
    for asked in ({}, {"filter": "strict"}, {"metric": "em"}):
        side = one(path, **asked)
        assert column(side, "score") == [0.0] and column(side, "prediction") == ["four"]
    side = one(path, filter="loose")
    assert side.metric == "em" and side.about["filter"] == "loose"
    # Which answer the other filter read isn't kept.
    assert column(side, "score") == [1.0] and side.read("prediction") is None


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], "has no rows"),
        ([prediction(0), prediction(1, task="u")], r"rows of several tasks \(t, u\): write one"),
        ([prediction(0), prediction(1, metric="em")], r"rows of several metrics \(acc, em\)"),
        ([prediction(0), prediction(1), prediction(0)], "row 3: the id 'e0' .* first in .*, row 1"),
        ([prediction(0), prediction(1, id="")], "row 2: 'id' is empty"),
        ([prediction(0), prediction(1, score=float("inf"))], "row 2: the score is inf"),
    ],
)
def test_what_is_refused(rows: list[Prediction], text: str, tmp_path: Path) -> None:
    write_predictions(tmp_path / "t.parquet", rows)
    with pytest.raises(UserError, match=text) as caught:
        one(tmp_path)
    assert str(tmp_path / "t.parquet") in str(caught.value)


def test_nan_is_unscored(tmp_path: Path) -> None:
    write_predictions(tmp_path / "t.parquet", [prediction(0, score=float("nan")), prediction(1)])
    assert column(one(tmp_path), "score") == [None, 1.0]


def test_null_ids_and_other_types(tmp_path: Path) -> None:
    table = predictions_to_table([prediction(0), prediction(1)])
    place = table.column_names.index("id")
    path = tmp_path / "t.parquet"
    nulls = pa.field("id", pa.string())
    save(path, table.set_column(place, nulls, pa.chunked_array([["a", None]])))
    with pytest.raises(UserError, match="row 2: 'id' is empty"):
        one(path)
    place = table.column_names.index("score")
    save(path, table.set_column(place, "score", pa.chunked_array([["1", "0"]])))
    with pytest.raises(UserError, match="column 'score' is string, but must be double"):
        one(path)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_predictions(path, [prediction(i) for i in range(200)])
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(UserError, match="is not a whole Parquet file"):
        one(path)
    # The end is whole and says what there is; the data before it isn't.
    path.write_bytes(data[:4] + b"\xff" * 2000 + data[2004:])
    with pytest.raises(UserError, match="is not a whole Parquet file"):
        side = one(path)
        for name in ("question", "gold", "document"):
            side.read(name)


def test_many_rows_stay_in_columns(tmp_path: Path) -> None:
    n = 150_000
    rows = predictions_to_table([prediction(0)])
    table = rows.take(pa.array([0] * n))
    place = table.column_names.index("id")
    ids = pa.chunked_array([[f"e{i}" for i in range(n)]])
    path = save(tmp_path / "t.parquet", table.set_column(place, rows.schema.field("id"), ids))
    side = one(path)
    found = side.read("question")
    assert found is not None and found.num_chunks == 3 and len(found) == n
    assert found[n - 1].as_py() == "question 0"
