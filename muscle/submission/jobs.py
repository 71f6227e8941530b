"""Submit once, follow, stop: what the commands do with a job server."""

import re
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

from muscle import __version__
from muscle.errors import UserError
from muscle.report.text import one_line, plain
from muscle.submission.packing import ENTRY, Package
from muscle.submission.server import MARK, Job, JobServer, LostError, Order

Say = Callable[[str], None]
"""Takes a line for the user, or a piece of a log."""

POLL_S = 1.0
PATIENCE_S = 300.0
"""How long a lost connection is tried again."""
WAITING_S = 5.0
"""A job that no node has taken for so long is said to wait."""
STOPPING_S = 30.0
STOPPED = 143
"""Exit code of a followed job that somebody stopped."""

_TRIES = 5


def id_of(package: Package, number: int = 1) -> str:
    """The id of a package's nth job: the same run has the same ids, from any machine."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", package.name)
    last = "" if number == 1 else f"-{number}"
    return f"muscle-{name}-{package.identity}{last}"


def order_of(package: Package, number: int, folder: Path) -> Order:
    """A package's nth job. Nothing of this machine's environment is in it."""
    words = ["python", ENTRY, *package.arguments]
    metadata = {
        MARK: __version__,
        "kind": package.kind,
        "experiment": package.name,
        "output": package.output,
        "run": package.identity,
    }
    return Order(id_of(package, number), shlex.join(words), folder, metadata)


def submit(server: JobServer, package: Package) -> tuple[str, bool]:
    """Have a package done; returns the job's id, and whether it was there before.

    While a job of the same run is waiting or running, that is the one. After it ended another
    is submitted, which goes on by what the storage holds.

    Raises:
        UserError: another run writes to the same place at present; the server refuses.
    """
    with tempfile.TemporaryDirectory(prefix="muscle-") as place:
        folder = Path(place)
        package.write(folder)
        number = 0
        for _ in range(_TRIES):
            jobs = ours(server.jobs())
            mine = [job for job in jobs if job.metadata.get("run") == package.identity]
            for job in mine:
                if not job.over:
                    return job.id, True
            _refuse_clash(jobs, package)
            taken = {job.id for job in jobs}
            number = max(number, len(mine)) + 1
            while id_of(package, number) in taken:
                number += 1
            order = order_of(package, number, folder)
            if server.submit(order):
                return order.id, False
            # Somebody was faster: theirs is the job.
    raise UserError(f"the job can't be submitted: its id {order.id!r} is always taken")


def _refuse_clash(jobs: Sequence[Job], package: Package) -> None:
    for job in jobs:
        if not job.over and job.metadata.get("output") == package.output:
            raise UserError(
                f"job {job.id} writes to {package.output} with other settings: stop it (muscle "
                f"jobs stop {job.id}), or give another --output"
            )


def ours(jobs: Sequence[Job]) -> list[Job]:
    """The jobs that `muscle submit` made, the latest first."""
    return sorted(
        (job for job in jobs if MARK in job.metadata), key=lambda job: -(job.started or 0)
    )


def find(server: JobServer, id_: str) -> Job:
    """The job of an id.

    Raises:
        UserError: there is none; names the nearest.
    """
    job = server.job(id_)
    if job is None:
        known = [job.id for job in server.jobs()]
        near = get_close_matches(id_, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "muscle jobs list shows them"
        raise UserError(f"there is no job {one_line(id_, 80)!r} at {server.url}: {hint}")
    return job


class Follower:
    """Shows a job's log as it comes, through lost connections, until it ends.

    Args:
        say: takes our own lines.
        show: takes pieces of the log.
    """

    def __init__(self, server: JobServer, say: Say, show: Say):
        self.server = server
        self._say = say
        self._show = show
        self.log = ""
        self._waits: str | None = None
        self._lost: float | None = None

    def follow(self, id_: str) -> Job:
        """Returns the job when it is over; its log is `log`.

        Raises:
            UserError: no such job, or a connection that doesn't come back.
        """
        began = time.monotonic()
        while True:
            try:
                job = find(self.server, id_)
                self._found()
                if job.over:
                    self._add(0, self.server.logs(id_))
                    return job
                if job.status == "PENDING":
                    self._pending(job, time.monotonic() - began)
                else:
                    self._tail(id_)
            except LostError as error:
                self._is_lost(error, id_)
            time.sleep(POLL_S)

    def _tail(self, id_: str) -> None:
        # A tail begins at the beginning, after a lost connection too.
        at = 0
        for piece in self.server.tail(id_):
            self._found()
            self._add(at, piece)
            at += len(piece)

    def _add(self, at: int, piece: str) -> None:
        """Show what is new of a piece that begins at the log's character `at`."""
        new = piece[max(0, len(self.log) - at) :]
        if new:
            self.log += new
            self._show(harmless(new))

    def _pending(self, job: Job, seconds: float) -> None:
        if seconds < WAITING_S or self._waits == job.message:
            return
        if self._waits is None:
            self._say(
                "waiting: no node has taken the job yet. Its driver asks for one CPU on a node "
                "that isn't for scoring or training; a cluster that grows starts one"
            )
        self._waits = job.message
        self._say(f"{job.id} is pending: {one_line(job.message)}")

    def _is_lost(self, error: LostError, id_: str) -> None:
        now = time.monotonic()
        if self._lost is None:
            self._lost = now
            self._say(
                f"connection lost ({one_line(str(error), 200)}): trying again; the job goes on"
            )
        elif now - self._lost > PATIENCE_S:
            raise UserError(
                f"{self.server.url} can't be reached any more; if the cluster lives the job goes "
                f"on: muscle jobs logs {id_} --address {self.server.url}"
            )

    def _found(self) -> None:
        if self._lost is not None:
            self._lost = None
            self._say("connected again")


def harmless(text: str) -> str:
    """A log without terminal codes; a carriage return, with which bars are redrawn, stays."""
    return "\r".join(plain(part) for part in text.split("\r"))


def exit_code(job: Job) -> int:
    """What a followed job's command ends with: the driver's own code, `STOPPED` if it was stopped.

    Raises:
        UserError: the driver never began, or was lost with its node.
    """
    if job.status == "STOPPED":
        return STOPPED
    if job.exit_code is not None:
        return job.exit_code if job.exit_code >= 0 else 128 - job.exit_code
    if job.status == "SUCCEEDED":
        return 0
    raise UserError(
        f"job {job.id} failed on the cluster: {one_line(job.message, 400)}; the same command "
        "submits it again, and it goes on from where it was"
    )


def stop(server: JobServer, id_: str) -> Job:
    """Stop a job and wait until it has, at most `STOPPING_S`; returns it as it is then.

    Raises:
        UserError: no such job.
    """
    job = find(server, id_)
    if job.over:
        return job
    server.stop(id_)
    until = time.monotonic() + STOPPING_S
    while not job.over and time.monotonic() < until:
        time.sleep(POLL_S / 4)
        job = find(server, id_)
    return job
