"""Trials: each is asked once, recorded as it ended, and a search survives all of them."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from colours import write_data
from searching import (
    TEST,
    Played,
    Rule,
    Who,
    changed,
    leases,
    not_waiting,
    records,
    result,
    search,
    search_settings,
    thing_of,
    usual,
)

from muscle.artifacts import Store
from muscle.bench import Bench
from muscle.config import Experiment
from muscle.errors import NotFiniteError, UserError
from muscle.evaluation.job import EvaluateJob
from muscle.evaluation.units import outstanding
from muscle.plan import Step
from muscle.predict import Predictor, Wanted
from muscle.search import plan_search
from muscle.training.job import OnProgress, TrainJob
from muscle.trials import Trials, read_trials, trial_settings, trials_of
from muscle.tuning.records import Trial
from muscle.tuning.study import Study
from muscle.tuning.trial import LATER, TrialJob


@pytest.fixture(scope="module")
def base(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = write_data(tmp_path_factory.mktemp("data"), test=24, train=100)
    return search_settings(tiny_models, data)


@pytest.fixture(scope="module")
def finished(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed search's output folder; tests copy it before they change anything."""
    output = tmp_path_factory.mktemp("finished") / "out"
    search(base, output, Played())
    return output


@pytest.fixture
def prepared(finished: Path, tmp_path: Path) -> Path:
    """An output folder that has all but the search: examples, task adapters, their answers."""
    output = tmp_path / "out"
    copy_prepared(finished, output)
    return output


def copy_prepared(finished: Path, output: Path) -> None:
    for kind in ("examples", "task-adapter"):
        shutil.copytree(finished / "artifacts" / kind, output / "artifacts" / kind)


@contextmanager
def source(settings: dict[str, Any], output: Path, launcher: Played) -> Iterator[Trials]:
    """The trials of a search whose task adapters are there; old and new have answered half A."""
    plan = plan_search(Experiment.model_validate(settings))
    bench = Bench(plan.plan, str(output), launcher, not_waiting)
    for part in (plan.parts.a, plan.parts.look):
        wanted = bench.wanted(bench.experiment.compatibility, part, ["old", "new"])
        bench.predictor(part).run(wanted)
    launcher.log.clear()
    trials = Trials(bench, plan.parts, plan.space)
    try:
        yield trials
    finally:
        trials.close()


def try_all(settings: dict[str, Any], output: Path, launcher: Played) -> Trials:
    """Run all trials of a search and nothing else."""
    with source(settings, output, launcher) as trials:
        launcher.search(trials, None, not_waiting)
    if trials.error is not None:
        raise trials.error
    return trials


def of_trials(launcher: Played) -> list[str]:
    """The trials that were trained, in order, as often as they were."""
    titles = [title for kind, all_of in launcher.log if kind == "train" for title in all_of]
    return [title for title in titles if title.startswith("trial ")]


class Failing(Played):
    """Raises what `fail` says instead of training."""

    def __init__(self, fail: Callable[[TrainJob], Exception | None], rule: Rule = usual):
        super().__init__(rule)
        self.fail = fail

    def train_one(self, job: TrainJob) -> None:
        error = self.fail(job)
        if error is not None:
            raise error
        super().train_one(job)


def fails(title: str, error: Exception) -> Callable[[TrainJob], Exception | None]:
    return lambda job: error if job.title == title else None


# --- which trials -------------------------------------------------------------------------


def test_the_first_trial_is_the_experiments_own(base: dict[str, Any], prepared: Path) -> None:
    own = {"temperature": 2.5, "old_weight": 0.75}
    try_all(changed(base, compatibility=own, tuning={"trials": 1}), prepared, Played())
    assert [r["params"] for r in records(prepared)] == [own]


def test_a_finite_space_is_searched_once(base: dict[str, Any], prepared: Path) -> None:
    space = {"mask": ["old-right", "student-wrong"], "epochs": [1, 2]}
    launcher = Played()
    try_all(changed(base, tuning={"trials": 9, "space": space}), prepared, launcher)
    found = [(r["params"]["mask"], r["params"]["epochs"]) for r in records(prepared)]
    assert found[0] == ("student-wrong", 1)  # the experiment's own
    assert sorted(found) == [(m, e) for m in ("old-right", "student-wrong") for e in (1, 2)]


