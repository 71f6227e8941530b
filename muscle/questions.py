"""What answers are distilled on: `compatibility.inputs` as questions."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property

from muscle.config import Experiment
from muscle.splits import training_split
from muscle.tasks import Task
from muscle.tasks.prompting import Prompting
from muscle.types import Question, TrainingExample
from muscle.unlabelled import reader_of


@dataclass(frozen=True)
class Questions:
    """The questions of an experiment, as one base is asked them.

    train       of all `compatibility.inputs`, in their order; ids of training examples are theirs,
                others begin with the name of what they are from
    validation  of the examples that choose the epoch, which are labelled
    notes       what a user should know of them
    """

    train: list[Question]
    validation: list[Question]
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """sha256 over all that is asked and known of it; reckoned once, since every trial of a
        search makes a plan of the same questions."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
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
        UserError: no answers to distil, an empty split, an entry of `inputs` that can't be read
            or asks what the test asks.
    """
    template = None if prompting is None else prompting.template
    train, validation = (
        [example for example in part if example.id not in left_out]
        for part in training_split(experiment, task, template)
    )
    entries = experiment.compatibility.inputs
    asked_train = train if "train" in entries else []
    held_out = labelled(task, validation, prompting, validate=True)
    if not {q.id for q in held_out}.isdisjoint(example.id for example in train):
        # A validation file may have ids of its own. One file of scores holds both.
        held_out = [replace(q, query=replace(q.query, id=f"validation:{q.id}")) for q in held_out]
    reader = reader_of(experiment, task, prompting, asked_train, validation)
    reader.taken.update([e.id for e in train], [question.id for question in held_out])
    asked: list[Question] = []
    for number, entry in enumerate(entries):
        if isinstance(entry, str):  # train
            asked += labelled(task, train, prompting)
        else:
            asked += reader.read(entry, f"compatibility.inputs.{number}")
    return Questions(asked, held_out, tuple(reader.notes))


def labelled(
    task: Task,
    examples: Sequence[TrainingExample],
    prompting: Prompting | None,
    validate: bool = False,
) -> list[Question]:
    """Examples as they would be evaluated, in their order, with their right answers.

    Args:
        validate: they choose the epoch, else they train.
    """
    by_id = {example.id: example for example in examples}
    ids = list(by_id)
    found = (task.on_validation(ids) if validate else task.on_training(ids)).questions(prompting)
    if not task.generates:
        return found
    return [replace(q, gold_text=_answer(by_id[q.id], prompting)) for q in found]


def _answer(example: TrainingExample, prompting: Prompting | None) -> str:
    """The right answer as a model would write it; of a chat the last turn without its end."""
    if example.turns is None or prompting is None or prompting.template is None:
        return example.answer
    start, end = example.turns[-1]
    return (example.prompt + example.answer)[start:end].removesuffix(prompting.template.end_of_turn)
