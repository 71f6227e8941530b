"""Training documents asked and judged as the evaluation asks and judges its own."""

import json
import os
from pathlib import Path

import pytest
from task_fakes import answer, config
from test_tasks_oracle import (
    GSM8K,
    HELLASWAG,
    LAMBADA,
    MUTUAL,
    PIQA,
    PREFIX,
    SAMSUM,
    WINOGRANDE,
)

from muscle.config import DataFiles, TaskConfig
from muscle.errors import UserError
from muscle.tasks import Prompting, load_task


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def on_files(folder, name, train, judged, rows, yaml=None, **settings):
    """A harness task on files: `train`, and `rows` for the split that is judged."""
    folder.mkdir(exist_ok=True)
    files = {"train": write(folder / "train.jsonl", train)}
    files[judged] = write(folder / f"{judged}.jsonl", rows)
    if yaml:
        (folder / f"{name}.yaml").write_text(yaml)
        settings["include_path"] = str(folder)
    return load_task(TaskConfig(name=name, data_files=DataFiles(**files), **settings))


def contexts(task, **settings):
    return [[r.context for r in q.requests] for q in task.queries(**settings)]


KINDS = [
    ("piqa", PIQA, "validation", None),
    ("hellaswag", HELLASWAG, "validation", None),
    ("winogrande", WINOGRANDE, "validation", None),
    ("gsm8k", GSM8K, "test", None),
    ("samsum", SAMSUM, "test", None),
    ("mutual", PIQA, "test", MUTUAL),
    ("prefix", GSM8K, "test", PREFIX),
    ("lastword", GSM8K, "test", LAMBADA),
]


@pytest.mark.parametrize(("name", "rows", "judged", "yaml"), KINDS)
def test_it_asks_as_if_the_rows_were_in_the_test_file(tmp_path, name, rows, judged, yaml):
    asked, few = [5, 1, 4], {"num_fewshot": 0}
    task = on_files(tmp_path / "a", name, rows, judged, rows[:1], yaml, **few)
    examples = task.training_examples()
    before = (task.queries(), task.fingerprint())
    twin = task.on_training([examples[i].id for i in asked])
    order = sorted(asked)
    other = on_files(tmp_path / "b", name, rows, judged, [rows[i] for i in order], yaml, **few)
    assert [q.id for q in twin.queries()] == [examples[i].id for i in order]
    assert [q.requests for q in twin.queries()] == [q.requests for q in other.queries()]
    assert (twin.name, twin.metric, twin.filter) == (task.name, task.metric, task.filter)
    assert twin.settings() == task.settings()
    # The training text is the context and the right continuation.
    for query, i in zip(twin.queries(), order, strict=True):
        prompt, gold = examples[i].prompt, examples[i].answer
        texts = [(r.context, r.continuation) for r in query.requests]
        assert (prompt, "" if task.generates else gold) in texts
    # Judged as those rows, too.
    ours = twin.judge([answer(q) for q in twin.queries()])
    theirs = other.judge([answer(q) for q in other.queries()])
    assert ours.scores == theirs.scores and ours.size == 3
    for one, row in zip(ours.predictions, theirs.predictions, strict=True):
        assert (one.score, one.gold, one.question) == (row.score, row.gold, row.question)
        assert one.metrics == row.metrics
    assert ours.predictions == twin.predictions([answer(q) for q in twin.queries()])
    assert [q.id for q in twin.queries(2)] == [examples[i].id for i in order[:2]]
    # The first task is what it was.
    assert (task.queries(), task.fingerprint()) == before
    assert twin.training_fingerprint() == task.training_fingerprint()
    assert twin.evaluation_fingerprint() != task.evaluation_fingerprint()
    (first,) = task.on_training([examples[0].id]).queries()
    assert first.requests == task.queries()[0].requests


