"""`muscle compare`: from files of judged examples to the report, without torch or Ray."""

import dataclasses
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as library_version
from typing import Any, Literal, get_args

from rich.console import Console

from muscle import __version__, storage
from muscle.errors import UserError
from muscle.gate import Limits, judge, make_limits, print_gate
from muscle.gate.early import check_early
from muscle.gate.judging import GateResult
from muscle.inputs import Asked, Columns
from muscle.inputs.source import entries
from muscle.inputs.versions import (
    Opened,
    Paths,
    common_name,
    file_hashes,
    find_older,
    find_versions,
    known_groups,
    older_hashes,
    open_versions,
    without_instructions,
)
from muscle.metrics.pairing import JoinedTask, join_sides
from muscle.metrics.slice_columns import check_columns
from muscle.report.build import ReportOptions, report_of
from muscle.report.console import SteadyConsole
from muscle.report.older import labelled, with_older
from muscle.report.text import one_line
from muscle.side import Side

Text = Literal["page", "all", "none"]

EXAMPLES, REPORT = "examples.parquet", "report.json"
WRITTEN = (
    REPORT,
    "report.md",
    "report.html",
    "report.csv",
    "flips.csv",
    EXAMPLES,
    "gate.json",
    "junit.xml",
)
"""What a comparison leaves in its output folder, and nothing else."""

_LIBRARIES = ("numpy", "pyarrow", "scipy")
_POSITIONS = ("old", "new", "compat")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is typed after `muscle compare`; a field is called like its flag.

    old, new, compat, noise_floor  a path, or one per seed with commas between them; without
        `new`, `old` is the output folder of a run, with the versions in it
    also  older releases' predictions, each PATH or NAME=PATH
    """

    old: str
    new: str | None = None
    compat: str | None = None
    output: str = ""
    noise_floor: str | None = None
    also: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    metric: str | None = None
    filter: str | None = None
    id: str | None = None
    correct: str | None = None
    score: str | None = None
    answer: str | None = None
    gold: str | None = None
    question: str | None = None
    task_column: str | None = None
    slice: tuple[str, ...] = ()
    min_slice: int = 50
    group: tuple[str, ...] = ()
    common: bool = False
    text: str = "page"
    draws: int = ReportOptions.draws
    seed: int = ReportOptions.seed
    max_nfr: str | None = None
    max_excess_nfr: str | None = None
    max_relative_nfr: str | None = None
    min_gain: str | None = None
    must_keep: str | None = None
    waive: str | None = None
    pair: str | None = None

    def command(self) -> str:
        """The command line that makes this comparison again."""
        words = ["muscle", "compare", *(p for n in _POSITIONS if (p := getattr(self, n)))]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in _POSITIONS or value == field.default:
                continue
            flag = "--" + field.name.replace("_", "-")
            for one in value if isinstance(value, tuple) else [value]:
                words += [flag] if one is True else [flag, str(one)]
        return shlex.join(words)

    def limits(self) -> Limits | None:
        """What the gate holds the report against; None: nothing was asked for.

        Raises:
            UserError: a limit that makes no sense, or waivers without a limit.
        """
        names = ("max_nfr", "max_excess_nfr", "max_relative_nfr", "min_gain", "must_keep", "waive")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if not given:
            if self.pair is not None:
                raise UserError("--pair says what limits are for: give one, e.g. --max-nfr 0.02")
            return None
        judged = "max_nfr" in given or "min_gain" in given
        return make_limits(**given, slices=self.slice if judged else ())

    def asked(self, paths: Paths) -> Asked:
        """What is wanted of each version's files."""
        unnamed = self.task[0] if len(self.task) == 1 else common_name(paths)
        columns = Columns(
            self.id,
            self.correct,
            self.score,
            self.answer,
            self.gold,
            self.question,
            self.task_column,
        )
        return Asked(columns, self.metric, self.filter, self.task, unnamed)


