"""Every kind of request, judged and aggregated as the harness's own evaluator does."""

import math
import random

import pytest
from task_fakes import answer, config, oracle, scores_of, write_task

from muscle.errors import UserError
from muscle.tasks import load_task
from muscle.types import Answer, Output

ROWS = [
    {"q": f"Is {i} even?", "label": i % 2, "answer": ["a b c", "a b d"][i % 2], "text": "né " * i}
    for i in range(12)
]
DOCUMENTS = """
output_type: loglikelihood_rolling
training_split: train
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
"""
COUNTED = DOCUMENTS.replace('"{{text}}"', "!function counted_code.text") + (
    "process_results: !function counted_code.process_results\n"
    "metric_list:\n  - metric: word_perplexity\n  - metric: bits_per_byte\n"
)
COUNTED_CODE = """
def text(doc):
    return doc["text"].replace(" ", "")
def process_results(doc, results):
    size = len(doc["text"].encode())
    return {"word_perplexity": (results[0], 1 + size // 4), "bits_per_byte": (results[0], size)}
"""
CHOICES = """
output_type: multiple_choice
test_split: test
doc_to_text: "{{q}}"
doc_to_choice: ["yes", "no"]
doc_to_target: label
metric_list:
"""
F1 = "  - {metric: f1, aggregation: f1, higher_is_better: true}\n"
MCC = "  - {metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}\n"
BRIER = "  - {metric: brier_score, aggregation: brier_score, higher_is_better: false}\n"
ACC = "  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
LIKELIHOOD = "  - {metric: likelihood, aggregation: mean, higher_is_better: true}\n"
TEXT = """
output_type: generate_until
test_split: test
doc_to_text: "{{q}}"
doc_to_target: answer
metric_list:
"""
EXACT = "  - {metric: exact_match, aggregation: mean, higher_is_better: true}\n"
BLEU = "  - {metric: bleu, aggregation: bleu, higher_is_better: true}\n"
VOTES = """
output_type: generate_until
test_split: test
doc_to_text: "{{q}}"
doc_to_target: "{{7 + label}}"
repeats: 5
generation_kwargs: {until: ["\\n"], do_sample: true, temperature: 0.7}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list:
  - name: first
    filter: [{function: regex, regex_pattern: "is (\\\\d+)"}, {function: take_first}]
  - name: maj@5
    filter:
      - {function: regex, regex_pattern: "is (\\\\d+)"}
      - {function: majority_vote}
      - {function: take_first}
  - name: maj@3
    filter:
      - {function: take_first_k, k: 3}
      - {function: regex, regex_pattern: "is (\\\\d+)"}
      - {function: majority_vote}
      - {function: take_first}
"""
PAIRS = TEXT.replace(
    "metric_list:", "process_results: !function pairs_code.judge\nmetric_list:"
) + (
    "  - {metric: pairs, aggregation: !function pairs_code.ratio, higher_is_better: true}\n"
    "  - {metric: found, aggregation: mean, higher_is_better: true}\n"
)
PAIRS_CODE = """
def judge(doc, results):
    found = doc["answer"] in results[0]
    return {"pairs": (found, len(results[0])), "found": found, "extra": len(results[0])}
def ratio(items):
    return sum(f for f, _ in items) / sum(n for _, n in items)
"""


@pytest.mark.parametrize(
    ("name", "yaml", "code", "metric"),
    [
        ("documents", DOCUMENTS, "", "log_likelihood_per_byte"),
        ("counted", COUNTED, COUNTED_CODE, "log_likelihood_per_byte"),
        ("choices", CHOICES + F1 + MCC + BRIER + ACC, "", "acc"),
        ("wholes", CHOICES + F1 + MCC, "", "acc"),
        ("written", TEXT + BLEU + EXACT, "", "exact_match"),
        ("votes", VOTES, "", "exact_match"),
        ("pairs", PAIRS, PAIRS_CODE, "found"),
    ],
)
def test_scores_are_the_harness_own(tmp_path, name, yaml, code, metric):
    rows = ROWS[1:] if name == "documents" else ROWS
    include = write_task(tmp_path, name, yaml, rows, code)
    expected = oracle(include, name)
    task = load_task(config(tmp_path, name))
    judged = task.judge([answer(q) for q in task.queries()])
    assert task.metric == metric
    assert judged.scores == pytest.approx(scores_of(expected["results"][name]), rel=1e-12)
    assert judged.size == expected["results"][name]["sample_len"] == len(rows)
    samples = expected["samples"][name]
    for sample in samples:
        row = judged.predictions[sample["doc_id"]]
        if sample["filter"] == task.filter and metric in sample:
            assert row.score == pytest.approx(float(sample[metric]))
    assert judged.predictions == task.predictions([answer(q) for q in task.queries()])


