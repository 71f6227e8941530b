"""Joins: what is paired, and what is refused with which words."""

import random
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muscle.errors import UserError
from muscle.metrics import columns
from muscle.metrics.flips import FlipCounts, ScoreCounts
from muscle.metrics.pairing import is_continuous, join_predictions, join_sides, without_flips
from muscle.side import Side, side_of
from muscle.types import Prediction


def rows(scores, task="t", metric="acc", **changes):
    return [
        replace(
            Prediction(task, str(i), f"q{i}", "a", "a" if s == 1 else f"w{i}", metric, s), **changes
        )
        for i, s in enumerate(scores)
    ]


def test_join_ignores_the_order_of_rows():
    old, new = rows([1.0, 0.0, 1.0]), rows([1.0, 1.0, 0.0])
    one = join_predictions({0: {"old": old, "new": new}})["t"]
    other = join_predictions({0: {"new": new[::-1], "old": old}})["t"]
    assert one.ids.to_pylist() == other.ids.to_pylist() == ["0", "1", "2"]
    assert one.versions == other.versions
    assert one.counts(0, "old", "new") == other.counts(0, "old", "new")
    assert one.counts(0, "old", "new") == FlipCounts(1, 1, 1, 0, 0, 0)
    assert one.pairs == (("old", "new"),)


def test_unscored_anywhere_is_left_out_everywhere():
    task = join_predictions(
        {
            0: {"old": rows([1.0, None, 1.0, 0.0]), "new": rows([1.0, 1.0, 0.0, 0.0])},
            7: {"old": rows([1.0, 1.0, 1.0, 0.0]), "new": rows([None, 1.0, 1.0, 0.0])},
        }
    )["t"]
    assert task.ids.to_pylist() == ["2", "3"] and task.unscored == 2 and task.seeds == (0, 7)
    assert {len(s) for s in task.scores.values()} == {2}


def test_continuous_is_decided_once():
    """Old has only 0 and 1, but one score of new is graded: both are continuous."""
    task = join_predictions({0: {"old": rows([1.0, 0.0]), "new": rows([0.5, 0.0])}})["t"]
    assert task.continuous
    assert task.counts(0, "old", "new") == ScoreCounts(1, 0, 1, 0.0, 0.5)
    assert is_continuous("rouge1", [0.0, 1.0]) and not is_continuous("exact_match", [0, 1])


def test_unknown_answers_are_not_compared():
    old, new = rows([0.0, 1.0], prediction=None), rows([0.0, 1.0])
    counts = join_predictions({0: {"old": old, "new": new}})["t"].counts(0, "old", "new")
    assert counts.both_wrong == 1 and counts.both_wrong_same is None


def test_tasks_are_sorted_and_separate():
    old = rows([1.0], task="b") + rows([0.0], task="a")
    assert list(join_predictions({0: {"old": old, "new": old}})) == ["a", "b"]


GOOD = rows([1.0, 0.0])


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ({}, "no seed"),
        ({0: {"old": [], "new": []}}, "every version is empty"),
        ({0: {"old": GOOD}}, "seed 0 has no predictions of new"),
        ({0: {"old": GOOD, "new": GOOD, "newer": GOOD}}, "version 'newer' is unknown"),
        (
            {0: {"old": GOOD, "new": GOOD}, 1: {"old": GOOD, "new": GOOD, "compat": GOOD}},
            "seed 0 has no predictions of compat",
        ),
        ({0: {"old": GOOD, "new": GOOD + rows([1.0], task="u")}}, "task 'u' is not in all"),
        ({0: {"old": GOOD, "new": GOOD[:1]}}, "1 only in old, 0 only in new (first '1')"),
        ({0: {"old": GOOD, "new": GOOD + GOOD[:1]}}, "id '0' comes twice in new"),
        ({0: {"old": GOOD, "new": rows([1.0, 0.0], gold="b")}}, "'0' has another gold in new"),
        (
            {0: {"old": GOOD, "new": rows([1.0, 0.0], metric="acc_norm")}},
            "metric 'acc' in old but 'acc_norm' in new",
        ),
        ({0: {"old": GOOD, "new": rows([1.0, float("nan")])}}, "score of '1' in new is nan"),
        (
            {0: {"old": GOOD, "new": GOOD}, 3: {"old": GOOD, "new": rows([1, 0], gold="b")}},
            "in new (seed 3) than in old (seed 0)",
        ),
    ],
)
def test_refused(predictions, message):
    with pytest.raises(UserError) as error:
        join_predictions(predictions)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_messages_stay_short_and_on_one_line():
    wild = rows([1.0, 0.0], task="x\n" * 500)
    with pytest.raises(UserError) as error:
        join_predictions({0: {"old": wild, "new": wild[:1]}})
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def sides(abouts=({}, {}), **versions):
    """One seed's sides of one task; `abouts` in the order of the versions."""
    return {
        0: {
            name: {"t": side_of(found, f"{name}.parquet", about)}
            for (name, found), about in zip(versions.items(), abouts, strict=True)
        }
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=6), min_size=1, max_size=30, unique=True), st.randoms())
def test_columns_are_those_of_the_rows(ids, rng):
    """Against a join by dictionaries, with any ids, in any order, some unscored."""
    tables = {}
    for version in ("old", "new", "again"):
        found = [
            Prediction(
                "t",
                i,
                f"q{i}",
                "a",
                rng.choice(["a", "b", "é"]),
                "acc",
                rng.choice([0.0, 1.0, None]),
            )
            for i in ids
        ]
        rng.shuffle(found)
        tables[version] = found
    (task,) = join_sides(sides(({}, {}, {}), **tables)).values()
    by_id = {version: {p.id: p for p in found} for version, found in tables.items()}
    everything = sorted(ids, key=lambda i: i.encode())
    kept = [i for i in everything if all(t[i].score is not None for t in by_id.values())]
    assert task.everything.to_pylist() == everything and task.ids.to_pylist() == kept
    assert task.n == len(kept) and task.unscored == len(ids) - len(kept)
    for version, table in by_id.items():
        assert task.scores[0, version].tolist() == [table[i].score for i in kept]
        answers = task.column(0, version, "prediction").to_pylist()
        assert answers == [table[i].prediction for i in kept]
        prompts = task.column(0, version, "question", all=True).to_pylist()
        assert prompts == [table[i].question for i in everything]
    same = [by_id["old"][i].prediction == by_id["new"][i].prediction for i in kept]
    assert task.same(0, ("old", "new")).tolist() == same
    worse = [by_id["old"][i].score > by_id["again"][i].score for i in kept]
    assert task.worse(0, ("old", "again")).tolist() == worse
    assert task.names == ("old", "new", "again") and task.pairs == (("old", "new"),)


