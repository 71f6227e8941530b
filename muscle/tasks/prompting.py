"""How one model is spoken to: plain text, or its chat template."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muscle.errors import UserError

if TYPE_CHECKING:
    from muscle.models.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True)
class Prompting:
    """What the harness calls its chat settings; the default is plain text.

    system_instruction    stands before the task's own description
    chat                  renders messages ({"role", "content"}) to text; its second
                          argument says whether an assistant's turn is opened at the end
                          (else the last message is left open, to be continued)
    chat_name             tells one `chat` from another, for keys and messages
    fewshot_as_multiturn  each few-shot example is a turn of its own, else all of the
                          prompt is one message of the user
    template              for tasks whose examples are chats: the version's own template
    server                for such tasks: the chats go to a server, which renders them itself

    It changes what a model is asked, never how an answer is judged.

    Raises:
        UserError: turns without a chat template.
    """

    system_instruction: str | None = None
    chat: Callable[[list[dict[str, str]], bool], str] | None = None
    chat_name: str | None = None
    fewshot_as_multiturn: bool = False
    template: "ChatTemplate | None" = None
    server: bool = False

    def __post_init__(self) -> None:
        if self.fewshot_as_multiturn and self.chat is None:
            raise UserError(
                "few-shot examples can be turns of a chat (--fewshot-as-multiturn) only with "
                "--apply-chat-template"
            )

    @property
    def is_plain(self) -> bool:
        """Whether the prompts are the task's own."""
        return self.chat is None and not self.system_instruction


PLAIN = Prompting()
