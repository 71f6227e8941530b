"""Near ties: the gap as the deciding metric sees it, tolerances, flips counted apart."""

import math

import numpy as np
import pyarrow as pa
import pytest
from joined import joined, rows, scored

from muscle.metrics.ties import gaps, near_tie_block, near_ties, near_ties_of, tolerance_of
from muscle.side import side_of

INF = math.inf


def numbers(lists):
    return pa.array(lists, pa.list_(pa.float64()))


def texts(lists):
    return pa.array(lists, pa.list_(pa.string()))


def naive_gap(metric, lls, choices):
    values = list(lls)
    if metric == "acc_norm":
        values = [x / len(c) for x, c in zip(lls, choices, strict=True)]
    if metric == "acc_bytes":
        values = [x / len(c.encode()) for x, c in zip(lls, choices, strict=True)]
    second, best = sorted(values)[-2:]
    return (best - second) / abs(best)


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "acc_bytes"])
@pytest.mark.parametrize("ragged", [False, True])
def test_gaps_against_a_loop(metric, ragged):
    rng = np.random.default_rng(5)
    sizes = rng.integers(2, 6, 50).tolist() if ragged else [4] * 50
    lls = [(-rng.gamma(3, 4, k)).tolist() for k in sizes]
    choices = [["é" * int(n) + "a" for n in rng.integers(0, 9, k)] for k in sizes]
    found = gaps(metric, numbers(lls), texts(choices))
    expected = [naive_gap(metric, x, c) for x, c in zip(lls, choices, strict=True)]
    assert found == pytest.approx(expected)


def test_what_is_no_near_tie():
    lls = [None, [], [-1.0], [-1.0, math.nan], [-INF, -INF], [INF, INF], [-3.0, -INF], [None, -1.0]]
    assert not near_ties("acc", numbers(lls), None, 1.0).any()
    assert near_ties(
        "acc", numbers([[-2.0, -2.0], [0.0, 0.0], [0.0, -1.0]]), None, 1e-5
    ).tolist() == [
        True,
        True,
        False,
    ]


def test_normalisation_decides():
    """Equal per character, far apart in sum; and the other way round."""
    lls, choices = numbers([[-2.0, -4.0], [-3.0, -3.0]]), texts([["ab", "abcd"], ["é", "abc"]])
    assert near_ties("acc_norm", lls, choices, 1e-5).tolist() == [True, False]
    assert near_ties("acc", lls, choices, 1e-5).tolist() == [False, True]
    assert near_ties("acc_bytes", numbers([[-2.0, -1.0]]), texts([["é", "a"]]), 1e-5).all()
    assert near_ties("acc_norm", lls, None, 1e-5) is None
    assert near_ties("acc_norm", lls, texts([["ab"], ["a", "b"]]), 1e-5) is None
    assert near_ties("acc_mutual_info", lls, choices, 1.0) is None


def test_an_empty_choice_and_rows_without_choices():
    lls, choices = numbers([[-1.0, -1.0], None]), texts([["", "a"], None])
    assert near_ties("acc_norm", lls, choices, 1e-5).tolist() == [False, False]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        ("float32", 1e-5),
        ("torch.float16", 2**-10),
        ("bfloat16", 2**-7),
        ("int4", 1e-5),
        (None, 1e-5),
    ],
)
def test_tolerance_by_dtype(dtype, tolerance):
    side = side_of(rows([1.0]), "old", {} if dtype is None else {"dtype": dtype})
    assert tolerance_of(side) == tolerance


def choice_rows(scores, lls):
    return rows(scores, loglikelihoods=lls, choices=("a", "b"), gold="a")


FAR, CLOSE, TIE = (-1.0, -9.0), (-1.0, -1.005), (-1.0, -1.000001)


def two_versions(about):
    old = choice_rows([1.0, 1.0, 1.0, 0.0, 1.0], [FAR, TIE, FAR, CLOSE, FAR])
    new = choice_rows([1.0, 0.0, 0.0, 1.0, 0.0], [FAR, FAR, CLOSE, FAR, FAR])
    return joined({"old": old, "new": new}, about=about)


def test_block_in_float32():
    task = two_versions({"old": {"dtype": "float32"}, "new": {"dtype": "float32"}})
    assert near_tie_block(task) == {
        "tolerance": 1e-5,
        "versions": {"old": 1, "new": 0},
        "pairs": {"old->new": {"negative": 1, "positive": 0, "nfr_without": 2 / 4}},
        "note": None,
    }


def test_the_coarser_dtype_decides_for_a_pair():
    """new is bfloat16, so that old's close calls count in the pair, but not as old's own."""
    task = two_versions({"old": {"dtype": "float32"}, "new": {"dtype": "bfloat16"}})
    block = near_tie_block(task)
    assert block["tolerance"] == 2**-7 and block["versions"] == {"old": 1, "new": 1}
    assert block["pairs"] == {"old->new": {"negative": 2, "positive": 1, "nfr_without": 1 / 2}}


def test_unknown_dtype_is_said():
    block = near_tie_block(two_versions({"old": {"dtype": "float32"}}))
    assert block["note"] == "dtype of new not known: as float32" and block["tolerance"] == 1e-5


def test_no_block_without_loglikelihoods_or_for_graded_scores():
    assert near_tie_block(scored({"old": [1, 0], "new": [1, 1]})) is None
    graded = scored(
        {"old": [0.1, 0.2], "new": [1, 1]}, metric="rouge1", loglikelihoods=(-1.0, -1.0)
    )
    assert near_tie_block(graded) is None and near_ties_of(graded, 0, "old") is None


def test_one_side_without_loglikelihoods():
    old = choice_rows([1.0, 0.0], [TIE, FAR])
    block = near_tie_block(joined({"old": old, "new": rows([1.0, 1.0], gold="a")}))
    assert block["versions"] == {"old": 1, "new": None} and block["pairs"] == {}


def test_all_examples_near_ties_leave_no_rate():
    old, new = choice_rows([1.0, 1.0], [TIE, TIE]), choice_rows([0.0, 1.0], [FAR, FAR])
    pair = near_tie_block(joined({"old": old, "new": new}))["pairs"]["old->new"]
    assert pair == {"negative": 1, "positive": 0, "nfr_without": None}


def test_several_seeds_count_an_example_once():
    one = {"old": choice_rows([1.0] * 4, [TIE, FAR, FAR, FAR])}
    two = {"old": choice_rows([1.0] * 4, [TIE, TIE, FAR, FAR])}
    new = {"new": choice_rows([0.0, 0.0, 0.0, 1.0], [FAR] * 4)}
    block = near_tie_block(joined(one | new, two | new))
    assert block["versions"] == {"old": 2, "new": 0}
    pair = block["pairs"]["old->new"]
    assert pair["negative"] == 2 and pair["nfr_without"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_all_rows_or_the_scored_ones():
    old = choice_rows([1.0, None, 0.0], [FAR, TIE, TIE])
    task = joined({"old": old, "new": choice_rows([1.0, 1.0, 1.0], [FAR, FAR, FAR])})
    assert near_ties_of(task, 0, "old").tolist() == [False, True]
    assert near_ties_of(task, 0, "old", all=True).tolist() == [False, True, True]
