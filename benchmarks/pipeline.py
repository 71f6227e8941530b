"""What Ray costs, and whether the driver's memory grows with the rows.

    MUSCLE_DATA=DATA MUSCLE_MODELS=MODELS python benchmarks/pipeline.py cost --model v2
    python benchmarks/pipeline.py rows
    python benchmarks/pipeline.py units --rows 4000

`cost`: the same questions through the pipeline with one actor, and through the engine called
directly, with the same threads; loading and start-up apart. `rows`: synthetic rows through the
pipeline with a scorer that does nothing, each number of rows in a process of its own. `units`:
names of units alone, which actors give back at once: what driver and Ray Data can hand out.
See benchmarks/README.md.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import record

HERE = Path(__file__).resolve()


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["cost", "rows", "units"])
    parser.add_argument("--model", help="for cost: a directory, or a name under MUSCLE_MODELS")
    parser.add_argument("--case", default="hellaswag", choices=["piqa", "hellaswag"])
    parser.add_argument("--limit", type=int, default=2000, help="for cost: questions")
    parser.add_argument("--repeat", type=int, default=3, help="for cost: runs of each side")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--name", help="of the result file")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.what == "cost" and not args.model:
        parser.error("cost needs --model")
    return args


def main() -> None:
    args = parsed()
    if args.side:
        print(json.dumps(run_side(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        result = {"cost": cost, "rows": rows, "units": units}[args.what](args, folder)
    result["load_average_before"] = record.load_average()
    path = record.write_result(args.name or f"pipeline-{args.what}", result)
    print(json.dumps(result, indent=1))
    print(path.relative_to(record.ROOT))


def cost(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Both sides in turns, each run a process of its own."""
    from cases import harness_queries

    from muscle.tables import write_queries

    queries = harness_queries(args.case, args.limit, 0)
    queries.sort(key=lambda q: sum(len(r.context) + len(r.continuation) for r in q.requests))
    write_queries(f"{folder}/queries.parquet", queries[::-1])
    sides: dict[str, list[dict[str, Any]]] = {"direct": [], "pipeline": []}
    for turn in range(args.repeat):
        for side in sorted(sides, reverse=bool(turn % 2)):
            sides[side].append(in_process(args, side, f"{folder}/{turn}-{side}", folder))
    seconds = {s: record.spread([run["seconds"] for run in runs]) for s, runs in sides.items()}
    same = {run["digest"] for runs in sides.values() for run in runs}
    return {
        "what": "the same questions through the pipeline with one actor and the engine directly",
        "case": args.case,
        "questions": len(queries),
        "threads": 1,
        "seconds": seconds,
        "startup_seconds": {s: runs[0]["startup"] for s, runs in sides.items()},
        "ratio": seconds["pipeline"]["median"] / seconds["direct"]["median"],
        "same_answers": len(same) == 1,
    }


