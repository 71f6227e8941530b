"""Slices: their tests against scipy and statsmodels, their columns, what is left out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joined import joined, rows, scored
from scipy.stats import binomtest, fisher_exact
from statsmodels.stats.multitest import multipletests

from muscle.errors import UserError
from muscle.metrics import proportions
from muscle.metrics.intervals import mcnemar_p, wilson
from muscle.metrics.multiple import holm
from muscle.metrics.slice_columns import (
    GOLD_LENGTH,
    GOLD_POSITION,
    OLD_LENGTH,
    check_columns,
    slice_columns,
)
from muscle.metrics.slices import slice_blocks

# --- tests from counts -------------------------------------------------------------------


@st.composite
def tables(draw):
    n = draw(st.integers(1, 400))
    size, total = draw(st.integers(0, n)), draw(st.integers(0, n))
    inside = draw(st.integers(max(0, size + total - n), min(size, total)))
    return inside, size, total, n


def scipy_fisher(inside, size, total, n):
    table = [[inside, size - inside], [total - inside, n - size - total + inside]]
    return fisher_exact(table).pvalue


@settings(max_examples=150, deadline=None)
@given(tables())
def test_fisher_against_scipy(table):
    assert proportions.fisher_exact(*table) == pytest.approx(scipy_fisher(*table), rel=1e-6)


@pytest.mark.parametrize(
    "table",
    [
        (25_200, 250_000, 100_000, 1_000_000),
        (120_000, 250_000, 470_000, 1_000_000),
        (9, 60, 20_000, 1_000_000),
        (0, 50, 3, 1_000_000),
        (3, 50, 3, 1_000_000),
    ],
)
def test_fisher_of_a_million(table):
    assert proportions.fisher_exact(*table) == pytest.approx(scipy_fisher(*table), rel=1e-5)


def test_fisher_far_out_is_tiny_and_no_error():
    assert 0 <= proportions.fisher_exact(50_000, 50_000, 50_000, 1_000_000) < 1e-200
    for bad in [(2, 1, 3, 9), (0, 5, 5, 9), (1, 10, 1, 9)]:
        with pytest.raises(ValueError, match="no such table"):
            proportions.fisher_exact(*bad)


@pytest.mark.parametrize(
    ("b", "c"), [(0, 0), (1, 0), (5, 5), (2, 9), (71, 40), (900, 1100), (30_500, 30_000)]
)
def test_mcnemar_from_counts_against_scipy(b, c):
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar_p(b, c) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_holm_against_statsmodels(size):
    p = (np.random.default_rng(size).random(size) ** 3).round(2).tolist()  # with ties
    expected = multipletests(p, method="holm")[1].tolist()
    assert holm(p) == pytest.approx(expected)
    assert holm([None, *p, None]) == [None, *holm(p), None]
    assert holm([]) == []


# --- intervals from sums -----------------------------------------------------------------


def test_share_interval_is_wilsons_for_one_seed_and_where_seeds_agree():
    assert proportions.share_interval(7, 7, 90) == wilson(7, 90)
    assert proportions.share_interval(7, 7, 90, seeds=3) == pytest.approx(wilson(7, 90))
    assert proportions.share_interval(0, 0, 90, seeds=3) == wilson(0, 90)
    # Seeds that have nothing in common are as good as so many more examples.
    wide, narrow = (proportions.share_interval(20, s, 100, seeds=4) for s in (20, 5))
    assert wide.low < narrow.low < 0.2 < narrow.high < wide.high
    assert proportions.share_interval(20, 0, 100, seeds=4) == pytest.approx(wilson(80, 400))
    assert proportions.share_interval(0, 0, 0, seeds=2) is None


def simulate(draw, interval, truth, repetitions=600):
    """How often the interval holds the truth, and the least that a 95 % one may in 600."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(repetitions):
        low, high = interval(draw(rng))
        hits += low <= truth <= high
    return hits


LEAST = int(600 * 0.95 - 3 * (600 * 0.95 * 0.05) ** 0.5)  # three standard errors below 95 %


@pytest.mark.parametrize("n", [60, 800])
def test_change_interval_covers(n):
    """Old right and new wrong 6 %, the other way 9 %."""

    def interval(d):
        return proportions.change_interval(d.sum(), (d * d).sum(), n)

    hits = simulate(lambda r: r.choice([-1, 0, 1], n, p=[0.06, 0.85, 0.09]), interval, 0.03)
    assert hits >= LEAST


