"""How a served model is spoken to: the server has the chat template, so messages go as they are."""

import json
from typing import Any

from muscle.config import PromptingConfig
from muscle.errors import UserError
from muscle.tasks.prompting import Prompting
from muscle.types import Query, Request

NAME = "the server's own"
"""The `Prompting.chat_name` of messages that a server renders; stands in keys."""

_MARK = '{"messages": '


def served_prompting(
    config: PromptingConfig, template: str | None, is_chat: bool
) -> Prompting | None:
    """How a served model is spoken to; None: as plain text.

    Args:
        template: a Jinja file that was given for the model.
        is_chat: whether the task's examples are chats.

    Raises:
        UserError: a chat template, which is the server's to choose; settings that chats of the
            user's own don't take.
    """
    name = template or config.apply_chat_template
    if isinstance(name, str):
        raise UserError(
            f"--chat-template {name!r}: a server renders chats with its own template: use "
            "--apply-chat-template, and start the server with the one you want"
        )
    if is_chat:
        for setting in ("system_instruction", "fewshot_as_multiturn"):
            if getattr(config, setting):
                raise UserError(
                    f"--{setting.replace('_', '-')} is for tasks of plain text: the chats of a "
                    "task with 'format: chat' bring their own messages"
                )
        return Prompting(chat_name=NAME, server=True)
    if config.apply_chat_template:
        return Prompting(
            config.system_instruction, messages_as_text, NAME, config.fewshot_as_multiturn
        )
    plain = Prompting(config.system_instruction, None, None, config.fewshot_as_multiturn)
    return None if plain.is_plain else plain


def messages_as_text(messages: list[dict[str, str]], open_turn: bool = True) -> str:
    """Messages as JSON, where a chat template would have made text of them.

    Raises:
        UserError: the task begins the assistant's turn itself, which no server has to go on from.
    """
    if not open_turn:
        raise UserError(
            "this task begins the assistant's turn itself (gen_prefix), and a server's chat can't "
            "go on from there: leave --apply-chat-template out, or use --backend transformers"
        )
    return _MARK + json.dumps(messages, ensure_ascii=False) + "}"


def chat_of(query: Query, request: Request, rendered: bool) -> dict[str, Any] | None:
    """{"messages": […], "tools": […]?} of a request, None for plain text.

    Args:
        rendered: whether contexts are what `messages_as_text` made.
    """
    text = query.chat
    if text is None and rendered and request.context.startswith(_MARK):
        text = request.context
    if text is None:
        return None
    value: dict[str, Any] = json.loads(text)
    return {key: value[key] for key in ("messages", "tools") if value.get(key)}
