"""Candidate answers where a model writes its own: what old and new say, and the right one.

A written answer has no given choices. So each input gets a few: both teachers' greedy answers,
some that are drawn from each, and the right one where somebody labelled the input. From there
on they are scored like given choices, by length.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from muscle.errors import UserError
from muscle.types import Answer, Query, Question, Request

DRAWN = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "num_beams": 1}
"""How a sample is drawn: from the model's own distribution."""


@dataclass(frozen=True)
class Candidates:
    """Questions with candidates for answers; `same` are ids of inputs with only one."""

    questions: list[Question]
    same: tuple[str, ...]


def writing_query(question: Question, samples: int) -> Query:
    """What a teacher is asked: its own answer by the task's settings, then `samples` drawn."""
    (request,) = question.query.requests
    settings = {**json.loads(request.generation or "{}"), **DRAWN}
    drawn = replace(request, generation=json.dumps(settings, sort_keys=True))
    return replace(question.query, requests=(request, *[drawn] * samples))


def written(answer: Answer) -> list[str]:
    """The texts of one teacher's answer, none where it has none."""
    return [output.text for output in answer.outputs if output.text is not None]


def with_candidates(
    questions: Sequence[Question], texts: Sequence[Mapping[str, Sequence[str]]]
) -> Candidates:
    """Questions with the K >= 2 different answers that are known of each.

    Args:
        questions: of generation.
        texts: of each teacher, by question's id, in the order of preference.

    Answers that differ by white space around them are one; an empty one is none.
    """
    found, same = [], []
    for question in questions:
        gold = [] if question.gold_text is None else [question.gold_text]
        said = [text for of in texts for text in of.get(question.id, ())]
        unique: dict[str, str] = {}
        for text in [*gold, *said]:
            if text.strip():
                unique.setdefault(text.strip(), text)
        if len(unique) < 2:
            same.append(question.id)
            continue
        (request,) = question.query.requests
        requests = tuple(Request("loglikelihood", request.context, t) for t in unique.values())
        found.append(
            Question(
                query=replace(question.query, requests=requests),
                gold=0 if gold and gold[0].strip() else None,
                lengths=tuple(map(len, unique)),
                gold_text=question.gold_text,
            )
        )
    return Candidates(found, tuple(same))


def check_candidates(candidates: Candidates, what: str) -> None:
    """Refuse a split of which nothing is left.

    Raises:
        UserError: all candidates of all inputs are identical.
    """
    if not candidates.questions:
        raise UserError(
            f"{what}: all candidates of every input are identical (old and new write the same), "
            "so there is nothing to distil: raise compatibility.samples, add labelled inputs, or "
            "set compatibility.level: token"
        )
