"""What is read of Ray's records and of an autoscaler's configuration; no Ray is started."""

import math
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_rays_status_becomes_nodes_and_answers() -> None:
    from ray.core.generated import autoscaler_pb2 as messages

    from muscle.launch.lookout import read

    reply = messages.GetClusterStatusReply()
    nodes = reply.cluster_resource_state.node_states
    nodes.add(
        node_id=b"\x01",
        ray_node_type_name="gpu-scoring",
        total_resources={"GPU": 1.0},
        available_resources={"GPU": 0.5},
        labels={"muscle-role": "scoring"},
        status=messages.RUNNING,
    )
    nodes.add(node_id=b"\x02", total_resources={"GPU": 1.0}, status=messages.DEAD)
    nodes.add(node_id=b"\x03", total_resources={"GPU": 1.0}, status=messages.DRAINING)
    state = reply.autoscaling_state
    state.pending_instance_requests.add(ray_node_type_name="gpu-training", count=2)
    state.pending_instances.add(ray_node_type_name="gpu-training")
    for when, reason in ((2, "no\n capacity"), (1, "an older reason")):
        state.failed_instance_requests.add(
            ray_node_type_name="gpu-scoring", failed_ts=when, reason=reason
        )
    state.infeasible_resource_requests.add(resources_bundle={"GPU": 9.0})
    gang = state.infeasible_gang_resource_requests.add()
    gang.requests.add(resources_bundle={"GPU": 8.0})

    sight = read(reply)
    (node,) = sight.nodes  # what is dead or on its way out holds nothing
    assert (node.id, node.kind, node.free["GPU"]) == ("01", "gpu-scoring", 0.5)
    assert node.labels == {"muscle-role": "scoring"}
    assert sight.answer.starting == {"gpu-training": 3}
    assert sight.answer.failed == {"gpu-scoring": "no capacity"}
    assert sight.answer.infeasible == ({"GPU": 9.0}, {"GPU": 8.0})


def test_the_shipped_cluster_file_has_room_for_what_it_is_made_for() -> None:
    from muscle.launch.capacity import Ask, Capacity
    from muscle.launch.lookout import from_config

    types, limit = from_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    have = Capacity((), types, limit)
    assert "head" not in {kind.name for kind in types}
    assert have.room(Ask({"CPU": 1, "GPU": 1}, 1, {"muscle-role": "scoring"})) >= 2
    assert have.room(Ask({"CPU": 8, "GPU": 1}, 1, {"muscle-role": "training"})) >= 8
    assert have.room(Ask({"CPU": 1}, 1, {"muscle-role": "cpu"})) >= 1


def test_kuberays_own_reading_of_a_cluster_is_understood() -> None:
    from ray.autoscaler._private.kuberay import autoscaling_config

    from muscle.launch.lookout import from_config

    def group(name: str, limits: dict[str, str], **more: object) -> dict[str, object]:
        pod = {"spec": {"containers": [{"name": "ray", "resources": {"limits": limits}}]}}
        return {"groupName": name, "rayStartParams": {}, "template": pod, **more}

    resource = {
        "metadata": {"name": "muscle", "namespace": "team"},
        "spec": {
            "headGroupSpec": group("headgroup", {"cpu": "2", "memory": "8Gi"}),
            "workerGroupSpecs": [
                group(
                    "scoring",
                    {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "1"},
                    minReplicas=0,
                    maxReplicas=4,
                    labels={"muscle-role": "scoring"},
                )
            ],
        },
    }
    (kind,), limit = from_config(
        autoscaling_config._derive_autoscaling_config_from_ray_cr(resource)
    )
    assert (kind.name, kind.labels, kind.most) == ("scoring", {"muscle-role": "scoring"}, 4)
    assert (kind.resources["GPU"], kind.resources["CPU"]) == (1, 8)
    assert limit == 4


def test_a_managed_platforms_report_is_understood() -> None:
    from ray.core.generated import autoscaler_pb2 as messages

    from muscle.launch.lookout import from_cluster_config

    config = messages.ClusterConfig()
    config.node_group_configs.add(name="gpus", resources={"GPU": 8}, max_count=-1)
    config.node_group_configs.add(name="cpus", resources={"CPU": 8}, max_count=3)
    gpus, cpus = from_cluster_config(config)
    assert math.isinf(gpus.most) and cpus.most == 3 and gpus.resources == {"GPU": 8}


def test_the_monitor_of_this_cluster_alone_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from muscle.launch import lookout

    file = tmp_path / "cluster.yaml"
    secret = {"node_config": {"UserData": "private"}, "resources": {"CPU": 4}}
    config = {"available_node_types": {"cpu": secret}, "head_node_type": "head", "auth": {"k": 1}}
    file.write_text(yaml.safe_dump(config))

    def monitor(address: str, *more: str) -> SimpleNamespace:
        words = ["python", "ray/autoscaler/v2/monitor.py", f"--gcs-address={address}", *more]
        return SimpleNamespace(info={"cmdline": words})

    processes = [
        SimpleNamespace(info={"cmdline": None}),
        SimpleNamespace(info={"cmdline": ["python", "ray/_private/log_monitor.py"]}),
        monitor("10.0.0.1:6379"),
        monitor("10.0.0.2:6379", f"--autoscaling-config={file}"),
    ]
    monkeypatch.setattr(lookout.psutil, "process_iter", lambda attributes: processes)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert lookout.autoscaler_config("10.0.0.1:6379") == {}  # a cluster without an autoscaler
    assert lookout.autoscaler_config("10.0.0.2:6379") == {
        "available_node_types": {"cpu": {"resources": {"CPU": 4}}},
        "head_node_type": "head",
    }
    assert lookout.autoscaler_config("10.0.0.3:6379") is None


def test_another_version_on_the_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from muscle.errors import UserError
    from muscle.launch.cluster import check_versions

    here = platform.python_version()
    check_versions("h:1", ray.__version__, here)
    with pytest.raises(UserError, match=r"Ray .* here and 2\.55\.0 on .*install ray==2\.55\.0"):
        check_versions("h:1", "2.55.0", here)
    with pytest.raises(UserError, match=r"Python .* here and 3\.9\.1 on .*use Python 3\.9\.1"):
        check_versions("h:1", ray.__version__, "3.9.1")
    monkeypatch.setenv("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")
    check_versions("h:1", ray.__version__, here.rpartition(".")[0] + ".99")
