"""An experiment that can be submitted, and a job server that lives in this process."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from muscle.submission.server import Job, LostError, Order

SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "task": "testbed_choice",
    "old": {"model": "testbed:v1"},
    "new": {"model": "testbed:v2"},
    "storage": "${MUSCLE_STORAGE}",
}


def write(folder: Path, **changes: Any) -> Path:
    """The experiment as a file; a change of None leaves a setting out."""
    settings = {k: v for k, v in {**SETTINGS, **changes}.items() if v is not None}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


class FakeServer:
    """Jobs that end as they are told to."""

    url = "http://cluster:8265"

    def __init__(self) -> None:
        self.known: dict[str, Job] = {}
        self.orders: list[Order] = []
        self.packages: list[dict[str, bytes]] = []
        self.text: dict[str, str] = {}
        self.lose = 0
        """How many questions meet a broken connection."""
        self.endings: list[dict[str, Any]] = []
        """What becomes of a job, one change after each tail or look at a waiting job."""
        self.stopped: list[str] = []
        self.lock = threading.Lock()

    def submit(self, order: Order) -> bool:
        with self.lock:
            if order.id in self.known:
                return False
            self.orders.append(order)
            files = sorted(p for p in order.folder.rglob("*") if p.is_file())
            self.packages.append({str(p.relative_to(order.folder)): p.read_bytes() for p in files})
            started = float(len(self.known) + 1)
            self.known[order.id] = Job(
                order.id, "RUNNING", started=started, metadata=dict(order.metadata)
            )
            return True

    def jobs(self) -> list[Job]:
        return list(self.known.values())

    def job(self, id_: str) -> Job | None:
        self._maybe_lose()
        found = self.known.get(id_)
        if found is not None and found.status == "PENDING":
            self._next(id_)
        return found

    def logs(self, id_: str) -> str:
        return self.text.get(id_, "")

    def tail(self, id_: str) -> Iterator[str]:
        text = self.text.get(id_, "")
        middle = len(text) // 2
        yield text[:middle]
        self._maybe_lose()
        yield ""
        yield text[middle:]
        self._next(id_)

    def stop(self, id_: str) -> None:
        self.stopped.append(id_)
        self.known[id_] = replace(self.known[id_], status="STOPPED")

    def _next(self, id_: str) -> None:
        if self.endings:
            self.known[id_] = replace(self.known[id_], **self.endings.pop(0))

    def _maybe_lose(self) -> None:
        if self.lose:
            self.lose -= 1
            raise LostError("broken pipe")
