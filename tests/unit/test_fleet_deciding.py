"""The decision on an adapter by what the gate says, and the fleet's exit code."""

from itertools import product
from typing import Any

import pytest

from muscle.fleet.deciding import DECISIONS, best_pair, decide, exit_code, needed_examples

PASS, FAIL, UNSURE, NONE = "pass", "fail", "not enough evidence", ""

TABLE = {
    (PASS, NONE): ("move", "old->new"),
    (PASS, PASS): ("move", "old->new"),
    (PASS, FAIL): ("move", "old->new"),
    (PASS, UNSURE): ("move", "old->new"),
    (FAIL, NONE): ("stay", "old->new"),
    (FAIL, PASS): ("move with compat", "old->compat"),
    (FAIL, FAIL): ("stay", "old->compat"),
    (FAIL, UNSURE): ("not enough evidence", "old->compat"),
    (UNSURE, NONE): ("not enough evidence", "old->new"),
    (UNSURE, PASS): ("move with compat", "old->compat"),
    (UNSURE, FAIL): ("not enough evidence", "old->new"),
    (UNSURE, UNSURE): ("not enough evidence", "old->compat"),
}


def test_the_table_has_every_case() -> None:
    assert set(TABLE) == set(product((PASS, FAIL, UNSURE), (PASS, FAIL, UNSURE, NONE)))


@pytest.mark.parametrize(("new", "compat"), TABLE)
def test_decisions(new: str, compat: str) -> None:
    assert (decide(new, compat), best_pair(new, compat)) == TABLE[new, compat]


@pytest.mark.parametrize(
    ("decisions", "code"),
    [
        (["move", "move with compat"], 0),
        (["move", "not enough evidence"], 3),
        (["stay", "move"], 1),
        (["failed", "move"], 1),
        (["failed", "not enough evidence"], 1),
    ],
)
def test_exit_codes(decisions: list[str], code: int) -> None:
    assert exit_code(decisions) == exit_code(decisions[::-1]) == code
    assert set(decisions) <= set(DECISIONS)


def check(verdict: str, needed: int | None) -> dict[str, Any]:
    return {"verdict": verdict, "needed_n": needed}


def test_what_it_takes_is_the_most_that_an_open_check_takes() -> None:
    checks = [check(UNSURE, 300), check(UNSURE, 900), check(PASS, None)]
    assert needed_examples({"checks": checks}) == 900
    assert needed_examples({"checks": [*checks, check(UNSURE, None)]}) is None
    assert needed_examples({"checks": [check(PASS, None)]}) is None