@pytest.mark.parametrize("spread", [0.01, 1.0])
def test_share_interval_of_seeds_covers(spread):
    """Examples whose chance to flip differs (much, little), three seeds each."""
    a, b = 0.08 / spread, 0.92 / spread

    def draw(rng):
        return rng.binomial(3, rng.beta(a, b, 300)) / 3

    def interval(x):
        return proportions.share_interval(x.sum(), (x * x).sum(), 300, seeds=3)

    hits = simulate(draw, interval, 0.08)
    assert LEAST <= hits <= 600 * 0.985  # not wide for nothing either


def test_mean_interval_covers_and_is_none_where_nothing_varies():
    def interval(x):
        return proportions.mean_interval(x.sum(), (x * x).sum(), 200)

    assert simulate(lambda r: r.gamma(2, 0.1, 200), interval, 0.2) >= LEAST - 6
    assert proportions.mean_interval(30.0, 9.0, 100) is None
    assert proportions.mean_interval(0.3, 0.09, 1) is None


# --- blocks ------------------------------------------------------------------------------


def random_task(n=600, seeds=1, continuous=False):
    rng = np.random.default_rng(3)
    fields = [{"subject": "abc"[i % 3], "level": str(i % 40)} for i in range(n)]
    kind = (lambda: rng.random(n)) if continuous else (lambda: rng.integers(0, 2, n))
    versions = ("old", "new", "compat")
    metric = "rouge1" if continuous else "acc"
    return scored(
        *({v: kind() for v in versions} for _ in range(seeds)), fields=fields, metric=metric
    ), fields


@pytest.mark.parametrize("continuous", [False, True])
def test_blocks_against_a_loop(continuous):
    task, fields = random_task(continuous=continuous)
    blocks, note, _ = slice_blocks(task, ("subject",), 50)
    assert note is None and [b["value"] for b in blocks] == ["a", "b", "c"]
    scores = {v: task.scores[0, v] for v in task.versions}
    for block in blocks:
        here = np.array([f["subject"] == block["value"] for f in fields])
        assert block["n"] == here.sum() == 200 and block["small"] is False
        for version, found in block["versions"].items():
            assert found["score"] == pytest.approx(scores[version][here].mean())
        flips = {}
        for before, after in task.pairs:
            pair = block["pairs"][f"{before}->{after}"]
            worse = scores[after] < scores[before]
            flips[after] = worse[here]
            assert pair["negative"] == worse[here].sum()
            assert pair["positive"] == (scores[after] > scores[before])[here].sum()
            assert pair["nfr"] == pytest.approx(worse[here].mean())
            assert pair["ci95"]["nfr"] == pytest.approx(wilson(worse[here].sum(), 200))
            exact = binomtest(worse[here].sum(), 200).proportion_ci(0.9, method="exact")
            assert pair["bounds95"]["nfr"] == pytest.approx((exact.low, exact.high))
            gain = (scores[after] - scores[before])[here].mean()
            assert pair["gain"] == pytest.approx(gain)
            low, high = pair["bounds95"]["gain"]
            assert low < gain < high
            p = scipy_fisher(worse[here].sum(), 200, worse.sum(), 600)
            assert pair["p"] == pytest.approx(p)
            if (before, after) == ("old", "new"):
                old_new = worse[here]
            elif before == "old":
                old_compat = worse[here]
        b, c = (old_new & ~old_compat).sum(), (~old_new & old_compat).sum()
        assert block["reduction"]["p"] == pytest.approx(binomtest(b, b + c).pvalue)
        assert block["reduction"]["nfr"] == pytest.approx((c - b) / 200)
    tests = [pair for b in blocks for pair in b["pairs"].values()]
    expected = multipletests([t["p"] for t in tests], method="holm")[1]
    assert [t["p_holm"] for t in tests] == pytest.approx(expected.tolist())
    reductions = [b["reduction"] for b in blocks]
    expected = multipletests([r["p"] for r in reductions], method="holm")[1]
    assert [r["p_holm"] for r in reductions] == pytest.approx(expected.tolist())


