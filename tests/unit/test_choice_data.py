"""Questions as trees: the student scores them as the evaluation engine does, in any batches."""

from pathlib import Path

import pytest
import torch
from tiny import make_model, make_tokenizer, save_model

from muscle.config import CompatibilityConfig
from muscle.errors import UserError
from muscle.evaluation.attention import tree_masks
from muscle.evaluation.engine import Engine
from muscle.losses.choices import _Head
from muscle.models.head import head_of
from muscle.models.sequences import micro_batches
from muscle.question_tables import read_questions, write_questions
from muscle.training.questions import ChoiceData, choice_data
from muscle.training.student import Student, Teachers, tree_hidden
from muscle.types import Query, Question, Request

CHOICES = (
    [" Paris", " the capital", " the capital of France"],
    [" 67", " 12412", " 1", " dog"],
    [" yes", " no"],
)
CONTEXTS = (
    "Question: What is the capital of France?\nAnswer:",
    "12345 + 67 =",
    "The quick brown fox jumps over the lazy dog?",
)
SETTINGS = CompatibilityConfig(level="choice", teacher="mean", length_normalised=False)


def questions() -> list[Question]:
    found = []
    for number, (context, choices) in enumerate(zip(CONTEXTS, CHOICES, strict=True)):
        requests = tuple(Request("loglikelihood", context, choice) for choice in choices)
        lengths = tuple(len(choice.strip()) for choice in choices)
        gold = None if number == 1 else 1
        found.append(Question(Query(f"q{number}", requests), gold, lengths))
    return found


def teachers(asked: list[Question]) -> dict[str, dict[str, list[float]]]:
    generator = torch.Generator().manual_seed(1)

    def drawn(question: Question) -> list[float]:
        return (torch.randn(len(question.query.requests), generator=generator) * 3).tolist()

    return {name: {q.id: drawn(q) for q in asked} for name in ("old", "new")}


def data(tree: bool, length_normalised: bool = False, max_length: int = 64) -> ChoiceData:
    asked = questions()
    scores = teachers(asked)
    return choice_data(asked, make_tokenizer(), max_length, scores, length_normalised, tree)


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Gemma2"])
@pytest.mark.parametrize("tree", [True, False])
def test_the_student_scores_as_the_evaluation_engine_does(
    kind: str, tree: bool, tmp_path: Path
) -> None:
    changes = {} if kind == "Llama" else {"sliding_window": 7}
    path = save_model(tmp_path, kind, **changes)
    model = make_model(kind, **changes)
    masks = tree_masks(model) if tree else None
    assert not isinstance(masks, str)
    batch = data(tree).collate([2, 0, 1], pad=2)
    hidden = tree_hidden(model, batch, masks)
    model.requires_grad_(False)
    scores = _Head(hidden.detach(), head_of(model), batch.targets).scores()
    engine = Engine(path, None, {"base": None}, "float32", None, device="cpu")
    answers = engine.answer("base", [questions()[i].query for i in (2, 0, 1)])
    expected = [o.loglikelihood for answer in answers for o in answer.outputs]
    assert scores.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_prompt_runs_once() -> None:
    whole, alone = data(True), data(False)
    tokenizer = make_tokenizer()
    for index, context in enumerate(CONTEXTS):
        count = len(tokenizer.encode(context))
        answers = sum(len(tokenizer.encode(choice)) for choice in CHOICES[index])
        assert len(whole.trees[index].rows) == 1
        assert count <= whole.size(index) < count + answers
    first = sum(len(row.token_L) for row in alone.trees[0].rows)
    assert first >= 2 * len(tokenizer.encode(CONTEXTS[0]))


def student(tree: bool) -> Student:
    model = make_model()
    model.requires_grad_(False)
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_()
    masks = tree_masks(model) if tree else None
    assert not isinstance(masks, str)
    return Student(model, "compat", Teachers(("old", "new")), SETTINGS, masks)


def gradient(tree: bool, batches: list[list[int]]) -> tuple[float, torch.Tensor]:
    mine, asked = student(tree), data(tree)
    loss = 0.0
    for rows in batches:
        sums = mine(asked.collate(rows, pad=2))
        sums.loss.backward()
        loss += sums.loss.item()
    weight = mine.model.model.layers[0].self_attn.q_proj.weight
    assert weight.grad is not None
    return loss, weight.grad


def test_a_tree_and_any_split_into_batches_give_the_same_gradient() -> None:
    loss, expected = gradient(False, [[0], [1], [2]])
    for tree, batches in ((True, [[0, 1, 2]]), (True, [[1], [2, 0]]), (False, [[2, 1, 0]])):
        found, slope = gradient(tree, batches)
        assert found == pytest.approx(loss, rel=1e-5)
        assert torch.allclose(slope, expected, rtol=1e-3, atol=1e-6 * float(expected.abs().max()))


def test_length_normalised_scores_are_by_length_and_as_large_as_before() -> None:
    plain, by_length = (data(True, flag).collate([0], pad=2) for flag in (False, True))
    lengths = torch.tensor([len(c.strip()) for c in CHOICES[0]], dtype=torch.float64)
    expected = plain.teachers["old"] / lengths * lengths.mean()
    assert torch.allclose(by_length.teachers["old"], expected)
    assert torch.allclose(by_length.targets.scale, lengths.mean() / lengths)


def test_a_long_prompt_loses_its_beginning_and_is_counted() -> None:
    cut = data(True, max_length=8)
    # The middle one has 7 tokens and answers of one or a few.
    assert cut.truncated == sum(tree.cut for tree in cut.trees) == 2
    alone = data(False, max_length=8)
    assert max(len(row.token_L) for tree in alone.trees for row in tree.rows) == 8


def test_micro_batches_are_filled_by_tokens_of_trees() -> None:
    asked = data(True)
    assert [len(b) for b in micro_batches(asked, range(3), 1000)] == [3]
    assert sorted(micro_batches(asked, range(3), 1)) == [[0], [1], [2]]
    assert asked.all_targets() == 3 and [asked.targets(i) for i in range(3)] == [1, 1, 1]


def test_a_question_without_a_teachers_scores_is_left_out_and_named() -> None:
    asked = questions()
    scores = teachers(asked)
    del scores["old"]["q1"]
    found = choice_data(asked, make_tokenizer(), 64, scores, False, True)
    assert len(found) == 2 and found.left_out == ("q1",)
    with pytest.raises(UserError, match="no input has a score of every answer"):
        choice_data(asked[1:2], make_tokenizer(), 64, scores, False, True)


def test_what_is_wrong_with_questions_is_one_line() -> None:
    asked, tokenizer = questions(), make_tokenizer()
    with pytest.raises(UserError, match="there are no inputs"):
        choice_data([], tokenizer, 64, {}, False, True)
    wrong = {"old": {q.id: [0.0] for q in asked}}
    with pytest.raises(UserError, match="'q0' has 3 answers"):
        choice_data(asked, tokenizer, 64, wrong, False, True)
    with pytest.raises(UserError, match=r"more than training\.max_length 2"):
        choice_data(asked, tokenizer, 2, {}, False, True)
    empty = Question(Query("e", (Request("loglikelihood", "a", ""),) * 2), 0, (0, 0))
    with pytest.raises(UserError, match="input 'e': the continuation is empty"):
        choice_data([empty], tokenizer, 64, {}, False, True)


def test_questions_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    asked = [*questions(), Question(Query("w", (Request("generate_until", "x"),)), gold_text=" y")]
    write_questions(tmp_path / "q.parquet", asked)
    assert read_questions(tmp_path / "q.parquet") == asked