def test_an_error_is_not_in_the_scores(tmp_path):
    write_task(tmp_path, "choices", CHOICES + ACC + F1, ROWS)
    task = load_task(config(tmp_path, "choices"))
    answers = [answer(q) for q in task.queries()]
    right = sum(p.score for p in task.predictions(answers)[1:])
    judged = task.judge([Answer(answers[0].id, (), error="too long"), *answers[1:]])
    assert judged.scores["acc,none"] == pytest.approx(right / 11) and judged.size == 11
    assert judged.predictions[0].error == "too long" and judged.predictions[0].score is None
    nothing = task.judge([Answer(a.id, (), error="too long") for a in answers])
    assert (nothing.scores, nothing.size) == ({}, 0)


def test_documents(tmp_path):
    write_task(tmp_path, "documents", DOCUMENTS, ROWS)
    task = load_task(config(tmp_path, "documents"))
    queries = task.queries()
    assert [r.kind for q in queries for r in q.requests] == ["loglikelihood_rolling"] * 12
    assert queries[3].requests[0].context == "né né né "
    empty, *rows = task.judge([answer(q) for q in queries]).predictions
    assert "the document is empty" in empty.error and empty.score is None
    assert (rows[2].question, rows[2].gold, rows[2].prediction) == ("né né né ", "", "")
    assert rows[2].metrics == {"log_likelihood_per_byte": rows[2].score} and rows[2].score < 0
    sizes = [len(row.question.encode()) for row in rows]
    nats = sum(row.score * size for row, size in zip(rows, sizes, strict=True)) / sum(sizes)
    scores = task.judge([answer(q) for q in queries]).scores
    assert scores["bits_per_byte,none"] == pytest.approx(-nats / math.log(2))
    lost = Answer("0", (Output(loglikelihood=float("nan")),))
    assert task.judge([lost, *[answer(q) for q in queries[1:]]]).size == 11
    assert not task.has_training
    with pytest.raises(UserError, match="measures whole documents, which have no prompt"):
        task.training_examples()
    with pytest.raises(UserError, match="judged by log_likelihood_per_byte"):
        load_task(config(tmp_path, "documents", metric="bits_per_byte"))


def test_votes_ask_as_often_as_the_task_wants(tmp_path):
    write_task(tmp_path, "votes", VOTES, ROWS)
    task = load_task(config(tmp_path, "votes", filter="maj@5"))
    query = task.queries()[4]
    assert len(query.requests) == 5 and len(set(query.requests)) == 1
    texts = ["The answer is 8.", "The answer is 7.", "no", "The answer is 7.", "is 8"]
    answers = [Answer(q.id, tuple(Output(text=t) for t in texts)) for q in task.queries()]
    row = task.predictions(answers)[4]  # 8 came first, and twice as did 7
    assert (row.gold, row.prediction, row.score) == ("7", "8", 0.0)
    first = load_task(config(tmp_path, "votes")).predictions(answers)[5]
    assert (first.prediction, first.score) == ("8", 1.0)
    with pytest.raises(ValueError, match="4 outputs for 5 requests"):
        task.predictions([Answer(a.id, a.outputs[:4]) for a in answers])


def test_repeated_choices_are_judged_by_the_first(tmp_path):
    include = write_task(tmp_path, "choices", CHOICES + ACC + "repeats: 2\n", ROWS)
    task = load_task(config(tmp_path, "choices"))
    queries = task.queries()
    assert [r.continuation for r in queries[0].requests] == [" yes", " yes", " no", " no"]
    judged = task.judge([answer(q) for q in queries])
    assert judged.scores == scores_of(oracle(include, "choices")["results"]["choices"])
    for row in judged.predictions:
        assert len(row.loglikelihoods) == 2 and (row.prediction == row.gold) == bool(row.score)


def test_whole_data_set_metrics_only(tmp_path):
    """F1 says nothing about one example: then right is who chooses the gold answer."""
    write_task(tmp_path, "wholes", CHOICES + F1, ROWS)
    task = load_task(config(tmp_path, "wholes"))
    rows = task.predictions([answer(q) for q in task.queries()])
    assert {row.score for row in rows} == {0.0, 1.0}
    assert all(row.score == (row.prediction == row.gold) == row.metrics["acc"] for row in rows)
    write_task(tmp_path, "several", CHOICES.replace("label", '"{{[1, 0]}}"') + F1, ROWS)
    task = load_task(config(tmp_path, "several", metric="acc"))
    rows = task.predictions([answer(q) for q in task.queries()])
    assert {row.score for row in rows} == {1.0}  # both choices are right
    write_task(tmp_path, "bleu", TEXT + BLEU, ROWS)
    with pytest.raises(UserError, match=r"judged by none of its metrics \(bleu say nothing"):
        load_task(config(tmp_path, "bleu"))
    write_task(tmp_path, "pairs", PAIRS, ROWS, PAIRS_CODE)
    with pytest.raises(UserError, match=r"'pairs' is only an aggregate: .* judged by found"):
        load_task(config(tmp_path, "pairs", metric="pairs"))


