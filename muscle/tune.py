"""The search for the fewest negative flips at a fixed accuracy, from an experiment to its answer.

Half A of the tuning examples ranks trials and their interpolations, half B judges the
best three, and the test split is read once, at the end.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from muscle import storage
from muscle.answering import teaching_of
from muscle.artifacts import Store
from muscle.bench import Bench, Part
from muscle.compatibility_config import at_level
from muscle.config import CompatibilityConfig
from muscle.errors import UserError
from muscle.metrics.pairing import Predictions
from muscle.metrics.power import smallest_difference
from muscle.pipeline import Launcher
from muscle.plan import Plan, Step, vary
from muscle.predict import software
from muscle.results import LIBRARIES
from muscle.search import SearchPlan, check_search, control_of, identity
from muscle.training.job import OnProgress, Progress, TrainJob
from muscle.trials import GIVE_UP, Trials, trial_settings
from muscle.tuned import Searched, write_search
from muscle.tuning.measure import is_continuous_task, measure
from muscle.tuning.ranking import front_of, rank
from muscle.tuning.records import Candidate, Contender, Found, Trial
from muscle.tuning.trial import TrialSource
from muscle.types import VERSIONS, Version


class SearchLauncher(Launcher, Protocol):
    """A launcher that also runs trials, as many at once as there is room for."""

    def search(self, trials: TrialSource, concurrent: int | None, on_progress: OnProgress) -> None:
        """Run every trial that the source has."""
        ...


class Search:
    """Carries a planned search out under an output folder."""

    def __init__(
        self, plan: SearchPlan, output: str, launcher: SearchLauncher, on_progress: OnProgress
    ):
        self.plan = plan
        self.experiment = plan.plan.experiment
        self.tuning = self.experiment.tuning
        self.output = storage.absolute(output)
        self.launcher = launcher
        self.on_progress = on_progress
        self.bench = Bench(plan.plan, self.output, launcher, on_progress)
        self._trials: dict[int, Trial] = {}

    def run(self) -> Searched:
        """Search, judge, test and write; what an earlier start has done isn't done again.

        Raises:
            UserError: whatever a user can mend; no trial that ended well.
        """
        check_search(self.plan, self.output)
        self.launcher.prepare(self.on_progress)
        # Two drivers of one search would each ask for its next trial.
        with Store(self.output).lease("search", "driver", self._waiting):
            return self._run()

    def _waiting(self, holder: str) -> None:
        self.on_progress(Progress("search", 0, 1, "report", f"waits for another start ({holder})"))

    def _run(self) -> Searched:
        began = time.monotonic()
        storage.write_json(storage.join(self.output, "search.json"), identity(self.plan))
        self.bench.pipeline.train_tasks()
        self._teach(self.plan.taught)
        self._ask([], (self.plan.parts.a, self.plan.parts.look))
        trials = self._try()
        candidates, why = self._judge(trials.trials)
        best = candidates[0] if candidates and candidates[0].b is not None else None
        chosen = best if best is not None and _feasible(best, self.tuning.epsilon) else None
        test: tuple[Contender, ...] = ()
        if chosen is not None:
            why += self._blindness(chosen, len(trials.trials))
            test, remark = self._test(chosen)
            why += remark
        seconds = {"total": round(time.monotonic() - began, 1)}
        for name in ("training", "scoring"):
            seconds[name] = round(sum(t.seconds.get(name, 0.0) for t in trials.ended_here), 1)
        found = self._found(trials, candidates, chosen, why, test, seconds)
        settings = self._settings_of(chosen) if chosen is not None else None
        return write_search(found, self.bench, settings)

    def _blindness(self, chosen: Candidate, trials: int) -> str:
        """What to say of a test split that was read for an earlier choice in this folder.

        Noted before it is read for the first time, so that no stop and no start can forget it.
        """
        path = storage.join(self.output, "test-split.json")
        now = {"trials": trials, "chosen": chosen.name}
        first = storage.read_json(path)
        if not isinstance(first, dict):
            storage.write_json(path, now)
            return ""
        if first == now:
            return ""
        return (
            f" The test split had been read before, after {first.get('trials')} trials: what it "
            "says of a new choice is no longer blind."
        )

    # --- before and during ----------------------------------------------------------------

    def _teach(self, taught: Sequence[CompatibilityConfig]) -> bool:
        """Have what teachers leave for these settings, shared by all trials and references;
        whether some of it had been damaged."""
        readers = self.tuning.trials + len(self.plan.references)
        damaged = False
        for settings in taught:
            plan = vary(self.plan.plan, settings)
            teaching = teaching_of(plan, self.bench.store, readers)
            damaged |= teaching.lost()
            if settings.folds is not None:  # their teachers are adapters of their own
                self.bench.pipeline_of(plan).train_tasks()
            teaching.make(self.bench.workshop, self.launcher)
        return damaged

    def _try(self) -> Trials:
        trials = self._search()
        # Who finds a damaged file of a cache removes it; what failed for it runs again, once.
        if any(t.state == "failed" for t in trials.trials) and self._teach(self.plan.taught):
            trials = self._search()
        if trials.given_up:
            raise UserError(
                f"the last {GIVE_UP} trials or more failed: {trials.given_up}; mend it and start "
                "again: what has ended well is kept"
            )
        # Stopped as infeasible is an answer too: there is no feasible trial.
        if not any(t.state in ("finished", "stopped") for t in trials.trials):
            ended = {t.reason for t in trials.trials if t.reason}
            raise UserError(
                f"none of {len(trials.trials)} trials ended well: {sorted(ended)[0]}"
                if ended
                else "no trial was run: set tuning.trials"
            )
        return trials

    def _search(self) -> Trials:
        trials = Trials(self.bench, self.plan.parts, self.plan.space)
        trials.show()
        try:
            self.launcher.search(trials, self.tuning.concurrent, self.on_progress)
        finally:
            trials.close()
        if trials.error is not None:
            raise trials.error
        self._trials = trials.records
        return trials

    def _ask(self, settings: Sequence[CompatibilityConfig], parts: Sequence[Part]) -> None:
        """Have the predictions of old, new and candidates on parts that share a predictor."""
        teachers: tuple[Version, ...] = VERSIONS[:2]
        wanted = []
        for part in parts:
            wanted += self.bench.wanted(self.experiment.compatibility, part, teachers)
            for number, one in enumerate(settings):
                wanted += self.bench.wanted(one, part, ["compat"], f"candidate-{number}")
        self.bench.predictor(parts[0]).run(wanted)

    # --- after the trials -------------------------------------------------------------------

    def _settings(self, trial: Trial, weight: float = 1.0) -> CompatibilityConfig:
        settings = trial_settings(self.plan.space, trial, self.experiment)
        return settings.model_copy(update={"interpolation": weight})

    def _judge(self, trials: Sequence[Trial]) -> tuple[list[Candidate], str]:
        """The best trials and their interpolations; finalists on half B first.

        Interpolations compete on half A, so that half B still chooses among three only.
        """
        epsilon, finalists = self.tuning.epsilon, self.tuning.finalists
        ended = self._distinct([t for t in rank(trials, epsilon) if t.state == "finished"])
        pairs = [
            (trial, weight)
            for trial in ended[:finalists]
            for weight in dict.fromkeys((1.0, *self.tuning.interpolations))
        ]
        # They are there, unless something has damaged them since.
        lost = self._train({f"trial {t.number}": self._settings(t) for t, _ in pairs})
        if lost:
            raise UserError(next(iter(lost.values())))
        pairs, remark = self._interpolated(pairs)
        settings = [self._settings(*pair) for pair in pairs]
        a = self.plan.parts.a
        self._ask(settings, (a,))
        candidates = [
            Candidate(trial.number, weight, self.bench.residual(one), self.bench.measure(one, a))
            for (trial, weight), one in zip(pairs, settings, strict=True)
        ]
        candidates.sort(key=lambda c: _order(c, epsilon))
        best = [c for c in candidates if c.a.violation(epsilon) <= 0][:finalists]
        if not best:
            why = "No feasible trial: none keeps new's score within epsilon on half A."
            return candidates, why + remark
        judged = self._on_b(best)
        kept = [c for c in judged if _feasible(c, epsilon)]
        rest = [c for c in candidates if c not in best]
        if not kept:
            why = (
                f"No feasible trial: the best {len(best)} on half A lose more than epsilon "
                "of new's score on half B."
            )
            return judged + rest, why + remark
        why = f"{kept[0].name} was the only finalist; half B keeps it."
        if len(best) > 1:
            why = (
                f"{kept[0].name} has the fewest negative flips on half B of {len(best)} finalists."
            )
        return judged + rest, why + remark

    def _interpolated(
        self, pairs: Sequence[tuple[Trial, float]]
    ) -> tuple[list[tuple[Trial, float]], str]:
        """The trials' interpolations that can be made, and why others can't."""
        made, remark = [], ""
        for trial, weight in pairs:
            plan = vary(self.plan.plan, self._settings(trial, weight))
            try:
                self.bench.pipeline_of(plan).interpolate()
            except UserError as error:
                remark = f" Some interpolations could not be made: {error}."
            else:
                made.append((trial, weight))
        return made, remark

    def _distinct(self, trials: Sequence[Trial]) -> list[Trial]:
        """Without those of other settings and the same adapter (on labels alone, masks are one)."""
        kept: dict[tuple[str, ...], Trial] = {}
        for trial in trials:
            plan = vary(self.plan.plan, self._settings(trial))
            kept.setdefault(tuple(s.key for s in self.bench.trained(plan).values()), trial)
        return list(kept.values())

    def _on_b(self, best: Sequence[Candidate]) -> list[Candidate]:
        """Finalists measured on half B, the best there first."""
        b = self.plan.parts.b
        settings = [self._settings_of(c) for c in best]
        self._ask(settings, (b,))
        judged = [
            replace(c, b=self.bench.measure(one, b)) for c, one in zip(best, settings, strict=True)
        ]
        return sorted(judged, key=lambda c: _order(c, self.tuning.epsilon))

    def _settings_of(self, chosen: Candidate) -> CompatibilityConfig:
        return self._settings(self._trials[chosen.trial], chosen.interpolation)

    def _test(self, chosen: Candidate) -> tuple[tuple[Contender, ...], str]:
        """The chosen one on the test split, beside what it is compared with, and a remark.

        What it is compared with may be impossible to train: that is said, and the choice stands.
        """
        mine = self._settings_of(chosen)
        control = control_of(self.plan.plan, mine)
        named = {"chosen": mine, **self.plan.references, "control": control}
        self._teach([*self.plan.taught, *self.plan.references.values()])
        failed = self._train({k: v for k, v in named.items() if k != "chosen"})
        named = {name: settings for name, settings in named.items() if name not in failed}
        test = self.bench.test
        self._ask(list(named.values()), (test,))
        predicted = {name: self.bench.predictions(one, test) for name, one in named.items()}
        rows = []
        for name, settings in named.items():
            difference = None
            if name != "chosen":
                difference = _difference(predicted["chosen"], predicted[name], test.name)
            dumped = at_level(settings.model_dump(mode="json"))
            rows.append(Contender(name, dumped, measure(predicted[name], test.name), difference))
        remarks = [_delivered(rows)]
        remarks += [f" {name} could not be trained: {why}." for name, why in failed.items()]
        return tuple(rows), "".join(remarks)

    def _train(self, named: dict[str, CompatibilityConfig]) -> dict[str, str]:
        """Train what is missing of candidates, side by side; returns why some can't be, by name."""
        bench = self.bench
        steps: dict[str, tuple[str, Plan, Step]] = {}
        for name, settings in named.items():
            plan = vary(self.plan.plan, settings)
            for step in bench.workshop.missing(list(bench.trained(plan).values())):
                steps.setdefault(step.key, (name, plan, step))
        if not steps:
            return {}
        failed: dict[str, str] = {}
        with bench.workshop.leases([step for _, _, step in steps.values()]):
            jobs: dict[str, TrainJob] = {}
            for key, (name, plan, step) in steps.items():
                if bench.workshop.missing([step]):
                    output = bench.store.new_attempt(step.kind, key)
                    job = bench.pipeline_of(plan).train_job((step.kind, key), output)
                    logs = storage.join(self.output, "curves", f"{name}-{job.seed}")
                    jobs[key] = replace(job, title=f"{job.title}: {name}", logs=logs)
            with suppress(UserError):  # whose it was is seen below
                self.launcher.train(list(jobs.values()), self.on_progress)
            for key, job in jobs.items():
                try:
                    if not storage.exists(storage.join(job.output, "training.json")):
                        self.launcher.train([job], self.on_progress)
                    bench.pipeline.keep(steps[key][2], job)
                except UserError as error:
                    failed[steps[key][0]] = str(error)
        return failed

    # --- the end ----------------------------------------------------------------------------

    def _found(
        self,
        trials: Trials,
        candidates: Sequence[Candidate],
        chosen: Candidate | None,
        why: str,
        test: tuple[Contender, ...],
        seconds: dict[str, float],
    ) -> Found:
        parts = self.plan.parts
        teachers = {run[1]: self.bench.teachers(parts.a, run) for run in self.experiment.runs}
        return Found(
            name=self.experiment.name,
            epsilon=self.tuning.epsilon,
            pareto=self.tuning.pareto,
            n_a=parts.a.n,
            n_b=parts.b.n,
            smallest_difference=smallest_difference(min(parts.a.n, parts.b.n)),
            continuous=is_continuous_task(teachers),
            space=self.plan.space.to_json(),
            trials=tuple(trials.trials),
            candidates=tuple(candidates),
            chosen=chosen,
            closest=None if chosen is not None else self._closest(candidates, trials.trials),
            why=why,
            test=test,
            front=front_of(trials.trials),
            importances=trials.study.importances(),
            seconds=seconds,
            provenance={**software(LIBRARIES), "experiment": identity(self.plan)},
        )

    def _closest(
        self, candidates: Sequence[Candidate], trials: Sequence[Trial]
    ) -> Candidate | None:
        """Who lacks the least, where none is feasible; all may have been stopped on the way."""
        if candidates:
            return candidates[0]
        stopped = [Candidate(t.number, 1.0, 0.0, t.a) for t in trials if t.a is not None]
        return min(stopped, key=lambda c: _order(c, self.tuning.epsilon), default=None)


