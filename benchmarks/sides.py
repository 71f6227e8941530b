"""One side of a benchmark in a process of its own: `python sides.py SPEC.json`.

Reads a spec, does one action, writes JSON to `spec["out"]`. Its own process, so that the
peak memory is this side's alone. Actions: `prepare` (questions and a random model), `sweep`
(the peer's batch sizes on a slice), `run` (one timed run of a side).
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cases import evenly, harness_queries, synthetic_queries, token_counts

from muscle.types import Query, Request

Ask = Callable[[list[Query]], list[Any]]
"""Questions in, one entry for each request out: (log-likelihood, is_greedy), or a text."""


def prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """Write the questions, and the random model if one is asked for."""
    parameters = None
    if spec["shape"]:
        from models import save_random_llama

        parameters = save_random_llama(
            Path(spec["model"]), spec["shape"], spec["dtype"], spec["device"], spec["synthetic"]
        )
    if spec["synthetic"]:
        queries = synthetic_queries(spec["case"], spec["limit"] or 500, spec["new_tokens"])
    else:
        queries = harness_queries(spec["case"], spec["limit"], spec["new_tokens"])
    rows = [
        {
            "id": query.id,
            "requests": [[r.kind, r.context, r.continuation, r.generation] for r in query.requests],
        }
        for query in queries
    ]
    Path(spec["questions"]).write_text(json.dumps(rows), encoding="utf-8")
    counts = token_counts(spec["model"], queries)
    return {"rows": len(queries), "parameters": parameters, **counts}


def read_questions(path: str) -> list[Query]:
    """The questions that `prepare` has written."""
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    return [
        Query(row["id"], tuple(Request(*request) for request in row["requests"])) for row in rows
    ]


# -- the sides: each loads its model and gives back how to ask it


def muscle_side(spec: dict[str, Any]) -> Ask:
    """Our engine at its own batch budget, unless one is given."""
    from muscle.evaluation import Engine

    engine = Engine(
        spec["model"],
        None,
        {"base": None},
        spec["dtype"],
        spec["batch_tokens"],
        device=spec["device"],
        threads=spec["threads"],
    )

    def ask(queries: list[Query]) -> list[Any]:
        answers = engine.answer("base", queries)
        errors = [f"row {a.id}: {a.error}" for a in answers if a.error is not None]
        if errors:
            raise RuntimeError(errors[0])
        return [
            o.text if o.text is not None else (o.loglikelihood, o.is_greedy)
            for a in answers
            for o in a.outputs
        ]

    return ask


def hflm_side(spec: dict[str, Any], set_size: list[Callable[[int], None]]) -> Ask:
    """HFLM, called with the harness's instances as its evaluator calls it."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(spec["threads"])
    lm = HFLM(
        pretrained=spec["model"],
        dtype=spec["dtype"],
        device=spec["device"],
        batch_size=spec["batch_size"],
        logits_cache=spec["logits_cache"],
    )
    set_size.append(lambda size: setattr(lm, "batch_size_per_gpu", size))

    def ask(queries: list[Query]) -> list[Any]:
        instances = [
            Instance(request_type=kind, doc={}, arguments=arguments, idx=i)
            for i, (kind, arguments) in enumerate(map(_arguments, _requests(queries)))
        ]
        return getattr(lm, instances[0].request_type)(instances)

    return ask


def restated_side(spec: dict[str, Any], set_size: list[Callable[[int], None]]) -> Ask:
    """HFLM's loop restated, where lm_eval is not installed."""
    import torch
    from restated import RestatedHFLM

    torch.set_num_threads(spec["threads"])
    lm = RestatedHFLM(spec["model"], spec["dtype"], spec["device"], spec["batch_size"])
    set_size.append(lambda size: setattr(lm, "batch_size", size))

    def ask(queries: list[Query]) -> list[Any]:
        requests = _requests(queries)
        if requests[0].kind == "generate_until":
            return lm.generate_until([(r.context, r.generation) for r in requests])
        return lm.loglikelihood([(r.context, r.continuation) for r in requests])

    return ask


def _requests(queries: list[Query]) -> list[Request]:
    return [request for query in queries for request in query.requests]


def _arguments(request: Request) -> tuple[str, tuple[str, Any]]:
    if request.kind == "generate_until":
        return request.kind, (request.context, json.loads(request.generation))
    return request.kind, (request.context, request.continuation)


# -- actions


def load(spec: dict[str, Any], set_size: list[Callable[[int], None]]) -> Ask:
    """The side that the spec names."""
    if spec["side"] == "muscle":
        return muscle_side(spec)
    return (hflm_side if spec["side"] == "HFLM" else restated_side)(spec, set_size)


def sweep(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the peer on the slice at each batch size; null where memory did not do."""
    import torch

    set_size: list[Callable[[int], None]] = []
    ask = load(spec, set_size)
    queries = read_questions(spec["questions"])
    part = evenly(queries, spec["slice"])
    ask(evenly(part, spec["warm_up"]))
    seconds: dict[str, float | None] = {}
    for size in spec["sizes"]:
        set_size[0](size)
        start = time.perf_counter()
        try:
            ask(part)
        except torch.cuda.OutOfMemoryError:
            seconds[str(size)] = None
            torch.cuda.empty_cache()
            continue
        seconds[str(size)] = time.perf_counter() - start
    return {"rows": len(part), "seconds": seconds}


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Load, warm up, then all questions against the clock."""
    import torch

    start = time.perf_counter()
    ask = load(spec, [])
    loaded = time.perf_counter() - start
    queries = read_questions(spec["questions"])
    ask(evenly(queries, spec["warm_up"]))
    before = resident_mib()
    if spec["device"] == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    answers = ask(queries)  # as numbers and texts: the device has finished
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {
        "seconds": seconds,
        "load_seconds": loaded,
        "peak_rss_mib": peak_rss_mib(),
        "rss_before_mib": before,
        "threads": torch.get_num_threads(),
        "answers": answers,
    }
    if spec["device"] == "cuda":
        found["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def peak_rss_mib() -> float:
    """The most memory this program has held.

    Linux's VmHWM: getrusage's ru_maxrss would go on from the process that started it.
    """
    value = _status("VmHWM")
    return value if value is not None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mib() -> float | None:
    """The memory held now."""
    return _status("VmRSS")


def _status(field: str) -> float | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None


def main() -> None:
    """Do the action of the spec."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    result = {"prepare": prepare, "sweep": sweep, "run": run}[spec["action"]](spec)
    Path(spec["out"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
