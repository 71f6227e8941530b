"""A fleet against as many separate runs: wall time, and how often a base model is loaded.

    python benchmarks/fleet.py
    python benchmarks/fleet.py --train --name fleet-trained
    python benchmarks/fleet.py --adapters 2 --limit 40 --evaluated 60 --name fleet-small

Adapters of one testbed task, each with a seed of its own, so that nothing is shared but the bases.
Old's and new's are there already, as in a company that updates its base (they are made first, off
the clock); with `--train` every side trains them itself.
Sides, each a process of its own that starts from nothing: `separate`, one `muscle run` after the
other; `always`, a fleet that trains every compat adapter, as separate runs do; `gate-fails`, the
same fleet with a gate that every other adapter's new passes. See benchmarks/README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import record

HERE = Path(__file__).resolve()
SIDES = ("gate-fails", "always", "separate")
MADE = "made"
STRICT, LOOSE = 0.01, 0.9
"""Limits of NFR that no adapter here keeps, and that all do."""


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--limit", type=int, default=160, help="training examples of each")
    parser.add_argument("--evaluated", type=int, default=200, help="questions asked of each")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train", action="store_true", help="no adapters are there")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--name", default="fleet", help="of the result file")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> None:
    args = parsed()
    if args.run:
        print(json.dumps(run_here(args.run, args.output)))
        return
    before = record.load_average()
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        result = measured(args, Path(folder))
    result["load_average_before"] = before
    path = record.write_result(args.name, result)
    print(json.dumps(result, indent=1))
    print(path.name)


def measured(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All sides, one after the other."""
    sides: dict[str, dict[str, Any]] = {}
    if not args.train:
        record.say("adapters …")
        make_adapters(args, folder)
    for side in args.sides:
        record.say(f"{side} …")
        sides[side] = (separate if side == "separate" else together)(args, folder, side)
        record.say(f"{side}: {sides[side]['seconds']:.0f} s, {sides[side]['loads']} loads")
    result: dict[str, Any] = {
        "what": "a fleet on the testbed against as many separate runs",
        "adapters": args.adapters,
        "adapters_are_there": not args.train,
        "training_examples": args.limit,
        "epochs": args.epochs,
        "questions": args.evaluated,
        "sides": sides,
    }
    if "separate" in sides:
        alone = sides["separate"]
        for side in ("gate-fails", "always"):
            if side in sides:
                total = sum(alone["loads"].values()) / sum(sides[side]["loads"].values())
                result[f"{side}_times_faster"] = alone["seconds"] / sides[side]["seconds"]
                result[f"{side}_times_fewer_loads"] = total
        if "always" in sides:
            result["adapters_with_equal_counts"] = equal_counts(args, folder)
    return result


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What all adapters have in common."""
    return {
        "task": "testbed_choice",
        "old": {"model": "testbed:v1"},
        "new": {"model": "testbed:v2"},
        "adapter": {"r": 8, "alpha": 16},
        "training": {
            "learning_rate": 2e-3,
            "warmup_steps": 5,
            "epochs": args.epochs,
            "batch_size": 16,
            "accumulation": 1,
            "max_length": 256,
            "loss_on": "answer",
            "dtype": "float32",
            "limit": args.limit,
        },
        "evaluation": {"limit": args.evaluated},
        "tracking": {"tensorboard": False},
    }


def entries_of(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One adapter for each seed; every other one has a gate that its new passes."""
    entries = []
    for i in range(args.adapters):
        name = f"adapter-{i}"
        entry: dict[str, Any] = {"name": name, "seeds": [i]}
        entry["gate"] = {"max_nfr": LOOSE if i % 2 else STRICT}
        if not args.train:
            made = folder / MADE / name
            for version, model in (("old", "testbed:v1"), ("new", "testbed:v2")):
                entry[version] = {"model": model, "adapter": str(made / version / "adapter")}
        entries.append(entry)
    return entries


