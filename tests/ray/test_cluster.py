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


def test_what_this_machine_will_never_have_is_refused_at_once(ray_local: None) -> None:
    from muscle.config import ResourcesConfig
    from muscle.errors import UserError
    from muscle.launch.cluster import check_resources

    check_resources(ResourcesConfig())
    for settings, named in (
        ({"workers": 64}, "64 CPUs"),
        ({"gpus_per_worker": 1}, "1 GPUs"),
        ({"min_actors": 50, "max_actors": 50}, "100 CPUs"),
    ):
        with pytest.raises(UserError, match=named):
            check_resources(ResourcesConfig(**settings))


def test_pools_share_too_few_gpus() -> None:
    from muscle.launch.cluster import scoring_gpus

    assert scoring_gpus("auto", available=0, pools=2) == 0
    assert scoring_gpus("auto", available=1, pools=2) == 0.5  # else the second pool never starts
    assert scoring_gpus("auto", available=8, pools=2) == 1
    assert scoring_gpus(0.25, available=8, pools=2) == 0.25


def test_pools_take_turns_where_both_do_not_fit(ray_local: None) -> None:
    from muscle.config import ResourcesConfig
    from muscle.launch.pools import rounds

    assert rounds([0, 1], ResourcesConfig()) == [[0, 1]]
    assert rounds([0, 1], ResourcesConfig(gpus_per_actor=1)) == [[0], [1]]
