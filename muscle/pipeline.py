"""One model update from an experiment to its report, resuming what is there.

The pipeline knows what to do and what is done; a launcher, handed in, knows how to
run training and evaluation (`muscle.launch` on Ray, `muscle.alone` in this process).
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from muscle import copies, storage
from muscle.answering import Answering, teaching_of
from muscle.artifacts import Store, open_store
from muscle.compatibility_config import at_level, recorded
from muscle.config import Experiment
from muscle.errors import UserError
from muscle.losses.needs import needed_teachers
from muscle.plan import Again, Plan, Run, Step
from muscle.predict import Evaluator, Predictor, Wanted, wanted_of
from muscle.results import ELSEWHERE, Outcome, Results, check_gate
from muscle.steps import Workshop
from muscle.tables import write_examples
from muscle.teaching import Cacher, adapter_folder
from muscle.training.job import OnProgress, Progress, TrainJob
from muscle.training.settings import read_deepspeed
from muscle.types import AGAIN, VERSIONS, Version


class Launcher(Evaluator, Cacher, Protocol):
    """Runs jobs, in this process or on a cluster; returns when all are done."""

    def train(self, jobs: Sequence[TrainJob], on_progress: OnProgress) -> None:
        """Train every job's adapter into its `output`."""
        ...


class Pipeline:
    """Executes a plan under an output folder.

    Pipelines that share a `store` object check each artifact once.
    """

    def __init__(
        self,
        plan: Plan,
        output: str,
        launcher: Launcher,
        on_progress: OnProgress,
        store: Store | None = None,
    ):
        self.plan = plan
        self.experiment = plan.experiment
        self.output = storage.absolute(output)
        self.store = store or open_store(plan.experiment.storage, output)
        self.launcher = launcher
        self.on_progress = on_progress
        self.workshop = Workshop(self.store, on_progress)
        self.teaching = teaching_of(plan, self.store)
        self.predictor = Predictor(
            self.workshop,
            launcher,
            self.experiment.evaluation,
            self.experiment.scoring_dtype,
            self.experiment.resources,
        )

    def run(self) -> Outcome:
        """Do what is missing, then write predictions, adapters and the report.

        Raises:
            UserError: whatever a user can mend; what was finished stays finished.
        """
        check_output(self.experiment, self.output)
        check_gate(self.experiment)
        steps = self.plan.steps()
        missing = self.workshop.missing(steps)
        self.teaching.check()
        if any(step.kind not in ("examples", "queries") for step in missing):
            self.launcher.prepare(self.on_progress)
        claim_output(self.experiment, self.output)
        for step in steps:
            if step not in missing:
                self.on_progress(Progress(step.label, 1, 1, "artifact", "reused"))
        self.train_tasks()
        self.train_compat()
        self.predictor.run(self.wanted())
        return self.results().write(self.predictor.notes)

    def results(self, versions: Sequence[Version] = VERSIONS) -> Results:
        """What writes the results of these versions, once they have answered."""
        return Results(
            self.plan, self.workshop, self.output, self._adapter, self._adapter_again, versions
        )

    # --- steps ------------------------------------------------------------------------

    def train_tasks(self) -> None:
        """Have the examples and both task adapters."""
        self.write_examples()
        self._train([s for s in self.plan.steps() if s.kind == "task-adapter"])

    def write_examples(self) -> None:
        """Have the examples that trainings read."""
        for version in ("old", "new"):  # the same step twice, unless they are chats
            self._examples_of(version, self.plan.taught.of(version))
            for fold in self.plan.answers.folds if self.plan.answers else ():
                self._examples_of(version, fold.examples.of(version), fold.ids)

    def _examples_of(self, version: Version, step: Step, without: Collection[str] = ()) -> None:
        def write(folder: Path) -> dict[str, Any]:
            train, validation = self.plan.split_of(version)
            train = [example for example in train if example.id not in without]
            write_examples(folder / "train.parquet", train)
            write_examples(folder / "validation.parquet", validation)
            return {"train": len(train), "validation": len(validation)}

        self.workshop.once(step, write)

    def train_compat(self) -> None:
        """Cache the teachers and train from them; what was damaged on disk is made again, once.

        Then make what is served of it, where that isn't the trained adapter itself.
        """
        steps = [s for s in self.plan.steps() if s.kind == "compat-adapter"]
        self.teaching.make(self.workshop, self.launcher)
        try:
            self._train(steps)
        except UserError:
            if not self.teaching.lost():
                raise
            self.teaching.make(self.workshop, self.launcher)
            self._train(steps)
        self.interpolate()

    def interpolate(self) -> None:
        """Have the adapters between new's and the trained one, where compat serves those."""
        for run, step in self.plan.interpolated.items():
            trained = self.plan.adapters["compat", run]
            assert trained is not None

            def write(folder: Path, run: Run = run, trained: Step = trained) -> dict[str, Any]:
                from muscle.models.interpolation import interpolate_adapters

                new = copies.fetch(self._adapter("new", run))
                compat = copies.fetch(self.workshop.artifact(trained).path)
                weight = self.experiment.compatibility.interpolation
                return {"residual": interpolate_adapters(new, compat, weight, str(folder))}

            self.workshop.once(step, write)

    def _train(self, steps: Sequence[Step]) -> None:
        with self.workshop.taking(steps) as missing:
            if not missing:
                return
            attempts = {(s.kind, s.key): self.store.new_attempt(s.kind, s.key) for s in missing}
            jobs = {key: self.train_job(key, attempt) for key, attempt in attempts.items()}
            self.launcher.train(list(jobs.values()), self.on_progress)
            for step in missing:
                self.keep(step, jobs[step.kind, step.key])

    def keep(self, step: Step, job: TrainJob) -> None:
        """Commit what a training has left."""
        notes = storage.read_json(storage.join(job.output, "training.json"))
        self.store.commit(step.kind, step.key, job.output, step.inputs, notes or {})
        storage.remove(job.checkpoints)

    def train_job(self, key: tuple[str, str], attempt: str) -> TrainJob:
        """The job of an adapter step, by its kind and key."""
        found = [
            who for who, s in self.plan.adapters.items() if s is not None and (s.kind, s.key) == key
        ]
        if not found:
            return self._train_in_fold(key, attempt) or self._train_again(key, attempt)
        return self._train_job(*found[0], key, attempt)

    def _train_in_fold(self, key: tuple[str, str], attempt: str) -> TrainJob | None:
        """The job of an adapter that only teaches, without a part of the training split."""
        for fold in self.plan.answers.folds if self.plan.answers else ():
            for (version, run), step in fold.adapters.items():
                if (step.kind, step.key) == key:
                    job = self._train_job(version, run, key, attempt)
                    examples = self.workshop.artifact(fold.examples.of(version)).path
                    curves = f"{version}-{run[0]}-without-{fold.number}"
                    logs = storage.join(self.output, "curves", curves)
                    return replace(job, title=step.label, examples=examples, logs=logs)
        return None

    def _train_again(self, key: tuple[str, str], attempt: str) -> TrainJob:
        """The job of the second old, which only the noise floor needs: old's, with its seed."""
        seed = next(again.seed for again in self.plan.again.values())
        assert seed is not None
        job = self._train_job("old", (seed, seed), key, attempt)
        logs = storage.join(self.output, "curves", AGAIN)
        return replace(job, title=f"train old again (seed {seed})", logs=logs)

    def _train_job(
        self, version: Version, run: Run, key: tuple[str, str], attempt: str
    ) -> TrainJob:
        compat = version == "compat"
        resources = self.experiment.resources
        answers = self.plan.answers if compat else None
        loss = self.experiment.compatibility if compat else None
        loss = loss if answers is None else answers.loss
        needs = needed_teachers(loss) if loss is not None else ()
        several = len(self.experiment.runs) > 1
        seed = run[1] if compat else run[0]
        base = self.plan.base(version)
        teachers = self.teaching.cached(self.workshop, run) if compat else {}
        return TrainJob(
            role=version,
            title=f"train {version}" + (f" (seed {seed})" if several else ""),
            base=base.config.model_copy(update={"adapter": None}),
            base_fingerprint=base.fingerprint,
            adapter=self.experiment.adapter,
            start=self._adapter("new", run) if compat else None,
            old=(
                self.plan.old.config.model_copy(update={"adapter": self._adapter("old", run)})
                if "old" in needs and "old" not in teachers
                else None
            ),
            teachers=teachers,
            loss=loss,
            training=self.experiment.compat_training if compat else self.experiment.training,
            deepspeed=read_deepspeed(resources.deepspeed),
            gradient_checkpointing=resources.gradient_checkpointing,
            training_tokens=resources.training_tokens,
            examples=self.workshop.artifact(self.plan.taught.of(version)).path,
            seed=seed,
            output=attempt,
            checkpoints=storage.join(self.store.folder(*key), "checkpoints"),
            checkpoint_seconds=resources.checkpoint_seconds,
            logs=storage.join(self.output, "curves", f"{version}-{seed}" if several else version),
            tracking=self.experiment.tracking,
            old_examples=(
                self.workshop.artifact(self.plan.taught.old).path
                if compat and self.plan.chats is not None
                else None
            ),
            end_of_turn=self.plan.chats.end_of_turn if compat and self.plan.chats else None,
            questions=(
                self.teaching.questions(self.workshop, run)
                if compat and isinstance(self.teaching, Answering)
                else None
            ),
        )

    def _adapter(self, version: Version, run: Run) -> str:
        return adapter_folder(self.plan, self.workshop, version, run)

    def wanted(self, versions: Sequence[Version] = VERSIONS) -> list[Wanted]:
        """These versions' predictions, to be asked in one pass with one pool for each base; old's
        come with the noise floor and older releases."""
        several = len(self.experiment.runs) > 1

        def name(version: Version, run: Run) -> str:
            return f"{version}-{run[0]}-{run[1]}" if several else version

        again = {other.predictions.key: other for other in self.plan.again.values()}
        floor = [
            Wanted(
                step=step.predictions,
                version=f"{AGAIN}-{number}",
                task=self.plan.task,
                queries=self.plan.asked.old,
                base=self.plan.old,
                adapter=self._adapter_again(step),
                prompting=self.plan.prompting_of("old"),
            )
            for number, step in enumerate(again.values())
        ]
        # What is another seed's old stands among the versions, and is asked once.
        asked = wanted_of(self.plan, name, self._adapter, versions)
        return [*asked, *floor, *self._wanted_older()] if "old" in versions else asked

    def _wanted_older(self) -> list[Wanted]:
        """The older releases' predictions, which come with old's."""
        return [
            Wanted(
                step=step,
                version=f"also-{older.label}",
                task=self.plan.task,
                queries=queries,
                base=older.base,
                adapter=older.adapter,
                prompting=older.prompting,
            )
            for older, queries, step in self.plan.older
        ]

    def _adapter_again(self, again: Again) -> str:
        """The directory of the second old's adapter."""
        if again.adapter is None:
            given = again.base.config.adapter
            assert given is not None
            return given
        return self.workshop.artifact(again.adapter).path


