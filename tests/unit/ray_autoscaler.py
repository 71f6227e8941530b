"""What Ray's own autoscaler would start for a demand, without a cluster."""

import copy
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

Selector = Mapping[str, Sequence[str]]
"""Label to values: it must have one of them, or, where the label begins with "!", none."""


class Answer(NamedTuple):
    """Node types and how many of each; demands that no node type could ever hold."""

    started: dict[str, int]
    infeasible: int


def demand(count: int, resources: Mapping[str, float], selector: Selector | None = None) -> list:
    """`count` tasks or actors that each ask for `resources` on a node that `selector` takes."""
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.common_pb2 import LabelSelectorOperator

    labels = [
        (
            label.removeprefix("!"),
            LabelSelectorOperator.Value(f"LABEL_OPERATOR_{'NOT_' * label.startswith('!')}IN"),
            list(values),
        )
        for label, values in (selector or {}).items()
    ]
    one = ResourceRequestUtil.make(dict(resources), label_selectors=[labels] if labels else None)
    return [one] * count


def node_types(config: dict[str, Any]) -> dict[str, Any]:
    """The node types as the autoscaler (v2) reads them, after its validation."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    read = AutoscalingConfig(copy.deepcopy(config), skip_content_hash=True)
    return read.get_node_type_configs()


def answer(config: dict[str, Any], demands: list) -> Answer:
    """What the autoscaler adds to an empty cluster of `config` for all `demands` at once."""
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    nobody: Any = SimpleNamespace(log_cluster_scheduling_update=lambda *a, **k: None)
    reply = ResourceDemandScheduler(nobody).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=node_types(config),
            max_num_nodes=config["max_workers"] + 1,
            resource_requests=ResourceRequestUtil.group_by_count(demands),
        )
    )
    started = {launch.instance_type: launch.count for launch in reply.to_launch}
    return Answer(started, len(reply.infeasible_resource_requests))
