"""One line of a sample log: what was asked, what was answered, what is right."""

import json
import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from muscle.tasks.examples import question


def call_of(call: Mapping[str, Any]) -> tuple[str, str]:
    """(context, continuation) of one request; the continuation of a generation is ""."""
    texts = [call[name] if name in call else "" for name in ("arg_0", "arg_1")]
    context, rest = (t if isinstance(t, str) else json.dumps(t, ensure_ascii=False) for t in texts)
    return context, rest if isinstance(texts[1], str) else ""


def loglikelihoods(
    filtered: Sequence[Any], resps: Sequence[Any], calls: Sequence[tuple[str, str]]
) -> list[float] | None:
    """One log-likelihood per request; None where text was generated."""
    found = []
    for answer, raw in zip(filtered, resps, strict=True):
        # A pair (log-likelihood, is_greedy) per request, which a filter may have left listed.
        pair = raw[0] if isinstance(raw, list) and raw else None
        if not isinstance(pair, list) or len(pair) != 2 or str(pair[1]) not in ("True", "False"):
            return None
        if isinstance(answer, list) and len(answer) == 2 and not isinstance(answer[0], list):
            pair = answer
        found.append(float(pair[0]))
    return found if len(found) == len(calls) else None


def choices_of(
    calls: Sequence[tuple[str, str]], lls: Sequence[float] | None, delimiter: str
) -> tuple[list[str] | None, str]:
    """(the choices' texts or None, the question)."""
    # acc_mutual_info also scores each choice without its question, after the others.
    half = len(calls) // 2
    extra = len(calls) > 2 and half * 2 == len(calls) and all(c == "" for c, _ in calls[half:])
    asked = list(calls[:half] if extra and any(c for c, _ in calls[:half]) else calls)
    shown = question([SimpleNamespace(args=call) for call in asked])
    if lls is None or len(asked) < 2:
        return None, shown
    if len({context for context, _ in asked}) > 1:
        # The choices stand in the contexts, before one continuation (Winogrande).
        return [context for context, _ in asked], shown
    ends = [end for _, end in asked]
    if delimiter and all(end.startswith(delimiter) for end in ends):
        ends = [end[len(delimiter) :] for end in ends]
    return ends, shown


def gold_of(target: str, choices: Sequence[str] | None) -> tuple[str | None, str | None]:
    """(the gold answer if the target is an index, if it is a text); of several the first."""
    if choices is None:
        return None, target
    number = re.match(r"\s*\[?\s*(\d{1,6})\s*(?:,[\s\d,]*)?\]?\s*$", target)
    index = int(number.group(1)) if number else len(choices)
    by_index = choices[index] if index < len(choices) else None
    if target in choices:
        return by_index, target
    return by_index, target if by_index is None else None


def said(filtered: Sequence[Any], lls: Sequence[float] | None, gold: str | None) -> str | None:
    """The answer of an example without choices."""
    if lls is not None:
        # Of one given text it is only known whether the model would have written it.
        greedy = isinstance(filtered[0], list) and str(filtered[0][-1]) == "True"
        return gold if greedy and len(filtered) == 1 else ""
    answer = filtered[0]
    while isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def written(resps: Sequence[Any]) -> str:
    """What the model wrote, before the filters; several times: as a JSON list."""
    texts = [
        text for answers in resps for text in (answers if isinstance(answers, list) else [answers])
    ]
    if len(texts) == 1 and isinstance(texts[0], str):
        return texts[0]
    return json.dumps(texts, ensure_ascii=False)


def own_id(document: Mapping[str, Any]) -> str | None:
    value = document.get("id")
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value) or None
