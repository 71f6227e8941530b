"""What a cluster could have, and what of it a request fits."""

import math

import pytest

from muscle.errors import UserError
from muscle.launch.capacity import (
    Ask,
    Capacity,
    Node,
    NodeType,
    Settings,
    check,
    driver_labels,
    matches,
)

CPU = NodeType("cpu", {"CPU": 16, "memory": 2**36}, {"muscle-role": "cpu"}, 4)
SCORING = NodeType("gpu-scoring", {"CPU": 16, "GPU": 1}, {"muscle-role": "scoring"}, 8)
TRAINING = NodeType("gpu-training", {"CPU": 96, "GPU": 8}, {"muscle-role": "training"}, 2)
HEAD = Node("0", {"memory": 1e9}, {"memory": 1e9}, {"muscle-role": "head"}, "head")
AWS = Capacity((HEAD,), (CPU, SCORING, TRAINING), 20)

TRAIN = Settings("gpus_per_worker", "cpus_per_worker", "workers", "training_labels")


def node(name: str, cpus: float, gpus: float = 0, **labels: str) -> Node:
    total = {"CPU": cpus, "GPU": gpus, "memory": 1e9}
    ours = {key.replace("_", "-"): value for key, value in labels.items()}
    return Node(name, total, total, {"ray.io/node-id": name, **ours})


@pytest.mark.parametrize(
    ("condition", "value", "fits"),
    [
        ("scoring", "scoring", True),
        ("scoring", "training", False),
        ("scoring", None, False),
        ("!scoring", "training", True),
        ("!scoring", "scoring", False),
        ("!scoring", None, True),
        ("in(scoring, training)", "training", True),
        ("in(scoring,training)", "cpu", False),
        ("in(scoring,training)", None, False),
        ("!in(scoring,training)", "scoring", False),
        ("!in(scoring,training)", "head", True),
        ("!in(scoring,training)", None, True),
    ],
)
def test_selectors_mean_what_they_mean_in_ray(
    condition: str, value: str | None, fits: bool
) -> None:
    labels = {} if value is None else {"role": value}
    assert matches({"role": condition}, labels) is fits


def test_all_selectors_must_be_satisfied() -> None:
    assert matches({}, {"a": "1"})
    assert matches({"a": "1", "b": "!2"}, {"a": "1"})
    assert not matches({"a": "1", "b": "2"}, {"a": "1"})


def test_what_an_autoscaler_may_start_counts_before_it_is_there() -> None:
    assert AWS.most("GPU") == 8 * 1 + 2 * 8
    assert AWS.most("GPU", {"muscle-role": "scoring"}) == 8
    assert AWS.room(Ask({"CPU": 8, "GPU": 1}, 1)) == 8 + 2 * 8
    assert AWS.room(Ask({"CPU": 8, "GPU": 1}, 1, {"muscle-role": "training"})) == 16
    assert AWS.room(Ask({"CPU": 16, "GPU": 1}, 1)) == 8 + 2 * 6  # CPUs run out first
    assert AWS.room(Ask({"GPU": 0.25}, 1)) == 4 * 24


def test_a_started_node_counts_once_and_another_one_beside_its_types() -> None:
    started = Node("1", {"CPU": 16, "GPU": 1}, {}, {"muscle-role": "scoring"}, "gpu-scoring")
    own = node("2", 4, 2)
    both = Capacity((HEAD, started, own), AWS.types)
    assert both.most("GPU") == AWS.most("GPU") + 2
    assert [kind.name for kind in both.kinds()] == ["cpu", "gpu-scoring", "gpu-training", "node"]


def test_all_node_types_together_keep_to_the_limit() -> None:
    few = Capacity((HEAD,), (CPU, SCORING, TRAINING), 3)
    assert few.most("GPU") == 2 * 8 + 1
    assert few.most("CPU") == 2 * 96 + 16
    endless = Capacity((), (NodeType("any", {"GPU": 1}),))
    assert math.isinf(endless.most("GPU"))
    assert endless.most("CPU") == 0


