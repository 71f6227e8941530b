"""One trial, as its worker sees it: train, be looked at on the way, answer half A.

All is by path and by value: a trial that was killed goes on from its checkpoint, and what
it has answered isn't asked again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any, Protocol

from muscle.config import VersionConfig
from muscle.credentials import redacted
from muscle.errors import NotFiniteError, UserError, breaks_device
from muscle.evaluation.job import Ask, BaseJob, EvaluateJob, QuerySet
from muscle.evaluation.units import WorkerBrokenError
from muscle.training.job import OnProgress, TrainJob


class Runner(Protocol):
    """The part of a launcher that is needed here."""

    def train(self, jobs: Sequence[TrainJob], on_progress: OnProgress) -> None:
        """Train every job's adapter into its `output`."""
        ...

    def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> tuple[str, ...]:
        """Write every ask's answers; returns remarks."""
        ...


@dataclass(frozen=True)
class Look:
    """After `epoch` epochs the adapters of `outputs` answer a few examples."""

    epoch: int
    outputs: tuple[str, ...]
    evaluate: EvaluateJob


@dataclass(frozen=True)
class TrialJob:
    """A trial: one training for each seed, looks on the way, and the answers at the end.

    trainings  empty where the adapters are there already
    """

    number: int
    trainings: tuple[TrainJob, ...]
    looks: tuple[Look, ...]
    evaluate: EvaluateJob

    def to_json(self) -> dict[str, Any]:
        """A JSON value; `from_json` reads it back."""
        return {
            "number": self.number,
            "trainings": [job.to_json() for job in self.trainings],
            "looks": [
                {"epoch": k.epoch, "outputs": list(k.outputs), "evaluate": _asked(k.evaluate)}
                for k in self.looks
            ],
            "evaluate": _asked(self.evaluate),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "TrialJob":
        """The inverse of `to_json`."""
        return TrialJob(
            value["number"],
            tuple(TrainJob.from_json(job) for job in value["trainings"]),
            tuple(
                Look(k["epoch"], tuple(k["outputs"]), _asking(k["evaluate"]))
                for k in value["looks"]
            ),
            _asking(value["evaluate"]),
        )


class Later(Enum):
    """There are trials left, but none that can run now."""

    LATER = "later"


LATER = Later.LATER


class TrialSource(Protocol):
    """The driver's side: what to try next, and what becomes of it.

    error  what has gone wrong on the driver's side, which ends the search
    """

    error: Exception | None

    @property
    def left(self) -> int:
        """How many trials are still to run, at most."""
        ...

    def next(self) -> TrialJob | Later | None:
        """A trial to run; None when there is none left, `LATER` when one of them must end first."""
        ...

    def look(self, number: int, look: int, seconds: Mapping[str, float]) -> bool:
        """Judge a look's answers; whether the trial is to stop, after so many seconds."""
        ...

    def end(self, number: int, outcome: Mapping[str, Any]) -> None:
        """Judge and record a trial that has ended; see `attempt` for the outcome."""
        ...


OnLook = Callable[[int, Mapping[str, float]], None]


class StoppedError(Exception):
    """A look found that the trial can't become feasible."""


def attempt(
    job: TrialJob,
    runner: Runner,
    on_look: OnLook,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Run a trial; whatever goes wrong is its outcome, and the search goes on.

    Raises:
        WorkerBrokenError: only a new process can go on.

    Returns:
        {"training": seconds, "scoring": seconds}, or {"reason": why, "diverged": whether a loss
        became infinite or NaN, so that trying again would be no use}.
    """
    try:
        return run_trial(job, runner, on_look, on_progress)
    except StoppedError:
        return {}
    except NotFiniteError as error:
        return {"reason": str(error), "diverged": True}
    except UserError as error:
        return {"reason": str(error), "diverged": False}
    except Exception as error:
        if isinstance(error, WorkerBrokenError) or breaks_device(error):
            raise WorkerBrokenError(str(error)) from error
        text = redacted(" ".join(f"{type(error).__name__}: {error}".split()))
        return {"reason": text[:300], "diverged": False}


def run_trial(
    job: TrialJob,
    runner: Runner,
    on_look: OnLook,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Train and answer; returns the seconds spent in `training` and in `scoring`.

    on_look: told the number of each look, once its answers are there, and the seconds spent so
        far; may raise to stop.

    Raises:
        UserError: what a user can mend; a loss that isn't finite.
    """
    seconds = {"training": 0.0, "scoring": 0.0}

    def spend(what: str, work: Callable[[], object]) -> None:
        began = time.monotonic()
        work()
        seconds[what] += time.monotonic() - began

    def train(trainings: Sequence[TrainJob]) -> None:
        spend("training", lambda: runner.train(trainings, on_progress))

    def answer(asked: EvaluateJob) -> None:
        spend("scoring", lambda: runner.evaluate(asked, on_progress))

    for number, look in enumerate(job.looks):
        pairs = zip(job.trainings, look.outputs, strict=True)
        train([replace(one, until=look.epoch, output=output) for one, output in pairs])
        answer(look.evaluate)
        on_look(number, seconds)
    if job.trainings:
        train(job.trainings)
    answer(job.evaluate)
    return seconds


def _asked(job: EvaluateJob) -> dict[str, Any]:
    value = asdict(job)
    for base, of in zip(value["bases"], job.bases, strict=True):
        base["base"] = of.base.model_dump()
    return value


def _asking(value: Mapping[str, Any]) -> EvaluateJob:
    bases = tuple(
        BaseJob(
            VersionConfig.model_validate(base["base"]),
            dict(base["adapters"]),
            tuple(
                QuerySet(s["queries"], tuple(Ask(**ask) for ask in s["asks"])) for s in base["sets"]
            ),
        )
        for base in value["bases"]
    )
    return EvaluateJob(**{**value, "bases": bases})
