"""Predictions of any versions on any tasks: ask what is missing in one pass, judge, keep.

`muscle run` and `muscle evaluate` both end here.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any, Protocol

from muscle import __version__, storage
from muscle.artifacts import Artifact
from muscle.bases import Base
from muscle.config import EvaluationConfig, PromptingConfig, ResourcesConfig
from muscle.evaluation.job import Ask, BaseJob, EvaluateJob, QuerySet
from muscle.evaluation.units import collect, discard, keep_answered, to_ask_again
from muscle.plan import Plan, Run, Step
from muscle.steps import Workshop
from muscle.tables import GROUP_ROWS, write_predictions, write_queries
from muscle.tasks import Task
from muscle.tasks.prompting import Prompting
from muscle.training.job import OnProgress
from muscle.types import VERSIONS, Query, Version

MANY_GROUPS = 1000
"""Larger sets get larger groups: more units cost more than they balance."""


class Evaluator(Protocol):
    """The part of a launcher that is needed here."""

    def prepare(self, on_progress: OnProgress) -> None:
        """Connect, and refuse what could never run; called before anything is written."""
        ...

    def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> tuple[str, ...]:
        """Write every ask's answers; returns remarks."""
        ...


@dataclass(frozen=True)
class Wanted:
    """One version's predictions on one task.

    step       what they are called by
    version    the name of base + adapter, unique among all that are wanted together
    queries    the step of the task's queries, as this base is asked them
    prompting  how they are rendered; None: as plain text
    adapter    directory of its adapter; None: the bare base
    repeat     0, or the how-manieth time the same is asked in another order
    """

    step: Step
    version: str
    task: Task
    queries: Step
    base: Base
    adapter: str | None
    prompting: Prompting | None = None
    repeat: int = 0


def wanted_of(
    plan: Plan,
    name: Callable[[Version, Run], str],
    adapter: Callable[[Version, Run], str],
    versions: Sequence[Version] = VERSIONS,
) -> list[Wanted]:
    """The predictions of a plan's versions, to be asked in one pass with one pool for each base.

    name: of base + adapter, unique among all that are wanted together.
    adapter: the directory of what a version serves.
    """
    return [
        Wanted(
            step=step,
            version=name(version, run),
            task=plan.task,
            queries=plan.asked.of(version),
            base=plan.base(version),
            adapter=adapter(version, run),
            prompting=plan.prompting_of(version),
        )
        for (version, run), step in plan.predictions.items()
        if version in versions
    ]


