"""What predictions keep of a task's rows: a hash, short values, what was written and what lost."""

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from task_fakes import answer, config, write_task

from muscle.config import TaskConfig
from muscle.tasks import load_task
from muscle.tasks.prompting import Prompting
from muscle.tasks.rows import LONGEST, MOST, own_row, row_hash, short_fields
from muscle.types import Answer, Output

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
rows = st.dictionaries(st.text(max_size=4), values, max_size=5)


@settings(max_examples=40, deadline=None)
@given(rows, rows)
def test_a_hash_is_the_rows_own(one: dict, other: dict) -> None:
    """The order of columns and those without a value count for nothing, all else does."""

    def without_nulls(row: dict) -> str:
        return json.dumps({k: v for k, v in row.items() if v is not None}, sort_keys=True)

    assert (row_hash(one) == row_hash(other)) == (without_nulls(one) == without_nulls(other))
    assert row_hash(dict(reversed(one.items()))) == row_hash(one)
    assert row_hash({**one, "a new column": None}) == row_hash(one)
    assert len(row_hash(one)) == 16 and int(row_hash(one), 16) >= 0


def test_values_that_json_lacks_have_the_same_hash_everywhere() -> None:
    class Odd:
        pass

    row: dict[str, Any] = {
        "date": datetime.date(2024, 1, 2),
        "array": np.arange(3),
        "bytes": b"\0x",
        "money": Decimal("1.10"),
        "odd": Odd(),
        "lone": "\ud800",
    }
    assert row_hash(row) == row_hash({**row, "odd": Odd()})
    for name, other in (
        ("date", datetime.date(2024, 1, 3)),
        ("array", np.arange(4)),
        ("bytes", b"\0y"),
        ("money", Decimal("1.11")),
    ):
        assert row_hash({**row, name: other}) != row_hash(row)
    assert json.loads(own_row(row))["array"] == [0, 1, 2]


def test_columns_are_short_or_not_kept_at_all() -> None:
    docs: list[dict[str, Any]] = [
        {"id": 1, "subject": "law", "length": 3, "hard": True, "text": "x" * LONGEST, "p": 0.5},
        {"id": 2, "subject": None, "length": 4, "hard": False, "text": "x" * (LONGEST + 1)},
        {"id": 3, "subject": "art", "length": 5, "hard": True, "list": [1], "empty": None},
    ]
    found = short_fields(docs, ["?"] * 3, ["!"] * 3)
    assert found == [
        {"subject": "law", "length": "3", "hard": "True", "p": "0.5"},
        {"length": "4", "hard": "False"},
        {"subject": "art", "length": "5", "hard": "True"},
    ]
    many = [{f"c{i}": i for i in range(MOST + 5)}]
    assert list(short_fields(many, [""], [""])[0]) == [f"c{i}" for i in range(MOST)]
    assert short_fields(["no mapping"], ["?"], ["!"]) == [{}]


def test_the_question_and_the_answer_are_no_fields_but_labels_are() -> None:
    question = "Which of the two is the larger one?"
    docs = [
        {"q": question, "gold": "A", "answer": "the larger one of these two", "topic": "size"},
        {"q": "Why?", "gold": "B", "answer": "no reason", "topic": "a topic in no prompt at all"},
    ]
    golds = ["the larger one of these two", "no reason"]
    found = short_fields(docs, [f"Q: {question}\nA:", "Q: Why?\nA:"], golds)
    assert [set(fields) for fields in found] == [{"gold", "topic"}] * 2


def own(folder: Path, lines: list[dict[str, Any]], **settings: Any) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"prompt": "{{ q }}", "target": "a", "choices": ["yes", "no"], **settings}
    return load_task(TaskConfig(name="own", test=str(folder / "test.jsonl"), **given))


ROWS = [{"q": f"is {i} even?", "a": "no" if i % 2 else "yes", "kind": f"k{i % 2}"} for i in (1, 2)]


def test_own_rows_are_hashed_as_they_stand_however_they_are_rendered(tmp_path: Path) -> None:
    plain, other = own(tmp_path / "a", ROWS), own(tmp_path / "b", ROWS, prompt="Q: {{ q }} A:")
    found = [
        task.predictions([answer(query) for query in task.queries()]) for task in (plain, other)
    ]
    for one, two, row in zip(*found, ROWS, strict=True):
        assert one.question != two.question
        assert one.document == two.document == row_hash(row)
        assert one.fields == {"q": row["q"], "a": row["a"], "kind": row["kind"]}


def test_another_row_makes_other_predictions(tmp_path: Path) -> None:
    """Columns that nothing renders stand in predictions too, so they are in the key."""
    before = own(tmp_path / "a", ROWS)
    after = own(tmp_path / "b", [{**row, "kind": "other"} for row in ROWS])
    assert before.queries() == after.queries()
    assert before.evaluation_fingerprint() != after.evaluation_fingerprint()


YAML = """
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
repeats: 2
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - name: first
    filter: [{function: regex, regex_pattern: "(\\\\d+)"}, {function: take_first}]
"""


def test_a_chat_or_shots_change_no_hash(tmp_path: Path) -> None:
    lines = [{"q": f"{i} + 1 =", "a": str(i + 1)} for i in range(4)]
    write_task(tmp_path, "sums", YAML, lines)
    plain = load_task(config(tmp_path, "sums"))
    shots = load_task(config(tmp_path, "sums", num_fewshot=1))
    spoken = Prompting("Be brief.", None, None, False)
    assert plain.queries(prompting=spoken) != plain.queries() != shots.queries()
    documents = []
    for task in (plain, shots):
        documents.append([p.document for p in task.predictions(list(map(answer, task.queries())))])
    assert documents[0] == documents[1] == [row_hash(line) for line in lines]


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ((None, None), None),
        (("prompt", None), "prompt"),
        ((None, "answer"), "answer"),
        (("prompt", "answer"), "prompt and answer"),
        (("prompt and answer", None), "prompt and answer"),
    ],
)
def test_what_was_written_and_what_did_not_fit(tmp_path: Path, lost: Any, told: str | None) -> None:
    write_task(tmp_path, "sums", YAML, [{"q": "1 + 1 =", "a": "2"}])
    task = load_task(config(tmp_path, "sums"))
    (query,) = task.queries()
    assert len(query.requests) == 2
    outputs = tuple(
        Output(text=text, truncated=part)
        for text, part in zip(("it is 2, I say", "3"), lost, strict=True)
    )
    (found,) = task.predictions([Answer(query.id, outputs)])
    assert (found.prediction, found.score) == ("2", 1.0)
    assert found.response == "it is 2, I say\n\n3" and found.truncated == told
    (failed,) = task.predictions([Answer(query.id, (), "no")])
    assert failed.response is None and failed.truncated is None and failed.error == "no"
    assert failed.document == found.document


def test_scored_answers_have_no_response(tmp_path: Path) -> None:
    task = own(tmp_path, ROWS)
    answers = [answer(query) for query in task.queries()]
    first = answers[0].outputs[0]
    cut = Output(first.loglikelihood, first.is_greedy, truncated="prompt")
    answers[0] = Answer(answers[0].id, (cut, *answers[0].outputs[1:]))
    found = task.predictions(answers)
    assert [p.response for p in found] == [None, None]
    assert [p.truncated for p in found] == ["prompt", None]
