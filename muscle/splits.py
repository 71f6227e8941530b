"""Which examples train, choose epochs, and compare the trials of a search."""

from muscle.config import Experiment
from muscle.tasks import Task, hold_out, limit_examples, split
from muscle.types import TrainingExample


def training_split(
    experiment: Experiment, task: Task
) -> tuple[list[TrainingExample], list[TrainingExample]]:
    """(training, validation) examples, the same for old, new and compat.

    Raises:
        UserError: no training split, or one side would be empty.
    """
    rest, _, _ = _held_out(experiment, task)
    return split(rest, experiment.data_seed, experiment.training.validation_fraction)


def tuning_halves(
    experiment: Experiment, task: Task
) -> tuple[list[TrainingExample], list[TrainingExample]]:
    """(half A, half B) of the examples that `training.tuning_fraction` holds out.

    Raises:
        UserError: no training split, or a half would be empty.
    """
    _, a, b = _held_out(experiment, task)
    return a, b


def _held_out(
    experiment: Experiment, task: Task
) -> tuple[list[TrainingExample], list[TrainingExample], list[TrainingExample]]:
    settings, seed = experiment.training, experiment.data_seed
    examples = limit_examples(task.training_examples(), settings.limit, seed)
    if settings.tuning_fraction is None:
        return examples, [], []
    return hold_out(examples, seed, settings.tuning_fraction)
