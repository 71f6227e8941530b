"""Progress from workers to the driver: one small actor holds the latest of each stage."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from muscle.errors import UserError
from muscle.training.job import OnProgress, Progress

INTERVAL_S = 0.4


@ray.remote(num_cpus=0)
class ProgressBoard:
    """The latest progress of every stage."""

    def __init__(self) -> None:
        self.latest: dict[str, Progress] = {}
        self.remarks: dict[str, None] = {}
        self.failures: dict[str, UserError] = {}

    def fail(self, stage: str, error: UserError) -> None:
        """Keep what a user must mend before a stage can go on: the first thing said."""
        self.failures.setdefault(stage, error)

    def failure(self, stage: str) -> UserError | None:
        """What a user must mend, if anything."""
        return self.failures.get(stage)

    def note(self, remark: str) -> None:
        """Keep a remark, once, whoever makes it."""
        self.remarks[remark] = None

    def notes(self) -> list[str]:
        """All remarks."""
        return list(self.remarks)

    def post(self, progress: Progress) -> None:
        """Replace a stage's progress."""
        self.latest[progress.stage] = progress

    def add(self, stage: str, done: int, total: int, unit: str) -> None:
        """Add to a stage's count: for many workers that share one stage."""
        before = self.latest.get(stage)
        self.latest[stage] = Progress(stage, done + (before.done if before else 0), total, unit)

    def read(self) -> list[Progress]:
        """All stages' progress."""
        return list(self.latest.values())


class Poster:
    """Posts at most every `INTERVAL_S`, and always what completes a stage."""

    def __init__(self, board: Any):
        self.board = board
        self.last = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self.last >= INTERVAL_S or progress.done >= progress.total:
            self.last = now
            self.board.post.remote(progress)


def failure_of(board: Any, title: str) -> UserError | None:
    """What a user must mend for a stage to go on; None too where the board's node was lost."""
    try:
        said: UserError | None = ray.get(board.failure.remote(title))
    except ray.exceptions.RayActorError:
        return None
    return said


def post_failure(board: Any, title: str, error: UserError) -> None:
    """Say what a user must mend; when this returns the board has it, or is lost."""
    with suppress(ray.exceptions.RayActorError):
        ray.get(board.fail.remote(title, error))


@contextmanager
def watching(on_progress: OnProgress) -> Iterator[Any]:
    """A board whose changes are passed on to `on_progress` while the block runs."""
    # On the driver's node: another one may be lost while work goes on.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    board = ProgressBoard.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    stop = threading.Event()

    def read() -> None:
        seen: dict[str, Progress] = {}

        def pass_on() -> None:
            for progress in ray.get(board.read.remote(), timeout=10):
                if seen.get(progress.stage) != progress:
                    seen[progress.stage] = progress
                    on_progress(progress)

        while not stop.wait(INTERVAL_S):
            try:
                pass_on()
            except Exception:  # a display must never end the work it shows
                continue
        try:
            pass_on()
        except Exception:
            return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join(timeout=15)
        ray.kill(board)
