"""How `muscle evaluate` speaks to each of its models."""

from collections.abc import Mapping

from muscle.bases import Base
from muscle.config import Evaluation, PromptingConfig
from muscle.errors import UserError
from muscle.served import ServedBase, served_prompting
from muscle.tasks import Task
from muscle.tasks.prompting import Prompting


def called_chat(prompting: Prompting | None) -> str | None:
    """What tells one chat template from another; None: plain text."""
    if prompting is None:
        return None
    return prompting.chat_name if prompting.template is None else prompting.template.name


class Promptings:
    """How each model is spoken to: chats by its own template, other tasks as the settings say."""

    def __init__(self, config: Evaluation, bases: Mapping[str, Base]):
        self.config, self.bases = config, bases
        self._plain: dict[str, Prompting | None] = {}
        self._chats: dict[tuple[str, str | None], Prompting] = {}

    def of(self, name: str, task: Task) -> Prompting | None:
        """None: as plain text.

        Raises:
            UserError: no template, one that can't be used, settings that would be ignored.
        """
        given = self.config.models[name].chat_template
        if isinstance(self.bases[name], ServedBase):
            return served_prompting(self.config.prompting, given, task.is_chat)
        if task.is_chat:
            return self._of_chats(name, task)
        if given is not None:
            raise UserError(
                f"a Jinja file as chat template of '{name}' is for tasks of chats, which "
                f"'{task.name}' is not: leave it out, or name one of the tokenizer's templates"
            )
        if name not in self._plain:
            self._plain[name] = _prompting(self.config.prompting, self.bases[name])
        return self._plain[name]

    def _of_chats(self, name: str, task: Task) -> Prompting:
        from muscle.chats import load_template
        from muscle.models.load import load_tokenizer

        asked = self.config.prompting
        for setting in ("system_instruction", "fewshot_as_multiturn"):
            if getattr(asked, setting):
                raise UserError(
                    f"--{setting.replace('_', '-')} is for tasks of plain text: the chats of "
                    f"'{task.name}' bring their own messages"
                )
        if isinstance(asked.apply_chat_template, str):
            raise UserError(
                f"--chat-template {asked.apply_chat_template!r} is no file: the chats of "
                f"'{task.name}' are rendered by each model's own template, or by a Jinja file"
            )
        place = (name, task.date)
        if place not in self._chats:
            base, given = self.bases[name].config, self.config.models[name]
            tokenizer = load_tokenizer(base.model, base.revision)
            template = load_template(name, given, tokenizer, task.date)
            self._chats[place] = Prompting(template=template)
        return self._chats[place]


def _prompting(config: PromptingConfig, base: Base) -> Prompting | None:
    """How this base is spoken to; None: as plain text."""
    if not config.apply_chat_template:
        plain = Prompting(config.system_instruction, None, None, config.fewshot_as_multiturn)
        return None if plain.is_plain else plain
    from muscle.models.chat import chat_fingerprint, chat_renderer
    from muscle.models.load import load_tokenizer

    tokenizer = load_tokenizer(base.config.model, base.config.revision)
    name = config.apply_chat_template
    template = name if isinstance(name, str) else None
    return Prompting(
        config.system_instruction,
        chat_renderer(tokenizer, template),
        chat_fingerprint(tokenizer, template),
        config.fewshot_as_multiturn,
    )
