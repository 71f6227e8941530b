"""The verdict: bounds against limits, tasks and slices alone, what is missing is no pass."""

import copy
import json
from datetime import date
from typing import Any

import pytest
from gating import answers, report_block, slice_block, task_block
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from muscle.errors import UserError
from muscle.gate import make_limits
from muscle.gate.decide import EXIT_CODES, decide, judge_bounds, overall
from muscle.metrics.bounds import clopper_pearson

UNSURE = "not enough evidence"


def verdict(report: dict[str, Any], pair: str | None = None, **limits: Any) -> str:
    return str(decide(report, make_limits(**limits), pair=pair)["verdict"])


def the_check(report: dict[str, Any], **limits: Any) -> dict[str, Any]:
    (check,) = decide(report, make_limits(**limits))["checks"]
    return dict(check)


@pytest.mark.parametrize(
    ("limit", "delta", "lower", "upper", "expected"),
    [
        ("max_nfr", 0.02, 0.01, 0.02, "pass"),  # on the limit is inside
        ("max_nfr", 0.02, 0.02, 0.03, UNSURE),  # the lower bound on it is not outside
        ("max_nfr", 0.02, 0.0200001, 0.03, "fail"),
        ("max_nfr", 0.02, 0.01, 0.0200001, UNSURE),
        ("max_nfr", 0.0, 0.0, 0.01, UNSURE),
        ("min_gain", -0.01, -0.01, 0.02, "pass"),
        ("min_gain", -0.01, -0.0100001, 0.02, UNSURE),
        ("min_gain", -0.01, -0.03, -0.01, UNSURE),
        ("min_gain", -0.01, -0.03, -0.0100001, "fail"),
        ("max_nfr", 0.02, None, None, UNSURE),
        ("min_gain", 0.02, None, None, UNSURE),
    ],
)
def test_on_the_limit_is_inside(
    limit: str, delta: float, lower: float | None, upper: float | None, expected: str
) -> None:
    assert judge_bounds(limit, delta, lower, upper) == expected


@given(st.lists(st.sampled_from(["pass", "fail", UNSURE]), max_size=5))
def test_one_failure_fails_and_nothing_checked_is_no_pass(verdicts: list[Any]) -> None:
    found = overall(verdicts)
    assert (found == "fail") == ("fail" in verdicts)
    assert (found == "pass") == (bool(verdicts) and set(verdicts) == {"pass"})


def test_exit_codes() -> None:
    assert EXIT_CODES == {"pass": 0, "fail": 1, UNSURE: 3}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 900), st.floats(0, 0.3))
def test_nfr_is_held_against_exact_bounds(
    negative: int, positive: int, rest: int, delta: float
) -> None:
    """Clopper and Pearson's bounds, from scipy's beta distribution."""
    n = negative + positive + rest
    report = report_block(a=task_block(*answers(rest, negative, positive, 0)))
    check = the_check(report, max_nfr=delta)
    upper = beta.ppf(0.95, negative + 1, n - negative) if negative < n else 1.0
    lower = beta.ppf(0.05, negative, n - negative + 1) if negative else 0.0
    assert check["upper"] == pytest.approx(upper, abs=1e-9)
    assert check["lower"] == pytest.approx(lower, abs=1e-9)
    assert check["value"] == negative / n and check["n"] == n
    expected = "pass" if upper <= delta else "fail" if lower > delta else UNSURE
    assert check["verdict"] == expected


def test_every_task_alone_decides() -> None:
    good = task_block(*answers(990, 0, 10, 0))
    bad = task_block(*answers(900, 100, 0, 0))
    few = task_block(*answers(20, 0, 0, 0))
    assert verdict(report_block(a=good), max_nfr=0.02) == "pass"
    assert verdict(report_block(a=good, b=bad), max_nfr=0.02) == "fail"
    assert verdict(report_block(a=good, b=few), max_nfr=0.02) == UNSURE
    assert verdict(report_block(a=few, b=bad, c=good), max_nfr=0.02) == "fail"


