"""What a search costs against doing the same by hand: `muscle tune` and plain `muscle run`s.

    python benchmarks/tuning.py jobs/experiments/demo-tune.yaml --trials 12 --runs 2

First the search, then settings of its trials as whole updates, one after the other, each in an
empty folder that shares nothing: what one does without the tool. Prints the ratio of the times
and what the search found, writes benchmarks/results/. See benchmarks/README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import mean
from typing import Any

import record
from record import say

LIMIT = 0.5
"""The search is to take at most this share of the plain way's time."""

NO_FEASIBLE = 3
"""Exit code of a search that has ended without a feasible trial."""


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("experiment", type=Path, help="a YAML file")
    parser.add_argument("--trials", type=int, default=12, help="of the search")
    parser.add_argument("--runs", type=int, default=2, help="plain runs that are really run")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE",
                        help="a setting of both ways")  # fmt: skip
    parser.add_argument(
        "--output", type=Path, help="a new or empty folder; default a temporary one"
    )
    parser.add_argument("--name", help="of the result file")
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args(argv)
    if not args.experiment.is_file():
        parser.error(f"{args.experiment} is not a file: give an experiment")
    if not 1 <= args.runs <= args.trials:
        parser.error("--runs must be from 1 to --trials")
    if args.output is not None and args.output.exists() and any(args.output.iterdir()):
        parser.error(f"{args.output} is not empty: what lies there would be reused")
    return args


