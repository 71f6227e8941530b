"""How long a comparison takes and what memory it needs, from Parquet to report.json.

    python benchmarks/compare.py                      # 1,000,000 right or wrong, 100,000 graded
    python benchmarks/compare.py --cases graded --rows 20000 --threads 1

Random predictions of a seeded generator, in files of our schema; no data, no network. Each
measurement is a process of its own, start-up and imports included: `report` goes from the
files to report.json, `command` is the whole `muscle compare` with page and tables. The
bootstrap alone is held against scipy's at a size that scipy can do.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import record

CASES: dict[str, dict[str, Any]] = {
    "right-or-wrong": {"rows": 1_000_000, "versions": 2, "graded": False},
    "right-or-wrong-compat": {"rows": 1_000_000, "versions": 3, "graded": False},
    "graded": {"rows": 100_000, "versions": 2, "graded": True},
}
VERSIONS = ("old", "new", "compat")
ACCURACY = {"old": 0.62, "new": 0.66, "compat": 0.67}
SCIPY_ROWS = 2_000
COMMAND = "from muscle.cli import main; main()"
SECONDS, GIB = 60.0, 2.0  # what a comparison may take


def generate(spec: dict[str, Any]) -> dict[str, Any]:
    """Write one version's predictions, 50,000 at a time."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from muscle.tables import PREDICTION_SCHEMA

    rows, version, graded = spec["rows"], spec["version"], spec["graded"]
    rng = np.random.default_rng([7, VERSIONS.index(version)])
    shared = np.random.default_rng(3)  # the examples themselves are the same in all versions
    order = rng.permutation(rows)
    hard, subject = shared.normal(size=rows), shared.integers(0, 40, rows)
    length = shared.integers(60, 160, rows)
    alphabet = np.frombuffer(b"etaoin shrdlu cmfwyp vbgkqjxz" * 9, dtype=np.uint8)
    words = bytes(shared.choice(alphabet, 1 << 22)).decode()
    with pq.ParquetWriter(spec["path"], PREDICTION_SCHEMA, compression="zstd") as writer:
        for start in range(0, rows, 50_000):
            some = order[start : start + 50_000]
            count = len(some)
            value = hard[some] + rng.normal(size=count)
            limit = float(np.sqrt(2) * _quantile(ACCURACY[version]))
            if graded:
                score = np.round(1 / (1 + np.exp(-value)), 6)
                chosen, logs = np.zeros(count, dtype=np.int64), None
            else:
                score = (value < limit).astype(np.float64)
                chosen = np.where(score == 1, 0, 1 + rng.integers(0, 3, count))
                logs = -40 - rng.exponential(8, (count, 4))
                logs[np.arange(count), chosen] = -40 + rng.exponential(3, count)
            at = [int(i) * 4 for i in some]
            questions = [words[a : a + 100 + int(n)] for a, n in zip(at, length[some], strict=True)]
            texts = [[f"{words[a : a + 20]} {k}" for k in range(4)] for a in at]
            answers = [t[c] for t, c in zip(texts, chosen, strict=True)]
            columns = {
                "task": ["made-up"] * count,
                "id": [f"{i:07d}" for i in some],
                "question": questions,
                "gold": [t[0] for t in texts],
                "prediction": [f"{a} said" for a in answers] if graded else answers,
                "metric": ["rouge1" if graded else "acc"] * count,
                "score": score,
                "metrics": [[("rouge1" if graded else "acc", s)] for s in score],
                "choices": None if graded else texts,
                "loglikelihoods": None if graded else logs.tolist(),
                "error": None,
                "response": answers if graded else None,
                "truncated": None,
                "document": [f"{i * 2654435761 % 2**64:016x}" for i in some.tolist()],
                "fields": [[("subject", f"s{s}"), ("length", str(n))] for s, n in
                           zip(subject[some], length[some], strict=True)],
            }  # fmt: skip
            arrays = [
                pa.nulls(count, field.type)
                if columns[field.name] is None
                else pa.array(columns[field.name], field.type)
                for field in PREDICTION_SCHEMA
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=PREDICTION_SCHEMA))
    return {"bytes": Path(spec["path"]).stat().st_size}


