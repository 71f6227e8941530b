"""How the two bases of an update are spoken to, where the task's examples are chats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from muscle.config import Experiment, VersionConfig
from muscle.errors import UserError, some
from muscle.losses.needs import aligns_tokens
from muscle.splits import training_split
from muscle.tasks import Task
from muscle.tasks.prompting import Prompting
from muscle.types import TrainingExample

if TYPE_CHECKING:
    from muscle.models.chat_template import ChatTemplate

Split = tuple[list[TrainingExample], list[TrainingExample]]


@dataclass(frozen=True)
class Chats:
    """Both templates, and what follows from there being two.

    too_long     training ids whose chat passes `training.max_length` in one of the templates:
                 they train nobody, since all versions must learn the same answers
    end_of_turn  ids of the tokens that end a turn, (old's, new's), where these differ and old
                 teaches; else None
    notes        what a user should know
    """

    old: "ChatTemplate"
    new: "ChatTemplate"
    too_long: frozenset[str] = frozenset()
    end_of_turn: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()

    def template_of(self, version: str) -> "ChatTemplate":
        """The template of a version's base."""
        return self.old if version in ("old", "again") else self.new

    def prompting_of(self, version: str) -> Prompting:
        """The same as it is asked by."""
        return Prompting(template=self.template_of(version))


def chats_of(experiment: Experiment, task: Task) -> Chats | None:
    """The templates of an update; None for a task that is no chat.

    Raises:
        UserError: a template that isn't there, fails on a row or never ends a turn, one that
            no chat would read; all training chats are too long; answers whose tokens differ.
    """
    versions = {"old": experiment.old, "new": experiment.new}
    if not task.is_chat:
        for name, version in versions.items():
            _refuse_template(name, version, task)
        return None
    tokenizers = {name: _tokenizer(version) for name, version in versions.items()}
    templates = {
        name: load_template(name, version, tokenizers[name], experiment.task.date)
        for name, version in versions.items()
    }
    splits = {
        name: _named(name, experiment, task, template) for name, template in templates.items()
    }
    notes = [note for name in templates for note in task.template_notes(templates[name], name)]
    too_long = _too_long(experiment, splits, tokenizers)
    count = sum(map(len, splits["new"]))
    if too_long:
        names = sorted(too_long)
        notes.append(
            f"{len(names)} of {count} training chats are longer than training.max_length "
            f"{experiment.training.max_length} in a template and train nobody: "
            f"{some(names)}"
        )
    for part, name in zip(splits["new"], ("training", "validation"), strict=True):
        if all(example.id in too_long for example in part):
            raise UserError(
                f"every {name} chat is longer than training.max_length "
                f"{experiment.training.max_length}: raise it, or shorten the chats"
            )
    end_of_turn = None
    if aligns_tokens(experiment.compatibility):
        _check_answers(experiment, splits, too_long, tokenizers, templates)
        end_of_turn = _ends(templates, tokenizers)
    return Chats(templates["old"], templates["new"], too_long, end_of_turn, tuple(notes))


def load_template(
    name: str, version: VersionConfig, tokenizer: Any, date: str | None
) -> "ChatTemplate":
    """One version's own template; errors say whose it is.

    Raises:
        UserError: as `muscle.models.chat_template.load_chat_template`.
    """
    from muscle.models.chat_template import load_chat_template

    if version.chat_template is None and not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{name}: the tokenizer of {version.model!r} has no chat template: give a Jinja file "
            "in its setting 'chat_template', or to --chat-template"
        )
    try:
        return load_chat_template(tokenizer, version.chat_template, date)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def chat_split(experiment: Experiment, task: Task, chats: Chats | None, version: str) -> Split:
    """(training, validation) examples as a version reads them."""
    if chats is None:
        return training_split(experiment, task)
    train, validation = training_split(experiment, task, chats.template_of(version))
    kept = [[e for e in part if e.id not in chats.too_long] for part in (train, validation)]
    return kept[0], kept[1]


def _refuse_template(name: str, version: VersionConfig, task: Task) -> None:
    if version.chat_template is not None:
        raise UserError(
            f"setting '{name}.chat_template': task '{task.name}' is no task of chats "
            "(task.format: chat), so that nothing would read it: leave it out"
        )


def _tokenizer(version: VersionConfig) -> Any:
    from muscle.models.load import load_tokenizer

    return load_tokenizer(version.model, version.revision)


def _named(name: str, experiment: Experiment, task: Task, template: "ChatTemplate") -> Split:
    try:
        return training_split(experiment, task, template)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _too_long(
    experiment: Experiment, splits: Mapping[str, Split], tokenizers: Mapping[str, Any]
) -> frozenset[str]:
    from muscle.models.sequences import chat_lengths

    found: set[str] = set()
    for name, parts in splits.items():
        examples = [example for part in parts for example in part]
        lengths = chat_lengths(examples, tokenizers[name])
        for example, length in zip(examples, lengths, strict=True):
            if length > experiment.training.max_length:
                found.add(example.id)
    return frozenset(found)


def _check_answers(
    experiment: Experiment,
    splits: Mapping[str, Split],
    too_long: frozenset[str],
    tokenizers: Mapping[str, Any],
    templates: Mapping[str, "ChatTemplate"],
) -> None:
    """Refuse chats whose answers are other tokens in the two templates.

    Raises:
        UserError: names the first such chat.
    """
    from muscle.models.sequences import tokenise

    length = experiment.training.max_length
    data = {}
    kept: Sequence[TrainingExample] = ()
    for name, parts in splits.items():
        kept = [e for part in parts for e in part if e.id not in too_long]
        data[name] = tokenise(kept, tokenizers[name], length, "answer")
    for number, example in enumerate(kept):
        old, new = data["old"].answers(number), data["new"].answers(number)
        if old != new:
            raise UserError(
                f"training chat {example.id!r}: the assistant's answers are other tokens in the "
                f"chat templates of {templates['old'].owner} and {templates['new'].owner} "
                f"({len(old)} and {len(new)}), so old can't teach them: let both write the same "
                "before and after an answer's text, or set compatibility.ce_weight: 1"
            )


def _ends(
    templates: Mapping[str, "ChatTemplate"], tokenizers: Mapping[str, Any]
) -> tuple[int, int] | None:
    old, new = (
        int(tokenizers[name].convert_tokens_to_ids(templates[name].end_of_turn))
        for name in ("old", "new")
    )
    return None if old == new else (old, new)
