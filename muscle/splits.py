"""Which examples train, choose epochs, and compare the trials of a search."""

from typing import TYPE_CHECKING

from muscle.config import Experiment
from muscle.tasks import Task, hold_out, limit_examples, split
from muscle.types import TrainingExample

if TYPE_CHECKING:
    from muscle.models.chat_template import ChatTemplate


def training_split(
    experiment: Experiment, task: Task, template: "ChatTemplate | None" = None
) -> tuple[list[TrainingExample], list[TrainingExample]]:
    """(training, validation) examples, the same for old, new and compat.

    Args:
        template: of the version that reads them, where they are chats.

    Raises:
        UserError: no training split, or one side would be empty.
    """
    rest, _, _ = _held_out(experiment, task, template)
    validation = task.validation_examples(template)
    if validation is not None:
        return rest, validation
    fraction = experiment.training.validation_fraction
    return split(rest, experiment.data_seed, fraction, task.groups)


def tuning_halves(
    experiment: Experiment, task: Task, template: "ChatTemplate | None" = None
) -> tuple[list[TrainingExample], list[TrainingExample]]:
    """(half A, half B) of the examples that `training.tuning_fraction` holds out.

    Args:
        template: as in `training_split`.

    Raises:
        UserError: no training split, or a half would be empty.
    """
    _, a, b = _held_out(experiment, task, template)
    return a, b


def _held_out(
    experiment: Experiment, task: Task, template: "ChatTemplate | None"
) -> tuple[list[TrainingExample], list[TrainingExample], list[TrainingExample]]:
    settings, seed = experiment.training, experiment.data_seed
    examples = limit_examples(task.training_examples(template), settings.limit, seed)
    if settings.tuning_fraction is None:
        return examples, [], []
    return hold_out(examples, seed, settings.tuning_fraction, task.groups)
