"""Candidate answers where a model writes its own: what old and new say, and the right one.

A written answer has no given choices. So each input gets a few: both teachers' greedy answers,
some that are drawn from each, and the right one where somebody labelled the input. From there
on they are scored like given choices, and to their end: without it "seventy" would be likelier
than "seventy one" whatever was asked, and nobody would learn to stop.
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


@dataclass(frozen=True)
class Written:
    """An answer as a model wrote it; `whole`: it came to its end within the tokens it had."""

    text: str
    whole: bool = True


def writing_query(question: Question, samples: int) -> Query:
    """What a teacher is asked: its own answer by the task's settings, then `samples` drawn."""
    (request,) = question.query.requests
    settings = {**json.loads(request.generation or "{}"), **DRAWN}
    drawn = replace(request, generation=json.dumps(settings, sort_keys=True))
    return replace(question.query, requests=(request, *[drawn] * samples))


def written(answer: Answer) -> list[Written]:
    """One teacher's answers, none where it has none."""
    return [
        Written(output.text, output.truncated not in ("answer", "prompt and answer"))
        for output in answer.outputs
        if output.text is not None
    ]


def with_candidates(
    questions: Sequence[Question],
    texts: Sequence[Mapping[str, Sequence[Written]]],
    end_of_turn: str | None = None,
    delimiter: str = "",
    other_golds: Mapping[str, str] | None = None,
) -> Candidates:
    """Questions with the K >= 2 different answers that are known of each.

    Args:
        questions: of generation.
        texts: of each teacher, by question's id, in the order of preference.
        end_of_turn: what ends an answer of a chat; None: plain text, which ends with EOS.
        delimiter: the white space between prompt and answer, put back where a tokenizer's
            decoder dropped it.
        other_golds: the right answers as the other version's template has them, by question's
            id: both versions are to have the same candidates in the same order.

    Answers that differ by white space around them are one; an empty one is none.
    """
    found, same = [], []
    for question in questions:
        right = question.gold_text or ""
        unique = {right.strip(): Written(right)} if right.strip() else {}
        golds = {*unique, (other_golds or {}).get(question.id, "").strip()}
        for one in (said for of in texts for said in of.get(question.id, ())):
            name = one.text.strip()
            if name and name not in golds and (name not in unique or not unique[name].whole):
                bare = not one.text[0].isspace()
                unique[name] = replace(one, text=delimiter + one.text) if bare else one
        if len(unique) < 2:
            same.append(question.id)
            continue
        (request,) = question.query.requests
        requests = tuple(_scored(request.context, one, end_of_turn) for one in unique.values())
        found.append(
            Question(
                query=replace(question.query, requests=requests),
                gold=0 if right.strip() else None,
                lengths=tuple(map(len, unique)),
                gold_text=question.gold_text,
            )
        )
    return Candidates(found, tuple(same))


def delimiter_of(questions: Sequence[Question]) -> str:
    """The white space that right answers begin with, where all begin with the same."""
    texts = [q.gold_text for q in questions if q.gold_text and q.gold_text.strip()]
    found = {text[: len(text) - len(text.lstrip())] for text in texts}
    return found.pop() if len(found) == 1 else ""


def _scored(context: str, one: Written, end_of_turn: str | None) -> Request:
    """What is scored of an answer: with its end, where it has come to it."""
    if not one.whole:
        return Request("loglikelihood", context, one.text)
    if end_of_turn is None:
        return Request("loglikelihood_to_end", context, one.text)
    return Request("loglikelihood", context, one.text + end_of_turn)


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