def rows(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Each number of rows in a process of its own, whose memory is the driver's."""
    found = {}
    for count in args.rows:
        run = in_process(args, f"rows-{count}", f"{folder}/{count}", folder)
        found[str(count)] = run
    return {
        "what": "synthetic rows through the pipeline with a scorer that does nothing",
        "actors": args.actors,
        "rows": found,
    }


def units(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Each number of units in a process of its own."""
    runs = {str(n): in_process(args, f"units-{n}", f"{folder}/{n}", folder) for n in args.rows}
    what = "names of units through the pipeline; the actor gives them back at once"
    return {"what": what, "actors": args.actors, "units": runs}


def in_process(args: argparse.Namespace, side: str, answers: str, folder: str) -> dict[str, Any]:
    """One run in a process of its own; the last line that it prints is its result."""
    words = [sys.executable, str(HERE), args.what, "--side", side, "--folder", answers]
    words += ["--actors", str(args.actors)]
    if args.model:
        words += ["--model", model_path(args.model)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MUSCLE_QUERIES": folder}
    run = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if run.returncode:
        raise SystemExit(run.stderr[-3000:])
    return dict(json.loads(run.stdout.splitlines()[-1]))


def model_path(name: str) -> str:
    """A directory, or a name under MUSCLE_MODELS."""
    return name if Path(name).is_dir() else str(Path(os.environ["MUSCLE_MODELS"]) / name)


def run_side(args: argparse.Namespace) -> dict[str, Any]:
    """What a child process does."""
    if args.side.startswith("units-"):
        return run_units(int(args.side.removeprefix("units-")), args.folder, args.actors)
    if args.side.startswith("rows-"):
        return run_rows(int(args.side.removeprefix("rows-")), args.folder, args.actors)
    queries = f"{os.environ['MUSCLE_QUERIES']}/queries.parquet"
    return (run_direct if args.side == "direct" else run_pipeline)(queries, args)


def run_direct(queries: str, args: argparse.Namespace) -> dict[str, Any]:
    """The engine in this process, group by group."""
    from muscle.evaluation import Engine
    from muscle.tables import group_sizes, read_query_group

    began = time.perf_counter()
    engine = Engine(args.model, None, {"m": None}, "float32", None, threads=1)
    groups = [read_query_group(queries, i) for i in range(len(group_sizes(queries)))]
    ready = time.perf_counter()
    answers = [answer for group in groups for answer in engine.answer("m", group)]
    seconds = time.perf_counter() - ready
    return {"seconds": seconds, "startup": ready - began, "digest": digest(answers)}


def run_pipeline(queries: str, args: argparse.Namespace) -> dict[str, Any]:
    """One actor; the clock runs from when it has loaded to when the driver has everything."""
    from muscle.config import ResourcesConfig, VersionConfig
    from muscle.evaluation.job import Ask, BaseJob, EvaluateJob, QuerySet
    from muscle.evaluation.units import collect
    from muscle.launch import cluster
    from muscle.launch.evaluation import Scorer, evaluate

    class Timed(Scorer):
        def load(self, job: EvaluateJob) -> Any:
            engine = super().load(job)
            self.board.note.remote(f"ready {time.time()}")
            return engine

    ask = Ask("m", args.folder)
    asked = QuerySet(queries, (ask,))
    base = BaseJob(VersionConfig(model=args.model), {"m": None}, (asked,))
    job = EvaluateJob((base,), "float32", None, None)
    began = time.time()
    cluster.connect()
    notes = evaluate(job, ResourcesConfig(), lambda progress: None, Timed)
    ended = time.time()
    (ready,) = (float(note.split()[1]) for note in notes if note.startswith("ready "))
    result = {"seconds": ended - ready, "startup": ready - began}
    return {**result, "digest": digest(collect(asked, ask))}


def run_rows(count: int, folder: str, actors: int) -> dict[str, Any]:
    """Rows through actors that do nothing; rows per second and this process's memory."""
    from muscle.config import ResourcesConfig, VersionConfig
    from muscle.evaluation.job import Ask, BaseJob, EvaluateJob, QuerySet
    from muscle.launch import cluster
    from muscle.launch.evaluation import Scorer, evaluate
    from muscle.types import Answer, Output, Query

    class Nothing:
        batch_tokens = 1

        def answer(self, version: str, queries: Sequence[Query]) -> list[Answer]:
            return [Answer(q.id, tuple(Output(-1.0, True) for _ in q.requests)) for q in queries]

    class Trivial(Scorer):
        def load(self, job: EvaluateJob) -> Nothing:
            self.board.note.remote(f"ready {time.time()}")
            return Nothing()

    path = f"{folder}-queries.parquet"
    write_synthetic(path, count)
    base = BaseJob(VersionConfig(model="none"), {"m": None}, (QuerySet(path, (Ask("m", folder),)),))
    before = peak_mib()
    cluster.connect()
    resources = ResourcesConfig(min_actors=actors, max_actors=actors)
    job = EvaluateJob((base,), "float32", None, None)
    notes = evaluate(job, resources, lambda progress: None, Trivial)
    ended = time.time()
    ready = min(float(note.split()[1]) for note in notes if note.startswith("ready "))
    return {
        "rows_per_second": count / (ended - ready),
        "seconds": ended - ready,
        "driver_peak_mib": peak_mib(),
        "driver_peak_before_mib": before,
        "answered": answered(folder),
    }


def run_units(count: int, folder: str, actors: int) -> dict[str, Any]:
    """Units of one question each, none of them read; units per second and this process's memory."""
    import pyarrow as pa

    from muscle.config import ResourcesConfig, VersionConfig
    from muscle.evaluation.job import Ask, BaseJob, EvaluateJob, QuerySet
    from muscle.launch import cluster
    from muscle.launch.evaluation import Scorer, evaluate

    class Idle(Scorer):
        def load(self, job: EvaluateJob) -> Any:
            self.board.note.remote(f"ready {time.time()}")

        def __call__(self, batch: pa.Table) -> pa.Table:
            return batch

    path = f"{folder}-queries.parquet"
    write_synthetic(path, count, group=1)
    base = BaseJob(VersionConfig(model="none"), {"m": None}, (QuerySet(path, (Ask("m", folder),)),))
    before = peak_mib()
    cluster.connect()
    resources = ResourcesConfig(min_actors=actors, max_actors=actors, cpus_per_actor=0.1)
    job = EvaluateJob((base,), "float32", None, None)
    notes = evaluate(job, resources, lambda progress: None, Idle)
    ended = time.time()
    ready = min(float(note.split()[1]) for note in notes if note.startswith("ready "))
    seconds = ended - ready
    return {
        "units_per_second": count / seconds,
        "seconds": seconds,
        "driver_peak_mib": peak_mib(),
        "driver_peak_before_mib": before,
    }


def write_synthetic(path: str, count: int, group: int = 1000) -> None:
    """Questions of four choices, written group by group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from muscle.tables import QUERY_SCHEMA, query_to_row
    from muscle.types import Query, Request

    with pq.ParquetWriter(path, QUERY_SCHEMA, compression="zstd") as writer:
        for first in range(0, count, group):
            rows = []
            for i in range(first, min(first + group, count)):
                context = f"Question {i}: which of these words is number {i % 4}?\nAnswer:"
                requests = [Request("loglikelihood", context, f" {c}") for c in "abcd"]
                rows.append(query_to_row(Query(f"q{i}", tuple(requests))))
            writer.write_table(pa.Table.from_pylist(rows, schema=QUERY_SCHEMA))


def answered(folder: str) -> int:
    """Rows in all parts."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in Path(folder).glob("*.parquet"))


def digest(answers: Sequence[Any]) -> str:
    """One text for what was chosen, independent of the last digits."""
    import hashlib

    rows = sorted(
        (a.id, max(range(len(a.outputs)), key=lambda i: a.outputs[i].loglikelihood))
        for a in answers
    )
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def peak_mib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
