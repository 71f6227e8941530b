"""Records to Parquet and back."""

import math
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muscle import storage, tables
from muscle.errors import UserError
from muscle.types import Answer, Output, Prediction, Query, Request, TrainingExample

text = st.text(max_size=12)
number = st.floats(allow_nan=False)
PREDICTION = Prediction(
    task="t",
    id="1",
    question="q",
    gold="a",
    prediction="b",
    metric="acc",
    score=0.0,
    metrics={"acc": 0.0, "acc_norm": 1.0},
    choices=("a", "b"),
    loglikelihoods=(-1.5, float("-inf")),
)

predictions = st.builds(
    Prediction,
    task=text,
    id=text,
    question=text,
    gold=text,
    prediction=st.none() | text,
    metric=text,
    score=st.none() | number,
    metrics=st.dictionaries(text, number, max_size=3),
    choices=st.none() | st.lists(text, max_size=3).map(tuple),
    loglikelihoods=st.none() | st.lists(number, max_size=3).map(tuple),
    error=st.none() | text,
)
outputs = st.builds(
    Output,
    loglikelihood=st.none() | number,
    is_greedy=st.none() | st.booleans(),
    text=st.none() | text,
)
requests = st.builds(
    Request,
    kind=st.sampled_from(["loglikelihood", "generate_until"]),
    context=text,
    continuation=text,
    generation=text,
)
few = settings(max_examples=25, deadline=None)


@few
@given(st.lists(predictions, max_size=4))
def test_predictions_round_trip(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("p") / "x.parquet"
    tables.write_predictions(path, records)
    assert tables.read_predictions(path) == records


@few
@given(st.lists(st.builds(Query, id=text, requests=st.lists(requests, max_size=3).map(tuple))))
def test_queries_round_trip(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("q") / "x.parquet"
    tables.write_queries(path, records)
    assert tables.read_queries(path) == records
    assert [tables.row_to_query(tables.query_to_row(r)) for r in records] == records


@few
@given(
    st.lists(
        st.builds(
            Answer,
            id=text,
            outputs=st.lists(outputs, max_size=3).map(tuple),
            error=st.none() | text,
        )
    )
)
def test_answers_round_trip(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("a") / "x.parquet"
    tables.write_answers(path, records)
    assert tables.read_answers(path) == records
    assert [tables.row_to_answer(tables.answer_to_row(r)) for r in records] == records


def test_examples_round_trip_through_a_remote_path():
    records = [
        TrainingExample("1", "Question:\n", " é|\x00"),
        TrainingExample("2", "", ""),
        TrainingExample("3", "<user>", "a</s><user>b</s>", ((6, 11), (17, 22))),
        TrainingExample("4", "", "", ()),
    ]
    tables.write_examples("memory://muscle-tests/deep/x.parquet", records)
    assert tables.read_examples("memory://muscle-tests/deep/x.parquet") == records


def test_files_of_before_chats_are_read(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"id": ["1"], "prompt": ["p"], "answer": ["a"]}), path)
    assert tables.read_examples(path) == [TrainingExample("1", "p", "a")]
    query = Query("1", (Request("generate_until", "c", "", "{}"),))
    tables.write_queries(path, [query])
    pq.write_table(pq.read_table(path).drop_columns(["chat"]), path)
    assert tables.read_queries(path) == [query]


def test_nan_and_the_last_bit_survive(tmp_path):
    record = Prediction(
        "t", "1", "q", "a", None, "m", math.nan, {"x": math.nan}, None, (math.nan, 0.1 + 0.2)
    )
    tables.write_predictions(tmp_path / "x", [record])
    (back,) = tables.read_predictions(tmp_path / "x")
    assert math.isnan(back.score) and math.isnan(back.metrics["x"])
    assert math.isnan(back.loglikelihoods[0]) and back.loglikelihoods[1] == 0.1 + 0.2


def test_what_ray_data_makes_of_answers_is_read(tmp_path):
    """Another writer infers types: a column of Nones is null, strings may be large."""
    answers = [Answer("1", (Output(-1.0, True, None),)), Answer("2", ())]
    inferred = pa.Table.from_pylist([tables.answer_to_row(a) for a in answers])
    assert pa.types.is_null(inferred.schema.field("error").type)
    large = inferred.set_column(0, "id", inferred.column("id").cast(pa.large_string()))
    pq.write_table(large, tmp_path / "x.parquet")
    assert tables.read_answers(tmp_path / "x.parquet") == answers


def test_columns_in_another_order_are_read(tmp_path):
    row = tables.example_to_row(TrainingExample("1", "p", "a"))
    pq.write_table(pa.Table.from_pylist([dict(reversed(row.items()))]), tmp_path / "x.parquet")
    assert tables.read_examples(tmp_path / "x.parquet") == [TrainingExample("1", "p", "a")]


def _one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_refused_files(tmp_path):
    with pytest.raises(UserError) as error:
        tables.read_predictions(tmp_path / "none.parquet")
    assert "there is no such file" in _one_line(error)

    (tmp_path / "text").write_text("not parquet\nat all")
    with pytest.raises(UserError) as error:
        tables.read_predictions(tmp_path / "text")
    assert "Parquet" in _one_line(error)

    tables.write_predictions(tmp_path / "whole", [PREDICTION])
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "half").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError) as error:
        tables.read_predictions(tmp_path / "half")
    assert "Parquet" in _one_line(error)

    with pytest.raises(UserError) as error:
        tables.read_predictions(tmp_path)
    assert str(tmp_path) in _one_line(error)

    with pytest.raises(UserError) as error:
        tables.read_predictions("nosuchstore://x/y")
    assert "storage" in _one_line(error)


