"""What a generation request asks for: the harness's reading of its `gen_kwargs`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from muscle.types import Output, lost

DEFAULT_MAX_GEN_TOKS = 256

NAN = "the model's logits are NaN"
"""Why a row has no text, where an argmax would still give it some."""

_TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class Plan:
    """One request's decoding: stop strings (EOS included), new tokens, arguments of generate."""

    until: tuple[str, ...]
    max_new_tokens: int
    arguments: dict[str, Any]

    @property
    def sampled(self) -> bool:
        return bool(self.arguments.get("do_sample"))

    @property
    def alone(self) -> bool:
        """Sampling draws from one generator and beams stop together: one row at a time."""
        return self.sampled or int(self.arguments.get("num_beams") or 1) > 1

    @property
    def manner(self) -> str:
        """Equal for plans that differ in their number of new tokens only."""
        return json.dumps([self.until, self.arguments], sort_keys=True)


@dataclass(frozen=True, slots=True)
class Start:
    """A context, already cut to the window, to go on from by a plan; what seeds its sampling.

    `shortened` says whether the cut took its beginning.
    """

    context: list[int]
    plan: Plan
    seed_key: str
    shortened: bool = False


def make_plan(generation: str, eos: str | None, context_length: int) -> Plan:
    """The harness's reading of `gen_kwargs` (a JSON object).

    Token limits have the harness's aliases and default (256); without `do_sample` a
    temperature above 0 samples and 0 is greedy; EOS is always a stop string.

    Raises:
        ValueError: not an object, several sequences asked for, or no room for new tokens.
    """
    kwargs = json.loads(generation) if generation else {}
    if not isinstance(kwargs, dict):
        raise ValueError("its generation settings are not a JSON object")
    until = kwargs.pop("until", None) or []
    until = [until] if isinstance(until, str) else list(until)
    if eos is not None and eos not in until:
        until.append(eos)
    limits = [kwargs.pop(name, None) for name in _TOKEN_LIMITS]
    limit = int(next((value for value in limits if value is not None), DEFAULT_MAX_GEN_TOKS))
    if kwargs.get("max_length") is not None:  # of prompt and answer together
        limit = int(kwargs["max_length"]) - context_length
    kwargs.pop("max_length", None)
    kwargs.pop("use_cache", None)
    if int(kwargs.get("num_return_sequences", 1)) != 1:
        raise ValueError("num_return_sequences must be 1")
    if limit < 1:
        raise ValueError("its generation settings leave no room for a token")
    temperature = float(kwargs.get("temperature") or 0.0)
    sampled = kwargs.get("do_sample")
    kwargs["do_sample"] = temperature > 0.0 if sampled is None else bool(sampled)
    if not kwargs["do_sample"]:
        kwargs.pop("temperature", None)
    return Plan(tuple(until), limit, kwargs)


def truncated(context: list[int], max_new_tokens: int, max_length: int) -> list[int]:
    """The last tokens of a context that leave room for the new ones in the window.

    Raises:
        ValueError: there is no room, or the context has no tokens.
    """
    room = max_length - max_new_tokens
    if room < 1:
        raise ValueError(
            f"max_gen_toks {max_new_tokens} leaves no room for a prompt in the window of "
            f"{max_length} tokens: set a smaller max_gen_toks"
        )
    if not context:
        raise ValueError("the context has no tokens")
    return context[-room:]


def written(text: str, until: Sequence[str], ended: bool, shortened: bool) -> Output:
    """A generated text as an output: cut at its stop strings, with what did not fit.

    Args:
        text: all that was decoded.
        ended: a stop was met before or at the most tokens that there may be.
        shortened: the prompt lost its beginning.
    """
    shown = cut(text, until)
    # A stop string that came together over more tokens than the harness watches ends it too.
    return Output(text=shown, truncated=lost(shortened, not ended and shown == text))


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the stop strings, which the harness removes one after the other."""
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text
