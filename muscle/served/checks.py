"""What a server must be able to do, and whether it can: one short request of each kind."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from muscle.config import ServerConfig
from muscle.errors import UserError
from muscle.served.failures import Endpoint, MissingError, RowError
from muscle.served.prompting import chat_of
from muscle.served.requests import decoding, first_choice, plan_of, with_extra
from muscle.served.scores import offers_scores, scoring_body
from muscle.tasks import Task
from muscle.tasks.prompting import Prompting
from muscle.types import Query, Request

if TYPE_CHECKING:
    from muscle.served.server import Server

Need = tuple[str, Query, Request]
"""(task, query, request): an example of something that is asked."""


def needs_of(
    tasks: Mapping[str, tuple[Task, Prompting | None]],
    config: ServerConfig,
    limit: int | None,
) -> list[Need]:
    """The first request of each task, to be tried once.

    Raises:
        UserError: a task that asks what no server of this kind answers.
    """
    found: list[Need] = []
    for name, (task, prompting) in tasks.items():
        rendered = prompting is not None and prompting.chat is not None
        query = task.queries(limit, prompting)[0]
        request = query.requests[0]
        chat = chat_of(query, request, rendered)
        if request.kind == "loglikelihood_rolling":
            raise UserError(
                f"task '{name}' scores whole documents, which a server doesn't: evaluate it with "
                "--backend transformers"
            )
        if request.kind == "loglikelihood" and (chat is not None or config.endpoint == "chat"):
            raise UserError(
                f"task '{name}' scores given answers, which servers do for plain text only "
                "(completions with logprobs), not for chats: leave the chat template out, take a "
                "task whose answers are generated, or use --backend transformers"
            )
        if chat is not None and config.endpoint == "completions":
            raise UserError(
                f"task '{name}' asks in chats and evaluation.server.endpoint is 'completions': "
                "only the server could render them; leave endpoint out"
            )
        if request.kind == "generate_until":
            decoding(plan_of(request.generation), "")
        found.append((name, query, request))
    return found


async def check_model(
    server: "Server", model: str, config: ServerConfig, needs: list[Need], rendered: bool
) -> None:
    """Ask a model one token of everything that will be asked.

    Raises:
        UserError: whatever would make all rows fail: no such model, endpoint or logprobs, fields
            that the server refuses, a server that only fails.
    """
    tried = set()
    for task, query, request in needs:
        chat = chat_of(query, request, rendered)
        endpoint: Endpoint = "chat" if chat or config.endpoint == "chat" else "completions"
        if (endpoint, request.kind, bool(query.chat)) in tried:
            continue
        tried.add((endpoint, request.kind, bool(query.chat)))
        scores = request.kind == "loglikelihood"
        body = {"model": model, **(scoring_body(request) if scores else _short(request))}
        body |= asked_of(chat, request, config) if not scores else {}
        try:
            # All tries together: who is silent now is told so in minutes, not in an hour.
            async with asyncio.timeout(config.timeout_s):
                answer = await server.post(endpoint, with_extra(body, config.extra_body))
            first_choice(answer)
        except TimeoutError:
            raise UserError(
                f"{server.url} did not answer the first request of task '{task}' within "
                f"{config.timeout_s:g} s (evaluation.server.timeout_s)"
            ) from None
        except MissingError as error:
            raise UserError(f"{error}: {_mend(endpoint, task)}") from None
        except RowError as error:
            raise UserError(
                f"{server.url} can't answer the first request of task '{task}': {error.reason}"
            ) from None
        if scores and not offers_scores(answer):
            raise UserError(
                f"task '{task}' scores given answers, and {server.url} gives no log-probabilities "
                "of a prompt (completions with echo and logprobs): take a task whose answers are "
                "generated, another server (vLLM gives them), or --backend transformers"
            )


def _short(request: Request) -> dict[str, Any]:
    return {**decoding(plan_of(request.generation), "probe"), "max_tokens": 1}


def asked_of(chat: dict[str, Any] | None, request: Request, config: ServerConfig) -> dict[str, Any]:
    """The fields that say what is asked."""
    if chat is not None:
        return chat
    if config.endpoint == "chat":
        return {"messages": [{"role": "user", "content": request.context}]}
    return {"prompt": request.context}


def _mend(endpoint: str, task: str) -> str:
    if endpoint == "chat":
        return f"task '{task}' asks in chats; is there a /v1 at the end of --base-url?"
    return (
        f"task '{task}' asks in plain text; send it as chats with --apply-chat-template (or is "
        "there a /v1 missing at the end of --base-url?)"
    )
