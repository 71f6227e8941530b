"""Older releases that answer beside an update's versions (`also`), to see what is lost since."""

from dataclasses import dataclass

from muscle import copies
from muscle.bases import Base, resolve_base
from muscle.chats import load_template
from muscle.config import Experiment, VersionConfig
from muscle.errors import UserError
from muscle.released import open_release
from muscle.report.older import labelled
from muscle.tasks import Task
from muscle.tasks.prompting import Prompting


@dataclass(frozen=True)
class Older:
    """An older release under its label: its settings, its base and adapter pinned, and how it is
    spoken to where that is by a chat template of its own."""

    label: str
    version: VersionConfig
    base: Base
    prompting: Prompting | None = None

    @property
    def adapter(self) -> str:
        """The directory of its adapter."""
        assert self.base.config.adapter is not None  # a release has one
        return self.base.config.adapter

    @property
    def fingerprint(self) -> str:
        """What stands for its adapter in keys."""
        assert self.base.given_adapter is not None
        return self.base.given_adapter

    @property
    def chat(self) -> str | None:
        """What tells its chat template from another; None without one."""
        template = None if self.prompting is None else self.prompting.template
        return None if template is None else template.name

    @property
    def called(self) -> str:
        """The base as the user calls it."""
        revision = self.version.revision
        return self.version.model + (f"@{revision}" if revision else "")


def _prompting(label: str, version: VersionConfig, date: str | None) -> Prompting:
    """By the release's own template: its file, else its tokenizer's."""
    from muscle.models.load import load_tokenizer

    if version.chat_template is not None:
        version = version.model_copy(update={"chat_template": copies.fetch(version.chat_template)})
    tokenizer = load_tokenizer(version.model, version.revision)
    return Prompting(template=load_template(label, version, tokenizer, date))


def resolve_older(experiment: Experiment, old: Base, task: Task) -> list[Older]:
    """The releases that `also` names, as they answer a task.

    Raises:
        UserError: a name twice, no release, one whose files or base aren't there any more, whose
            template renders no chats, or what old is too.
    """
    found = []
    for label, path in labelled(experiment.also, "setting 'also'").items():
        try:
            released = open_release(path)
            version = VersionConfig.model_validate({**released.version(), "release": released.path})
        except UserError as error:
            raise UserError(f"setting 'also': {error}") from None
        base = resolve_base(version, f"setting 'also' ({label})")
        if (base.fingerprint, base.given_adapter) == (old.fingerprint, old.given_adapter):
            raise UserError(
                f"setting 'also': {path} is old itself, whose flips the report counts anyhow: give "
                "an older release, or leave it out"
            )
        date, who = experiment.task.date, f"setting 'also' ({label})"
        prompting = _prompting(who, version, date) if task.is_chat else None
        found.append(Older(label, version, base, prompting))
    return found
