"""What to try next: optuna's TPE over records, so that a search can stop and go on.

Optuna's own study would remember in which order trials were asked for and told of. Here the
records are what is kept, and a study is made of them for each suggestion: the same records
give the same suggestion, whether or not the search was interrupted in between.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from typing import TYPE_CHECKING, Any

from muscle.tuning.space import Space

if TYPE_CHECKING:
    import optuna

GUIDED = 16
"""Suggestions drawn for a trial before TPE is taken to insist on points already tried."""

UNIFORM = 16
"""Points then drawn from anywhere in the space, before a finite one is searched in order."""

TELLING = 10
"""Finished trials below which importances would be noise."""


@dataclass(frozen=True)
class _Values:
    nfr: float
    score: float
    violation: float


class Study:
    """A search's memory and its suggestions; one thread at a time.

    Args:
        space: what is varied.
        seed: of all suggestions.
        trials: how many the search will ask for; the first third of them (3 to 10) is random.
        pareto: minimise NFR and maximise the score, instead of NFR at a bounded score.
    """

    def __init__(self, space: Space, seed: int, trials: int, pareto: bool) -> None:
        self.space, self.seed, self.pareto = space, seed, pareto
        self.startup = max(3, min(10, trials // 3))
        self._points: dict[int, dict[str, Any]] = {}
        self._values: dict[int, _Values] = {}
        self._finished: set[int] = set()
        self._failed: set[int] = set()

    @property
    def known(self) -> set[int]:
        """The numbers that were asked for, finished or not."""
        return set(self._points)

    def ask(self, number: int, params: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """A new running trial's point.

        Args:
            number: the trial's; neither in order nor without gaps.
            params: exactly this point, tried before or not; default: a suggestion, one that no
                trial had before.

        Returns:
            Value by parameter, in the space's order; None where no point is left.

        Raises:
            ValueError: the number is known, or `params` is no point of the space.
        """
        if number in self._points:
            raise ValueError(f"trial {number} was asked for before")
        if params is None:
            point = self._suggest(number)
        else:
            point = self.space.point(params)
            if point is None:
                raise ValueError(f"{dict(params)} is no point of the space")
        if point is None:
            return None
        self._points[number] = point
        return dict(point)

    def tell(
        self, number: int, nfr: float, score: float, violation: float, finished: bool = True
    ) -> None:
        """End a trial with what was measured.

        Args:
            nfr: negative flip rate, a fraction.
            score: mean score, a fraction; only a Pareto search reads it.
            violation: of the bound on the score, at most 0 where feasible; a Pareto search
                doesn't read it.
            finished: whether this was measured on all of half A; what wasn't is for the sampler
                alone and no part of importances.

        Raises:
            ValueError: the trial isn't running, or a value isn't finite.
        """
        self._end(number)
        if not all(isfinite(value) for value in (nfr, score, violation)):
            raise ValueError(f"trial {number} has values {nfr}, {score}, {violation}")
        self._values[number] = _Values(nfr, score, violation)
        if finished:
            self._finished.add(number)

    def fail(self, number: int) -> None:
        """End a trial without values; suggestions keep away from it as from a running one.

        Raises:
            ValueError: the trial isn't running.
        """
        self._end(number)
        self._failed.add(number)

    def importances(self) -> dict[str, float] | None:
        """How much each parameter has to do with NFR, as shares of 1.

        Functional ANOVA of a random forest (Hutter et al. 2014, "An efficient approach for
        assessing hyperparameter importance"): the share of NFR's variance over the space that
        a parameter explains by itself. A few dozen trials do for it, unlike for PED-ANOVA,
        which compares the best tenth with the rest.

        Returns:
            Share by parameter, without those of one value and those that some points lack; None
            where fewer than `TELLING` trials finished, or no parameter tells their rates apart.
        """
        rates = {self._values[number].nfr for number in self._finished}
        if len(self._finished) < TELLING or len(rates) < 2:
            return None
        from optuna.importance import FanovaImportanceEvaluator

        known, always = self.space.distributions(), self.space.always
        names = [k for k, v in known.items() if not v.single() and k in always]
        if not names:
            return None
        with _quiet():
            evaluator = FanovaImportanceEvaluator(seed=self.seed % 2**32)
            try:
                found = evaluator.evaluate(
                    self._optuna(None, self._finished), names, target=lambda trial: trial.values[0]
                )
            except RuntimeError:  # no tree has a split: one point, measured to differ
                return None
        total = sum(found.values())
        return {name: float(found[name] / total) for name in names} if total > 0 else None

    def _end(self, number: int) -> None:
        if number not in self._points or number in self._values or number in self._failed:
            raise ValueError(f"trial {number} isn't running")

    def _suggest(self, number: int) -> dict[str, Any] | None:
        used: list[dict[str, Any]] = []
        for point in self._points.values():
            if point not in used:
                used.append(point)
        size = self.space.size()
        if size is not None and len(used) >= size:
            return None
        with _quiet():
            for attempt in range(GUIDED + UNIFORM):
                point = self._draw(number, attempt)
                if point not in used:
                    return point
        if size is None:
            return None
        # Lazy: no more points are passed by than trials were asked for.
        return next(point for point in self.space.points() if point not in used)

    def _draw(self, number: int, attempt: int) -> dict[str, Any]:
        from optuna.samplers import BaseSampler, RandomSampler, TPESampler

        # A sampler of its own for each draw: its random numbers don't depend on how many
        # trials this process happened to suggest before.
        key = f"{self.seed}/{number}/{attempt}".encode()
        seed = int.from_bytes(sha256(key).digest()[:4], "big")
        sampler: BaseSampler
        if attempt < GUIDED:
            sampler = TPESampler(
                n_startup_trials=self.startup,
                seed=seed,
                multivariate=True,
                constant_liar=True,
                # Parameters of one level are modelled on the trials that have them.
                group=self.space.always != list(self.space.parameters),
            )
        else:
            sampler = RandomSampler(seed=seed)
        trial = self._optuna(sampler).ask(self.space.distributions())
        # All are drawn, and what means nothing at the drawn level is let go. Plain floats:
        # numpy's are among optuna's.
        point = self.space.point(self.space.in_force(trial.params))
        assert point is not None, trial.params
        return point

    def _optuna(
        self, sampler: "optuna.samplers.BaseSampler | None", telling: set[int] | None = None
    ) -> "optuna.Study":
        """Optuna's study of all trials by number; one without values is a running one.

        telling: the trials whose values count; None: all.
        """
        import optuna
        from optuna.study import StudyDirection
        from optuna.trial import TrialState, create_trial

        directions = [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE][: 1 + self.pareto]
        study = optuna.create_study(sampler=sampler, directions=directions)
        known = self.space.distributions()
        for number, point in sorted(self._points.items()):
            distributions = {name: known[name] for name in point}
            values = self._values.get(number)
            if values is None or (telling is not None and number not in telling):
                trial = create_trial(
                    state=TrialState.RUNNING, params=point, distributions=distributions
                )
            elif self.pareto:
                trial = create_trial(
                    values=[values.nfr, values.score], params=point, distributions=distributions
                )
            else:
                trial = create_trial(value=values.nfr, params=point, distributions=distributions)
                trial.set_constraint("accuracy", values.violation)
            study.add_trial(trial)
        return study


@contextmanager
def _quiet() -> Iterator[None]:
    """Without optuna's log lines and warnings, which are for those who call it by hand."""
    from optuna import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
