"""The trials of a search, as the driver sees them: what is asked, looked at, and recorded.

Each trial is a JSON record in the output folder, written when it is asked for and when it
has ended; what it leaves are artifacts. So a search that starts again replays the records
into a new study, goes on with what was running, and trains nothing twice.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, get_args

from muscle import storage
from muscle.bench import Bench, Parts
from muscle.config import CompatibilityConfig, Experiment
from muscle.errors import UserError
from muscle.plan import Plan, Run, Step
from muscle.predict import Wanted
from muscle.training.job import Progress, TrainJob
from muscle.tuning.measure import measure, surely_infeasible
from muscle.tuning.ranking import rank
from muscle.tuning.records import State, Trial
from muscle.tuning.space import Space
from muscle.tuning.study import Study
from muscle.tuning.trial import LATER, Later, Look, TrialJob

GIVE_UP = 3
"""So many trials that failed from the start, or twice as many in a row later: the next ones
would too."""


class _HeldError(Exception):
    """Another driver holds a lease that a trial needs."""


def _raise_held(holder: str) -> None:
    raise _HeldError(holder)


@dataclass
class _Running:
    """A trial at work: what it trains, what it is asked, and the leases it holds.

    twins  trials of other settings and the same adapter (on labels alone, masks are all one):
           they end as this one does, since two of one process can't hold the same leases
    """

    trial: Trial
    settings: CompatibilityConfig
    steps: frozenset[str]  # keys of the adapters
    trainings: list[tuple[Step, TrainJob]]
    looks: list[list[Wanted]]
    wanted: list[Wanted]
    leases: ExitStack = field(default_factory=ExitStack)
    twins: list[Trial] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def seconds(self, spent: Mapping[str, Any]) -> dict[str, float]:
        """What a record says of the time."""
        known = {name: float(spent.get(name, 0.0)) for name in ("training", "scoring")}
        return {**known, "total": time.monotonic() - self.began}


class Trials:
    """Asks the study for settings and turns them into jobs; judges what comes back.

    Whatever is wrong here (not in a trial) ends the search: it is kept in `error`, since
    who calls may be an event loop that mustn't be broken.
    """

    def __init__(self, bench: Bench, parts: Parts, space: Space):
        self.bench, self.parts, self.space = bench, parts, space
        self.tuning = bench.experiment.tuning
        self.study = Study(space, self.tuning.seed, self.tuning.trials, self.tuning.pareto)
        self.folder = trials_of(bench.output)
        self.records: dict[int, Trial] = {}
        self.error: Exception | None = None
        self._running: dict[int, _Running] = {}
        self._again: list[Trial] = []
        self._ended_here: list[int] = []
        for trial in read_trials(self.folder):
            self._replay(trial)

    # --- what launchers call --------------------------------------------------------------

    def next(self) -> TrialJob | Later | None:
        """A trial to run; None when all have been asked for, or something is wrong.

        Another search may be at the same adapter, in a `storage` that both share. While trials
        of ours run it isn't waited for, since it may wait for one of those.
        """
        try:
            while self.error is None and self.given_up is None:
                trial = self._again.pop(0) if self._again else self._ask()
                if trial is None:
                    break
                if self._joins(trial):
                    continue
                try:
                    running, job = self._prepare(trial)
                except _HeldError:
                    self._again.insert(0, trial)
                    return LATER
                self._running[trial.number] = running
                if job is not None:
                    return job
                self.end(trial.number, {})  # all of it is there
        except Exception as error:
            self.error = error
        return None

    def look(self, number: int, look: int, seconds: Mapping[str, float]) -> bool:
        """Judge a look's answers; whether the trial is to stop, after so many seconds."""
        running = self._running.get(number)
        if running is None or self.error is not None:
            return True
        try:
            return self._judge_look(running, look, seconds)
        except UserError as error:
            self._record(running, replace(running.trial, state="failed", reason=str(error)))
        except Exception as error:
            self.error = error
        return True

    def end(self, number: int, outcome: Mapping[str, Any]) -> None:
        """Judge and record a trial that has ended; nothing where it was stopped by a look."""
        running = self._running.get(number)
        if running is None or self.error is not None:
            return  # not its own fault: the next start goes on with it
        try:
            self._record(running, self._ended(running, outcome))
        except Exception as error:
            self.error = error

    @property
    def left(self) -> int:
        """How many trials are still to run, at most."""
        ended = sum(t.done for t in self.records.values())
        return max(self.tuning.trials, len(self.records)) - ended

    def close(self) -> None:
        """Let go of the trials that a stop has left running; the next start goes on with them."""
        for running in self._running.values():
            running.leases.close()
        self._running.clear()

    # --- asking -----------------------------------------------------------------------------

    @property
    def trials(self) -> list[Trial]:
        """All that is known, by number."""
        return [self.records[number] for number in sorted(self.records)]

    def settings(self, trial: Trial) -> CompatibilityConfig:
        """The compatibility settings of a trial."""
        return trial_settings(self.space, trial, self.bench.experiment)

    @property
    def given_up(self) -> str | None:
        """Why nothing more is tried, where so many trials in a row have failed."""
        ended = self.ended_here
        began_well = any(t.state != "failed" for t in ended)
        last = ended[-(2 * GIVE_UP if began_well else GIVE_UP) :]
        if len(last) < GIVE_UP or any(t.state != "failed" for t in last):
            return None
        return last[-1].reason

    @property
    def ended_here(self) -> list[Trial]:
        """What has ended since this start, in that order."""
        return [self.records[number] for number in self._ended_here]

    def _ask(self) -> Trial | None:
        number = next(n for n in count() if n not in self.records)
        if number >= self.tuning.trials:
            return None
        start = self.space.start(self.bench.experiment) if number == 0 else None
        params = self.study.ask(number, start)
        return None if params is None else Trial(number, params)

    def _replay(self, trial: Trial) -> None:
        """Tell the study what is known; what was running or failed runs again."""
        try:
            self.study.ask(trial.number, dict(trial.params))
        except (ValueError, TypeError):
            raise _no_record(self._path(trial.number), "of tuning.space") from None
        if trial.done:
            self._tell(trial)
        else:
            trial = replace(trial, state="running", reason=None, a=None)
            self._again.append(trial)
        self.records[trial.number] = trial

    def _tell(self, trial: Trial) -> None:
        if trial.a is not None:
            violation = trial.a.violation(self.tuning.epsilon)
            finished = trial.state == "finished"
            self.study.tell(trial.number, trial.a.nfr, trial.a.score, violation, finished)
        elif trial.state == "diverged":
            self.study.tell(trial.number, nfr=1.0, score=0.0, violation=1.0, finished=False)
        else:
            self.study.fail(trial.number)

    def _joins(self, trial: Trial) -> bool:
        """Whether a running trial makes the same adapters: then this one ends as that one does."""
        plan = self.bench.laid_out(self.settings(trial), self.parts.a)
        steps = frozenset(step.key for step in self.bench.trained(plan).values())
        for running in self._running.values():
            if running.steps == steps:
                running.twins.append(trial)
                self._write(trial)
                return True
        return False

    def _prepare(self, trial: Trial) -> tuple[_Running, TrialJob | None]:
        """Take the leases and say what is to be done; no job where nothing is left to do."""
        settings, bench = self.settings(trial), self.bench
        plan = bench.laid_out(settings, self.parts.a)
        steps = bench.trained(plan)
        predicted = [plan.predictions["compat", run] for run in steps]
        self._write(trial)
        on_wait = _raise_held if self._running else None
        with ExitStack() as stack:
            stack.enter_context(bench.workshop.leases([*steps.values(), *predicted], on_wait))
            running, job = self._planned(trial, settings, plan, steps)
            running.leases = stack.pop_all()
        return running, job

    def _planned(
        self, trial: Trial, settings: CompatibilityConfig, plan: Plan, steps: dict[Run, Step]
    ) -> tuple[_Running, TrialJob | None]:
        """What a trial trains and is asked, once its leases are held."""
        bench = self.bench
        trainings: list[tuple[Step, TrainJob]] = []
        adapters: dict[Run, str] = {}
        for run, step in steps.items():
            there = bench.store.find(step.kind, step.key)
            if there is None:
                trainings.append((step, self._training(trial, plan, run, step)))
            adapters[run] = trainings[-1][1].output if there is None else there.path
        name = f"trial-{trial.number}"
        wanted = bench.wanted(settings, self.parts.a, ["compat"], name, adapters)
        wanted = [w for w in wanted if bench.workshop.missing([w.step])]
        keys = frozenset(step.key for step in steps.values())
        running = _Running(trial, settings, keys, trainings, [], wanted)
        if not trainings and not wanted:
            return running, None
        looks = self._looks(running, steps) if trainings and wanted else ()
        asked = bench.predictor(self.parts.a).job(wanted)
        return running, TrialJob(trial.number, tuple(job for _, job in trainings), looks, asked)

    def _training(self, trial: Trial, plan: Plan, run: Run, step: Step) -> TrainJob:
        attempt = self.bench.store.new_attempt(step.kind, step.key)
        job = self.bench.pipeline_of(plan).train_job((step.kind, step.key), attempt)
        several = len(self.bench.experiment.runs) > 1
        seed = f" (seed {run[1]})" if several else ""
        logs = f"trial-{trial.number:04d}" + (f"-{run[1]}" if several else "")
        return replace(
            job,
            title=f"trial {trial.number}{seed}",
            logs=storage.join(self.bench.output, "curves", logs),
        )

    def _looks(self, running: _Running, steps: Mapping[Run, Step]) -> tuple[Look, ...]:
        """After 1, 2, 4, … epochs, what was trained so far answers a few examples."""
        if len(running.trainings) < len(steps):
            return ()  # a part of it is finished: the rest is soon judged with it
        bench, part = self.bench, self.parts.look
        epochs = running.trainings[0][1].training.epochs
        looks = []
        for epoch in (2**i for i in range(epochs.bit_length()) if 2**i < epochs):
            wanted = [bench.look(step, part, run, epoch) for run, step in steps.items()]
            running.looks.append(wanted)
            outputs = tuple(str(w.adapter) for w in wanted)
            looks.append(Look(epoch, outputs, bench.predictor(part).job(wanted)))
        return tuple(looks)

    # --- judging ----------------------------------------------------------------------------

    def _judge_look(self, running: _Running, look: int, seconds: Mapping[str, float]) -> bool:
        bench, part = self.bench, self.parts.look
        predictions = {}
        for run, wanted in zip(bench.experiment.runs, running.looks[look], strict=True):
            if bench.workshop.missing([wanted.step]):
                bench.predictor(part).judge(wanted)
            predictions[run[1]] = {**bench.teachers(part, run), "compat": bench.read(wanted.step)}
        reason = surely_infeasible(predictions, self.tuning.epsilon)
        if reason is None:
            return False
        seen = measure(predictions, part.name)
        stopped = replace(running.trial, state="stopped", reason=reason, a=seen)
        self._record(running, replace(stopped, seconds=running.seconds(seconds)))
        return True

    def _ended(self, running: _Running, outcome: Mapping[str, Any]) -> Trial:
        trial, bench = running.trial, self.bench
        if outcome.get("reason") is not None:
            state: State = "diverged" if outcome.get("diverged") else "failed"
            reason = " ".join(str(outcome["reason"]).split())
            spent = running.seconds(outcome)
            return replace(trial, state=state, reason=reason, seconds=spent)
        try:
            for step, job in running.trainings:
                bench.pipeline.keep(step, job)
            for wanted in running.wanted:
                bench.predictor(self.parts.a).judge(wanted)
            measured = bench.measure(running.settings, self.parts.a)
        except UserError as error:
            spent = running.seconds(outcome)
            return replace(trial, state="failed", reason=str(error), seconds=spent)
        kept = trial.seconds or running.seconds(outcome)  # a replayed one was timed when it ran
        return replace(trial, state="finished", reason=None, a=measured, seconds=kept)

    def _record(self, running: _Running, trial: Trial) -> None:
        """Write how a trial ended, tell the study, let go of what it held."""
        twins = (
            replace(trial, number=t.number, params=t.params, seconds={}) for t in running.twins
        )
        for one in (trial, *twins):
            self._write(one)
            self._tell(one)
        self._ended_here.append(trial.number)
        del self._running[trial.number]
        for look in running.looks:
            for wanted in look:
                storage.remove(str(wanted.adapter))
        if trial.state in ("stopped", "diverged"):
            for _, job in running.trainings:
                storage.remove(job.checkpoints)
        running.leases.close()
        self.show()

    def _write(self, trial: Trial) -> None:
        self.records[trial.number] = trial
        storage.write_json(self._path(trial.number), trial.to_json())

    def _path(self, number: int) -> str:
        return storage.join(self.folder, _file(number))

    def show(self) -> None:
        """Tell how many have ended and the best of them."""
        ended = [t for t in self.trials if t.state != "running"]
        best = next((t for t in rank(ended, self.tuning.epsilon) if t.state == "finished"), None)
        remark = ""
        if best is not None and best.a is not None:
            feasible = best.a.violation(self.tuning.epsilon) <= 0
            remark = f"best NFR {best.a.nfr:.2%} (trial {best.number})" if feasible else ""
            remark = remark or "none feasible yet"
        total = max(self.tuning.trials, len(self.records))
        self.bench.on_progress(Progress("trials", len(ended), total, "trials", remark))


