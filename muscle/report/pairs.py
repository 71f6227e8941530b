"""One version, one pair of versions, and what compat changes: their numbers in report.json."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from muscle.metrics.bounds import (
    BOUND,
    clopper_pearson,
    difference_bounds,
    rate_bounds,
    relative_nfr_bounds,
)
from muscle.metrics.capa import capa_interval
from muscle.metrics.flips import RATES, FloatArray, PairSums, ratio
from muscle.metrics.histogram import histogram
from muscle.metrics.intervals import (
    CONFIDENCE,
    Interval,
    as_list,
    mcnemar_exact,
    percentile_interval,
    wilson,
)
from muscle.metrics.pairing import AnyPair, JoinedTask, Pair
from muscle.metrics.replaced import replaced
from muscle.report.sums import Seeds, TaskSums, mean_over, number, weighted_mean
from muscle.types import Version

COUNTS = ("both_right", "negative", "positive", "both_wrong_same", "both_wrong_different")
_UPDATE: Pair = ("old", "new")
_MENDED: Pair = ("old", "compat")
REDUCTIONS = ("nfr", "nfr_relative", "relative_nfr", "relative_nfr_relative", "m_g", "m_r")


def version_block(sums: TaskSums, seeds: Seeds, version: Version) -> dict[str, Any]:
    """A version's mean score, its interval, its one-sided bounds."""
    if sums.task.continuous or len(seeds) > 1:
        one_sided = sums.score_bounds(seeds, version).at()
    else:
        one_sided = clopper_pearson(sums.column(seeds[0], version)[0], sums.task.n)
    return {
        "score": number(sums.scores(seeds, version)[0]),
        "ci95": as_list(proportion(sums, seeds, version)),
        "bounds95": as_list(one_sided),
    }


def proportion(sums: TaskSums, seeds: Seeds, version: str) -> Interval | None:
    """The 95 % interval of a version's mean score."""
    score = sums.scores(seeds, version)
    if sums.task.continuous:
        return percentile_interval(score[1:])
    successes = sums.column(seeds[0], version)[0] if len(seeds) == 1 else None
    return _proportion(score, sums.task.n, successes, sums.task.n)


def _proportion(
    values: FloatArray, n: int, successes: float | None, trials: float
) -> Interval | None:
    """Wilson for one seed's successes of trials; for several seeds (successes None) the
    bootstrap, and Wilson at the mean rate where no resample can vary (all seeds agree
    on all examples, so n is the honest size)."""
    if np.isnan(values[0]):
        return None
    if successes is not None:
        return wilson(float(successes), float(trials))
    return percentile_interval(values[1:]) or wilson(min(n, float(values[0] * n)), n)


def rate_interval(
    sums: TaskSums, seeds: Seeds, pair: AnyPair, name: str, values: FloatArray
) -> list[float] | None:
    """The 95 % interval of one of `RATES`: Wilson's where it is k of m examples (for several
    seeds see `_proportion`), else the percentile bootstrap.

    With several seeds a slice's interval differs slightly from a task's of the same rate:
    slices take `proportions.share_interval`, which needs sums alone and no draws.
    """
    if np.isnan(values[0]):
        return None
    known = _proportions(sums.pair(seeds[0], pair)) if len(seeds) == 1 else {}
    if name in known or name in ("nfr", "pfr", "nfr_mc"):
        successes, trials = known.get(name, (None, 0.0))
        return as_list(_proportion(values, sums.task.n, successes, trials))
    return as_list(percentile_interval(values[1:]))


def _proportions(s: PairSums) -> dict[str, tuple[float, float]]:
    """The measures that are k of m examples, for one seed: name -> (k, m)."""
    n, right_old, right_new, negative = (
        float(x[0]) for x in (s.n, s.right_old, s.right_new, s.negative)
    )
    return {
        "nfr": (negative, n),
        "pfr": (float(s.positive[0]), n),
        "nfr_mc": (float(s.inconsistent[0]), n),
        "btc": (right_old - negative, right_old),
        "nfi": (negative, n - right_new),
    }


def pair_block(sums: TaskSums, seeds: Seeds, pair: Pair) -> dict[str, Any]:
    """The counts and rates of a pair, with their intervals and bounds."""
    task = sums.task
    values = {name: sums.rate(name, seeds, pair) for name in RATES}
    gain = sums.gain_bounds(seeds, pair)
    capa = capa_interval(task, seeds, pair)
    one = len(seeds) == 1 and task.n > 0
    return {
        **_counts(task, seeds, pair),
        **{name: number(array[0]) for name, array in values.items()},
        "capa": capa[0],
        "gain": number(sums.gain(seeds, pair)[0]),
        "gain_p": _gain_p(task, seeds[0], pair) if one and not task.continuous else None,
        "independent_nfr": _chance(sums, seeds, pair),
        "least_nfr": _least(sums, seeds, pair),
        "replaced": replaced(task, seeds[0], pair) if one else None,
        "histogram": histogram(task, seeds, pair) if task.n else None,
        "ci95": {
            **{name: rate_interval(sums, seeds, pair, name, a) for name, a in values.items()},
            "capa": as_list(capa[1]),
            "gain": as_list(gain.at(CONFIDENCE)),
        },
        "bounds95": {
            "nfr": as_list(rate_bounds(sums.worse(seeds, pair))),
            "pfr": as_list(rate_bounds(sums.better(seeds, pair))),
            "relative_nfr": as_list(_relative_bounds(sums, seeds, pair, values["relative_nfr"])),
            "gain": as_list(gain.at()),
        },
    }


