"""Errors that are told apart: what a user can mend, and what only a new process can."""


class UserError(Exception):
    """Something that a user can mend: a setting, a file, an argument.

    The message is one line that names the setting, the value and the mend. The
    command line prints it without a traceback and exits with code 2.
    """


class NotFiniteError(UserError):
    """A training's loss, gradient or weights became NaN or infinite."""


def breaks_device(error: BaseException) -> bool:
    """Whether every later call on the GPU fails too, whatever it is asked."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)