def test_without_an_autoscaler_there_are_only_the_nodes() -> None:
    alone = Capacity((node("1", 4, 1), node("2", 4, 1), node("3", 2)))
    assert not alone.grows
    assert alone.room(Ask({"CPU": 2, "GPU": 1}, 1)) == 2
    assert alone.room(Ask({"CPU": 2}, 1)) == 5
    assert alone.room(Ask({"CPU": 1}, 1, {"muscle-role": "training"})) == 0


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (
            Ask({"CPU": 1, "GPU": 9}, 1),
            "resources.gpus_per_worker is 9: no node type of this cluster has more than 8 GPU "
            "(cpu: 16 CPU x 4; gpu-scoring: 1 GPU, 16 CPU x 8; gpu-training: 8 GPU, 96 CPU x 2): "
            "set it to at most 8",
        ),
        (
            Ask({"CPU": 1, "GPU": 2}, 1, {"muscle-role": "scoring"}),
            "resources.gpus_per_worker is 2: no node type of this cluster with "
            "muscle-role=scoring has more than 1 GPU",
        ),
        (Ask({"CPU": 97}, 1), "resources.cpus_per_worker is 97: .* more than 96 CPU"),
        (
            Ask({"CPU": 32, "GPU": 1}, 1, {"muscle-role": "!training"}),
            "resources.cpus_per_worker is 32: .* more than 16 CPU .*: set it to at most 16",
        ),
        (
            Ask({"CPU": 1}, 1, {"muscle-role": "trianing"}),
            "resources.training_labels asks for muscle-role=trianing and no node type of this "
            "cluster carries it",
        ),
        (
            Ask({"CPU": 1, "GPU": 8}, 3),
            r"resources.workers asks for 3 x \(8 GPU, 1 CPU\) and this cluster can have room for 2 "
            "of them at most .*: ask for less, or raise max_workers",
        ),
    ],
)
def test_the_impossible_is_refused_with_what_would_fit(ask: Ask, said: str) -> None:
    with pytest.raises(
        UserError, match=said.replace("(cpu:", r"\(cpu:").replace("x 2):", r"x 2\):")
    ):
        check(AWS, ask, TRAIN)


def test_gpus_and_cpus_must_fit_one_node_together() -> None:
    apart = Capacity((), (NodeType("big", {"CPU": 64}, {}, 2), SCORING))
    check(apart, Ask({"CPU": 64}, 2), TRAIN)
    check(apart, Ask({"CPU": 16, "GPU": 1}, 8), TRAIN)
    with pytest.raises(UserError, match=r"cpus_per_worker is 32 beside 1 GPU.*at most 16"):
        check(apart, Ask({"CPU": 32, "GPU": 1}, 1), TRAIN)


def test_a_cluster_without_gpus_says_so_in_one_line() -> None:
    for capacity in (Capacity((HEAD,), (CPU,)), Capacity((HEAD, node("1", 16)))):
        with pytest.raises(
            UserError, match=r"gpus_per_worker is 1: .* has a GPU .*set it to 0"
        ) as error:
            check(capacity, Ask({"CPU": 1, "GPU": 1}, 1), TRAIN)
        assert "\n" not in str(error.value)
        check(capacity, Ask({"CPU": 16}, 1), TRAIN)
    with pytest.raises(UserError, match="none has any CPU or GPU"):
        check(Capacity((HEAD,)), Ask({"CPU": 1}, 1), TRAIN)


def test_what_is_not_known_is_not_refused() -> None:
    check(Capacity((HEAD,), None), Ask({"CPU": 1, "GPU": 64}, 9), TRAIN)


def test_drivers_keep_off_gpus_and_off_the_head_where_they_can() -> None:
    strict, loose = "!in(head,scoring,training)", "!in(scoring,training)"
    assert driver_labels(AWS) == {"muscle-role": strict}
    # A type whose memory isn't known is never started for a driver, which asks for memory only.
    unsure = Capacity((HEAD,), (NodeType("cpu", {"CPU": 16}, {"muscle-role": "cpu"}, 4), SCORING))
    assert driver_labels(unsure) == {"muscle-role": loose}
    gpus_alone = Capacity((node("1", 4, 1, muscle_role="scoring"),))
    assert driver_labels(gpus_alone) == {}
    assert driver_labels(Capacity((node("1", 4),))) == {"muscle-role": strict}
    assert driver_labels(Capacity((HEAD,), None)) == {"muscle-role": loose}
