"""Tasks of own files: what they ask, how they judge, what they refuse."""

import gzip
import json
import re

import pytest

from muscle.config import TaskConfig
from muscle.errors import UserError
from muscle.tasks import load_task
from muscle.types import Answer, Output

ROWS = [
    {"text": "rain", "label": "wet", "id": "a"},
    {"text": "sun", "label": "dry", "id": "b"},
    {"text": "snow", "label": "wet", "id": "c"},
]


def write(path, rows):
    lines = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
    path.write_text(lines, encoding="utf-8")
    return str(path)


def own(tmp_path, rows, train=None, **settings):
    settings = {"prompt": "It is {{text}}, so", "target": "label"} | settings
    return TaskConfig(
        name="weather",
        test=write(tmp_path / "test.jsonl", rows),
        train=None if train is None else write(tmp_path / "train.jsonl", train),
        **settings,
    )


def scored(*values):
    return tuple(Output(loglikelihood=v, is_greedy=False) for v in values)


def test_choices_are_asked_and_judged(tmp_path):
    task = load_task(own(tmp_path, ROWS, ROWS, choices=["wet", "dry"]))
    assert (task.metric, task.filter, task.version, task.higher_is_better) == (
        "acc", "none", "1", True,
    )  # fmt: skip
    queries = task.queries()
    assert [q.id for q in queries] == ["a", "b", "c"]
    assert [(r.context, r.continuation) for r in queries[0].requests] == [
        ("It is rain, so", " wet"),
        ("It is rain, so", " dry"),
    ]
    train = task.training_examples()
    assert (train[1].id, train[1].prompt, train[1].answer) == ("b", "It is sun, so", " dry")
    answers = [
        Answer("c", (), error="out of memory"),
        Answer("a", scored(-1.0, -2.0)),
        Answer("b", scored(-1.0, -2.0)),
    ]
    right, wrong, broken = task.predictions(answers)
    assert (right.id, right.score, right.prediction, right.gold) == ("a", 1.0, "wet", "wet")
    assert (wrong.score, wrong.prediction, wrong.gold) == (0.0, "wet", "dry")
    assert wrong.metrics == {"acc": 0.0, "acc_norm": 0.0}
    assert (wrong.choices, wrong.loglikelihoods) == (("wet", "dry"), (-1.0, -2.0))
    assert (broken.id, broken.score, broken.prediction, broken.error) == (
        "c", None, None, "out of memory",
    )  # fmt: skip
    assert broken.loglikelihoods is None and broken.question == "It is snow, so"


def test_nan_is_an_error_not_the_largest(tmp_path):
    task = load_task(own(tmp_path, ROWS[:1], choices=["wet", "dry"]))
    (row,) = task.predictions([Answer("a", scored(-1.0, float("nan")))])
    assert row.score is None and "not a number" in row.error


def test_acc_norm_divides_by_characters(tmp_path):
    config = own(tmp_path, ROWS[:1], choices=["wet", "dry as a bone"], metric="acc_norm")
    (row,) = load_task(config).predictions([Answer("a", scored(-3.0, -4.0))])
    assert (row.prediction, row.score, row.metrics) == (
        "dry as a bone", 0.0, {"acc": 1.0, "acc_norm": 0.0},
    )  # fmt: skip


def test_gold_texts_of_digits_are_no_indexes(tmp_path):
    rows = [{"text": "1+1", "label": "2"}, {"text": "1+0", "label": "1"}]
    task = load_task(own(tmp_path, rows, rows, choices=["1", "2", "3"]))
    assert [e.answer for e in task.training_examples()] == [" 2", " 1"]
    answers = [Answer("0", scored(-2.0, -1.0, -3.0)), Answer("1", scored(-2.0, -1.0, -3.0))]
    assert [(p.gold, p.score) for p in task.predictions(answers)] == [("2", 1.0), ("1", 0.0)]
    ambiguous = [{"text": "1+1", "label": 2}]
    with pytest.raises(UserError, match="row 1: gold 2 could be the index or the choice '2'"):
        load_task(own(tmp_path, ambiguous, choices=["1", "2", "3"]))


def test_gold_texts_of_digits_stay_texts_in_generation(tmp_path):
    rows = [{"text": "2+2", "label": "04"}, {"text": "[1]", "label": "[1]"}]
    task = load_task(own(tmp_path, rows, rows))
    assert [e.answer for e in task.training_examples()] == [" 04", " [1]"]
    answers = [Answer("0", (Output(text=" 4"),)), Answer("1", (Output(text="[1]\t"),))]
    assert [p.score for p in task.predictions(answers)] == [0.0, 1.0]


