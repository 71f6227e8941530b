"""A fleet's record, made up: one adapter for each decision, and more."""

from typing import Any

from muscle.fleet.deciding import exit_code
from muscle.fleet.record import SCHEMA

DECIDED = ("move", "failed", "move with compat", "stay", "not enough evidence", "move")


def gate(verdict: str, needed: int | None = None) -> dict[str, Any]:
    check = {
        "limit": "max_nfr",
        "slice": None,
        "delta": 0.02,
        "value": 0.015,
        "lower": 0.011,
        "upper": 0.031,
        "n": 1234,
        "verdict": verdict,
        "needed_n": needed,
    }
    return {"verdict": verdict, "reason": "so it is.", "needed_n": needed, "checks": [check]}


def adapter(name: str, decision: str, text: str = "") -> dict[str, Any]:
    """An adapter with numbers, unless it failed; `text` stands wherever foreign text may."""
    compat = decision in ("move with compat", "stay")
    verdict = {"stay": "fail", "not enough evidence": "not enough evidence"}.get(decision, "pass")
    pair = {"negative": 18, "positive": 9, "nfr": 0.0146, "relative_nfr": 0.21, "gain": -0.0073}
    pair["ci95"] = {"nfr": [0.009, 0.023], "relative_nfr": [0.13, 0.33], "gain": [-0.016, 0.001]}
    needed = 4000 if decision == "not enough evidence" else None
    there = decision != "failed"
    pairs = ["old->new", "old->compat", "new->compat"] if compat else ["old->new"]
    versions = ["old", "new", "compat"] if compat else ["old", "new"]
    return {
        "name": name,
        "task": f"task of {name}{text}",
        "decision": decision,
        "reason": f"{decision} since{text}",
        "note": f"noted{text}" if decision == "move" and text else None,
        "pair": ("old->compat" if compat else "old->new") if there else None,
        "needed_n": needed,
        "when": "gate-fails",
        "trained_compat": compat,
        "folder": name,
        "report": f"{name}/report.html" if there else None,
        "models": {"old": {}, "new": {}},
        "n": 1234 if there else None,
        "unscored": 0 if there else None,
        "metric": "acc" if there else None,
        "continuous": False if there else None,
        "scores": {v: {"score": 0.5, "ci95": [0.47, 0.53]} for v in versions} if there else {},
        "pairs": {p: dict(pair) for p in pairs} if there else {},
        "reduction": None,
        "noise_floor": {"nfr": 0.01, "ci95": [0.005, 0.018]} if decision == "stay" else None,
        "gates": {
            "old->new": gate("fail" if compat else verdict, needed) if there else None,
            "old->compat": gate(verdict) if compat else None,
        },
    }


def record(text: str = "", decided: tuple[str, ...] = DECIDED) -> dict[str, Any]:
    """The content of a fleet.json."""
    adapters = [adapter(f"adapter-{i}", d, text) for i, d in enumerate(decided)]
    return {
        "schema": SCHEMA,
        "name": f"desk{text}",
        "muscle": "0",
        "exit_code": exit_code(decided),
        "decisions": {d: decided.count(d) for d in dict.fromkeys(decided)},
        "adapters": adapters,
    }
