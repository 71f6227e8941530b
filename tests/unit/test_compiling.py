"""DeepSpeed's one-time compilation: a worker killed in it must not stop all that come after."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from muscle.training.deepspeed_engine import forget_abandoned

COMPILES = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("compiles", flush=True)
time.sleep(600)
"""


def test_a_lock_is_kept_while_somebody_compiles_and_dropped_when_they_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    lock = tmp_path / "lock"
    process = subprocess.Popen(
        [sys.executable, "-c", COMPILES, str(lock)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "compiles\n"
        assert not forget_abandoned(lock) and lock.exists()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not FileBaton(str(lock)).try_acquire()  # torch would wait for it for ever
    assert forget_abandoned(lock) and not lock.exists()
    assert FileBaton(str(lock)).try_acquire()


def test_without_a_lock_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert not forget_abandoned(tmp_path / "lock")


def test_a_lock_that_is_just_being_released_is_left_to_its_owner(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    baton = FileBaton(str(lock))
    assert baton.try_acquire()
    assert baton.fd is not None
    os.close(baton.fd)  # the first half of `release`
    baton.fd = None
    failed: list[OSError] = []

    def release() -> None:  # the second half, which fails where the file is gone
        time.sleep(0.1)
        try:
            baton.release()
        except OSError as error:
            failed.append(error)

    ending = threading.Thread(target=release)
    ending.start()
    assert not forget_abandoned(lock)
    ending.join()
    assert not failed and not lock.exists()
