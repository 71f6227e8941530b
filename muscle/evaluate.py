"""Any models on any tasks: `muscle evaluate`, from its settings to predictions and scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from muscle import storage
from muscle.artifacts import open_store
from muscle.bases import Base, resolve_base
from muscle.config import Evaluation, TaskConfig, VersionConfig
from muscle.errors import UserError
from muscle.metrics.summary import repeat_noise, score_summary
from muscle.plan import Step, predictions_step
from muscle.predict import Evaluator, Predictor, Wanted, about_predictions, software
from muscle.promptings import Promptings, called_chat
from muscle.served import (
    Served,
    ServedBase,
    needs_of,
    resolve_served,
    served_about,
    served_step,
)
from muscle.steps import Workshop
from muscle.tables import read_predictions, write_predictions
from muscle.tasks import Group, Task, load_suite
from muscle.training.job import OnProgress
from muscle.types import Prediction

LIBRARIES = ("torch", "transformers", "peft", "lm_eval")
SCHEMA = 1


@dataclass(frozen=True)
class EvaluationPlan:
    """Everything that an evaluation asks, resolved against models, data and tasks."""

    config: Evaluation
    tasks: dict[str, Task]
    groups: list[Group]
    bases: Mapping[str, Base]
    wanted: dict[tuple[str, str, int], Wanted]  # (version, task, repeat)

    def steps(self) -> list[Step]:
        """Every distinct step in the order in which it runs."""
        steps = [step for w in self.wanted.values() for step in (w.queries, w.step)]
        steps.sort(key=lambda s: s.kind == "predictions")  # stable: queries first
        return list({(s.kind, s.key): s for s in steps}.values())


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation."""

    result: dict[str, Any]
    path: str
    notes: tuple[str, ...]


def plan_evaluation(config: Evaluation) -> EvaluationPlan:
    """Load tasks, fingerprint models, make all keys; writes nothing.

    Raises:
        UserError: whatever is wrong with a task, a model, an adapter or a chat template.
    """
    tasks, groups = _suites(config.tasks)
    bases = _bases(config)
    plain = Promptings(config, bases)
    limit = config.evaluation.limit
    queries: dict[tuple[str, str | None], Step] = {}
    wanted: dict[tuple[str, str, int], Wanted] = {}
    for name, base in bases.items():
        for task in tasks.values():
            prompting = plain.of(name, task)
            chat = called_chat(prompting)
            if (task.name, chat) not in queries:
                inputs = {"task": task.evaluation_fingerprint(limit, prompting)}
                queries[task.name, chat] = Step("queries", f"requests of {task.name}", inputs)
            step = queries[task.name, chat]
            for repeat in range(config.repeat):
                wanted[name, task.name, repeat] = Wanted(
                    step=_step(config, name, base, task, step, repeat),
                    version=name,
                    task=task,
                    queries=step,
                    base=base,
                    adapter=base.config.adapter,
                    prompting=prompting,
                    repeat=repeat,
                )
    return EvaluationPlan(config, tasks, groups, bases, wanted)


def _bases(config: Evaluation) -> Mapping[str, Base]:
    if config.evaluation.backend == "openai":
        return resolve_served(config.models, config.evaluation)
    return {name: resolve_base(model, name) for name, model in config.models.items()}


def _step(
    config: Evaluation, name: str, base: Base, task: Task, queries: Step, repeat: int
) -> Step:
    again = f" (repeat {repeat + 1})" if repeat else ""
    label = f"evaluate {name} on {task.name}{again}"
    if isinstance(base, ServedBase):
        return served_step(label, base, queries, config.evaluation, repeat)
    return predictions_step(
        label,
        base,
        base.given_adapter,
        queries,
        config.evaluation,
        _dtype(config),
        repeat,
    )


def _dtype(config: Evaluation) -> str:
    return config.evaluation.dtype or "float32"


def _suites(configs: Sequence[TaskConfig]) -> tuple[dict[str, Task], list[Group]]:
    """All leaves by name, each once, and all groups."""
    tasks: dict[str, Task] = {}
    groups: dict[str, Group] = {}
    for config in configs:
        suite = load_suite(config)
        for task in suite.tasks:
            there = tasks.setdefault(task.name, task)
            if there is not task and there.fingerprint() != task.fingerprint():
                raise UserError(f"two different tasks are called '{task.name}': rename one")
        groups.update({group.name: group for group in suite.groups})
    return tasks, list(groups.values())


