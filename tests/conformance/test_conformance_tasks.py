"""Judged answers against lm_eval's own evaluation of the same rows with HFLM."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oracle import BUDGETS, assert_same, make_engine, make_hflm

from muscle.config import DataFiles, TaskConfig
from muscle.evaluation import Engine
from muscle.tasks import load_task
from muscle.types import Answer, Query

EngineOf = Callable[[str, int | None], Engine]

WORDS = [
    "jumps",
    "sleeps",
    "turns",
    "closes",
    "meets you",
    "lid",
    "naïve",
    " and",
    "in the sun",
    "!",
]

# Choices of unequal lengths, so that acc and acc_norm choose differently; some with a space
# of their own, some one a prefix of another.
ROWS = [
    {
        "id": f"row{i}",
        "text": f"The {animal} no. {i}",
        "endings": [w := WORDS[i % 10], WORDS[(i + 3) % 10], WORDS[(i + 7) % 10], f"{w} the dog"],
        "label": i % 4,
    }
    for i, animal in enumerate(["fox", "dog", "lazy dog", "café"] * 5)
]
PIQA = [
    {"goal": f"To open jar {i}", "sol1": "turn the lid" + "!" * i, "sol2": "hit it " * (i % 3 + 1),
     "label": i % 2} for i in range(12)
]  # fmt: skip
HELLASWAG = [
    {"ind": None, "activity_label": "Cooking", "ctx_a": f"A man has {i} eggs.", "ctx_b": "he",
     "ctx": "", "endings": ["eats [step] them.", "sings  loudly", "flies.", "cooks all of them."],
     "label": str(i % 4)} for i in range(8)
]  # fmt: skip
GSM8K = [
    {"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"}
    for i in range(12)
]

OWN_YAML = """
task: animals
output_type: multiple_choice
dataset_path: json
test_split: test
doc_to_text: "{{text}} then"
doc_to_choice: "{{endings}}"
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def evaluated(
    hflm: Any, include: Path, spec: dict[str, Any], shots: int | None, cache: Path
) -> list[dict[str, Any]]:
    """lm_eval's samples, in the order of the rows; nothing of ours takes part."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    kwargs = {"cache_dir": str(cache), **spec.pop("dataset_kwargs")}
    task = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": kwargs, **spec}
    found = simple_evaluate(
        model=hflm,
        tasks=[{"group": "oracle", "task": [task]}],
        task_manager=TaskManager(include_path=str(include), include_defaults=False),
        num_fewshot=shots,
        bootstrap_iters=0,
    )
    return sorted(found["samples"][spec["task"]], key=lambda sample: sample["doc_id"])


def stock(name: str) -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent / name


def check_choices(config: TaskConfig, samples: list[dict[str, Any]], engine: Engine) -> set[str]:
    """Compare each row; returns which of the choices were taken."""
    task = load_task(config)
    queries = task.queries()
    arguments = [sample["arguments"] for sample in samples]
    assert [[(r.context, r.continuation) for r in q.requests] for q in queries] == [
        [tuple(pair.values()) if isinstance(pair, dict) else tuple(pair) for pair in _list(rows)]
        for rows in arguments
    ]
    answers = engine.answer("base", queries)
    theirs = [score for s in samples for score in s["filtered_resps"]]
    assert_same([(o.loglikelihood, o.is_greedy) for a in answers for o in a.outputs], theirs)
    predictions = task.predictions(answers)
    for prediction, sample in zip(predictions, samples, strict=True):
        assert prediction.metrics["acc"] == sample["acc"], prediction
        assert prediction.metrics["acc_norm"] == sample["acc_norm"], prediction
    return {str(p.prediction) for p in predictions}


def _list(arguments: Any) -> list[Any]:
    return list(arguments.values()) if isinstance(arguments, dict) else list(arguments)


@pytest.mark.parametrize(("metric", "budget"), [("acc", "one"), ("acc_norm", "auto")])
def test_own_files(
    metric: str, budget: str, tmp_path: Path, engine_of: EngineOf, hflm_of: Callable
) -> None:
    rows = write(tmp_path / "test.jsonl", ROWS)
    (tmp_path / "animals.yaml").write_text(OWN_YAML)
    spec = {"task": "animals", "dataset_kwargs": {"data_files": {"test": rows}}}
    samples = evaluated(hflm_of("Llama"), tmp_path, spec, None, tmp_path / "cache")
    config = TaskConfig(
        name="own", test=rows, prompt="{{text}} then", choices="endings", target="label",
        metric=metric,
    )  # fmt: skip
    chosen = check_choices(config, samples, engine_of("Llama", BUDGETS[budget]))
    assert len(chosen) > 1
    assert [s["acc"] for s in samples] != [s["acc_norm"] for s in samples]


@pytest.mark.parametrize(("name", "rows"), [("piqa", PIQA), ("hellaswag", HELLASWAG)])
@pytest.mark.parametrize("model", ["Llama", "Gemma2"])
def test_stock_choices(
    name: str, rows: list, model: str, tmp_path: Path, engine_of: EngineOf, hflm_of: Callable
) -> None:
    files = {split: write(tmp_path / f"{split}.jsonl", rows) for split in ("train", "validation")}
    spec = {"task": name, "dataset_kwargs": {"data_files": files}}
    samples = evaluated(hflm_of(model), stock(name), spec, 0, tmp_path / "cache")
    config = TaskConfig(name=name, data_files=DataFiles(**files), num_fewshot=0)
    check_choices(config, samples, engine_of(model, None))


# -- few shots: drawn by a generator that goes on from row to row, so built once for all


@pytest.fixture
def gsm8k(tmp_path: Path) -> dict[str, str]:
    return {split: write(tmp_path / f"{split}.jsonl", GSM8K) for split in ("train", "test")}


def few_shot(files: dict[str, str]) -> TaskConfig:
    return TaskConfig(name="gsm8k", data_files=DataFiles(**files), num_fewshot=2, max_gen_toks=8)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose window holds the shots."""
    from tiny import save_model

    return save_model(tmp_path_factory.mktemp("wide"), window=512)


