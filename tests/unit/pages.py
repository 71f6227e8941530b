"""Comparisons to make pages of: a folder with report.json, examples.parquet, gate.json."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from muscle.metrics.pairing import JoinedTask, join_sides
from muscle.report.build import ReportOptions, report_of
from muscle.report.example_table import write_example_table
from muscle.side import side_of
from muscle.types import Prediction

WORDS = "the glove carriage ribbon axe lamp river stone cloud paper ladder bridge engine".split()
SUBJECTS = ("geography", "history", "logic", "physics")
SKILL = {"old": 0.5, "new": 0.75, "compat": 0.85, "again": 0.5}

ATTACKS = (
    "<script>window.attacked = 1; alert(1)</script>",
    '"><img src=x onerror="window.attacked = 2">',
    "</script><script>window.attacked = 3</script>",
    "javascript:window.attacked=4",
    "{{ 7 * 7 }}{% raw %}${7*7}<%= 7 %>",
    "<!--<script>window.attacked = 5",
    "</style><style>body{display:none}</style>",
    "<svg onload='window.attacked=6'><iframe srcdoc='<script>parent.attacked=7</script>'>",
    "[x](javascript:alert(1)) ![y](http://127.0.0.1:9/z.png) <http://127.0.0.1:9/a>",
    "\u202egnp.exe \u200b\x1b[31m\x07 \u2028\u2029 'x' \"y\" &amp; &#x3c; \ud83d\ude00".encode(
        "utf-16", "surrogatepass"
    ).decode("utf-16"),
    "__proto__",
    "=cmd|' /C calc'!A0",
)


Foreign = Callable[[str, int], str]
"""Takes the place of a text: (the text, a number) -> a text."""


def choice_task(
    name: str, n: int, seeds: tuple[int, ...], versions: tuple[str, ...], said: Foreign
) -> dict[int, dict[str, list[Prediction]]]:
    """Multiple choice: four words, log-likelihoods, subjects and lengths."""
    rng = np.random.default_rng(n)
    hard = rng.normal(size=n)
    picks = [rng.permutation(len(WORDS))[:4].tolist() for _ in range(n)]
    golds = rng.integers(0, 4, size=n)
    out: dict[int, dict[str, list[Prediction]]] = {}
    for seed in seeds:
        luck = {v: rng.normal(size=n) for v in ("old", "new", "again")}
        luck["compat"] = 0.6 * luck["old"] + 0.56 * luck["new"]
        out[seed] = {v: [] for v in versions}
        for v in versions:
            able = hard + 0.6 * luck[v] + SKILL[v]
            for i in range(n):
                likely = rng.normal(-6, 0.7, size=4)
                likely[golds[i]] = likely.max() + able[i]
                if i % 211 == 5:
                    likely[:] = -5.0  # a tie
                chosen = int(np.argmax(likely))
                choices = tuple(f"{said(WORDS[k], i)}{k}" for k in picks[i])
                question = f"Question {i}: Which is the heaviest, {', '.join(choices)}?\nAnswer:"
                error = "the prompt has 613 tokens, the model takes 512" if i % 331 == 7 else None
                fields = {
                    said("subject", 0): said(SUBJECTS[i % 4], i % 4),
                    "words": str(i * 7 % 90),
                }
                row = Prediction(
                    name, f"{said('q', i)}-{i:05d}", question, choices[golds[i]],
                    choices[chosen], "acc", float(chosen == golds[i]), {}, choices,
                    tuple(likely.tolist()), None, None,
                    "prompt" if i % 97 == 3 and v != "old" else None, f"d{i:08x}", fields,
                )  # fmt: skip
                if error:
                    row = replace(
                        row, error=error, score=None, prediction=None, loglikelihoods=None
                    )
                out[seed][v].append(row)
    return out


def text_task(
    name: str, n: int, seeds: tuple[int, ...], versions: tuple[str, ...], said: Foreign
) -> dict[int, dict[str, list[Prediction]]]:
    """Summaries under ROUGE."""
    rng = np.random.default_rng(n)
    out: dict[int, dict[str, list[Prediction]]] = {}
    gold = [" ".join(rng.choice(WORDS, size=14)) for _ in range(n)]
    dialogue = "Amanda: I baked cookies. Do you want some?\nJerry: Sure!\n"
    for seed in seeds:
        out[seed] = {v: [] for v in versions}
        for v in versions:
            for i in range(n):
                words = gold[i].split()
                keep = rng.random(len(words)) < 0.3 + 0.2 * SKILL[v]
                kept = [
                    w if k else str(rng.choice(WORDS)) for w, k in zip(words, keep, strict=True)
                ]
                share = len(set(kept) & set(words)) / len(set(words))
                text = said(" ".join(kept), i)
                out[seed][v].append(
                    Prediction(
                        name, f"dialogue-{i:04d}", said(dialogue * (1 + i % 4) + "Summary:", i),
                        gold[i], text, "rouge1", 0.5 if i % 29 == 0 else round(share, 4), {}, None,
                        None, None, f" {text}\n\nDialogue: and so on",
                        "answer" if i % 50 == 1 else None, None, {"speakers": str(2 + i % 3)},
                    )
                )  # fmt: skip
    return out


def joined(
    predictions: list[dict[int, dict[str, list[Prediction]]]], about: Any = None
) -> dict[str, JoinedTask]:
    """Several tasks as the comparison joins them."""
    about = about or {}
    sides: dict[int, dict[str, dict[str, Any]]] = {}
    for of_task in predictions:
        for seed, versions in of_task.items():
            for v, rows in versions.items():
                side = side_of(rows, v, about.get(v))
                sides.setdefault(seed, {}).setdefault(v, {})[rows[0].task] = side
    return join_sides(sides)


def comparison(
    folder: Path,
    *,
    n: int = 400,
    texts: int = 120,
    seeds: tuple[int, ...] = (0,),
    versions: tuple[str, ...] = ("old", "new", "compat", "again"),
    foreign: Foreign = lambda text, i: text,
    name: str = "testbed_choice",
    text: str = "page",
    about: Any = None,
    gate: dict[str, Any] | None = None,
    draws: int = 300,
) -> dict[str, Any]:
    """Write a whole comparison; returns the report."""
    made = [choice_task(name, n, seeds, versions, foreign)]
    if texts:
        made.append(text_task("summaries", texts, seeds, versions, foreign))
    tasks = joined(made, about)
    provenance = {
        "command": "muscle compare runs/v1 runs/v2 runs/v2c --output compared",
        "muscle": "0.1.0",
        "inputs": {v: [f"runs/{v}/testbed.parquet"] for v in versions},
        "hashes": {"old": "5f2a0c77", "new": "91be22d4"},
        "seeds": list(seeds),
    }
    report = report_of(tasks, provenance, ReportOptions(draws=draws, text=text))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, allow_nan=False))
    write_example_table(str(folder / "examples.parquet"), tasks, text)
    if gate is not None:
        (folder / "gate.json").write_text(json.dumps(gate))
    return report


def gate_of(report: dict[str, Any], verdict: str = "fail") -> dict[str, Any]:
    """A gate.json for the report, as `muscle gate` writes one."""
    task = "testbed_choice" if "testbed_choice" in report["tasks"] else min(report["tasks"])
    found = report["tasks"][task]
    pair = found["pairs"]["old->compat"]
    reason = {
        "fail": f"{task}: NFR old→compat ≤ 0.50 %: fail, it is {100 * pair['nfr']:.2f} %",
        "pass": "All 3 checks are inside the limit for old→compat at one-sided 95 %.",
        "not enough evidence": f"{task}: NFR old→compat ≤ 0.50 %: not enough evidence",
    }[verdict]
    first = _check(task, "max_nfr", 0.005, pair["nfr"], pair["bounds95"]["nfr"], found["n"])
    second = _check(task, "min_gain", -0.01, pair["gain"], pair["bounds95"]["gain"], found["n"])
    keep = _check(task, "must_keep", 0.0, 0.0, [None, None], 12)
    first |= {"verdict": verdict, "needed_n": 3200 if verdict[0] == "n" else None}
    flipped = {"task": task, "id": "q-00011", "waived": True}
    mended = "the gold answer is wrong, ticket 481"
    waivers = [
        {"id": "q-00011", "task": task, "reason": mended, "until": "2030-01-31", "state": "used"},
        {"id": "q-99", "task": None, "reason": "soon", "until": "2024-01-31", "state": "expired"},
    ]
    return {
        "schema": "muscle.gate/1",
        "verdict": verdict,
        "reason": reason,
        "pair": "old->compat",
        "limits": {"max_nfr": 0.005, "min_gain": -0.01},
        "slices": [],
        "checks": [first, second, {**keep, "unwaived": 1.0}],
        "must_keep": {
            "file": "keep.txt", "ids": 12, "flipped": [flipped], "unscored": [], "unknown": [],
        },
        "waivers": waivers,
        "notes": [],
        "created": "2026-01-31",
    }  # fmt: skip


def _check(
    task: str, limit: str, delta: float, value: float, bounds: list[float | None], n: int
) -> dict[str, Any]:
    return {
        "task": task, "slice": None, "limit": limit, "delta": delta, "value": value,
        "lower": bounds[0], "upper": bounds[1], "n": n, "verdict": "pass", "needed_n": None,
        "text": "", "unwaived": None,
    }  # fmt: skip
