"""Comparisons to make pages of: a folder with report.json, examples.parquet, gate.json."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from muscle.metrics.pairing import JoinedTask, join_sides
from muscle.metrics.ties import near_ties_of
from muscle.report.build import ReportOptions, report_of
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


def choice_task(
    name: str, n: int, seeds: tuple[int, ...], versions: tuple[str, ...], foreign: Any = None
) -> dict[int, dict[str, list[Prediction]]]:
    """Multiple choice: four words, log-likelihoods, subjects and lengths."""
    rng = np.random.default_rng(n)
    said = foreign or (lambda text, i: text)
    hard = rng.normal(size=n)
    picks = [rng.permutation(len(WORDS))[:4].tolist() for _ in range(n)]
    golds = rng.integers(0, 4, size=n)
    out: dict[int, dict[str, list[Prediction]]] = {}
    for seed in seeds:
        base = {v: rng.normal(size=n) for v in ("old", "new", "again")}
        base["compat"] = 0.6 * base["old"] + 0.8 * base["new"] * 0.7
        out[seed] = {}
        for v in versions:
            able = hard + 0.6 * base[v] + SKILL[v]
            rows = []
            for i in range(n):
                likely = rng.normal(-6, 0.7, size=4)
                likely[golds[i]] = likely.max() + able[i]
                if i % 211 == 5:
                    likely[:] = -5.0
                chosen = int(np.argmax(likely))
                choices = tuple(said(WORDS[k], i) + ("" if foreign is None else str(k)) for k in picks[i])
                error = "the prompt has 613 tokens, the model takes 512" if i % 331 == 7 else None
                rows.append(
                    Prediction(
                        name, said(f"q-{i:05d}", i) + ("" if foreign is None else f"{i}"),
                        said(f"Question {i}: Which of these is the heaviest, {', '.join(choices)}?\nAnswer:", i),
                        choices[golds[i]], None if error else choices[chosen], "acc",
                        None if error else float(chosen == golds[i]), {}, choices,
                        None if error else tuple(likely.tolist()), error, None,
                        "prompt" if i % 97 == 3 and v != "old" else None, f"d{i:08x}",
                        {said("subject", 0): said(SUBJECTS[i % 4], i % 4), "words": str(20 + (i * 7) % 90)},
                    )
                )  # fmt: skip
            out[seed][v] = rows
    return out


def text_task(
    name: str, n: int, seeds: tuple[int, ...], versions: tuple[str, ...], foreign: Any = None
) -> dict[int, dict[str, list[Prediction]]]:
    """Summaries under ROUGE."""
    rng = np.random.default_rng(n)
    said = foreign or (lambda text, i: text)
    out: dict[int, dict[str, list[Prediction]]] = {}
    gold = [" ".join(rng.choice(WORDS, size=14)) for _ in range(n)]
    for seed in seeds:
        out[seed] = {}
        for v in versions:
            rows = []
            for i in range(n):
                words = gold[i].split()
                kept = [w if rng.random() < 0.3 + 0.2 * SKILL[v] else str(rng.choice(WORDS)) for w in words]
                share = len(set(kept) & set(words)) / len(set(words))
                share = 0.5 if i % 29 == 0 else share
                rows.append(
                    Prediction(
                        name, f"dialogue-{i:04d}",
                        said("Amanda: I baked cookies. Do you want some?\nJerry: Sure!\n" * (1 + i % 4) + "Summary:", i),
                        gold[i], said(" ".join(kept), i), "rouge1", round(share, 4), {}, None, None, None,
                        said(" " + " ".join(kept) + "\n\nDialogue: and so on", i),
                        "answer" if i % 50 == 1 else None, None, {"speakers": str(2 + i % 3)},
                    )
                )  # fmt: skip
            out[seed][v] = rows
    return out


def joined(predictions: list[dict[int, dict[str, list[Prediction]]]], about: Any = None) -> dict[str, JoinedTask]:
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
    foreign: Any = None,
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
    write_table(folder / "examples.parquet", tasks, text)
    if gate is not None:
        (folder / "gate.json").write_text(json.dumps(gate))
    return report


def write_table(path: Path, tasks: dict[str, JoinedTask], text: str) -> None:
    """examples.parquet by its contract."""
    tables = [table_of(task, seed, text) for task in tasks.values() for seed in task.seeds]
    pq.write_table(pa.concat_tables(tables, promote_options="permissive"), path, row_group_size=4096)


TEXTS = ("question", "gold", "answer", "response")


def table_of(task: JoinedTask, seed: int, text: str) -> pa.Table:
    n = len(task.everything)
    columns: dict[str, Any] = {
        "task": pa.array([task.task] * n), "id": task.everything,
        "seed": pa.array([seed] * n, pa.int32()),
    }  # fmt: skip

    def read(version: str, column: str) -> Any:
        found = task.column(seed, version, column, all=True)
        return found if text != "none" else pa.nulls(n, found.type)

    for name in ("question", "gold", "choices", "fields"):
        columns[name] = read("old", name)
    columns["document"] = task.column(seed, "old", "document", all=True)
    for v in task.names:
        columns[f"{v}_score"] = task.column(seed, v, "score", all=True)
        columns[f"{v}_answer"] = read(v, "prediction")
        columns[f"{v}_response"] = read(v, "response")
        for name in ("loglikelihoods", "error", "truncated"):
            columns[f"{v}_{name}"] = task.column(seed, v, name, all=True)
        near = near_ties_of(task, seed, v, all=True)
        columns[f"{v}_near_tie"] = pa.array([None] * n, pa.bool_()) if near is None else pa.array(near)
        if v != "old":
            columns[f"{v}_question"] = pa.nulls(n, pa.string())
    pairs = [*task.pairs, *((("old", "again"),) if task.again else ())]
    for before, after in pairs:
        columns[f"{before}_{after}"] = pa.array(outcomes(task, seed, before, after))
    columns["margin"] = pa.array(margins(task, seed), pa.float64())
    return pa.table(columns)


def outcomes(task: JoinedTask, seed: int, before: str, after: str) -> list[str]:
    read = {
        (v, c): task.column(seed, v, c, all=True).to_pylist()
        for v in (before, after) for c in ("score", "prediction")
    }  # fmt: skip
    out = []
    for i, scored in enumerate(task.scored.tolist()):
        a, b = read[before, "score"][i], read[after, "score"][i]
        if not scored:
            out.append("unscored")
        elif b != a:
            out.append("negative" if b < a else "positive")
        elif task.continuous:
            out.append("equal")
        elif a == 1:
            out.append("both_right")
        else:
            same = read[before, "prediction"][i] == read[after, "prediction"][i]
            out.append("both_wrong_same" if same else "both_wrong_different")
    return out


def margins(task: JoinedTask, seed: int) -> list[float | None]:
    def read(v: str, c: str) -> list[Any]:
        return task.column(seed, v, c, all=True).to_pylist()

    if task.continuous:
        return [abs(b - a) for a, b in zip(read("old", "score"), read("new", "score"), strict=True)]
    out = []
    rows = zip(*(read("new", c) for c in ("loglikelihoods", "choices", "gold", "prediction")), strict=True)
    for likely, choices, gold, said in rows:
        known = likely is not None and said in choices and gold in choices
        out.append(likely[choices.index(said)] - likely[choices.index(gold)] if known else None)
    return out


def gate_of(report: dict[str, Any], verdict: str = "fail") -> dict[str, Any]:
    """A gate.json for the report."""
    task = "testbed_choice" if "testbed_choice" in report["tasks"] else next(iter(report["tasks"]))
    pair = report["tasks"][task]["pairs"]["old->compat"]
    words = {
        "fail": f"{task}: NFR old→compat ≤ 0.50 %: fail, it is 1.91 % of 1993 examples.",
        "pass": "All 2 checks are inside the limit for old→compat at one-sided 95 %.",
        "not enough evidence": f"{task}: NFR may be above or below 2 %; about n = 3200 would do.",
    }
    base = {"task": task, "slice": None, "limit": "max_nfr", "delta": 0.005, "value": pair["nfr"], "lower": pair["bounds95"]["nfr"][0], "upper": pair["bounds95"]["nfr"][1], "n": report["tasks"][task]["n"], "verdict": verdict, "needed_n": 3200 if verdict[0] == "n" else None, "text": words[verdict]}  # fmt: skip
    second = {**base, "limit": "min_gain", "delta": -0.01, "value": pair["gain"], "lower": pair["bounds95"]["gain"][0], "upper": pair["bounds95"]["gain"][1], "verdict": "pass", "needed_n": None, "text": "The score did not fall."}  # fmt: skip
    keep = {**base, "limit": "must_keep", "delta": 0.0, "value": 0.0, "lower": None, "upper": None, "n": 12, "verdict": "pass", "needed_n": None, "unwaived": 1.0}
    return {
        "schema": "muscle.gate/1", "verdict": verdict, "reason": words[verdict], "pair": "old->compat",
        "limits": {"max_nfr": 0.02, "min_gain": -0.01}, "checks": [base, second, keep],
        "must_keep": {"file": "keep.txt", "ids": 12, "flipped": [{"task": task, "id": "q-00011", "waived": True}], "unscored": [], "unknown": []},
        "waivers": [
            {"id": "q-00011", "task": task, "reason": "the gold answer is wrong, ticket 481", "until": "2030-01-31", "state": "used"},
            {"id": "q-00099", "task": None, "reason": "was to be mended", "until": "2024-01-31", "state": "expired"},
        ],
    }  # fmt: skip
