"""Which trial is better: one order for choosing and for every table."""

from collections.abc import Iterable
from typing import get_args

from muscle.tuning.records import State, Trial

_UNRANKED = ("finished", *(s for s in get_args(State) if s not in ("finished", "running")))
"""States in the order of tables; a finished trial that was not measured comes first."""


def rank(trials: Iterable[Trial], epsilon: float) -> list[Trial]:
    """All trials, best first, by what was measured on half A.

    Feasible finished trials by NFR, then higher score, then lower number; infeasible
    finished ones by violation, then NFR, then lower number. The others (stopped, diverged,
    failed, running) were not measured on the whole half and follow in that order.

    Args:
        epsilon: how far the score may be below new's, as a fraction.
    """

    def place(trial: Trial) -> tuple[float, ...]:
        a = trial.a
        if trial.state != "finished" or a is None:
            known = trial.state in _UNRANKED
            return (2, _UNRANKED.index(trial.state) if known else len(_UNRANKED), trial.number)
        violation = a.violation(epsilon)
        if violation > 0:
            return (1, violation, a.nfr, trial.number)
        return (0, a.nfr, -a.score, trial.number)

    return sorted(trials, key=place)


def feasible(trial: Trial, epsilon: float) -> bool | None:
    """Whether a trial's score on half A is at least new's less epsilon.

    None where that isn't known: only a finished trial was scored on the whole half.
    """
    if trial.state != "finished" or trial.a is None:
        return None
    return trial.a.violation(epsilon) <= 0


def front_of(trials: Iterable[Trial]) -> tuple[int, ...]:
    """Numbers of the finished trials that no other beats on half A, by rising NFR and score.

    One trial beats another if its NFR is no higher and its score no lower, and one of them
    is better. Of trials that are equal in both, the lowest number stands for all.
    """
    points = sorted(
        (t.a.nfr, -t.a.score, t.number) for t in trials if t.state == "finished" and t.a is not None
    )
    front: list[int] = []
    lowest = float("inf")
    for _, negative_score, number in points:
        if negative_score < lowest:
            front.append(number)
            lowest = negative_score
    return tuple(front)
