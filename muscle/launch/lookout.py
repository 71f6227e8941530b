"""What Ray says of a cluster: its nodes, what its autoscaler may start, and what it answers.

One question to Ray's global control store has the nodes, the demand and the autoscaler's
state. The node types stand in the autoscaler's configuration alone, which only the head can
read: Ray's own record of them is filled by managed platforms, not by `ray up` or KubeRay.
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import psutil
import ray
import yaml
from ray.core.generated import autoscaler_pb2
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from muscle.launch.capacity import Answer, Capacity, Node, NodeType, Sight

TIMEOUT_S = 5
HEAD_TIMEOUT_S = 60.0
"""A busy head takes its time to start a process."""

_CORE: Any = ray._raylet
_MESSAGES: Any = autoscaler_pb2  # neither has types

HEAD = "node:__internal_head__"

logger = logging.getLogger(__name__)


def look() -> Sight:
    """What the cluster is and does now.

    Raises:
        Exception: Ray's own, where its control store doesn't answer.
    """
    client = _CORE.GcsClient(ray.get_runtime_context().gcs_address)
    reply = _MESSAGES.GetClusterStatusReply()
    reply.ParseFromString(client.get_cluster_status(timeout_s=TIMEOUT_S))
    return read(reply)


def read(reply: Any) -> Sight:
    """A `GetClusterStatusReply` as plain records."""
    nodes = tuple(
        Node(
            state.node_id.hex(),
            dict(state.total_resources),
            dict(state.available_resources),
            dict(state.labels),
            state.ray_node_type_name,
        )
        for state in reply.cluster_resource_state.node_states
        if state.status not in (_MESSAGES.DEAD, _MESSAGES.DRAINING)
    )
    state = reply.autoscaling_state
    starting: Counter[str] = Counter()
    for request in state.pending_instance_requests:
        starting[request.ray_node_type_name] += request.count
    for instance in state.pending_instances:
        starting[instance.ray_node_type_name] += 1
    failed = {}
    for request in sorted(state.failed_instance_requests, key=lambda one: one.failed_ts):
        failed[request.ray_node_type_name] = " ".join(request.reason.split())
    gangs = [one for gang in state.infeasible_gang_resource_requests for one in gang.requests]
    infeasible = [*state.infeasible_resource_requests, *gangs]
    bundles = tuple(dict(one.resources_bundle) for one in infeasible)
    return Sight(nodes, Answer(dict(starting), failed, bundles))


_found: dict[str, tuple[tuple[NodeType, ...] | None, float]] = {}


def capacity(alone: bool) -> Capacity:
    """What the cluster has and could have; `alone` is a Ray that will never grow.

    The node types are asked for once per process and cluster.
    """
    nodes = look().nodes
    if alone:
        return Capacity(nodes)
    address = ray.get_runtime_context().gcs_address
    if address not in _found:
        _found[address] = node_types(nodes, address)
    types, limit = _found[address]
    return Capacity(nodes, types, limit)


def node_types(nodes: tuple[Node, ...], address: str) -> tuple[tuple[NodeType, ...] | None, float]:
    """What the autoscaler may start, and how many nodes in all; None where it can't be known."""
    config = ray._private.state.state.get_cluster_config()
    if config is not None and config.node_group_configs:
        return from_cluster_config(config), math.inf
    head = next((node for node in nodes if HEAD in node.total), None)
    if head is None:
        return None, math.inf
    there = NodeAffinitySchedulingStrategy(head.id, soft=False)
    asked = _on_head.options(scheduling_strategy=there).remote(address)  # type: ignore[attr-defined]
    try:
        found = ray.get(asked, timeout=HEAD_TIMEOUT_S)
    except Exception as error:  # not knowing is allowed: nothing is refused then
        logger.info("the head doesn't tell its node types: %s", error)
        return None, math.inf
    return (None, math.inf) if found is None else from_config(found)


def from_cluster_config(config: Any) -> tuple[NodeType, ...]:
    """Node types as a managed platform reports them to Ray: without labels."""
    return tuple(
        NodeType(
            group.name,
            dict(group.resources),
            most=math.inf if group.max_count < 0 else group.max_count,
        )
        for group in config.node_group_configs
    )


def from_config(config: Mapping[str, Any]) -> tuple[tuple[NodeType, ...], float]:
    """Node types of an autoscaler's configuration (cluster.yaml's form, KubeRay's too), all but
    the head's, which is there already; and `max_workers`. {} is no autoscaler."""
    types = config.get("available_node_types") or {}
    limit = config.get("max_workers", math.inf)
    return tuple(
        NodeType(
            name,
            {key: float(number) for key, number in (kind.get("resources") or {}).items()},
            dict(kind.get("labels") or {}),
            kind.get("max_workers", limit),
        )
        for name, kind in types.items()
        if name != config.get("head_node_type")
    ), limit


@ray.remote(num_cpus=0)
def _on_head(address: str) -> dict[str, Any] | None:
    return autoscaler_config(address)


def autoscaler_config(address: str) -> dict[str, Any] | None:
    """What this head's autoscaler is configured with: its node types and limit, nothing else;
    {} where there is no autoscaler, None where that can't be read."""
    config = _of_monitor(address)
    if config is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        config = _of_kuberay()
    if config is None:
        return None
    names = ("available_node_types", "head_node_type", "max_workers")
    config = {name: config[name] for name in names if name in config}
    for kind in config.get("available_node_types", {}).values():
        kind.pop("node_config", None)
    return config


def _of_monitor(address: str) -> dict[str, Any] | None:
    """What Ray's monitor process of this cluster was started with: its command line says it."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if not any(word.endswith("monitor.py") and "autoscaler" in word for word in words):
            continue
        options = dict(
            word.split("=", 1) for word in words if word.startswith("--") and "=" in word
        )
        if options.get("--gcs-address") != address:
            continue
        path = options.get("--autoscaling-config")
        if path is None:
            return {}
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            return dict(yaml.safe_load(file))
    return None


def _of_kuberay() -> dict[str, Any] | None:
    """The RayCluster of this pod, in cluster.yaml's form: KubeRay's autoscaler runs in a
    container of its own, and the head's service account may read what it reads."""
    from ray.autoscaler._private.kuberay.autoscaling_config import AutoscalingConfigProducer

    account = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
    with open(account, encoding="utf-8") as file:
        namespace = file.read().strip()
    name = os.environ["RAY_CLUSTER_NAME"]
    return dict(AutoscalingConfigProducer(name, namespace)())
