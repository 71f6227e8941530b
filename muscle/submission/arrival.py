"""A job's own side: its arguments as the cluster means them, and word of where results are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from muscle import storage
from muscle.experiment import expand, refuse_unfilled

MARK = "muscle: results in "
_SAID = re.compile(
    rf"^{re.escape(MARK)}(?P<output>.+) \((?P<file>\S+) (?P<digest>[0-9a-f]{{64}})\)$"
)
MAIN = {"run": ("fleet.json", "report.json"), "tune": ("tune.json",)}
"""The files, the first that is there, by which a copy of the results is known to be this run's."""


def arguments_here(arguments: Sequence[str]) -> list[str]:
    """A job's arguments with `${NAME}` in `--output` read from this node's environment, and the
    cluster that runs it as address.

    Raises:
        UserError: such a variable isn't set, or is to be filled in.
    """
    found = list(arguments)
    for number, argument in enumerate(found):
        before = found[number - 1] if number else ""
        if argument.startswith("--output=") or before == "--output":
            found[number] = str(
                expand(argument, "--output (by default STORAGE/runs/NAME, read on this node)")
            )
            refuse_unfilled(found[number].removeprefix("--output="), "--output")
    if not any(argument.startswith("--address") for argument in found):
        found = ["--address", "auto", *found]
    return found


def output_in(arguments: Sequence[str]) -> str | None:
    """The `--output` among arguments."""
    for number, argument in enumerate(arguments):
        if argument == "--output" and number + 1 < len(arguments):
            return arguments[number + 1]
        if argument.startswith("--output="):
            return argument.removeprefix("--output=")
    return None


def say_results(kind: str, output: str | None) -> None:
    """Print where results are, with the digest of the main file, for who follows the log."""
    for name in MAIN.get(kind, ()):
        if output is not None and storage.exists(path := storage.join(output, name)):
            digest = storage.sha256(storage.absolute(path))
            print(f"{MARK}{storage.absolute(output)} ({name} {digest})", flush=True)
            return


@dataclass(frozen=True)
class Said:
    """What a job said of its results: the folder, its main file and that file's sha256."""

    output: str
    file: str
    digest: str


def said_results(log: str) -> Said | None:
    """What `say_results` printed into a log; None where it didn't."""
    for line in reversed(log.splitlines()):
        found = _SAID.match(line.strip())
        if found is not None:
            return Said(found["output"], found["file"], found["digest"])
    return None