def test_trials_of_the_same_adapter_train_it_once(base: dict[str, Any], prepared: Path) -> None:
    """On labels alone, masks are all one: the second trial is found done."""
    space = {"mask": ["old-right", "student-wrong", "always-old"], "ce_weight": [1.0]}
    launcher = Played()
    try_all(changed(base, tuning={"trials": 3, "space": space}), prepared, launcher)
    assert of_trials(launcher) == ["trial 0"]
    assert [r["state"] for r in records(prepared)] == ["finished"] * 3
    assert len({json.dumps(r["a"]) for r in records(prepared)}) == 1


def test_trials_of_the_same_adapter_side_by_side_wait_for_nothing(
    base: dict[str, Any], prepared: Path
) -> None:
    """One process has the leases of both: waiting for itself would be for ever."""
    space = {"mask": ["old-right", "student-wrong", "always-old"], "ce_weight": [1.0]}
    launcher, running = Played(), []
    settings = changed(base, tuning={"trials": 3, "space": space})
    with source(settings, prepared, launcher) as trials:
        while (job := trials.next()) is not None:
            running.append(job)
        assert trials.error is None
        assert trials.left == 3
        for job in running:
            launcher.train(job.trainings, not_waiting)
            launcher.evaluate(job.evaluate, not_waiting)
            trials.end(job.number, {})
        assert trials.next() is None and trials.error is None and trials.left == 0
    found = records(prepared)
    assert [r["state"] for r in found] == ["finished"] * 3
    assert [r["number"] for r in found] == [0, 1, 2]
    assert {r["params"]["mask"] for r in found} == {"old-right", "student-wrong", "always-old"}
    assert len({json.dumps(r["a"]) for r in found}) == 1


def test_another_search_at_the_same_adapter_is_waited_for_only_when_nothing_runs(
    base: dict[str, Any], prepared: Path
) -> None:
    """Each of two searches may hold what the other wants: who waits must hold nothing."""
    settings = changed(base, tuning={"trials": 2})
    launcher = Played()
    with source(settings, prepared, launcher) as trials:
        first = trials.next()
        assert isinstance(first, TrialJob)
        other = Store(str(prepared / "artifacts"))
        step = adapter_of_next(trials)
        with other.lease(step.kind, step.key):
            assert trials.next() is LATER and trials.error is None
        launcher.train(first.trainings, not_waiting)
        launcher.evaluate(first.evaluate, not_waiting)
        trials.end(0, {})
        second = trials.next()
        assert isinstance(second, TrialJob) and second.number == 1
    assert [r["number"] for r in records(prepared)] == [0, 1]


def adapter_of_next(trials: Trials) -> Step:
    """The adapter that the trial after the running ones will make; asks nothing of `trials`."""
    again = Study(trials.space, trials.tuning.seed, trials.tuning.trials, trials.tuning.pareto)
    for known in trials.trials:
        again.ask(known.number, dict(known.params))
    params = again.ask(len(trials.trials))
    assert params is not None
    settings = trial_settings(trials.space, Trial(1, params), trials.bench.experiment)
    (step,) = trials.bench.trained(trials.bench.laid_out(settings, trials.parts.a)).values()
    return step


def test_what_is_left_is_counted(base: dict[str, Any], prepared: Path) -> None:
    launcher = Played()
    with source(base, prepared, launcher) as trials:
        assert trials.left == 4
        job = trials.next()
        assert job is not None and trials.left == 4  # a running one is still to be run
        launcher.train(job.trainings, not_waiting)
        launcher.evaluate(job.evaluate, not_waiting)
        trials.end(job.number, {"training": 2.0, "scoring": 1.0})
        assert trials.left == 3
        assert trials.records[0].seconds["training"] == 2.0
    assert leases(prepared) == []


def test_jobs_survive_json(base: dict[str, Any], prepared: Path) -> None:
    with source(changed(base, compatibility={"epochs": 3}), prepared, Played()) as trials:
        job = trials.next()
        assert job is not None and [look.epoch for look in job.looks] == [1, 2]
        assert TrialJob.from_json(json.loads(json.dumps(job.to_json()))) == job


# --- how they end -------------------------------------------------------------------------


def test_a_diverged_trial_is_recorded_and_never_run_again(
    base: dict[str, Any], prepared: Path
) -> None:
    launcher = Failing(fails("trial 1", NotFiniteError("training compat: the loss is nan")))
    search(base, prepared, launcher)
    states = [r["state"] for r in records(prepared)]
    assert states == ["finished", "diverged", "finished", "finished"]
    assert records(prepared)[1]["reason"] == "training compat: the loss is nan"
    before, again = result(prepared), Played()
    search(base, prepared, again)
    assert again.log == [] and result(prepared) == before
    assert leases(prepared) == []