def test_pooled_examples_do_not_hide_a_bad_task() -> None:
    """3 % of 11,000 overall, but 10 % of the small task."""
    large, small = (
        task_block(*answers(9900, 100, 0, 0)),
        task_block(*answers(900, 100, 0, 0)),
    )
    gate = decide(report_block(large=large, small=small), make_limits(max_nfr=0.05))
    assert gate["verdict"] == "fail"
    assert [c["verdict"] for c in gate["checks"]] == ["pass", "fail"]
    assert "small" in gate["reason"] and "10.00 %" in gate["reason"]


def test_no_task_is_no_pass() -> None:
    gate = decide(report_block(), make_limits(max_nfr=0.5))
    assert gate["verdict"] == UNSURE and gate["checks"] == []


def test_no_example_is_no_pass_even_at_a_limit_of_everything() -> None:
    report = report_block(a=task_block(*answers(0, 0, 0, 0)))
    check = the_check(report, max_nfr="100%")
    assert check["verdict"] == UNSURE and check["needed_n"] is None
    assert "no example is scored" in check["text"]


def test_an_undefined_number_is_not_enough_evidence() -> None:
    """Nothing is wrong under new: relative NFR has a denominator of 0."""
    report = report_block(a=task_block(*answers(500, 0, 20, 0)))
    check = the_check(report, max_relative_nfr=0.5)
    assert check["verdict"] == UNSURE and "denominator is 0" in check["text"]


def test_the_pair_is_compat_where_it_is() -> None:
    old, new = answers(900, 100, 0, 0)
    report = report_block(a=task_block(old, new, compat=old))
    assert decide(report, make_limits(max_nfr=0.02))["pair"] == "old->compat"
    assert verdict(report, max_nfr=0.02) == "pass"
    for written in ("old->new", "old→new", "old:new"):
        assert verdict(report, pair=written, max_nfr=0.02) == "fail"
    only_new = report_block(a=task_block(old, new))
    assert decide(only_new, make_limits(max_nfr=0.02))["pair"] == "old->new"


@pytest.mark.parametrize(("pair", "said"), [("old->compat", "'old->new'"), ("old-", "quote it")])
def test_an_unknown_pair_is_refused(pair: str, said: str) -> None:
    report = report_block(a=task_block(*answers(10, 0, 0, 0)))
    with pytest.raises(UserError, match="is not in this report") as refused:
        decide(report, make_limits(max_nfr=0.02), pair=pair)
    assert said in str(refused.value)


def test_excess_is_beyond_the_noise_floor() -> None:
    """4 % flips fail a plain limit; two seeds of old flip as often."""
    old, new = answers(9000, 400, 400, 200)
    again = new.copy()
    report = report_block(a=task_block(old, new, again=again))
    assert verdict(report, max_nfr=0.02) == "fail"
    assert verdict(report, max_excess_nfr=0.01) == "pass"
    worse = new.copy()
    worse[:500] = False
    beyond = report_block(a=task_block(old, worse, again=again))
    assert verdict(beyond, max_excess_nfr=0.01) == "fail"


def test_excess_without_a_noise_floor_names_the_mend() -> None:
    report = report_block(a=task_block(*answers(90, 5, 5, 0)))
    with pytest.raises(UserError) as refused:
        decide(report, make_limits(max_excess_nfr=0.02))
    assert "noise_floor: true" in str(refused.value) and "--noise-floor" in str(refused.value)


def test_relative_nfr_needs_right_and_wrong() -> None:
    block = {**task_block(*answers(90, 5, 5, 0)), "continuous": True, "metric": "rouge1"}
    with pytest.raises(UserError, match="rouge1"):
        decide(report_block(a=block), make_limits(max_relative_nfr=0.5))
    assert decide(report_block(a=block), make_limits(max_nfr=0.5))["verdict"] == "pass"


def test_a_gain_may_be_asked_for_or_a_loss_allowed() -> None:
    better = report_block(a=task_block(*answers(5000, 100, 600, 4300)))
    assert verdict(better, min_gain=0.03) == "pass"
    assert verdict(better, min_gain=0.06) == "fail"
    assert verdict(better, min_gain=0.05) == UNSURE
    equal = report_block(a=task_block(*answers(5000, 100, 100, 4800)))
    assert verdict(equal, min_gain=-0.01) == "pass"


