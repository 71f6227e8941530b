"""Did a run's gate let a version pass? As gate.json says, or judged by the same limits."""

import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from muscle import storage
from muscle.errors import UserError
from muscle.gate import judge, make_limits
from muscle.gate.decide import overall
from muscle.gate.judging import GATE
from muscle.release.finished import Finished
from muscle.types import Version


class RefusedError(UserError):
    """It may not be released: no mistake in how the command was used."""


def gate_of(run: Finished, version: Version, today: date) -> dict[str, Any] | None:
    """The gate's result for old -> `version`, None where there is no gate.

    gate.json judges one pair. The other one is held against the same limits here, and nothing
    is written.

    Raises:
        UserError: gate.json is of another report, or says nothing of this pair.
    """
    path = storage.join(run.output, GATE)
    gate = storage.read_json(path)
    if gate is None:
        if storage.exists(path):
            raise UserError(f"{path} is not JSON: run `muscle gate {run.output}` again")
        return None
    again = f"run `muscle gate {run.output}` again"
    if not isinstance(gate, dict) or gate.get("schema") != "muscle.gate/1":
        raise UserError(f"{path} is of another version of muscle: {again}")
    if gate.get("report_sha256") != run.report_sha256:
        raise UserError(f"{path} is of another report.json than the one beside it: {again}")
    _check_whole(gate, path, again)
    pair = f"old->{version}"
    if gate["pair"] != pair:
        return _judged(run, gate, pair, today)
    _refuse_expired(gate, today, again)
    if not gate["waivers"] and gate["must_keep"] is None:
        _check_verdict(gate, _judged(run, gate, pair, today), path, again)
    return gate


def _check_whole(gate: dict[str, Any], path: str, again: str) -> None:
    """Raises UserError: it isn't as a gate wrote it, at its seams."""
    kinds = {"pair": str, "verdict": str, "limits": dict, "slices": list, "checks": list}
    lists = {**kinds, "waivers": list, "reason": str}
    whole = all(isinstance(gate.get(name), kind) for name, kind in lists.items())
    if not whole or "must_keep" not in gate:
        raise UserError(f"{path} is not whole: {again}")
    if gate["verdict"] != overall([check.get("verdict") for check in gate["checks"]]):
        raise UserError(f"{path}: its verdict is not that of its checks: {again}")


def _check_verdict(gate: dict[str, Any], found: dict[str, Any], path: str, again: str) -> None:
    """Raises UserError: the report, held against the same limits, gives something else."""
    if found["verdict"] != gate["verdict"] or found["checks"] != gate["checks"]:
        raise UserError(f"{path} is not what the gate says of the report beside it: {again}")


def _judged(run: Finished, gate: dict[str, Any], pair: str, today: date) -> dict[str, Any]:
    if gate["waivers"] or not str(gate["pair"]).startswith("old->"):
        raise UserError(
            f"{run.output}: gate.json judges {gate['pair']}, with waivers or limits of its own: "
            f"judge the release by `muscle gate {run.output} --pair '{pair}' …`"
        )
    kept = gate["must_keep"]
    limits = make_limits(
        **gate["limits"],
        must_keep=None if kept is None else kept["file"],
        slices=gate["slices"],
    )
    with tempfile.TemporaryDirectory() as scratch:
        found = judge(run.output, limits, pair=pair, today=today, output=str(Path(scratch)))
    return found.gate


def _refuse_expired(gate: dict[str, Any], today: date, again: str) -> None:
    for waiver in gate["waivers"]:
        if waiver["state"] == "used" and date.fromisoformat(waiver["until"]) < today:
            raise RefusedError(
                f"the waiver of {str(waiver['id'])[:80]!r} ran out on {waiver['until']}, after the "
                f"gate was judged: {again}"
            )


def said(gate: dict[str, Any] | None) -> str:
    """A gate's result in words."""
    if gate is None:
        return "there is no gate"
    return f"the gate says {gate['verdict']} for {gate['pair']} ({gate['reason']})"
