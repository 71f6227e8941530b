"""Having what a compat adapter of level choice is taught by: questions, candidates, scores.

The scores are the evaluation engine's, a few floats of each question: they are always kept.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muscle import storage
from muscle.answers import Answers
from muscle.artifacts import Artifact, Store
from muscle.bases import Base
from muscle.candidates import (
    Candidates,
    Written,
    check_candidates,
    delimiter_of,
    with_candidates,
    writing_query,
    written,
)
from muscle.evaluation.job import Ask, BaseJob, EvaluateJob, QuerySet
from muscle.evaluation.units import collect, discard
from muscle.losses.needs import needed_teachers
from muscle.plan import Plan, Run, Step
from muscle.predict import Evaluator, longest_first
from muscle.question_tables import read_questions, write_questions
from muscle.steps import Workshop
from muscle.tables import GROUP_ROWS, read_answers, write_answers, write_queries
from muscle.teachers.choose import Choice
from muscle.teachers.scores import write_scores
from muscle.teaching import Readiness, Teaching, adapter_folder
from muscle.training.job import CachedTeacher, Progress
from muscle.types import BOTH, Answer, Query, Question, Version

CANDIDATES = "candidates.parquet"

SPLITS = ("train", "validation")


def teaching_of(plan: Plan, store: Store, trainings: int | None = None) -> "Teaching | Answering":
    """Who has the teachers of a plan ready: `Teaching` at level token, `Answering` at choice."""
    made = Teaching if plan.answers is None else Answering
    return made(plan, store, trainings)


class Answering(Readiness):
    """What `Teaching` is at level token, for level choice."""

    def __init__(self, plan: Plan, store: Store, trainings: int | None = None):
        super().__init__(plan, store, trainings)
        assert plan.answers is not None
        self.answers: Answers = plan.answers
        asked = plan.experiment.resources.teachers
        but = "" if asked != "online" else "resources.teachers is online, but "
        self.choice = Choice(True, f"{but}scores of whole answers are always kept")

    def steps(self) -> list[Step]:
        """What the missing trainings read, in the order in which it is made."""
        steps: list[Step] = []
        for run in self.untrained:
            of_run = self.answers.questions[run]
            steps += [s for (_, of), s in self.answers.candidates.items() if of == run]
            steps += [of_run.old, of_run.new]
            steps += [s for (_, of), s in self.answers.scores.items() if of == run]
        steps.sort(key=lambda step: ("candidates", "questions", "scores").index(step.kind))
        return list({step.key: step for step in steps}.values())

    def check(self) -> None:
        """Nothing: whatever the disk, it holds them."""

    def make(self, workshop: Workshop, launcher: Evaluator) -> None:
        """Have it all; what was answered before a stop stays."""
        wanted = self.steps()
        if needed_teachers(self.answers.loss) and wanted:
            remark = f"cached: {self.choice.reason}"
            workshop.on_progress(Progress("teachers", 1, 1, "teachers", remark))
        self._ask(workshop, launcher, [s for s in wanted if s.kind == "candidates"])
        for step in (s for s in wanted if s.kind == "questions"):
            self._write_questions(workshop, step)
        self._ask(workshop, launcher, [s for s in wanted if s.kind == "scores"])

    def cached(self, workshop: Workshop, run: Run) -> dict[str, CachedTeacher]:
        """The scores that a compat training reads, by the teacher's name."""
        return {
            version: CachedTeacher(workshop.artifact(step).path, self._identity(workshop, step))
            for (version, of), step in self.answers.scores.items()
            if of == run
        }

    def questions(self, workshop: Workshop, run: Run) -> str:
        """The folder of the questions that train a run."""
        return workshop.artifact(self.answers.questions[run].new).path

    # --- questions --------------------------------------------------------------------------

    def _write_questions(self, workshop: Workshop, step: Step) -> None:
        run, version = next(
            (run, version)
            for run, each in self.answers.questions.items()
            for version in BOTH
            if each.of(version).key == step.key
        )
        asked = self.answers.asked.of(version)

        def write(folder: Path) -> dict[str, Any]:
            notes: dict[str, Any] = {}
            parts = [asked.train, asked.validation]
            if self.answers.candidates:
                both = self._candidates(workshop, run, version)
                for name, found in zip(SPLITS, both, strict=True):
                    check_candidates(found, f"the {name} inputs of '{self.plan.task.name}'")
                    notes[f"{name}_with_one_answer"] = len(found.same)
                parts = [found.questions for found in both]
            for name, questions in zip(SPLITS, parts, strict=True):
                write_questions(folder / f"{name}.parquet", questions)
                notes[name] = len(questions)
            return notes

        workshop.once(step, write)

    def _candidates(self, workshop: Workshop, run: Run, version: Version) -> list[Candidates]:
        """The questions of each split with what both teachers wrote, as a version reads them."""
        asked = self.answers.asked.of(version)
        other = self.answers.asked.of("new" if version == "old" else "old")
        texts = self._texts(workshop, run)
        chats = self.plan.chats
        template = None if chats is None else chats.prompting_of(version).template
        end = None if template is None else template.end_of_turn
        delimiter = delimiter_of([*asked.train, *asked.validation])
        golds = {q.id: q.gold_text or "" for q in [*other.train, *other.validation]}
        return [
            with_candidates(questions, texts, end, delimiter, golds)
            for questions in (asked.train, asked.validation)
        ]

    def _texts(self, workshop: Workshop, run: Run) -> list[Mapping[str, Sequence[Written]]]:
        """What each teacher wrote, by question's id."""
        found: list[Mapping[str, Sequence[Written]]] = []
        for version in BOTH:
            step = self.answers.candidates[version, run]
            answers = read_answers(workshop.artifact(step).file(CANDIDATES))
            found.append({answer.id: written(answer) for answer in answers})
        return found

    # --- asking teachers --------------------------------------------------------------------

    def _ask(self, workshop: Workshop, launcher: Evaluator, steps: Sequence[Step]) -> None:
        """Have what teachers answer, in one pass over both bases."""
        with workshop.taking(steps) as missing:
            if not missing:
                return
            bases: dict[str, tuple[Base, dict[str, str], list[QuerySet]]] = {}
            asks = {step.key: self._sets(workshop, step) for step in missing}
            for step in missing:
                base = self.plan.base(self._who(step)[0])
                _, adapters, sets = bases.setdefault(base.fingerprint, (base, {}, []))
                for adapter, asked in asks[step.key]:
                    adapters[asked.asks[0].version] = adapter
                    sets.append(asked)
            launcher.evaluate(self._job(list(bases.values())), workshop.on_progress)
            for step in missing:
                self._keep(workshop, step, [asked for _, asked in asks[step.key]])

    def _job(self, bases: Sequence[tuple[Base, dict[str, str], list[QuerySet]]]) -> EvaluateJob:
        experiment = self.plan.experiment
        return EvaluateJob(
            bases=tuple(
                BaseJob(base.config.model_copy(update={"adapter": None}), adapters, tuple(sets))
                for base, adapters, sets in bases
            ),
            dtype=experiment.scoring_dtype,
            max_length=experiment.evaluation.max_length,
            scoring_tokens=experiment.resources.scoring_tokens,
        )

    def _sets(self, workshop: Workshop, step: Step) -> list[tuple[str, QuerySet]]:
        """(adapter, what it is asked) of a step: the version's own adapter, and those of folds."""
        version, run = self._who(step)
        own = adapter_folder(self.plan, workshop, version, run)
        if step.kind == "candidates":
            samples = self.plan.experiment.compatibility.samples
            asked = self.answers.asked.of(version)
            queries = [writing_query(q, samples) for q in [*asked.train, *asked.validation]]
            return [(own, self._set(step, f"{version}-{run[0]}", queries))]
        rest = self._questions(workshop, version, run)
        found = []
        for fold in self.answers.folds:
            mine = [q for q in rest if q.id in fold.ids]
            rest = [q for q in rest if q.id not in fold.ids]
            adapter = workshop.artifact(fold.adapters[version, run]).path
            name = f"{version}-{run[0]}-without-{fold.number}"
            if mine:
                found.append((adapter, self._set(step, name, [q.query for q in mine])))
        found.append((own, self._set(step, f"{version}-{run[0]}", [q.query for q in rest])))
        return found

    def _questions(self, workshop: Workshop, version: Version, run: Run) -> list[Question]:
        folder = workshop.artifact(self.answers.questions[run].of(version)).path
        parts = (read_questions(storage.join(folder, f"{name}.parquet")) for name in SPLITS)
        return [question for part in parts for question in part]

    def _set(self, step: Step, name: str, queries: Sequence[Query]) -> QuerySet:
        """Queries in a file beside the answers to them, for as long as they are asked."""
        folder = storage.join(self.store.folder(step.kind, step.key), "asked")
        path = storage.join(folder, f"{name}.parquet")
        if not storage.exists(path):
            write_queries(path, longest_first(queries), GROUP_ROWS)
        return QuerySet(path, (Ask(name, storage.join(folder, name)),))

    def _keep(self, workshop: Workshop, step: Step, sets: Sequence[QuerySet]) -> Artifact:
        answers = [answer for asked in sets for answer in collect(asked, asked.asks[0])]
        failed = [answer for answer in answers if answer.error is not None]

        def write(folder: Path) -> dict[str, Any]:
            if step.kind == "candidates":
                write_answers(folder / CANDIDATES, answers)
            else:
                scores = {a.id: _scores(a) for a in answers if a.error is None}
                write_scores(folder, scores, self._identity(workshop, step))
            return {
                "questions": len(answers),
                "unscored": len(failed),
                "reasons": sorted({str(answer.error) for answer in failed})[:3],
            }

        artifact = workshop.make(step, write)
        for asked in sets:
            discard(asked.asks[0])
            storage.remove(asked.queries)
        return artifact

    def _who(self, step: Step) -> tuple[Version, Run]:
        places = self.answers.candidates if step.kind == "candidates" else self.answers.scores
        return next(who for who, s in places.items() if s.key == step.key)


def _scores(answer: Answer) -> list[float]:
    return [float(output.loglikelihood or 0.0) for output in answer.outputs]
