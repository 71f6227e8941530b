"""What a run asks of an object store, and how fast a teacher's shards are written and read.

    python benchmarks/object_store.py

A whole update of the shipped testbed in one process (no Ray), its artifacts on a local server that
speaks S3 (`pip install "moto[server]" s3fs`) and counts what it is asked, at two sizes: the
difference is what one more shard or group costs. See benchmarks/README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import record

ROOT = Path(__file__).resolve().parent.parent
BUCKET = "muscle"
SIZES = {"small": 320, "large": 1280}
UNIT = 128  # sequences of a shard, questions of a group
EPOCHS = 2
SHARD = {"sequences": 128, "tokens": 105, "hidden": 4096}  # HellaSwag at 7B, bfloat16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="object-store")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side == "update":
        print(json.dumps(update(args.rows)))
        return
    runs = {size: in_process(rows) for size, rows in SIZES.items()}
    result = {
        "what": "requests of a testbed update in one process, its artifacts behind S3",
        "epochs": EPOCHS,
        "rows": SIZES,
        "runs": runs,
        "shards": shards(),
        "load_average_before": record.load_average(),
    }
    path = record.write_result(args.name, result)
    print(json.dumps(per_unit(runs), indent=1))
    print(path.relative_to(record.ROOT))


def in_process(rows: int) -> dict[str, Any]:
    """One size in a process of its own: nothing is known of an artifact before."""
    words = [sys.executable, __file__, "--side", "update", "--rows", str(rows)]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(run.stderr[-3000:])
    return dict(json.loads(run.stdout.splitlines()[-1]))


def update(rows: int) -> dict[str, Any]:
    """A run on `rows` examples and questions; what was asked, by step and kind."""
    from muscle.alone import Alone
    from muscle.experiment import load_experiment
    from muscle.pipeline import Pipeline
    from muscle.plan import make_plan

    demo = str(ROOT / "jobs" / "experiments" / "demo.yaml")
    changes = {
        "training.limit": rows,
        "evaluation.limit": rows,
        "training.epochs": EPOCHS,
        "resources.teachers": "cached",
        "storage": f"s3://{BUCKET}/artifacts",
    }
    experiment = load_experiment(demo, [f"{k}={v}" for k, v in changes.items()])
    with counting_server() as seen, tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(make_plan(experiment), folder, Alone("cpu"), lambda progress: None)
        pipeline.run()
        steps = {(s.kind, s.key) for s in pipeline.plan.steps()}
    found: dict[str, dict[str, int]] = {}
    for (step, kind), count in sorted(seen.requests.items()):
        found.setdefault(step, {})[kind] = count
    return {"requests": found, "bytes": dict(seen.bytes), "saves": seen.saves, "steps": len(steps)}


class Seen:
    """What the server was asked: (step, kind) -> requests, step -> bytes put."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[str] = Counter()
        self.saves = 0
        self._lock = threading.Lock()

    def add(self, environ: dict[str, Any]) -> None:
        """Count one request by S3's price classes."""
        query = environ.get("QUERY_STRING", "")
        parts = environ["PATH_INFO"].strip("/").split("/")[2:]  # after the bucket and the root
        if not parts:
            parts = query.partition("prefix=artifacts%2F")[2].partition("&")[0].split("%2F")
        step = "checkpoints" if "checkpoints" in parts else (parts[0] or "root")
        with self._lock:
            self.requests[step, kind_of(environ["REQUEST_METHOD"], query)] += 1
            if environ["REQUEST_METHOD"] == "PUT":
                self.bytes[step] += int(environ.get("CONTENT_LENGTH") or 0)
                self.saves += step == "checkpoints" and parts[-1] == "latest.json"


def kind_of(method: str, query: str) -> str:
    """The name of a request: GET with a list's parameters is a LIST, POST?delete a DELETE."""
    if method == "GET" and "list-type" in query:
        return "LIST"
    return "DELETE" if method == "POST" and "delete" in query else method


