"""What a compatibility step costs: against plain LoRA, against three models, against TRL.

    python benchmarks/training.py --shape 100m-32k
    python benchmarks/training.py --shape 100m-32k --choices 2

All sides in one run, on the same tokens in the same micro-batches with the same LoRA and AdamW;
each run in a process of its own, the sides in turns. Prints a table with the targets, writes
benchmarks/results/. See benchmarks/README.md.
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
from record import say

HERE = Path(__file__).resolve().parent
SIDES = ["compat", "ce", "ce-hf", "online", "naive", "trl-gkd", "trl-chunked"]
TITLES = {
    "compat": "compatibility step, cached teachers",
    "ce": "plain LoRA, our cross-entropy",
    "ce-hf": "plain LoRA, transformers' loss",
    "online": "compatibility step, teachers in the step",
    "naive": "three models, full logits",
    "trl-gkd": "TRL GKDTrainer, one teacher",
    "trl-chunked": "TRL DistillationTrainer's loss, one teacher",
}
SHAPES = ["tiny", "100m-small-vocab", "100m-32k", "7b"]


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--shape", choices=SHAPES, help="random Llamas of that size, old and new")
    which.add_argument("--model", help="the new base: a directory, or a name under MUSCLE_MODELS")
    parser.add_argument("--old", help="the old base, with --model")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"],
                        help="default float32 on a CPU, bfloat16 on a GPU")  # fmt: skip
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tokens", type=int, help="of a micro-batch; default 1024, GPU 8192")
    parser.add_argument("--length", type=int, help="of a sequence; default 128, GPU 512")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches of an update")
    parser.add_argument("--updates", type=int, default=2, help="timed in each run")
    parser.add_argument("--warm-up", type=int, default=1, help="updates before the clock starts")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each side")
    parser.add_argument("--rank", type=int, default=128, help="of LoRA on all linear layers")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--mask", default="student-wrong")
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--wrong-share", type=float, default=0.4,
                        help="of tokens that the student gets wrong")  # fmt: skip
    parser.add_argument("--choices", type=int, metavar="K",
                        help="the answer-level step on inputs of K answers, instead")  # fmt: skip
    parser.add_argument("--answer-tokens", type=int, default=8, help="of an answer, with --choices")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--name", help="of the result file")
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args(argv)
    if (args.model is None) != (args.old is None):
        parser.error("--model and --old go together")
    if "compat" not in args.sides or "ce" not in args.sides:
        parser.error("--sides must have compat and ce, which the others are compared with")
    gpu = args.device == "cuda"
    args.dtype = args.dtype or ("bfloat16" if gpu else "float32")
    args.tokens = args.tokens or (8192 if gpu else 1024)
    args.length = args.length or (512 if gpu else 128)
    if args.tokens % args.length:
        parser.error("--tokens must be a multiple of --length")
    return args


def settings(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What all sides are told."""
    spec = {key: value for key, value in vars(args).items() if key not in ("sides", "name")}
    spec["new"] = spec.pop("model")
    for version in ("old", "new"):
        if spec[version] is not None and not Path(spec[version]).is_dir():
            spec[version] = str(Path(os.environ.get("MUSCLE_MODELS", "")) / spec[version])
    spec["old_head"] = None if args.shape else str(folder / "old.safetensors")
    return spec


