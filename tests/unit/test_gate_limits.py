"""What a user may write for a limit, and what is refused in one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscle.errors import UserError
from muscle.gate import make_limits


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.02", 0.02), ("2%", 0.02), (" 2 % ", 0.02), ("0", 0.0), (".5", 0.5), ("100%", 1.0)],
)
def test_a_share_is_a_fraction_or_has_a_percent_sign(text: str, value: float) -> None:
    assert make_limits(max_nfr=text).max_nfr == pytest.approx(value, abs=1e-15)


@given(st.floats(0, 0.999))
def test_numbers_come_through(value: float) -> None:
    assert make_limits(max_nfr=value).given() == {"max_nfr": value}
    assert make_limits(min_gain=-value).given() == {"min_gain": -value}


@pytest.mark.parametrize("name", ["max_nfr", "max_excess_nfr", "max_relative_nfr", "min_gain"])
@pytest.mark.parametrize("text", ["2", "1.5", "100"])
def test_more_than_a_whole_was_meant_as_percent(name: str, text: str) -> None:
    with pytest.raises(UserError, match="percent was meant") as refused:
        make_limits(**{name: text})
    assert f"{float(text) / 100:g} or {text}%" in str(refused.value)


@pytest.mark.parametrize("name", ["max_nfr", "max_excess_nfr", "min_gain"])
def test_one_is_a_limit_that_nothing_breaks_or_reaches(name: str) -> None:
    with pytest.raises(UserError, match=r"write 0.01 or 1%"):
        make_limits(**{name: "1"})
    assert make_limits(max_relative_nfr="1").max_relative_nfr == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_nfr": "-0.01"}, "never below 0"),
        ({"max_nfr": "two"}, "'two'"),
        ({"max_nfr": "nan"}, "'nan'"),
        ({"max_nfr": "inf"}, "'inf'"),
        ({"max_nfr": "0,02"}, "'0,02'"),
        ({"max_nfr": ""}, "''"),
        ({"max_nfr": "101%"}, "0% to 100%"),
        ({"max_nfr": "-1%"}, "0% to 100%"),
        ({"min_gain": "-101%"}, "-100% to 100%"),
        ({"min_gain": "-1"}, "write -0.01 or -1%"),
        ({}, "no limit was given"),
        ({"waive": "waivers.yaml"}, "no limit was given"),
        ({"slices": ["subject"], "max_excess_nfr": 0.02}, "slices are judged by"),
    ],
)
def test_nonsense_is_one_line(given: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as refused:
        make_limits(**given)  # type: ignore[arg-type]
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_must_keep_alone_is_enough() -> None:
    limits = make_limits(must_keep="ids.txt")
    assert limits.given() == {} and limits.must_keep == "ids.txt"
