"""What answers are distilled on: `compatibility.inputs` as questions."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

from muscle.config import Experiment
from muscle.splits import training_split
from muscle.tasks import Task
from muscle.tasks.prompting import Prompting
from muscle.types import Question, TrainingExample


@dataclass(frozen=True)
class Questions:
    """The questions of an experiment, as one base is asked them.

    train       of all `compatibility.inputs`, in their order
    validation  of the examples that choose the epoch, which are labelled
    notes       what a user should know of them
    """

    train: list[Question]
    validation: list[Question]
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """sha256 over all that is asked and known of it."""
        parts = [[astuple(q) for q in part] for part in (self.train, self.validation)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def questions_of(
    experiment: Experiment,
    task: Task,
    prompting: Prompting | None = None,
    left_out: frozenset[str] = frozenset(),
) -> Questions:
    """The inputs of an experiment as questions.

    Args:
        prompting: of the base that is asked, where they are chats.
        left_out: ids of training examples that train nobody.

    Raises:
        UserError: no answers to distil, an empty split, a row that can't be rendered.
    """
    template = None if prompting is None else prompting.template
    train, validation = (
        [example for example in part if example.id not in left_out]
        for part in training_split(experiment, task, template)
    )
    asked: list[Question] = []
    for entry in experiment.compatibility.inputs:
        if entry == "train":
            asked += labelled(task, train, prompting)
    return Questions(asked, labelled(task, validation, prompting))


def labelled(
    task: Task, examples: Sequence[TrainingExample], prompting: Prompting | None
) -> list[Question]:
    """Examples of the training split as they would be evaluated, in their order."""
    by_id = {example.id: example for example in examples}
    found = task.on_training(list(by_id)).questions(prompting)
    if not task.generates:
        return found
    return [replace(q, gold_text=by_id[q.id].answer) for q in found]
