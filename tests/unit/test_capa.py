"""CAPA in columns: against the loop over records, and its interval by simulation."""

import numpy as np
import pytest
from joined import joined, rows, scored

from muscle.metrics.capa import (
    Capa,
    capa,
    capa_interval,
    capa_of_probabilities,
    choice_probabilities,
)

PAIR = ("old", "new")


def random_pair(rng, sizes, agreement=1.0, zeros=False):
    """Log-likelihoods of two versions that share some of their taste."""
    shared = [rng.normal(0, 2, k) for k in sizes]
    versions = [[(agreement * s + rng.normal(0, 1, len(s))).tolist() for s in shared] for _ in "12"]
    if zeros:
        versions[0][0][0] = -np.inf
    return versions, [int(rng.integers(k)) for k in sizes]


def task_of(versions, gold, **columns):
    choices = [tuple(f"c{j}" for j in range(len(lls))) for lls in versions[0]]
    golds = [f"c{g}" for g in gold]
    made = {
        name: rows(
            [float(np.argmax(x) == g) for x, g in zip(lls, gold, strict=True)],
            loglikelihoods=[tuple(x) for x in lls],
            choices=choices,
            gold=golds,
            **columns,
        )
        for name, lls in zip(PAIR, versions, strict=True)
    }
    return made, joined(made)


def naive(versions, gold):
    p, q = ([choice_probabilities(x) for x in lls] for lls in versions)
    return capa_of_probabilities(p, q, gold)


@pytest.mark.parametrize("ragged", [False, True])
def test_value_against_the_loop(ragged):
    rng = np.random.default_rng(4)
    sizes = rng.integers(2, 7, 80).tolist() if ragged else [4] * 80
    versions, gold = random_pair(rng, sizes, zeros=True)
    made, task = task_of(versions, gold)
    found = capa_interval(task, 0, PAIR)
    assert found.value == pytest.approx(naive(versions, gold), abs=1e-12)
    assert found.value == pytest.approx(capa(made["old"], made["new"]), abs=1e-12)
    assert found.interval.low < found.value < found.interval.high <= 1


def test_interval_against_the_bootstrap():
    rng = np.random.default_rng(2)
    sizes = [3] * 150 + [5] * 150
    versions, gold = random_pair(rng, sizes)
    _, task = task_of(versions, gold)
    low, high = capa_interval(task, 0, PAIR).interval
    p, q = ([choice_probabilities(x) for x in lls] for lls in versions)
    terms = np.array(
        [(a @ b, a[g], b[g], 1 / (len(a) - 1)) for a, b, g in zip(p, q, gold, strict=True)]
    )
    o, p1, p2, c = terms[rng.integers(0, 300, (4000, 300))].mean(axis=1).T
    e = p1 * p2 + (1 - p1) * (1 - p2) * c
    bootstrap = (o - e) / (1 - e)
    assert (low, high) == pytest.approx(np.quantile(bootstrap, [0.025, 0.975]), abs=0.01)
    assert (high - low) / 3.92 == pytest.approx(bootstrap.std(), rel=0.06)


def test_interval_covers():
    """400 samples of 150 examples; the truth from a sample of 300,000."""
    rng = np.random.default_rng(9)

    def logits(n):
        shared = rng.normal(0, 1.5, (n, 4))
        right = np.eye(4)[rng.integers(0, 4, n)] * 1.5
        return shared + right + rng.normal(0, 1, (n, 4)), shared + right * 1.3, right.argmax(1)

    def terms(n):
        a, b, gold = logits(n)
        p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (a, b))
        rows_ = np.arange(n)
        return (p * q).sum(1).mean(), p[rows_, gold].mean(), q[rows_, gold].mean()

    o, p1, p2 = terms(300_000)
    e = p1 * p2 + (1 - p1) * (1 - p2) / 3
    truth, hits = (o - e) / (1 - e), 0
    for _ in range(400):
        a, b, gold = logits(150)
        low, high = interval_of(a, b, gold)
        hits += low <= truth <= high
    assert 400 * 0.95 - 3 * (400 * 0.95 * 0.05) ** 0.5 - 4 <= hits <= 400 * 0.99


def interval_of(a, b, gold):
    """`capa_interval` of plain arrays, without a join of 400 tasks."""
    import pyarrow as pa

    class Task:
        n = len(gold)

        def column(self, seed, version, name):
            if name == "loglikelihoods":
                return pa.array(list(a if version == "old" else b), pa.list_(pa.float64()))
            if name == "choices":
                return pa.array([list("abcd")] * self.n, pa.list_(pa.string()))
            return pa.array(["abcd"[g] for g in gold])

    return capa_interval(Task(), 0, PAIR).interval


def test_several_seeds():
    rng = np.random.default_rng(6)
    sizes, gold = [4] * 120, [int(g) for g in rng.integers(0, 4, 120)]
    seeds = [random_pair(rng, sizes)[0] for _ in range(3)]
    task = joined(*(task_of(versions, gold)[0] for versions in seeds))
    single = [capa_interval(task, s, PAIR) for s in range(3)]
    together = capa_interval(task, (0, 1, 2), PAIR)
    assert together.value == pytest.approx(np.mean([c.value for c in single]))
    width = together.interval.high - together.interval.low
    assert width < max(c.interval.high - c.interval.low for c in single)
    same = joined(*(task_of(seeds[0], gold)[0] for _ in range(2)))
    twice, once = capa_interval(same, (0, 1), PAIR), capa_interval(same, 0, PAIR)
    assert twice.value == pytest.approx(once.value)
    assert twice.interval == pytest.approx(once.interval)  # a copy is no new evidence


def test_one_hot_answers_that_never_vary_have_no_interval():
    sure = [[0.0, -np.inf]] * 5
    _, task = task_of([sure, sure], [0] * 5)
    assert capa_interval(task, 0, PAIR) == Capa(None, None)  # e is 1
    _, task = task_of([sure, sure], [1] * 5)
    value, interval = capa_interval(task, 0, PAIR)
    assert (value, interval) == (None, None)
    flat = [[0.0, 0.0]] * 5
    _, task = task_of([flat, flat], [1] * 5)
    assert capa_interval(task, 0, PAIR) == Capa(0.0, None)


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"choices": ("a", "b")},
        {"choices": ("a", "b"), "loglikelihoods": (0.0, float("nan")), "gold": "a"},
        {"choices": ("a", "b"), "loglikelihoods": (float("inf"), 0.0), "gold": "a"},
        {"choices": ("a", "b"), "loglikelihoods": (float("-inf"),) * 2, "gold": "a"},
        {"choices": ("a", "b"), "loglikelihoods": (0.0, -1.0), "gold": "c"},
        {"choices": ("a", "b"), "loglikelihoods": (0.0, -1.0, -2.0), "gold": "a"},
        {"choices": ("a",), "loglikelihoods": (0.0,), "gold": "a"},
        {"choices": (), "loglikelihoods": (), "gold": "a"},
        {"choices": [("a", "b"), None], "loglikelihoods": (0.0, -1.0), "gold": "a"},
    ],
)
def test_none_where_it_cannot_be_had(columns):
    task = scored({"old": [1, 0], "new": [0, 0]}, **columns)
    assert capa_interval(task, 0, PAIR) == Capa(None, None)


def test_other_choices_are_not_compared():
    old = rows([1.0], choices=("a", "b"), loglikelihoods=(0.0, -1.0), gold="a")
    new = rows([1.0], choices=("b", "a"), loglikelihoods=(0.0, -1.0), gold="a")
    assert capa_interval(joined({"old": old, "new": new}), 0, PAIR) == Capa(None, None)