def trial_settings(space: Space, trial: Trial, experiment: Experiment) -> CompatibilityConfig:
    """The compatibility settings of a trial; the trained adapter itself, not an interpolation.

    Raises:
        UserError: its parameters aren't this space's.
    """
    settings = space.settings(dict(trial.params), experiment)
    return settings.model_copy(update={"interpolation": 1.0})


def trials_of(output: str) -> str:
    """The folder of a search's trial records."""
    return storage.join(output, "trials")


def read_trials(folder: str) -> list[Trial]:
    """The trials that are recorded in a folder, by number; none where it isn't there.

    Raises:
        UserError: a record that isn't one.
    """
    found = []
    # A search that was killed while it wrote one has left a part under another name.
    for name in sorted(n for n in storage.sizes(folder) if n.endswith(".json")):
        value = storage.read_json(storage.join(folder, name))
        try:
            trial = Trial.from_json(value)  # type: ignore[arg-type]
            whole = name == _file(trial.number) and _is_whole(trial)
        except (TypeError, KeyError, ValueError, AttributeError):
            whole = False
        if not whole:
            raise _no_record(storage.join(folder, name))
        found.append(trial)
    return found


def _file(number: int) -> str:
    return f"{number:04d}.json"


def _is_whole(trial: Trial) -> bool:
    mappings = all(isinstance(value, Mapping) for value in (trial.params, trial.seconds))
    measured = trial.a is not None or trial.state not in ("finished", "stopped")
    return mappings and measured and trial.state in get_args(State)


def _no_record(path: str, of: str = "") -> UserError:
    what = " ".join(["no record of a trial", of]).strip()
    return UserError(f"{path} is {what}: delete it, and another trial takes its place")
