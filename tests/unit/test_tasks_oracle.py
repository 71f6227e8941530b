"""The harness's own evaluator is the oracle: same requests, same metrics per example."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from muscle.config import DataFiles, TaskConfig
from muscle.tasks import load_task
from muscle.types import Answer, Output

PIQA = [
    {"goal": f"To open jar {i}", "sol1": "turn the lid" + "!" * i, "sol2": "hit it " * (i % 3 + 1),
     "label": i % 2} for i in range(12)
]  # fmt: skip
GSM8K = [
    {"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"}
    for i in range(12)
]
HELLASWAG = [
    {"ind": None, "activity_label": "Cooking", "ctx_a": f"A man has {i} eggs.", "ctx_b": "he",
     "ctx": "", "endings": ["eats [step] them.", "sings  loudly", "flies.", "cooks all of them."],
     "label": str(i % 4)} for i in range(8)
]  # fmt: skip
WINOGRANDE = [
    {"sentence": f"Sarah was a better surgeon than Maria so _ got the easy case {i}.",
     "option1": "Sarah", "option2": "Maria", "answer": "12"[i % 2]} for i in range(8)
]  # fmt: skip
SAMSUM = [
    {"id": f"s{i}", "dialogue": f"Ann: hi {i}\r\nBob: bye", "summary": f"Ann greets Bob {i} times."}
    for i in range(6)
]

MUTUAL = """
task: mutual
dataset_path: unused
output_type: multiple_choice
training_split: train
test_split: test
description: "Choose.\\n\\n"
doc_to_text: "{{goal}}:"
doc_to_choice: "{{[sol1, sol2]}}"
doc_to_target: "{{label}}"
metric_list:
  - {metric: acc_mutual_info, aggregation: mean, higher_is_better: true}
  - {metric: acc_bytes, aggregation: mean, higher_is_better: true}
  - {metric: f1, aggregation: f1, higher_is_better: true}