def served_evaluator(plan: EvaluationPlan) -> Served:
    """Who asks the servers of a plan's models.

    Raises:
        UserError: a task that asks what no server of this kind answers.
    """
    config = plan.config
    models = {name: base for name, base in plan.bases.items() if isinstance(base, ServedBase)}
    asked = {w.task.name: (w.task, w.prompting) for w in plan.wanted.values()}
    evaluation = config.evaluation
    needs = needs_of(asked, evaluation.server, evaluation.limit)
    rendered = bool(config.prompting.apply_chat_template)
    return Served(evaluation.server, models, needs, rendered)


class Evaluating:
    """Executes an evaluation's plan under an output folder."""

    def __init__(
        self, plan: EvaluationPlan, output: str, launcher: Evaluator, on_progress: OnProgress
    ):
        self.plan = plan
        self.config = plan.config
        self.launcher = launcher
        self.output = storage.absolute(output)
        self.path = storage.join(self.output, "evaluation.json")
        store = open_store(plan.config.storage, output)
        self.workshop = Workshop(store, on_progress)
        self.predictor = Predictor(
            self.workshop,
            launcher,
            self.config.evaluation,
            _dtype(self.config),
            self.config.resources,
        )

    def run(self) -> Evaluated:
        """Ask what is missing, then write predictions and `evaluation.json`.

        Raises:
            UserError: whatever a user can mend; what was answered stays.
        """
        check_evaluation_output(self.plan, self.output)
        wanted = list(self.plan.wanted.values())
        if self.workshop.missing([w.step for w in wanted]) or self.predictor.unfinished(wanted):
            self.launcher.prepare(self.workshop.on_progress)
        self.predictor.run(wanted)
        versions = _before(self.output)
        for name in self.plan.bases:
            mine = versions.setdefault(name, {"tasks": {}})
            mine.update(_identity(self.plan, name))
            for task in self.plan.tasks:
                mine["tasks"][task] = self._task(name, task, mine["tasks"].get(task, {}))
            mine["groups"] = {**mine.get("groups", {}), **self._groups(mine["tasks"])}
        result = {"schema": SCHEMA, "provenance": software(LIBRARIES), "versions": versions}
        storage.write_json(self.path, result)
        return Evaluated(self._asked(result), self.path, self.predictor.notes)

    def _task(self, name: str, task: str, before: Mapping[str, Any]) -> dict[str, Any]:
        """One version's scores on one task; leaves its predictions in the output folder."""
        wanted = self.plan.wanted[name, task, 0]
        notes = self.workshop.artifact(wanted.step).notes
        runs = [self._predictions(name, task, r) for r in range(self.config.repeat)]
        found = {
            "metric": wanted.task.metric,
            "filter": wanted.task.filter,
            "n": notes["n"] - notes["unscored"],
            "unscored": notes["unscored"],
            **score_summary(runs[0]),
            "scores": notes["scores"],
            "size": notes["size"],
            "errors": _errors(runs[0]),
            "settings": task_settings(self.plan, task),
        }
        repeats = [repeat_noise(runs[0], again) for again in runs[1:]]
        # An earlier call with the same settings may have asked more often.
        found["repeats"] = max(repeats, before.get("repeats", []), key=len)
        return found

    def _predictions(self, name: str, task: str, repeat: int) -> list[Prediction]:
        step = self.plan.wanted[name, task, repeat].step
        rows = read_predictions(self.workshop.artifact(step).file("predictions.parquet"))
        folder = f"{name}@{repeat + 1}" if repeat else name
        path = storage.join(self.output, folder, f"{task}.parquet")
        write_predictions(path, rows, self._about(name, task))
        return rows

    def _about(self, name: str, task: str) -> dict[str, Any]:
        """How a version's predictions on a task were made."""
        wanted, prompting = self.plan.wanted[name, task, 0], self.config.prompting
        about = {
            **about_predictions(
                wanted.task,
                self.config.evaluation,
                _dtype(self.config),
                wanted.base,
                _called(self.config.models[name]),
                prompting,
                called_chat(wanted.prompting),
            ),
            "adapter": wanted.base.given_adapter,
            "adapter_path": self.config.models[name].adapter,
            "groups": [group.name for group in self.plan.groups if task in group.tasks],
        }
        if isinstance(wanted.base, ServedBase):
            return served_about(about, wanted.base, self.config.evaluation)
        return about

    def _groups(self, tasks: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        scores = {name: task["scores"] for name, task in tasks.items()}
        sizes = {name: task["size"] for name, task in tasks.items()}
        return {group.name: group.score(scores, sizes) for group in self.plan.groups}

    def _asked(self, result: dict[str, Any]) -> dict[str, Any]:
        """The part of a result that this call asked for."""
        groups = {group.name for group in self.plan.groups}
        versions = {}
        for name in self.plan.bases:
            whole = result["versions"][name]
            versions[name] = {
                **whole,
                "tasks": {t: whole["tasks"][t] for t in self.plan.tasks},
                "groups": {g: s for g, s in whole["groups"].items() if g in groups},
            }
        return {**result, "versions": versions}


def check_evaluation_output(plan: EvaluationPlan, output: str) -> None:
    """Refuse a folder whose numbers could not stand beside the new ones.

    Raises:
        UserError: a version's name stands for another model there, or a task was asked with
            other settings; it is a file, holds a run's report or a damaged evaluation.json.
    """
    storage.check_folders(output, plan.config.storage)
    if storage.exists(storage.join(output, "report.json")):
        raise UserError(f"{output} holds the report of a run: choose another --output")
    before = _before(output)
    for name, task in ((n, t) for n in before for t in plan.tasks if t in before[n]["tasks"]):
        there, mine = before[name]["tasks"][task]["settings"], task_settings(plan, task)
        for key in mine:
            if there.get(key) != mine[key]:
                raise UserError(
                    f"{output} already holds {name}'s answers to {task} with {key} "
                    f"{there.get(key)!r}, not {mine[key]!r}: choose another --output"
                )
    for name in plan.bases:
        mine = _identity(plan, name)
        if name in before and {k: before[name].get(k) for k in mine} != mine:
            raise UserError(
                f"{output} already holds another model's answers under the name '{name}': "
                "choose another name in --model, or another --output"
            )


def _before(output: str) -> dict[str, Any]:
    """What earlier calls left in a folder: version -> its entry of evaluation.json."""
    path = storage.join(output, "evaluation.json")
    there = storage.read_json(path)
    if isinstance(there, dict) and isinstance(there.get("versions"), dict):
        return dict(there["versions"])
    if storage.exists(path):
        raise UserError(f"{path} is damaged: delete it; what was answered is found again")
    return {}


def task_settings(plan: EvaluationPlan, task: str) -> dict[str, Any]:
    """All settings that change a task's numbers, as they stand in evaluation.json."""
    config = plan.config
    found = {
        "dtype": _dtype(config),
        **config.evaluation.model_dump(exclude={"dtype", "server"}),
        **config.prompting.model_dump(),
        **plan.tasks[task].settings(),
    }
    if config.evaluation.backend == "openai":
        found["dtype"] = None  # the server's
        found |= config.evaluation.server.model_dump(include={"extra_body", "endpoint"})
    return found


def _identity(plan: EvaluationPlan, name: str) -> dict[str, Any]:
    base, model = plan.bases[name], plan.config.models[name]
    return {
        "model": _shown(model),
        "fingerprint": base.fingerprint,
        "adapter_fingerprint": base.given_adapter,
    }


def _shown(model: VersionConfig) -> str:
    return _called(model) + (f"+{model.adapter}" if model.adapter else "")


def _called(model: VersionConfig) -> str:
    """The base, as the user names it."""
    return model.model + (f"@{model.revision}" if model.revision else "")


def _errors(rows: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Why rows are unscored, the commonest reason first, with the ids of five of them."""
    ids: dict[str, list[str]] = {}
    for row in rows:
        if row.error is not None:
            ids.setdefault(row.error, []).append(row.id)
    found = [{"reason": why, "n": len(those), "ids": those[:5]} for why, those in ids.items()]
    return sorted(found, key=lambda error: -error["n"])
