"""The study's statistics: rates over seeds, and paired differences with 95 % intervals.

A draw takes examples with replacement, the same for all versions and seeds, and seeds with
replacement (only one seed: only examples). Every difference is taken within a draw.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from effect_records import Record
from numpy.typing import NDArray

from muscle.metrics.intervals import percentile_interval

Floats = NDArray[np.float64]

DRAWS = 2000
SEED = 20240712
POINT = 0.01


class Value(NamedTuple):
    """An estimate with its 95 % interval; None where the draws can't tell."""

    value: float
    low: float | None
    high: float | None


class Rates(NamedTuple):
    """Of each draw or of the data: score, NFR, relative NFR (NFR itself for graded scores)."""

    score: Floats
    nfr: Floats
    flips: Floats


@dataclass
class Cell:
    """All that was answered on one part of a cell.

    scores   method -> seed -> [n]
    sure     the same of the chosen answer's probability, where answers are given
    graded   scores that aren't 0 or 1
    """

    name: str
    part: str
    n: int
    scores: dict[str, dict[int, Floats]]
    sure: dict[str, dict[int, Floats]]
    graded: bool
    unscored: int = 0
    _sums: dict[tuple[str, int], Any] = field(default_factory=dict)
    _weights: Any = None
    _picks: Any = None

    @property
    def methods(self) -> list[str]:
        return list(self.scores)

    def seeds(self, *methods: str) -> list[int]:
        """Seeds in which old, new and all these were asked."""
        wanted = {"old", "new", *methods}
        if not wanted <= set(self.scores):
            return []
        return sorted(set.intersection(*(set(self.scores[m]) for m in wanted)))

    # --- draws ------------------------------------------------------------------------------

    def _draw(self, method: str, seed: int) -> tuple[Floats, Floats, Floats]:
        """Sums of (old's score, the method's score, flips) of all examples and each draw."""
        if (method, seed) not in self._sums:
            if self._weights is None:
                rng = np.random.default_rng(SEED)
                drawn = rng.multinomial(self.n, np.full(self.n, 1 / self.n), size=DRAWS)
                self._weights = np.vstack([np.ones(self.n), drawn])
                # Of a draw's k-th seed, as a share: the same whatever seeds are compared.
                self._picks = rng.random((DRAWS, 32))
            old, mine = self.scores["old"][seed], self.scores[method][seed]
            worse = (mine < old).astype(np.float64)
            sums = self._weights @ np.stack([old, mine, worse], axis=1)
            self._sums[method, seed] = (sums[:, 0], sums[:, 1], sums[:, 2])
        return self._sums[method, seed]

    def rates(self, method: str, seeds: Sequence[int]) -> Rates:
        """Means over seeds: [0] of the data, [1:] of the draws."""
        each: list[Floats] = []
        for seed in seeds:
            old, mine, worse = self._draw(method, seed)
            score, nfr = mine / self.n, worse / self.n
            with np.errstate(divide="ignore", invalid="ignore"):
                expected = old / self.n * (1 - score)
                relative = nfr if self.graded else np.where(expected > 0, nfr / expected, np.nan)
            each.append(np.stack([score, nfr, relative]))
        stacked = np.stack(each)  # [seeds, 3, 1 + draws]
        picks = (self._picks[:, : len(seeds)] * len(seeds)).astype(int)  # [draws, seeds]
        draws = np.arange(1, DRAWS + 1)
        taken = np.stack([stacked[picks[:, k], :, draws] for k in range(len(seeds))]).mean(axis=0)
        score, nfr, flips = np.concatenate([stacked[:, :, 0].mean(axis=0)[None], taken]).T
        return Rates(score, nfr, flips)

    def estimate(
        self, methods: Sequence[str], statistic: Callable[..., Floats]
    ) -> tuple[Value, int] | None:
        """A statistic of some methods' rates over the seeds that all have, and their number."""
        seeds = self.seeds(*methods)
        if not seeds:
            return None
        values = statistic(*(self.rates(method, seeds) for method in methods))
        return value_of(values), len(seeds)


def value_of(values: Floats) -> Value:
    """[0] is of the data, [1:] of the draws."""
    found = percentile_interval(values[1:])
    low, high = (None, None) if found is None else (found.low, found.high)
    return Value(float(values[0]), low, high)


