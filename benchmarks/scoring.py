"""How fast the engine answers a task's questions, against lm-evaluation-harness's HFLM.

    MUSCLE_DATA=DATA MUSCLE_MODELS=MODELS python benchmarks/scoring.py piqa --model v2

The same requests, model, dtype and threads for both; each run in a process of its own, the
sides in turns; HFLM at its best batch size. Prints a table, writes benchmarks/results/.
See benchmarks/README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import record
from agreement import agreement
from record import say

HERE = Path(__file__).resolve().parent
SIZES = {"cpu": [1, 4, 8, 16, 32, 64], "cuda": [1, 8, 32, 64, 128, 256]}


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("case", choices=["piqa", "hellaswag", "gsm8k_cot"])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="a directory, or a name under MUSCLE_MODELS")
    which.add_argument(
        "--random-llama", "--shape", dest="shape", type=str.lower, choices=["tiny", "100m", "7b"],
        help="random weights of that size instead, 32,000 words, window 2,048",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, help="rows, at equal steps; default the case's own")
    parser.add_argument("--new-tokens", type=int, default=64, help="of generation")
    parser.add_argument("--repeat", type=int, default=3, help="timed runs of each side")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch-tokens", type=int, help="our budget; default the engine's own")
    parser.add_argument("--sizes", type=int, nargs="+", help="HFLM's batch sizes to try")
    parser.add_argument("--sweep-rows", type=int, default=64, help="rows they are tried on")
    parser.add_argument("--warm-up", type=int, default=8, help="rows before the clock starts")
    parser.add_argument("--no-logits-cache", action="store_true", help="HFLM without its cache")
    parser.add_argument("--synthetic", action="store_true", help="random words, no data needed")
    parser.add_argument("--restated", action="store_true", help="HFLM's loop restated as the peer")
    parser.add_argument("--name", help="of the result file; default from case, model, dtype")
    args = parser.parse_args(argv)
    if args.synthetic and not args.shape:
        parser.error("--synthetic questions need --random-llama, whose tokenizer knows their words")
    for variable, needed in (
        ("MUSCLE_DATA", not args.synthetic),
        ("MUSCLE_MODELS", not args.synthetic and (args.shape or not Path(args.model).is_dir())),
    ):
        if needed and variable not in os.environ:
            parser.error(f"{variable} is not set: the folder of the local data or models")
    return args


def settings(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What both sides are told."""
    if args.shape:
        model = str(folder / "model")
    else:
        path = Path(args.model)
        model = str(path if path.is_dir() else Path(os.environ["MUSCLE_MODELS"]) / args.model)
    limit = args.limit
    if limit is None and not args.synthetic:
        limit = {"piqa": None, "hellaswag": 2000, "gsm8k_cot": 64}[args.case]
    return {
        "case": args.case,
        "model": model,
        "shape": args.shape,
        "synthetic": args.synthetic,
        "limit": limit,
        "new_tokens": args.new_tokens,
        "dtype": args.dtype,
        "device": args.device,
        "threads": args.threads,
        "batch_tokens": args.batch_tokens,
        "batch_size": 1,
        "logits_cache": not args.no_logits_cache,
        "warm_up": args.warm_up,
        "questions": str(folder / "questions.json"),
    }


