"""The noise floor: the flips between two trainings of old, and what an update adds to them."""

from typing import Any

from muscle.metrics.bounds import difference_bounds
from muscle.metrics.intervals import CONFIDENCE, as_list, mcnemar_exact
from muscle.metrics.pairing import FLOOR, Pair
from muscle.report.pairs import proportion, rate_interval
from muscle.report.sums import Seeds, TaskSums, number

RATES_SHOWN = ("nfr", "pfr", "relative_nfr")


def floor_block(sums: TaskSums, seeds: Seeds) -> dict[str, Any] | None:
    """The flips from old to old trained with another seed; None without such a version.

    Returns:
        The rates and the second old's score with 95 % intervals, the counts (null for
        several seeds), and under "excess", for each pair that begins with old: its NFR less
        the floor's, with an interval and one-sided bounds of the paired difference over
        examples (`bounds.difference_bounds`), and the exact McNemar p on the two flip
        indicators (null for several seeds).
    """
    task = sums.task
    if not task.again:
        return None
    one = len(seeds) == 1 and task.n > 0
    values = {name: sums.rate(name, seeds, FLOOR) for name in RATES_SHOWN}
    score = sums.scores(seeds, FLOOR[1])
    return {
        **{name: number(array[0]) for name, array in values.items()},
        "score": number(score[0]),
        "counts": {
            "negative": int(sums.worse(seeds, FLOOR)[0].sum()) if one else None,
            "positive": int(sums.better(seeds, FLOOR)[0].sum()) if one else None,
        },
        "ci95": {
            **{
                name: rate_interval(sums, seeds, FLOOR, name, array)
                for name, array in values.items()
            },
            "score": as_list(proportion(sums, seeds, FLOOR[1])),
        },
        "excess": {
            f"{pair[0]}->{pair[1]}": _excess(sums, seeds, pair)
            for pair in task.pairs
            if pair[0] == FLOOR[0]
        },
    }


def _excess(sums: TaskSums, seeds: Seeds, pair: Pair) -> dict[str, Any]:
    update, floor = sums.worse(seeds, pair), sums.worse(seeds, FLOOR)
    value = sums.rate("nfr", seeds, pair)[0] - sums.rate("nfr", seeds, FLOOR)[0]
    difference = difference_bounds(update, floor)
    p = mcnemar_exact(update[0], floor[0]).p if len(seeds) == 1 and sums.task.n else None
    return {
        "nfr": number(value),
        "ci95": {"nfr": as_list(difference.at(CONFIDENCE))},
        "bounds95": {"nfr": as_list(difference.at())},
        "p": p,
    }
