"""What every stream of Ray Data here is started with, and what its failures mean."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ray.data import DataContext
from ray.util.annotations import RayDeprecationWarning

from muscle.errors import UserError

MAX_RESTARTS = 40
"""Deaths of one actor. What kills it again and again is named long before (`units.Claim`);
this ends an actor that dies before it begins."""


def set_context(context: DataContext) -> None:
    """Ray Data's settings for any stream: fail at once where an actor can't start."""
    # A stream that waits for nodes stands still for as long as they take; what it waits for is
    # said meanwhile (`waiting`), and what can never come is refused before (`capacity.check`).
    context.execution_no_progress_timeout_s = -1
    context.enable_progress_bars = False
    context.actor_init_retry_on_errors = False
    context.actor_init_max_retries = 0
    context.execution_options.preserve_order = False


@contextmanager
def restarts_bounded() -> Iterator[None]:
    """Inside, a stage may be given `max_restarts`: Ray's defaults are endless, and this Ray
    warns about the only way to bound them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        yield


def explain(error: Exception, what: str = "evaluation") -> UserError:
    """The UserError that an actor raised, or the last line of what Ray says of `what`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in reversed(lines):
        if "UserError: " in line:
            return UserError(line.split("UserError: ", 1)[1])
    return UserError(f"{what} failed: {(lines[-1] if lines else type(error).__name__)[:300]}")