def make_adapters(args: argparse.Namespace, folder: Path) -> None:
    """What every side but with `--train` finds there."""
    entries = [{"name": f"adapter-{i}", "seeds": [i]} for i in range(args.adapters)]
    fleet = {"name": "made", "gate": {"max_nfr": LOOSE}, **settings_of(args), "adapters": entries}
    file = folder / "made.json"
    file.write_text(json.dumps(fleet))
    in_process(file, folder / MADE)


def together(args: argparse.Namespace, folder: Path, side: str) -> dict[str, Any]:
    """The fleet, in one process."""
    file = folder / f"{side}.json"  # JSON is YAML
    fleet = {
        "name": "bench",
        "when": side,
        **settings_of(args),
        "adapters": entries_of(args, folder),
    }
    file.write_text(json.dumps(fleet))
    run = in_process(file, folder / side)
    found = json.loads((folder / side / "fleet.json").read_text())
    again = in_process(file, folder / side)
    return {**run, "decisions": found["decisions"], "seconds_of_a_rerun": again["seconds"]}


def separate(args: argparse.Namespace, folder: Path, side: str) -> dict[str, Any]:
    """One run after the other, each in a process of its own, as a user would."""
    runs = []
    for entry in entries_of(args, folder):
        file = folder / f"{entry['name']}.json"
        file.write_text(json.dumps({**settings_of(args), **entry}))
        runs.append(in_process(file, folder / side / entry["name"]))
    loads = {what: sum(run["loads"][what] for run in runs) for what in runs[0]["loads"]}
    return {"seconds": sum(run["seconds"] for run in runs), "loads": loads}


def equal_counts(args: argparse.Namespace, folder: Path) -> int:
    """Adapters whose fleet and separate run counted the same flips."""
    same = 0
    for entry in entries_of(args, folder):
        reports = [
            json.loads((folder / side / entry["name"] / "report.json").read_text())
            for side in ("always", "separate")
        ]
        pairs = [report["tasks"]["testbed_choice"]["pairs"] for report in reports]
        same += pairs[0] == pairs[1]
    return same


def in_process(file: Path, output: Path) -> dict[str, Any]:
    """One `muscle run`; the clock runs from the process's start to its end."""
    words = [sys.executable, str(HERE), "--run", str(file), "--output", str(output)]
    began = time.perf_counter()
    run = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ})
    seconds = time.perf_counter() - began
    if run.returncode:
        raise SystemExit((run.stdout + run.stderr)[-3000:])
    return {"seconds": seconds, **json.loads(run.stdout.splitlines()[-1])}


def run_here(file: str, output: str) -> dict[str, Any]:
    """`muscle run` in this process, counting the base models that its jobs load."""
    from muscle.commands import run_experiment

    loads = {"train": 0, "cache": 0, "evaluate": 0}
    count(loads)
    run_experiment(Path(file), [], output, False, None, False)
    return {"loads": loads}


def count(loads: dict[str, int]) -> None:
    """Have the launcher count: each training loads its base (and old's, where that teaches
    online), each pool of one actor its base once."""
    from muscle.evaluation.units import outstanding
    from muscle.launch.ray_launcher import RayLauncher
    from muscle.teachers.shards import missing

    train, cache, evaluate = RayLauncher.train, RayLauncher.cache, RayLauncher.evaluate

    def counted_train(self: Any, jobs: Any, on_progress: Any) -> None:
        loads["train"] += sum(1 + (job.old is not None) for job in jobs)
        train(self, jobs, on_progress)

    def counted_cache(self: Any, job: Any, on_progress: Any) -> None:
        loads["cache"] += len(missing(job).units)
        cache(self, job, on_progress)

    def counted_evaluate(self: Any, job: Any, on_progress: Any) -> Any:
        loads["evaluate"] += len(outstanding(job).units)
        return evaluate(self, job, on_progress)

    RayLauncher.train = counted_train  # type: ignore[method-assign]
    RayLauncher.cache = counted_cache  # type: ignore[method-assign]
    RayLauncher.evaluate = counted_evaluate  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