def test_refused_columns(tmp_path):
    path = tmp_path / "x.parquet"
    tables.write_examples(path, [TrainingExample("1", "p", "a")])
    with pytest.raises(UserError) as error:
        tables.read_predictions(path)
    assert "other columns" in _one_line(error) and "'gold'" in str(error.value)

    pq.write_table(pa.table({"id": ["1"], "prompt": [2], "answer": ["a"]}), path)
    with pytest.raises(UserError) as error:
        tables.read_examples(path)
    assert "'prompt' is int64" in _one_line(error)

    pq.write_table(pa.table({"id": ["1", None], "prompt": ["p", "p"], "answer": ["a", "a"]}), path)
    with pytest.raises(UserError) as error:
        tables.read_examples(path)
    assert "'id' has empty values" in _one_line(error)


def test_a_write_is_whole_and_leaves_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "x"
    storage.write_bytes(str(path), b"first")

    def fail(*_):
        raise OSError("disk\nfull")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError) as error:
        storage.write_bytes(str(path), b"second")
    assert "disk full" in _one_line(error)
    assert path.read_bytes() == b"first" and [p.name for p in path.parent.iterdir()] == ["x"]


def test_how_predictions_were_made_goes_with_them(tmp_path):
    about = {"dtype": "float32", "max_length": None, "groups": ["a"], "model": "ünï\ud800"}
    tables.write_predictions(tmp_path / "x", [PREDICTION], about)
    assert tables.read_about(tmp_path / "x") == about
    assert tables.read_predictions(tmp_path / "x") == [PREDICTION]
    tables.write_predictions(tmp_path / "y", [PREDICTION])
    assert tables.read_about(tmp_path / "y") == {}
    with pytest.raises(ValueError):
        tables.write_predictions(tmp_path / "z", [PREDICTION], {"x": math.nan})
    assert not (tmp_path / "z").exists()


@pytest.mark.parametrize("text", [b"[1]", b"{", b"\xff", b"null"])
def test_what_others_put_under_our_name_is_nothing(tmp_path, text):
    table = pa.table({"id": ["1"]}).replace_schema_metadata({tables.ABOUT: text})
    pq.write_table(table, tmp_path / "x")
    assert tables.read_about(tmp_path / "x") == {}


def test_how_an_unreadable_file_was_made(tmp_path):
    (tmp_path / "x").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a whole Parquet"):
        tables.read_about(tmp_path / "x")
