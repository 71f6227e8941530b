"""Errors that are told apart: what a user can mend, and what only a new process can."""

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


def breaks_device(error: BaseException) -> bool:
    """Whether every later call on the GPU fails too, whatever it is asked."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)