@contextmanager
def counting_server() -> Iterator[Seen]:
    """A local S3 with an empty bucket, which this process is told of by its environment."""
    import boto3
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    seen, inner = Seen(), DomainDispatcherApplication(create_backend_app)

    def counted(environ: dict[str, Any], start: Any) -> Any:
        seen.add(environ)
        return inner(environ, start)

    server = make_server("127.0.0.1", 0, counted, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    seen.requests.clear()
    try:
        yield seen
    finally:
        server.shutdown()


def per_unit(runs: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Requests by kind: of one shard, of one group of one version, of one checkpoint, and of an
    update whatever its size.

    Two teachers have ceil(0.8 rows / 128) shards each, three versions ceil(rows / 128) groups.
    """
    shards = {size: 2 * -(-int(0.8 * rows) // UNIT) for size, rows in SIZES.items()}
    groups = {size: 3 * -(-rows // UNIT) for size, rows in SIZES.items()}
    small, large = (runs[size]["requests"] for size in ("small", "large"))
    kinds = sorted({kind for counts in large.values() for kind in counts})

    def slope(steps: Sequence[str], units: dict[str, int]) -> dict[str, float]:
        more = {k: sum(large[s].get(k, 0) - small[s].get(k, 0) for s in steps) for k in kinds}
        return {k: v / (units["large"] - units["small"]) for k, v in more.items()}

    # What is deleted at once names no step: those are the parts and claims of evaluations.
    shard, group = slope(["teacher"], shards), slope(["predictions", "queries", "root"], groups)
    saves, all_saves = small["checkpoints"], runs["small"]["saves"]
    total = {k: sum(c.get(k, 0) for s, c in small.items() if s != "checkpoints") for k in kinds}
    return {
        "shard": shard,
        "group": group,
        "save": {k: saves.get(k, 0) / all_saves for k in kinds},
        "update": {
            k: total[k] - shards["small"] * shard[k] - groups["small"] * group[k] for k in kinds
        },
    }


def shards() -> dict[str, Any]:
    """Bytes per second of one thread: a shard written with its checksum, checked, read."""
    import numpy as np
    import torch
    from safetensors.torch import save

    from muscle.models.sequences import Sequences
    from muscle.teachers.cache import TeacherCache
    from muscle.teachers.job import TeacherAsk, TeacherJob
    from muscle.teachers.shards import piece, write_piece
    from muscle.teachers.staging import Content, InPlace

    rows, length, hidden = SHARD["sequences"], SHARD["tokens"], SHARD["hidden"]
    content = save({"hidden": torch.randn(rows * length, hidden).bfloat16()})
    data = Sequences([np.zeros(length + 1, dtype=np.int64)] * rows, [1] * rows)
    rates: dict[str, list[float]] = {"write": [], "check": [], "read": []}
    with tempfile.TemporaryDirectory() as folder:
        ask = TeacherAsk("t", "none", folder, {})
        job = TeacherJob((), "none", "bfloat16", 1024, "all", None)
        counts = {"sequences": rows, "tokens": rows * length, "hidden_size": hidden, "data": ""}
        for _ in range(5):
            start = time.perf_counter()
            write_piece(job, ask, 0, content, counts)
            rates["write"].append(len(content) / (time.perf_counter() - start))
            note = json.loads((Path(folder) / "000000.json").read_text())
            place = InPlace(folder, {piece(0): Content(note["sha256"], note["size"])})
            start = time.perf_counter()
            place.get(piece(0))
            rates["check"].append(len(content) / (time.perf_counter() - start))
            shard = {"file": piece(0), "tokens": rows * length}
            index = {"hidden_size": hidden, "dtype": "bfloat16", "head": {"file": ""},
                     "shards": [shard], "shard_sequences": rows}  # fmt: skip
            with TeacherCache(place, index, data) as cache:
                cache.read([0])
                order = np.random.default_rng(0).permutation(rows).tolist()
                start = time.perf_counter()
                for first in range(0, rows, 16):
                    cache.read(order[first : first + 16])
                rates["read"].append(len(content) / (time.perf_counter() - start))
    found = {f"{k}_bytes_per_second": record.spread(v) for k, v in rates.items()}
    return {**SHARD, "bytes": len(content), **found}


if __name__ == "__main__":
    main()
