"""Candidate answers: to their end, once each, by whatever ends an answer."""

import json
import math
from pathlib import Path

import pytest
import torch
from tiny import make_model, make_tokenizer, save_model

from muscle.candidates import Written, delimiter_of, with_candidates, writing_query, written
from muscle.errors import UserError
from muscle.evaluation.engine import Engine
from muscle.training.questions import choice_data
from muscle.types import Answer, Output, Query, Question, Request

CONTEXT = "The quick brown fox"


def asked(gold: str | None = " dog", chat: bool = False) -> Question:
    request = Request("generate_until", CONTEXT, "", json.dumps({"until": ["\n"]}))
    return Question(Query("q", (request,), "{}" if chat else None), gold_text=gold)


def requests_of(*said: Written, end_of_turn: str | None = None) -> list[Request]:
    one = asked(chat=end_of_turn is not None)
    (question,) = with_candidates([one], [{"q": said}], end_of_turn).questions
    return list(question.query.requests)


def test_an_answer_is_scored_to_its_end_and_one_that_was_cut_is_not() -> None:
    found = requests_of(Written(" fox"), Written(" lazy dog and", whole=False))
    assert [(r.kind, r.continuation) for r in found] == [
        ("loglikelihood_to_end", " dog"),
        ("loglikelihood_to_end", " fox"),
        ("loglikelihood", " lazy dog and"),
    ]
    assert all(r.context == CONTEXT and not r.generation for r in found)


def test_a_chats_answer_ends_with_its_turn() -> None:
    cut = Written(" lazy", whole=False)
    found = requests_of(Written(" fox"), cut, end_of_turn="<|im_end|>")
    assert [(r.kind, r.continuation) for r in found] == [
        ("loglikelihood", " dog<|im_end|>"),
        ("loglikelihood", " fox<|im_end|>"),
        ("loglikelihood", " lazy"),
    ]


def test_answers_that_differ_by_white_space_are_one_and_the_whole_one_is_taken() -> None:
    found = requests_of(Written(" fox ", whole=False), Written("fox"), Written(" dog\n"))
    assert [(r.kind, r.continuation) for r in found] == [
        ("loglikelihood_to_end", " dog"),
        ("loglikelihood_to_end", "fox"),
    ]
    (question,) = with_candidates([asked()], [{"q": [Written(" fox")]}]).questions
    assert question.gold == 0 and question.lengths == (3, 3)
    assert with_candidates([asked()], [{"q": [Written(" dog "), Written(" ")]}]).same == ("q",)


def test_a_delimiter_that_a_decoder_dropped_is_put_back() -> None:
    """Llama-2's drops a space at the start: "fox" would be glued to the prompt's last word."""
    said = [Written("fox"), Written("\nlazy dog")]
    assert delimiter_of([asked(), asked(None), asked(" fox")]) == " "
    assert delimiter_of([asked(), asked("fox")]) == delimiter_of([asked(None)]) == ""
    (question,) = with_candidates([asked()], [{"q": said}], delimiter=" ").questions
    assert [r.continuation for r in question.query.requests] == [" dog", " fox", "\nlazy dog"]


def test_two_templates_have_the_same_candidates_in_the_same_order() -> None:
    """New's template writes an empty thought before the right answer, old's none."""
    golds = {"old": "dog", "new": "<think></think>dog"}
    said = [{"q": [Written("dog"), Written("fox")]}, {"q": [Written("<think></think>dog")]}]
    found = {}
    for version, other in (("old", "new"), ("new", "old")):
        one = asked(golds[version], chat=True)
        (question,) = with_candidates([one], said, other_golds={"q": golds[other]}).questions
        found[version] = [r.continuation for r in question.query.requests]
    assert found == {"old": [golds["old"], "fox"], "new": [golds["new"], "fox"]}


def test_what_a_teacher_wrote_says_whether_it_was_cut() -> None:
    outputs = [
        Output(text=" a", truncated=None),
        Output(text=" b", truncated="prompt"),
        Output(text=" c", truncated="answer"),
        Output(text=" d", truncated="prompt and answer"),
    ]
    assert written(Answer("q", tuple(outputs))) == [
        Written(" a"), Written(" b"), Written(" c", False), Written(" d", False)
    ]  # fmt: skip
    assert len(writing_query(asked(), samples=2).requests) == 3


@pytest.mark.parametrize("tree", [True, False])
def test_engine_and_student_read_the_end(tree: bool, tmp_path: Path) -> None:
    """Both give log P(answer) + log P(EOS | answer), which the bare model says too."""
    path, tokenizer = save_model(tmp_path, "Llama"), make_tokenizer()
    (question,) = with_candidates([asked()], [{"q": [Written(" lazy dog")]}]).questions
    engine = Engine(path, None, {"base": None}, "float32", None, device="cpu")
    (answer,) = engine.answer("base", [question.query])
    data = choice_data([question], tokenizer, 64, {}, False, tree)
    model = make_model("Llama")
    for output, (_, _, target), request in zip(
        answer.outputs, data.trees[0].answers, question.query.requests, strict=True
    ):
        start = tokenizer(CONTEXT)["input_ids"]
        ids = [*tokenizer(CONTEXT + request.continuation)["input_ids"], tokenizer.eos_token_id]
        assert list(target) == ids[len(start) :]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(float(logprobs[i - 1, ids[i]]) for i in range(len(start), len(ids)))
        assert output.loglikelihood == pytest.approx(expected, rel=1e-5)


def test_whole_answers_are_events_that_exclude_each_other(tmp_path: Path) -> None:
    """Their probabilities add up to at most 1, though one begins as the other does; those of
    beginnings need not."""
    path = save_model(tmp_path, "Llama")
    said = [Written(t) for t in (" lazy", " lazy dog", " lazy dog and", " fox")]
    engine = Engine(path, None, {"base": None}, "float32", None, device="cpu")
    (question,) = with_candidates([asked()], [{"q": said}]).questions
    (answer,) = engine.answer("base", [question.query])
    scores = [o.loglikelihood for o in answer.outputs]
    assert sum(math.exp(s) for s in scores if s is not None) <= 1
    bare = tuple(Request("loglikelihood", CONTEXT, r.continuation) for r in question.query.requests)
    (shorter,) = engine.answer("base", [Query("bare", bare)])
    for whole, beginning in zip(answer.outputs, shorter.outputs, strict=True):
        assert whole.loglikelihood is not None and beginning.loglikelihood is not None
        assert whole.loglikelihood < beginning.loglikelihood


def test_a_tokenizer_without_an_end_is_one_line() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    (question,) = with_candidates([asked()], [{"q": [Written(" fox")]}]).questions
    with pytest.raises(UserError, match=r"'q'.*no EOS to end an answer with"):
        choice_data([question], tokenizer, 64, {}, False, True)