def compare(request: Comparison, console: Console) -> int:
    """Open, join, count, write, and hold against limits if there are any.

    Returns the exit code: 0, or what the gate says (1 fail, 3 not enough evidence).

    Raises:
        UserError: whatever is wrong with the files or the flags; a report that was there
            before is then as it was.
    """
    _refuse_empty(request)
    limits, text = request.limits(), _text(request.text)
    groups = _groups(request.group)
    check_output(request.output)
    paths = find_versions(request.old, request.new, request.compat, request.noise_floor)
    with console.status("reading predictions"):
        opened = open_versions(paths, request.asked(paths))
        older_paths = find_older(labelled(request.also, "--also"), paths)
        older = open_versions(older_paths, request.asked(paths))
        if text == "none":
            opened, older = without_instructions(opened), without_instructions(older)
        hashes = older_hashes(older, opened, file_hashes(opened))
        tasks = join_sides(opened, common=request.common)
    _refuse_nothing(tasks)
    if limits is not None:
        check_early(tasks, limits, request.pair)
    columns = tuple(dict.fromkeys(s.partition("=")[0] for s in request.slice))
    check_columns(tasks.values(), columns)
    options = ReportOptions(
        draws=request.draws,
        seed=request.seed,
        slices=columns or None,
        min_slice=request.min_slice,
        text=text,
        groups=known_groups(opened) | _checked_groups(groups, tasks),
    )
    with console.status("counting flips"):
        report = report_of(tasks, _provenance(request, opened, older, hashes), options)
        report = with_older(report, opened, older, options, request.common)
    # All files before the first line: a reader that closes its pipe early stops nothing.
    with console.status("writing the report"):
        write_numbers(request.output, tasks, report, text)
        found = write_judged(request.output, limits, request.pair)
    _show(report, opened, console)
    if found is not None:
        print_gate(found.gate, console)
    for name in WRITTEN:
        path = storage.join(request.output, name)
        if storage.exists(path):
            console.print(path, highlight=False, markup=False, soft_wrap=True)
    return 0 if found is None else int(found.exit_code)


def write_numbers(
    output: str, tasks: Mapping[str, JoinedTask], report: Mapping[str, Any], text: Text
) -> None:
    """Put examples.parquet, then report.json into a folder, in place of an earlier comparison's.

    What an earlier one left goes first: its verdict and page would be of other numbers.

    Raises:
        UserError: a file can't be written.
        ValueError: the report holds NaN or infinity.
    """
    from muscle.report.example_table import write_example_table

    data = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name in WRITTEN:
        storage.remove(storage.join(output, name))
    write_example_table(storage.join(output, EXAMPLES), tasks, text)
    encoded = data.encode("utf-8", "backslashreplace")
    storage.write_bytes(storage.join(output, REPORT), encoded)


def write_pages(output: str) -> None:
    """The page, the Markdown and the tables of a folder that holds a report's numbers.

    Raises:
        UserError: a file can't be read or written.
    """
    from muscle.report import write_csv, write_markdown, write_page

    write_csv(output)
    write_markdown(output)
    write_page(output)


def write_judged(output: str, limits: Limits | None, pair: str | None) -> GateResult | None:
    """What the gate says of a folder that holds a report's numbers, if there are limits, and
    the pages, which show it.

    Raises:
        UserError: as `write_pages`, or as `judge`, when a listed id is unknown: the numbers
            are right all the same, and the pages show them without a verdict.
    """
    from muscle.report import write_csv

    if limits is None:
        write_pages(output)
        return None
    write_csv(output)
    try:
        return judge(output, limits, pair=pair)  # writes the page and the Markdown
    except UserError:
        write_pages(output)
        raise


def check_output(output: str) -> None:
    """Refuse a folder in which there is anything but an earlier comparison; writes nothing.

    Raises:
        UserError: it is a file, or holds files that no comparison left.
    """
    if not output:
        raise UserError("--output is empty: name a folder for the report")
    storage.check_folder("--output", output)
    if not storage.exists(output):
        return
    names, folders = entries(output)
    # What was stopped in the middle of writing a file leaves a part of it.
    parts = tuple(f"{name}." for name in WRITTEN)
    ours = {n for n in names if n in WRITTEN or (n.startswith(parts) and n.endswith(".part"))}
    others = [name for name in [*names, *folders] if name not in ours]
    if others:
        raise UserError(
            f"--output {output} holds {one_line(others[0], 80)!r}, which no comparison wrote: name "
            "a folder of its own"
        )