def test_scores_that_are_no_shares_are_shown_as_they_are() -> None:
    block = {**task_block(*answers(90, 5, 5, 0)), "continuous": True, "metric": "bits"}
    block["versions"] = {"old": {"score": -2.5}, "new": {"score": -2.4}}
    block["pairs"]["old->new"] |= {"gain": 0.1, "bounds95": {"gain": [0.05, 0.15]}}
    check = the_check(report_block(a=block), min_gain=0.02)
    assert check["verdict"] == "pass" and check["plain"]
    assert "gain old→new ≥ +0.020" in check["text"] and "points" not in check["text"]


def several_seeds(block: dict[str, Any]) -> dict[str, Any]:
    block = copy.deepcopy(block)
    for entry in block["pairs"].values():
        entry["negative"] = entry["positive"] = None
    return block


def test_without_counts_the_reports_bounds_decide() -> None:
    block = several_seeds(task_block(*answers(950, 20, 30, 0)))
    block["pairs"]["old->new"]["bounds95"]["nfr"] = [0.011, 0.029]
    check = the_check(report_block(a=block), max_nfr=0.03)
    assert (check["lower"], check["upper"], check["verdict"]) == (0.011, 0.029, "pass")
    block["pairs"]["old->new"]["bounds95"]["nfr"] = None
    check = the_check(report_block(a=block), max_nfr=0.03)
    assert check["verdict"] == UNSURE and "no bounds" in check["text"]


# How many examples would do


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(50, 2000), st.floats(0.005, 0.2))
def test_the_number_needed_is_the_first_that_passes(flips: int, n: int, delta: float) -> None:
    n = max(n, flips)
    check = the_check(report_block(a=task_block(*answers(n - flips, flips, 0, 0))), max_nfr=delta)
    if check["verdict"] != UNSURE:
        assert check["needed_n"] is None
        return
    if flips / n >= delta:
        assert check["needed_n"] is None and "no number of examples" in check["text"]
        return
    needed = check["needed_n"]
    assert needed > n and f"{needed:,}" in check["text"]

    def upper(size: int) -> float:
        found = clopper_pearson(flips / n * size, size)
        assert found is not None
        return found.high

    assert upper(needed) <= delta < upper(needed - 1)


def test_a_gain_says_how_many_examples_it_needs() -> None:
    report = report_block(a=task_block(*answers(400, 20, 30, 50)))
    check = the_check(report, min_gain=0.0)
    assert check["verdict"] == UNSURE
    n = check["needed_n"]
    for factor, expected in ((0.9, UNSURE), (1.1, "pass")):
        grown = answers(*(round(c * factor * n / 500) for c in (400, 20, 30, 50)))
        assert verdict(report_block(a=task_block(*grown)), min_gain=0.0) == expected
    assert "no number" in the_check(report, min_gain=0.03)["text"]


def test_an_excess_says_how_many_examples_it_needs() -> None:
    old, new = answers(900, 40, 40, 20)
    again = old.copy()
    again[900 - 38 : 900] = False  # as many flips, of other examples
    block = task_block(old, new, again=again)
    check = the_check(report_block(a=block), max_excess_nfr=0.01)
    assert check["verdict"] == UNSURE
    width = check["upper"] - check["value"]
    assert check["needed_n"] == pytest.approx(1000 * (width / (0.01 - check["value"])) ** 2, abs=1)


# Slices


def sliced() -> dict[str, Any]:
    block = task_block(*answers(3000, 20, 40, 0))
    block["slices"] = [
        slice_block("subject", "law", *answers(900, 100, 0, 0)),
        slice_block("subject", "maths", *answers(990, 0, 10, 0)),
        slice_block("subject", "9 rare values", *answers(55, 0, 5, 0), small=True),
        slice_block("length", "short", *answers(900, 1, 0, 0)),
    ]
    return report_block(a=block)


