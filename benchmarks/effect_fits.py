"""One fit of the study: a method on a cell with a seed, from adapters to what it answers.

Everything lies in one store of artifacts by content: what two methods share (old, new, scores) is
made once, and what is there is never made again.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from effect_cells import experiment_file, task_of, write_labelled
from effect_methods import Method

from muscle.alone import Alone
from muscle.bases import Base
from muscle.bench import Part
from muscle.config import Experiment, TaskConfig
from muscle.errors import UserError
from muscle.experiment import load_experiment
from muscle.models.fingerprint import fingerprint_adapter
from muscle.pipeline import Pipeline
from muscle.plan import Plan, Run, Step, asked_of, make_plan, predictions_step
from muscle.predict import Predictor, Wanted
from muscle.recipes import compat_adapter
from muscle.splits import tuning_halves
from muscle.tables import read_predictions
from muscle.tasks import Task, load_task
from muscle.teachers.scores import read_scores, write_scores
from muscle.teaching import adapter_folder
from muscle.training.job import Progress
from muscle.types import Prediction

PARTS = ("tuning", "test")


@dataclass(frozen=True)
class Served:
    """An adapter that answers: its base and directory. Its contents stand for it in keys."""

    base: Base
    adapter: str

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_adapter(self.adapter)


class Impossible(Exception):
    """What a method can't do on a cell, in words."""


@lru_cache(maxsize=4)
def _task(settings: str) -> Task:
    return load_task(TaskConfig.model_validate_json(settings))