def test_a_failed_trial_is_recorded_and_tried_again(base: dict[str, Any], prepared: Path) -> None:
    launcher = Failing(fails("trial 2", RuntimeError("CUDA out of\nmemory")))
    try_all(base, prepared, launcher)
    first = records(prepared)
    assert first[2]["state"] == "failed" and first[2]["a"] is None
    assert first[2]["reason"] == "RuntimeError: CUDA out of memory"  # one line
    assert of_trials(launcher) == ["trial 0", "trial 1", "trial 3"]
    again = Played()
    try_all(base, prepared, again)
    second = records(prepared)
    assert of_trials(again) == ["trial 2"]
    assert second[2]["state"] == "finished" and second[2]["reason"] is None
    assert second[2]["params"] == first[2]["params"]
    assert [r for r in second if r["number"] != 2] == [r for r in first if r["number"] != 2]


def test_failures_alone_end_the_search(base: dict[str, Any], prepared: Path) -> None:
    """The next ones would fail too; once the cause is mended, the same folder goes on."""
    launcher = Failing(
        lambda job: UserError(f"no space for {job.title}") if job.role == "compat" else None
    )
    with pytest.raises(UserError, match="last 3 trials or more failed: no space for trial 2"):
        search(base, prepared, launcher)
    assert [r["state"] for r in records(prepared)] == ["failed"] * 3
    assert leases(prepared) == [] and not (prepared / "tune.json").exists()
    mended = Played()
    search(base, prepared, mended)
    assert of_trials(mended) == [f"trial {n}" for n in range(4)]
    assert [r["state"] for r in records(prepared)] == ["finished"] * 4


def test_failures_after_a_success_end_nothing(base: dict[str, Any], prepared: Path) -> None:
    launcher = Failing(
        lambda job: RuntimeError("no") if job.title in ("trial 1", "trial 2", "trial 3") else None
    )
    try_all(changed(base, tuning={"trials": 5}), prepared, launcher)
    states = [r["state"] for r in records(prepared)]
    assert states == ["finished", "failed", "failed", "failed", "finished"]


def test_many_failures_after_a_success_end_the_search(base: dict[str, Any], prepared: Path) -> None:
    """A disk that is full, say: what has ended well is kept, and nothing is judged."""
    launcher = Failing(
        lambda job: RuntimeError("no") if job.title not in ("train old", "trial 0") else None
    )
    with pytest.raises(UserError, match="trials or more failed: RuntimeError: no"):
        search(changed(base, tuning={"trials": 12}), prepared, launcher)
    assert [r["state"] for r in records(prepared)] == ["finished"] + ["failed"] * 6
    assert not (prepared / "tune.json").exists()