def test_numbers_are_indexes_and_choices_may_be_a_field(tmp_path):
    rows = [
        {"text": "x", "label": 1, "options": ["p", "q"]},
        {"text": "y", "label": "r", "options": ["q", "r", "s"]},
        {"text": "z", "label": 7, "options": [3, 7]},
    ]
    task = load_task(own(tmp_path, rows, rows, choices="options"))
    assert [e.answer for e in task.training_examples()] == [" q", " r", " 7"]
    assert [len(q.requests) for q in task.queries()] == [2, 3, 2]


def test_generation(tmp_path):
    task = load_task(own(tmp_path, ROWS, until=["\n", "."], max_gen_toks=7))
    (request,) = task.queries(limit=1)[0].requests
    assert json.loads(request.generation) == {
        "until": ["\n", "."], "max_gen_toks": 7, "do_sample": False, "temperature": 0.0,
    }  # fmt: skip
    answers = [Answer(i, (Output(text=t),)) for i, t in (("a", " wet "), ("b", "wet"), ("c", ""))]
    rows = task.predictions(answers)
    assert [(r.metric, r.score, r.prediction) for r in rows] == [
        ("exact_match", 1.0, "wet"),
        ("exact_match", 0.0, "wet"),
        ("exact_match", 0.0, ""),
    ]


def test_rouge1(tmp_path):
    rows = [{"text": "x", "label": "Amanda baked cookies"}]
    task = load_task(own(tmp_path, rows, metric="rouge1"))
    (row,) = task.predictions([Answer("0", (Output(text="amanda bakes cookies"),))])
    assert row.score == pytest.approx(2 / 3) and row.metrics == {"rouge1": row.score}


def test_the_delimiter_follows_the_template(tmp_path):
    task = load_task(own(tmp_path, ROWS, ROWS, prompt="{{text}}:\n", choices=["wet", "dry"]))
    first = task.training_examples()[0]
    assert (first.prompt, first.answer) == ("rain:\n", "wet")


def test_ids_fall_back_to_the_row_index(tmp_path):
    rows = [*ROWS[:2], {**ROWS[2], "id": "a"}]
    task = load_task(own(tmp_path, rows, choices=["wet", "dry"]))
    assert [q.id for q in task.queries()] == ["0", "1", "2"]
    assert [q.id for q in task.queries(limit=1)] == ["0"]


