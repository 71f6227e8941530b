"""Does the study's jobs, in this process or in several side by side, until the time is up."""

import multiprocessing
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effect_methods import METHODS
from effect_records import Job, Records
from record import say


@dataclass
class Clock:
    """How much time is left; None: as much as it takes."""

    hours: float | None
    began: float = field(default_factory=time.monotonic)

    @property
    def up(self) -> bool:
        """Whether no further job may begin."""
        return self.hours is not None and time.monotonic() - self.began > 3600 * self.hours


def work_off(work: Path, jobs: Sequence[Job], processes: int, clock: Clock) -> list[Job]:
    """Do jobs in their order; returns those that the time didn't allow or that failed.

    A job's record is there when it is done, so that a stop costs one fit.
    """
    left = list(jobs)
    failed: list[Job] = []
    if processes == 1:
        while left and not clock.up:
            _tell(job := left.pop(0), do(work, job), len(left), failed)
        return failed + left
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        running: dict[Future[str], Job] = {}
        try:
            while running or (left and not clock.up):
                while left and len(running) < processes and not clock.up:
                    running[pool.submit(do, work, left[0])] = left[0]
                    left.pop(0)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    _tell(running.pop(future), future.result(), len(left), failed)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed + left


def _tell(job: Job, outcome: str, left: int, failed: list[Job]) -> None:
    if outcome.startswith("failed"):
        failed.append(job)
    say(f"{job.cell} seed {job.seed} {job.method}: {outcome} ({left} left)")


def do(work: Path, job: Job) -> str:
    """One job, and its record; says in words what came out."""
    _alone()
    from effect_fits import Impossible, desk

    records = Records(work)
    there = records.find(job.cell, job.seed, job.method)
    if there is not None and set(job.parts) <= set(there["parts"]):
        return "was done by another process"
    began = time.monotonic()
    try:
        found: dict[str, Any] = desk(work, job.cell, job.seed).answers(
            METHODS[job.method], job.parts
        )
    except Impossible as reason:
        records.put(job, {"impossible": str(reason)})
        return f"not possible: {reason}"
    except Exception:
        return f"failed, and is tried again at the next start:\n{traceback.format_exc()}"
    records.put(job, found)
    return f"{time.monotonic() - began:.0f} s"


def _alone() -> None:
    """One thread: jobs side by side are worth more than threads of one."""
    import torch

    torch.set_num_threads(1)