def call(folder: Path, spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """One action of steps.py in its own process; {"failed": why} where memory did not do."""
    spec = {**spec, **changes, "out": str(folder / "out.json")}
    (folder / "spec.json").write_text(json.dumps(spec))
    threads = str(spec["threads"])
    env = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    words = [sys.executable, str(HERE / "steps.py"), str(folder / "spec.json")]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if "OutOfMemoryError" in done.stderr or done.returncode == -9:
        return {"failed": "out of memory"}
    if done.returncode != 0:
        sys.exit(f"{spec['action']} ({spec.get('side', '')}) failed:\n{done.stderr[-4000:]}")
    return json.loads((folder / "out.json").read_text())


def repeated(
    args: argparse.Namespace, folder: Path, spec: dict[str, Any], sides: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """All runs of each side that fits; who begins changes with each repeat."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(args.repeat):
        for side in sides if number % 2 == 0 else sides[::-1]:
            if side not in runs:
                continue
            found = call(folder, spec, action="run", side=side)
            if "failed" in found:
                say(f"  {side}: {found['failed']}")
                del runs[side]
                continue
            runs[side].append(found)
            say(
                f"  {number + 1}/{args.repeat} {side}: {found['seconds']:.3f} s "
                f"(processor {found['cpu_seconds']:.3f}), "
                f"{memory(found):.0f} MiB, loss {found['loss']:.4f}"
            )
    return runs


def memory(run: dict[str, Any]) -> float:
    """Peak MiB of one run: the GPU's, else the process's without what the libraries took."""
    if "peak_gpu_mib" in run:
        return float(run["peak_gpu_mib"])
    return float(run["peak_rss_mib"]) - float(run["rss_before_mib"] or 0.0)


def summary(runs: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """One side's numbers."""
    names = ("seconds", "cpu_seconds", "peak_rss_mib", "rss_before_mib", "peak_gpu_mib", "loss")
    fields = [name for name in names if name in runs[0]]
    found: dict[str, Any] = {f: record.spread([run[f] for run in runs]) for f in fields}
    found["memory_mib"] = record.spread([memory(run) for run in runs])
    found["tokens_per_second"] = args.tokens / found["seconds"]["median"]
    return found


def ratio(one: dict[str, Any], other: dict[str, Any], field: str) -> dict[str, float]:
    """Of the medians; least and most pair the fastest of one with the slowest of the other."""
    a, b = one[field], other[field]
    return {
        "ratio": a["median"] / b["median"],
        "min": a["min"] / b["max"],
        "max": a["max"] / b["min"],
    }


def targets(
    sides: dict[str, Any], sizes: dict[str, Any], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Every comparison, with its limit and whether it was met."""
    small = sizes["head_share"] <= 0.03
    ours, found = sides["compat"], []

    def compare(title: str, value: dict[str, float], limit: float | None, above: bool) -> None:
        met = None
        if limit is not None:
            met = value["ratio"] >= limit if above else value["ratio"] <= limit
        found.append({"what": title, **value, "limit": limit, "at_least": above, "met": met})

    for peer in ("ce", "ce-hf"):
        if peer in sides:
            limit = 1.15 if small else 1.30
            compare(f"time / {peer}", ratio(ours, sides[peer], "seconds"), limit, False)
            compare(f"memory / {peer}", ratio(ours, sides[peer], "memory_mib"), 1.10, False)
    if "naive" in sides:
        large = args.device == "cuda" and args.shape == "7b"
        share = ratio(ours, sides["naive"], "memory_mib")
        compare("times as fast as naive", ratio(sides["naive"], ours, "seconds"), 1.7, True)
        compare("memory / naive", share, 0.65 if large else 0.5, False)
    for peer in ("online", "trl-gkd", "trl-chunked"):
        if peer in sides:
            compare(f"times as fast as {peer}", ratio(sides[peer], ours, "seconds"), None, True)
            compare(f"memory / {peer}", ratio(ours, sides[peer], "memory_mib"), None, False)
    return found


def flops_per_token(sizes: dict[str, Any], length: int) -> float:
    """Multiply-adds, twice, of a compatibility step's token: no recomputation counted.

    Frozen layers forward and to their input; LoRA also to its weights; causal attention; the
    student's head both ways and one teacher's head.
    """
    attention = 3 * 2 * length * sizes["hidden_size"] * sizes["layers"]
    lora = 6 * sizes["lora_parameters"]
    return float(4 * sizes["body_parameters"] + lora + attention + 6 * sizes["head_parameters"])


def cache_cost(
    args: argparse.Namespace,
    folder: Path,
    spec: dict[str, Any],
    sides: dict[str, Any],
) -> dict[str, Any]:
    """What caching both teachers costs, and after how many passes it pays."""
    found = {n: call(folder, spec, action="teacher", teacher=n) for n in ("old", "new")}
    cost = sum(one["seconds"] for one in found.values())
    result = {
        "seconds_per_token": cost / args.tokens,
        "bytes_per_token": sum(one["bytes_per_token"] for one in found.values()),
    }
    if "online" in sides:
        saved = sides["online"]["seconds"]["median"] - sides["compat"]["seconds"]["median"]
        result["saved_seconds_per_token_and_pass"] = saved / args.tokens
        result["passes_to_pay"] = cost / saved if saved > 0 else None
    return result


def about(
    args: argparse.Namespace, spec: dict[str, Any], sizes: dict[str, Any], load_before: Any
) -> dict[str, Any]:
    """What every result says of itself."""
    name = args.shape or Path(spec["new"]).name
    return {
        "model": {"name": name, "random": bool(args.shape), **sizes},
        "device": args.device,
        "dtype": args.dtype,
        "threads": args.threads,
        "repeats": args.repeat,
        "load_average_before": load_before,
    }


def benchmark(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything of one size."""
    spec = settings(args, folder)
    load_before = record.load_average()
    sizes = call(folder, spec, action="prepare")
    say(
        f"{sizes['parameters'] / 1e6:.1f} M parameters, lm_head {sizes['head_share']:.1%} of them, "
        f"LoRA {sizes['lora_parameters'] / 1e6:.1f} M, "
        f"matrix products {sizes['matmul_flops'] / 1e9:.0f} GFLOP/s"
    )
    chosen = [side for side in args.sides if not side.startswith("trl") or find_spec("trl")]
    if len(chosen) < len(args.sides):
        say("trl is not installed, its sides are left out: pip install --no-deps trl==1.16.0")
    runs = repeated(args, folder, spec, chosen)
    sides = {side: summary(found, args) for side, found in runs.items()}
    rate = sides["compat"]["tokens_per_second"] * flops_per_token(sizes, args.length)
    return {
        **about(args, spec, sizes, load_before),
        "tokens": args.tokens,
        "length": args.length,
        "accumulation": args.accumulation,
        "rank": args.rank,
        "gradient_checkpointing": args.gradient_checkpointing,
        "mask": args.mask,
        "temperature": args.temperature,
        "wrong_share": args.wrong_share,
        "sides": sides,
        "share_of_matmul_rate": rate / sizes["matmul_flops"],
        "targets": targets(sides, sizes, args),
        "cache": cache_cost(args, folder, spec, sides),
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """The tables."""
    say(f"\n{'side':<46}{'s / micro-batch':>26}{'tokens/s':>11}{'MiB':>9}")
    for side, found in result["sides"].items():
        seconds = found["seconds"]
        spread = f"{seconds['median']:.3f} ({seconds['min']:.3f} to {seconds['max']:.3f})"
        say(
            f"{TITLES[side]:<46}{spread:>26}{found['tokens_per_second']:>11.0f}"
            f"{found['memory_mib']['median']:>9.0f}"
        )
    say("")
    for one in result["targets"]:
        verdict = ""
        if one["limit"] is not None:
            sign = ">=" if one["at_least"] else "<="
            verdict = f"target {sign} {one['limit']:.2f}: {'met' if one['met'] else 'MISSED'}"
        say(
            f"{one['what']:<32}{one['ratio']:>6.2f} [{one['min']:.2f}, {one['max']:.2f}]  {verdict}"
        )
    cache = result["cache"]
    say(f"\nshare of the measured matrix rate: {result['share_of_matmul_rate']:.0%}")
    say(f"cache: {cache['bytes_per_token']} bytes per token, "
        f"{cache['seconds_per_token'] * 1e6:.0f} us per token to compute, "
        f"pays after {cache.get('passes_to_pay') or float('nan'):.2f} passes")  # fmt: skip


def record_choices(args: argparse.Namespace) -> None:
    """The same for the answer-level step."""
    import choice_training

    with tempfile.TemporaryDirectory() as folder:
        result = choice_training.benchmark(args, Path(folder))
    choice_training.show(result)
    if not args.no_record:
        path = record.write_result(args.name or choice_training.name_of(result), result)
        say(f"recorded in {path.relative_to(record.ROOT)}")


def main() -> None:
    """Run one size and record it."""
    args = parsed()
    if args.choices:
        return record_choices(args)
    with tempfile.TemporaryDirectory() as folder:
        result = benchmark(args, Path(folder))
    show(result)
    if args.no_record:
        return
    words = ["training", result["model"]["name"], args.device, args.dtype]
    name = args.name or "-".join(words + (["recompute"] if args.gradient_checkpointing else []))
    path = record.write_result(name, result)
    say(f"recorded in {path.relative_to(record.ROOT)}")


if __name__ == "__main__":
    main()