"""
PREFIX = """
task: prefix
dataset_path: unused
output_type: generate_until
training_split: train
test_split: test
doc_to_text: "Q: {{question}}"
doc_to_target: "{{[answer, 'none']}}"
gen_prefix: "A:"
generation_kwargs: {until: ["\\n"], max_gen_toks: 9}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
LAMBADA = """
task: lastword
dataset_path: unused
output_type: loglikelihood
training_split: train
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{' '+answer}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


def write(folder, split, rows):
    path = folder / f"{split}.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def digest(*parts):
    return int(hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8], 16)


def fake_output(kind, first, second):
    """What the fake model says: anything, but always the same."""
    draw = digest(kind, first, second)
    if kind == "generate_until":
        if first.endswith("A:"):
            return ("none", "something")[draw % 2]
        numbers = [w for w in first.split() if w.isdigit()] or ["0"]
        return f" It is {draw % 90} #### {2 * int(numbers[-1]) + draw % 2} Ann" + " Bob" * (
            draw % 3
        )
    return (-(draw % 1000) / 37 - 0.01, draw % 5 == 0)


def fake_model():
    from lm_eval.api.model import LM

    class Fake(LM):
        def loglikelihood(self, requests):
            return [fake_output("loglikelihood", *r.args) for r in requests]

        def loglikelihood_rolling(self, requests):
            raise NotImplementedError

        def generate_until(self, requests):
            return [fake_output("generate_until", r.args[0], None) for r in requests]

    return Fake()


def answer(query):
    outputs = []
    for r in query.requests:
        if r.kind == "generate_until":
            outputs.append(Output(text=fake_output(r.kind, r.context, None)))
        else:
            ll, greedy = fake_output(r.kind, r.context, r.continuation)
            outputs.append(Output(loglikelihood=ll, is_greedy=greedy))
    return Answer(query.id, tuple(outputs))


def oracle(name, folder, files, shots, yaml=None):
    """The harness alone: its YAML, its JSON loader, its evaluator."""
    import lm_eval.tasks
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    import muscle.tasks

    stock = Path(lm_eval.tasks.__file__).parent / name
    ours = Path(muscle.tasks.__file__).parent / "yaml"
    include = yaml.parent if yaml else stock if stock.is_dir() else ours
    spec = {
        "task": name, "dataset_path": "json", "dataset_name": None, "num_fewshot": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
    }  # fmt: skip
    found = simple_evaluate(
        model=fake_model(),
        tasks=[{"group": "oracle", "task": [spec]}],
        task_manager=TaskManager(include_path=str(include), include_defaults=False),
        num_fewshot=shots,
        bootstrap_iters=0,
    )
    return found["samples"][name]


@pytest.mark.parametrize(
    ("name", "rows", "judged", "shots", "yaml"),
    [
        ("piqa", PIQA, "validation", 0, None),
        ("piqa", PIQA, "validation", 2, None),
        ("hellaswag", HELLASWAG, "validation", 0, None),
        ("winogrande", WINOGRANDE, "validation", 0, None),
        ("gsm8k", GSM8K, "test", 3, None),
        ("samsum", SAMSUM, "test", 1, None),
        ("mutual", PIQA, "test", 1, MUTUAL),
        ("prefix", GSM8K, "test", 1, PREFIX),
        ("lastword", GSM8K, "test", 0, LAMBADA),
    ],
)
def test_agreement_with_the_evaluator(tmp_path, name, rows, judged, shots, yaml):
    files = {"train": write(tmp_path, "train", rows), judged: write(tmp_path, judged, rows[::-1])}
    path = None
    if yaml:
        path = tmp_path / "yaml" / f"{name}.yaml"
        path.parent.mkdir()
        path.write_text(yaml)
    samples = oracle(name, tmp_path, files, shots, path)
    include = str(path.parent) if path else None
    task = load_task(
        TaskConfig(name=name, data_files=DataFiles(**files), num_fewshot=shots,
                   include_path=include)
    )  # fmt: skip
    queries = task.queries()
    predictions = task.predictions([answer(q) for q in queries][::-1])
    assert [p.id for p in predictions] == [q.id for q in queries]
    filters = {s["filter"] for s in samples}
    for sample in samples:
        query, row = queries[sample["doc_id"]], predictions[sample["doc_id"]]
        asked = [(r.context, r.continuation or json.loads(r.generation)) for r in query.requests]
        assert asked == [tuple(a) for a in sample["arguments"]]
        for metric in sample["metrics"]:
            key = f"{metric},{sample['filter']}" if len(filters) > 1 else metric
            if metric in ("f1", "perplexity"):
                assert key not in row.metrics
            else:
                assert row.metrics[key] == pytest.approx(float(sample[metric]), abs=1e-12)
        if sample["filter"] == task.filter:
            assert row.score == pytest.approx(float(sample[task.metric]), abs=1e-12)
        if row.choices and task.metric.startswith("acc"):
            assert (row.prediction == row.gold) == (row.score == 1.0)
    # The oracle says something: not all scores are the same.
    assert len({p.score for p in predictions}) > 1
    # A row is asked and judged in the same way whatever the limit.
    assert task.predictions([answer(q) for q in task.queries(2)], limit=2) == predictions[:2]


@pytest.mark.parametrize(
    ("name", "rows", "judged", "yaml"),
    [
        ("piqa", PIQA, "validation", None),
        ("gsm8k", GSM8K, "test", None),
        ("samsum", SAMSUM, "test", None),
        ("mutual", PIQA, "test", MUTUAL),
        ("prefix", GSM8K, "test", PREFIX),
    ],
)
def test_training_text_is_the_harness_shot(tmp_path, name, rows, judged, yaml):
    """A one-shot prompt begins with the shot, rendered by the harness: prompt + answer."""
    files = {"train": write(tmp_path, "train", rows), judged: write(tmp_path, judged, rows[:1])}
    if yaml:
        (tmp_path / f"{name}.yaml").write_text(yaml)
    config = TaskConfig(name=name, data_files=DataFiles(**files), num_fewshot=1,
                        include_path=str(tmp_path))  # fmt: skip
    task = load_task(config)
    trained = [e.prompt + e.answer for e in task.training_examples()]
    context = task.queries()[0].requests[0].context
    assert sum(context.startswith(text + "\n\n") for text in trained) == 1


def test_winogrande_trains_on_the_right_context(tmp_path):
    files = DataFiles(train=write(tmp_path, "train", WINOGRANDE),
                      validation=write(tmp_path, "validation", WINOGRANDE))  # fmt: skip
    task = load_task(TaskConfig(name="winogrande", data_files=files))
    first, second = task.training_examples()[:2]
    assert first.prompt.endswith("than Maria so Sarah") and second.prompt.endswith("so Maria")
    assert second.answer == " got the easy case 1."
    row = task.predictions([answer(q) for q in task.queries(1)], limit=1)[0]
    assert row.question == "Sarah was a better surgeon than Maria so _ got the easy case 0."


@pytest.mark.skipif("MUSCLE_DATA" not in os.environ, reason="needs the real data (MUSCLE_DATA)")
def test_real_data(monkeypatch):
    from muscle.experiment import load_experiment

    monkeypatch.setenv("MUSCLE_MODELS", "models")
    folder = Path(__file__).parents[2] / "jobs" / "experiments" / "local"
    sizes = {
        "subjectivity": (7500, 2500), "piqa": (16113, 1838), "gsm8k": (7473, 1319),
        "samsum": (14732, 819), "hellaswag": (3368, 10042),
    }  # fmt: skip
    for name, (train, test) in sizes.items():
        task = load_task(load_experiment(folder / f"{name}.yaml").task)
        assert len(task.training_examples()) == train, name
        # All of HellaSwag takes seconds.
        limit = 100 if name == "hellaswag" else None
        queries = task.queries(limit)
        assert len(queries) == (limit or test), name
        assert len(task.predictions([answer(q) for q in queries], limit)) == len(queries)
