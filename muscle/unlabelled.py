"""Inputs of `compatibility.inputs` that nobody labelled, and that no test knows."""

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from muscle.compatibility_config import InputsConfig
from muscle.config import Experiment
from muscle.errors import UserError, some
from muscle.splits import tuning_halves
from muscle.tasks import Task, limit_examples, limit_ids, load_task
from muscle.tasks.prompting import Prompting
from muscle.tasks.unlabelled import asked_groups, asked_ids, on_file, on_validation_split, only
from muscle.types import Question, TrainingExample

TEST, HELD_OUT, ASKED = "among the test inputs", "held out", "asked already"


@dataclass(frozen=True)
class Source:
    """What one entry names.

    task  asks all of it
    name  begins its questions' ids
    what  it is, for messages
    """

    task: Task
    name: str
    what: str


@dataclass
class Unlabelled:
    """Reads one entry after the other.

    known     what an input may not be -> why, by `Task.asked_texts`
    apart     groups of near-copies that it may not be of -> why
    taken     ids that questions have
    notes     what was left out
    """

    experiment: Experiment
    task: Task
    prompting: Prompting | None
    known: dict[str, str]
    apart: Mapping[str, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def read(self, entry: InputsConfig, setting: str) -> list[Question]:
        """The questions of an entry, those that other questions ask left out, drawn by
        `data_seed`; none has a right answer.

        Args:
            setting: the entry's name, for messages.

        Raises:
            UserError: nothing to read, rows that can't be asked, test inputs among them.
        """
        source = self._source(entry, setting)
        kept, texts = self._kept(entry, source, setting)
        ids = asked_ids(source.task)
        places = limit_ids([ids[i] for i in kept], entry.limit, self.experiment.data_seed)
        chosen = [kept[place] for place in places]
        self.known.update((texts[i], ASKED) for i in chosen)
        name = self._prefix(source.name, [ids[i] for i in chosen])
        questions = only(source.task, chosen).questions(self.prompting)
        found = [_unlabelled(question, f"{name}:{question.id}") for question in questions]
        self.taken.update(question.id for question in found)
        return found

    # --- what an entry names -----------------------------------------------------------------

    def _source(self, entry: InputsConfig, setting: str) -> Source:
        if entry.path is not None:
            asked = on_file(self.task, entry.path, f"{setting}.path")
            return Source(asked, posixpath.basename(entry.path.rstrip("/")), entry.path)
        if entry.split == "validation":
            asked = on_validation_split(self.task, f"{setting}.split")
            return Source(asked, "validation", f"the validation split of task '{self.task.name}'")
        if entry.split == "train":
            return self._rest(setting)
        return self._other(entry, setting)

    def _rest(self, setting: str) -> Source:
        """The training examples that `training.limit` leaves out."""
        template = None if self.prompting is None else self.prompting.template
        examples = self.task.training_examples(template)
        limit, seed = self.experiment.training.limit, self.experiment.data_seed
        within = {example.id for example in limit_examples(examples, limit, seed)}
        rest = [example.id for example in examples if example.id not in within]
        if not rest:
            why = "is not set" if limit is None else f"{limit} takes all of it"
            raise UserError(
                f"setting '{setting}.split': nothing of the training split is left, since "
                f"training.limit {why}: set it below {len(examples)}, or leave the entry out"
            )
        asked = self.task.on_training(rest)
        return Source(asked, "train", f"the rest of the training split of '{self.task.name}'")

    def _other(self, entry: InputsConfig, setting: str) -> Source:
        """Another task's training split."""
        assert entry.task is not None
        name = entry.task.name
        try:
            other = load_task(entry.task)
            template = None if self.prompting is None else self.prompting.template
            ids = [example.id for example in other.training_examples(template)]
        except UserError as error:
            raise UserError(f"setting '{setting}.task': {error}") from None
        for theirs, ours, what, none in (
            (other.is_chat, self.task.is_chat, "is a task of chats", "is none of chats"),
            (other.generates, self.task.generates, "has its answers written", "gives choices"),
        ):
            if theirs != ours:
                raise UserError(
                    f"setting '{setting}.task': '{name}' {what if theirs else none} and "
                    f"'{self.task.name}' {what if ours else none}: both must be of one kind"
                )
        return Source(other.on_training(ids), name, f"the training split of task '{name}'")

    # --- what of it is asked -----------------------------------------------------------------

    def _kept(
        self, entry: InputsConfig, source: Source, setting: str
    ) -> tuple[list[int], list[str]]:
        """(places of what may be asked, all texts)."""
        ids, texts = asked_ids(source.task), source.task.asked_texts()
        dropped: dict[str, list[str]] = defaultdict(list)
        kept: dict[str, int] = {}
        for place, (text, group) in enumerate(zip(texts, asked_groups(source.task), strict=True)):
            near = None if group is None else self.apart.get(group)
            why = self.known.get(text, near or (ASKED if text in kept else None))
            if why is None:
                kept[text] = place
            else:
                dropped[why].append(ids[place])
        if TEST in dropped and entry.overlap == "refuse":
            found = dropped[TEST]
            raise UserError(
                f"setting '{setting}': {len(found)} of {len(texts)} inputs of {source.what} are "
                f"test inputs of task '{self.task.name}' too ({some(found)}): take them out, or "
                "set overlap: drop to leave them out"
            )
        if dropped:
            count = sum(map(len, dropped.values()))
            reasons = ", ".join(
                f"{len(of)} {'is' if len(of) == 1 else 'are'} {why} ({some(of)})"
                for why, of in dropped.items()
            )
            text = f"{count} of {len(texts)} inputs of {source.what} are left out: {reasons}"
            if not kept:
                raise UserError(f"setting '{setting}': {text}: nothing is left to ask")
            self.notes.append(text)
        return list(kept.values()), texts

    def _prefix(self, name: str, ids: Iterable[str]) -> str:
        """The name, with a number where another's questions would have an id of these."""
        names, number = list(ids), 1
        prefix = name
        while any(f"{prefix}:{one}" in self.taken for one in names):
            number += 1
            prefix = f"{name}#{number}"
        return prefix


def reader_of(
    experiment: Experiment,
    task: Task,
    prompting: Prompting | None,
    train: Sequence[TrainingExample],
    validation: Sequence[TrainingExample],
) -> Unlabelled:
    """A reader that knows what must not be asked; its first note counts the training examples
    that are test inputs.

    Args:
        train: the training examples that are asked, none where they are not.
        validation: those that choose the epoch.
    """
    ids = [example.id for example in train]
    trained = task.on_training(ids).asked_texts() if ids else []
    held_out = [task.on_validation([e.id for e in validation])]
    if experiment.training.tuning_fraction is not None:
        template = None if prompting is None else prompting.template
        halves = tuning_halves(experiment, task, template)
        held_out.append(task.on_training([e.id for half in halves for e in half]))
    known = dict.fromkeys(trained, ASKED)
    apart: dict[str, str] = {}
    for part, why in [*((part, HELD_OUT) for part in held_out), (task, TEST)]:
        known.update(dict.fromkeys(part.asked_texts(), why))
        apart.update((group, why) for group in asked_groups(part) if group is not None)
    both = [name for name, text in zip(ids, trained, strict=True) if known[text] == TEST]
    notes: list[str] = []
    if both:
        notes.append(
            f"{len(both)} of {len(ids)} training examples of task '{task.name}' are test inputs "
            f"too ({some(both)}): they are kept, since the task adapters train on them"
        )
    taken = {*ids, *(example.id for example in validation)}
    return Unlabelled(experiment, task, prompting, known, apart, taken, notes)


def _unlabelled(question: Question, name: str) -> Question:
    query = replace(question.query, id=name)
    return replace(question, query=query, gold=None, gold_text=None)