def test_several_seeds_are_means_without_counts_and_p():
    task, fields = random_task(seeds=3)
    blocks, _, _ = slice_blocks(task, ("subject",), 50)
    here = np.array([f["subject"] == "b" for f in fields])
    worse = [(task.scores[s, "new"] < task.scores[s, "old"])[here] for s in range(3)]
    pair = blocks[1]["pairs"]["old->new"]
    assert pair["nfr"] == pytest.approx(np.mean(worse))
    assert pair["negative"] is pair["positive"] is pair["p"] is pair["p_holm"] is None
    low, high = pair["ci95"]["nfr"]
    single = wilson(float(np.mean(worse)) * 200, 200)
    assert single.low < low < pair["nfr"] < high < single.high
    assert blocks[1]["reduction"]["p"] is None and blocks[1]["reduction"]["ci95"]["nfr"]


def test_a_planted_regression_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    subjects = [f"s{i % 10}" for i in range(4000)]
    old = np.ones(4000)
    new = (rng.random(4000) > np.where(np.array(subjects) == "s3", 0.15, 0.05)).astype(float)
    task = scored({"old": old, "new": new}, fields=[{"subject": s} for s in subjects])
    blocks, _, _ = slice_blocks(task, None, 50)
    found = [b["value"] for b in blocks if b["pairs"]["old->new"]["p_holm"] < 0.05]
    assert found == ["s3"] and all(b["reduction"] is None for b in blocks)


def test_holm_keeps_the_level_over_slices_of_noise():
    """No slice differs; of 200 reports about 5 % may claim one."""
    rng = np.random.default_rng(11)
    fields = [{"a": str(i % 4), "b": str(i % 7)} for i in range(700)]
    wrong = 0
    for _ in range(200):
        p = []
        flips = rng.random(700) < 0.1
        for name in "ab":
            for value in sorted({f[name] for f in fields}):
                here = np.array([f[name] == value for f in fields])
                p.append(
                    proportions.fisher_exact(
                        int(flips[here].sum()), int(here.sum()), int(flips.sum()), 700
                    )
                )
        wrong += min(holm(p)) < 0.05
    assert wrong <= 10 + 3 * (200 * 0.05 * 0.95) ** 0.5


def test_small_values_are_pooled_or_left_out_and_said():
    values = ["a"] * 80 + ["b"] * 30 + ["c"] * 29 + ["d"] * 1
    task = scored({"old": [1] * 140, "new": [1] * 140}, fields=[{"k": v} for v in values])
    blocks, note, rare = slice_blocks(task, ("k",), 50)
    assert rare == {"k": {"values": 3, "least": 50, "pooled": True}}
    assert [(b["value"], b["n"], b["small"]) for b in blocks] == [
        ("a", 80, False),
        ("3 values with fewer than 50 examples each", 60, True),
    ]
    assert note is None
    blocks, note, rare = slice_blocks(task, ("k",), 70)
    assert rare == {"k": {"values": 3, "least": 70, "pooled": False}}
    assert [b["value"] for b in blocks] == ["a"]
    assert note == "Left out: 3 values of k with fewer than 70 examples."
    assert blocks[0]["pairs"]["old->new"]["p"] == 1  # no flip anywhere


def test_a_slice_that_is_the_task_has_nothing_to_be_held_against():
    task = scored({"old": [1] * 60, "new": [0, *[1] * 59]}, fields={"k": "a"})
    (block,), _, _ = slice_blocks(task, ("k",), 50)
    assert block["pairs"]["old->new"]["p"] is block["pairs"]["old->new"]["p_holm"] is None
    assert slice_blocks(task, None, 50)[0] == []


# --- columns -----------------------------------------------------------------------------


def columns_of(fields, **columns):
    n = len(fields)
    return scored({"old": [1] * n, "new": [1] * n}, fields=fields, **columns)


def test_automatic_columns():
    n = 120
    fields = [
        {
            "same": "x",
            "few": "ab"[i % 2],
            "words": f"w{i % 30}",
            "number": str(i % 30 / 2),
            "id": str(1000 + i),
            "mixed": str(i) if i else "none",
        }
        for i in range(n)
    ]
    columns, notes = slice_columns(columns_of(fields), None)
    assert [c.name for c in columns] == ["few", "number"]
    assert columns[1].labels == ["0 – 3.5", "4 – 7", "7.5 – 11", "11.5 – 14.5"]
    assert notes == [
        "more than 20 values that are not numbers: mixed, words",
        "another whole number in every row: id",
    ]


