"""training.py --choices K: what an answer-level step costs against a step on labels."""

import argparse
from pathlib import Path
from typing import Any

import record
import training
from record import say

SIDES = ["choice", "choice-alone", "labels", "labels-on-answer"]
TITLES = {
    "choice": "answer-level step, one tree for each input",
    "choice-alone": "answer-level step, K sequences for each input",
    "labels": "plain LoRA on the right answer, loss on all",
    "labels-on-answer": "plain LoRA, loss on the answer",
}


def benchmark(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All sides of one shape."""
    spec = training.settings(args, folder)
    load_before = record.load_average()
    sizes = training.call(folder, spec, action="prepare")
    runs = training.repeated(args, folder, spec, SIDES)
    sides = {side: training.summary(found, args) for side, found in runs.items()}
    scoring = training.call(folder, spec, action="teacher", teacher="old")
    ratio = training.ratio
    steps = {
        f"time / {peer}": ratio(sides["choice"], sides[peer], "seconds")
        for peer in ("labels", "labels-on-answer")
    }
    for peer in ("labels", "labels-on-answer"):  # which other work beside it changes less
        steps[f"processor time / {peer}"] = ratio(sides["choice"], sides[peer], "cpu_seconds")
    saved = {
        "times as fast as K sequences": ratio(sides["choice-alone"], sides["choice"], "seconds"),
        "the same in processor time": ratio(sides["choice-alone"], sides["choice"], "cpu_seconds"),
    }
    labels = sides["labels"]["seconds"]["median"]
    return {
        **training.about(args, spec, sizes, load_before),
        "choices": args.choices,
        "prompt_tokens": args.length,
        "answer_tokens": args.answer_tokens,
        "inputs_per_micro_batch": args.tokens // args.length,
        "sides": sides,
        "ratios": {**steps, **saved},
        "tokens_alone_per_tree": scoring["tokens_alone_per_tree"],
        "teacher": {**scoring, "per_labels_step": scoring["seconds"] / labels},
    }


def show(result: dict[str, Any]) -> None:
    """The tables."""
    for side, found in result["sides"].items():
        seconds = found["seconds"]
        spread = f"{seconds['median']:.3f} ({seconds['min']:.3f} to {seconds['max']:.3f})"
        memory = found["memory_mib"]["median"]
        say(f"{TITLES[side]:<48}{spread:>26} s / micro-batch{memory:>9.0f} MiB")
    for what, one in result["ratios"].items():
        say(f"{what:<32}{one['ratio']:>6.2f} [{one['min']:.2f}, {one['max']:.2f}]")
    teacher = result["teacher"]
    say(f"K sequences have {result['tokens_alone_per_tree']:.2f} times the tree's tokens")
    size, share = teacher["bytes_per_input"], teacher["per_labels_step"]
    say(f"both teachers' scores: {size:.0f} bytes for each input")
    say(f"one teacher takes {share:.2f} of a labels step, once")


def name_of(result: dict[str, Any]) -> str:
    """The result file's."""
    words = ["choices", str(result["choices"]), result["model"]["name"], result["device"]]
    return "-".join([*words, result["dtype"]])
