"""Chat templates: messages to text exactly as lm-evaluation-harness's HFLM renders them."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from muscle.errors import UserError

Messages = list[dict[str, str]]
ChatRenderer = Callable[[Messages, bool], str]


def chat_renderer(tokenizer: Any, template: str | None = None) -> ChatRenderer:
    """A function (messages, open an assistant's turn) -> text, by the tokenizer's template.

    Without an assistant's turn to open, the last message is left open, to be continued. A
    template that refuses a system message gets the messages without it, as in HFLM.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: the name of one of its templates, if it has several; None is the one
            called "default". A tokenizer with a single template uses that, whatever the name.

    Raises:
        UserError: no template, or none of that name; from the function, a template that
            refuses the messages.
    """
    source = chat_template(tokenizer, template)
    name = _name(tokenizer)

    def render(messages: Messages, open_turn: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages,
                chat_template=source,
                tokenize=False,
                add_generation_prompt=open_turn,
                continue_final_message=not open_turn,
            )
        )

    def render_safely(messages: Messages, open_turn: bool = True) -> str:
        from jinja2 import TemplateError

        try:
            try:
                return render(messages, open_turn)
            except TemplateError:
                return render([m for m in messages if m["role"] != "system"], open_turn)
        except Exception as error:  # a template can fail in any way
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the chat template of {name} refuses the messages ({reason}): leave the "
                "template out, or send few-shot examples in one message"
            ) from error

    return render_safely


def chat_template(tokenizer: Any, template: str | None = None) -> str:
    """The Jinja text of the template that `chat_renderer` uses.

    Raises:
        UserError: no template, or none of that name.
    """
    found = getattr(tokenizer, "chat_template", None)
    name = _name(tokenizer)
    if not found:
        raise UserError(
            f"{name} has no chat template: leave --apply-chat-template out, or name the model's "
            "chat variant"
        )
    if isinstance(found, str):
        return found
    wanted = template or "default"
    if wanted not in found:
        raise UserError(
            f"{name} has no chat template called '{wanted}': name one of "
            f"{', '.join(sorted(found))} in --apply-chat-template"
        )
    return str(found[wanted])


def chat_fingerprint(tokenizer: Any, template: str | None = None) -> str:
    """sha256 over what `chat_renderer` depends on: the template and the special tokens.

    Raises:
        UserError: no template, or none of that name.
    """
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    text = json.dumps([chat_template(tokenizer, template), special], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _name(tokenizer: Any) -> str:
    path = getattr(tokenizer, "name_or_path", "")
    return f"the tokenizer of model '{path}'" if path else "the tokenizer"
