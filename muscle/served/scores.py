"""Log-likelihoods of given answers, from completions that echo their prompt with logprobs.

As in the harness, trailing spaces of a context count to the answer. A server's tokens are split
where its tokenizer says; the answer's first token must begin where the context ends, or the row is
an error: the part of a token has no probability.
"""

import math
from collections.abc import Mapping
from typing import Any

from muscle.models.encoding import move_spaces
from muscle.served.failures import RowError
from muscle.served.requests import first_choice
from muscle.types import Output, Request

TIE = 1e-9
"""A logprob that is so near the best one is the best."""


def scoring_body(request: Request) -> dict[str, Any]:
    """The fields of a request that has the log-probabilities of all of its prompt answered."""
    context, rest = move_spaces(request.context, request.continuation)
    if not rest:
        raise RowError("the continuation is empty", passing=False)
    # One new token: some servers refuse none.
    return {
        "prompt": context + rest,
        "max_tokens": 1,
        "temperature": 0.0,
        "echo": True,
        "logprobs": 1,
    }


def offers_scores(answer: Mapping[str, Any]) -> bool:
    """Whether an answer to an echoed prompt has the log-probabilities of the prompt's tokens."""
    try:
        found = _Tokens(answer)
    except RowError:
        return False
    # The first token has none where nothing (no BOS) stands before it.
    return found.count > 1 and isinstance(found.logprobs[found.count - 1], int | float)


def score_of(answer: Mapping[str, Any], request: Request) -> Output:
    """The log-likelihood of a request's continuation, and whether it is the greedy one.

    Raises:
        RowError: a token spans the end of the context, or a logprob is missing.
    """
    rest = move_spaces(request.context, request.continuation)[1]
    found = _Tokens(answer)
    first = found.starting(found.end - len(rest))
    tokens = found.tokens[first : found.count] if first is not None else []
    if first is None or "".join(tokens) != rest:
        raise RowError(
            f"the server's tokens don't split where the context ends (before {rest[:40]!r})",
            passing=False,
        )
    total, greedy = 0.0, True
    for place in range(first, found.count):
        logprob = found.logprobs[place]
        if not isinstance(logprob, int | float) or not math.isfinite(logprob):
            raise RowError(
                f"the server has no log-probability for token {tokens[place - first]!r}",
                passing=False,
            )
        total += logprob
        greedy &= logprob >= found.best(place) - TIE
    return Output(loglikelihood=total, is_greedy=greedy)


class _Tokens:
    """The prompt's tokens as a server answers them: the first `count` of all.

    Offsets may count a BOS that the prompt's text doesn't have (vLLM), so only distances from the
    prompt's end are used.
    """

    def __init__(self, answer: Mapping[str, Any]):
        given = first_choice(answer).get("logprobs")
        lists = [
            given.get(name) if isinstance(given, dict) else None
            for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs")
        ]
        if (
            any(not isinstance(one, list) for one in lists)
            or len({len(x or []) for x in lists}) > 1
        ):
            raise RowError("the server's answer has no log-probabilities", passing=False)
        self.tokens, self.logprobs, self.offsets, self.top = (list(one or []) for one in lists)
        usage = answer.get("usage")
        told = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        self.count = told if isinstance(told, int) else len(self.tokens) - 1
        if not 0 < self.count <= len(self.tokens):
            raise RowError("the server's log-probabilities are not the prompt's", passing=False)

    @property
    def end(self) -> int:
        """The offset at which the prompt ends."""
        last = self.count - 1
        return int(self.offsets[last]) + len(str(self.tokens[last]))

    def starting(self, offset: int) -> int | None:
        """The prompt's token that begins at an offset."""
        return next((i for i in range(self.count) if self.offsets[i] == offset), None)

    def best(self, place: int) -> float:
        """The highest log-probability at a place.

        Raises:
            RowError: the server doesn't say.
        """
        top = self.top[place]
        if not isinstance(top, dict) or not top:
            raise RowError("the server doesn't say which token is the likeliest", passing=False)
        return max(float(value) for value in top.values())
