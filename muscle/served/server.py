"""One OpenAI-compatible server: requests, and what its refusals mean.

The openai client retries with exponential backoff (and as long as Retry-After says, up to two
minutes) what may pass: 408, 409, 429, 5xx, cut and silent connections. What is left after that
is either the end of the whole evaluation (`UserError`: a key that isn't taken, a model that isn't
there) or of one row (`RowError`).
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import openai

from muscle.config import ServerConfig
from muscle.errors import UserError
from muscle.served.failures import Endpoint, MissingError, RowError, one_line
from muscle.settings import KEY_VARIABLE

LOOK_S = 30.0
"""How long a server may take to say what it serves."""

_PATHS = {"chat": "chat/completions", "completions": "completions"}


class Server:
    """A connection; use it in `async with`.

    Raises:
        UserError: a setting names a variable that isn't set.
    """

    def __init__(self, url: str, config: ServerConfig):
        self.url, self.config = url, config
        self.key = key = _key(config)
        # A redirect would carry the key, or the prompts, to whoever it names.
        self.http = openai.DefaultAsyncHttpxClient(follow_redirects=False)
        # Else an organisation's name of the environment goes to whatever server is asked.
        left_out: Any = {f"OpenAI-{name}": openai.Omit() for name in ("Organization", "Project")}
        # The client insists on a key unless each request says that it sends none.
        self.headers: Any = {} if key else {"Authorization": openai.Omit()}
        self.client = openai.AsyncOpenAI(
            base_url=url,
            api_key=key or "none",
            default_headers=left_out,
            timeout=config.timeout_s,
            max_retries=config.retries,
            http_client=self.http,
        )
        self.known: list[str] | None = None  # the names of its models, once it has told

    async def __aenter__(self) -> "Server":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def post(self, endpoint: Endpoint, body: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer to a request, as a JSON object.

        Raises:
            UserError: what no other row would survive.
            RowError: this request has no answer.
            MissingError: the server has no such endpoint.
        """
        rest = {k: v for k, v in body.items() if k not in ("model", "messages", "prompt")}
        raw: Any
        try:
            if endpoint == "chat":
                raw = await self.client.chat.completions.with_raw_response.create(
                    model=body["model"],
                    messages=body["messages"],
                    extra_body=rest,
                    extra_headers=self.headers,
                )
            else:
                raw = await self.client.completions.with_raw_response.create(
                    model=body["model"],
                    prompt=body["prompt"],
                    extra_body=rest,
                    extra_headers=self.headers,
                )
            return read_object(raw.text)
        except openai.APITimeoutError:
            seconds = f"{self.config.timeout_s:g} s"
            raise RowError(f"the server was silent for {seconds}", passing=True) from None
        except openai.APIConnectionError as error:
            raise RowError(f"the connection failed: {cause(error)}", passing=True) from None
        except openai.APIStatusError as error:
            if error.status_code == 404 and self.known is None:
                await self.models()
            raise self._refusal(error, endpoint, str(body["model"])) from None

    async def models(self) -> list[dict[str, Any]] | None:
        """What it serves, None where it doesn't tell.

        Raises:
            UserError: nobody answers there, or it takes no such key.
        """
        try:
            client = self.client.with_options(
                timeout=min(LOOK_S, self.config.timeout_s), max_retries=min(1, self.config.retries)
            )
            raw = await client.models.with_raw_response.list(extra_headers=self.headers)
            listed = read_object(raw.text).get("data")
        except openai.APIConnectionError as error:
            raise UserError(
                f"no server answers at {self.url} ({cause(error)}): start it, or mend --base-url"
            ) from None
        except openai.APIStatusError as error:
            if error.status_code in (401, 403) or 300 <= error.status_code < 400:
                raise self._refusal(error, "chat", "") from None
            return None
        except RowError:
            return None
        found = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        self.known = [str(one.get("id")) for one in found]
        return found

    async def look(self, path: str) -> tuple[Any, str]:
        """(JSON value or None, `server` header) of a page of the server, outside /v1."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            answer = await self.http.get(
                self.url.removesuffix("/v1") + path, headers=headers, timeout=LOOK_S
            )
            return (answer.json() if answer.is_success else None), answer.headers.get("server", "")
        except Exception:  # whatever it is: it only tells who answers
            return None, ""

    def _refusal(self, error: openai.APIStatusError, endpoint: Endpoint, model: str) -> Exception:
        status, words = error.status_code, said(error)
        if status in (401, 403):
            variable = self.config.api_key_env
            what = "the key in" if os.environ.get(variable) else "requests without a key; set"
            return UserError(
                f"{self.url} refuses {what} the environment variable {variable} ({status}: {words})"
            )
        if 300 <= status < 400:
            where = error.response.headers.get("location", "another place")
            return UserError(
                f"{self.url} sends requests on to {one_line(where)}, and the key is not taken "
                "there: name the server itself in --base-url"
            )
        if status == 404 and self._unknown(model, words):
            listed = ", ".join(self.known[:20]) if self.known else "it doesn't say which it has"
            return UserError(f"{self.url} has no model {model!r}: it serves {listed}")
        if status in (404, 405, 501):
            return MissingError(f"{self.url} has no {_PATHS[endpoint]}")
        passing = status in (408, 409, 429) or status >= 500
        return RowError(f"the server answered {status}: {words}", passing)

    def _unknown(self, model: str, words: str) -> bool:
        """Whether a 404 is about the model, not the endpoint."""
        return "model" in words.lower() or (self.known is not None and model not in self.known)


def read_object(text: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RowError: it is none.
    """
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RowError(f"the server answered what is no JSON object: {text[:80]!r}", passing=True)
    return value


def said(error: openai.APIStatusError) -> str:
    """What a server says is wrong, in one line, without what looks like a key."""
    text = error.response.text
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(name):
            value = value[name]
    return one_line(value if isinstance(value, str) else text) or "without a word"


def cause(error: BaseException) -> str:
    """The innermost reason of a failed connection."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(str(error)) or type(error).__name__


def _key(config: ServerConfig) -> str | None:
    key = os.environ.get(config.api_key_env) or None
    if key is None and config.api_key_env != KEY_VARIABLE:
        raise UserError(
            f"setting 'evaluation.server.api_key_env' names {config.api_key_env}, which is not "
            "set: set it, or leave the setting out"
        )
    return key
