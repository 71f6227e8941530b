"""On two nodes training and scoring really spread, to the result of one process."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from heads import head
from safetensors.torch import load_file

from muscle.alone import Alone
from muscle.config import VersionConfig
from muscle.evaluation.job import Ask, BaseJob, EvaluateJob, QuerySet
from muscle.evaluation.units import collect
from muscle.tables import write_queries
from muscle.training.job import TrainJob
from muscle.training.loop import train_alone
from muscle.types import Answer, Query, Request

pytestmark = [pytest.mark.slow, pytest.mark.long]

WORK = str(Path(__file__).parent / "work.py")

# A node holds one training worker, or one actor of each of two bases.
TWO_NODES = {"workers": 2, "cpus_per_worker": 2, "min_actors": 2, "max_actors": 2}


def questions(
    folder: Path, tiny_models: Mapping[str, str], trained: Mapping[str, str], output: Path
) -> EvaluateJob:
    """160 questions in ten units to the old and the new version."""
    queries = []
    for i in range(160):
        context = f"question {i}: what colour is the sky? {'x ' * (i % 9)}answer:"
        requests = (Request("loglikelihood", context, f" {c}") for c in ("blue", "seven"))
        queries.append(Query(f"q{i}", tuple(requests)))
    file = folder / "queries.parquet"
    if not file.exists():
        write_queries(file, queries, group_rows=16)

    def base(version: str) -> BaseJob:
        asks = (Ask(version, str(output / version)),)
        return BaseJob(
            VersionConfig(model=tiny_models[version]),
            {version: trained[version]},
            (QuerySet(str(file), asks),),
        )

    return EvaluateJob((base("old"), base("new")), "float32", None, 2048)


def answers(job: EvaluateJob) -> dict[str, list[Answer]]:
    return {ask.version: collect(queries, ask) for queries, ask in job.asks()}


def test_work_spreads_over_two_nodes_to_the_result_of_one(
    make_job: Callable[..., TrainJob],
    tiny_models: dict[str, str],
    trained: dict[str, str],
    tmp_path: Path,
) -> None:
    alone, spread = make_job(tmp_path / "alone"), make_job(tmp_path / "spread")
    train_alone(alone, lambda progress: None, "cpu")
    one = questions(tmp_path, tiny_models, trained, tmp_path / "one")
    two = questions(tmp_path, tiny_models, trained, tmp_path / "two")
    Alone().evaluate(one, lambda progress: None)
    jobs = tmp_path / "jobs"
    jobs.write_bytes(pickle.dumps([spread, two]))
    with head(tmp_path / "head", dashboard=False, labels={"muscle-role": "head"}) as cluster:
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        work = subprocess.run(
            [sys.executable, WORK, "jobs", str(jobs), cluster.address, json.dumps(TWO_NODES)],
            env=cluster.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
    assert work.returncode == 0, work.stdout + work.stderr
    found: dict[str, list[str]] = json.loads(work.stdout.splitlines()[-1])
    for actor in ("RayTrainWorker", "(Scorer)"):
        (nodes,) = [nodes for name, nodes in found.items() if actor in name]
        assert len(nodes) == 2, found
    assert answers(two) == answers(one)
    got, expected = (
        load_file(Path(job.output) / "adapter_model.safetensors") for job in (spread, alone)
    )
    assert got.keys() == expected.keys()
    difference = sum(float((got[n] - expected[n]).norm() ** 2) for n in got) ** 0.5
    size = sum(float(tensor.norm() ** 2) for tensor in expected.values()) ** 0.5
    assert difference < 1e-4 * size
