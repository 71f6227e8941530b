"""A console whose reader may leave: `muscle compare … | head -1`."""

import os
import sys
import traceback
from typing import IO

from rich.console import Console

from muscle.credentials import redacted
from muscle.report.text import plain


class SteadyConsole(Console):
    """A console that falls silent when its pipe is closed, and lets the command go on.

    Rich's own would stop the process with exit code 1, which for a gate means "fail".
    """

    def on_broken_pipe(self) -> None:
        """Print nothing more, nor what Python still holds when it ends."""
        self.quiet = True
        hush(self.file)


def hush(stream: IO[str]) -> None:
    """Let what a closed pipe didn't take go nowhere, or Python fails once more as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def complain(text: str, debug: bool) -> None:
    """Say on stderr what went wrong, without terminal codes: foreign files' names may hold some.

    Args:
        debug: whether the traceback of the error being handled comes first.
    """
    try:
        if debug:
            print(redacted(traceback.format_exc()), end="", file=sys.stderr)
        print(f"muscle: {plain(redacted(text))}", file=sys.stderr, flush=True)
    except BrokenPipeError:  # the exit code says it too
        hush(sys.stderr)


def show_failure(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """The traceback of what nobody expected, as `sys.excepthook`: messages of libraries may hold
    signed URLs."""
    print(redacted("".join(traceback.format_exception(error))), end="", file=sys.stderr)
