"""Ray Data gives what one engine in this process gives, whoever dies on the way."""

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from muscle.alone import Alone
from muscle.config import AdapterConfig, ResourcesConfig, VersionConfig
from muscle.errors import UserError
from muscle.evaluation.job import Ask, BaseJob, EvaluateJob, QuerySet
from muscle.evaluation.units import collect
from muscle.models.adapters import new_adapter, save_adapter
from muscle.models.load import load_base
from muscle.tables import write_queries
from muscle.training.job import OnProgress, Progress
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
    write_queries(root / "queries.parquet", queries, group_rows=32)

    def base(model: str, *labels: str) -> BaseJob:
        asks = tuple(Ask(label, str(root / "answers" / label)) for label in labels)
        return BaseJob(
            VersionConfig(model=tiny_models[model]),
            {label: adapters[label] for label in labels},
            (QuerySet(str(root / "queries.parquet"), asks),),
        )

    return EvaluateJob((base("old", "old"), base("new", "new", "compat")), "float32", None, 2048)


def into(job: EvaluateJob, folder: Path) -> EvaluateJob:
    """The same job with its answers under another folder."""
    bases = []
    for base in job.bases:
        (queries,) = base.sets
        asks = tuple(Ask(ask.version, str(folder / ask.version)) for ask in queries.asks)
        bases.append(dataclasses.replace(base, sets=(QuerySet(queries.queries, asks),)))
    return dataclasses.replace(job, bases=tuple(bases))


def answers(job: EvaluateJob) -> dict[str, list[Answer]]:
    return {ask.version: collect(queries, ask) for queries, ask in job.asks()}


@pytest.fixture(scope="module")
def alone(job: EvaluateJob) -> dict[str, list[Answer]]:
    Alone("cpu").evaluate(job, silent)
    return answers(job)


def assert_same(
    job: EvaluateJob,
    expected: dict[str, list[Answer]],
    errors: frozenset[tuple[str, str]] = frozenset(),
) -> None:
    """Every row exactly once, with the same numbers, but for the (label, id)s in `errors`."""
    for label, got in answers(job).items():
        assert [a.id for a in got] == [a.id for a in expected[label]]
        for a, b in zip(got, expected[label], strict=True):
            if (label, a.id) in errors:
                assert a.error is not None and not a.outputs
                continue
            assert a.error == b.error
            for x, y in zip(a.outputs, b.outputs, strict=True):
                assert x.text == y.text and x.is_greedy == y.is_greedy
                if y.loglikelihood is not None:
                    assert x.loglikelihood == pytest.approx(y.loglikelihood, rel=1e-5)


@pytest.mark.parametrize("actors", [pytest.param(1, marks=pytest.mark.long), 4])
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
    losing_an_actor: Callable[[Callable[[OnProgress], object]], None],
) -> None:
    from muscle.launch.evaluation import evaluate

    here = into(job, tmp_path)
    losing_an_actor(lambda on_progress: evaluate(here, ResourcesConfig(), on_progress))
    assert_same(here, alone)


def test_a_stopped_evaluation_goes_on_where_it_was(
    job: EvaluateJob, alone: dict[str, list[Answer]], tmp_path: Path, ray_local: None
) -> None:
    from muscle.launch.evaluation import evaluate

    here = into(job, tmp_path)
    for version in ("old", "new", "compat"):
        shutil.copytree(
            Path(job.bases[0].sets[0].asks[0].answers).parent / version, tmp_path / version
        )
    gone = [tmp_path / "old" / "000003.parquet", tmp_path / "compat" / "000005.parquet"]
    for path in gone:
        path.unlink()
    (tmp_path / "new" / "000007.parquet").write_bytes(b"half")
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")}
    del kept[tmp_path / "new" / "000007.parquet"]
    seen: list[Progress] = []
    evaluate(here, ResourcesConfig(), seen.append)
    assert seen[0].done == 1800 - 3 * 32 and seen[-1].done == 1800
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert_same(here, alone)


class Deadly:
    """Answers like an engine, but one row ends its process and another one raises."""

    def __init__(self, engine: Any):
        self.engine = engine
        self.batch_tokens = engine.batch_tokens

    def answer(self, version: str, queries: Sequence[Query]) -> list[Answer]:
        ids = {query.id for query in queries}
        if version == "compat" and "q77" in ids:
            os._exit(1)
        if version == "old" and "q500" in ids:
            raise RuntimeError("a bug in a kernel")
        return list(self.engine.answer(version, queries))


def test_a_row_that_kills_its_worker_is_named_and_costs_no_other(
    job: EvaluateJob, alone: dict[str, list[Answer]], tmp_path: Path, ray_local: None
) -> None:
    import ray

    from muscle.launch.evaluation import Scorer, evaluate

    # Workers can't import a test module.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    class DeadlyScorer(Scorer):
        def load(self, job: EvaluateJob) -> Deadly:
            return Deadly(super().load(job))

    here = into(job, tmp_path)
    evaluate(here, ResourcesConfig(), silent, DeadlyScorer)
    assert_same(here, alone, errors=frozenset({("compat", "q77"), ("old", "q500")}))
    found = {
        label: {a.id: a.error for a in rows if a.error} for label, rows in answers(here).items()
    }
    assert found["compat"] == {"q77": "it killed its worker 2 times"}
    assert found["old"] == {"q500": "the engine failed: RuntimeError: a bug in a kernel"}
    assert found["new"] == {}


def test_a_scorer_that_cannot_start_says_why(
    job: EvaluateJob, tmp_path: Path, ray_local: None
) -> None:
    from muscle.launch.evaluation import evaluate

    nowhere = VersionConfig(model=str(tmp_path / "nowhere"))
    broken = into(dataclasses.replace(job, bases=job.bases[:1]), tmp_path)
    broken = dataclasses.replace(
        broken, bases=(dataclasses.replace(broken.bases[0], base=nowhere),)
    )
    began = time.monotonic()
    with pytest.raises(UserError, match="nowhere"):
        evaluate(broken, ResourcesConfig(), silent)
    assert time.monotonic() - began < 300  # it ends: no endless restarts
    assert not list(tmp_path.rglob("*.parquet"))
