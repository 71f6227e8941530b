"""fleet.json: each adapter's decision and the numbers that it rests on. No torch.

Fractions, never percent; null where a number can't be had. All of an adapter's numbers are those
of its own report.json.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from muscle import __version__
from muscle.config import Experiment
from muscle.fleet.deciding import DECISIONS, decide, exit_code, needed_examples

if TYPE_CHECKING:
    from muscle.fleet.member import Member
    from muscle.fleet.settings import Fleet

SCHEMA = "muscle.fleet/1"

PAIRS = ("old->new", "old->compat", "new->compat")
RATES = ("nfr", "relative_nfr", "gain")
_CHECK = ("limit", "slice", "delta", "value", "lower", "upper", "n", "verdict", "needed_n")


def fleet_record(fleet: "Fleet", members: Sequence["Member"]) -> dict[str, Any]:
    """The content of fleet.json; adapters in the order of the file."""
    adapters = [adapter_record(member) for member in members]
    decisions = [str(adapter["decision"]) for adapter in adapters]
    return {
        "schema": SCHEMA,
        "name": fleet.name,
        "muscle": __version__,
        "exit_code": exit_code(decisions),
        "decisions": {name: decisions.count(name) for name in reversed(DECISIONS)},
        "adapters": adapters,
    }


def adapter_record(member: "Member") -> dict[str, Any]:
    """One adapter: the decision, why, and the numbers as far as they are known."""
    experiment = member.entry.experiment
    new, compat = member.verdict("old->new"), member.verdict("old->compat")
    broken = member.failure is not None and new != "pass"
    decision = "failed" if broken or member.measured is None else decide(new, compat)
    gate = member.gates.get(member.best)
    reason, note = member.failure, None
    if decision != "failed" and gate is not None:
        # What went wrong with a compat adapter that nobody needs is no reason to stay.
        reason, note = str(gate["reason"]), member.failure
    unsure = decision == "not enough evidence" and gate is not None
    return {
        "name": member.name,
        "task": experiment.task.name,
        "decision": decision,
        "reason": reason,
        "note": note,
        "pair": member.best if gate is not None else None,
        "needed_n": needed_examples(gate) if unsure and gate is not None else None,
        "when": member.entry.when,
        "trained_compat": "compat" in member.versions,
        "folder": member.name,
        "report": f"{member.name}/report.html" if member.published else None,
        "models": _models(experiment),
        **_numbers(member, experiment.task.name),
        "gates": {pair: _gate(member.gates.get(pair)) for pair in PAIRS[:2]},
    }


def _models(experiment: Experiment) -> dict[str, Any]:
    """What was updated to what, as the file says it."""
    return {
        name: version.model_dump(include={"model", "revision", "adapter"})
        for name, version in (("old", experiment.old), ("new", experiment.new))
    }


def _numbers(member: "Member", task: str) -> dict[str, Any]:
    nothing: dict[str, Any] = {"n": None, "unscored": None, "metric": None, "continuous": None}
    nothing |= {"scores": {}, "pairs": {}, "reduction": None, "noise_floor": None}
    if member.measured is None:
        return nothing
    found = member.measured.report["tasks"][task]
    floor = found.get("noise_floor")
    reduction = found.get("reduction")
    return {
        "n": found["n"],
        "unscored": found["unscored"],
        "metric": found["metric"],
        "continuous": bool(found.get("continuous")),
        "scores": {
            name: {"score": version["score"], "ci95": version["ci95"]}
            for name, version in found["versions"].items()
        },
        "pairs": {pair: _pair(found["pairs"][pair]) for pair in PAIRS if pair in found["pairs"]},
        "reduction": None
        if reduction is None
        else {"nfr": reduction["nfr"], "ci95": reduction["ci95"]["nfr"], "p": reduction["p"]},
        "noise_floor": None if not floor else {"nfr": floor["nfr"], "ci95": floor["ci95"]["nfr"]},
    }


def _pair(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The rates of a pair, each with its 95 % interval."""
    return {
        "negative": entry.get("negative"),
        "positive": entry.get("positive"),
        **{rate: entry.get(rate) for rate in RATES},
        "ci95": {rate: entry["ci95"].get(rate) for rate in RATES},
    }


def _gate(gate: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if gate is None:
        return None
    return {
        "verdict": gate["verdict"],
        "reason": gate["reason"],
        "needed_n": needed_examples(gate),
        "checks": [{key: check[key] for key in _CHECK} for check in gate["checks"]],
    }