def _quantile(share: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(share)


def report(spec: dict[str, Any]) -> dict[str, Any]:
    """From the files to report.json, with the seconds of each part."""
    from muscle.inputs.opening import open_sides
    from muscle.metrics.pairing import join_sides
    from muscle.report.build import report_of
    from muscle.storage import write_json

    marks = [time.perf_counter()]
    sides = {version: open_sides(path) for version, path in spec["paths"].items()}
    marks.append(time.perf_counter())
    tasks = join_sides({0: sides})
    marks.append(time.perf_counter())
    made = report_of(tasks, {"benchmark": True})
    marks.append(time.perf_counter())
    write_json(spec["output"], made)
    task = made["tasks"]["made-up"]
    return {
        "n": task["n"],
        "nfr": task["pairs"]["old->new"]["nfr"],
        "nfr_ci95": task["pairs"]["old->new"]["ci95"]["nfr"],
        "open": marks[1] - marks[0],
        "join": marks[2] - marks[1],
        "count": marks[3] - marks[2],
    }


def against_scipy(spec: dict[str, Any]) -> dict[str, Any]:
    """One interval by both: the mean change of a graded score, 10,000 draws."""
    import numpy as np
    from scipy.stats import bootstrap

    from muscle.metrics.intervals import DRAWS, bootstrap_sums, percentile_interval

    rng = np.random.default_rng(11)
    change = rng.normal(0.02, 0.3, spec["rows"])
    times: dict[str, list[float]] = {"ours": [], "scipy": []}
    for _ in range(spec["turns"]):
        start = time.perf_counter()
        sums = bootstrap_sums([change])
        ours = percentile_interval(sums[:, 0] / len(change))
        times["ours"].append(time.perf_counter() - start)
        start = time.perf_counter()
        theirs = bootstrap(
            (change,), np.mean, n_resamples=DRAWS, method="percentile", rng=1, batch=500
        ).confidence_interval
        times["scipy"].append(time.perf_counter() - start)
    assert ours is not None
    width = theirs.high - theirs.low
    return {
        "rows": spec["rows"],
        "seconds": {side: record.spread(values) for side, values in times.items()},
        "ratio": record.spread([b / a for a, b in zip(times["ours"], times["scipy"], strict=True)]),
        "ours": list(ours),
        "scipy": [float(theirs.low), float(theirs.high)],
        "largest_difference_of_ends_in_widths": max(
            abs(ours.low - theirs.low), abs(ours.high - theirs.high)
        )
        / width,
    }


ACTIONS = {"generate": generate, "report": report, "scipy": against_scipy}


def child(words: list[str], threads: int) -> dict[str, float]:
    """Run a process; its wall-clock seconds and peak resident set."""
    root = str(Path(__file__).resolve().parent.parent)
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    start = time.perf_counter()
    process = subprocess.Popen(words, env={**os.environ, **limits, "PYTHONPATH": root})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {process.returncode}")
    kib = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    processor = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "processor_seconds": processor, "peak_gib": kib / 2**20}


def act(action: str, spec: dict[str, Any], folder: Path, threads: int) -> dict[str, Any]:
    """One action in a process of its own."""
    spec_file, result = folder / "spec.json", folder / "result.json"
    spec_file.write_text(json.dumps({**spec, "action": action, "result": str(result)}))
    taken = child([sys.executable, __file__, "--spec", str(spec_file)], threads)
    return {**taken, **json.loads(result.read_text())}


def measure(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One case: its files, then report and command, in turns."""
    case = {**CASES[name], **({"rows": args.rows} if args.rows else {})}
    versions = VERSIONS[: case["versions"]]
    paths = {version: str(folder / f"{name}-{version}.parquet") for version in versions}
    written = {}
    for version, path in paths.items():
        spec = {**case, "version": version, "path": path}
        written[version] = act("generate", spec, folder, args.threads)["bytes"]
    record.say(f"{name}: {case['rows']:,} rows, {sum(written.values()) / 2**20:.0f} MiB of files")
    turns: dict[str, list[dict[str, Any]]] = {"report": [], "command": []}
    for _ in range(args.turns):
        spec = {"paths": paths, "output": str(folder / "report.json")}
        turns["report"].append(act("report", spec, folder, args.threads))
        if not args.no_command:
            output = folder / f"{name}-out"
            words = [sys.executable, "-c", COMMAND, "compare", *paths.values()]
            turns["command"].append(child([*words, "--output", str(output)], args.threads))
        for what, taken in turns.items():
            if taken:
                last = taken[-1]
                record.say(f"  {what}: {last['seconds']:.1f} s, {last['peak_gib']:.2f} GiB")
    return {"case": case, "bytes": written, "turns": turns, "met": _met(turns["report"])}


def _met(turns: list[dict[str, Any]]) -> bool:
    return all(t["seconds"] <= SECONDS and t["peak_gib"] <= GIB for t in turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--rows", type=int, help="rows of every case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--no-command", action="store_true", help="only as far as report.json")
    parser.add_argument("--name", default="compare", help="of the result file")
    parser.add_argument("--spec", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.spec:
        spec = json.loads(Path(args.spec).read_text())
        Path(spec["result"]).write_text(json.dumps(ACTIONS[spec["action"]](spec)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found = {name: measure(name, args, folder) for name in args.cases}
        spec = {"rows": SCIPY_ROWS, "turns": args.turns}
        scipy = act("scipy", spec, folder, args.threads)
    record.say(
        f"scipy.stats.bootstrap takes {scipy['ratio']['median']:.1f} times as long at "
        f"{SCIPY_ROWS:,} rows; the ends differ by "
        f"{100 * scipy['largest_difference_of_ends_in_widths']:.1f} % of the width"
    )
    result = {
        "threads": args.threads,
        "load_average": record.load_average(),
        "limits": {"seconds": SECONDS, "peak_gib": GIB},
        "cases": found,
        "scipy": scipy,
    }
    record.say(f"wrote {record.write_result(args.name, result)}")


if __name__ == "__main__":
    main()