def test_slices_are_judged_when_asked_for() -> None:
    report = sliced()
    assert verdict(report, max_nfr=0.02) == "pass"
    assert verdict(report, max_nfr=0.02, slices=["subject"]) == "fail"
    assert verdict(report, max_nfr=0.02, slices=["subject=maths"]) == "pass"
    pool = decide(report, make_limits(max_nfr=0.06, slices=["subject=9 rare values"]))["checks"][1]
    assert pool["verdict"] == UNSURE and pool["upper"] <= 0.06 and "alone" in pool["text"]
    assert verdict(report, max_nfr=0.02, slices=["subject=maths", "length"]) == "pass"
    assert verdict(report, max_nfr=0.02, slices=["subject=law"]) == "fail"
    report["tasks"]["a"]["slices_note"] = "Left out: 1 value of subject."
    gate = decide(report, make_limits(max_nfr=0.02, slices=["subject"]))
    found = [check["slice"] for check in gate["checks"]]
    assert found == [
        None,
        {"column": "subject", "value": "law"},
        {"column": "subject", "value": "maths"},
        {"column": "subject", "value": "9 rare values"},
    ]
    assert gate["notes"] == ["a, slices: Left out: 1 value of subject."]


def test_a_slices_nfr_has_exact_bounds_too() -> None:
    gate = decide(sliced(), make_limits(max_nfr=0.02, slices=["length"]))
    assert gate["checks"][1]["upper"] == pytest.approx(beta.ppf(0.95, 2, 900))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("topic", "`muscle compare --slice topic`"),
        ("subject=art", "subject has 9 rare values, law, maths"),
        ("topic=law", "it has length, subject"),
    ],
)
def test_an_unknown_slice_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        decide(sliced(), make_limits(max_nfr=0.02, slices=[text]))
    assert said in str(refused.value)


def test_a_limit_that_slices_lack_is_said() -> None:
    limits = make_limits(max_nfr=0.02, max_relative_nfr=0.9, slices=["length"])
    notes = decide(sliced(), limits)["notes"]
    assert any("max-relative-nfr" in note for note in notes)


# The record


def test_the_record_is_plain_json_with_the_promised_keys() -> None:
    report = report_block(a=task_block(*answers(990, 4, 6, 0)))
    gate = decide(report, make_limits(max_nfr=0.02, min_gain=-0.01), today=date(2026, 1, 2))
    assert json.loads(json.dumps(gate, allow_nan=False)) == gate
    assert gate["schema"] == "muscle.gate/1" and gate["created"] == "2026-01-02"
    assert gate["limits"] == {"max_nfr": 0.02, "min_gain": -0.01}
    assert set(gate["checks"][0]) >= {
        "task", "slice", "limit", "delta", "value", "lower", "upper", "n", "verdict",
        "needed_n", "text",
    }  # fmt: skip
    assert "\n" not in gate["reason"]


def test_a_report_that_lacks_a_part_is_one_line() -> None:
    block = task_block(*answers(90, 5, 5, 0))
    del block["pairs"]["old->new"]["bounds95"]
    with pytest.raises(UserError, match="run `muscle compare` again"):
        decide(report_block(a=block), make_limits(max_nfr=0.02))


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [("nfr", "low", "'low' is no number"), ("nfr", True, "'True' is no number"),
     ("bounds95", {"nfr": ["0", 1]}, "'0' is no number"),
     ("bounds95", {"nfr": 0.5}, "no pair of bounds")],
)  # fmt: skip
def test_a_report_that_was_edited_into_nonsense_is_one_line(
    place: str, value: Any, said: str
) -> None:
    block = task_block(*answers(90, 5, 5, 0))
    block["pairs"]["old->new"][place] = value
    with pytest.raises(UserError, match=f"task 'a': .*{said}.*run `muscle compare` again"):
        decide(report_block(a=block), make_limits(max_nfr=0.02))


def test_hostile_names_are_harmless_in_words() -> None:
    name = "a\x1b[31m\nb\u202e" + "x" * 500
    gate = decide(
        report_block(**{name: task_block(*answers(0, 9, 0, 0))}), make_limits(max_nfr=0.02)
    )
    assert gate["verdict"] == "fail"
    assert not set("\x1b\n\u202e") & set(gate["reason"]) and len(gate["reason"]) < 400