class Desk:
    """A cell with a seed: its two task adapters, and whoever is trained from them."""

    def __init__(self, work: Path, cell: str, seed: int):
        self.work, self.cell, self.seed = work, cell, seed
        self.run: Run = (seed, seed)
        store = str(work / "store")
        given = [f"seeds=[{seed}]", f"storage={store}"]
        self.experiment = load_experiment(experiment_file(cell), given)
        self.plan = make_plan(self.experiment, _task(self.experiment.task.model_dump_json()))
        self.pipeline = self._pipeline(self.plan)
        self.workshop, self.store = self.pipeline.workshop, self.pipeline.store

    def _pipeline(self, plan: Plan) -> Pipeline:
        # Curves alone lie there; nothing of the study reads them.
        output = str(self.work / "curves" / f"{self.cell}-{self.seed}")
        return Pipeline(plan, output, Alone("cpu"), _silent)

    # --- adapters ---------------------------------------------------------------------------

    def version(self, name: str) -> Served:
        """old or new, trained where it isn't there; "old+1" is the next seed's."""
        version, _, further = name.partition("+")
        if further:
            return desk(self.work, self.cell, self.seed + int(further)).version(version)
        self.pipeline.train_tasks()
        assert version == "old" or version == "new"
        return Served(
            self.plan.base(version), adapter_folder(self.plan, self.workshop, version, self.run)
        )

    def compat(self, method: Method) -> Served:
        """A method's adapter, trained where it isn't there.

        Raises:
            Impossible: why there can be none.
        """
        try:
            plan = self.variant(method)
            pipeline = self._pipeline(plan)
            pipeline.write_examples()
            # Their folds' teachers.
            pipeline.train_tasks()
            if method.seeds:
                plan = self._taught_by_many(plan, method)
                pipeline = self._pipeline(plan)
            pipeline.train_compat()
        except UserError as error:
            raise Impossible(str(error)) from error
        return Served(plan.new, adapter_folder(plan, self.workshop, "compat", self.run))

    def variant(self, method: Method, old: str | None = None) -> Plan:
        """The plan of a method: both teachers given, so that its settings are about compat alone.

        old: in the place of the method's own.
        """
        teachers = {"old": self.version(old or method.old), "new": self.version(method.new)}
        raw = self.experiment.model_dump(exclude_unset=True)
        for name, served in teachers.items():
            raw[name] = {"model": served.base.config.model, "adapter": served.adapter}
        raw["compatibility"] = self._loss(method)
        raw["training"] |= method.training
        if method.labelled:
            self._label_more(raw, method.labelled)
        experiment = Experiment.model_validate(raw)
        return make_plan(experiment, _task(experiment.task.model_dump_json()))

    def _loss(self, method: Method) -> dict[str, Any]:
        given = self.experiment.compatibility.model_dump(exclude_unset=True)
        loss = {**given, **method.loss}
        if method.more:
            file = self.work / "data" / task_of(self.cell) / f"more-{method.more}.jsonl"
            loss["inputs"] = ["train", {"path": str(file), "overlap": "drop"}]
        return loss

    def _label_more(self, raw: dict[str, Any], n: int) -> None:
        """Train on more labelled rows; as many as before choose the epoch."""
        held_out = {example.id for half in self.halves for example in half}
        path = write_labelled(self.work, task_of(self.cell), held_out, n)
        if "data_files" in raw["task"] and raw["task"]["data_files"]:
            raw["task"]["data_files"]["train"] = str(path)
        else:
            raw["task"]["train"] = str(path)
        rows = sum(1 for _ in path.open(encoding="utf-8"))
        choosing = len(self.plan.split_of("new")[1])
        raw["training"] |= {"tuning_fraction": None, "validation_fraction": choosing / rows}

    def _taught_by_many(self, plan: Plan, method: Method) -> Plan:
        """The plan with old's scores replaced by the mean distribution of several seeds' new.

        Source: Zhao et al. 2022, "ELODI: Ensemble logit difference inhibition".
        """
        if plan.task.generates:
            raise UserError("an ensemble of seeds teaches given answers only")
        members = []
        for further in range(method.seeds):
            one = self.variant(method, old=f"new+{further}" if further else "new")
            pipeline = self._pipeline(one)
            pipeline.teaching.make(self.workshop, pipeline.launcher)
            members.append((one, pipeline))
        assert plan.answers is not None
        step = plan.answers.scores["old", self.run]
        keys = [one.answers.scores["old", self.run].key for one, _ in members if one.answers]
        mean = Step("scores", "scores of several seeds", {**step.inputs, "members": keys})
        answers = replace(plan.answers, scores={**plan.answers.scores, ("old", self.run): mean})
        adapters = dict(plan.adapters)
        adapters["compat", self.run] = compat_adapter(
            plan.experiment, adapters, plan.old, plan.new, plan.taught, answers, self.run
        )
        changed = replace(plan, answers=answers, adapters=adapters)
        teaching = self._pipeline(changed).teaching

        def write(folder: Path) -> dict[str, Any]:
            found = []
            for _, pipeline in members:
                cached = pipeline.teaching.cached(self.workshop, self.run)["old"]
                found.append(read_scores(cached.path, cached.identity))
            ids = [i for i in found[0] if all(i in other for other in found)]
            scores = {i: mean_distribution([other[i] for other in found]) for i in ids}
            write_scores(folder, scores, teaching._identity(self.workshop, mean))
            return {"questions": len(ids)}

        self.workshop.once(mean, write)
        return changed

    # --- answers ----------------------------------------------------------------------------

    @cached_property
    def halves(self) -> Sequence[Sequence[Any]]:
        return tuning_halves(self.experiment, self.plan.task)

    @cached_property
    def parts(self) -> dict[str, Part]:
        """What versions are asked: the tuning examples, and the test split."""
        ids = [example.id for half in self.halves for example in half]
        task = self.plan.task.on_training(ids)
        tuning = Part("tuning", task, asked_of(task, None, "tuning questions"), len(ids))
        return {"tuning": tuning, "test": Part("test", self.plan.task, self.plan.asked, 0)}

    def ask(self, part: str, served: Served) -> list[Prediction]:
        """What an adapter answers, asked where it hasn't been."""
        asked, experiment = self.parts[part], self.experiment
        predictor = Predictor(
            self.workshop,
            self.pipeline.launcher,
            experiment.evaluation,
            experiment.scoring_dtype,
            experiment.resources,
        )
        queries = asked.asked.new
        step = predictions_step(
            f"ask {part}",
            served.base,
            served.fingerprint,
            queries,
            experiment.evaluation,
            experiment.scoring_dtype,
        )
        base = Base(
            served.base.config.model_copy(update={"adapter": None}), served.base.fingerprint, None
        )
        predictor.run([Wanted(step, "it", asked.task, queries, base, served.adapter)])
        return read_predictions(self.workshop.artifact(step).file("predictions.parquet"))

    def answers(self, method: Method, parts: Sequence[str]) -> dict[str, Any]:
        """A method's answers by part, and the seconds that it took.

        Raises:
            Impossible: it can't be done on this cell.
        """
        if method.kind == "ensemble":
            began = time.perf_counter()
            both = [self.version(name) for name in ("old", "new")]
            found = {p: averaged([self.ask(p, one) for one in both]) for p in parts}
            return {"parts": found, "seconds": {"all": time.perf_counter() - began}}
        began = time.perf_counter()
        served = self.version(method.new) if method.kind == "version" else self.compat(method)
        trained = time.perf_counter()
        found = {p: outcomes(self.ask(p, served)) for p in parts}
        seconds = {"training": trained - began, "all": time.perf_counter() - began}
        return {"parts": found, "seconds": seconds}


