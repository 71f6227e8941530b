"""What `muscle submit` and `muscle jobs` do, once parsed."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from muscle.errors import UserError
from muscle.report.text import one_line
from muscle.submission import jobs, returning
from muscle.submission.arrival import said_results
from muscle.submission.manifest import rayjob
from muscle.submission.packing import Package, pack
from muscle.submission.server import Job, JobServer, LostError

INTERRUPTED = 130
WRONG_USAGE = 2


def say(text: str) -> None:
    """A line of ours: on stderr, so that stdout holds the job's log alone."""
    print(f"muscle: {text}", file=sys.stderr, flush=True)


def show(text: str) -> None:
    """A piece of a job's log."""
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def reaching() -> Iterator[None]:
    """A connection that breaks during one question is the user's to see to."""
    try:
        yield
    except LostError as error:
        raise UserError(f"the job server can't be reached ({error}): try again") from None


def submit(
    file: Path,
    address: str | None,
    tune: bool,
    overrides: Sequence[str],
    output: str | None,
    no_wait: bool,
    save: str | None,
) -> int:
    """`muscle submit`: returns the exit code, the driver's own where it is followed.

    Raises:
        UserError: whatever a user can mend.
    """
    from muscle.launch.jobs import connect, job_server_url

    job_server_url(address)  # wrong usage before anything is read
    package = pack(file, overrides, output, tune)
    for note in package.notes:
        say(f"note: {note}")
    server = connect(address)
    id_, there = jobs.submit(server, package)
    say(f"job {id_} {'is running already' if there else 'is submitted'}; {_later(id_, server)}")
    if no_wait:
        print(id_)
        return 0
    follower = jobs.Follower(server, say, show)
    code = _follow(follower, id_, server)
    if code == 0 or said_results(follower.log) is not None:
        _bring_back(follower.log, package, save)
    return code


def _later(id_: str, server: JobServer) -> str:
    at = f"--address {server.url}"
    return f"it needs no terminal: muscle jobs logs {id_} {at}, muscle jobs stop {id_} {at}"


def _follow(follower: jobs.Follower, id_: str, server: JobServer) -> int:
    try:
        job = follower.follow(id_)
    except KeyboardInterrupt:
        say(f"job {id_} goes on without this terminal; {_later(id_, server)}")
        return INTERRUPTED
    code = jobs.exit_code(job)
    if job.status == "STOPPED":
        say(f"job {id_} was stopped; submitted again, its run goes on from there")
    elif code and said_results(follower.log) is not None:
        say(f"job {id_} ended with exit code {code}: not every adapter of the fleet moves")
    elif code == WRONG_USAGE:
        say(f"job {id_} ended with exit code 2: its last line says what to mend")
    elif code:
        say(f"job {id_} ended with exit code {code}; submitted again, its run goes on from there")
    return code


def _bring_back(log: str, package: Package, save: str | None) -> None:
    said = said_results(log)
    if said is None:
        say(f"results are in {package.output}")
        return
    returned = returning.bring_back(said, package, save)
    if returned.folder is None:
        say(f"results are in {said.output} (no copy here: {returned.reason})")
    else:
        say(f"results are in {said.output}, the report also in {returned.folder}")


def only_emits(others: Mapping[str, Any]) -> None:
    """Refuse options that printing a manifest has no use for.

    Raises:
        UserError: names the first one given.
    """
    for name, value in others.items():
        if value:
            raise UserError(
                f"{name} is for a job server, and --emit prints a manifest: leave it out"
            )


def emit(
    file: Path,
    tune: bool,
    overrides: Sequence[str],
    output: str | None,
    kind: str | None,
    template: Path | None,
) -> None:
    """`muscle submit --emit`: print a manifest.

    Raises:
        UserError: whatever a user can mend.
    """
    if kind != "rayjob":
        given = "missing, and --template is for it" if kind is None else repr(kind)
        raise UserError(f"--emit is {given}: rayjob is what there is")
    package = pack(file, overrides, output, tune)
    for note in package.notes:
        say(f"note: {note}")
    print(rayjob(package, template), end="")


def show_log(id_: str, address: str | None, follow: bool) -> int:
    """`muscle jobs logs`: returns the exit code, the driver's own where it is followed.

    Raises:
        UserError: no such job, no connection.
    """
    from muscle.launch.jobs import connect

    server = connect(address)
    job = jobs.find(server, id_)
    if not follow:
        show(jobs.harmless(server.logs(job.id)))
        return 0
    return _follow(jobs.Follower(server, say, show), job.id, server)


def stop_job(id_: str, address: str | None) -> None:
    """`muscle jobs stop`.

    Raises:
        UserError: no such job, no connection.
    """
    from muscle.launch.jobs import connect

    server = connect(address)
    before = jobs.find(server, id_)
    if before.over:
        say(f"job {before.id} has ended before: {before.status}")
        return
    job = jobs.stop(server, before.id)
    if not job.over:
        say(f"job {job.id} is asked to stop and still {job.status}: it ends when a node takes it")
    else:
        say(f"job {job.id} has ended: {job.status}; submitted again, its run goes on from there")


def show_jobs(address: str | None, as_json: bool) -> None:
    """`muscle jobs list`.

    Raises:
        UserError: no connection.
    """
    from muscle.launch.jobs import connect

    server = connect(address)
    found = [_row(job) for job in jobs.ours(server.jobs())]
    if as_json:
        print(json.dumps(found, indent=1))
        return
    if not found:
        say(f"no jobs of muscle at {server.url}")
        return
    table = Table("id", "status", "experiment", "started", "took", "output")
    for column in table.columns:
        column.overflow = "fold"
    table.columns[0].no_wrap = True  # ids are there to be copied
    for row in found:
        began = row["started"]
        table.add_row(
            row["id"],
            row["status"] + (f" ({row['exit_code']})" if row["exit_code"] else ""),
            escape(one_line(row["experiment"], 60)),
            "" if began is None else datetime.fromtimestamp(began).strftime("%m-%d %H:%M"),
            _took(row["seconds"]),
            escape(one_line(row["output"], 200)),
        )
    Console().print(table)


def _row(job: Job) -> dict[str, Any]:
    end = job.ended if job.over else time.time()
    known = job.started is not None and end is not None
    return {
        "id": job.id,
        "status": job.status,
        "exit_code": job.exit_code,
        "kind": job.metadata.get("kind", ""),
        "experiment": job.metadata.get("experiment", ""),
        "output": job.metadata.get("output", ""),
        "started": job.started,
        "ended": job.ended,
        "seconds": round(end - job.started, 1) if known else None,  # type: ignore[operator]
    }


def _took(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