def timed(
    command: str, args: argparse.Namespace, output: Path, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """A `muscle` command in a process of its own, in a folder that shares nothing.

    Returns:
        {"seconds", "load_average_before", "code"}; a failure ends the benchmark.
    """
    words = [sys.executable, "-m", "muscle.cli", command, str(args.experiment)]
    if command == "tune":
        words += ["--trials", str(args.trials)]
    given = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    for one in [*args.sets, "storage=null", *given]:
        words += ["--set", one]
    words += ["--output", str(output)]
    path = os.pathsep.join([str(record.ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    load = record.load_average()
    log = output.with_suffix(".log")
    with log.open("wb") as file:
        began = time.perf_counter()
        done = subprocess.run(
            words, stdout=file, stderr=file, env={**os.environ, "PYTHONPATH": path}, check=False
        )
        seconds = time.perf_counter() - began
    if done.returncode not in ((0, NO_FEASIBLE) if command == "tune" else (0,)):
        tail = log.read_text(errors="replace")[-3000:]
        sys.exit(f"muscle {command} ended with exit code {done.returncode}:\n{tail}")
    return {"seconds": seconds, "load_average_before": load, "code": done.returncode}


def chosen_trials(trials: Sequence[Mapping[str, Any]], runs: int) -> list[Mapping[str, Any]]:
    """Trials at equal steps; those that a plain run can train to its end."""
    fit = [t for t in trials if t["state"] in ("finished", "stopped")]
    runs = min(runs, len(fit))
    return [fit[i * len(fit) // runs] for i in range(runs)]


def plain_runs(args: argparse.Namespace, folder: Path, found: dict[str, Any]) -> list[Any]:
    """Whole updates with the settings of some trials, one after the other."""
    fraction = found["provenance"]["experiment"]["training"]["tuning_fraction"]
    runs = []
    for trial in chosen_trials(found["trials"], args.runs):
        settings = {f"compatibility.{name}": value for name, value in trial["params"].items()}
        settings |= {"compatibility.interpolation": 1.0, "training.tuning_fraction": fraction}
        run = timed("run", args, folder / f"run-{trial['number']}", settings)
        runs.append({"trial": trial["number"], "params": trial["params"], **run})
        say(f"plain run with trial {trial['number']}'s settings: {run['seconds']:.1f} s")
    return runs


def compare(search: float, runs: Sequence[float], trials: int) -> dict[str, float]:
    """Search over `trials` plain runs; least and most take the slowest and the fastest run."""
    return {
        "ratio": search / (trials * mean(runs)),
        "min": search / (trials * max(runs)),
        "max": search / (trials * min(runs)),
    }


def shares(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the time of trials went; only a trial that ended well has its seconds recorded.

    of_work   training / (training + scoring)
    of_total  training / from being asked for to being judged
    """
    known = [t["seconds"] for t in trials if t["seconds"].get("total")]
    training, scoring, total = (
        sum(seconds.get(name, 0.0) for seconds in known)
        for name in ("training", "scoring", "total")
    )
    return {
        "trials": len(known),
        "seconds": {"training": training, "scoring": scoring, "total": total},
        "of_work": training / (training + scoring) if training + scoring else None,
        "of_total": training / total if total else None,
    }


def mean_epochs(points: Sequence[Mapping[str, Any]]) -> float | None:
    """Of the settings of several trials; None where the search doesn't vary it."""
    given = [point["epochs"] for point in points if "epochs" in point]
    return mean(given) if given else None


def benchmark(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both ways, and what the search found."""
    search = timed("tune", args, folder / "search", {})
    found = json.loads((folder / "search" / "tune.json").read_text())
    trials = found["trials"]
    say(f"search of {len(trials)} trials: {search['seconds']:.1f} s")
    runs = plain_runs(args, folder, found)
    seconds = [run["seconds"] for run in runs]
    states = [trial["state"] for trial in trials]
    return {
        "what": "muscle tune against as many plain runs, one after the other, sharing nothing",
        "experiment": found["name"],
        "trials": len(trials),
        "states": {state: states.count(state) for state in dict.fromkeys(states)},
        "tuning_examples": found["tuning_examples"],
        "search": {**search, "seconds_of_trials": found["seconds"]},
        "plain": {
            "really_run": len(runs),
            "runs": runs,
            "seconds": record.spread(seconds),
            "mean_times_trials": mean(seconds) * len(trials),
        },
        "epochs": {
            "mean_of_all_trials": mean_epochs([t["params"] for t in trials]),
            "mean_of_plain_runs": mean_epochs([r["params"] for r in runs]),
        },
        "ratio": {**compare(search["seconds"], seconds, len(trials)), "limit": LIMIT},
        "share_of_training": shares(trials),
        "why": found["why"],
        "promised": found["promised"],
        "test": found["test"],
    }


def show(result: dict[str, Any]) -> None:
    """The times, then what was found."""
    n, plain, ratio = result["trials"], result["plain"], result["ratio"]
    seconds = plain["seconds"]
    states = ", ".join(f"{count} {state}" for state, count in result["states"].items())
    say(f"\nsearch: {result['search']['seconds']:.0f} s for {n} trials ({states})")
    say(
        f"plain way: {plain['mean_times_trials']:.0f} s, reckoned: {plain['really_run']} of {n} "
        f"runs were really run, {mean(seconds['all']):.1f} s each "
        f"({seconds['min']:.1f} to {seconds['max']:.1f}), times {n}"
    )
    epochs = result["epochs"]
    if epochs["mean_of_all_trials"] is not None:
        say(
            f"epochs of compat: {epochs['mean_of_all_trials']:.2f} on average in all trials, "
            f"{epochs['mean_of_plain_runs']:.2f} in the plain runs"
        )
    verdict = "met" if ratio["ratio"] <= ratio["limit"] else "MISSED"
    say(
        f"search / plain: {ratio['ratio']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}]  "
        f"target <= {ratio['limit']:.2f}: {verdict}"
    )
    share = result["share_of_training"]
    if share["of_work"] is not None:
        say(
            f"training: {share['of_work']:.0%} of training and scoring, {share['of_total']:.0%} "
            f"of the whole time of the {share['trials']} trials that finished"
        )
    show_test(result)


def show_test(result: dict[str, Any]) -> None:
    """The chosen trial and what it is compared with, on the test split."""
    say(f"\n{result['why']}")
    if not result["test"]:
        say("nothing was measured on the test split")
        return
    chosen = result["test"][0]["test"]
    say(f"on the test split, n = {chosen['n']}: new has NFR {100 * chosen['nfr_new']:.2f} %, "
        f"score {100 * chosen['new_score']:.2f} %")  # fmt: skip
    say(f"{'':<12}{'NFR %':<22}{'against new, points':<26}{'score against new, points':<28}"
        "NFR less chosen's, points")  # fmt: skip
    for row in result["test"]:
        test, difference = row["test"], row["difference"]
        bounds = test["ci95"]
        less = "" if difference is None else points(difference["nfr"], difference["ci95"])
        say(
            f"{row['name']:<12}{points(test['nfr'], bounds['nfr'], '.2f'):<22}"
            f"{points(test['reduction'], bounds['reduction']):<26}"
            f"{points(test['gain'], bounds['gain']):<28}{less}"
        )


def points(value: float, bounds: Sequence[float] | None, form: str = "+.2f") -> str:
    """A fraction in points, with its interval where there is one."""
    shown = format(100 * value, form)
    if bounds is None:
        return shown
    return f"{shown} [{', '.join(format(100 * bound, form) for bound in bounds)}]"


def shown_command(args: argparse.Namespace) -> str:
    """The command without folders of this machine."""
    file = args.experiment.resolve()
    given = str(file.relative_to(record.ROOT)) if file.is_relative_to(record.ROOT) else file.name
    words = [__file__, given, "--trials", str(args.trials), "--runs", str(args.runs)]
    return record.command([*words, *(word for one in args.sets for word in ("--set", one))])


def main() -> None:
    """Measure and record."""
    args = parsed()
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        result = benchmark(args, args.output.resolve())
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = benchmark(args, Path(folder))
    show(result)
    if args.no_record:
        return
    used = {name: metadata.version(name) for name in ("optuna", "deepspeed")}
    result |= {"command": shown_command(args), "versions": {**record.versions(), **used}}
    path = record.write_result(args.name or f"tuning-{args.experiment.stem}", result)
    say(f"recorded in {path.relative_to(record.ROOT)}")


if __name__ == "__main__":
    main()
