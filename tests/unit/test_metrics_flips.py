"""Every formula against its properties and against a loop that knows only its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from muscle.metrics import flips
from muscle.metrics.capa import capa, capa_of_probabilities, choice_probabilities
from muscle.metrics.flips import RATES, count_flips, count_scores, ratio
from muscle.types import Prediction

# One example: the two answers; answer 0 is the right one.
answers = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)
scores = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 8)).map(lambda t: (t[0] / 8, t[1] / 8)),
    min_size=1,
    max_size=40,
)
some = settings(max_examples=60, deadline=None)


def counts_of(pairs):
    old, new = np.array(pairs).T
    return count_flips(old == 0, new == 0, old == new)


@some
@given(answers)
def test_five_counts_partition_n(pairs):
    c = counts_of(pairs)
    assert c.n == len(pairs)
    assert c.both_wrong_same + c.both_wrong_different == c.both_wrong


@some
@given(answers)
def test_identity_has_no_flips(pairs):
    c = counts_of([(a, a) for a, _ in pairs])
    assert flips.nfr(c) == flips.pfr(c) == flips.nfr_mc(c) == 0
    assert flips.btc(c) in (1, None) and flips.m_g(c) is None and flips.m_r(c) is None


@some
@given(answers)
def test_swapping_versions_swaps_the_rates(pairs):
    forward, back = counts_of(pairs), counts_of([(b, a) for a, b in pairs])
    assert flips.nfr(forward) == flips.pfr(back) and flips.pfr(forward) == flips.nfr(back)
    assert flips.kappa(forward) == flips.kappa(back)


@some
@given(answers)
def test_identities_between_the_rates(pairs):
    c = counts_of(pairs)
    acc1 = np.mean([a == 0 for a, _ in pairs])
    acc2 = np.mean([b == 0 for _, b in pairs])
    assert flips.pfr(c) - flips.nfr(c) == pytest.approx(acc2 - acc1)
    assert flips.nfr_mc(c) >= flips.nfr(c)
    if acc1:
        assert flips.btc(c) == pytest.approx(1 - flips.nfr(c) / acc1)
    if acc1 and acc2 < 1:
        assert flips.relative_nfr(c) == pytest.approx(flips.nfi(c) / acc1)


def loop(pairs):
    """The definitions, one example at a time."""
    n = len(pairs)
    negative = sum(1 for a, b in pairs if a == 0 and b != 0)
    positive = sum(1 for a, b in pairs if a != 0 and b == 0)
    acc1 = sum(1 for a, _ in pairs if a == 0) / n
    acc2 = sum(1 for _, b in pairs if b == 0) / n
    rate, o = negative / n, 1 - (negative + positive) / n
    e = acc1 * acc2 + (1 - acc1) * (1 - acc2)
    return {
        "nfr": rate,
        "pfr": positive / n,
        "nfr_mc": sum(1 for a, b in pairs if b != 0 and a != b) / n,
        "btc": 1 - rate / acc1 if acc1 else None,
        "nfi": rate / (1 - acc2) if acc2 < 1 else None,
        "relative_nfr": rate / (acc1 * (1 - acc2)) if acc1 and acc2 < 1 else None,
        "kappa": (o - e) / (1 - e) if acc1 + acc2 not in (0, 2) else None,
        "m_g": 1 if positive else None,
        "m_r": 1 if negative else None,
    }


@some
@given(answers)
def test_against_the_loop(pairs):
    c, expected = counts_of(pairs), loop(pairs)
    assert expected.keys() == RATES.keys()
    for name, formula in RATES.items():
        assert formula(c) == pytest.approx(expected[name], abs=1e-12), name


@some
@given(scores, st.sampled_from([0.0, 0.125, 0.3]))
def test_continuous_against_the_loop(pairs, epsilon):
    old, new = zip(*pairs, strict=True)
    c = count_scores(old, new, epsilon)
    up = [b - a for a, b in pairs if b - a > epsilon]
    down = [a - b for a, b in pairs if a - b > epsilon]
    assert (c.positive, c.negative, c.n) == (len(up), len(down), len(pairs))
    assert c.equal == len(pairs) - len(up) - len(down)
    assert flips.nfr(c) == len(down) / c.n and flips.pfr(c) == len(up) / c.n
    assert flips.m_g(c) == (pytest.approx(sum(up) / len(up)) if up else None)
    assert flips.m_r(c) == (pytest.approx(sum(down) / len(down)) if down else None)
    for name in ("nfr_mc", "relative_nfr", "btc", "nfi", "kappa"):
        assert RATES[name](c) is None


@pytest.mark.filterwarnings("ignore")
@some
@given(answers)
def test_kappa_against_sklearn(pairs):
    old, new = [a == 0 for a, _ in pairs], [b == 0 for _, b in pairs]
    value = flips.kappa(counts_of(pairs))
    if value is None:
        assert len({*old, *new}) == 1
    else:
        assert value == pytest.approx(cohen_kappa_score(old, new))


def test_published_cell():
    """PIQA, Llama 1 to 2 (Table 4): NFR 11.59 % at 74.86 and 74.76 % accuracy."""
    n, negative, right_old, right_new = 1838, 213, 1376, 1374
    positive = right_new - right_old + negative
    c = flips.FlipCounts(
        right_old - negative, negative, positive, n - right_old - positive, None, None
    )
    assert flips.nfr(c) == pytest.approx(0.1159, abs=1e-4)
    assert flips.relative_nfr(c) == pytest.approx(0.1159 / (0.7486 * 0.2524), rel=2e-3)
    assert flips.nfr_mc(c) is None


@pytest.mark.parametrize(
    ("old", "new", "undefined"),
    [
        ([1, 1], [1, 1], {"nfi", "relative_nfr", "kappa", "m_g", "m_r"}),
        ([0, 0], [0, 0], {"btc", "relative_nfr", "kappa", "m_g", "m_r"}),
        ([0, 0], [1, 1], {"btc", "nfi", "relative_nfr", "m_r"}),
        ([1, 1], [0, 0], {"m_g"}),
        ([], [], set(RATES)),
    ],
)
def test_none_where_a_denominator_is_0(old, new, undefined):
    c = count_flips(old, new, [True] * len(old))
    assert {name for name, formula in RATES.items() if formula(c) is None} == undefined


def test_formulas_on_arrays_mark_nan():
    s = count_flips([1, 0], [0, 1]).sums()
    two = flips.PairSums(
        **{f: np.array([float(getattr(s, f)), 0.0]) for f in flips.PairSums.__slots__}
    )
    assert flips.nfr.compute(two)[0] == 0.5 and np.isnan(flips.nfr.compute(two)[1])
    assert np.isnan(ratio([1, 0], 0)).all()


def test_refused_arrays():
    with pytest.raises(ValueError, match="same shape"):
        count_flips([1, 0], [1])
    with pytest.raises(ValueError, match="same shape"):
        count_scores([0.1], [0.1, 0.2])
    with pytest.raises(ValueError, match="finite"):
        count_scores([0.1], [float("nan")])
    with pytest.raises(ValueError, match="epsilon"):
        count_scores([0.1], [0.2], epsilon=-1)


def test_formulas_keep_their_source():
    assert "Yan" in flips.relative_nfr.__doc__ and flips.nfr.__name__ == "nfr"


def test_same_answers():
    assert flips.same_answers(("a", "b"), ("a", "c")).tolist() == [True, False]
    assert flips.same_answers(("a", None), ("a", "c")) is None


# CAPA


def test_capa_against_the_loop():
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 6, 50)
    p = [rng.dirichlet(np.ones(k)) for k in sizes]
    q = [rng.dirichlet(np.ones(k)) for k in sizes]
    gold = [int(rng.integers(k)) for k in sizes]
    observed = a1 = a2 = chance = 0.0
    for i, k in enumerate(sizes):
        for j in range(k):
            observed += p[i][j] * q[i][j] / 50
        a1, a2 = a1 + p[i][gold[i]] / 50, a2 + q[i][gold[i]] / 50
        chance += 1 / (k - 1) / 50
    expected = a1 * a2 + (1 - a1) * (1 - a2) * chance
    assert capa_of_probabilities(p, q, gold) == pytest.approx(
        (observed - expected) / (1 - expected)
    )


@some
@given(answers)
def test_capa_one_hot_is_the_discrete_form(pairs):
    old = [np.eye(4)[a] for a, _ in pairs]
    new = [np.eye(4)[b] for _, b in pairs]
    value = capa_of_probabilities(old, new, [0] * len(pairs))
    agree = np.mean([a == b for a, b in pairs])
    acc1, acc2 = np.mean([a == 0 for a, _ in pairs]), np.mean([b == 0 for _, b in pairs])
    e = acc1 * acc2 + (1 - acc1) * (1 - acc2) / 3
    assert value == (None if e == 1 else pytest.approx((agree - e) / (1 - e)))


def choice(i, loglikelihoods, **changes):
    fields = dict(
        task="t", id=str(i), question="q", gold="a", prediction="a", metric="acc", score=1.0,
        choices=("a", "b"), loglikelihoods=loglikelihoods,
    )  # fmt: skip
    return Prediction(**(fields | changes))


def test_capa_of_predictions():
    old = [choice(0, (-1.0, -2.0)), choice(1, (-1000.0, float("-inf")))]
    new = [choice(0, (-3.0, -1.0)), choice(1, (0.0, -1.0))]
    p = [choice_probabilities(x.loglikelihoods) for x in old]
    q = [choice_probabilities(x.loglikelihoods) for x in new]
    assert p[1].tolist() == [1.0, 0.0] and p[0].sum() == pytest.approx(1)
    assert capa(old, new) == pytest.approx(capa_of_probabilities(p, q, [0, 0]))


@pytest.mark.parametrize(
    "changes",
    [
        {"choices": None, "loglikelihoods": None},
        {"loglikelihoods": None},
        {"loglikelihoods": (float("-inf"), float("-inf"))},
        {"loglikelihoods": (float("nan"), 0.0)},
        {"gold": "c"},
        {"choices": ("a",), "loglikelihoods": (0.0,)},
    ],
)
def test_capa_is_none_where_it_cannot_be_had(changes):
    record = choice(0, **({"loglikelihoods": (0.0, 0.0)} | changes))
    assert capa([record], [record]) is None
    assert capa([], []) is None


def test_capa_refuses_other_examples():
    with pytest.raises(ValueError, match="same examples"):
        capa([choice(0, (0.0, 0.0))], [choice(1, (0.0, 0.0))])
    with pytest.raises(ValueError, match="length"):
        capa_of_probabilities([np.ones(2) / 2], [], [0])
    with pytest.raises(ValueError, match="choices"):
        capa_of_probabilities([np.ones(2) / 2], [np.ones(3) / 3], [0])
