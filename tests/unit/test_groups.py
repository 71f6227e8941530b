"""Groups of tasks: pooled over examples, averaged over tasks, and what isn't pooled."""

import numpy as np
import pytest
from joined import scored
from scipy.stats import binomtest

from muscle.metrics.groups import ALL, group_blocks
from muscle.metrics.intervals import wilson


def tasks_of(kinds, seeds=1, versions=("old", "new")):
    """name -> (metric, n); random scores."""
    rng = np.random.default_rng(1)
    made = {}
    for name, (metric, n) in kinds.items():
        graded = metric.startswith("rouge")
        draw = (lambda n=n: rng.random(n)) if graded else (lambda n=n: rng.integers(0, 2, n))
        columns = {"task": name, "metric": metric}
        made[name] = scored(*({v: draw() for v in versions} for _ in range(seeds)), **columns)
    return made


def test_pooled_against_numpy():
    tasks = tasks_of({"a": ("acc", 40), "b": ("acc", 160)}, versions=("old", "new", "compat"))
    block = group_blocks(tasks, {"g": ("b", "a", "elsewhere")})["g"]
    assert block["tasks"] == ["a", "b"] and block["n"] == 200 and block["note"] is None
    assert block["pooled"] == {"tasks": ["a", "b"], "n": 200, "metric": "acc"}
    scores = {
        v: np.concatenate([tasks[t].scores[0, v] for t in "ab"]) for v in ("old", "new", "compat")
    }
    for version, found in block["versions"].items():
        assert found["score"] == pytest.approx(scores[version].mean())
        assert found["ci95"] == pytest.approx(wilson(scores[version].sum(), 200))
        means = [tasks[t].scores[0, version].mean() for t in "ab"]
        assert found["mean_score"] == pytest.approx(np.mean(means))
    assert list(block["pairs"]) == ["old->new", "old->compat", "new->compat"]
    for name, pair in block["pairs"].items():
        old, new = (scores[v] for v in name.split("->"))
        worse = int((new < old).sum())
        assert pair["negative"] == worse and pair["positive"] == (new > old).sum()
        assert pair["nfr"] == worse / 200 and pair["pfr"] == pair["positive"] / 200
        assert pair["gain"] == pytest.approx(pair["pfr"] - pair["nfr"])
        assert pair["ci95"]["nfr"] == pytest.approx(wilson(worse, 200))
        exact = binomtest(worse, 200).proportion_ci(0.9, method="exact")
        assert pair["bounds95"]["nfr"] == pytest.approx((exact.low, exact.high))
        for kind in ("ci95", "bounds95"):
            low, high = pair[kind]["gain"]
            assert low < pair["gain"] < high
    flips = [(tasks[t].scores[0, "new"] < tasks[t].scores[0, "old"]).mean() for t in "ab"]
    assert block["pairs"]["old->new"]["mean_nfr"] == pytest.approx(np.mean(flips))


def test_graded_tasks_are_only_in_the_means():
    tasks = tasks_of({"a": ("acc", 40), "b": ("acc", 60), "sum": ("rouge1", 50)})
    block = group_blocks(tasks, {})[ALL]
    assert block["n"] == 150 and block["pooled"]["n"] == 100
    assert block["note"] == "only in the means, not pooled: sum"
    means = [t.scores[0, "new"].mean() for t in tasks.values()]
    assert block["versions"]["new"]["mean_score"] == pytest.approx(np.mean(means))


@pytest.mark.parametrize(
    ("kinds", "note"),
    [
        ({"a": ("acc", 9), "b": ("exact_match", 9)}, r"different metrics \(acc, exact_match\)"),
        ({"a": ("acc", 9), "b": ("rouge1", 9)}, "fewer than two tasks"),
    ],
)
def test_nothing_to_pool(kinds, note):
    import re

    block = group_blocks(tasks_of(kinds), {})[ALL]
    assert block["pooled"] is None and re.search(note, block["note"])
    pair = block["pairs"]["old->new"]
    assert pair["nfr"] is pair["negative"] is pair["ci95"]["nfr"] is None
    assert pair["bounds95"] == {"nfr": None, "gain": None}
    assert pair["mean_nfr"] is not None and block["versions"]["old"]["score"] is None


def test_which_groups_there_are():
    tasks = tasks_of({"a": ("acc", 9), "b": ("acc", 9), "c": ("acc", 9)})
    groups = {"two": ("a", "b"), "one": ("a",), "none": ("x", "y")}
    assert list(group_blocks(tasks, groups)) == ["two", ALL]
    assert list(group_blocks(tasks, {"suite": ("c", "b", "a")})) == ["suite"]
    assert group_blocks({"a": tasks["a"]}, groups) == {}


def test_several_seeds_have_rates_and_no_counts():
    tasks = tasks_of({"a": ("acc", 50), "b": ("acc", 50)}, seeds=2)
    pair = group_blocks(tasks, {})[ALL]["pairs"]["old->new"]
    flips = [tasks[t].scores[s, "new"] < tasks[t].scores[s, "old"] for t in "ab" for s in (0, 1)]
    assert pair["negative"] is None and pair["nfr"] == pytest.approx(np.mean(flips))
    low, high = pair["bounds95"]["nfr"]
    assert low < pair["nfr"] < high


def test_waived_flips_do_not_count():
    from muscle.metrics.pairing import without_flips

    tasks = tasks_of({"a": ("acc", 50), "b": ("acc", 50)})
    before = group_blocks(tasks, {})[ALL]["pairs"]["old->new"]["negative"]
    worse = tasks["a"].worse(0, ("old", "new"))
    flipped = tasks["a"].ids.to_pylist()[int(np.flatnonzero(worse)[0])]
    waived = {**tasks, "a": without_flips(tasks["a"], [flipped])}
    assert group_blocks(waived, {})[ALL]["pairs"]["old->new"]["negative"] == before - 1
