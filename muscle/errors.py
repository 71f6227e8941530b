"""Errors that are told apart: what a user can mend, and what only a new process can."""

from collections.abc import Mapping, Sequence

from muscle.credentials import redacted


class UserError(Exception):
    """Something that a user can mend: a setting, a file, an argument.

    The message is one line that names the setting, the value and the mend. The
    command line prints it without a traceback and exits with code 2. Foreign messages go
    through it into logs and records, so secrets are blotted out here.
    """

    def __init__(self, message: object = ""):
        super().__init__(redacted(str(message)))


class NotFiniteError(UserError):
    """A training's loss, gradient or weights became NaN or infinite."""


class SomeFailedError(UserError):
    """Some of several jobs failed, and all others came to their end.

    failures  what each said, by the job's title; the message is the first one's
    """

    def __init__(self, failures: Mapping[str, UserError]):
        super().__init__(next(iter(failures.values())))
        self.failures = dict(failures)


def breaks_device(error: BaseException) -> bool:
    """Whether every later call on the GPU fails too, whatever it is asked."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def some(names: Sequence[str]) -> str:
    """The first few of many names, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