@lru_cache(maxsize=8)
def desk(work: Path, cell: str, seed: int) -> Desk:
    """The desk of a cell and a seed, kept: the task is read and the bases are hashed once."""
    return Desk(work, cell, seed)


def outcomes(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """What the statistics need of predictions, by id: scores, and how sure each choice was.

    sure   the probability of the chosen answer among the choices; None for written answers
    right  that of the right answer
    """
    rows = sorted(predictions, key=lambda p: p.id)
    given = [p for p in rows if p.loglikelihoods is not None and p.choices is not None]
    found: dict[str, Any] = {
        "ids": [p.id for p in rows],
        "scores": [None if p.score is None else round(p.score, 6) for p in rows],
        "metric": rows[0].metric,
    }
    if len(given) == len(rows):
        shares = [_shares(p) for p in rows]
        found["sure"] = [round(float(share.max()), 4) for share in shares]
        found["right"] = [
            round(float(share[p.choices.index(p.gold)]), 4) if p.choices else None
            for share, p in zip(shares, rows, strict=True)
        ]
    return found


def averaged(sides: Sequence[Sequence[Prediction]]) -> dict[str, Any]:
    """The answers of two models together: the choice with the highest mean probability.

    Raises:
        Impossible: written answers.
    """
    by_id = [{p.id: p for p in side} for side in sides]
    rows = []
    for name, one in by_id[0].items():
        several = [side[name] for side in by_id]
        if one.choices is None or any(p.loglikelihoods is None for p in several):
            raise Impossible("two models' written answers have no mean")
        if any(p.choices != one.choices or p.gold != one.gold for p in several):
            raise ValueError(f"{name}: the versions were asked other things")
        share = np.mean([_shares(p) for p in several], axis=0)
        chosen = one.choices[int(share.argmax())]
        logs = tuple(float(value) for value in np.log(np.maximum(share, 1e-300)))
        score = float(chosen == one.gold)
        rows.append(replace(one, prediction=chosen, score=score, loglikelihoods=logs))
    return outcomes(rows)


def _shares(prediction: Prediction) -> "np.ndarray[Any, Any]":
    assert prediction.loglikelihoods is not None
    scores = np.array(prediction.loglikelihoods, dtype=np.float64)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def mean_distribution(members: Sequence[Sequence[float]]) -> list[float]:
    """log of the mean of the members' distributions over the choices, [K] each."""
    scores = np.array(members, dtype=np.float64)  # [members, K]
    scores = scores - scores.max(axis=1, keepdims=True)
    shares = np.exp(scores)
    shares = shares / shares.sum(axis=1, keepdims=True)
    return [float(value) for value in np.log(np.maximum(shares.mean(axis=0), 1e-30))]


def _silent(_: Progress) -> None:
    pass
