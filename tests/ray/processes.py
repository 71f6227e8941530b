"""The `muscle` command as a user runs it, and as a machine that fails ends it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import psutil


def muscle(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; it must exit with `code`."""
    result = subprocess.run(
        [sys.executable, "-m", "muscle.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result


def kill_when(ready: Callable[[], bool], arguments: Sequence[str]) -> None:
    """Start the command and kill it, with all of its processes, once `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "muscle.cli", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 400
    while not ready():
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in reversed(tree):
        try:
            os.kill(one.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
