"""What is said while a stage waits for nodes."""

import threading
import time

import pytest

from muscle.launch import waiting
from muscle.launch.capacity import Answer, Ask, Node
from muscle.launch.waiting import Patience, patient, sentence
from muscle.training.job import Progress

ASK = Ask({"CPU": 8.0, "GPU": 1.0}, 2)


def gpu_node(free: float, **labels: str) -> Node:
    return Node("a", {"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": free}, labels)


def test_a_wait_says_what_is_asked_free_and_coming() -> None:
    assert sentence(ASK, (), Answer()) == "waits for 2 x (1 GPU, 8 CPU): 0 of 0 GPU free"
    busy = (gpu_node(0), gpu_node(1))
    assert sentence(ASK, busy, Answer()).endswith("1 of 8 GPU free")
    coming = sentence(ASK, (), Answer(starting={"gpu-training": 1}))
    assert coming == "waits for 2 x (1 GPU, 8 CPU): 0 of 0 GPU free; starting 1 gpu-training"


def test_a_wait_says_why_the_autoscaler_fails() -> None:
    failed = sentence(ASK, (), Answer(failed={"gpu-training": "InsufficientInstanceCapacity"}))
    assert failed.endswith(
        "; the autoscaler could not start gpu-training: InsufficientInstanceCapacity"
    )
    assert len(sentence(ASK, (), Answer(failed={"t": "long " * 500}))) < 300
    never = Answer(infeasible=({"CPU": 8.0, "GPU": 1.0, "bundle_group": 0.001},))
    assert sentence(ASK, (), never).endswith("; the autoscaler has no node type for it")
    assert "no node type" not in sentence(ASK, (), Answer(infeasible=({"CPU": 8.0},)))


def test_only_nodes_with_the_labels_count() -> None:
    ask = Ask({"GPU": 1.0}, 1, {"muscle-role": "scoring"})
    nodes = (gpu_node(4), gpu_node(2, **{"muscle-role": "scoring"}))
    assert sentence(ask, nodes, Answer()) == (
        "waits for 1 x (1 GPU) on muscle-role=scoring: 2 of 4 GPU free"
    )
    driver = Ask({"memory": 1.0}, 1, {"muscle-role": "!in(scoring,training)"})
    assert sentence(driver, nodes, Answer()).endswith("1 such nodes")


def test_what_stands_still_is_remarked_on_and_what_moves_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "LOOK_S", 0.0)
    seen: list[Progress] = []
    patience = Patience(seen.append, lambda: "waits")
    patience(Progress("done", 2, 2, "rows"))
    patience(Progress("train", 1, 2, "rows", "epoch 1"))
    patience(Progress("queued", 0, 2, "rows"))
    patience.only({"train", "done"})
    del seen[:]
    patience.remark()
    assert seen == [Progress("train", 1, 2, "rows", "waits")]
    monkeypatch.setattr(waiting, "LOOK_S", 60.0)
    patience.remark()
    assert len(seen) == 1  # it has only just moved


def test_nothing_is_said_where_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK_S", 0.0)
    seen: list[Progress] = []
    patience = Patience(seen.append, lambda: "")
    patience(Progress("train", 0, 2, "rows"))
    patience.remark()
    assert len(seen) == 1


def test_a_failing_look_never_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK_S", 0.001)
    monkeypatch.setattr(waiting.cluster, "on_local_ray", lambda: False)
    looked = threading.Event()
    calls = 0

    def describe() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("the control store is gone")
        looked.set()
        return "waits"

    seen: list[Progress] = []
    with patient(seen.append, describe) as patience:
        patience(Progress("train", 0, 2, "rows"))
        assert looked.wait(20)
        deadline = time.monotonic() + 20
        while not any(p.remark == "waits" for p in seen) and time.monotonic() < deadline:
            time.sleep(0.001)
    assert any(p.remark == "waits" for p in seen)
    after = len(seen)
    time.sleep(0.02)
    assert len(seen) == after  # and it stops with the work