def claim_output(experiment: Experiment, output: str) -> None:
    """Bind an output folder to an experiment, or find that it is bound to this one.

    Raises:
        UserError: as `check_output`, or the folder can't be written.
    """
    check_output(experiment, output)
    path = storage.join(output, "experiment.json")
    if storage.read_json(path) != numbers(experiment):
        storage.write_json(path, numbers(experiment))


def numbers(experiment: Experiment) -> dict[str, Any]:
    """What makes an experiment this one: all but where it runs.

    A noise floor is no part of it, nor are older releases: they add numbers and change none, so
    who wants one later goes on in the same folder.
    """
    left_out = {*ELSEWHERE, "assumed", "noise_floor", "also"}
    found = experiment.model_dump(mode="json", exclude=left_out)
    return {**found, "compatibility": at_level(found["compatibility"])}


def check_output(experiment: Experiment, output: str) -> None:
    """Refuse an output folder that isn't free for this experiment; writes nothing.

    Raises:
        UserError: it is a file, holds another experiment, or files that no run of ours left.
    """
    storage.check_folders(output, experiment.storage)
    # Without a report there is nothing to mix up (artifacts have keys of their own), and
    # who mends a setting after an error may go on in the same folder.
    if not storage.exists(storage.join(output, "report.json")):
        return
    there = storage.read_json(storage.join(output, "experiment.json"))
    mine = numbers(_at_level_of(there, experiment))
    if there is None:
        raise UserError(f"{output} holds a report but no experiment: choose another --output")
    difference = first_difference(_today(there), mine)
    if difference is not None:
        raise UserError(
            f"{output} holds another experiment ({difference}): choose another --output, or "
            "share finished steps between experiments with the setting 'storage'"
        )


def _at_level_of(there: Any, experiment: Experiment) -> Experiment:
    """An experiment whose level its task is still to decide, at the level that a record has."""
    settings = recorded(there).get("compatibility") if isinstance(there, dict) else None
    level = settings.get("level") if isinstance(settings, dict) else None
    if level not in ("token", "choice"):
        return experiment
    compatibility = experiment.compatibility.at(level)
    return experiment.model_copy(update={"compatibility": compatibility})


def _today(there: Any) -> Any:
    """What an earlier version of ours wrote, with the settings that came since."""
    try:
        return numbers(Experiment.model_validate(recorded(there)))
    except (AttributeError, TypeError, ValidationError):
        return there


def first_difference(there: Any, mine: Any, where: str = "") -> str | None:
    """The first setting in which two JSON values differ, in words; None where none does."""
    if isinstance(there, dict) and isinstance(mine, dict):
        # What both have comes first: of two levels each has settings of its own.
        for key in sorted({*there, *mine}, key=lambda k: (k not in there or k not in mine, k)):
            found = first_difference(
                there.get(key), mine.get(key), f"{where}.{key}" if where else str(key)
            )
            if found is not None:
                return found
        return None
    return None if there == mine else f"{where} is {there!r} there and {mine!r} here"
