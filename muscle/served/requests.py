"""A request of ours as a body for a server, and the server's answer as an output of ours."""

import json
from collections.abc import Mapping
from typing import Any

from muscle.errors import UserError
from muscle.evaluation.plan import Plan, make_plan, written
from muscle.evaluation.requests import does_nothing
from muscle.evaluation.sampling import seed_number
from muscle.served.failures import Endpoint, RowError
from muscle.types import Output

# Known to vLLM, llama.cpp, SGLang and TGI, not to OpenAI itself; sent only where a task asks.
_PASSED = ("presence_penalty", "frequency_penalty", "repetition_penalty")
_PASSED_SAMPLING = ("top_p", "top_k", "min_p")


def plan_of(generation: str) -> Plan:
    """What a request's generation settings ask for.

    Raises:
        UserError: a setting that isn't understood, or needs a tokenizer.
    """
    try:
        kwargs = json.loads(generation) if generation else {}
        if isinstance(kwargs, dict) and kwargs.get("max_length") is not None:
            raise UserError(
                "generation setting 'max_length' counts the prompt's tokens, which only the server "
                "can: set max_gen_toks"
            )
        return make_plan(generation, None, 0)
    except (ValueError, TypeError) as error:
        raise UserError(f"generation settings {generation[:80]}: {error}") from None


def decoding(plan: Plan, seed_key: str) -> dict[str, Any]:
    """The fields of a request that say how an answer is written.

    What neither the task nor `extra_body` sets is as the server has it.

    Args:
        seed_key: of what is sampled: its query and its place in it.

    Raises:
        UserError: a setting that these servers don't know.
    """
    given = {n: v for n, v in plan.arguments.items() if v is not None and n != "do_sample"}
    body: dict[str, Any] = {"max_tokens": plan.max_new_tokens}
    stops = [stop for stop in plan.until if stop]
    if stops:
        body["stop"] = stops
    body |= {name: given.pop(name) for name in _PASSED if name in given}
    if plan.sampled:
        body["temperature"] = float(given.pop("temperature", 1.0))
        body |= {name: given.pop(name) for name in _PASSED_SAMPLING if name in given}
        body["seed"] = seed_number(seed_key) % 2**31
    else:
        body["temperature"] = 0.0
        for name in _PASSED_SAMPLING:  # transformers ignores them, too
            given.pop(name, None)
    for name, value in given.items():
        if not does_nothing(name, value, plan.sampled):
            raise UserError(
                f"generation setting {name!r} ({value!r}) is not known to OpenAI-compatible "
                "servers: use --backend transformers"
            )
    return body


def with_extra(body: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """A body with the user's fields over ours; null takes a field out."""
    return {k: v for k, v in {**body, **extra}.items() if v is not None}


def first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one choice of an answer.

    Raises:
        RowError: there is none, or an error in its place.
    """
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        what = f": {json.dumps(answer['error'])[:150]}" if answer.get("error") else ""
        raise RowError(f"the server answered without choices{what}", passing=True)
    found: Mapping[str, Any] = choices[0]
    return found


BROKEN_OFF = ("error", "abort", "cancelled")
"""What servers call an end that was none."""


def output_of(answer: Mapping[str, Any], endpoint: Endpoint, plan: Plan) -> Output:
    """A generated text, cut at its stop strings where the server left them.

    Raises:
        RowError: there is no text.
    """
    choice = first_choice(answer)
    ended = choice.get("finish_reason")
    if ended == "content_filter":
        raise RowError("the server withheld the answer (content_filter)", passing=False)
    if ended in BROKEN_OFF or answer.get("error"):
        said = answer.get("error") or f"finish_reason {ended}"
        raise RowError(f"the server broke the answer off ({said})", passing=True)
    text = choice.get("text") if endpoint == "completions" else _content(choice.get("message"))
    if not isinstance(text, str):
        raise RowError("the server's answer has no text", passing=True)
    # JSON can escape half a character, which no file of ours could hold.
    text = text.encode("utf-8", "replace").decode()
    return written(text, plan.until, ended != "length", shortened=False)


def _content(message: Any) -> str | None:
    """What an assistant said: its text, else its tool calls as JSON."""
    if not isinstance(message, dict):
        return None
    content = message.get("content")
    if isinstance(content, str) and content:
        return content
    if isinstance(content, list):
        return "".join(str(p.get("text") or "") for p in content if isinstance(p, dict))
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        called = [call.get("function") for call in calls if isinstance(call, dict)]
        return json.dumps(called, ensure_ascii=False)
    return ""  # an answer of no words, or all of it was thought