def _counts(task: JoinedTask, seeds: Seeds, pair: Pair) -> dict[str, int | None]:
    names = (*COUNTS, "equal") if task.continuous else COUNTS
    known = asdict(task.counts(seeds[0], *pair)) if len(seeds) == 1 else {}
    return {name: known.get(name) for name in names}


def _gain_p(task: JoinedTask, seed: int, pair: Pair) -> float:
    """Did accuracy change: exact McNemar on right and wrong."""
    return mcnemar_exact(*(task.scores[seed, version] == 1 for version in pair)).p


def _chance(sums: TaskSums, seeds: Seeds, pair: Pair) -> float | None:
    """acc1 (1 - acc2): the NFR if right before had nothing to do with right after."""
    if sums.task.continuous:
        return None
    before, after = pair
    product = mean_over(lambda s: sums.score(s, before) * (1 - sums.score(s, after)), seeds)
    return number(product[0])


def _least(sums: TaskSums, seeds: Seeds, pair: Pair) -> float | None:
    """max(0, acc1 - acc2): fewer flips than accuracy lost are impossible."""
    if sums.task.continuous:
        return None
    before, after = pair
    lost = mean_over(lambda s: np.maximum(0.0, sums.score(s, before) - sums.score(s, after)), seeds)
    return number(lost[0])


def _relative_bounds(
    sums: TaskSums, seeds: Seeds, pair: Pair, values: FloatArray
) -> Interval | None:
    if np.isnan(values[0]):
        return None
    before, after = pair
    scores = sums.task.scores
    found = relative_nfr_bounds(
        [scores[s, before] for s in seeds],
        [scores[s, after] for s in seeds],
        sums.worse(seeds, pair),
    )
    return found or percentile_interval(values[1:], BOUND)


def reduction_block(sums: TaskSums, seeds: Seeds) -> dict[str, Any] | None:
    """What compat changes against new, both measured from old; ratios of seed means. None
    without compat.

    `ci95` is over examples, for these trained models; `ci95_seeds`, null for one seed, over
    examples and seeds: what other trainings would have given.
    """
    if "compat" not in sums.task.versions:
        return None
    before, after = _UPDATE, _MENDED
    arrays = _reductions(lambda name, pair: sums.rate(name, seeds, pair))
    new, compat = sums.worse(seeds, before), sums.worse(seeds, after)
    one = len(seeds) == 1 and sums.task.n > 0
    return {
        **{name: number(arrays[name][0]) for name in REDUCTIONS},
        "ci95": _intervals(arrays),
        "ci95_seeds": _intervals(_over_seeds(sums, seeds)) if len(seeds) > 1 else None,
        "bounds95": {"nfr": as_list(difference_bounds(compat, new).at())},
        "p": mcnemar_exact(new[0], compat[0]).p if one else None,
    }


def _reductions(rate: Callable[[str, Pair], FloatArray]) -> dict[str, FloatArray]:
    """`REDUCTIONS`, [1 + draws] each, of rates that are means over seeds."""
    names = ("nfr", "relative_nfr", "m_g", "m_r")
    rates = {name: (rate(name, _UPDATE), rate(name, _MENDED)) for name in names}
    arrays = {name: compat - new for name, (new, compat) in rates.items()}
    for name in ("nfr", "relative_nfr"):
        arrays[f"{name}_relative"] = ratio(arrays[name], rates[name][0])
    return arrays


def _over_seeds(sums: TaskSums, seeds: Seeds) -> dict[str, FloatArray]:
    """The same where each draw takes other seeds too, old, new and compat of one together."""
    weights = sums.seed_weights(seeds)

    def rate(name: str, pair: Pair) -> FloatArray:
        each = [RATES[name].compute(sums.pair(s, pair)) for s in seeds]
        return weighted_mean(np.stack(each), weights)

    return _reductions(rate)


def _intervals(arrays: dict[str, FloatArray]) -> dict[str, Any]:
    return {
        name: None if np.isnan(arrays[name][0]) else as_list(percentile_interval(arrays[name][1:]))
        for name in REDUCTIONS
    }