@pytest.mark.parametrize(
    ("name", "rows", "judged", "yaml"), [kind for kind in KINDS if kind[0] != "winogrande"]
)
def test_shots_are_those_of_the_evaluation_but_never_the_document(
    tmp_path, name, rows, judged, yaml
):
    """The evaluation split has the same rows here, so some meet themselves there."""
    task = on_files(tmp_path / "a", name, rows, judged, rows, yaml, num_fewshot=3)
    examples = task.training_examples()
    before = task.queries()
    twin = task.on_training([e.id for e in examples])
    met, same = 0, 0
    for ours, theirs, example in zip(contexts(twin), contexts(task), examples, strict=True):
        question = example.prompt.removeprefix("Choose.\n\n")
        # Mutual information asks for the answer alone, too.
        for one, other in zip(filter(None, ours), filter(None, theirs), strict=True):
            assert one.count(question) == 1 and one.count("\n\n") == other.count("\n\n")
            assert one == other or other.count(question) == 2
            met += one != other
            same += one == other
    # The harness itself sees to it where shots and questions are of the same split: none here.
    assert same and bool(met) == (judged == "test")
    assert task.queries() == before
    assert contexts(twin) == contexts(task.on_training({e.id for e in examples}))
    assert contexts(twin, limit=4) == contexts(twin)[:4]


def test_shots_of_winogrande(tmp_path):
    """It has the question in its choices, and the end of the sentence as the answer."""
    task = on_files(tmp_path, "winogrande", WINOGRANDE, "validation", WINOGRANDE, num_fewshot=5)
    queries = task.on_training([str(i) for i in range(8)]).queries()
    for number, query in enumerate(queries):
        for request in query.requests:
            assert request.continuation == f" got the easy case {number}."
            assert request.context.count("easy case") == 5
            assert request.continuation not in request.context


def test_copies_of_the_document_are_no_shots(tmp_path):
    """Equal questions with other answers, too."""
    rows = [
        {"question": "Is it?", "answer": f"No.\n#### {i}"} for i in range(4)
    ] + [{"question": "Is she?", "answer": "Yes.\n#### 1"}]  # fmt: skip
    task = on_files(tmp_path, "gsm8k", rows, "test", rows, num_fewshot=2)
    first, *_, last = contexts(task.on_training([str(i) for i in range(5)]))
    # Where there are not enough others, there are fewer shots.
    assert first == ["Question: Is she?\nAnswer: Yes.\n#### 1\n\nQuestion: Is it?\nAnswer:"]
    assert last[0].count("Is it?") == 2 and last[0].count("Is she?") == 1


FIRST = """
task: mine
dataset_path: unused
training_split: train
test_split: test
fewshot_config: {sampler: first_n, split: train}
num_fewshot: 2
doc_to_text: "{{question}}"
doc_to_target: answer
"""


def test_a_sampler_that_takes_the_first(tmp_path):
    rows = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(4)]
    task = on_files(tmp_path, "mine", rows, "test", rows, FIRST)
    assert contexts(task.on_training("0123")) == [
        ["q1 a1\n\nq2 a2\n\nq0"],
        ["q0 a0\n\nq2 a2\n\nq1"],
        ["q0 a0\n\nq1 a1\n\nq2"],
        ["q0 a0\n\nq1 a1\n\nq3"],
    ]


OTHER_FIELDS = """
task: fields
dataset_path: unused
process_docs: !function fields_code.process
training_split: train
test_split: test
fewshot_config: {split: train, process_docs: null, doc_to_text: "{{q}}", doc_to_target: "{{a}}"}
num_fewshot: 3
doc_to_text: "{{question}}"
doc_to_target: answer
"""
OTHER_FIELDS_CODE = """
def process(dataset):
    one = lambda doc: {"question": doc["q"], "answer": doc["a"]}
    return dataset.map(one, remove_columns=["q", "a"])
"""


def test_shots_with_other_fields(tmp_path):
    (tmp_path / "fields_code.py").write_text(OTHER_FIELDS_CODE)
    rows = [{"q": f"Is it {i}?", "a": f"no {i}"} for i in range(5)]
    task = on_files(tmp_path, "fields", rows, "test", rows, OTHER_FIELDS)
    assert any(c.count(r["q"]) == 2 for (c,), r in zip(contexts(task), rows, strict=True))
    for (context,), row in zip(contexts(task.on_training("01234")), rows, strict=True):
        assert context.count(row["q"]) == 1 and context.count("Is it") == 4


SHUFFLED = """
task: shuffled
dataset_path: unused
output_type: multiple_choice
process_docs: !function shuffled_code.process
training_split: train
validation_split: validation
doc_to_text: "{{q}} (A) {{a}} (B) {{b}} (C) {{c}}:"
doc_to_choice: ["(A)", "(B)", "(C)"]
doc_to_target: gold
"""
SHUFFLED_CODE = """
import random
rng = random.Random(42)
def process(dataset):
    def one(doc):
        texts = ["yes", "no", "both"]
        rng.shuffle(texts)
        return dict(zip("abc", texts)) | {"gold": texts.index("yes")}
    return dataset.map(one, load_from_cache_file=False)
"""


