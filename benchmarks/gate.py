"""How often the gate is right: simulated updates of known truth, through the real verdict.

    python benchmarks/gate.py [--repeats 2000] [--name gate]

An example's fate under old, under old trained with another seed, and under new is drawn from
a distribution whose negative flip rate, noise floor, excess and gain are known. The counts make
a report, with the bounds that every report has, and `decide` judges it. Printed and recorded:
how often it passes, fails and is unsure, with 95 % intervals of these shares.

The promise is that a change exactly on its limit passes in at most 5 % of cases: the rows
"on the limit". What lies beyond must pass more rarely still.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from record import say, write_result

from muscle.gate import make_limits
from muscle.gate.decide import decide
from muscle.metrics.bounds import clopper_pearson, difference_bounds, relative_nfr_bounds
from muscle.metrics.flips import RATES, FlipCounts
from muscle.metrics.intervals import wilson

SIZES = (300, 1_000, 10_000)
RIGHT = 0.7
"""Old's accuracy."""
FLOOR = 0.03
"""NFR between two seeds of old; half of those flips come in new too, when nothing changed."""
SEED = 7
VERDICTS = ("pass", "fail", "not enough evidence")


class Truth(NamedTuple):
    """An update: shares of all examples that go from right to wrong, and the other way."""

    nfr: float
    pfr: float


class Case(NamedTuple):
    """A limit, an update, and what the row of the table says of it."""

    limit: str
    delta: float
    truth: Truth
    what: str
    on_limit: bool = False


def cases() -> Iterator[Case]:
    """What is simulated at each size."""
    same = Truth(FLOOR, FLOOR)
    for delta in (0.005, 0.01, 0.02):
        yield Case("max_excess_nfr", delta, same, "two seeds of one version")
        planted = sorted({delta, 0.01, 0.02, 0.03})
        for excess in (e for e in planted if e >= delta):
            name = f"{100 * excess:g} points more flips than the floor"
            truth = Truth(FLOOR + excess, FLOOR + excess)
            yield Case("max_excess_nfr", delta, truth, name, excess == delta)
    for delta in (0.01, 0.02, 0.05):
        for nfr in (delta / 2, delta, delta + 0.01, delta + 0.02):
            yield Case("max_nfr", delta, Truth(nfr, nfr), f"NFR {100 * nfr:g} %", nfr == delta)
    yield Case("max_nfr", 0.02, same, "two seeds of one version (NFR 3 %)")
    delta = -0.01
    for gain in (-0.03, -0.02, delta, 0.0, 0.02):
        truth = Truth(FLOOR, FLOOR + gain) if gain > 0 else Truth(FLOOR - gain, FLOOR)
        yield Case("min_gain", delta, truth, f"gain {100 * gain:+g} points", gain == delta)
    delta, chance = 0.2, RIGHT * (1 - RIGHT)  # of an update that leaves the accuracy as it is
    for relative in (delta / 2, delta, delta + 0.1):
        truth = Truth(relative * chance, relative * chance)
        name = f"relative NFR {relative:g}"
        yield Case("max_relative_nfr", delta, truth, name, relative == delta)


class Cells(NamedTuple):
    """Examples by what happens: "both" in new and in old's second seed, "new" or "again" alone;
    of those that were right (worse) and of those that were wrong (better)."""

    worse_both: int
    worse_new: int
    worse_again: int
    right: int
    better_both: int
    better_new: int
    better_again: int
    wrong: int


def draw(truth: Truth, n: int, repeats: int, rng: np.random.Generator) -> list[Cells]:
    """Counts of `repeats` samples of n examples."""
    both = FLOOR / 2
    worse = (both, truth.nfr - both, FLOOR - both) if truth.nfr >= both else (0, truth.nfr, FLOOR)
    better = (both, truth.pfr - both, FLOOR - both) if truth.pfr >= both else (0, truth.pfr, FLOOR)
    shares = (*worse, RIGHT - sum(worse), *better, 1 - RIGHT - sum(better))
    return [Cells(*map(int, row)) for row in rng.multinomial(n, shares, size=repeats)]


def as_list(interval: Any) -> list[float] | None:
    return None if interval is None else list(interval)


@lru_cache(maxsize=200_000)
def difference(more: int, fewer: int, n: int) -> list[float] | None:
    """The report's bounds of a paired difference, from the counts they depend on."""
    first = np.repeat([True, False, False], [more, fewer, n - more - fewer])
    second = np.repeat([False, True, False], [more, fewer, n - more - fewer])
    return as_list(difference_bounds([first], [second]).at())


@lru_cache(maxsize=200_000)
def relative(counts: tuple[int, int, int, int]) -> list[float] | None:
    """The report's bounds of relative NFR: both right, negative, positive, both wrong."""
    old = np.repeat([1.0, 1.0, 0.0, 0.0], counts)
    new = np.repeat([1.0, 0.0, 1.0, 0.0], counts)
    return as_list(relative_nfr_bounds([old], [new], [old > new]))