class Predictor:
    """Makes the predictions that are missing in a store."""

    def __init__(
        self,
        workshop: Workshop,
        launcher: Evaluator,
        evaluation: EvaluationConfig,
        dtype: str,
        resources: ResourcesConfig,
    ):
        self.workshop = workshop
        self.store = workshop.store
        self.launcher = launcher
        self.evaluation = evaluation
        self.dtype = dtype
        self.resources = resources
        self.notes: tuple[str, ...] = ()

    def run(self, wanted: Sequence[Wanted]) -> None:
        """Ask and judge whatever has no artifact yet; what was answered before a stop stays."""
        # What differs by name only (one adapter for several seeds) is asked once.
        unique: dict[str, Wanted] = {}
        for one in wanted:
            unique.setdefault(one.step.key, one)
        for one in self.unfinished(list(unique.values())):
            self.store.forget(one.step.kind, one.step.key)
        missing = self._missing(list(unique.values()))
        if not missing:
            return
        with self.workshop.leases([w.step for w in missing]):
            missing = self._missing(missing)  # another driver may have been at it
            if not missing:
                return
            job = self.job(missing)
            self.notes = self.launcher.evaluate(job, self.workshop.on_progress)
            for one in missing:
                self.judge(one)

    def unfinished(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        """Those with answers that a server failed to give: they are asked again."""
        found = [(w, self.store.find(w.step.kind, w.step.key)) for w in wanted]
        return [w for w, there in found if there is not None and there.notes.get("to_ask_again")]

    def job(self, wanted: Sequence[Wanted]) -> EvaluateJob:
        """One pass over everything: for each base its adapters and what they are asked."""
        by_base: dict[str, list[Wanted]] = {}
        for one in wanted:
            by_base.setdefault(one.base.fingerprint, []).append(one)
        bases = []
        for group in by_base.values():
            by_queries: dict[str, list[Wanted]] = {}
            for one in group:
                by_queries.setdefault(one.queries.key, []).append(one)
            sets = tuple(self._set(asked) for asked in by_queries.values())
            config = group[0].base.config.model_copy(update={"adapter": None})
            bases.append(BaseJob(config, {w.version: w.adapter for w in group}, sets))
        return EvaluateJob(
            bases=tuple(bases),
            dtype=self.dtype,
            max_length=self.evaluation.max_length,
            scoring_tokens=self.resources.scoring_tokens,
            backend=self.evaluation.backend,
        )

    def _missing(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        return [w for w in wanted if self.workshop.missing([w.step])]

    def _set(self, asked: Sequence[Wanted]) -> QuerySet:
        return QuerySet(self._queries(asked[0]), tuple(self._ask(w) for w in asked))

    def _queries(self, wanted: Wanted) -> str:
        """The file of the queries, written if it isn't there."""

        def write(folder: Path) -> dict[str, Any]:
            queries = wanted.task.queries(self.evaluation.limit, wanted.prompting)
            queries = longest_first(queries)
            rows = max(GROUP_ROWS, len(queries) // MANY_GROUPS)
            write_queries(folder / "queries.parquet", queries, rows)
            return {"queries": len(queries)}

        return self.workshop.once(wanted.queries, write).file("queries.parquet")

    def _ask(self, wanted: Wanted) -> Ask:
        folder = self.store.folder(wanted.step.kind, wanted.step.key)
        return Ask(wanted.version, storage.join(folder, "answers"), wanted.repeat)

    def judge(self, wanted: Wanted) -> Artifact:
        """Let the task decide what is right, and commit one version's predictions."""
        ask = self._ask(wanted)
        asked = self._set([wanted])
        answers = collect(asked, ask)
        again = to_ask_again(answers)

        def write(folder: Path) -> dict[str, Any]:
            judged = wanted.task.judge(answers, self.evaluation.limit, wanted.prompting)
            write_predictions(folder / "predictions.parquet", judged.predictions)
            return {
                "n": len(judged.predictions),
                "unscored": sum(p.score is None for p in judged.predictions),
                "version": wanted.version,
                "scores": judged.scores,
                "size": judged.size,
                **({"to_ask_again": again} if again else {}),
            }

        artifact = self.workshop.make(wanted.step, write)
        if again:
            keep_answered(asked, ask)
        else:
            discard(ask)
        return artifact


def about_predictions(
    task: Task,
    evaluation: EvaluationConfig,
    dtype: str,
    base: Base,
    model: str,
    prompting: PromptingConfig | None = None,
    chat: str | None = None,
) -> dict[str, Any]:
    """How predictions were made, by the names of `Side.about`; goes with them in their file.

    What is None is known to be none; what a caller alone knows (adapter, seed, groups) it adds.

    Args:
        model: the base as the user calls it.
        prompting: None: as plain text.
        chat: of `Prompting.chat_name`, what tells one chat template from another.
    """
    prompting = prompting or PromptingConfig()
    libraries = {name: library_version(name) for name in ("lm_eval", "transformers", "torch")}
    return {
        "task_version": task.version,
        "filter": task.filter,
        "num_fewshot": task.settings()["num_fewshot"],
        "dtype": dtype,
        # Given answers are scored by our own engine, whatever writes the others.
        "backend": evaluation.backend if task.generates else "transformers",
        "max_length": evaluation.max_length,
        "limit": evaluation.limit,
        "chat_template": chat,
        "system_instruction": prompting.system_instruction,
        "fewshot_as_multiturn": prompting.fewshot_as_multiturn,
        "model": model,
        "base": base.fingerprint,
        "software": {"muscle": __version__, **libraries},
    }


def software(libraries: Sequence[str]) -> dict[str, Any]:
    """What numbers were made with: our version, those of libraries and of Python."""
    return {
        "muscle": __version__,
        "libraries": {name: library_version(name) for name in libraries},
        "python": platform.python_version(),
    }


def longest_first(queries: Sequence[Query]) -> list[Query]:
    """Queries in the order in which they are asked: neighbours of one length waste the least
    padding."""
    return sorted(queries, key=_size, reverse=True)


def _size(query: Query) -> int:
    return sum(len(r.context) + len(r.continuation) for r in query.requests)