def test_documents_that_are_shuffled_whenever_they_are_read(tmp_path):
    """As GPQA: the few-shot examples have other orders of the choices than the questions."""
    (tmp_path / "shuffled_code.py").write_text(SHUFFLED_CODE)
    rows = [{"q": f"Is it {i}?"} for i in range(10)]
    task = on_files(tmp_path, "shuffled", rows, "validation", rows, SHUFFLED, num_fewshot=4)
    twin = task.on_training([str(i) for i in range(10)])
    examples = task.training_examples()
    assert len({e.answer for e in examples}) > 1
    for row, query, example in zip(rows, twin.queries(), examples, strict=True):
        assert query.requests[0].context.endswith(example.prompt)
        assert query.requests[0].context.count(row["q"]) == 1
        assert query.requests[0].context.count("Is it") == 5
    for row, example in zip(
        twin.predictions([answer(q) for q in twin.queries()]), examples, strict=True
    ):
        assert " " + row.gold == example.answer
    assert contexts(twin) == contexts(task.on_training([e.id for e in examples]))


PYTHON = """
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task

class Even(Task):
    VERSION = 3
    OUTPUT_TYPE = "loglikelihood"
    def __init__(self):
        super().__init__(config={"num_fewshot": 2, "task": "even"})
    def download(self, *args):
        self.read = 0
    def has_training_docs(self): return True
    def has_validation_docs(self): return True
    def has_test_docs(self): return False
    def training_docs(self):
        self.read += 1
        return ({"q": f"Is {i} even?", "a": f"{i % 2} in read {self.read}"} for i in range(6))
    def validation_docs(self): return [{"q": f"Is {i} even?", "a": "no"} for i in (7, 9)]
    def doc_to_text(self, doc): return doc["q"]
    def doc_to_target(self, doc): return " " + doc["a"]
    def construct_requests(self, doc, ctx, apply_chat_template=False, chat_template=None, **kw):
        return Instance(request_type="loglikelihood", doc=doc,
                        arguments=(ctx, self.doc_to_target(doc)), idx=0, **kw)
    def process_results(self, doc, results): return {"acc": float(results[0][1])}
    def aggregation(self): return {"acc": mean}
    def higher_is_better(self): return {"acc": True}
"""


def test_a_task_in_python(tmp_path):
    """It reads its documents anew each time, and draws its shots itself."""
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "even.yaml").write_text("task: even\nclass: !function code.Even\n")
    (tmp_path / "yaml" / "code.py").write_text(PYTHON)
    task = load_task(config(tmp_path, "even", num_fewshot=2))
    before = contexts(task)
    examples = task.training_examples()
    twin = task.on_training([e.id for e in examples])
    for query, example in zip(twin.queries(), examples, strict=True):
        (request,) = query.requests
        assert request.continuation == example.answer
        assert request.context.endswith("\n\n" + example.prompt)
        assert request.context.count(example.prompt) == 1
        assert request.context.count("even?") == 3
    judged = twin.judge([answer(q) for q in twin.queries()])
    assert judged.scores["acc,none"] == pytest.approx(sum(p.score for p in judged.predictions) / 6)
    assert contexts(task) == before == contexts(load_task(config(tmp_path, "even", num_fewshot=2)))


OWN = [
    {"text": "rain", "label": "wet", "id": "c"},
    {"text": "sun", "label": "dry", "id": "a"},
    {"text": "snow", "label": "wet", "id": "b"},
    {"text": "rain", "label": "dry", "id": "d"},
]


@pytest.mark.parametrize("choices", [None, ["wet", "dry"]])
def test_own_files(tmp_path, choices):
    def own(test):
        return load_task(
            TaskConfig(name="weather", prompt="It is {{text}}, so", target="label",
                       choices=choices, train=write(tmp_path / "train.jsonl", OWN),
                       test=write(tmp_path / "test.jsonl", test))
        )  # fmt: skip

    twin = own(OWN[:1]).on_training(["d", "a"])
    assert twin.queries() == own([OWN[1], OWN[3]]).queries()
    assert [q.id for q in twin.queries()] == ["a", "d"]
    assert [p.gold for p in twin.predictions([answer(q) for q in twin.queries()])] == ["dry"] * 2
    brief = Prompting(system_instruction="Be brief.")
    assert contexts(twin, prompting=brief)[0][0] == "Be brief.It is sun, so"
    # One can go on from there: the ids are the training split's.
    assert [q.id for q in twin.on_training(["b"]).queries()] == ["b"]
    assert [q.id for q in twin.queries()] == ["a", "d"]


