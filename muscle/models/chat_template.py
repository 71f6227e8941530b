"""A version's own chat template: whole chats to text, and where in it the model is to write.

Rendering is transformers' (`apply_chat_template`, sandboxed Jinja); what is ours is that no
template reads the clock, and that the assistant's turns are found in what it makes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date as Date
from functools import cached_property
from pathlib import Path
from typing import Any

from muscle.errors import UserError
from muscle.models.chat import chat_template

DATE = "2024-07-26"
"""Today, to every template, where `task.date` doesn't say otherwise: a day of the past, so that
a prompt is the same on every day."""

Message = Mapping[str, Any]

_CLOCK = "strftime_now"
_MARK = "zyx"


@dataclass(frozen=True)
class Rendered:
    """A chat as text.

    turns      character ranges that the model is to write, an assistant's turn each, from what
               follows the opened turn to the end-of-turn token, that included
    rewritten  whether the template writes earlier turns otherwise once later ones follow, so
               that only the last one stands here as a model would have written it
    """

    text: str
    turns: tuple[tuple[int, int], ...]
    rewritten: bool = False


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """One base's way to write chats; compare by `name`.

    source       the Jinja text
    name         a fingerprint of all that changes what it makes: template, special tokens, date
    end_of_turn  the text of the token that ends an assistant's turn
    owner        whose it is, for messages

    Raises:
        UserError: from `prompt` and `conversation`, with the template's own reason.
    """

    source: str
    name: str
    end_of_turn: str
    owner: str
    tokenizer: Any = field(repr=False)
    date: str = DATE

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """The chat with an assistant's turn opened at its end: what a model is asked."""
        return self._render(messages, tools, True)

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> Rendered:
        """The chat up to its last assistant's turn, and where the assistant's turns are.

        Raises:
            UserError: no assistant's turn; a turn that isn't what the template opens, or that
                loses the answer or its end.
        """
        places = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not places:
            raise UserError("the chat has no assistant's turn")
        whole = self._render(messages[: places[-1] + 1], tools, False)
        turns = []
        for place in places:
            opened = self._render(messages[:place], tools, True)
            closed = self._render(messages[: place + 1], tools, False)
            start, end = self._turn(opened, closed, messages[place])
            if whole.startswith(closed[:end]):
                turns.append((start, end))
        return Rendered(whole, tuple(turns), len(turns) < len(places))

    def ignores(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
    ) -> bool:
        """Whether the chat's tools leave no trace in what is rendered."""
        return bool(tools) and self.prompt(messages, tools) == self.prompt(messages)

    def _turn(self, opened: str, closed: str, message: Message) -> tuple[int, int]:
        """The range of the last turn in `closed`, its end-of-turn included."""
        if not closed.startswith(opened):
            raise UserError(
                f"the chat template of {self.owner} opens an assistant's turn in other words than "
                f"it keeps one ({opened[-40:]!r} when opened): give a template that does both alike"
            )
        end = closed.rfind(self.end_of_turn, len(opened))
        content = message.get("content")
        if end < 0:
            raise UserError(
                f"the chat template of {self.owner} ends this assistant's turn without "
                f"{self.end_of_turn!r}: an adapter trained on it would never learn to stop"
            )
        if isinstance(content, str) and content.strip() not in closed[len(opened) : end]:
            raise UserError(
                f"the chat template of {self.owner} changes or drops an assistant's answer "
                f"({content[:40]!r}), so it can't be trained"
            )
        return len(opened), end + len(self.end_of_turn)

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, opened: bool
    ) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=[dict(tool) for tool in tools] if tools else None,
                    chat_template=self._timeless,
                    tokenize=False,
                    add_generation_prompt=opened,
                    **self._dates,
                )
            )
        except Exception as error:  # a template can fail in any way
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the chat template of {self.owner} fails: {reason}") from error

    @cached_property
    def _timeless(self) -> str:
        """The template with a clock that stands still.

        transformers gives templates a `strftime_now` of its own, and lets no function of ours
        in; a macro of that name comes before it.
        """
        if _CLOCK not in self.source:
            return self.source
        macro = f"{{%- macro {_CLOCK}(format) -%}}{{{{ muscle_dates[format] }}}}{{%- endmacro %}}"
        # The line break that Jinja drops after a block must not be the template's own.
        return macro + "\n" + self.source

    @cached_property
    def _dates(self) -> dict[str, Any]:
        today = Date.fromisoformat(self.date)
        formats = {text for text in _constants(self.source) if "%" in text}
        return {
            "muscle_dates": {text: today.strftime(text) for text in formats},
            "date_string": today.strftime("%d %b %Y"),
        }


def load_chat_template(
    tokenizer: Any, file: str | None = None, date: str | None = None
) -> ChatTemplate:
    """The template of a Jinja file, else the tokenizer's own ("default" of several).

    Args:
        date: today, as the template is told; ISO. Default: `DATE`.

    Raises:
        UserError: no template, a file that can't be read, a bad date, a template that fails on
            a simple chat, or that writes no end-of-turn token after an answer.
    """
    date = date or DATE
    try:
        Date.fromisoformat(date)
    except ValueError:
        raise UserError(f"setting 'task.date' is {date!r}: write a date as 2024-07-26") from None
    source = chat_template(tokenizer) if file is None else _read(file)
    path = getattr(tokenizer, "name_or_path", "") or "this tokenizer"
    owner = f"model '{path}'" if file is None else file
    told = date if _CLOCK in source or "date_string" in source else None
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    text = json.dumps([source, special, told], sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    template = ChatTemplate(source, name, "", owner, tokenizer, date)
    return ChatTemplate(source, name, _end_of_turn(template), owner, tokenizer, date)


def _end_of_turn(template: ChatTemplate) -> str:
    """The first special token that the template writes after an answer."""
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    before, _, rest = template._render(chat, None, False).rpartition(_MARK)
    known = {str(token) for token in template.tokenizer.added_tokens_decoder.values()}
    found = [(rest.index(token), -len(token), token) for token in known if token in rest]
    if not found:
        raise UserError(
            f"the chat template of {template.owner} writes no end-of-turn token after an "
            f"assistant's answer (but {rest!r}): an adapter trained by it would never learn to "
            "stop; let it write the tokenizer's end token there"
        )
    asked = template.prompt(chat[:1])
    if before.startswith(asked) and before[len(asked) :].strip():
        raise UserError(
            f"the chat template of {template.owner} has no generation prompt: it keeps an answer "
            f"after {before[len(asked) :].strip()!r} and asks for one without; let it write that "
            "where add_generation_prompt is set"
        )
    return min(found)[2]


def _constants(source: str) -> set[str]:
    """All texts that stand in a template's code."""
    from jinja2 import Environment, TemplateError, nodes

    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
    except TemplateError:  # said when it is rendered, or a tag that only transformers knows
        return {part for quote in "\"'" for part in source.split(quote)}
    return {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"chat template {file} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"chat template {file} can't be read: {error}") from None
