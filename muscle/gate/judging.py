"""A report on disk, held against limits: gate.json, junit.xml and the page again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from muscle import storage
from muscle.errors import UserError
from muscle.gate.decide import EXIT_CODES, Kept, Verdict, decide
from muscle.gate.junit import junit_xml
from muscle.gate.limits import Limits
from muscle.gate.must_keep import ids_in, keep, read_must_keep, refuse_ids
from muscle.gate.outcomes import EXAMPLES, Example, Outcomes, Wanted, read_outcomes
from muscle.gate.reading import AGAIN, checked, choose_pair, parsed
from muscle.gate.slices import read_sizes, wanted_slices
from muscle.gate.waivers import Applied, apply, read_waivers
from muscle.gate.words import slice_name
from muscle.report.text import one_line

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
    if output is not None:
        storage.check_folder("--output", output)
    path, folder = _place(report)
    data = _read(path)
    content = checked(parsed(data, path), path)
    day = today or datetime.now(UTC).date()
    chosen = choose_pair(content, pair)
    applied, kept = _lists(content, folder, limits, chosen, day)
    before = None
    if applied.waived:
        before, content = content, recompute(content, folder, limits, applied.waived)
    gate = decide(
        content, limits, pair=chosen, kept=kept, waivers=applied.entries, before=before,
        sizes=read_sizes(folder, before or content, limits.slices), today=day,
    )  # fmt: skip
    gate["report_sha256"] = hashlib.sha256(data).hexdigest()
    target = output or folder
    text = json.dumps(gate, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    storage.write_bytes(storage.join(target, JUNIT), junit_xml(gate))
    storage.write_bytes(storage.join(target, GATE), text.encode("utf-8", "backslashreplace"))
    here = storage.absolute(target) == storage.absolute(folder)
    # A report.json on its own has no examples to show.
    shown = path.rpartition("/")[2] == REPORT and storage.exists(storage.join(folder, EXAMPLES))
    if here and shown:
        from muscle.report import write_markdown, write_page

        write_page(folder)
        write_markdown(folder)
    return GateResult(gate["verdict"], EXIT_CODES[gate["verdict"]], gate)


def _place(report: str) -> tuple[str, str]:
    """A report's file and its folder. Raises UserError: neither is there, or can't be seen."""
    files, inside = storage.filesystem(report)
    try:
        folder, there = files.isdir(inside), files.exists(inside)
    except Exception as error:
        raise _unreadable(report, error) from None
    if folder:
        return storage.join(report, REPORT), report.rstrip("/") or "/"
    if not there:
        raise UserError(f"report {report!r} does not exist: name a report.json or its folder")
    return report, report.rpartition("/")[0] or ("/" if report.startswith("/") else ".")


def _read(path: str) -> bytes:
    files, inside = storage.filesystem(path)
    try:
        return bytes(files.cat_file(inside))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a report.json or its folder") from None
    except Exception as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: Exception) -> UserError:
    """Whatever it is, the file wasn't to be had."""
    if isinstance(error, UserError):  # a store's
        return error
    said = error.strerror if isinstance(error, OSError) else None
    reason = one_line(said or str(error) or type(error).__name__, 200)
    return UserError(f"{path} can't be read: {reason}")


def _lists(
    report: Mapping[str, Any], folder: str, limits: Limits, pair: str, today: date
) -> tuple[Applied, Kept | None]:
    """Waivers and must-keep examples, held against what flipped."""
    waivers = read_waivers(limits.waive) if limits.waive is not None else []
    wanted: list[Wanted] = []
    comments: list[str] = []
    if limits.must_keep is not None:
        wanted, comments = read_must_keep(limits.must_keep, report["tasks"])
    if not waivers and not wanted:
        return Applied(frozenset(), []), None
    ids = [w.id for w in waivers] + [name for _, name in wanted] + ids_in(comments)
    need = "waive" if waivers else "must-keep"
    outcomes: Outcomes = read_outcomes(folder, pair, ids, need)
    _check_examples(report, folder, pair, outcomes)
    applied = apply(waivers, outcomes, str(limits.waive), today)
    if limits.must_keep is None:
        return applied, None
    refuse_ids(limits.must_keep, comments, outcomes)
    graded = {name for name, task in report["tasks"].items() if task.get("continuous")}
    return applied, keep(limits.must_keep, wanted, outcomes, applied.waived, graded)


def _check_examples(report: Mapping[str, Any], folder: str, pair: str, outcomes: Outcomes) -> None:
    """Refuse examples of another comparison: what flipped there says nothing of this report."""
    for name, task in report["tasks"].items():
        seeds = task.get("by_seed") or {}
        if not seeds:
            continue
        counted = sum(int(seed["pairs"][pair]["negative"]) for seed in seeds.values() if task["n"])
        if outcomes.negative.get(name, 0) != counted:
            raise UserError(f"{folder}: {EXAMPLES} is not that of report.json: {AGAIN}")


def recompute(
    report: Mapping[str, Any], folder: str, limits: Limits, waived: frozenset[Example]
) -> dict[str, Any]:
    """The report with the waived flips counted nowhere: its pairs, noise floor and the slices
    that limits ask for, made again from examples.parquet.

    Raises:
        UserError: examples.parquet is not that of this report.
    """
    from muscle.metrics.pairing import without_flips
    from muscle.metrics.slices import slice_blocks
    from muscle.report.build import ReportOptions, report_of
    from muscle.report.example_reader import read_example_table

    joined = read_example_table(storage.join(folder, EXAMPLES))
    tasks = dict(report["tasks"])
    for name in sorted({task for task, _ in waived}):
        task = tasks[name]
        if name not in joined or joined[name].n != task["n"]:
            raise UserError(f"{folder}: {EXAMPLES} is not that of report.json: {AGAIN}")
        pieces = wanted_slices(task, limits.slices)
        # With the smallest slice's size as the least one, the same values stand alone.
        least = min((int(p["n"]) for p in task.get("slices") or []), default=1)
        columns = tuple(dict.fromkeys(str(piece["column"]) for piece in pieces))
        allowed = {i for t, i in waived if t == name}
        options = ReportOptions(slices=columns, min_slice=least)
        made = report_of({name: joined[name]}, {}, options, waived={name: allowed})["tasks"][name]
        slices = list(made["slices"])
        if pieces:
            # A column that nobody named may be in quartiles where a named one has its values.
            slices += slice_blocks(without_flips(joined[name], allowed), None, least).blocks
        tasks[name] = {
            **task,
            "pairs": made["pairs"],
            "noise_floor": made["noise_floor"],
            "slices": [_made_again(piece, slices) for piece in pieces],
        }
    return {**report, "tasks": tasks}


def _made_again(piece: Mapping[str, Any], made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A slice of the report with the pairs of the same one made again; a pool of rare values
    is the only one of its column, and its name counts what is in it."""
    for other in made:
        same = other["column"] == piece["column"] and other["n"] == piece["n"]
        if same and (other["value"] == piece["value"] or (other["small"] and piece["small"])):
            return {**piece, "pairs": other["pairs"]}
    raise UserError(
        f"slice {one_line(slice_name(piece), 60)!r} can't be made again from {EXAMPLES}, which "
        "holds no such text: compare without --text none, or gate without this slice"
    )