def test_gzip_and_parquet_hold_the_same_task(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    config = own(tmp_path, ROWS, choices=["wet", "dry"])
    with gzip.open(tmp_path / "test.jsonl.gz", "wt") as file:
        file.write((tmp_path / "test.jsonl").read_text())
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "test.parquet")
    prints = set()
    for name in ("test.jsonl", "test.jsonl.gz", "test.parquet"):
        task = load_task(config.model_copy(update={"test": str(tmp_path / name)}))
        prints.add(task.fingerprint())
    assert len(prints) == 1
    changed = own(tmp_path, [{**ROWS[0], "label": "dry"}, *ROWS[1:]], choices=["wet", "dry"])
    assert load_task(changed).fingerprint() not in prints


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], {}, "test.jsonl is empty"),
        (['{"text": '], {}, "test.jsonl, row 1: broken JSON"),
        ([ROWS[0], "", "[1]"], {}, "test.jsonl, row 3: not a JSON object"),
        ([ROWS[0], {"label": "wet"}], {}, "test.jsonl, row 2: no field 'text'"),
        ([{"text": None, "label": "wet"}], {}, "row 1: task.prompt can't be filled in.*null"),
        ([{"text": "x"}], {}, "row 1: field 'label' \\(task.target\\) is missing"),
        ([{"text": "x", "label": None}], {}, "row 1: field 'label' \\(task.target\\) is null"),
        ([{"text": "x", "label": ["a"]}], {}, "row 1: field 'label' is \\['a'\\]: it must be"),
        ([ROWS[0], {"text": "x", "label": "warm"}], {"choices": ["wet", "dry"]},
         "test.jsonl, row 2: the gold answer 'warm' is not among"),
        ([{"text": "x", "label": 2}], {"choices": ["wet", "dry"]}, "the gold answer 2 is not"),
        ([{"text": "x", "label": -1}], {"choices": ["wet", "dry"]}, "the gold answer -1 is not"),
        ([{"text": "x", "label": True}], {"choices": ["wet", "dry"]}, "True is neither"),
        ([{"text": "x", "label": "p", "o": ["p"]}], {"choices": "o"}, "row 1: 1 choices"),
        ([{"text": "x", "label": "p", "o": []}], {"choices": "o"}, "row 1: 0 choices"),
        ([{"text": "x", "label": "p", "o": "pq"}], {"choices": "o"}, "must be a list"),
        ([{"text": "x", "label": "p", "o": ["p", ""]}], {"choices": "o"}, "is an empty text"),
        ([{"text": "x", "label": "p", "o": ["p", "p"]}], {"choices": "o"}, "are the same text"),
        ([{"text": "x", "label": "p"}], {"choices": "o"}, "field 'o' \\(task.choices\\)"),
        (ROWS, {"prompt": "{{tex}}"}, "row 1: no field 'tex', which task.prompt uses"),
        (ROWS, {"prompt": "{{text.a.b}}"}, "row 1: task.prompt can't be filled in"),
        (ROWS, {"prompt": "{{text"}, "'task.prompt' is not a Jinja template"),
        (ROWS, {"prompt": "{{ text.__class__.__mro__ }}"}, "unsafe"),
        (ROWS, {"prompt": "{{ cycler.__init__.__globals__ }}"}, "unsafe"),
        (ROWS, {"metric": "rouge1", "choices": ["wet", "dry"]}, "judged by acc or acc_norm"),
        (ROWS, {"metric": "acc"}, "judged by exact_match or rouge1"),
        (ROWS, {"until": [""]}, "empty stop string"),
        (ROWS, {"filter": "strict"}, "no filter 'strict'"),
        (ROWS, {"choices": ["wet", "dry"], "max_gen_toks": 3}, "'task.max_gen_toks'"),
    ],
)  # fmt: skip
def test_bad_rows_and_settings(tmp_path, rows, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        load_task(own(tmp_path, rows, **settings))
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path):
    config = own(tmp_path, ROWS)
    with pytest.raises(UserError, match=r"'task.test': the file .*nowhere.jsonl does not exist"):
        load_task(config.model_copy(update={"test": str(tmp_path / "nowhere.jsonl")}))
    (tmp_path / "bad.jsonl.gz").write_bytes(b"not gzip at all")
    with pytest.raises(UserError, match=r"bad.jsonl.gz can't be read"):
        load_task(config.model_copy(update={"test": str(tmp_path / "bad.jsonl.gz")}))
    (tmp_path / "bad.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(UserError, match=r"bad.parquet can't be read"):
        load_task(config.model_copy(update={"train": str(tmp_path / "bad.parquet")}))
    with pytest.raises(UserError, match=r"'task.train' is missing"):
        load_task(config).training_examples()


def test_an_example_without_any_text(tmp_path):
    rows = [ROWS[0], {"text": "", "label": ""}]
    task = load_task(own(tmp_path, ROWS, rows, prompt="{{text}}"))
    with pytest.raises(UserError, match="row 2 of the training split: prompt and answer are empty"):
        task.training_examples()


def test_answers_that_do_not_fit(tmp_path):
    task = load_task(own(tmp_path, ROWS, choices=["wet", "dry"]))
    good = [Answer(i, scored(-1.0, -2.0)) for i in "abc"]
    for answers, message in (
        (good[:2], "no answer for id 'c'"),
        ([*good, Answer("d", scored(-1.0, -2.0))], "unknown id 'd'"),
        ([*good, good[0]], "two answers have the id 'a'"),
    ):
        with pytest.raises(UserError, match=message):
            task.predictions(answers)
    with pytest.raises(ValueError, match="1 outputs for 2 requests"):
        task.predictions([*good[:2], Answer("c", scored(-1.0))])
    with pytest.raises(ValueError, match=re.escape("without a log-likelihood")):
        task.predictions([*good[:2], Answer("c", (Output(text="x"), Output(text="y")))])


def test_rouge_of_own_files_knows_every_script() -> None:
    from muscle.tasks.rouge import rouge1

    for text in ("日本", "Ελλάδα", "größe über alles", "plain ASCII, 3 words!"):
        assert rouge1(text, text, any_script=True) == 1.0
    assert rouge1("größe", "grüße", any_script=True) == 0.0  # ASCII alone would say 1
    assert rouge1("日本語", "日本", any_script=True) == pytest.approx(0.8)
    ascii_pair = ("The cat_sat, on 3 mats.", "a cat sat on the mat")
    assert rouge1(*ascii_pair, any_script=True) == rouge1(*ascii_pair)
