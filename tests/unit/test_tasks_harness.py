"""Harness tasks: bad names, bad data files, metrics that can't decide."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from muscle.config import DataFiles, TaskConfig
from muscle.errors import UserError
from muscle.tasks import load_task
from muscle.types import Answer, Output

ROWS = [{"goal": f"Do {i}", "sol1": "this", "sol2": "that thing", "label": i % 2} for i in range(4)]
CHOICE = """
task: mine
dataset_path: unused
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "{{goal}}:"
doc_to_choice: "{{[sol1, sol2]}}"
doc_to_target: label
"""
TEXT = """
task: mine
dataset_path: unused
test_split: test
doc_to_text: "{{goal}}:"
doc_to_target: "{{sol1}}"
generation_kwargs: {until: ["\\n"], max_new_tokens: 300, no_repeat_ngram_size: 2}
"""


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def mine(tmp_path, yaml, rows=ROWS, train=None, **settings):
    """A task of our own harness YAML, on local rows."""
    (tmp_path / "yaml").mkdir(exist_ok=True)
    (tmp_path / "yaml" / "mine.yaml").write_text(yaml, encoding="utf-8")
    files = {"test": write(tmp_path / "test.jsonl", rows)}
    if train is not None:
        files["train"] = write(tmp_path / "train.jsonl", train)
    include = str(tmp_path / "yaml")
    return TaskConfig(name="mine", include_path=include, data_files=DataFiles(**files), **settings)


def piqa(tmp_path, **files):
    paths = {split: write(tmp_path / f"{split}.jsonl", rows) for split, rows in files.items()}
    return TaskConfig(name="piqa", data_files=DataFiles(**paths))


def test_importing_tasks_is_cheap():
    code = (
        "import sys, muscle.tasks; "
        "print(sorted({'torch','lm_eval','datasets','numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "hella_swag"}, "no task is called 'hella_swag': did you mean .*hellaswag"),
        ({"name": "mmlu"}, r"'mmlu' is a group of 57 tasks: name one of them \(mmlu_.*…\)"),
        ({"name": "humaneval"}, "runs code that the model wrote"),
        ({"name": "piqa"}, "data set baber/piqa can't be loaded.*task.data_files"),
        ({"name": "piqa", "include_path": "no/such/folder"}, "no/such/folder is not a directory"),
    ],
)
def test_names(monkeypatch, settings, message):
    import lm_eval
    from lm_eval.tasks import TaskManager

    from muscle.tasks import harness

    # All of the harness's 14,000 YAML files take many seconds to read.
    stock = Path(lm_eval.__file__).parent / "tasks"
    few = TaskManager(include_path=str(stock / "hellaswag"), include_defaults=False)
    monkeypatch.setattr(harness, "_stock_manager", lambda: few)
    with pytest.raises(UserError, match=message) as caught:
        load_task(TaskConfig(**settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": ROWS}, "no 'validation' file is given, the split on which task 'piqa'"),
        ({"validation": ROWS, "test": ROWS}, "has no test split.* leave 'test' out"),
        ({"validation": []}, "validation.jsonl is empty"),
        ({"validation": [{"goal": "x"}]}, "'piqa' can't be built .*may lack fields"),
        ({"validation": [*ROWS, {**ROWS[0], "label": "one"}]}, "'label' have different types"),
    ],
)
def test_data_files(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        load_task(piqa(tmp_path, **files))


def test_data_files_that_do_not_exist(tmp_path):
    files = DataFiles(validation=str(tmp_path / "gone.jsonl"))
    with pytest.raises(UserError, match=r"'task.data_files': the file .*gone.jsonl does not exist"):
        load_task(TaskConfig(name="piqa", data_files=files))


def test_no_training_split(tmp_path):
    task = load_task(piqa(tmp_path, validation=ROWS))
    assert not task.has_training and len(task.fingerprint()) == 64
    with pytest.raises(UserError, match="no 'train' file is given for task 'piqa'"):
        task.training_examples()
    # A train file makes a training split where the YAML has none.
    task = load_task(mine(tmp_path, TEXT, train=ROWS))
    assert task.training_examples()[0].answer == " this"


def test_fewshot_split_without_a_file(tmp_path):
    yaml = CHOICE + "fewshot_split: dev\nnum_fewshot: 3\n"
    with pytest.raises(UserError, match="3 few-shot examples from split 'dev'"):
        load_task(mine(tmp_path, yaml))
    assert len(load_task(mine(tmp_path, yaml, num_fewshot=0)).queries()) == 4


def test_our_shots_win_over_a_yaml_with_none(tmp_path):
    task = load_task(mine(tmp_path, CHOICE + "num_fewshot: 0\n", train=ROWS, num_fewshot=2))
    assert task.queries()[0].requests[0].context.count("Do ") == 3
    assert task.training_examples()[0].prompt == "Do 0:"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, "row 3 of the evaluation split: the gold answer 2 is not among"),
        ({"label": -1}, "row 3 of the evaluation split: the gold answer -1 is not among"),
        ({"sol1": ""}, "row 3 of the evaluation split: choice 0 is an empty text"),
    ],
)
def test_bad_rows(tmp_path, change, message):
    rows = [*ROWS[:2], {**ROWS[2], **change}]
    with pytest.raises(UserError, match=message):
        load_task(mine(tmp_path, CHOICE, rows)).queries()
    task = load_task(mine(tmp_path, CHOICE, train=rows))
    with pytest.raises(UserError, match=message.replace("evaluation", "training")):
        task.training_examples()


def test_rows_without_choices(tmp_path):
    yaml = CHOICE.replace('"{{[sol1, sol2]}}"', "options")
    rows = [{"goal": "x", "options": ["a", "b"], "label": 0}]
    for options, count in (([], 0), (["a"], 1)):
        bad = {"goal": "y", "options": options, "label": 0}
        with pytest.raises(UserError, match=f"row 2 of the evaluation split: {count} choices"):
            load_task(mine(tmp_path, yaml, [*rows, bad])).queries()
        with pytest.raises(UserError, match=r"row 1.*choices"):
            load_task(mine(tmp_path, yaml, [bad, *rows])).queries()


def test_metrics_that_cannot_decide(tmp_path):
    metrics = (
        "metric_list:\n"
        "  - {metric: f1, aggregation: f1, higher_is_better: true}\n"
        "  - {metric: likelihood, aggregation: mean, higher_is_better: true}\n"
        "  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    with pytest.raises(UserError, match=r"'f1' is only an aggregate: .* judged by acc"):
        load_task(mine(tmp_path, CHOICE + metrics, metric="f1"))
    with pytest.raises(UserError, match="no metric 'accc': task 'mine' can be judged by"):
        load_task(mine(tmp_path, CHOICE + metrics, metric="accc"))
    outputs = (Output(loglikelihood=-1.0, is_greedy=True), Output(loglikelihood=-2.0))
    answers = [Answer(str(i), outputs) for i in range(4)]
    rows = load_task(mine(tmp_path, CHOICE + metrics)).predictions(answers)
    assert rows[0].metrics == {"acc": 1.0}
    lower = "metric_list:\n  - {metric: exact_match, aggregation: mean, higher_is_better: false}\n"
    with pytest.raises(UserError, match="'exact_match' is better when lower"):
        load_task(mine(tmp_path, TEXT + lower, metric="exact_match"))


def test_max_gen_toks_replaces_all_its_names(tmp_path):
    task = load_task(mine(tmp_path, TEXT, max_gen_toks=11))
    assert json.loads(task.queries()[0].requests[0].generation) == {
        "until": ["\n"], "max_gen_toks": 11, "no_repeat_ngram_size": 2,
    }  # fmt: skip


def test_samsum_is_ours(tmp_path):
    row = {"id": "7", "dialogue": "A: hi\r\nB: bye", "summary": "A greets.\r\n"}
    files = {s: write(tmp_path / f"{s}.jsonl", [row]) for s in ("train", "test")}
    task = load_task(TaskConfig(name="samsum", data_files=DataFiles(**files)))
    (example,) = task.training_examples()
    assert (example.id, example.prompt, example.answer) == (
        "7", "Dialogue:\nA: hi\nB: bye\nSummary:", " A greets.",
    )  # fmt: skip
    generation = json.loads(task.queries()[0].requests[0].generation)
    assert generation["no_repeat_ngram_size"] == 2 and not generation["do_sample"]
    assert generation["until"] == ["Dialogue:", "Summary:", "</s>", "\n\n"]
    (row,) = task.predictions([Answer("7", (Output(text=" a greets b"),))])
    assert (row.metric, row.gold) == ("rouge1", "A greets.")
    assert row.score == pytest.approx(0.8)


def test_fingerprints_name_contents_only(tmp_path):
    (tmp_path / "b").mkdir()
    one = load_task(mine(tmp_path, CHOICE, train=ROWS))
    same = load_task(mine(tmp_path / "b", CHOICE, train=ROWS))
    assert one.fingerprint() == same.fingerprint()
    gold = [{**ROWS[0], "label": 1}, *ROWS[1:]]
    other = load_task(mine(tmp_path, CHOICE, gold, train=ROWS))
    assert other.training_fingerprint() == one.training_fingerprint()
    assert other.evaluation_fingerprint() != one.evaluation_fingerprint()
    norm = load_task(mine(tmp_path, CHOICE, train=ROWS, metric="acc_norm"))
    assert norm.fingerprint() != one.fingerprint()
