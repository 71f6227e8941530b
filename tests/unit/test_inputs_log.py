"""The harness's sample logs as sides; the files in data/harness are its command's own output."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muscle.errors import UserError
from muscle.inputs import Asked, open_sides
from muscle.side import Side

DATA = Path(__file__).parent / "data" / "harness"
CHOICE, GENERATION, TWO_FILTERS = "testbed_choice", "testbed_arithmetic", "testbed_work"


def log_of(task: str, version: str) -> Path:
    """The one log of a task."""
    (path,) = DATA.glob(f"*-{version}/*/samples_{task}_*.jsonl")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def column(side: Side, name: str) -> list[Any]:
    found = side.read(name)
    assert found is not None and len(found) == side.n
    return list(found.to_pylist())


def one(path: str | Path, **asked: Any) -> Side:
    (side,) = open_sides(str(path), Asked(**asked)).values()
    return side


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(doc_id: int = 0, **more: Any) -> dict[str, Any]:
    """A made-up line: two choices, the first of which is chosen and right."""
    return {
        "doc_id": doc_id,
        "doc": {"q": f"thing {doc_id}", "label": 0},
        "target": "0",
        "arguments": {
            f"gen_args_{i}": {"arg_0": f"Q {doc_id}:", "arg_1": f" {text}"}
            for i, text in enumerate(("red", "blue"))
        },
        "resps": [[["-1.0", "False"]], [["-2.0", "False"]]],
        "filtered_resps": [["-1.0", "False"], ["-2.0", "False"]],
        "filter": "none",
        "metrics": ["acc", "acc_norm"],
        "acc": 1.0,
        "acc_norm": 1.0,
    } | more


def generated(doc_id: int = 0, **more: Any) -> dict[str, Any]:
    return (
        row(doc_id)
        | {
            "target": "four",
            "arguments": {"gen_args_0": {"arg_0": "2 + 2 is", "arg_1": {"until": ["\n"]}}},
            "resps": [[" four."]],
            "filtered_resps": ["four"],
            "metrics": ["exact_match"],
            "exact_match": 1.0,
        }
        | more
    )


# --- what the harness wrote -------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_choices(version: str) -> None:
    rows = rows_of(log_of(CHOICE, version))
    side = open_sides(str(DATA / f"testbed-{version}"))[CHOICE]
    assert (side.task, side.metric, side.n) == (CHOICE, "acc", 40)
    assert column(side, "score") == [r["acc"] for r in rows]
    assert column(side, "id") == [r["doc"]["id"] for r in rows]
    assert column(side, "gold") == [r["doc"]["choices"][r["doc"]["gold"]] for r in rows]
    assert column(side, "choices") == [r["doc"]["choices"] for r in rows]
    assert column(side, "loglikelihoods") == [
        [float(pair[0][0]) for pair in r["resps"]] for r in rows
    ]
    assert column(side, "question") == [f"Question: {r['doc']['question']}\nAnswer:" for r in rows]
    for said, gold, score in zip(
        column(side, "prediction"), column(side, "gold"), column(side, "score"), strict=True
    ):
        assert (said == gold) == (score == 1.0)
    assert column(side, "metrics")[0] == [(m, rows[0][m]) for m in ("acc", "acc_norm")]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_generation(version: str) -> None:
    rows = rows_of(log_of(GENERATION, version))
    side = open_sides(str(DATA / f"testbed-{version}"))[GENERATION]
    assert side.metric == "exact_match"
    assert column(side, "prediction") == [r["filtered_resps"][0] for r in rows]
    assert column(side, "response") == [r["resps"][0][0] for r in rows]
    assert column(side, "prediction") != column(side, "response")
    assert column(side, "gold") == [r["doc"]["answer"] for r in rows]
    assert set(column(side, "choices")) == {None} and side.read("loglikelihoods") is None


def test_what_is_known_of_a_log() -> None:
    sides = open_sides(str(DATA / "testbed-v1"))
    about = dict(sides[CHOICE].about)
    files = [Path(file["path"]).name for file in about.pop("files")]
    assert [name.split("_")[0] for name in files] == ["samples", "results"]
    assert about == {
        "task_version": "1.0",
        "filter": "none",
        "num_fewshot": 0,
        "dtype": "float32",
        "backend": "lm-evaluation-harness (hf)",
        "max_length": 256,
        "limit": 40,
        "chat_template": None,
        "system_instruction": None,
        "fewshot_as_multiturn": False,
        "model": "models/v1",
        "groups": ["testbed_both"],
        "software": {"lm_eval": "0.4.13", "transformers": "5.23.0", "torch": "2.13.0+cpu"},
    }
    # A log alone says less, and nothing that it doesn't know.
    bare = one(log_of(CHOICE, "v1"))
    assert bare.about["task_version"] == "1.0"  # its results file lies beside it


def test_a_log_without_its_results_file(tmp_path: Path) -> None:
    source = log_of(CHOICE, "v1")
    shutil.copy(source, tmp_path / source.name)
    side = one(tmp_path / source.name)
    assert side.task == CHOICE
    assert {"task_version", "dtype", "num_fewshot", "chat_template"}.isdisjoint(side.about)
    assert column(side, "choices") == column(one(source), "choices")  # the delimiter is a blank
    shutil.copy(source, tmp_path / "old.jsonl")
    renamed = one(tmp_path / "old.jsonl", unnamed="mine")
    assert renamed.task == "mine" and column(renamed, "score") == column(side, "score")


def test_filters() -> None:
    rows = rows_of(log_of(TWO_FILTERS, "v1"))
    first = one(DATA / "work-v1")
    assert first.about["filter"] == "strict-match" and first.n == 12
    (note,) = first.about["notes"]
    assert "'strict-match', the first" in note and "flexible-extract" in note
    other = one(DATA / "work-v1", filter="flexible-extract")
    assert other.about["filter"] == "flexible-extract" and "notes" not in other.about
    assert column(other, "prediction") == [
        r["filtered_resps"][0] for r in rows if r["filter"] == "flexible-extract"
    ]
    assert column(other, "prediction") != column(first, "prediction")
    with pytest.raises(UserError, match=r"--filter best: .* has only strict-match, flexible-extr"):
        one(DATA / "work-v1", filter="best")


def test_another_metric_decides_with_its_own_choice() -> None:
    rows = rows_of(log_of(CHOICE, "v1"))
    side = one(log_of(CHOICE, "v1"), metric="acc_norm")
    assert side.metric == "acc_norm"
    assert column(side, "score") == [r["acc_norm"] for r in rows] != [r["acc"] for r in rows]
    expected = []
    for r in rows:
        per_letter = [
            float(pair[0][0]) / len(text)
            for pair, text in zip(r["resps"], r["doc"]["choices"], strict=True)
        ]
        expected.append(r["doc"]["choices"][per_letter.index(max(per_letter))])
    assert column(side, "prediction") == expected


def test_the_same_documents_in_both_logs() -> None:
    one_side, other = (open_sides(str(DATA / f"testbed-{v}"))[CHOICE] for v in ("v1", "v2"))
    assert column(one_side, "document") == column(other, "document")
    assert len(set(column(one_side, "document"))) == 40


def test_only_wanted_tasks() -> None:
    assert list(open_sides(str(DATA / "testbed-v1"), Asked(tasks=(GENERATION,)))) == [GENERATION]
    with pytest.raises(UserError, match=r"--task piqa: .* has no such task, only testbed_"):
        open_sides(str(DATA / "testbed-v1"), Asked(tasks=("piqa",)))


def test_of_several_logs_of_a_task_the_newest(tmp_path: Path) -> None:
    times = ["2025-01-02T03-04-05.678", "2026-01-02T03-04-05", "2024-12-31T23-59-59.999"]
    for score, time in enumerate(times):
        written(tmp_path / f"samples_t_{time}.jsonl", [row(acc=float(score == 1))])
    (tmp_path / "samples_t_2020-01-01T00-00-00.jsonl").write_text('{"doc_')  # not even opened
    side = one(tmp_path)
    assert column(side, "score") == [1.0]
    (note,) = side.about["notes"]
    assert "3 earlier logs" in note and times[1] in note


def test_logs_of_several_models(tmp_path: Path) -> None:
    shutil.copytree(DATA / "testbed-v1", tmp_path / "out")
    shutil.copytree(DATA / "testbed-v2", tmp_path / "out", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"2 models: give one of .*models__v1, .*models__v2"):
        open_sides(str(tmp_path / "out"))
    assert CHOICE in open_sides(str(tmp_path / "out" / "models__v2"))


def test_packed_logs(tmp_path: Path) -> None:
    import gzip

    source = log_of(CHOICE, "v1")
    (tmp_path / f"{source.name}.gz").write_bytes(gzip.compress(source.read_bytes()))
    assert column(one(tmp_path), "score") == column(one(source), "score")


# --- what other tasks leave -------------------------------------------------------------------


def read_one(tmp_path: Path, *rows: dict[str, Any], **asked: Any) -> Side:
    return one(written(tmp_path / "log.jsonl", list(rows)), **asked)


def test_ids_are_the_tasks_own_where_there_are_such(tmp_path: Path) -> None:
    """As `muscle evaluate` names them: so its predictions can be compared with a log."""
    own = [row(i, doc={"id": 10 + i}) for i in range(3)]
    assert column(read_one(tmp_path, *own), "id") == ["10", "11", "12"]
    double = [row(i, doc={"id": 7}) for i in range(3)]
    assert column(read_one(tmp_path, *double), "id") == ["0", "1", "2"]
    some = [row(0, doc={"id": 7}), row(1, doc={})]
    assert column(read_one(tmp_path, *some), "id") == ["0", "1"]


@pytest.mark.parametrize(
    ("target", "choices", "best", "acc", "gold"),
    [
        ("1", ["red", "blue"], 1, 1.0, "blue"),
        ("blue", ["red", "blue"], 1, 1.0, "blue"),
        ("[1, 0]", ["red", "blue"], 1, 1.0, "blue"),
        ("1", ["2", "1"], 1, 1.0, "1"),  # an index and a text: the same choice
        ("1", ["1", "2"], 1, 1.0, "2"),  # an index, whatever a model answered
        ("1", ["1", "2"], 0, 0.0, "2"),
        ("2", ["1", "2"], 1, 1.0, "2"),  # no index: there are but 0 and 1
    ],
)
def test_the_right_answer(
    tmp_path: Path, target: str, choices: list[str], best: int, acc: float, gold: str
) -> None:
    answers = [[str(-1.0 - (i != best)), "False"] for i in range(2)]
    made = row(target=target, acc=acc, filtered_resps=answers, resps=[[a] for a in answers])
    for i, text in enumerate(choices):
        made["arguments"][f"gen_args_{i}"]["arg_1"] = f" {text}"
    side = read_one(tmp_path, made)
    assert column(side, "gold") == [gold] and column(side, "prediction") == [choices[best]]


def test_the_right_answer_is_the_same_whatever_was_answered(tmp_path: Path) -> None:
    """One target that is no index makes all of them texts, in the logs of both versions."""
    golds = []
    for best in (0, 1):
        made = [row(i, target=str(i + 1), acc=float(best == i)) for i in range(2)]
        for one in made:
            answers = [[str(-1.0 - (i != best)), "False"] for i in range(2)]
            one |= {"filtered_resps": answers, "resps": [[a] for a in answers]}
            for i, text in enumerate(("1", "2")):
                one["arguments"][f"gen_args_{i}"]["arg_1"] = f" {text}"
        golds.append(column(read_one(tmp_path, *made), "gold"))
    assert golds == [["1", "2"]] * 2


def test_choices_before_one_ending(tmp_path: Path) -> None:
    """Winogrande puts the choices into the context."""
    made = row(target=" was heavy.")
    made["arguments"] = {
        f"gen_args_{i}": {"arg_0": f"It did not fit, for the {x}", "arg_1": " was heavy."}
        for i, x in enumerate(("case", "trophy"))
    }
    side = read_one(tmp_path, made)
    assert column(side, "choices") == [[f"It did not fit, for the {x}" for x in ("case", "trophy")]]
    assert column(side, "question") == ["It did not fit, for the _ was heavy."]
    assert column(side, "gold") == [" was heavy."]


def test_unconditional_scores_are_no_choices(tmp_path: Path) -> None:
    pairs = [["-2.0", "False"], ["-3.0", "False"], ["-1.0", "False"], ["-4.0", "False"]]
    made = row(filtered_resps=pairs, resps=[[p] for p in pairs], acc_mutual_info=0.0)
    made["metrics"].append("acc_mutual_info")
    for i, text in enumerate(("red", "blue")):
        made["arguments"][f"gen_args_{i + 2}"] = {"arg_0": "", "arg_1": f" {text}"}
    side = read_one(tmp_path, made)
    assert column(side, "choices") == [["red", "blue"]]
    assert column(side, "loglikelihoods") == [[-2.0, -3.0]]
    assert column(side, "prediction") == ["red"]
    # -2 - -1 < -3 - -4
    assert column(read_one(tmp_path, made, metric="acc_mutual_info"), "prediction") == ["blue"]


def test_one_given_text(tmp_path: Path) -> None:
    """LAMBADA: perplexity comes first, but is better when lower."""
    made = [
        row(i, target="door", resps=[[["-1", greedy]]], filtered_resps=[["-1", greedy]])
        | {"metrics": ["perplexity", "acc"], "perplexity": -1.0, "acc": float(greedy == "True")}
        | {"arguments": {"gen_args_0": {"arg_0": "He shut the", "arg_1": " door"}}}
        for i, greedy in enumerate(("True", "False"))
    ]
    side = read_one(tmp_path, *made)
    assert side.metric == "acc" and column(side, "score") == [1.0, 0.0]
    assert column(side, "prediction") == ["door", ""] and column(side, "gold") == ["door"] * 2
    with pytest.raises(UserError, match=r"--metric perplexity is better when lower: .* by acc"):
        read_one(tmp_path, *made, metric="perplexity")


def test_several_answers(tmp_path: Path) -> None:
    made = generated(resps=[[" four.", " five."]], filtered_resps=[["four"]])
    side = read_one(tmp_path, made)
    assert column(side, "prediction") == ["four"]
    assert json.loads(column(side, "response")[0]) == [" four.", " five."]


def test_metrics_that_are_no_numbers(tmp_path: Path) -> None:
    made = [generated(i, metrics=["f1", "exact_match"], f1=[1, 0]) for i in range(2)]
    assert read_one(tmp_path, *made).metric == "exact_match"
    with pytest.raises(UserError, match="--metric f1 is not a number for every example"):
        read_one(tmp_path, *made, metric="f1")
    with pytest.raises(UserError, match=r"--metric acc: not in the log: .* by exact_match"):
        read_one(tmp_path, *made, metric="acc")
    document = [generated(metrics=["word_perplexity"], word_perplexity=[-9.0, 3])]
    with pytest.raises(UserError, match=r"none of its metrics \(word_perplexity\) is a number"):
        read_one(tmp_path, *document)
    lower = [generated(metrics=["ter"], ter=12.0)]
    with pytest.raises(UserError, match="better when lower: ter"):
        read_one(tmp_path, *lower)


def test_unscored_examples(tmp_path: Path) -> None:
    nan = float("nan")
    side = read_one(tmp_path, generated(0, exact_match=nan), generated(1))
    assert column(side, "score") == [None, 1.0]
    assert column(side, "error") == ["exact_match is not a number for this example", None]
    # The harness takes NaN for the largest log-likelihood.
    pairs = [["-1.0", "False"], ["nan", "False"]]
    side = read_one(tmp_path, row(filtered_resps=pairs, resps=[[p] for p in pairs]), row(1))
    assert column(side, "score") == [None, 1.0]
    assert column(side, "error") == ["a log-likelihood is not a number", None]
    with pytest.raises(UserError, match="the score is inf"):
        read_one(tmp_path, generated(exact_match=float("inf")))


def test_fields_are_short_values_of_the_document(tmp_path: Path) -> None:
    docs = [{"subject": "law", "n": i, "text": "x" * 90, "list": [1], "ok": True} for i in (1, 2)]
    docs[1] |= {"late": "yes"}
    side = read_one(tmp_path, *(row(i, doc=doc) for i, doc in enumerate(docs)))
    first, second = (dict(fields) for fields in column(side, "fields"))
    assert first == {"subject": "law", "n": "1", "ok": "True"}
    assert second == {**first, "n": "2", "late": "yes"}


def test_long_logs_come_in_chunks(tmp_path: Path) -> None:
    n = 9_000
    rows = [row(i, acc=float(i % 3 == 0), doc={"q": str(i), "kind": str(i % 5)}) for i in range(n)]
    rows[-1]["doc"]["late"] = "yes"
    side = read_one(tmp_path, *rows)
    assert column(side, "score") == [float(i % 3 == 0) for i in range(n)]
    assert column(side, "id") == [str(i) for i in range(n)]
    fields = column(side, "fields")
    assert fields[8_345] == [("q", "8345"), ("kind", "0")]
    assert fields[-1] == [("q", "8999"), ("kind", "4"), ("late", "yes")]
    found = side.read("id")
    assert found is not None and found.num_chunks > 1


# --- what is wrong with a file ----------------------------------------------------------------


def test_an_example_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"log\.jsonl, line 3: the id '0' .* first in .*, line 1"):
        read_one(tmp_path, row(0), row(1), row(0))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda r: r | {"arguments": []}, "line 2: no line of a sample log"),
        (lambda r: r | {"arguments": {}}, "line 2: no line of a sample log"),
        (lambda r: r | {"filtered_resps": []}, "line 2: no line of a sample log"),
        (lambda r: r | {"doc_id": None}, "line 2: 'doc_id' is empty"),
        (lambda r: {"doc_id": 3}, "line 2: no line of a sample log"),
    ],
)
def test_lines_that_are_none(
    tmp_path: Path, damage: Callable[[dict[str, Any]], dict[str, Any]], text: str
) -> None:
    with pytest.raises(UserError, match=text):
        read_one(tmp_path, row(0), damage(row(1)))


def test_a_half_written_log(tmp_path: Path) -> None:
    path = tmp_path / log_of(CHOICE, "v1").name
    data = log_of(CHOICE, "v1").read_bytes()
    path.write_bytes(data[:-200])
    with pytest.raises(UserError, match=r"line 40: the last line is cut off: the file is half-w"):
        one(path)
    for text, why in (("", "is empty"), ('{"id": 1}\n', "line 1: no line of a sample log")):
        path.write_text(text)
        with pytest.raises(UserError, match=why):
            one(tmp_path)