def _refuse_empty(request: Comparison) -> None:
    """Raises UserError: an argument is "", as of a shell's variable that isn't set."""
    for field in dataclasses.fields(request):
        name, value = field.name, getattr(request, field.name)
        if name == "output" or "" not in (value if isinstance(value, tuple) else (value,)):
            continue
        called = name.upper() if name in _POSITIONS else "--" + name.replace("_", "-")
        mend = "give a file or a folder" if name in ("old", "new") else "leave it out"
        raise UserError(f"{called} is empty: {mend}")


def _text(given: str) -> Text:
    for known in get_args(Text):
        if given == known:
            return known
    raise UserError(f"--text is {given!r}: give page, all or none")


def _groups(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, equals, tasks = text.partition("=")
        names = tuple(dict.fromkeys(t.strip() for t in tasks.split(",") if t.strip()))
        if not equals or not name.strip() or not names:
            raise UserError(f"--group {text!r}: write it as NAME=TASK,TASK")
        if name.strip() in found:
            raise UserError(f"--group: the name {name.strip()!r} is given twice")
        found[name.strip()] = names
    return found


def _checked_groups(
    groups: Mapping[str, tuple[str, ...]], tasks: Mapping[str, JoinedTask]
) -> dict[str, tuple[str, ...]]:
    for name, members in groups.items():
        for member in members:
            if member not in tasks:
                raise UserError(f"--group {name}: no task {member!r}, only {', '.join(tasks)}")
    return dict(groups)


def _refuse_nothing(tasks: Mapping[str, JoinedTask]) -> None:
    if all(task.n == 0 for task in tasks.values()):
        name, task = next(iter(tasks.items()))
        raise UserError(
            f"no example is scored in all versions: of task '{name}', {task.unscored} are unscored "
            "in one of them at least"
        )


def _provenance(
    request: Comparison, opened: Opened, older: Opened, hashes: Mapping[str, str]
) -> dict[str, Any]:
    """Where the numbers come from; nothing in it changes between equal comparisons."""
    inputs: dict[str, Any] = {}
    for seed, versions in opened.items():
        also = {f"also {label}": sides for label, sides in older[seed].items()}
        for version, sides in {**versions, **also}.items():
            name = f"{version} (seed {seed})" if len(opened) > 1 else version
            inputs[name] = {task: _input(side, hashes) for task, side in sides.items()}
    return {
        "muscle": __version__,
        "libraries": {name: library_version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "command": request.command(),
        "bootstrap": {"draws": request.draws, "seed": request.seed},
        "inputs": inputs,
    }


def _input(side: Side, hashes: Mapping[str, str]) -> dict[str, Any]:
    """How a side was made, and of which files."""
    files = [file["path"] for file in side.about.get("files", ())]
    return {**side.about, "files": {path: hashes[path] for path in files}}


def _show(
    report: Mapping[str, Any],
    opened: Opened,
    console: Console,
) -> None:
    """What limits the comparison first, then the tables."""
    from muscle.report.table import print_table
    from muscle.report.verdict import doubts

    notes = dict.fromkeys(
        note
        for versions in opened.values()
        for sides in versions.values()
        for side in sides.values()
        for note in side.about.get("notes", ())
    )
    for name, task in report["tasks"].items():
        notes |= dict.fromkeys(f"{name}: {text}" for text in doubts(task))
        for found in task.get("comparability", ()):
            values = ", ".join(f"{v}: {text}" for v, text in found["values"].items())
            parts = [f"{name}: {found['what']}", values, found.get("note") or ""]
            notes.setdefault("; ".join(part for part in parts if part))
    for note in notes:
        _say(f"note: {one_line(note, 600)}", console)
    print_table(dict(report), console)


def _say(text: str, console: Console) -> None:
    console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def compare_files(**flags: Any) -> int:
    """`muscle compare` with its parsed arguments, called like the fields of `Comparison`.

    Returns the exit code, see `compare`.

    Raises:
        UserError: whatever a user can mend.
    """
    several = {f.name for f in dataclasses.fields(Comparison) if isinstance(f.default, tuple)}
    given: dict[str, Any] = {
        name: tuple(v) if name in several else v for name, v in flags.items() if v is not None
    }
    return compare(Comparison(**given), SteadyConsole())