def report(cells: Cells, limit: str) -> dict[str, Any]:
    """report.json as far as the limit reads it."""
    n = sum(cells)
    negative = cells.worse_both + cells.worse_new
    positive = cells.better_both + cells.better_new
    both_right = cells.right + cells.worse_again
    counts = FlipCounts(both_right, negative, positive, n - both_right - negative - positive)
    bounds: dict[str, Any] = {"nfr": as_list(clopper_pearson(negative, n))}
    floor = None
    if limit == "min_gain":
        bounds["gain"] = difference(positive, negative, n)
    if limit == "max_relative_nfr":
        bounds["relative_nfr"] = relative((both_right, negative, positive, counts.both_wrong))
    if limit == "max_excess_nfr":
        excess = {
            "nfr": (cells.worse_new - cells.worse_again) / n,
            "bounds95": {"nfr": difference(cells.worse_new, cells.worse_again, n)},
        }
        floor = {"excess": {"old->new": excess}}
    pair = {
        "negative": negative,
        "positive": positive,
        "nfr": negative / n,
        "relative_nfr": RATES["relative_nfr"](counts),
        "gain": (positive - negative) / n,
        "bounds95": bounds,
    }
    task = {"n": n, "continuous": False, "pairs": {"old->new": pair}, "noise_floor": floor}
    return {"schema": "muscle.report/2", "tasks": {"task": task}}


def read_by(cells: Cells, limit: str) -> tuple[int, ...]:
    """The counts that a limit's number and bounds depend on."""
    negative = cells.worse_both + cells.worse_new
    positive = cells.better_both + cells.better_new
    return {
        "max_nfr": (negative,),
        "max_excess_nfr": (cells.worse_new, cells.worse_again),
        "min_gain": (negative, positive),
        "max_relative_nfr": (negative, positive, cells.right + cells.worse_again),
    }[limit]


def shares(case: Case, n: int, repeats: int) -> dict[str, Any]:
    """How often each verdict comes, with a 95 % interval of each share."""
    limits = make_limits(**{case.limit: case.delta})
    # The same samples for every limit of one kind: their bounds are computed once.
    drawn = [round(1e6 * share) for share in case.truth]
    rng = np.random.default_rng([SEED, n, *drawn])
    samples = draw(case.truth, n, repeats, rng)
    times = Counter(read_by(cells, case.limit) for cells in samples)
    examples = {read_by(cells, case.limit): cells for cells in samples}
    found: Counter[str] = Counter()
    for key, count in times.items():
        found[decide(report(examples[key], case.limit), limits)["verdict"]] += count
    return {
        verdict: {
            "share": found[verdict] / repeats,
            "ci95": as_list(wilson(found[verdict], repeats)),
        }
        for verdict in VERDICTS
    }


def line(case: Case, results: dict[int, dict[str, Any]]) -> str:
    """A row of the table: pass, fail and unsure at each size, in percent."""
    sign = "≥" if case.limit == "min_gain" else "≤"
    delta = f"{case.delta:g}" if case.limit == "max_relative_nfr" else f"{100 * case.delta:g} %"
    cells = [
        " / ".join(f"{100 * results[n][verdict]['share']:.1f}" for verdict in VERDICTS)
        for n in SIZES
    ]
    what = case.what + (", **on the limit**" if case.on_limit else "")
    return f"| {case.limit.replace('_', '-')} {sign} {delta} | {what} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=2000, help="samples for each row and size")
    parser.add_argument("--name", default="gate", help="of the file under results/")
    chosen = parser.parse_args()
    started = time.perf_counter()
    say("| limit | the update | " + " | ".join(f"n = {n:,}" for n in SIZES) + " |")
    say("|---" * (2 + len(SIZES)) + "|")
    rows = []
    for case in cases():
        results = {n: shares(case, n, chosen.repeats) for n in SIZES}
        say(line(case, results))
        rows.append(
            {
                "limit": case.limit,
                "delta": case.delta,
                "update": case.what,
                "nfr": case.truth.nfr,
                "pfr": case.truth.pfr,
                "on_limit": case.on_limit,
                "sizes": {str(n): results[n] for n in SIZES},
            }
        )
    worst = max(
        (row["sizes"][str(n)]["pass"]["share"], row["limit"], row["delta"], n)
        for row in rows
        if row["on_limit"]
        for n in SIZES
    )
    say(f"\nworst on a limit: {100 * worst[0]:.2f} % pass ({worst[1]} {worst[2]}, n = {worst[3]})")
    path = write_result(
        chosen.name,
        {
            "repeats": chosen.repeats,
            "old_accuracy": RIGHT,
            "noise_floor": FLOOR,
            "seconds": time.perf_counter() - started,
            "worst_on_a_limit": {
                "pass": worst[0],
                "limit": worst[1],
                "delta": worst[2],
                "n": worst[3],
            },
            "rows": rows,
        },
    )
    say(f"recorded in {path.name}")


if __name__ == "__main__":
    main()
