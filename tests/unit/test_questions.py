"""What answers are distilled on: labelled examples, and inputs that nobody labelled."""

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_tasks_chat_files import OTHER, said, template, user
from test_tasks_chat_files import rows as chat_rows
from test_tasks_tuning import PYTHON

from muscle.config import Experiment, TaskConfig
from muscle.errors import UserError
from muscle.question_tables import read_questions, write_questions
from muscle.questions import Questions, questions_of
from muscle.splits import training_split, tuning_halves
from muscle.tasks import Prompting, load_task

HARNESS = """
task: mine
dataset_path: unused
output_type: multiple_choice
training_split: train
validation_split: validation
test_split: test
doc_to_text: "{{goal}}:"
doc_to_choice: "{{[sol1, sol2]}}"
doc_to_target: label
"""


def save(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def weather(count: int, start: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Rows of an own task of choices."""
    texts = [f"day {i}" for i in range(start, start + count)]
    return [{"text": text, "label": ("wet", "dry")[i % 2], **more} for i, text in enumerate(texts)]


def own(tmp_path: Path, name: str = "weather", **settings: Any) -> TaskConfig:
    """Twenty training rows and ten others to test, by choices unless settings say otherwise."""
    given = {"prompt": "It is {{text}}, so", "target": "label", "choices": ["wet", "dry"]}
    return TaskConfig(
        name=name,
        train=save(tmp_path / f"{name}-train.jsonl", weather(20)),
        test=save(tmp_path / f"{name}-test.jsonl", weather(10, start=100)),
        **(given | settings),
    )


def piqa(tmp_path: Path, yaml: str = HARNESS, **files: Sequence[dict[str, Any]]) -> TaskConfig:
    """A harness task on local rows."""
    (tmp_path / "yaml").mkdir(exist_ok=True)
    (tmp_path / "yaml" / "mine.yaml").write_text(yaml, encoding="utf-8")
    paths = {split: save(tmp_path / f"{split}.jsonl", rows) for split, rows in files.items()}
    return TaskConfig(
        name="mine",
        include_path=str(tmp_path / "yaml"),
        data_files=paths,  # type: ignore[arg-type]
    )


def goals(count: int, start: int = 0, **more: Any) -> list[dict[str, Any]]:
    return [
        {"goal": f"Do {i}", "sol1": f"this {i}", "sol2": "that", "label": i % 2, **more}
        for i in range(start, start + count)
    ]


def ask(
    task: TaskConfig,
    inputs: Sequence[Any],
    prompting: Prompting | None = None,
    data_seed: int = 0,
    **training: Any,
) -> Questions:
    experiment = make(task, inputs, data_seed, **training)
    return questions_of(experiment, load_task(task), prompting)


def make(
    task: TaskConfig, inputs: Sequence[Any], data_seed: int = 0, **training: Any
) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "e",
            "task": task,
            "old": {"model": "old"},
            "new": {"model": "new"},
            "training": {"validation_fraction": 0.2, **training},
            "compatibility": {"level": "choice", "inputs": list(inputs)},
            "data_seed": data_seed,
        }
    )


def refusal(task: TaskConfig, *inputs: Any, **training: Any) -> str:
    with pytest.raises(UserError) as caught:
        ask(task, inputs, **training)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contexts(questions: Questions) -> list[str]:
    return [question.query.requests[0].context for question in questions.train]


# --- labelled -------------------------------------------------------------------------------


def test_training_examples_are_asked_as_they_would_be_evaluated(tmp_path: Path) -> None:
    config = own(tmp_path)
    task = load_task(config)
    found = ask(config, ["train"])
    train, validation = training_split(make(config, ["train"]), task)
    assert [q.id for q in found.train] == [e.id for e in train] and len(train) == 16
    assert [q.id for q in found.validation] == [e.id for e in validation]
    for question, example in zip(found.train + found.validation, train + validation, strict=True):
        assert len(question.query.requests) == 2 and question.gold is not None
        right = question.query.requests[question.gold]
        assert (right.context, right.continuation) == (example.prompt, example.answer)
        assert question.lengths == (3, 3) and question.gold_text is None
    assert found.notes == ()


def test_written_answers_come_with_their_text(tmp_path: Path) -> None:
    config = own(tmp_path, choices=None)
    found = ask(config, ["train", {"path": save(tmp_path / "t.jsonl", weather(2, 50))}])
    *labelled, one, _ = found.train
    assert {q.query.requests[0].kind for q in found.train} == {"generate_until"}
    assert {q.gold_text for q in labelled} == {" wet", " dry"}
    assert (one.gold, one.gold_text, one.lengths) == (None, None, ())
    assert one.query.requests[0].context == "It is day 50, so"


def test_training_examples_that_are_tested_are_counted_and_kept(tmp_path: Path) -> None:
    rows = goals(10)
    config = piqa(tmp_path, train=rows, test=goals(3, 50), validation=goals(1, 90))
    (one, *_), _ = training_split(make(config, ["train"]), load_task(config))
    config = piqa(tmp_path, train=rows, test=[*goals(3, 50), rows[int(one.id)]])
    found = ask(config, ["train"])
    assert found.notes == (
        f"1 of 8 training examples of task 'mine' are test inputs too ({one.id}): they are kept, "
        "since the task adapters train on them",
    )
    assert one.id in [q.id for q in found.train]


# --- files ----------------------------------------------------------------------------------


def test_a_files_rows_are_asked_and_no_label_is_read(tmp_path: Path) -> None:
    config = own(tmp_path)
    plain = [{"text": f"day {i}"} for i in range(40, 44)]
    found = ask(config, ["train", {"path": save(tmp_path / "traffic.jsonl", plain)}])
    assert [q.id for q in found.train[16:]] == [f"traffic.jsonl:{i}" for i in (1, 2, 3, 4)]
    assert contexts(found)[16:] == [f"It is day {i}, so" for i in range(40, 44)]
    assert all(q.gold is None and q.gold_text is None for q in found.train[16:])
    assert all(q.lengths == (3, 3) for q in found.train[16:])
    # A label in the file changes nothing, were it nonsense.
    for label in ("wet", "neither", None, 7):
        labelled = [{**row, "label": label} for row in plain]
        again = ask(config, ["train", {"path": save(tmp_path / "traffic.jsonl", labelled)}])
        assert again == found and again.fingerprint() == found.fingerprint()


@pytest.mark.parametrize("form", ["gz", "parquet"])
def test_files_of_other_forms(tmp_path: Path, form: str) -> None:
    config, rows = own(tmp_path), [{"text": "day 40", "id": "a"}, {"text": "day 41", "id": "b"}]
    path = tmp_path / f"traffic.{form}"
    if form == "gz":
        path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    found = ask(config, [{"path": str(path)}])
    assert [q.id for q in found.train] == [f"traffic.{form}:a", f"traffic.{form}:b"]


def test_a_harness_tasks_rows_need_only_what_its_prompt_reads(tmp_path: Path) -> None:
    config = piqa(tmp_path, train=goals(9), test=goals(3, 50), validation=goals(1, 90))
    bare = [{k: row[k] for k in ("goal", "sol1", "sol2")} for row in goals(3, 20)]
    found = ask(config, ["train", {"path": save(tmp_path / "t.jsonl", bare)}])
    assert [q.id for q in found.train[-3:]] == ["t.jsonl:1", "t.jsonl:2", "t.jsonl:3"]
    last = found.train[-1]
    assert [r.context for r in last.query.requests] == ["Do 22:"] * 2
    assert [r.continuation for r in last.query.requests] == [" this 22", " that"]
    assert (last.gold, last.lengths) == (None, (7, 4))
    for label in (1, "neither"):
        path = save(tmp_path / "t.jsonl", [{**row, "label": label, "more": 1} for row in bare])
        assert ask(config, ["train", {"path": path}]) == found
    for name in ("goal", "sol2"):
        rows = [*bare[:2], {k: v for k, v in bare[2].items() if k != name}]
        path = save(tmp_path / "t.jsonl", rows)
        message = refusal(config, {"path": path})
        assert message.startswith(f"{path}, row 3: field '{name}' is missing, which task 'mine'")
    path = save(tmp_path / "t.jsonl", [*bare[:1], {**bare[1], "sol1": ["a"]}])
    assert f"{path}, row 2: doesn't fit task 'mine'" in refusal(config, {"path": path})


def test_a_column_that_few_rows_ask_is_found_in_the_files_own(tmp_path: Path) -> None:
    yaml = HARNESS.replace("{{goal}}:", "{{goal}}{% if goal == 'Do 20' %} {{hint}}{% endif %}:")
    config = piqa(
        tmp_path,
        yaml,
        train=[{**row, "hint": f"h{i}"} for i, row in enumerate(goals(9))],
        test=goals(3, 50, hint="h"),
        validation=goals(1, 90, hint="h"),
    )
    rows = goals(3, 19, hint="now")
    found = ask(config, [{"path": save(tmp_path / "t.jsonl", rows)}])
    assert contexts(found) == ["Do 19:", "Do 20 now:", "Do 21:"]
    del rows[1]["hint"]
    path = save(tmp_path / "t.jsonl", rows)
    assert f"{path}, row 2: field 'hint' is missing" in refusal(config, {"path": path})


def test_functions_that_prepare_rows_may_read_the_label(tmp_path: Path) -> None:
    yaml = HARNESS.replace('"{{goal}}:"', "ask").replace("doc_to_target: label", "doc_to_target: g")
    config = piqa(
        tmp_path,
        yaml + "process_docs: !function prepare.prepare\n",
        train=[{**row, "label": str(row["label"])} for row in goals(9)],
        test=[{**row, "label": str(row["label"])} for row in goals(3, 50)],
        validation=goals(1, 90),
    )
    (tmp_path / "yaml" / "prepare.py").write_text(
        "def prepare(docs):\n"
        "    return docs.map(lambda d: {'ask': 'Q ' + d['goal'], 'g': int(d['label'])})\n"
    )
    rows = [{**row, "label": ""} for row in goals(2, 20)]
    found = ask(config, [{"path": save(tmp_path / "t.jsonl", rows)}])
    assert contexts(found) == ["Q Do 20", "Q Do 21"] and found.train[0].gold is None


def test_a_lent_answer_need_not_be_among_a_rows_own_choices(tmp_path: Path) -> None:
    yaml = HARNESS.replace('"{{[sol1, sol2]}}"', "options")
    yaml = yaml.replace("doc_to_target: label", 'doc_to_target: "{{options[label]}}"')

    def options(count: int, start: int) -> list[dict[str, Any]]:
        return [
            {"goal": f"Do {i}", "options": ["a", "b", "c", "d"], "label": 3 - i % 2}
            for i in range(start, start + count)
        ]

    config = piqa(
        tmp_path, yaml, train=options(9, 0), test=options(3, 50), validation=options(1, 90)
    )
    rows = [{"goal": "Now", "options": ["x", "yes"]}]
    (question,) = ask(config, [{"path": save(tmp_path / "t.jsonl", rows)}]).train
    assert [r.continuation for r in question.query.requests] == [" x", " yes"]
    assert (question.gold, question.lengths) == (None, (1, 3))


def test_choices_in_the_prompt_and_shots(tmp_path: Path) -> None:
    yaml = HARNESS.replace('"{{goal}}:"', "label").replace(
        "doc_to_target: label", "doc_to_target: end"
    )
    yaml = yaml.replace("[sol1, sol2]", "[goal ~ ' ' ~ sol1, goal ~ ' ' ~ sol2]")
    rows = [{**row, "end": f"end {i}"} for i, row in enumerate(goals(12))]
    config = piqa(tmp_path, yaml, train=rows[:9], test=rows[9:], validation=rows[9:])
    new = [{"goal": "Now", "sol1": "a", "sol2": "b", "end": "ends"}]
    found = ask(config, [{"path": save(tmp_path / "t.jsonl", new)}])
    assert [(r.context, r.continuation) for r in found.train[0].query.requests] == [
        ("Now a", " ends"),
        ("Now b", " ends"),
    ]
    assert "field 'end' is missing" in refusal(
        config,
        {"path": save(tmp_path / "t.jsonl", [{k: v for k, v in new[0].items() if k != "end"}])},
    )
    shot = piqa(tmp_path, train=goals(9), test=goals(3, 50), validation=goals(1, 90))
    shot = shot.model_copy(update={"num_fewshot": 2})
    path = save(tmp_path / "t.jsonl", [*goals(2, 20), *goals(1, 51)])
    found = ask(shot, [{"path": path, "overlap": "drop"}])
    # Shots are of the training split, and a test input is known by its question alone.
    assert [c.count("Do ") for c in contexts(found)] == [3, 3]


# --- other sources --------------------------------------------------------------------------


def test_the_rest_of_the_training_split(tmp_path: Path) -> None:
    config = own(tmp_path)
    found = ask(config, ["train", {"split": "train"}], limit=10, tuning_fraction=0.4)
    labelled = [q for q in found.train if q.gold is not None]
    rest = {q.id.removeprefix("train:") for q in found.train if q.gold is None}
    experiment = make(config, ["train"], limit=10, tuning_fraction=0.4)
    halves = [e.id for half in tuning_halves(experiment, load_task(config)) for e in half]
    used = {q.id for q in labelled} | {q.id for q in found.validation} | set(halves)
    assert len(rest) == len(used) == 10
    assert rest.isdisjoint(used) and rest | used == {str(i) for i in range(20)}


def test_the_validation_split_where_it_judges_nothing(tmp_path: Path) -> None:
    config = piqa(tmp_path, train=goals(9), test=goals(3, 50), validation=goals(2, 90))
    found = ask(config, [{"split": "validation"}])
    assert [(q.id, q.gold) for q in found.train] == [("validation:0", None), ("validation:1", None)]
    assert contexts(found) == ["Do 90:", "Do 91:"]


def test_another_task_is_asked_in_its_own_words(tmp_path: Path) -> None:
    config = own(tmp_path)
    other = own(tmp_path, "sky", prompt="Sky of {{text}}:", choices=["wet", "dry", "odd"])
    found = ask(config, ["train", {"task": other, "limit": 3}])
    assert len(found.train) == 19
    for question in found.train[16:]:
        assert question.id.startswith("sky:") and question.gold is None
        assert question.query.requests[0].context.startswith("Sky of day")
        assert len(question.query.requests) == len(question.lengths) == 3


# --- drawn, and each asked once -------------------------------------------------------------


def test_a_limit_draws_by_the_data_seed(tmp_path: Path) -> None:
    config = own(tmp_path)
    path = save(tmp_path / "t.jsonl", weather(30, 200))

    def drawn(limit: int, seed: int) -> list[str]:
        return [q.id for q in ask(config, [{"path": path, "limit": limit}], data_seed=seed).train]

    few, more = drawn(5, 1), drawn(12, 1)
    assert len(few) == 5 and len(more) == 12 and set(few) < set(more)
    assert drawn(5, 1) == few != drawn(5, 2)
    assert more == sorted(more, key=lambda name: int(name.split(":")[1]))
    assert len(drawn(99, 1)) == 30


def test_test_inputs_are_refused_or_dropped_by_name(tmp_path: Path) -> None:
    config = own(tmp_path)
    rows = [{"text": "day 40"}, {"text": " day  105"}, {"text": "day 41"}, {"text": "day 109"}]
    path = save(tmp_path / "t.jsonl", rows)
    message = refusal(config, "train", {"path": path})
    assert "'compatibility.inputs.1'" in message and "overlap: drop" in message
    assert f"2 of 4 inputs of {path} are test inputs of task 'weather' too (2, 4)" in message
    # Also those that the evaluation's limit leaves out.
    found = ask(config, [{"path": path, "overlap": "drop"}])
    assert contexts(found) == ["It is day 40, so", "It is day 41, so"]
    assert found.notes == (
        f"2 of 4 inputs of {path} are left out: 2 are among the test inputs (2, 4)",
    )
    alone = save(tmp_path / "t.jsonl", rows[1:2])
    assert "nothing is left to ask" in refusal(config, {"path": alone, "overlap": "drop"})


def test_no_input_is_asked_twice_and_none_is_held_out(tmp_path: Path) -> None:
    config = own(tmp_path)
    experiment = make(config, ["train"])
    train, validation = training_split(experiment, load_task(config))
    one, held = (int(part[0].id) for part in (train, validation))
    rows = [{"text": f"day {i}"} for i in (one, held, 40, 40, 41)]
    path = save(tmp_path / "t.jsonl", rows)
    # Also before the training split is named.
    for inputs in (["train", {"path": path}], [{"path": path}, "train"]):
        found = ask(config, inputs)
        assert {q.id for q in found.train if q.gold is None} == {"t.jsonl:3", "t.jsonl:5"}
        assert len([q for q in found.train if q.gold is not None]) == 16
        (note,) = found.notes
        assert note.startswith(f"3 of 5 inputs of {path} are left out: ")
        assert "1 is held out (2)" in note and "2 are asked already (1, 4)" in note
    # An example that isn't asked otherwise may be.
    assert "t.jsonl:1" in [q.id for q in ask(config, [{"path": path}]).train]


def test_ids_are_unique_whatever_the_files_are_called(tmp_path: Path) -> None:
    config = own(tmp_path)
    (tmp_path / "b").mkdir()
    first = save(tmp_path / "t.jsonl", weather(3, 40))
    second = save(tmp_path / "b" / "t.jsonl", weather(3, 50))
    found = ask(config, ["train", {"path": first}, {"path": second}])
    ids = [q.id for q in found.train + found.validation]
    assert len(set(ids)) == len(ids) == 26
    assert ids[16] == "t.jsonl:1" and ids[19] == "t.jsonl#2:1"


# --- chats ----------------------------------------------------------------------------------


def tickets(tmp_path: Path, **settings: Any) -> TaskConfig:
    return TaskConfig(
        name="tickets",
        format="chat",
        train=save(tmp_path / "train.jsonl", chat_rows("train", 10)),
        test=save(tmp_path / "test.jsonl", chat_rows("test", 4)),
        **settings,
    )


@pytest.mark.parametrize("choices", [None, ["billing", "shipping"]])
def test_chats_without_a_right_answer(tmp_path: Path, choices: list[str] | None) -> None:
    config = tickets(tmp_path, choices=choices)
    talk = [user("a"), said("What else?"), user("b")]
    rows = [{"messages": talk}, {"messages": [user("c"), said("shipping")], "gold": "refund"}]
    inputs = ["train", {"path": save(tmp_path / "t.jsonl", rows)}]
    one, other = (
        ask(config, inputs, Prompting(template=found)) for found in (template(), template(OTHER))
    )
    assert [q.id for q in one.train[8:]] == ["t.jsonl:1", "t.jsonl:2"]
    # Old and new are asked the same chats, each in its own words.
    assert [q.query.chat for q in one.train] == [q.query.chat for q in other.train]
    assert [q.id for q in one.validation] == [q.id for q in other.validation]
    assert contexts(one)[9] == "<s>[user] c\n[assistant]" != contexts(other)[9]
    assert json.loads(str(one.train[9].query.chat))["messages"] == [user("c")]
    assert [q.gold for q in one.train[8:]] == [None, None]
    texts = {q.gold_text for q in one.train[:8]}
    assert texts == ({None} if choices else {" billing", " shipping"})
    if choices:
        assert {q.gold for q in one.train[:8]} == {0, 1} and one.train[0].lengths == (7, 8)


def test_a_chats_right_answer_is_its_last_turn(tmp_path: Path) -> None:
    talk = [user("a"), said("What else?"), user("b")]
    rows = [{"id": f"x{i}", "messages": [*talk[:2], user(f"b{i}")], "gold": "w"} for i in range(5)]
    config = tickets(tmp_path).model_copy(update={"train": save(tmp_path / "c.jsonl", rows)})
    found = ask(config, ["train"], Prompting(template=template()))
    assert {q.gold_text for q in found.train} == {" w"}
    assert found.train[0].query.requests[0].context.startswith("<s>[user] a\n[assistant] What")


def test_chats_that_the_test_knows_or_that_choose_the_epoch(tmp_path: Path) -> None:
    prompting = Prompting(template=template())
    config = tickets(tmp_path, validation=save(tmp_path / "v.jsonl", chat_rows("held", 3)))
    rows = [
        {"messages": row["messages"]}
        for part in ("test", "held", "new")
        for row in chat_rows(part, 1)
    ]
    rows[0]["messages"][-1]["content"] = "TEST  ticket 0"
    path = save(tmp_path / "t.jsonl", rows)
    with pytest.raises(
        UserError, match=r"1 of 3 inputs of .* are test inputs of task 'tickets' too \(1\)"
    ):
        ask(config, [{"path": path}], prompting)
    found = ask(config, [{"path": path, "overlap": "drop"}], prompting)
    assert [q.id for q in found.train] == ["t.jsonl:3"]
    assert [q.id for q in found.validation] == ["held-0", "held-1", "held-2"]
    with pytest.raises(UserError, match="validation file of task 'tickets' chooses the epoch"):
        ask(config, [{"split": "validation"}], prompting)
    # A validation file may have ids of its own.
    same = [{**row, "id": f"train-{i}"} for i, row in enumerate(chat_rows("held", 3))]
    config = config.model_copy(update={"validation": save(tmp_path / "v.jsonl", same)})
    found = ask(config, ["train"], prompting)
    assert [q.id for q in found.validation] == [f"validation:train-{i}" for i in range(3)]


def test_near_copies_stay_apart_as_in_every_split(tmp_path: Path) -> None:
    """By the column that keeps chats together, where a row has it."""
    prompting = Prompting(template=template())

    def people(name: str, count: int, start: int) -> list[dict[str, Any]]:
        return [{**row, "who": i // 2 + start} for i, row in enumerate(chat_rows(name, count))]

    config = tickets(tmp_path, group="who").model_copy(
        update={
            "train": save(tmp_path / "train.jsonl", people("train", 20, 0)),
            "test": save(tmp_path / "test.jsonl", people("test", 4, 50)),
        }
    )
    # Of a person's two chats the limit leaves one out, and the other is held out.
    found = ask(config, [{"split": "train"}], prompting, limit=11, tuning_fraction=0.4)
    halves = tuning_halves(
        make(config, ["train"], limit=11, tuning_fraction=0.4), load_task(config), template()
    )
    ids = [q.id for q in found.validation] + [e.id for half in halves for e in half]
    held, rest = (
        {int(i.split("-")[1]) // 2 for i in of} for of in (ids, [q.id for q in found.train])
    )
    assert held and rest and held.isdisjoint(rest) and len(found.train) < 9
    assert f"{9 - len(found.train)} are held out (train-" in found.notes[0]
    rows = people("new", 3, 51)
    del rows[2]["who"]
    path = save(tmp_path / "t.jsonl", rows)
    with pytest.raises(UserError, match=r"2 of 3 inputs .* too \(new-0, new-1\)"):
        ask(config, [{"path": path}], prompting)
    found = ask(config, [{"path": path, "overlap": "drop"}], prompting)
    assert [q.id for q in found.train] == ["t.jsonl:new-2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "row 2: no 'messages'"),
        ({"messages": [{"role": "system", "content": "x"}]}, "row 2: the last message is system"),
    ],
)
def test_chats_that_ask_nothing(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "t.jsonl", [{"messages": [user("a")]}, row])
    with pytest.raises(UserError, match=message):
        ask(tickets(tmp_path), [{"path": path}], Prompting(template=template()))


# --- what is refused ------------------------------------------------------------------------


def test_files_that_cannot_be_asked(tmp_path: Path) -> None:
    config = own(tmp_path)
    path = save(tmp_path / "t.jsonl", [{"text": "a"}, {"words": "b"}])
    assert f"{path}, row 2: no field 'text', which task.prompt uses" in refusal(
        config, {"path": path}
    )
    (tmp_path / "t.jsonl").write_text("")
    setting = "setting 'compatibility.inputs.0.path'"
    assert refusal(config, {"path": path}).startswith(f"{setting}: {path} is empty")
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\nno json\n')
    assert f"{path}, row 2: broken JSON" in refusal(config, {"path": path})
    gone = str(tmp_path / "gone.jsonl")
    assert refusal(config, {"path": gone}) == f"{setting}: the file {gone} does not exist"
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    assert "t.parquet can't be read" in refusal(config, {"path": str(tmp_path / "t.parquet")})
    field = own(tmp_path, "field", choices="options", target="label")
    for name, text in (("train", "t"), ("test", "u")):
        rows = [{"text": f"{text}{i}", "options": ["a", "b"], "label": "a"} for i in range(9)]
        field = field.model_copy(update={name: save(tmp_path / f"{name}.jsonl", rows)})
    path = save(tmp_path / "t.jsonl", [{"text": "a"}])
    assert f"{path}, row 1: field 'options' (task.choices) is missing" in refusal(
        field, {"path": path}
    )


def test_a_harness_task_that_takes_no_rows(tmp_path: Path) -> None:
    yaml = HARNESS + "process_docs: !function prepare.prepare\n"
    config = piqa(tmp_path, yaml, train=goals(9), test=goals(3, 50), validation=goals(1, 90))
    (tmp_path / "yaml" / "prepare.py").write_text(
        "def prepare(docs):\n    return docs.filter(lambda d: d['goal'] != 'Do 21')\n"
    )
    path = save(tmp_path / "t.jsonl", goals(3, 20))
    assert f"{path}: task 'mine' keeps 2 of its 3 rows" in refusal(config, {"path": path})
    code = PYTHON.replace("loglikelihood", "generate_until")
    code = code.replace("(ctx, self.doc_to_target(doc))", '(ctx, {"until": ["."]})')
    (tmp_path / "yaml" / "even.yaml").write_text("task: even\nclass: !function code.Even\n")
    (tmp_path / "yaml" / "code.py").write_text(code)
    python = TaskConfig(name="even", include_path=str(tmp_path / "yaml"))
    assert f"{path}: task 'even' is written in Python" in refusal(python, {"path": path})
    found = ask(python, ["train", {"split": "train"}], limit=4)
    assert [q.gold_text is None for q in found.train] == [False] * 3 + [True] * 2


def test_splits_with_nothing_to_ask(tmp_path: Path) -> None:
    config = own(tmp_path)
    left = "nothing of the training split is left, since training.limit"
    assert f"{left} is not set: set it below 20" in refusal(config, {"split": "train"})
    assert f"{left} 20 takes all of it" in refusal(config, {"split": "train"}, limit=20)
    assert "'weather' has no validation split" in refusal(config, {"split": "validation"})
    yaml = HARNESS.replace("test_split: test\n", "")
    judged = piqa(tmp_path, yaml, train=goals(9), validation=goals(3, 50))
    assert "is evaluated on its validation split" in refusal(judged, {"split": "validation"})


def test_another_task_that_does_not_fit(tmp_path: Path) -> None:
    config = own(tmp_path)
    written = own(tmp_path, "words", choices=None)
    message = refusal(config, {"task": written})
    assert "'words' has its answers written and 'weather' gives choices" in message
    chats = tickets(tmp_path)
    with pytest.raises(UserError, match="'tickets' is a task of chats and 'weather' is none"):
        ask(config, [{"task": chats}], Prompting(template=template()))
    bare = own(tmp_path, "bare").model_copy(update={"train": None})
    assert "setting 'compatibility.inputs.0.task': setting 'task.train' is missing" in refusal(
        config, {"task": bare}
    )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("loglikelihood_rolling", "measures whole documents"),
        ("loglikelihood", "scores one given text, with no other choice"),
    ],
)
def test_tasks_without_answers_to_distil(tmp_path: Path, kind: str, message: str) -> None:
    yaml = HARNESS.replace("multiple_choice", kind).replace(
        'doc_to_choice: "{{[sol1, sol2]}}"\n', ""
    )
    yaml = yaml.replace("doc_to_target: label", "doc_to_target: sol1")
    task = load_task(
        piqa(tmp_path, yaml, train=goals(9), test=goals(3, 50), validation=goals(1, 90))
    )
    with pytest.raises(UserError, match=message):
        task.questions()


@pytest.mark.skipif("MUSCLE_DATA" not in os.environ, reason="needs the real data (MUSCLE_DATA)")
def test_overlaps_of_published_data() -> None:
    folder = Path(os.environ["MUSCLE_DATA"])
    known = json.loads((folder / "known_overlaps.json").read_text())
    rows = {str(row) for of in known["piqa"]["validation_row_to_train_rows"].values() for row in of}
    files = {s: str(folder / "piqa" / f"{s}.jsonl.gz") for s in ("train", "validation")}
    config = TaskConfig.model_validate({"name": "piqa", "data_files": files})
    found = ask(config, ["train", {"split": "train", "overlap": "drop"}], limit=8000)
    counted = [note for note in found.notes if "test inputs" in note]
    assert sum(note.count(row) for note in counted for row in rows) == len(rows) == 2
    assert not {f"train:{row}" for row in rows} & {q.id for q in found.train}


# --- files of questions ---------------------------------------------------------------------


def test_questions_come_back_from_a_file(tmp_path: Path) -> None:
    config = own(tmp_path)
    asked = ask(config, ["train", {"path": save(tmp_path / "t.jsonl", weather(3, 40))}]).train
    chats = ask(tickets(tmp_path), ["train"], Prompting(template=template())).train
    path = tmp_path / "questions.parquet"
    for questions in (asked, chats, []):
        write_questions(path, questions)
        assert read_questions(path) == questions
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="not a whole Parquet file"):
        read_questions(path)
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(UserError, match="other columns than expected"):
        read_questions(path)