def above_router(method: Rates, old: Rates, new: Rates) -> Floats:
    """Score above the random router's between old and new at the method's NFR.

    It answers with old at probability p: NFR (1 - p) NFR_new, score p old + (1 - p) new.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        share = method.nfr / new.nfr
    return method.score - (old.score + (new.score - old.score) * share)


def cell_of(records: Sequence[Record], name: str, part: str) -> Cell | None:
    """The answers of a cell's records; None where old and new of no seed are there.

    Raises:
        ValueError: records of one part that answered other examples.
    """
    mine = [r for r in records if r["cell"] == name and part in r["parts"]]
    if not {"old", "new"} <= {r["method"] for r in mine}:
        return None
    ids = mine[0]["parts"][part]["ids"]
    raw: dict[str, dict[int, Floats]] = {}
    sure: dict[str, dict[int, Floats]] = {}
    for record in mine:
        answers = record["parts"][part]
        if answers["ids"] != ids:
            raise ValueError(f"{name}: {record['method']} answered other examples than the first")
        scores = [np.nan if s is None else s for s in answers["scores"]]
        raw.setdefault(record["method"], {})[record["seed"]] = np.array(scores, dtype=np.float64)
        if "sure" in answers:
            sure.setdefault(record["method"], {})[record["seed"]] = np.array(answers["sure"])
    all_scores = np.stack([s for seeds in raw.values() for s in seeds.values()])
    known = ~np.isnan(all_scores).any(axis=0)
    graded = bool((~np.isin(all_scores[:, known], (0.0, 1.0))).any())

    def cut(of: Mapping[str, Mapping[int, Floats]]) -> dict[str, dict[int, Floats]]:
        return {m: {s: values[known] for s, values in seeds.items()} for m, seeds in of.items()}

    return Cell(name, part, int(known.sum()), cut(raw), cut(sure), graded, int((~known).sum()))


# --- the aim --------------------------------------------------------------------------------


class Check(NamedTuple):
    """One condition of the aim.

    value   what has to be at least 0 (by how much it is missed where negative)
    state   "yes": its whole interval is; "not shown": the estimate is; "no"
    """

    name: str
    value: Value
    state: str


def _check(name: str, found: tuple[Value, int] | None) -> Check | None:
    if found is None or np.isnan(found[0].value):
        return None
    value = found[0]
    sure = value.low is not None and value.low >= 0
    state = "yes" if sure else "not shown" if value.value >= 0 else "no"
    return Check(name, value, state)


def aim(cell: Cell, method: str, rivals: Sequence[str]) -> list[Check]:
    """The issue's aim for a method on a cell; what can't be told isn't there."""
    checks = [
        _check(
            "40 % below new",
            cell.estimate([method, "new"], lambda m, new: 0.6 * new.flips - m.flips),
        ),
        _check(
            "half way to the floor",
            cell.estimate(
                [method, "new", "again"],
                lambda m, new, floor: (new.flips + floor.flips) / 2 - m.flips,
            ),
        ),
        _check(
            "score ≥ new − 0.5 points",
            cell.estimate([method, "new"], lambda m, new: m.score - new.score + 0.5 * POINT),
        ),
        _check("above the router", cell.estimate([method, "old", "new"], above_router)),
    ]
    checks += [
        _check(
            f"fewer flips than {rival}",
            cell.estimate([method, rival], lambda m, other: other.flips - m.flips),
        )
        for rival in rivals
        if rival != method
    ]
    return [check for check in checks if check is not None]


# --- what still flips -----------------------------------------------------------------------


class Flips(NamedTuple):
    """Of the examples that old has right and a method wrong, all seeds together.

    lucky      share on which old's second seed is wrong
    lucky_all  the same of all that old has right
    sure       version -> the mean probability of its answer on them; sure_all: of all old right
    """

    count: int
    lucky: float | None
    lucky_all: float | None
    sure: dict[str, float]
    sure_all: dict[str, float]


def flips_of(cell: Cell, method: str) -> Flips | None:
    """Which examples still flip; None for graded scores or without any flip."""
    seeds = cell.seeds(method)
    if cell.graded or not seeds:
        return None
    right = {s: cell.scores["old"][s] == 1 for s in seeds}
    flipped = {s: right[s] & (cell.scores[method][s] == 0) for s in seeds}
    count = int(sum(f.sum() for f in flipped.values()))
    if not count:
        return None
    again = [s for s in cell.seeds(method, "again")]

    def lucky(where: Mapping[int, NDArray[np.bool_]]) -> float | None:
        total = sum(int(where[s].sum()) for s in again)
        wrong = sum(int((where[s] & (cell.scores["again"][s] == 0)).sum()) for s in again)
        return wrong / total if total else None

    def sure(where: Mapping[int, NDArray[np.bool_]]) -> dict[str, float]:
        found = {}
        for version in dict.fromkeys(("old", "new", method)):
            values = [cell.sure[version][s][where[s]] for s in seeds if version in cell.sure]
            if values and sum(map(len, values)):
                found[version] = float(np.concatenate(values).mean())
        if method in found:
            found["method"] = found[method]
        return found

    return Flips(count, lucky(flipped), lucky(right), sure(flipped), sure(right))
