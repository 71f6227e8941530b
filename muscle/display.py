"""Progress on a terminal (bars) or in a log (a line now and then)."""

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from muscle.training.job import Progress

LOG_INTERVAL_S = 15.0


class ProgressDisplay:
    """Shows each stage: rows, rate, remaining. Call it with a `Progress`."""

    def __init__(self, console: Console):
        self.console = console
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TextColumn("{task.fields[rate]}", style="cyan"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}", style="dim"),
            console=console,
            disable=not console.is_terminal,
        )
        self.stages: dict[str, TaskID] = {}
        self.started: dict[str, tuple[float, int]] = {}
        self.logged: dict[str, float] = {}

    def __enter__(self) -> "ProgressDisplay":
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def __call__(self, progress: Progress) -> None:
        """Show how far a stage is; may be called from several threads."""
        now = time.monotonic()
        # A resumed stage starts at its first report, not at zero.
        first, base = now, progress.done
        if progress.done:
            first, base = self.started.setdefault(progress.stage, (now, progress.done))
            if progress.done < base:  # the same stage once more, from its beginning
                first, base = self.started[progress.stage] = (now, progress.done)
        per_second = (progress.done - base) / (now - first) if now - first > 1 else 0.0
        rate = f"{per_second:.0f}/s" if per_second >= 0.5 else ""
        if not self.console.is_terminal:
            left = (progress.total - progress.done) / per_second if per_second else 0.0
            self._log(progress, rate, left, now)
            return
        if progress.stage not in self.stages:
            self.stages[progress.stage] = self.bars.add_task(
                escape(progress.stage), total=progress.total, unit=progress.unit, rate="", remark=""
            )
        self.bars.update(
            self.stages[progress.stage],
            completed=progress.done,
            total=progress.total,
            rate=rate,
            remark=escape(progress.remark),
        )

    def _log(self, progress: Progress, rate: str, left: float, now: float) -> None:
        finished = progress.done >= progress.total
        if not finished and now - self.logged.get(progress.stage, -LOG_INTERVAL_S) < LOG_INTERVAL_S:
            return
        self.logged[progress.stage] = now
        parts = [
            f"{progress.stage}: {progress.done}/{progress.total} {progress.unit}",
            rate,
            f"{left / 60:.0f} min left" if left >= 60 else f"{left:.0f} s left" if left else "",
            progress.remark,
        ]
        text = ", ".join(p for p in parts if p)
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
