"""What a request can fail by, in one line each."""

from typing import Literal

from muscle.credentials import redacted
from muscle.errors import UserError

Endpoint = Literal["chat", "completions"]


class RowError(Exception):
    """Why one request has no answer.

    passing  whether it is the server's state, so that it may be answered another time
    """

    def __init__(self, reason: str, passing: bool):
        super().__init__(reason)
        self.reason, self.passing = one_line(reason), passing


class MissingError(UserError):
    """The server has no such endpoint."""


def one_line(text: str) -> str:
    """A foreign message: one line, short, no secrets."""
    return redacted(" ".join(str(text).split()))[:300]
