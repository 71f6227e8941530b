"""One local Ray for all tests of this folder."""

import os
import signal
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest

from muscle.training.job import OnProgress


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first: what runs beside it fills the other process's time."""
    items.sort(key=lambda item: item.path.name != "test_run.py")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    import ray

    from muscle.launch import cluster

    cluster.connect()
    yield
    ray.shutdown()


@pytest.fixture
def kill_worker() -> Callable[[str], bool]:
    """`kill_worker(name)`: SIGKILL one of this process's Ray workers; whether there was one."""

    def kill(name: str) -> bool:
        for process in psutil.Process().children(recursive=True):
            try:
                if name in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    return True
            except (psutil.Error, ProcessLookupError):  # it ended by itself
                continue
        return False

    return kill


@pytest.fixture
def losing_an_actor(
    kill_worker: Callable[[str], bool],
) -> Callable[[Callable[[OnProgress], object]], None]:
    """`losing_an_actor(work)`: run work(on_progress), and SIGKILL one of its actors as soon as
    something is done; asserts that there was one to kill."""

    def lose(work: Callable[[OnProgress], object]) -> None:
        killed = threading.Event()
        started = threading.Event()

        def kill_one() -> None:
            started.wait(120)
            if kill_worker("MapWorker"):
                killed.set()

        killer = threading.Thread(target=kill_one)
        killer.start()
        work(lambda progress: started.set() if progress.done else None)
        killer.join()
        assert killed.is_set()

    return lose
