"""The store through which the workers of a training find each other listens on one address."""

import os
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

CODE = """
import sys
import psutil
import torch.distributed as dist
from muscle.launch.rendezvous import narrow_store

if sys.argv[1] == "narrow":
    narrow_store()
dist.init_process_group("gloo", init_method="env://")
dist.barrier()
port = int(sys.argv[2])
for c in psutil.Process().net_connections("inet"):
    if c.status == psutil.CONN_LISTEN and c.laddr.port == port:
        print(c.laddr.ip)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("kind", "expected"), [("narrow", {"127.0.0.1"}), ("plain", {"::", "0.0.0.0"})]
)
def test_two_workers_meet_where_they_are_told(kind: str, expected: set[str]) -> None:
    """`plain` is the control: torch's own store, which is open to all."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, kind, port],
            env={**os.environ, **meeting, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    printed = [worker.communicate(timeout=240)[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert printed[0] and set(printed[0]) <= expected and printed[1] == []