def test_few_shot_texts(gsm8k: dict[str, str], wide: str, tmp_path: Path) -> None:
    generation = {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False,
                  "temperature": 0.0, "max_gen_toks": 8}  # fmt: skip
    spec = {
        "task": "gsm8k", "dataset_kwargs": {"data_files": gsm8k}, "generation_kwargs": generation,
    }  # fmt: skip
    samples = evaluated(make_hflm(wide), stock("gsm8k"), spec, 2, tmp_path / "cache")
    samples = [s for s in samples if s["filter"] == "strict-match"]
    queries = load_task(few_shot(gsm8k)).queries()
    assert len({q.requests[0].context for q in queries}) == len(GSM8K)
    answers = make_engine(wide).answer("base", queries)
    assert [a.outputs[0].text for a in answers] == [s["resps"][0][0] for s in samples]


def test_few_shot_prompts_do_not_depend_on_shards(gsm8k: dict[str, str]) -> None:
    """Asking again, or for fewer rows, gives the rows of the whole; so shards of it agree."""
    task = load_task(few_shot(gsm8k))
    whole = task.queries()
    assert task.queries(limit=5) == whole[:5]
    assert load_task(few_shot(gsm8k)).queries() == whole
    assert all(q.requests[0].context.count("Question:") == 3 for q in whole)


def by_id(answers: list[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda answer: answer.id)


@pytest.mark.parametrize("shards", [2, 3, 12])
def test_shards_and_order_change_no_text(gsm8k: dict[str, str], wide: str, shards: int) -> None:
    queries, engine = load_task(few_shot(gsm8k)).queries(), make_engine(wide)
    whole = by_id(engine.answer("base", queries))
    shuffled = list(queries)
    random.Random(shards).shuffle(shuffled)
    parts: list[list[Query]] = [shuffled[n::shards] for n in range(shards)]
    assert by_id([a for part in parts for a in engine.answer("base", part)]) == whole


@pytest.mark.parametrize("shards", [2, 3, 20])
def test_shards_and_order_change_no_choice(
    shards: int, tmp_path: Path, engine_of: EngineOf
) -> None:
    rows = write(tmp_path / "test.jsonl", ROWS)
    config = TaskConfig(
        name="own", test=rows, prompt="{{text}} then", choices="endings", target="label"
    )
    task, engine = load_task(config), engine_of("Mistral", None)
    queries = task.queries()
    whole = task.predictions(engine.answer("base", queries))
    shuffled = list(queries)
    random.Random(shards).shuffle(shuffled)
    answers = [a for n in range(shards) for a in engine.answer("base", shuffled[n::shards])]
    again = task.predictions(answers)
    assert [(p.id, p.prediction, p.metrics) for p in again] == [
        (p.id, p.prediction, p.metrics) for p in whole
    ]