def _difference(mine: Predictions, theirs: Predictions, where: str) -> dict[str, Any]:
    """NFR of another less the chosen one's, on the examples that all could answer."""
    paired: Predictions = {
        seed: {"old": of["old"], "new": mine[seed]["compat"], "compat": of["compat"]}
        for seed, of in theirs.items()
    }
    measured = measure(paired, where)
    return {
        "nfr": measured.nfr - measured.nfr_new,
        "ci95": measured.ci95["reduction"],
        "score": measured.gain,
        "score_ci95": measured.ci95["gain"],
        "p": measured.p,
    }


def _delivered(rows: Sequence[Contender]) -> str:
    """What the test split says of the choice, in a sentence or two."""
    chosen, *others = rows
    bounds = chosen.test.ci95["reduction"]
    if bounds is None or bounds[0] <= 0 <= bounds[1]:
        said = " The test split shows no difference to new's negative flips"
    else:
        word = "fewer" if bounds[1] < 0 else "more"
        low, high = (f"{100 * abs(bound):.2f}" for bound in sorted(bounds, key=abs))
        said = (
            f" On the test split it has {word} negative flips than new, by {low} to {high} points"
        )
    better = [
        o.name for o in others if o.test.nfr < chosen.test.nfr and o.test.score >= chosen.test.score
    ]
    if better:
        said += f"; {' and '.join(better)} had fewer there at no lower score"
    return said + "."


def _feasible(candidate: Candidate, epsilon: float) -> bool:
    on = candidate.b or candidate.a
    return on.violation(epsilon) <= 0


def _order(candidate: Candidate, epsilon: float) -> tuple[float, ...]:
    """On half B where it was judged there: feasible by NFR, the others by what they lack."""
    on = candidate.b or candidate.a
    violation = max(0.0, on.violation(epsilon))
    distance = abs(candidate.interpolation - 1.0)  # of equals, the plainer one
    return (violation, on.nfr, -on.score, distance, float(candidate.trial))
