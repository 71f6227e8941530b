"""`muscle evaluate` on Ray, as a user runs it: killed, it goes on; what is wrong is one line."""

import json
from pathlib import Path

import pytest
from processes import kill_when, muscle

from muscle.alone import Alone
from muscle.evaluate import Evaluating, plan_evaluation
from muscle.experiment import build_evaluation, given_settings
from muscle.tables import read_predictions

pytestmark = pytest.mark.slow

MODELS = {"old": "v1", "new": "v2"}
TASKS = ("testbed_choice", "testbed_summary")
LIMIT = 600


def arguments(output: Path) -> list[str]:
    models = [part for n, base in MODELS.items() for part in ("--model", f"{n}=testbed:{base}")]
    tasks = ("--task", ",".join(TASKS), "--limit", str(LIMIT))
    return ["evaluate", *tasks, *models, "--output", str(output)]


def test_killed_on_the_way_it_ends_with_the_same_numbers(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    # In one process: it isn't disturbed there, and Ray is to come to the same bytes.
    settings = given_settings(TASKS, [f"{name}=testbed:{base}" for name, base in MODELS.items()])
    config = build_evaluation({**settings, "evaluation": {"limit": LIMIT}})
    Evaluating(plan_evaluation(config), str(undisturbed), Alone("cpu"), lambda _: None).run()

    def parts() -> list[Path]:
        return list(killed.glob("artifacts/predictions/*/answers/*.parquet"))

    kill_when(lambda: len(parts()) >= 2, arguments(killed))
    there = {path: path.stat().st_mtime_ns for path in parts()}
    assert there and not (killed / "evaluation.json").exists()

    def kept_then_more() -> bool:
        return len(parts()) >= len(there) + 2

    kill_when(kept_then_more, arguments(killed))
    assert {path: path.stat().st_mtime_ns for path in there} == there  # never asked again
    printed = muscle(*arguments(killed)).stdout
    for word in (*TASKS, "acc", "rouge1", "evaluation.json"):
        assert word in printed
    assert not parts()  # judged and done with
    assert (killed / "evaluation.json").read_bytes() == (
        undisturbed / "evaluation.json"
    ).read_bytes()
    for name in MODELS:
        for task in TASKS:
            a, b = (read_predictions(o / name / f"{task}.parquet") for o in (killed, undisturbed))
            assert [(r.id, r.prediction, r.score) for r in a] == [
                (r.id, r.prediction, r.score) for r in b
            ]


def test_a_group_with_chat_and_several_actors(tmp_path: Path) -> None:
    """A user's own group of tasks, from --include-path, with the harness's own group score."""
    yamls = tmp_path / "yamls"
    yamls.mkdir()
    rows = [{"q": f"{i} and {i}", "a": str(2 * i)} for i in range(20)]
    for part in ("one", "two"):
        data = tmp_path / f"{part}.jsonl"
        data.write_text(
            "".join(json.dumps(row) + "\n" for row in rows[: 20 if part == "one" else 5])
        )
        (yamls / f"{part}.yaml").write_text(
            f"task: sums_{part}\ndataset_path: json\n"
            f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
            "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}} make'\n"
            "doc_to_choice: ['0', '{{a}}', '40']\ndoc_to_target: 1\n"
            "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
        )
    (yamls / "group.yaml").write_text(
        "group: sums\ntask: [sums_one, sums_two]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    )
    output = tmp_path / "out"
    muscle(
        "evaluate", "--task", "sums", "--include-path", str(yamls), "--model", "m=testbed:v1",
        "--system-instruction", "Add up.", "--set", "resources.max_actors=2",
        "--output", str(output),
    )  # fmt: skip
    version = json.loads((output / "evaluation.json").read_text())["versions"]["m"]
    one, two = (version["tasks"][f"sums_{part}"] for part in ("one", "two"))
    assert (one["n"], two["n"]) == (20, 5)
    assert version["groups"]["sums"]["acc,none"] == pytest.approx(
        (20 * one["score"] + 5 * two["score"]) / 25
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["--task", "testbed_choise"], "did you mean testbed_choice"),
        (["--model", "x=nowhere/at/all"], "nowhere/at/all"),
        (["--model", "x=testbed:v1+testbed:v2"], "adapter"),
        (["--backend", "tgi"], "backend"),
        (["--dtype", "int3"], "dtype"),
        (["--repeat", "0"], "repeat"),
        (["--limit", "0"], "limit"),
        (["--apply-chat-template"], "no chat template"),
        (["--fewshot-as-multiturn"], "--apply-chat-template"),
        (["--set", "resources.gpus_per_actor=3"], "GPUs"),
        (["--address", "127.0.0.1:1"], "can't be reached"),
    ],
)
def test_what_is_wrong_is_one_line(changes: list[str], text: str, tmp_path: Path) -> None:
    given = ["evaluate", "--task", "testbed_choice", "--model", "old=testbed:v1"]
    output = tmp_path / "out"
    result = muscle(*given, "--limit", "4", "--output", str(output), *changes, code=2)
    lines = [line for line in result.stderr.splitlines() if line.startswith("muscle: ")]
    assert len(lines) == 1 and text in lines[0], result.stderr
    assert "Traceback" not in result.stderr
    assert not (output / "evaluation.json").exists()