def test_batches_change_nothing(monkeypatch):
    rng = random.Random(5)
    old = rows([float(rng.random() < 0.5) for _ in range(700)])
    new = rows([float(rng.random() < 0.5) for _ in range(700)])
    rng.shuffle(new)
    one = join_predictions({0: {"old": old, "new": new}})["t"]
    monkeypatch.setattr(columns.batches, "__defaults__", (64,))
    other = join_predictions({0: {"old": old, "new": new}})["t"]
    assert (one.same(0, ("old", "new")) == other.same(0, ("old", "new"))).all()
    assert one.counts(0, "old", "new") == other.counts(0, "old", "new")
    changed = [replace(p, gold="b") if p.id == "650" else p for p in new]
    with pytest.raises(UserError, match="'650' has another gold"):
        join_predictions({0: {"old": old, "new": changed}})


def test_texts_may_be_in_chunks_and_large():
    """What other readers return: several chunks, 64-bit offsets, no chunk at all."""

    def chunked(rows_, kind):
        whole = side_of(rows_, "x")

        def read(name):
            column = whole.read(name)
            if pa.types.is_string(column.type):
                column = column.cast(kind)
            parts = [column.chunk(0)[i : i + 2] for i in range(0, len(column), 2)]
            return pa.chunked_array(parts, column.type)

        return Side("t", "acc", "x", len(rows_), read)

    found = rows([1.0, 0.0, 1.0, 1.0, 0.0])
    table = {0: {"old": {"t": chunked(found, pa.large_string())},
                 "new": {"t": chunked(found[::-1], pa.string())}}}  # fmt: skip
    (task,) = join_sides(table).values()
    assert task.ids.to_pylist() == list("01234") and task.same(0, ("old", "new")).all()
    large = pa.array([["a", "b"], ["c"]], pa.large_list(pa.large_string()))
    assert columns.whole(large).equals(pa.array([["a", "b"], ["c"]]))
    assert columns.whole(pa.chunked_array([large[:1], large[1:]])).to_pylist() == [
        ["a", "b"],
        ["c"],
    ]
    assert columns.whole(pa.chunked_array([], pa.string())).to_pylist() == []


def test_common_examples_only():
    old, new = rows([1.0, 0.0, 1.0, 0.0]), rows([0.0, 1.0, 1.0, 0.0, 1.0])
    old = [replace(p, id=f"{int(p.id) + 2}", question=f"q{int(p.id) + 2}") for p in old]
    with pytest.raises(UserError, match=r"1 only in old.parquet, 2 only in new.parquet"):
        join_sides(sides(old=old, new=new))
    (task,) = join_sides(sides(old=old, new=new), common=True).values()
    assert task.ids.to_pylist() == ["2", "3", "4"] and task.common_only == 3
    assert task.scores[0, "old"].tolist() == [1.0, 0.0, 1.0]
    assert task.scores[0, "new"].tolist() == [1.0, 0.0, 1.0]
    assert task.column(0, "new", "question").to_pylist() == ["q2", "q3", "q4"]
    (same,) = join_sides(sides(old=new, new=new), common=True).values()
    assert same.common_only == 0
    other = [replace(p, id="x" + p.id) for p in new]
    with pytest.raises(UserError, match="no example is in all versions"):
        join_sides(sides(old=new, new=other), common=True)


