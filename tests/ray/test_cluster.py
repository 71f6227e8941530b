"""A Ray that we start listens on this machine only."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

CODE = """
import psutil
from muscle.launch import cluster
cluster.connect()
import ray
assert ray.util.get_node_ip_address() == "127.0.0.1"
@ray.remote
def two(): return 2
assert ray.get(two.remote()) == 2
open_to_all = []
for process in psutil.Process().children(recursive=True):
    for connection in process.net_connections(kind="inet"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.ip in ("0.0.0.0", "::"):
            open_to_all.append((process.name(), connection.laddr.port))
print("OPEN", open_to_all)
assert not open_to_all, open_to_all
ray.shutdown()
"""


def test_nothing_of_rays_core_listens_on_a_public_address() -> None:
    result = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=False, timeout=240
    )
    assert result.returncode == 0, result.stdout + result.stderr
