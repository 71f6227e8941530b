"""The noise floor, the gain and what else the report says of chance."""

import numpy as np
import pytest
from scipy.stats import binomtest

from muscle.errors import UserError
from muscle.metrics.bounds import clopper_pearson
from muscle.metrics.intervals import mcnemar_exact, wilson
from muscle.metrics.pairing import join_sides
from muscle.report.build import ReportOptions, report_of
from muscle.side import side_of
from muscle.types import Prediction

OPTIONS = ReportOptions(draws=400)
NAMES = ("old", "new", "compat", "again")


def scores_of(seed=0, n=400, graded=False):
    """Four versions that share how hard the examples are; again is nearly old."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(99).normal(size=n)
    noise = {v: rng.normal(size=n) for v in NAMES}
    noise["again"] = 0.95 * noise["old"] + 0.3 * noise["again"]
    values = {
        v: hard + noise[v] + lift for v, lift in zip(NAMES, (0.4, 0.6, 0.6, 0.4), strict=True)
    }
    if graded:
        return {v: np.round(1 / (1 + np.exp(-x)), 2) for v, x in values.items()}
    return {v: (x > 0).astype(float) for v, x in values.items()}


def tasks_of(*seeds, metric="acc"):
    """A joined task of scores: for each seed version -> [n]."""
    return join_sides(
        {
            seed: {
                v: {
                    "t": side_of(
                        [Prediction("t", f"{i:04d}", "q", "a", f"{s}", metric, float(s))
                         for i, s in enumerate(values)],
                        f"{v} {seed}",
                    )
                }
                for v, values in versions.items()
            }
            for seed, versions in enumerate(seeds)
        }
    )  # fmt: skip


def block_of(*seeds, metric="acc", **options):
    return report_of(tasks_of(*seeds, metric=metric), {}, OPTIONS, **options)["tasks"]["t"]


def test_floor_of_one_seed_by_hand():
    scores = scores_of()
    block = block_of(scores)
    floor = block["noise_floor"]
    old, again = scores["old"] == 1, scores["again"] == 1
    lost = int((old & ~again).sum())
    assert 0 < lost and floor["counts"] == {
        "negative": lost, "positive": int((~old & again).sum())
    }  # fmt: skip
    assert floor["nfr"] == lost / 400 and floor["score"] == pytest.approx(again.mean())
    assert floor["relative_nfr"] == pytest.approx(lost / 400 / (old.mean() * (1 - again.mean())))
    assert floor["ci95"]["nfr"] == pytest.approx(wilson(lost, 400))
    assert list(floor["ci95"]) == ["nfr", "pfr", "relative_nfr", "score"]
    assert list(floor["excess"]) == ["old->new", "old->compat"]
    for version in ("new", "compat"):
        excess = floor["excess"][f"old->{version}"]
        new = scores[version] == 1
        value = (np.sum(old & ~new) - lost) / 400
        assert excess["nfr"] == pytest.approx(value) and value > 0
        only = int((old & ~new & again).sum()), int((old & new & ~again).sum())
        assert excess["p"] == pytest.approx(binomtest(only[0], sum(only)).pvalue)
        (low, high), (lower, upper) = excess["ci95"]["nfr"], excess["bounds95"]["nfr"]
        assert low < lower < value < upper < high
        spread = (sum(only) / 400 - value**2) ** 0.5 / 20
        assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_a_floor_changes_no_other_number_but_draws():
    scores = scores_of()
    three = {v: scores[v] for v in NAMES[:3]}
    with_floor, without = block_of(scores), block_of(three)
    assert without["noise_floor"] is None and list(with_floor["versions"]) == list(three)
    for pair, block in without["pairs"].items():
        for name, value in block.items():
            if name != "ci95" and name != "bounds95":
                assert with_floor["pairs"][pair][name] == value, name
        assert with_floor["pairs"][pair]["bounds95"] == block["bounds95"]


def test_no_excess_where_the_update_is_the_second_seed():
    scores = scores_of()
    scores["new"] = scores["again"]
    excess = block_of(scores)["noise_floor"]["excess"]["old->new"]
    assert excess["nfr"] == 0 and excess["p"] == 1
    low, high = excess["bounds95"]["nfr"]
    assert -0.0085 < low < 0 < high < 0.0085  # about 3 / n: nothing differed, and n is 400


def test_floor_over_seeds():
    block = block_of(scores_of(0), scores_of(1), scores_of(2))
    floor, by_seed = block["noise_floor"], [b["noise_floor"] for b in block["by_seed"].values()]
    for name in ("nfr", "pfr", "relative_nfr", "score"):
        assert floor[name] == pytest.approx(np.mean([b[name] for b in by_seed]))
    assert floor["counts"] == {"negative": None, "positive": None}
    excess = floor["excess"]["old->compat"]
    each = [b["excess"]["old->compat"] for b in by_seed]
    assert excess["nfr"] == pytest.approx(np.mean([b["nfr"] for b in each]))
    assert excess["p"] is None and all(b["p"] is not None for b in each)
    lower, upper = excess["bounds95"]["nfr"]
    width = np.mean([b["bounds95"]["nfr"][1] - b["bounds95"]["nfr"][0] for b in each])
    assert lower < excess["nfr"] < upper and upper - lower < width


def test_floor_of_a_continuous_metric():
    scores = scores_of(graded=True)
    floor = block_of(scores, metric="rouge1")["noise_floor"]
    worse = scores["again"] < scores["old"]
    assert floor["nfr"] == pytest.approx(worse.mean()) and floor["relative_nfr"] is None
    update = scores["new"] < scores["old"]
    assert floor["excess"]["old->new"]["nfr"] == pytest.approx(update.mean() - worse.mean())
    assert floor["excess"]["old->new"]["p"] == mcnemar_exact(update, worse).p


def test_again_in_some_seeds_only_is_refused():
    one, two = scores_of(0), scores_of(1)
    del two["again"]
    with pytest.raises(UserError, match="seed 1 has no predictions of again but seed 0 has"):
        tasks_of(one, two)


def test_gain_and_its_p():
    scores = scores_of()
    pair = block_of(scores)["pairs"]["old->new"]
    old, new = scores["old"], scores["new"]
    assert pair["gain"] == pytest.approx(new.mean() - old.mean())
    won, lost = int((new > old).sum()), int((new < old).sum())
    assert pair["gain_p"] == pytest.approx(binomtest(won, won + lost).pvalue)
    (low, high), (lower, upper) = pair["ci95"]["gain"], pair["bounds95"]["gain"]
    assert low < lower < pair["gain"] < upper < high
    spread = 1.96 * (new - old).std() / 20
    assert (high - low) / 2 == pytest.approx(spread, rel=0.08)
    assert pair["bounds95"]["nfr"] == pytest.approx(clopper_pearson(lost, 400))
    assert pair["independent_nfr"] == pytest.approx(old.mean() * (1 - new.mean()))
    assert pair["least_nfr"] == 0
    back = report_of(tasks_of({"old": new, "new": old}), {}, OPTIONS)["tasks"]["t"]
    assert back["pairs"]["old->new"]["least_nfr"] == pytest.approx(new.mean() - old.mean())


def test_gain_of_a_continuous_metric():
    scores = scores_of(graded=True)
    pair = block_of(scores, metric="rouge1")["pairs"]["old->new"]
    change = scores["new"] - scores["old"]
    assert pair["gain"] == pytest.approx(change.mean()) and pair["gain_p"] is None
    assert pair["independent_nfr"] is None and pair["bounds95"]["relative_nfr"] is None
    spread = 1.645 * change.std() / 20
    ends = change.mean() - spread, change.mean() + spread
    assert pair["bounds95"]["gain"] == pytest.approx(ends, abs=1.5 / 400)


@pytest.mark.parametrize("metric", ["acc", "rouge1"])
def test_no_bound_is_missing_where_nothing_changes(metric):
    """Without a flip there still is a bound: about 3 of n, and not null."""
    same = scores_of()["old"]
    block = block_of(dict.fromkeys(NAMES, same), metric=metric)
    pair = block["pairs"]["old->new"]
    for name in ("nfr", "pfr"):
        assert pair["bounds95"][name] == pytest.approx([0, 3 / 400], abs=1e-4)
    low, high = pair["bounds95"]["gain"]
    assert -0.0080 < low < -0.0070 and 0.0070 < high < 0.0080
    if metric == "acc":
        assert pair["bounds95"]["relative_nfr"][0] == 0
        assert 0.02 < pair["bounds95"]["relative_nfr"][1] < 0.06
    for excess in block["noise_floor"]["excess"].values():
        assert excess["bounds95"]["nfr"][1] == pytest.approx(3 / 400, rel=0.1)
    assert block["reduction"]["bounds95"]["nfr"][0] == pytest.approx(-3 / 400, rel=0.1)


def test_log_likelihoods_have_bounds_too():
    """Scores below 0: an unseen example may be as far off as any that was seen."""
    rng = np.random.default_rng(0)
    old = -rng.random(50)
    pair = block_of({"old": old, "new": old}, metric="bits")["pairs"]["old->new"]
    low, high = pair["bounds95"]["gain"]
    assert -0.065 < low < -0.045 and 0.045 < high < 0.065


def test_reduction_of_averages():
    scores = scores_of(graded=True)
    reduction = block_of(scores, metric="rouge1")["reduction"]
    new, compat = (scores[v] - scores["old"] for v in ("new", "compat"))
    expected = -compat[compat < 0].mean() + new[new < 0].mean()
    assert reduction["m_r"] == pytest.approx(expected)
    low, high = reduction["ci95"]["m_r"]
    assert low < expected < high
    assert reduction["relative_nfr"] is None


def test_waived_flips_leave_the_floor_too():
    scores = scores_of()
    shared = (scores["old"] == 1) & (scores["new"] == 0) & (scores["again"] == 0)
    ids = [f"{i:04d}" for i in np.flatnonzero(shared)]
    assert ids
    before, after = block_of(scores), block_of(scores, waived={"t": ids})
    assert after["noise_floor"]["counts"]["negative"] == (
        before["noise_floor"]["counts"]["negative"] - len(ids)
    )
    name = "old->new"
    assert after["noise_floor"]["excess"][name]["nfr"] == pytest.approx(
        before["noise_floor"]["excess"][name]["nfr"]
    )
    assert after["versions"] == before["versions"]
