"""Chats of the user's own files: read, and refused where a model could not be asked them."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from muscle.config import TaskConfig
from muscle.errors import UserError, some
from muscle.tasks.examples import row_ids
from muscle.tasks.files import Row, read_rows

GOLD = "gold"
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Chat:
    """One row: what is asked, the right answer, and the row as it stands in the file.

    messages  up to the question; the gold answer is no part of them
    gold      a text, or a JSON object or list; None where nobody labelled it
    where     file, row and id, for messages
    """

    id: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    gold: Any
    row: dict[str, Any]
    where: str

    @property
    def text(self) -> str:
        """The chat in plain words, the same for all versions."""
        return plain_text(self.messages)

    @property
    def asked(self) -> str:
        """The chat as a JSON object, as `Query.chat` has it."""
        return json.dumps({"messages": self.messages, "tools": self.tools}, ensure_ascii=False)


def read_chats(config: TaskConfig, key: str, path: str) -> list[Chat]:
    """The chats of a file, with ids that are there and unique.

    Raises:
        UserError: file or row that can't be used, naming file, row and id.
    """
    chats, seen = [], dict[str, int]()
    for row in read_rows(path, f"task.{key}"):
        where = f"{path}, row {row.number}"
        name = _id(row, where)
        if name in seen:
            raise UserError(f"{where}: the id {name!r} is that of row {seen[name]} too")
        seen[name] = row.number
        chats.append(_chat(config, row, name, f"{where} ({name})"))
    return chats


def read_unlabelled(config: TaskConfig, path: str, setting: str) -> list[Chat]:
    """The chats of a file without their right answers, a last turn of the assistant's included.

    Rows without ids of their own are called by their numbers.

    Raises:
        UserError: file or row that can't be used, naming file and row.
    """
    rows = read_rows(path, setting)
    ids = row_ids([row.fields for row in rows], [str(row.number) for row in rows])
    return [
        _chat(config, row, name, f"{path}, row {row.number}", labelled=False)
        for row, name in zip(rows, ids, strict=True)
    ]


def plain_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Messages as `role: content` lines; calls of tools as JSON."""
    lines = []
    for message in messages:
        text = message.get("content") or ""
        if message.get("tool_calls"):
            text += (" " if text else "") + json.dumps(message["tool_calls"], ensure_ascii=False)
        lines.append(f"{message['role']}: {text}")
    return "\n".join(lines)


def overlaps(train: Sequence[Chat], test: Sequence[Chat], group: str | None) -> dict[str, str]:
    """Training ids that the test knows -> why: the same id, the same chat, or the same group.

    Chats are the same where their messages are but for case and white space.
    """
    ids = {chat.id for chat in test}
    texts = {normal_text(chat): chat.id for chat in test}
    groups = {group_of(chat, group): chat.id for chat in test} if group else {}
    found = {}
    for chat in train:
        if chat.id in ids:
            found[chat.id] = "id"
        elif normal_text(chat) in texts:
            found[chat.id] = "chat"
        elif group and group_of(chat, group) in groups:
            found[chat.id] = f"'{group}'"
    return found


def overlap_text(found: Mapping[str, str], total: int, which: str) -> str:
    """What `overlaps` found, in words."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, why in found.items():
        by_reason[why].append(name)
    parts = [f"{len(names)} by {why} ({some(names)})" for why, names in by_reason.items()]
    head = f"{len(found)} of {total} {which} chats also stand in the test file"
    return f"{head}: {', '.join(parts)}"


def groups_of(chats: Iterable[Chat], column: str | None) -> dict[str, str]:
    """id -> the value of a column, which every row must have; without one the chat's own text.

    Raises:
        UserError: a row without it.
    """
    return {chat.id: group_of(chat, column) if column else normal_text(chat) for chat in chats}


def group_of(chat: Chat, column: str) -> str:
    """The value of a column, which its row must have. Raises UserError: it hasn't."""
    value = chat.row.get(column)
    if value is None:
        raise UserError(
            f"{chat.where}: no field '{column}', by which task.group keeps rows together "
            f"(fields: {', '.join(chat.row)})"
        )
    return json.dumps(value, sort_keys=True)


def normal_text(chat: Chat) -> str:
    """What tells a chat's messages from others, without regard to case and white space."""
    return " ".join(chat.text.casefold().split())


def _id(row: Row, where: str) -> str:
    value = row.fields.get("id")
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{where}: no 'id' (fields: {', '.join(row.fields)}): give each row one")
    return str(value)


def _chat(config: TaskConfig, row: Row, name: str, where: str, labelled: bool = True) -> Chat:
    messages = _messages(row.fields.get("messages"), where)
    target = config.target or GOLD
    gold = row.fields.get(target) if labelled else None
    if messages[-1]["role"] == "assistant" and not labelled:
        messages.pop()
    elif messages[-1]["role"] == "assistant":
        last = messages.pop()
        if gold is None:
            gold = last.get("content")
        elif gold != last.get("content"):
            raise UserError(
                f"{where}: the last message is the assistant's and differs from '{target}': leave "
                "one of them out"
            )
    if gold is None and labelled:
        raise UserError(
            f"{where}: no right answer: neither a field '{target}' nor a last message of the "
            f"assistant's (fields: {', '.join(row.fields)})"
        )
    if messages[-1]["role"] not in ("user", "tool"):
        raise UserError(f"{where}: the last message is {messages[-1]['role']}: nothing is asked")
    return Chat(name, messages, _tools(row.fields.get("tools"), where), gold, row.fields, where)


def _messages(value: Any, where: str) -> list[dict[str, Any]]:
    """The messages of a row, if a chat can go so.

    Raises:
        UserError: no messages, an unknown role, roles out of order, a message without text.
    """
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: no 'messages': give a list of {{role, content}}")
    before = None
    found: list[dict[str, Any]] = []
    for number, message in enumerate(value, 1):
        at = f"{where}: message {number}"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise UserError(f"{at} has the role {role!r}: known are {', '.join(ROLES)}")
        # Parquet gives every message every field of any of them.
        message = {key: inner for key, inner in message.items() if inner is not None}
        _check_order(message, before, at)
        content = message.get("content")
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise UserError(f"{at} has the content {str(content)[:40]!r}: it must be a text")
        found.append(message)
        before = message
    return found


def _check_order(message: Mapping[str, Any], before: Mapping[str, Any] | None, at: str) -> None:
    role, last = message["role"], None if before is None else before["role"]
    called = before is not None and bool(before.get("tool_calls"))
    allowed = {
        "system": last is None,
        "user": last in (None, "system") or (last == "assistant" and not called),
        "assistant": last in ("user", "tool"),
        "tool": called or last == "tool",
    }
    if not allowed[role]:
        after = "comes first" if last is None else f"follows {last}"
        raise UserError(
            f"{at} is {role} and {after}: a chat is system (at most one, first), then user and "
            "assistant in turn, tool only after an assistant's tool_calls"
        )


def _tools(value: Any, where: str) -> list[dict[str, Any]] | None:
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UserError(f"{where}: 'tools' must be a list of objects (JSON schemas of functions)")
    return value
