"""Jobs as a cluster's job server knows them, and what is asked of such a server."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
OVER = ("STOPPED", "SUCCEEDED", "FAILED")

MARK = "muscle"
"""The metadata's key that makes a job one of ours; its value is the client's version."""


class LostError(Exception):
    """The connection broke; the job does not mind."""


@dataclass(frozen=True)
class Order:
    """A job to be done.

    entrypoint  a shell's command line, run in a copy of `folder`
    metadata    kept with the job, for `muscle jobs list`
    """

    id: str
    entrypoint: str
    folder: Path
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Job:
    """A job; times in seconds since 1970, `exit_code` of its driver where that ended by itself."""

    id: str
    status: Status
    message: str = ""
    exit_code: int | None = None
    started: float | None = None
    ended: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.status in OVER


class JobServer(Protocol):
    """A cluster's job server. Every call may raise `LostError`."""

    url: str

    def submit(self, order: Order) -> bool:
        """Have a job done; False if its id was taken before.

        Raises:
            UserError: the server refuses it.
        """
        ...

    def jobs(self) -> list[Job]:
        """All jobs that the cluster remembers."""
        ...

    def job(self, id_: str) -> Job | None:
        """One job; None where there is none of that id."""
        ...

    def logs(self, id_: str) -> str:
        """All that a job has printed; nothing where it can't be had any more."""
        ...

    def tail(self, id_: str) -> Iterator[str]:
        """A job's log from its beginning, as it grows, until the job ends; the empty text now
        and then while nothing comes."""
        ...

    def stop(self, id_: str) -> None:
        """Ask a job to stop."""
        ...