def test_what_cant_be_judged_has_failed(
    base: dict[str, Any], prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Predictor.judge

    def refusing(self: Predictor, wanted: Wanted) -> Any:
        if wanted.version.startswith("trial-1-"):
            raise UserError("answers are damaged: delete them")
        return judge(self, wanted)

    monkeypatch.setattr(Predictor, "judge", refusing)
    try_all(base, prepared, Played())
    second = records(prepared)[1]
    assert (second["state"], second["reason"]) == ("failed", "answers are damaged: delete them")
    monkeypatch.undo()
    again = Played()
    try_all(base, prepared, again)
    assert records(prepared)[1]["state"] == "finished"
    assert of_trials(again) == []  # its training was kept


def test_a_fault_of_ours_ends_the_search(
    base: dict[str, Any], prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No trial is to blame, so none is recorded as failed."""

    def broken(self: Bench, *arguments: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Bench, "measure", broken)
    with pytest.raises(ZeroDivisionError, match="ours"):
        try_all(base, prepared, Played())
    assert [r["state"] for r in records(prepared)] == ["running"]
    assert leases(prepared) == []
    monkeypatch.undo()
    again = Played()
    try_all(base, prepared, again)
    assert of_trials(again) == ["trial 1", "trial 2", "trial 3"]


# --- stopped early ------------------------------------------------------------------------


def destroyed(title_epochs: int) -> Rule:
    """Adapters of so many epochs know nothing at all; others are as usual."""

    def rule(who: Who, thing: int) -> bool:
        return usual(who, thing) and not (who.role == "compat" and who.epochs == title_epochs)

    return rule


def epochs_apart(base: dict[str, Any], **tuning: Any) -> dict[str, Any]:
    """Trial 0 has one epoch, and is not looked at; trial 1 has four."""
    return changed(base, tuning={"trials": 2, "space": {"epochs": [1, 4]}, **tuning})


def test_a_hopeless_trial_is_stopped_at_its_first_look(
    base: dict[str, Any], prepared: Path
) -> None:
    launcher = Played(destroyed(4))
    try_all(epochs_apart(base), prepared, launcher)
    first, second = records(prepared)
    assert first["state"] == "finished" and second["state"] == "stopped"
    assert "99% interval" in second["reason"] and "20 examples" in second["reason"]
    assert second["a"]["score"] == 0 and second["a"]["n"] == 20
    untils = [until for output, until in launcher.trained if "compat-adapter" in output]
    assert untils[:2] == [None, 1]  # trial 0 had no look; trial 1 never got further
    assert [v for v in launcher.asked_for(lambda n: n < TEST) if "trial-1-0-0" in v] == []
    # What a hopeless training leaves isn't kept.
    assert [p for p in prepared.rglob("look-*")] == [] and leases(prepared) == []
    again = Played(destroyed(4))
    try_all(epochs_apart(base), prepared, again)
    assert again.log == []


def test_one_epoch_has_nothing_to_look_at(base: dict[str, Any], prepared: Path) -> None:
    """A hopeless trial of one epoch is scored on the whole half, like any other."""
    launcher = Played(destroyed(1))
    try_all(epochs_apart(base), prepared, launcher)
    first = records(prepared)[0]
    assert first["state"] == "finished" and first["a"]["score"] == 0


def test_stopped_trials_alone_are_an_answer(base: dict[str, Any], prepared: Path) -> None:
    """That none is feasible; nothing went wrong."""
    settings = changed(base, compatibility={"epochs": 4}, tuning={"trials": 2})
    searched = search(settings, prepared, Played(destroyed(4)))
    assert [r["state"] for r in records(prepared)] == ["stopped"] * 2
    found = result(prepared)
    assert found["chosen"] is None and found["test"] == [] and searched.best is None
    assert found["why"].startswith("No feasible trial")
    assert found["closest"]["trial"] in (0, 1)
    assert found["closest"]["a"]["n"] == records(prepared)[0]["a"]["n"]


def test_a_trial_whose_interval_reaches_feasibility_goes_on(
    base: dict[str, Any], prepared: Path
) -> None:
    plan = plan_search(Experiment.model_validate(epochs_apart(base)))
    known = [t for t in map(thing_of, plan.parts.a.task.queries()) if t % 4 in (1, 2)]

    def rule(who: Who, thing: int) -> bool:
        """Two of 20 examples lost: infeasible, but not surely so."""
        if who.role == "compat" and who.epochs == 4:
            return thing % 4 in (1, 2) and thing not in known[:2]
        return usual(who, thing)

    launcher = Played(rule)
    try_all(epochs_apart(base), prepared, launcher)
    second = records(prepared)[1]
    assert second["state"] == "finished" and second["a"]["gain"] == pytest.approx(-0.1)
    untils = [until for output, until in launcher.trained if "compat-adapter" in output]
    assert untils[:4] == [None, 1, 2, None]
    assert [p for p in prepared.rglob("look-*")] == []


# --- records ------------------------------------------------------------------------------


def test_more_trials_go_on_from_the_first(base: dict[str, Any], prepared: Path) -> None:
    try_all(changed(base, tuning={"trials": 3}), prepared, Played())
    first, more = records(prepared), Played()
    try_all(changed(base, tuning={"trials": 5}), prepared, more)
    assert records(prepared)[:3] == first
    assert of_trials(more) == ["trial 3", "trial 4"]
    assert [r["number"] for r in records(prepared)] == list(range(5))


def test_fewer_trials_than_are_there_run_none(
    base: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    launcher = Played()
    search(changed(base, tuning={"trials": 2}), output, launcher)
    assert launcher.log == [] and len(result(output)["trials"]) == 4


BAD = {
    "not JSON": b"{",
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07trouble\x94.",
    "another value": b"[1, 2]",
    "nothing": b"",
    "other fields": b'{"number": 1, "params": {}, "state": "finished", "loss": 1}',
    "an unknown state": b'{"number": 1, "params": {}, "state": "won"}',
    "another number": b'{"number": 7, "params": {}, "state": "finished"}',
    "half a measure": b'{"number": 1, "params": {}, "state": "finished", "a": {"n": 1}}',
    "params that are no mapping": b'{"number": 1, "params": 3, "state": "running"}',
    "no params": b'{"number": 1, "state": "running"}',
    "seconds that are no mapping": (
        b'{"number": 1, "params": {"temperature": 2.0, "old_weight": 1.0}, "state": "failed",'
        b' "seconds": null}'
    ),
    "params of another space": b'{"number": 1, "params": {"epochs": 2}, "state": "failed"}',
    "a value outside of the space": (
        b'{"number": 1, "params": {"temperature": 9.0, "old_weight": 1.0}, "state": "failed"}'
    ),
    "a value of another kind": (
        b'{"number": 1, "params": {"temperature": "hot", "old_weight": 1.0}, "state": "failed"}'
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_record_is_named_in_one_line(
    case: str, base: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished / "trials", output / "trials")
    copy_prepared(finished, output)
    (output / "trials" / "0001.json").write_bytes(BAD[case])
    launcher = Played()
    with pytest.raises(UserError, match=r"trials/0001\.json.*delete it") as error:
        try_all(base, output, launcher)
    assert "\n" not in str(error.value)
    assert not any(kind == "train" for kind, _ in launcher.log)


def test_another_trial_takes_the_place_of_a_record_that_was_deleted(
    base: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    (output / "trials" / "0001.json").unlink()
    try_all(base, output, Played())
    assert [r["number"] for r in records(output)] == [0, 1, 2, 3]
    points = [tuple(r["params"].values()) for r in records(output)]
    assert len(set(points)) == 4


def test_a_record_that_was_never_finished_being_written_is_no_record(
    finished: Path, tmp_path: Path
) -> None:
    """A search that is killed while it writes one leaves the part under another name."""
    shutil.copytree(finished / "trials", tmp_path / "trials")
    (tmp_path / "trials" / "0002.json.0123abcd.part").write_bytes(b'{"number": 2')
    assert [trial.number for trial in read_trials(trials_of(str(tmp_path)))] == [0, 1, 2, 3]


# --- stopped and started again --------------------------------------------------------------


class Interrupted(Played):
    """Is stopped in one of its calls that have work: before it does any, or when all is done."""

    def __init__(self, call: int, after: bool):
        super().__init__()
        self.calls, self.call, self.after = 0, call, after

    def _work(self, left: bool, work: Callable[[], Any]) -> Any:
        if not left:
            return work()
        self.calls += 1
        if self.calls == self.call and not self.after:
            raise KeyboardInterrupt
        done = work()
        if self.calls == self.call:
            raise KeyboardInterrupt
        return done

    def train(self, jobs: Sequence[TrainJob], on_progress: OnProgress) -> None:
        left = not all(self.is_done(job) for job in jobs)
        self._work(left, lambda: super(Interrupted, self).train(jobs, on_progress))

    def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> tuple[str, ...]:
        notes: tuple[str, ...] = self._work(
            bool(outstanding(job).units),
            lambda: super(Interrupted, self).evaluate(job, on_progress),
        )
        return notes


def test_stopped_before_every_step_and_started_again(
    base: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    """Each start gets one step further; the answer is that of an undisturbed search."""
    output, done, starts = tmp_path / "out", [], 0
    while not (output / "tune.json").exists():
        launcher = Interrupted(call=2, after=False)
        try:
            search(base, output, launcher)
        except KeyboardInterrupt:
            assert leases(output) == []
        done += launcher.trained
        starts += 1
        assert starts < 30
    assert starts > 8
    assert result(output) == result(finished)
    keys = [str(Path(folder).parent) for folder, _ in done]
    assert len(keys) == len(set(keys)) == 2 + 4 + 2  # old and new, trials, references


@pytest.mark.parametrize("call", [1, 2, 5, 8, 9])
def test_stopped_when_a_step_was_done_but_not_kept(
    call: int, base: dict[str, Any], finished: Path, prepared: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(base, prepared, Interrupted(call, after=True))
    assert leases(prepared) == []
    search(base, prepared, Played())
    assert result(prepared) == result(finished)


def test_an_error_after_the_trials_loses_none(
    base: dict[str, Any], finished: Path, prepared: Path
) -> None:
    class Lost(Played):
        def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> tuple[str, ...]:
            if any(
                ask.version.startswith("candidate") for s in job.bases[0].sets for ask in s.asks
            ):
                raise UserError("the cluster is gone")
            return super().evaluate(job, on_progress)

    with pytest.raises(UserError, match="the cluster is gone"):
        search(base, prepared, Lost())
    again = Played()
    search(base, prepared, again)
    assert of_trials(again) == [] and result(prepared) == result(finished)
