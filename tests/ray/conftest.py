"""One local Ray for all tests of this folder."""

import os
import signal
from collections.abc import Callable, Iterator

import psutil
import pytest


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