def test_rows_keep_their_numbers(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "id"} for row in OWN]
    task = load_task(
        TaskConfig(name="weather", prompt="{{text}}", target="label", max_gen_toks=3,
                   train=write(tmp_path / "train.jsonl", rows),
                   test=write(tmp_path / "test.jsonl", rows[:1]))
    )  # fmt: skip
    twin = task.on_training(["3", "1"])
    assert [(q.id, q.requests[0].context) for q in twin.queries()] == [("1", "sun"), ("3", "rain")]
    assert json.loads(twin.queries()[0].requests[0].generation)["max_gen_toks"] == 3
    assert [p.id for p in twin.predictions([answer(q) for q in twin.queries()])] == ["1", "3"]


def test_testbed():
    task = load_task(TaskConfig(name="testbed_choice"))
    examples = task.training_examples()[5:50:7]
    queries = task.on_training([e.id for e in examples]).queries()
    assert [q.id for q in queries] == [e.id for e in examples]
    for query, example in zip(queries, examples, strict=True):
        assert (example.prompt, example.answer) in [
            (r.context, r.continuation) for r in query.requests
        ]


def test_wrong_ids(tmp_path):
    task = on_files(tmp_path / "a", "gsm8k", GSM8K, "test", GSM8K, num_fewshot=0)
    with pytest.raises(ValueError, match=r"'gsm8k' has no training example '12' \(2 such ids\)"):
        task.on_training(["1", "12", "x"])
    with pytest.raises(UserError, match="no training example is held out to tune on"):
        task.on_training([])
    bare = load_task(
        TaskConfig(name="gsm8k", num_fewshot=0,
                   data_files=DataFiles(test=write(tmp_path / "test.jsonl", GSM8K)))
    )  # fmt: skip
    with pytest.raises(UserError, match="no 'train' file is given for task 'gsm8k'"):
        bare.on_training(["1"])


def test_only_what_is_asked_is_built(tmp_path, monkeypatch):
    from lm_eval.api.task import ConfigurableTask

    rows = [{"question": f"What is {i}?", "answer": f"#### {i}"} for i in range(500)]
    task = on_files(tmp_path, "gsm8k", rows, "test", rows[:1], num_fewshot=0)
    built = []
    original = ConfigurableTask.fewshot_context

    def counted(self, doc, *args, **kwargs):
        built.append(doc["question"])
        return original(self, doc, *args, **kwargs)

    monkeypatch.setattr(ConfigurableTask, "fewshot_context", counted)
    assert len(task.on_training(["7", "499"]).queries()) == 2
    assert built == ["What is 7?", "What is 499?"]


@pytest.mark.skipif("MUSCLE_DATA" not in os.environ, reason="needs the real data (MUSCLE_DATA)")
@pytest.mark.parametrize(
    ("name", "judged", "shots"),
    [("piqa", "validation", 5), ("hellaswag", "validation", 0), ("gsm8k", "test", 5)],
)
def test_real_data(name, judged, shots):
    folder = Path(os.environ["MUSCLE_DATA"]) / name
    files = {split: str(folder / f"{split}.jsonl.gz") for split in ("train", judged)}
    task = load_task(TaskConfig(name=name, data_files=DataFiles(**files), num_fewshot=shots))
    examples = task.training_examples()[3:2000:2]
    twin = task.on_training([e.id for e in examples])
    queries = twin.queries()
    assert [q.id for q in queries] == [e.id for e in examples]
    for query, example in zip(queries, examples, strict=True):
        ends = [r for r in query.requests if r.context.endswith(example.prompt)]
        assert len(ends) == len(query.requests)
        assert task.generates or example.answer in [r.continuation for r in ends]
        assert query.requests[0].context.count(example.prompt + example.answer) == 0
    assert len(twin.predictions([answer(q) for q in queries])) == len(examples)
