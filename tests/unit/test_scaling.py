"""docs/scaling.md holds what its script prints, and the script's arithmetic moves as it should."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import scaling
from object_store import kind_of, per_unit
from scaling_model import EPOCHS, SIZES, Assumptions, shares, update

PAGE = scaling.PAGE.read_text(encoding="utf-8")


def test_a_table_is_found_between_its_markers_and_replaced() -> None:
    page = "a\n<!-- table x -->\nold\n<!-- end -->\nb\n<!-- table y -->\n<!-- end -->\n"
    assert scaling.held(page, "x") == "old"
    assert scaling.held(page, "z") is None
    after = scaling.filled(page, {"x": "new\n| 1 |"})
    assert scaling.held(after, "x") == "new\n| 1 |"
    assert after.startswith("a\n") and after.endswith("b\n<!-- table y -->\n<!-- end -->\n")
    with pytest.raises(SystemExit, match="0 places for table 'z'"):
        scaling.filled(page, {"z": ""})


def test_an_unknown_assumption_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        scaling.parsed(["--set", "h100_dollar=3"])
    assert stopped.value.code == 2
    assert "there are" in capsys.readouterr().err
    assert scaling.parsed(["--set", "put_rate=7"]).given == replace(Assumptions(), put_rate=7.0)


def test_requests_of_a_unit_are_the_difference_of_two_sizes() -> None:
    """Small has 320 rows: 2 x 2 shards and 3 x 3 groups; large 1,280: 2 x 8 and 3 x 10."""

    def run(shards: int, groups: int) -> dict[str, object]:
        requests = {
            "teacher": {"PUT": 5 + 2 * shards},
            "predictions": {"PUT": 7 + 3 * groups},
            "examples": {"PUT": 4},
            "checkpoints": {"PUT": 12},
        }
        requests |= {"queries": {}, "root": {"DELETE": groups}}
        return {"requests": requests, "saves": 3}

    found = per_unit({"small": run(4, 9), "large": run(16, 30)})
    assert found["shard"] == {"DELETE": 0, "PUT": 2}
    assert found["group"] == {"DELETE": 1, "PUT": 3}
    assert found["save"] == {"DELETE": 0, "PUT": 4}
    assert found["update"] == {"DELETE": 0, "PUT": 16}


def test_kinds_of_requests_are_those_that_are_paid_for() -> None:
    assert kind_of("GET", "list-type=2&prefix=a") == "LIST"
    assert kind_of("POST", "delete") == "DELETE"
    assert kind_of("GET", "") == "GET" and kind_of("PUT", "partNumber=1") == "PUT"


@pytest.mark.slow
def test_the_page_holds_what_the_script_prints() -> None:
    assert scaling.differences(PAGE) == []
    name = "limits"
    spoiled = PAGE.replace(scaling.held(PAGE, name) or "", "| other |")
    assert scaling.differences(spoiled) == [name]


@pytest.mark.slow
def test_the_arithmetic_moves_as_it_should() -> None:
    given = Assumptions()
    one = update("7B", 1, given)
    assert all(0.2 < shares(name).train < 0.7 for name in SIZES)
    parts = [s.hours * s.gpus for s in one.steps.values()]
    assert one.gpu_hours == pytest.approx(sum(parts)) and len(parts) == 8
    # 12 bytes of a checkpoint for every parameter of LoRA r 128 on Llama's seven matrices.
    lora = 32 * 128 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert one.checkpoint_bytes == 12 * lora
    # Both teachers' hidden states of every token but each sequence's first.
    assert one.cache_bytes == pytest.approx(32_000 * (107.2 - 1) * 2 * 4096 * 2, rel=0.01)
    assert one.read_bytes_per_second * 3600 * one.steps["train compat"].hours == pytest.approx(
        EPOCHS * one.cache_bytes
    )
    faster = update("7B", 1, replace(given, put_rate=2 * given.put_rate)).delays()
    changed = {name: faster[name] / value for name, value in one.delays().items() if value}
    assert changed.pop("uploading checkpoints") == pytest.approx(0.5)
    assert changed.pop("uploading the cache") == pytest.approx(0.5)
    assert all(ratio == pytest.approx(1) for ratio in changed.values())
    assert update("70B", 8, given).delays()["gathering weights (ZeRO-3)"] > 0
