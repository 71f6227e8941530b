"""Groups of tasks: their leaves to evaluate, and the harness's scores of the whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from muscle.config import TaskConfig
from muscle.tasks.task import Task, load_task


@dataclass(frozen=True, slots=True)
class GroupMetric:
    """One metric that a group averages over its tasks.

    filters         of these filters; None: of each that a task reports the metric for
    weight_by_size  whether each task counts by its number of examples (else all the same)
    """

    metric: str
    filters: tuple[str, ...] | None
    weight_by_size: bool


@dataclass(frozen=True, slots=True)
class Group:
    """A group of tasks, as the harness aggregates it.

    tasks    the names of its leaves, those of its subgroups too; a task in two of the
             subgroups stands here twice and counts twice, as in the harness
    metrics  what is averaged; empty for a tag, and for a group that averages nothing
    """

    name: str
    tasks: tuple[str, ...]
    metrics: tuple[GroupMetric, ...] = ()

    def score(
        self, scores: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int]
    ) -> dict[str, float]:
        """The group's own scores, "metric,filter" each, as the harness's `Group.aggregate`.

        A task that lacks a metric is left out of it; a metric that no task has is no score.

        Args:
            scores: `Judged.scores` of each task, by its name; other tasks may be among them.
            sizes: `Judged.size` of each task.
        """
        found = {}
        tasks = [task for task in self.tasks if task in scores]
        for metric in self.metrics:
            for filter_name in metric.filters or _filters(metric.metric, tasks, scores):
                key = f"{metric.metric},{filter_name}"
                having = [task for task in tasks if key in scores[task]]
                weights = [sizes[task] if metric.weight_by_size else 1 for task in having]
                if sum(weights):
                    products = [scores[t][key] * w for t, w in zip(having, weights, strict=True)]
                    found[key] = sum(products) / sum(weights)
        return found


@dataclass(frozen=True, slots=True)
class Suite:
    """What one name of a task stands for: its leaves, each once, and the groups of them.

    tasks   in the harness's order
    groups  the named group first, then those inside it; empty for a plain task
    """

    tasks: list[Task]
    groups: list[Group]


def load_suite(config: TaskConfig) -> Suite:
    """Build a task, or all tasks of a group or a tag; imports the harness (seconds).

    `num_fewshot`, `metric`, `filter` and `max_gen_toks` hold for each task of a group.

    Raises:
        UserError: as `load_task`, for any of the tasks; data_files with a group.
    """
    if config.is_own:
        return Suite([load_task(config)], [])
    from muscle.tasks.harness import build_harness_group

    built = build_harness_group(config)
    if built is None:
        return Suite([load_task(config)], [])
    leaves, groups = built
    tasks = [Task(config.model_copy(update={"name": name}), leaf) for name, leaf in leaves.items()]
    found = [_group(name, group) for name, group in groups.items()]
    if not found:  # a tag is only a list of tasks
        found = [Group(config.name, tuple(leaves))]
    return Suite(tasks, found)


def _group(name: str, group: Any) -> Group:
    metrics = tuple(
        GroupMetric(
            metric=m.metric,
            filters=None if m.filter_list is None else tuple(m.filter_list),
            weight_by_size=bool(m.weight_by_size),
        )
        for m in group.aggregate_metric_list or ()
    )
    return Group(name, tuple(task.task_name for task in group.get_all_tasks()), metrics)


def _filters(metric: str, tasks: list[str], scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    prefix = f"{metric},"
    keys = {key for task in tasks for key in scores[task] if key.startswith(prefix)}
    return sorted(key[len(prefix) :] for key in keys)