@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        ({"task_version": "1"}, {"task_version": "2"}, "task version '1' in old.parquet but '2'"),
        ({"task_version": 1}, {"task_version": "1.0"}, "task version '1' in old.parquet"),
        ({"filter": "strict"}, {"filter": "flexible"}, "filter 'strict' in old.parquet"),
        ({"filter": "none"}, {}, None),
        ({"task_version": None}, {"task_version": "3"}, None),
    ],
)
def test_facts_that_are_refused(one, two, words):
    table = sides((one, two), old=GOOD, new=GOOD)
    if words is None:
        assert join_sides(table)["t"].differences == []
        return
    with pytest.raises(UserError) as error:
        join_sides(table)
    assert words in str(error.value) and "new.parquet" in str(error.value)


def test_facts_that_are_shown():
    one = {"num_fewshot": 5, "dtype": "float32", "software": {"lm_eval": "0.4", "torch": "2"}}
    two = {"num_fewshot": 0, "dtype": "float32", "software": {"lm_eval": "0.5"},
           "chat_template": None}  # fmt: skip
    three = {"num_fewshot": 5, "chat_template": "chatml"}
    found = join_sides(sides((one, two, three), old=GOOD, new=GOOD, compat=GOOD))["t"].differences
    assert {d.what: d.values for d in found} == {
        "few-shot examples": {"old": "5", "new": "0", "compat": "5"},
        "chat template": {"old": "unknown", "new": "none", "compat": "chatml"},
        "version of lm_eval": {"old": "0.4", "new": "0.5", "compat": "unknown"},
    }


def test_other_rows_of_the_data_are_refused_and_other_prompts_shown():
    def with_(question, document):
        return [replace(p, question=question + p.id, document=document and document + p.id)
                for p in GOOD]  # fmt: skip

    with pytest.raises(UserError, match=r"'0' has another row of the task's data in new\.parquet"):
        join_sides(sides(old=with_("q", "d"), new=with_("q", "e")))
    (task,) = join_sides(sides(old=with_("q", "d"), new=with_("Q", "d"))).values()
    (found,) = task.differences
    assert found.what == "rendered prompts" and "may come from the prompt" in found.note
    assert found.values == {"old": "as the first", "new": "2 of 2 differ from the first"}
    assert task.other_prompts == {(0, "old"): 0, (0, "new"): 2}
    # Nothing but ids and right answers says that these are the same examples.
    (task,) = join_sides(sides(old=with_("q", None), new=with_("Q", "d"))).values()
    assert "nothing proves" in task.differences[0].note
    (task,) = join_sides(sides(old=with_("q", None), new=with_("q", "d"))).values()
    assert task.differences == []


def test_columns_that_a_side_does_not_have():
    """A plain file of ids and scores: nothing to check, nothing known of the answers."""
    whole = side_of(GOOD, "x")
    bare = Side(
        "t", "acc", "bare", 2, lambda name: whole.read(name) if name in ("id", "score") else None
    )
    (task,) = join_sides({0: {"old": {"t": bare}, "new": {"t": whole}}}).values()
    assert task.same(0, ("old", "new")) is None and task.column(0, "old", "gold") is None
    counts = task.counts(0, "old", "new")
    assert counts.both_wrong == 1 and counts.both_wrong_same is None
    broken = Side("t", "acc", "broken", 2, lambda name: None)
    with pytest.raises(ValueError, match="broken"):
        join_sides({0: {"old": {"t": broken}, "new": {"t": whole}}})


def test_two_metrics_in_one_task_are_refused():
    mixed = [GOOD[0], replace(GOOD[1], metric="f1")]
    with pytest.raises(UserError, match="metrics 'acc' and 'f1' in old"):
        join_predictions({0: {"old": mixed, "new": GOOD}})


def test_waived_flips():
    old, new = rows([1.0, 1.0, 1.0, 0.0]), rows([0.0, 0.0, 1.0, 1.0])
    task = join_predictions({0: {"old": old, "new": new}})["t"]
    waived = without_flips(task, ["0", "3", "what is that"])
    assert waived.worse(0, ("old", "new")).tolist() == [False, True, False, False]
    assert waived.better(0, ("old", "new")).tolist() == [False, False, False, True]
    assert waived.counts(0, "old", "new") == FlipCounts(2, 1, 1, 0, 0, 0)
    assert task.counts(0, "old", "new") == FlipCounts(1, 2, 1, 0, 0, 0)
    assert (waived.scores[0, "new"] == task.scores[0, "new"]).all()