def call(folder: Path, spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """One action of sides.py in its own process."""
    spec = {**spec, **changes, "out": str(folder / "out.json")}
    (folder / "spec.json").write_text(json.dumps(spec))
    threads = str(spec["threads"])
    env = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "RAYON_NUM_THREADS": threads,  # the tokenizers'
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    words = [sys.executable, str(HERE / "sides.py"), str(folder / "spec.json")]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{spec['action']} ({spec.get('side', '')}) failed:\n{done.stderr[-4000:]}")
    return json.loads((folder / "out.json").read_text())


def swept(
    args: argparse.Namespace, folder: Path, spec: dict[str, Any], peer: str
) -> dict[str, Any]:
    """The peer's seconds by batch size on a slice, and the best size."""
    sizes = args.sizes or SIZES[args.device]
    if len(sizes) == 1:
        return {"rows": 0, "seconds": {}, "best": sizes[0]}
    found = call(folder, spec, action="sweep", side=peer, sizes=sizes, slice=args.sweep_rows)
    known = {int(size): s for size, s in found["seconds"].items() if s is not None}
    return {**found, "best": min(known, key=known.__getitem__)}


def repeated(
    args: argparse.Namespace, folder: Path, spec: dict[str, Any], sides: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """All timed runs of each side; who begins changes with each repeat."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(args.repeat):
        for side in sides if number % 2 == 0 else sides[::-1]:
            runs[side].append(call(folder, spec, action="run", side=side))
            say(f"  {number + 1}/{args.repeat} {side}: {runs[side][-1]['seconds']:.2f} s")
    return runs


def summary(runs: list[dict[str, Any]], work: dict[str, Any]) -> dict[str, Any]:
    """One side's numbers."""
    fields = ["seconds", "load_seconds", "peak_rss_mib", "rss_before_mib", "peak_gpu_mib"]
    found: dict[str, Any] = {
        field: record.spread([run[field] for run in runs]) for field in fields if field in runs[0]
    }
    seconds = found["seconds"]["median"]
    found["rows_per_second"] = work["rows"] / seconds
    found["input_tokens_per_second"] = work["tokens"] / seconds
    return found


def benchmark(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything of one case."""
    spec = settings(args, folder)
    load_before = record.load_average()
    work = call(folder, spec, action="prepare")
    say(f"{args.case}: {work['rows']} rows, {work['sequences']} sequences, {work['tokens']} tokens")
    peer = "HFLM's loop restated" if args.restated or not find_spec("lm_eval") else "HFLM"
    sweep = swept(args, folder, spec, peer)
    say(f"{peer}: batch size {sweep['best']} of {sweep['seconds']}")
    runs = repeated(args, folder, {**spec, "batch_size": sweep["best"]}, ["muscle", peer])
    questions = json.loads(Path(spec["questions"]).read_text())
    agreed = agreement(
        questions, runs["muscle"][0]["answers"], runs[peer][0]["answers"], args.dtype
    )
    ours, theirs = summary(runs["muscle"], work), summary(runs[peer], work)
    ratios = {
        "speed": theirs["seconds"]["median"] / ours["seconds"]["median"],
        # The least favourable and the most favourable pairing of the repeats.
        "speed_range": [
            theirs["seconds"]["min"] / ours["seconds"]["max"],
            theirs["seconds"]["max"] / ours["seconds"]["min"],
        ],
        "peak_rss": theirs["peak_rss_mib"]["median"] / ours["peak_rss_mib"]["median"],
        "tokens": work["tokens"] / work["tokens_of_prefix_tree"],
    }
    if "peak_gpu_mib" in ours:
        ratios["peak_gpu"] = theirs["peak_gpu_mib"]["median"] / ours["peak_gpu_mib"]["median"]
    return {
        "case": args.case,
        "model": {"name": args.shape or Path(spec["model"]).name, "random": bool(args.shape),
                  "parameters": work.pop("parameters")},
        "synthetic": args.synthetic,
        "device": args.device,
        "dtype": args.dtype,
        "threads": args.threads,
        "repeats": args.repeat,
        "load_average_before": load_before,
        "work": work,
        "peer": {"name": peer, "batch_size": sweep["best"], "sweep": sweep,
                 "logits_cache": spec["logits_cache"]},
        "batch_tokens": args.batch_tokens,
        "ratios": ratios,
        "muscle": ours,
        "theirs": theirs,
        "agreement": agreed,
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """The table."""
    peer, ratios = result["peer"], result["ratios"]
    rows: list[tuple[str, ...]] = [
        ("", "muscle", f"{peer['name']}, batch {peer['batch_size']}", "ratio")
    ]
    for title, field, ratio in (
        ("seconds", "seconds", ratios["speed"]),
        ("rows per second", "rows_per_second", ratios["speed"]),
        ("model load, seconds", "load_seconds", None),
        ("peak memory, MiB", "peak_rss_mib", ratios["peak_rss"]),
        ("before the work, MiB", "rss_before_mib", None),
        ("peak GPU memory, MiB", "peak_gpu_mib", ratios.get("peak_gpu")),
    ):
        if field in result["muscle"]:
            cells = [cell(result[side][field]) for side in ("muscle", "theirs")]
            rows.append((title, *cells, f"{ratio:.2f}x" if ratio else ""))
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        say("\n".join("  ".join(f"{c:<26}" for c in row) for row in rows))
    else:
        table = Table(*rows[0], title=f"{result['case']}, {result['model']['name']}")
        for row in rows[1:]:
            table.add_row(*row)
        Console(width=100).print(table)
    say(f"agreement: {json.dumps(result['agreement'])}")


def cell(value: Any) -> str:
    """A number, or median (least to most)."""
    if isinstance(value, dict):
        return f"{value['median']:.2f} ({value['min']:.2f} to {value['max']:.2f})"
    return f"{value:.2f}"


def main() -> None:
    """Run one case and record it."""
    args = parsed()
    with tempfile.TemporaryDirectory() as folder:
        result = benchmark(args, Path(folder))
    show(result)
    name = args.name or "-".join(
        [args.case, result["model"]["name"], args.device, args.dtype]
        + (["synthetic"] if args.synthetic else [])
    )
    path = record.write_result(name, result)
    say(f"recorded in {path.relative_to(record.ROOT)}")


if __name__ == "__main__":
    main()
