"""Judges of written answers, each of which says why.

A scorer is a function (answer, gold, row) -> `Score`. A reason is `OUTCOME` or
`OUTCOME: details`; outcomes are few and fixed, so that a report can count them
(`muscle.metrics.outcomes`).
"""

import importlib
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from muscle.errors import UserError
from muscle.tasks.rouge import rouge1

RIGHT = "right"
PYTHON = "python:"

MOST = 200
"""Characters of a reason."""


@dataclass(frozen=True, slots=True)
class Score:
    """One answer's value, higher is better, and why; further metrics by name.

    value  None: the scorer failed, and the reason says how
    """

    value: float | None
    reason: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)


Scorer = Callable[[str, Any, Mapping[str, Any]], Score]


def make_scorer(name: str, labels: Sequence[str] = ()) -> tuple[Scorer, str, tuple[str, ...]]:
    """(the scorer, its deciding metric, its further metrics).

    Args:
        name: exact, label, json_fields, rouge1 or python:MODULE:FUNCTION. The last runs the
            user's own code: it may only come from what that user has named.
        labels: what `label` accepts as answers.

    Raises:
        UserError: no such module or function.
    """
    if name == "exact":
        return exact, "exact_match", ()
    if name == "label":
        return label_scorer(labels), "label_match", ()
    if name == "json_fields":
        return json_fields, "json_match", ("field_accuracy",)
    if name == "rouge1":
        return _rouge1, "rouge1", ()
    return python_scorer(name), "score", ()


def exact(answer: str, gold: Any, row: Mapping[str, Any]) -> Score:
    """1 where both texts are equal but for white space at their ends."""
    right = answer.strip() == as_text(gold).strip()
    return Score(float(right), RIGHT if right else "another text")


def label_scorer(labels: Sequence[str]) -> Scorer:
    """1 where the answer is the gold label, whatever its case, white space, quotes or full stop."""
    known = {_bare(label): label for label in labels}

    def score(answer: str, gold: Any, row: Mapping[str, Any]) -> Score:
        given = known.get(_bare(answer))
        if given is None:
            return Score(0.0, _reason("not a label", repr(answer.strip())))
        if _bare(given) == _bare(as_text(gold)):
            return Score(1.0, RIGHT)
        return Score(0.0, _reason("another label", given))

    return score


def json_fields(answer: str, gold: Any, row: Mapping[str, Any]) -> Score:
    """1 where the answer is a JSON object with exactly the gold object's fields and values.

    A fence of three backticks around it is taken off. `field_accuracy` is the share of the
    gold's fields that have their value.
    """
    found = _parsed(answer)
    if isinstance(found, _Broken):
        return Score(0.0, _reason("invalid JSON", found.why), {"field_accuracy": 0.0})
    if not isinstance(found, dict):
        return Score(0.0, _reason("no JSON object", type(found).__name__), {"field_accuracy": 0.0})
    wrong = [
        f"{name} {_short(found[name])} instead of {_short(value)}"
        for name, value in gold.items()
        if name in found and not _equal(found[name], value)
    ]
    missing = [name for name in gold if name not in found]
    extra = [name for name in found if name not in gold]
    right = 1 - (len(wrong) + len(missing)) / len(gold) if gold else 1.0
    share = {"field_accuracy": right}
    if not (wrong or missing or extra):
        return Score(1.0, RIGHT, share)
    parts = wrong + [f"{name} is missing" for name in missing]
    parts += [f"{str(name)[:40]} is too much" for name in extra]
    return Score(0.0, _reason("other fields", "; ".join(parts)), share)


def python_scorer(name: str) -> Scorer:
    """The user's function(answer, row) -> a number, or (a number, why).

    What it raises, and what is no finite number, leaves the row unscored.

    Raises:
        UserError: no such module or function.
    """
    _, module, function = name.split(":")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # the user's own code runs on import
        raise UserError(
            f"setting 'task.scorer': module '{module}' can't be imported "
            f"({type(error).__name__}: {' '.join(str(error).split())[:150]}): is it on PYTHONPATH?"
        ) from error
    if not callable(found):
        raise UserError(f"setting 'task.scorer': module '{module}' has no function '{function}'")

    def score(answer: str, gold: Any, row: Mapping[str, Any]) -> Score:
        try:
            made = found(answer, dict(row))
            value, why = made if isinstance(made, tuple) else (made, None)
            number = float(value)
        except (Exception, SystemExit) as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return Score(None, _reason("the scorer failed", said))
        if not math.isfinite(number):
            return Score(None, _reason("the scorer failed", f"it returned {number}"))
        return Score(number, None if why is None else _reason(*_halves(str(why))))

    return score


def scorer_fingerprint(name: str) -> str:
    """What tells two scorers of one name apart: a function's source, where it has one."""
    if not name.startswith(PYTHON):
        return name
    _, module, function = name.split(":")
    try:
        return name + "\n" + inspect.getsource(getattr(importlib.import_module(module), function))
    except (OSError, TypeError):  # built in, or made at run time
        return name


def as_text(gold: Any) -> str:
    """A gold answer as the text that a model is to write: objects as JSON."""
    return gold if isinstance(gold, str) else json.dumps(gold, ensure_ascii=False)


def _rouge1(answer: str, gold: Any, row: Mapping[str, Any]) -> Score:
    return Score(rouge1(answer, as_text(gold), any_script=True))


class _Broken:
    def __init__(self, why: str) -> None:
        self.why = why


def _parsed(answer: str) -> Any:
    text = answer.strip()
    fenced = re.fullmatch(r"```[A-Za-z]*\s*\n(.*?)\n?```", text, re.DOTALL)
    text = fenced.group(1) if fenced else text
    if not text:
        return _Broken("the answer is empty")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return _Broken(f"{' '.join(str(error).split())[:80]} in {text[:60]!r}")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _equal(one: Any, other: Any) -> bool:
    """JSON's equality: true is not 1, but 1.0 is."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _bare(text: str) -> str:
    """A label without what models write around it: case, white space, quotes, full stops."""
    return re.sub(r"\s+", " ", text).strip().strip("\"'`*.,:;!()[]").strip().casefold()


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def _halves(why: str) -> tuple[str, str]:
    outcome, _, details = why.partition(":")
    return outcome.strip(), details.strip()


def _reason(outcome: str, details: str = "") -> str:
    text = " ".join(f"{outcome}: {details}".split()) if details else outcome
    text = text.encode("utf-8", "replace").decode()  # half a character fits in no file
    return text if len(text) <= MOST else text[: MOST - 3] + "..."