def test_the_same_parts_under_two_names_are_tested_once():
    fields = [
        {"level": "abc"[i % 3], "grade": "zxy"[i % 3], "other": "abc"[(i // 3) % 3]}
        | ({"some": "mno"[i % 3]} if i % 6 else {})
        for i in range(180)
    ]
    columns, notes = slice_columns(columns_of(fields), None)
    assert [c.name for c in columns] == ["grade", "other", "some"]
    assert notes == ["the same parts under another name: level (as grade)"]
    named, notes = slice_columns(columns_of(fields), ["level", "grade"])
    assert [c.name for c in named] == ["level", "grade"] and not notes


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-5, 40), min_size=22, max_size=60))
def test_quartiles_never_split_equal_values_and_cover_all(values):
    task = columns_of([{"x": str(v), "y": f"v{i}"} for i, v in enumerate(values)])
    (column,), _ = slice_columns(task, ("x",))
    by_value = {}
    for value, code in zip(values, column.codes.tolist(), strict=True):
        assert by_value.setdefault(value, code) == code and code >= 0
    for low, high in zip(sorted(by_value)[:-1], sorted(by_value)[1:], strict=True):
        assert by_value[low] <= by_value[high]
    assert len(set(column.labels)) == len(column.labels)


def test_quartiles_of_an_unlucky_column():
    """Half the rows are 0, so that two quartiles are one; the largest value stands alone."""
    values = [0] * 60 + list(range(1, 60)) + [1_000_000]
    (column,), _ = slice_columns(columns_of([{"x": str(v)} for v in values]), None)
    assert column.labels == ["0", "1 – 30", "31 – 1000000"]
    assert np.bincount(column.codes).tolist() == [60, 30, 30]


def test_rows_without_the_field_are_in_no_slice():
    fields = [{"k": "ab"[i % 2]} if i % 3 else {} for i in range(90)]
    (column,), _ = slice_columns(columns_of(fields), None)
    assert column.codes.tolist() == [{"a": 0, "b": 1}[f["k"]] if f else -1 for f in fields]


def test_answer_length_and_gold_position_of_choices():
    choices = [("aa", "b"), ("b", "aa"), ("cccc", "aa")] * 20
    task = columns_of([{}] * 60, choices=choices, gold="aa", prediction="aa")
    columns = {c.name: c for c in slice_columns(task, None)[0]}
    assert set(columns) == {GOLD_POSITION}  # all gold answers are equally long
    assert columns[GOLD_POSITION].labels == ["1", "2"]
    assert columns[GOLD_POSITION].codes.tolist() == [0, 1, 1] * 20
    (length,), _ = slice_columns(task, ("answer length",))
    assert (length.name, length.labels) == (GOLD_LENGTH, ["2"])


def test_answer_length_of_generation_is_of_the_old_answer():
    texts = ["é" * (1 + i % 8) for i in range(80)]
    task = columns_of([{}] * 80, prediction=texts)
    (column,), _ = slice_columns(task, None)
    assert column.name == OLD_LENGTH
    assert column.labels == ["1 – 2", "3 – 4", "5 – 6", "7 – 8"]


def test_named_columns_that_cannot_be():
    task = columns_of([{"text": f"w{i}", "few": "a"} for i in range(60)])
    with pytest.raises(UserError, match=r"column 'text' has 60 values.*at most 50"):
        slice_columns(task, ("text",))
    assert slice_blocks(task, ("nope",), 50) == (
        [],
        "Left out: nope (this task has no such column).",
        {},
    )
    with pytest.raises(UserError, match="no column 'nope' to slice by; there are: 'few', 'text'"):
        check_columns([task], ("few", "nope"))
    check_columns([task, columns_of([{"nope": "1"}] * 60)], ("few", "nope"))


def test_named_column_with_many_numbers_becomes_quartiles_and_with_some_does_not():
    task = columns_of([{"x": str(i), "y": str(i % 40)} for i in range(120)])
    x, y = slice_columns(task, ("x", "y"))[0]
    assert x.labels == ["0 – 29", "30 – 59", "60 – 89", "90 – 119"]
    assert y.labels == [str(i) for i in range(40)]  # as numbers, not as texts


def test_order_of_the_files_changes_nothing():
    fields = [{"k": "ab"[i % 2], "x": str(i * 7 % 64)} for i in range(128)]
    old = rows([float(i % 2) for i in range(128)], fields=fields)
    new = rows([float(i % 3 > 0) for i in range(128)], fields=fields)
    straight = joined({"old": old, "new": new})
    turned = joined({"old": old[::-1], "new": new[::-1]})
    assert slice_blocks(straight, None, 20) == slice_blocks(turned, None, 20)
