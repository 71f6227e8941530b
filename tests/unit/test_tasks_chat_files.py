"""Tasks of the user's own chats: rows, overlap, groups, what is asked and how it is judged."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny import make_tokenizer

from muscle.config import TaskConfig
from muscle.errors import UserError
from muscle.models.chat_template import load_chat_template
from muscle.tasks import Prompting, load_task, split
from muscle.types import Answer, Output

ONE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{{ eos_token if m.role == 'assistant' else '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
OTHER = (
    "{{ bos_token }}Be kind.\n{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "<{{ m.role }}> {{ m.content }}{{ '<|end|>' if m.role == 'assistant' else '' }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
SYSTEM = {"role": "system", "content": "Name the team."}


def template(source: str = ONE) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    tokenizer.chat_template = source
    return load_chat_template(tokenizer)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def rows(split_name: str, count: int, **more: Any) -> list[dict[str, Any]]:
    teams = ("billing", "shipping")
    return [
        {
            "id": f"{split_name}-{i}",
            "messages": [SYSTEM, user(f"{split_name} ticket {i}")],
            "gold": teams[i % 2],
            "language": ("de", "en")[i % 2],
            **more,
        }
        for i in range(count)
    ]


def save(path: Path, found: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


def config(
    tmp_path: Path,
    test: list[dict[str, Any]] | None = None,
    train: list[dict[str, Any]] | None = None,
    **settings: Any,
) -> TaskConfig:
    return TaskConfig(
        name="tickets",
        format="chat",
        train=save(tmp_path / "train.jsonl", rows("train", 6) if train is None else train),
        test=save(tmp_path / "test.jsonl", rows("test", 4) if test is None else test),
        **settings,
    )


def judged(task: Any, texts: list[str], prompting: Prompting | None = None) -> list[Any]:
    prompting = prompting or Prompting(template=template())
    queries = task.queries(None, prompting)
    answers = [Answer(q.id, (Output(text=t),)) for q, t in zip(queries, texts, strict=True)]
    return task.judge(answers, None, prompting).predictions


def test_each_version_is_asked_by_its_own_template(tmp_path: Path) -> None:
    task = load_task(config(tmp_path))
    one = task.queries(None, Prompting(template=template()))
    other = task.queries(None, Prompting(template=template(OTHER)))
    assert (
        one[0].requests[0].context
        == "<s>[system] Name the team.\n[user] test ticket 0\n[assistant]"
    )
    assert other[0].requests[0].context.startswith("<s>Be kind.\n<system> Name the team.")
    # The chat itself is what both have in common.
    assert [q.chat for q in one] == [q.chat for q in other]
    assert json.loads(one[0].chat)["messages"] == rows("test", 1)[0]["messages"]
    assert json.loads(one[0].requests[0].generation)["until"] == ["</s>"]
    assert json.loads(other[0].requests[0].generation)["until"] == ["<|end|>"]
    by_one = judged(task, ["billing"] * 4)
    by_other = judged(task, ["billing"] * 4, Prompting(template=template(OTHER)))
    for a, b, query in zip(by_one, by_other, one, strict=True):
        assert (a.id, a.question, a.gold, a.document) == (b.id, b.question, b.gold, b.document)
        assert a.prompt == query.requests[0].context != b.prompt
        assert a.question == f"system: Name the team.\nuser: test ticket {a.id[-1]}"
        assert a.fields["language"] in ("de", "en")


def test_training_chats_teach_every_turn_of_the_assistant(tmp_path: Path) -> None:
    talk = [user("a"), said("What else?"), user("b")]
    train = [{"id": "x", "messages": talk, "gold": "billing"}, *rows("train", 3)]
    task = load_task(config(tmp_path, train=train))
    (example, *_) = task.training_examples(template())
    text = example.prompt + example.answer
    assert [text[a:b] for a, b in example.turns] == [" What else?</s>", " billing</s>"]
    assert example.prompt == "<s>[user] a\n[assistant]"
    # A chat that ends with the answer needs no gold field.
    given = [{"id": "x", "messages": [*talk, said("billing")]}, *rows("train", 3)]
    again = load_task(config(tmp_path, train=given))
    assert again.training_examples(template())[0] == example


def test_training_chats_are_judged_by_choices_too(tmp_path: Path) -> None:
    """As a search asks them; no scorer has a say there."""
    task = load_task(config(tmp_path, choices=["billing", "shipping"]))
    twin = task.on_training(["train-0", "train-1"])
    queries = twin.queries(None, Prompting(template=template()))
    outputs = (Output(loglikelihood=-1.0), Output(loglikelihood=-2.0))
    found = twin.judge([Answer(query.id, outputs) for query in queries]).predictions
    assert [(p.gold, p.score) for p in found] == [("billing", 1.0), ("shipping", 0.0)]


def test_a_json_answer_is_trained_as_text(tmp_path: Path) -> None:
    gold = {"thing": "axe", "coins": 3}
    train = [{"id": "x", "messages": [user("a")], "gold": gold}]
    test = [{"id": "y", "messages": [user("b")], "gold": gold}]
    task = load_task(config(tmp_path, test, train, scorer="json_fields"))
    (example,) = task.training_examples(template())
    assert example.answer == ' {"thing": "axe", "coins": 3}</s>\n'
    (found,) = judged(task, ['{"coins": 3, "thing": "saw"}'])
    assert (found.score, found.metrics["field_accuracy"]) == (0.0, 0.5)
    assert found.reason == 'other fields: thing "saw" instead of "axe"'
    assert (task.metric, found.gold) == ("json_match", '{"thing": "axe", "coins": 3}')


def test_labels_that_are_written_and_labels_that_are_scored(tmp_path: Path) -> None:
    written = load_task(config(tmp_path, labels=["billing", "shipping"]))
    found = judged(written, ["Billing.", "billing", "refund", " shipping\n"])
    assert [p.score for p in found] == [1.0, 0.0, 0.0, 1.0]
    assert [p.reason for p in found] == [
        "right",
        "another label: billing",
        "not a label: 'refund'",
        "right",
    ]
    scored = load_task(config(tmp_path, choices=["billing", "shipping"]))
    query = scored.queries(None, Prompting(template=template(OTHER)))[0]
    # What ends the turn is no part of what is scored.
    assert [r.continuation for r in query.requests] == [" billing", " shipping"]
    assert len({r.context for r in query.requests}) == 1 and query.requests[0].context.endswith(
        "<assistant>"
    )
    with pytest.raises(UserError, match="a server renders chats itself"):
        scored.queries(None, Prompting(server=True))


def test_a_server_gets_the_chats_alone(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "find"}}]
    task = load_task(config(tmp_path, rows("test", 2, tools=tools)))
    query = task.queries(None, Prompting(server=True))[0]
    assert query.requests[0].context == "" and json.loads(query.chat)["tools"] == tools
    assert json.loads(query.requests[0].generation)["until"] == []
    with pytest.raises(ValueError, match="asked by a template"):
        task.queries()
    assert task.template_notes(template(OTHER), "new") == ()
    (note,) = task.template_notes(template(ONE), "old")
    assert note.startswith("old: its chat template ignores the tools of 2 test chats (test-0, …)")


def test_what_an_example_is_paired_by(tmp_path: Path) -> None:
    def documents(test: list[dict[str, Any]]) -> list[Any]:
        return [p.document for p in judged(load_task(config(tmp_path, test)), ["x"] * len(test))]

    test = rows("test", 2)
    assert documents(rows("test", 2, note="later")) == documents(test)
    assert documents(rows("test", 2, gold="billing")) != documents(test)
    assert documents(rows("test", 2, tools=[{"type": "function"}])) != documents(test)


def test_groups_stay_on_one_side_whatever_the_template(tmp_path: Path) -> None:
    train = [{**row, "customer": i // 3} for i, row in enumerate(rows("train", 30))]
    test = rows("test", 4, customer="x")
    task = load_task(config(tmp_path, test, train, group="customer"))
    sides = []
    for source in (ONE, OTHER):
        kept, held = split(task.training_examples(template(source)), 0, 0.2, task.groups)
        assert not {task.groups[e.id] for e in kept} & {task.groups[e.id] for e in held}
        sides.append([e.id for e in held])
    assert sides[0] == sides[1] and len(sides[0]) == 6
    plain = load_task(config(tmp_path))
    a, b = (split(plain.training_examples(template(s)), 0, 0.3, plain.groups) for s in (ONE, OTHER))
    assert [e.id for e in a[1]] == [e.id for e in b[1]]


def test_overlap_is_refused_dropped_or_named(tmp_path: Path) -> None:
    test = rows("test", 4)
    train = [
        *rows("train", 5),
        {"id": "again", "messages": [SYSTEM, user("TEST  ticket 2")], "gold": "billing"},
        {"id": "test-1", "messages": [user("else")], "gold": "billing"},
    ]
    text = r"2 of 7 training chats also .* file: 1 by chat \(again\), 1 by id \(test-1\)"
    with pytest.raises(UserError, match=text):
        load_task(config(tmp_path, test, train))
    dropped = load_task(config(tmp_path, test, train, overlap="drop"))
    assert len(dropped.training_examples(template())) == 5
    assert dropped.notes[0].endswith("they are left out")
    kept = load_task(config(tmp_path, test, train, overlap="keep"))
    assert len(kept.training_examples(template())) == 7 and "1 by chat (again)" in kept.notes[0]
    grouped = [{**row, "case": i} for i, row in enumerate(train[:5])]
    asked = [{**row, "case": i + 4} for i, row in enumerate(test)]
    with pytest.raises(UserError, match=r"1 of 5 training chats .*: 1 by 'case' \(train-4\)"):
        load_task(config(tmp_path, asked, grouped, group="case"))


def test_an_own_validation_file(tmp_path: Path) -> None:
    path = save(tmp_path / "validation.jsonl", rows("validation", 3))
    task = load_task(config(tmp_path, validation=path))
    found = task.validation_examples(template())
    assert found is not None and [e.id for e in found] == [f"validation-{i}" for i in range(3)]
    assert load_task(config(tmp_path)).validation_examples(template()) is None


def test_tuning_halves_are_judged_by_their_own_gold(tmp_path: Path) -> None:
    task = load_task(config(tmp_path, labels=["billing", "shipping"]))
    half = task.on_training(["train-1", "train-4"])
    found = judged(half, ["shipping", "shipping"])
    assert [(p.id, p.score) for p in found] == [("train-1", 1.0), ("train-4", 0.0)]
    assert found[1].reason == "another label: shipping"
    assert len(judged(task, ["billing"] * 4)) == 4


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"id": "a", "messages": list(messages), "gold": "x", **more}


CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "find"}}]}
BAD_ROWS = [
    ({"messages": [user("a")], "gold": "x"}, r"row 1: no 'id' \(fields: messages, gold\)"),
    ({"id": "", "messages": [user("a")], "gold": "x"}, "row 1: no 'id'"),
    ({"id": "a", "gold": "x"}, r"row 1 \(a\): no 'messages'"),
    (chat(), r"row 1 \(a\): no 'messages'"),
    ({"id": "a", "messages": [user("a")]}, r"row 1 \(a\): no right answer: neither a field 'gold'"),
    (chat(user("a"), user("b")), "message 2 is user and follows user"),
    (chat(user("a"), SYSTEM), "message 2 is system and follows user"),
    (chat(said("a"), user("b")), "message 1 is assistant and comes first"),
    (chat(user("a"), {"role": "tool", "content": "1"}), "message 2 is tool and follows user"),
    (chat(user("a"), CALL, user("b")), "message 3 is user and follows assistant"),
    (chat({"role": "boss", "content": "a"}), "message 1 has the role 'boss'"),
    (chat({"role": "user", "content": 3}), "message 1 has the content '3': it must be a text"),
    (chat("hello"), "message 1 has the role 'hello'"),
    (chat(user("a"), said("y")), "the last message is the assistant's and differs from 'gold'"),
    (chat(user("a"), tools="find"), "'tools' must be a list of objects"),
    ({"id": "a", "messages": [user("a")], "gold": " "}, "the right answer is empty"),
    (chat(user("\ud800 hi")), "row 1: holds half a character"),
    (chat(SYSTEM), "the last message is system: nothing is asked"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_rows_that_no_model_could_be_asked(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_task(config(tmp_path, [row]))
    assert "test.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def test_other_rows_that_are_refused(tmp_path: Path) -> None:
    twice = [chat(user("a")), chat(user("b"))]
    with pytest.raises(UserError, match="row 2: the id 'a' is that of row 1 too"):
        load_task(config(tmp_path, twice))
    with pytest.raises(UserError, match="right answer 'x' is not among billing, shipping"):
        load_task(config(tmp_path, [chat(user("a"))], labels=["billing", "shipping"]))
    with pytest.raises(UserError, match="'billing' is no JSON object, whose fields"):
        load_task(config(tmp_path, scorer="json_fields"))
    with pytest.raises(UserError, match=r"no field 'customer', by which task\.group"):
        load_task(config(tmp_path, group="customer"))
    calls = [chat(user("a"), CALL, {"role": "tool", "content": "1"})]
    assert len(load_task(config(tmp_path, calls)).queries(None, Prompting(server=True))) == 1
    strict = "{{ raise_exception('no') if messages | length > 1 }}" + ONE
    task = load_task(config(tmp_path))
    with pytest.raises(UserError, match=r"train\.jsonl, row 1 \(train-0\): .* fails: no"):
        task.training_examples(template(strict.replace("> 1", "> 2")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": None, "scorer": "exact", "prompt": "x"}, "'scorer' is for chats"),
        ({"prompt": "x"}, "'prompt' is not for chats"),
        ({"scorer": "fuzzy"}, "no scorer is called 'fuzzy': known are exact, label"),
        ({"scorer": "python:os"}, "no scorer is called 'python:os'"),
        ({"choices": ["a", "b"], "scorer": "exact"}, "with 'choices' the given labels are scored"),
        ({"labels": ["a"], "scorer": "exact"}, "'labels' are for the scorer label"),
        ({"test": None}, "needs 'test'"),
    ],
)
def test_settings_that_do_not_go_together(settings: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TaskConfig(**{"name": "t", "format": "chat", "test": "t.jsonl", **settings})