def test_metrics_that_fail(tmp_path):
    write_task(tmp_path, "pairs", PAIRS, ROWS, PAIRS_CODE.replace("in results[0]\n", "in 1\n"))
    task = load_task(config(tmp_path, "pairs", metric="found"))
    with pytest.raises(UserError, match="example '0': the task's own metrics fail: TypeError"):
        task.predictions([answer(q) for q in task.queries()])
    # What fails on a made-up answer is found out with a real one.
    code = PAIRS_CODE.replace("    found", "    results[0][0]\n    found")
    write_task(tmp_path, "pairs", PAIRS, ROWS, code)
    task = load_task(config(tmp_path, "pairs"))
    with pytest.raises(UserError, match=r"no number for 'pairs' of one.*usable are found, extra"):
        task.predictions([answer(q) for q in task.queries()])
    # The mean of pairs is none, and the harness ends there: ours has the other scores.
    write_task(tmp_path, "likely", CHOICES + LIKELIHOOD + ACC, ROWS)
    task = load_task(config(tmp_path, "likely"))
    assert list(task.judge([answer(q) for q in task.queries()]).scores) == ["acc,none"]
    code = PAIRS_CODE.replace("    return sum", "    import no_such_package\n    return sum")
    write_task(tmp_path, "pairs", PAIRS, ROWS, code)
    task = load_task(config(tmp_path, "pairs"))
    with pytest.raises(UserError, match=r"metric 'pairs' needs a Python package.*no_such_package"):
        task.judge([answer(q) for q in task.queries()])


PYTHON = """
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task

class Mixed(Task):
    VERSION = 3
    OUTPUT_TYPE = "generate_until"
    def __init__(self):
        super().__init__(config={"num_fewshot": 0})
    def download(self, *args):
        self.rows = [{"q": f"Is {i} even?", "answer": "a b" if i % 2 else "no"} for i in range(8)]
    def has_training_docs(self): return False
    def has_validation_docs(self): return True
    def has_test_docs(self): return False
    def validation_docs(self): return self.rows
    def doc_to_text(self, doc): return doc["q"]
    def doc_to_target(self, doc): return " " + doc["answer"]
    def construct_requests(self, doc, ctx, apply_chat_template=False, chat_template=None, **kw):
        return [
            Instance(request_type="generate_until", doc=doc, arguments=(ctx, {"until": ["x"]}),
                     idx=0, **kw),
            Instance(request_type="loglikelihood", doc=doc, arguments=(ctx, " no"), idx=0, **kw),
        ]
    def process_results(self, doc, results):
        text, (no, _) = results
        return {"pair": (text, no), "right": doc["answer"] in text or no > -9}
    def aggregation(self): return {"pair": lambda pairs: len(pairs[0][0]), "right": mean}
    def higher_is_better(self): return {"pair": True, "right": True}
"""


def test_a_task_in_python(tmp_path):
    from muscle.tasks import Prompting

    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "mixed.yaml").write_text("task: mixed\nclass: !function code.Mixed\n")
    (tmp_path / "yaml" / "code.py").write_text(PYTHON)
    task = load_task(config(tmp_path, "mixed"))
    queries = task.queries()
    assert [r.kind for r in queries[0].requests] == ["generate_until", "loglikelihood"]
    judged = task.judge([answer(q) for q in queries])
    expected = oracle(str(tmp_path / "yaml"), "mixed")
    assert judged.scores == scores_of(expected["results"]["mixed"])
    assert (task.metric, task.version, judged.predictions[1].gold) == ("right", "3", " a b")
    assert {row.score for row in judged.predictions} == {0.0, 1.0}
    with pytest.raises(UserError, match="takes neither a chat template nor a system instruction"):
        task.queries(prompting=Prompting(system_instruction="Be brief."))


SHUFFLED = (
    CHOICES.replace('["yes", "no"]', "options")
    + ACC
    + ("process_docs: !function shuffled_code.process\n")
)
SHUFFLED_CODE = """
import random, numpy
def process(dataset):
    def one(doc):
        options = ["yes", "no", "both"]
        random.shuffle(options)
        return {"options": options, "label": options.index("yes"), "n": numpy.random.rand()}
    return dataset.map(one, load_from_cache_file=False)
"""


def test_tasks_that_shuffle_have_the_same_rows_each_time(tmp_path):
    """GPQA draws the order of its choices whenever its documents are read."""
    write_task(tmp_path, "shuffled", SHUFFLED, ROWS, SHUFFLED_CODE)
    state = random.getstate()
    task, again = (load_task(config(tmp_path, "shuffled")) for _ in range(2))
    assert task.queries() == again.queries()
    assert task.evaluation_fingerprint() == again.evaluation_fingerprint()
    assert random.getstate() == state  # ours is not touched
    rows = task.predictions([answer(q) for q in task.queries()])
    assert len({row.choices for row in rows}) > 2 and {row.gold for row in rows} == {"yes"}
    assert all((row.prediction == "yes") == bool(row.score) for row in rows)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        (TEXT + EXACT + "unsafe_code: true\n", "runs code that the model wrote: refused"),
        (TEXT + EXACT + "doc_to_image: q\n", "needs images or sound: that is not supported"),
        (TEXT + EXACT + "doc_to_audio: q\n", "needs images or sound: that is not supported"),
    ],
)
def test_refused_kinds(tmp_path, yaml, message):
    write_task(tmp_path, "refused", yaml, ROWS)
    with pytest.raises(UserError, match=f"task 'refused' {message}"):
        load_task(config(tmp_path, "refused"))
