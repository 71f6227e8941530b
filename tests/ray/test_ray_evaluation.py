"""Ray Data gives what one engine in this process gives, whoever dies on the way."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from muscle.alone import Alone
from muscle.config import AdapterConfig, ResourcesConfig, VersionConfig
from muscle.errors import UserError
from muscle.evaluation.job import BaseJob, EvaluateJob
from muscle.models.adapters import new_adapter, save_adapter
from muscle.models.load import load_base
from muscle.tables import read_answers, write_queries
from muscle.training.job import Progress
from muscle.types import Answer, Query, Request

pytestmark = pytest.mark.slow


def silent(progress: Progress) -> None:
    pass


@pytest.fixture(scope="module")
def job(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> EvaluateJob:
    """600 questions, some generated, to three versions on two bases."""
    root = tmp_path_factory.mktemp("evaluation")
    adapters = {}
    for seed, (label, base) in enumerate((("old", "old"), ("new", "new"), ("compat", "new"))):
        model = load_base(tiny_models[base], dtype="float32", device="cpu")
        model = new_adapter(model, AdapterConfig(r=4, alpha=8), seed, label)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.5)
        adapters[label] = str(root / label)
        save_adapter(model, label, adapters[label], "f")
    generation = json.dumps({"until": ["\n"], "max_gen_toks": 4, "do_sample": False})
    queries = []
    for i in range(600):
        context = f"question {i}: what colour is the sky? {'x ' * (i % 9)}answer:"
        requests = [Request("loglikelihood", context, f" {c}") for c in ("blue", "seven")]
        if i % 20 == 0:
            requests = [Request("generate_until", context, generation=generation)]
        queries.append(Query(f"q{i}", tuple(requests)))
    write_queries(root / "queries.parquet", queries)
    return EvaluateJob(
        queries=str(root / "queries.parquet"),
        bases=(
            BaseJob(VersionConfig(model=tiny_models["old"]), {"old": adapters["old"]}),
            BaseJob(
                VersionConfig(model=tiny_models["new"]),
                {"new": adapters["new"], "compat": adapters["compat"]},
            ),
        ),
        outputs={label: str(root / f"{label}.parquet") for label in adapters},
        dtype="float32",
        max_length=None,
        scoring_tokens=2048,
    )


def into(job: EvaluateJob, folder: Path) -> EvaluateJob:
    outputs = {label: str(folder / f"{label}.parquet") for label in job.outputs}
    return dataclasses.replace(job, outputs=outputs)


@pytest.fixture(scope="module")
def alone(job: EvaluateJob) -> dict[str, list[Answer]]:
    Alone("cpu").evaluate(job, silent)
    return {label: read_answers(path) for label, path in job.outputs.items()}


def assert_same(job: EvaluateJob, expected: dict[str, list[Answer]]) -> None:
    for label, answers in expected.items():
        got = read_answers(job.outputs[label])
        assert [a.id for a in got] == [a.id for a in answers]
        for a, b in zip(got, answers, strict=True):
            assert a.error == b.error
            for x, y in zip(a.outputs, b.outputs, strict=True):
                assert x.text == y.text and x.is_greedy == y.is_greedy
                if y.loglikelihood is not None:
                    assert x.loglikelihood == pytest.approx(y.loglikelihood, rel=1e-5)


@pytest.mark.parametrize("actors", [1, 2])
def test_any_number_of_actors_gives_the_same_answers(
    actors: int,
    job: EvaluateJob,
    alone: dict[str, list[Answer]],
    tmp_path: Path,
    ray_local: None,
) -> None:
    from muscle.launch.evaluation import evaluate

    seen: list[Progress] = []
    here = into(job, tmp_path)
    evaluate(here, ResourcesConfig(min_actors=actors, max_actors=actors), seen.append)
    assert_same(here, alone)
    assert seen[-1].done == seen[-1].total == 1800


def test_a_killed_actor_changes_nothing(
    job: EvaluateJob,
    alone: dict[str, list[Answer]],
    tmp_path: Path,
    ray_local: None,
    kill_worker: Callable[[str], bool],
) -> None:
    from muscle.launch.evaluation import evaluate

    killed = threading.Event()
    started = threading.Event()

    def kill_one() -> None:
        started.wait(120)
        if kill_worker("MapWorker"):
            killed.set()

    killer = threading.Thread(target=kill_one)
    killer.start()
    here = into(job, tmp_path)
    evaluate(here, ResourcesConfig(), lambda p: started.set() if p.done else None)
    killer.join()
    assert killed.is_set()
    assert_same(here, alone)


def test_a_scorer_that_cannot_start_says_why(
    job: EvaluateJob, tmp_path: Path, ray_local: None
) -> None:
    from muscle.launch.evaluation import evaluate

    bases = (BaseJob(VersionConfig(model=str(tmp_path / "nowhere")), {"old": "adapter"}),)
    broken = dataclasses.replace(job, bases=bases, outputs={"old": str(tmp_path / "old.parquet")})
    began = time.monotonic()
    with pytest.raises(UserError, match="nowhere"):
        evaluate(broken, ResourcesConfig(), silent)
    assert time.monotonic() - began < 300  # it ends: no endless restarts
    assert not (tmp_path / "old.parquet").exists()
