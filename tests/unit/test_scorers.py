"""Scorers: a value and why."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscle.errors import UserError
from muscle.metrics.outcomes import outcome_of
from muscle.tasks.scorers import make_scorer, scorer_fingerprint

GOLD = {"thing": "axe", "coins": 3}
values = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
objects = st.dictionaries(st.text(min_size=1, max_size=4), values, min_size=1, max_size=4)


def score(name: str, answer: str, gold: Any = "billing", labels: Any = ()) -> Any:
    scorer, _, _ = make_scorer(name, labels)
    return scorer(answer, gold, {"gold": gold})


@pytest.mark.parametrize(
    ("answer", "value", "reason"),
    [
        (json.dumps(GOLD), 1.0, "right"),
        ('```json\n{"coins": 3, "thing": "axe"}\n```', 1.0, "right"),
        ('{"thing": "axe", "coins": 3.0}', 1.0, "right"),
        ('{"thing": "axe", "coins": true}', 0.0, "other fields: coins true instead of 3"),
        ('{"thing": "axe", "coins": "3"}', 0.0, 'other fields: coins "3" instead of 3'),
        ('{"thing": "axe"}', 0.0, "other fields: coins is missing"),
        ('{"thing": "axe", "coins": 3, "to": 1}', 0.0, "other fields: to is too much"),
        ("[1]", 0.0, "no JSON object: list"),
    ],
)
def test_json_fields(answer: str, value: float, reason: str) -> None:
    found = score("json_fields", answer, GOLD)
    assert (found.value, found.reason) == (value, reason)


@pytest.mark.parametrize("answer", ["", "yes", "{'thing': 'axe'}", '{"thing": NaN}', "[" * 9999])
def test_what_is_no_json_is_an_outcome_of_its_own(answer: str) -> None:
    found = score("json_fields", answer, GOLD)
    assert found.value == 0.0 and outcome_of(found.reason) == "invalid JSON"
    assert len(found.reason) <= 200 and found.metrics == {"field_accuracy": 0.0}


@given(objects, objects)
def test_json_fields_by_its_own_rule(gold: dict[str, Any], given_: dict[str, Any]) -> None:
    def same(one: Any, other: Any) -> bool:
        return type(one) is type(other) and one == other

    found = score("json_fields", json.dumps(given_), gold)
    right = sum(name in given_ and same(given_[name], value) for name, value in gold.items())
    assert found.metrics["field_accuracy"] == pytest.approx(right / len(gold))
    assert found.value == float(right == len(gold) == len(given_))
    assert (found.value == 1.0) == (found.reason == "right")


@pytest.mark.parametrize(
    ("answer", "value", "outcome"),
    [
        (" **Billing**.\n", 1.0, "right"),
        ('"billing"', 1.0, "right"),
        ("on  hold", 0.0, "another label"),
        ("bill", 0.0, "not a label"),
        ("billing or shipping", 0.0, "not a label"),
        ("", 0.0, "not a label"),
    ],
)
def test_label(answer: str, value: float, outcome: str) -> None:
    found = score("label", answer, labels=["billing", "On hold"])
    assert (found.value, outcome_of(found.reason)) == (value, outcome)


@given(st.text(max_size=8), st.text(max_size=8))
def test_exact(answer: str, gold: str) -> None:
    assert score("exact", answer, gold).value == float(answer.strip() == gold.strip())


def test_rouge1_has_no_reason() -> None:
    found = score("rouge1", "the cat sat", "the cat")
    assert found.value == pytest.approx(0.8) and found.reason is None


CODE = """
def half(answer, row):
    return 0.5

def explained(answer, row):
    return float(answer == row["gold"]), "tone: too short"

def fails(answer, row):
    raise KeyError("tone\\nx")

def leaves(answer, row):
    raise SystemExit(5)

def half_a_character(answer, row):
    return 0.0, "bad: \\ud800"

def infinite(answer, row):
    return float("inf")
"""


def test_a_scorer_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scorers.py").write_text(CODE)
    (tmp_path / "my_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert score("python:my_scorers:half", "x").value == 0.5
    found = score("python:my_scorers:explained", "a", gold="a")
    assert (found.value, found.reason, outcome_of(found.reason)) == (1.0, "tone: too short", "tone")
    failed = score("python:my_scorers:fails", "x")
    assert failed.value is None and failed.reason == "the scorer failed: KeyError: 'tone\\nx'"
    assert score("python:my_scorers:infinite", "x").value is None
    assert score("python:my_scorers:leaves", "x").reason == "the scorer failed: SystemExit: 5"
    assert score("python:my_scorers:half_a_character", "x").reason == "bad: ?"
    before = scorer_fingerprint("python:my_scorers:half")
    assert "return 0.5" in before and before != scorer_fingerprint("python:my_scorers:fails")
    for name, message in (
        ("python:my_scorers:none", "module 'my_scorers' has no function 'none'"),
        ("python:no_such_module:f", r"module 'no_such_module' can't be imported \(ModuleNotFound"),
        ("python:my_broken:f", r"can't be imported \(ZeroDivisionError"),
    ):
        with pytest.raises(UserError, match=message):
            make_scorer(name)
    sys.modules.pop("my_scorers", None)
