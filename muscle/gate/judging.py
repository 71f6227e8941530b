"""A report on disk, held against limits: gate.json, junit.xml and the page again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from muscle import storage
from muscle.errors import UserError
from muscle.gate.decide import EXIT_CODES, Kept, Verdict, decide
from muscle.gate.junit import junit_xml
from muscle.gate.limits import Limits
from muscle.gate.must_keep import keep, read_must_keep
from muscle.gate.outcomes import EXAMPLES, Example, Outcomes, read_outcomes
from muscle.gate.reading import checked, choose_pair
from muscle.gate.waivers import Applied, apply, read_waivers

REPORT = "report.json"
GATE = "gate.json"
JUNIT = "junit.xml"


@dataclass(frozen=True, slots=True)
class GateResult:
    """What a gate said: pass 0, fail 1, not enough evidence 3; `gate` is gate.json's content."""

    verdict: Verdict
    exit_code: int
    gate: dict[str, Any]


def judge(
    report: str,
    limits: Limits,
    *,
    pair: str | None = None,
    today: date | None = None,
    output: str | None = None,
) -> GateResult:
    """Hold the report of a comparison against limits, and write what comes of it.

    Args:
        report: report.json, or the folder it is in; any fsspec path.
        limits: from `make_limits`.
        pair: "old->compat" or another; None: that one where it is, else old->new.
        today: the day waivers are held against; None: today, in UTC.
        output: where gate.json and junit.xml go; None: beside the report, whose page and
            Markdown are then written again with the verdict.

    Raises:
        UserError: whatever a user can mend; nothing has been written then.
    """
    path, folder = _place(report)
    content = checked(_read(path), path)
    day = today or datetime.now(UTC).date()
    chosen = choose_pair(content, pair)
    applied, kept = _lists(content, folder, limits, chosen, day)
    before = None
    if applied.waived:
        before, content = content, recompute(content, folder, applied.waived)
    gate = decide(
        content, limits, pair=chosen, kept=kept, waivers=applied.entries, before=before, today=day
    )
    target = output or folder
    if output is not None:
        storage.check_folder("--output", output)
    data = json.dumps(gate, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    storage.write_bytes(storage.join(target, JUNIT), junit_xml(gate))
    storage.write_bytes(storage.join(target, GATE), data.encode("utf-8", "backslashreplace"))
    if target == folder:
        _show_verdict(folder)
    return GateResult(gate["verdict"], EXIT_CODES[gate["verdict"]], gate)


def _place(report: str) -> tuple[str, str]:
    """A report's file and its folder. Raises UserError: neither is there."""
    files, inside = storage.filesystem(report)
    if files.isdir(inside):
        return storage.join(report, REPORT), report.rstrip("/") or "/"
    if not files.exists(inside):
        raise UserError(f"report {report!r} does not exist: name a report.json or its folder")
    return report, report.rpartition("/")[0] or ("/" if report.startswith("/") else ".")


def _read(path: str) -> Any:
    if not storage.exists(path):
        raise UserError(f"{path} does not exist: name a report.json or its folder")
    content = storage.read_json(path)
    if content is None:
        raise UserError(f"{path}: is not whole JSON: run `muscle compare` again")
    return content


def _lists(
    report: Mapping[str, Any], folder: str, limits: Limits, pair: str, today: date
) -> tuple[Applied, Kept | None]:
    """Waivers and must-keep examples, held against what flipped."""
    waivers = read_waivers(limits.waive) if limits.waive is not None else []
    wanted = [] if limits.must_keep is None else read_must_keep(limits.must_keep, report["tasks"])
    if not waivers and not wanted:
        return Applied(frozenset(), []), None
    ids = [w.id for w in waivers] + [name for _, name in wanted]
    need = "waive" if waivers else "must-keep"
    outcomes: Outcomes = read_outcomes(folder, pair, ids, need)
    applied = apply(waivers, outcomes, str(limits.waive), today)
    if limits.must_keep is None:
        return applied, None
    return applied, keep(limits.must_keep, wanted, outcomes, applied.waived)


def recompute(report: Mapping[str, Any], folder: str, waived: frozenset[Example]) -> dict[str, Any]:
    """The report as it is without the waived flips, from examples.parquet."""
    raise NotImplementedError


def _show_verdict(folder: str) -> None:
    """Write the page and the Markdown again; a report.json on its own has no examples to show."""
    if not storage.exists(storage.join(folder, EXAMPLES)):
        return
    from muscle.report.html import write_markdown, write_page

    write_page(folder)
    write_markdown(folder)
