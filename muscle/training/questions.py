"""Questions as the student reads them: each a tree of its answers, with the teachers' scores.

The shared prompt of an input's K answers is there once, forward and backward. Where a model
isn't known to take a tree, each answer is a row of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from muscle.errors import UserError
from muscle.evaluation.trie import Ints, Row, make_chains, make_row
from muscle.losses.choices import Targets
from muscle.models.encoding import Encoder, Pair
from muscle.models.sequences import Moved
from muscle.types import Question

Scores = Mapping[str, Mapping[str, Sequence[float]]]
"""Teacher -> question's id -> log-likelihood of each of its answers."""


@dataclass(frozen=True)
class Tree:
    """One question as the student runs it.

    rows       one tree, or a chain for each answer
    answers    of each answer (row, nodes [n] that predict its tokens, those tokens [n])
    scale [K]  what each log-likelihood is multiplied by
    gold       the right answer's place; -1 where nobody labelled the question
    scores     the teachers' log-likelihoods [K], by name
    cut        whether the prompt lost its beginning
    """

    rows: tuple[Row, ...]
    answers: tuple[tuple[int, Ints, Ints], ...]
    scale: tuple[float, ...]
    gold: int
    scores: Mapping[str, Sequence[float]]
    cut: bool = False

    @property
    def size(self) -> int:
        """Tokens that are run, rows padded to the longest."""
        return len(self.rows) * max(len(row.token_L) for row in self.rows)


@dataclass(frozen=True)
class ChoiceBatch(Moved):
    """One micro-batch of B rows of Q questions with A answers in all.

    input_ids, position_ids [B, L], ends [B, L] as in `Row`, padded with 0; `scored` [N] are the
    places of B x L at which something is scored; `teachers` log-likelihoods [A] by name.
    """

    input_ids: Tensor
    position_ids: Tensor
    ends: Tensor
    scored: Tensor
    targets: Targets
    teachers: Mapping[str, Tensor]


@dataclass(frozen=True)
class ChoiceData:
    """All questions of a split, as `muscle.models.sequences.Rows`.

    left_out: ids of those that can't teach: a teacher has no scores of them.
    """

    trees: list[Tree]
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.trees)

    @property
    def truncated(self) -> int:
        """How many prompts lost their beginning."""
        return sum(tree.cut for tree in self.trees)

    def size(self, index: int) -> int:
        """Tokens that are run for a question."""
        return self.trees[index].size

    def targets(self, index: int) -> int:
        """The loss is a mean over questions: each counts once."""
        return 1

    def all_targets(self) -> int:
        """The number of questions."""
        return len(self.trees)

    def collate(self, indices: Sequence[int], pad: int) -> ChoiceBatch:
        """One micro-batch of these questions, in their order."""
        trees = [self.trees[index] for index in indices]
        rows = [row for tree in trees for row in tree.rows]
        length = max(len(row.token_L) for row in rows)
        first, answer = 0, 0  # of the question at hand: its first row, its first answer
        places, tokens, owners, grids = [], [], [], []
        for tree in trees:
            for number, (row, node_n, token_n) in enumerate(tree.answers):
                places.append((first + row) * length + node_n)
                tokens.append(token_n)
                owners.append(np.full(len(token_n), answer + number, dtype=np.int64))
            grids.append(np.arange(answer, answer + len(tree.answers)))
            first, answer = first + len(tree.rows), answer + len(tree.answers)
        scored_N, place_E = np.unique(np.concatenate(places), return_inverse=True)
        order_E = np.argsort(place_E, kind="stable")
        targets = Targets(
            place=torch.from_numpy(place_E[order_E]),
            token=torch.from_numpy(np.concatenate(tokens)[order_E]),
            answer=torch.from_numpy(np.concatenate(owners)[order_E]),
            grid=_padded(grids, -1),
            scale=torch.tensor([s for tree in trees for s in tree.scale], dtype=torch.float64),
            gold=torch.tensor([tree.gold for tree in trees]),
        )
        teachers = {
            name: torch.tensor([s for tree in trees for s in tree.scores[name]]) * targets.scale
            for name in trees[0].scores
        }
        return ChoiceBatch(
            input_ids=_padded([row.token_L for row in rows], pad),
            position_ids=_padded([row.position_L for row in rows], 0),
            ends=_padded([row.end_L for row in rows], 0),
            scored=torch.from_numpy(scored_N),
            targets=targets,
            teachers=teachers,
        )


def choice_data(
    questions: Sequence[Question],
    tokenizer: object,
    max_length: int,
    scores: Scores,
    length_normalised: bool,
    tree: bool,
) -> ChoiceData:
    """Questions as trees of tokens, by the student's own tokenizer.

    A sequence longer than max_length loses its beginning. A question that a teacher gave no
    scores is left out and named.

    Args:
        scores: those of the loss's teachers; every question of theirs has K.
        tree: whether the student takes a tree; else each answer runs alone.

    Raises:
        UserError: no question, one without tokens or longer than max_length in an answer alone,
            scores of another number of answers.
    """
    if not questions:
        raise UserError("there are no inputs to distil on")
    known = [q for q in questions if all(q.id in of for of in scores.values())]
    if not known:
        raise UserError(
            "no input has a score of every answer by every teacher: see why in the notes of "
            "their artifacts, and shorten the inputs or raise evaluation.max_length"
        )
    pairs = iter(_pairs(known, tokenizer))
    trees = []
    for question in known:
        mine = [next(pairs) for _ in question.query.requests]
        by_name = {name: of[question.id] for name, of in scores.items()}
        if any(len(found) != len(mine) for found in by_name.values()):
            raise UserError(
                f"input {question.id!r} has {len(mine)} answers, and a teacher's scores are of "
                "another number: delete the artifacts of kind 'scores' and run again"
            )
        scale = _scale(question, length_normalised)
        trees.append(tree_of(question, mine, max_length, tree, scale, by_name))
    there = {question.id for question in known}
    return ChoiceData(trees, tuple(q.id for q in questions if q.id not in there))


def _pairs(questions: Sequence[Question], tokenizer: object) -> list[Pair]:
    requests = [(q, request) for q in questions for request in q.query.requests]
    chats = [question.query.chat is not None for question, _ in requests]
    pairs = Encoder(tokenizer).scored([request for _, request in requests], chats)
    found = []
    for (question, _), pair in zip(requests, pairs, strict=True):
        if isinstance(pair, str):
            raise UserError(f"input {question.id!r}: {pair}")
        found.append(pair)
    return found


def _scale(question: Question, length_normalised: bool) -> tuple[float, ...]:
    """1, or the mean length over each answer's: by length, and still as large as before."""
    if not length_normalised:
        return (1.0,) * len(question.query.requests)
    lengths = [max(1, length) for length in question.lengths]
    mean = sum(lengths) / len(lengths)
    return tuple(mean / length for length in lengths)


def tree_of(
    question: Question,
    pairs: Sequence[Pair],
    max_length: int,
    tree: bool,
    scale: tuple[float, ...],
    scores: Mapping[str, Sequence[float]],
) -> Tree:
    """One question's tree, from the tokens of its answers; arguments as `choice_data`'s, and
    `scale` as `Tree.scale`.

    Raises:
        UserError: an answer alone is longer than max_length.
    """
    sequences, targets, cut = [], [], False
    for pair in pairs:
        if len(pair.continuation) > max_length:
            raise UserError(
                f"input {question.id!r}: an answer has {len(pair.continuation)} tokens, more than "
                f"training.max_length {max_length}"
            )
        whole = pair.context + pair.continuation
        cut |= len(whole) > max_length + 1
        ids_L = np.array(whole[-(max_length + 1) :], dtype=np.int64)
        sequences.append(ids_L[:-1])
        targets.append(ids_L[-len(pair.continuation) :])
    starts = [len(s) - len(t) for s, t in zip(sequences, targets, strict=True)]
    chains = make_chains(sequences, starts)
    parts = [chains] if tree else [[chain] for chain in chains]
    rows = tuple(make_row(part, 0) for part in parts)
    answers: dict[int, tuple[int, Ints, Ints]] = {}
    for number, (row, part) in enumerate(zip(rows, parts, strict=True)):
        for chain, path in zip(part, row.paths, strict=True):
            for member in chain.members:
                nodes = path[starts[member] : len(sequences[member])]
                answers[member] = (number, nodes, targets[member])
    gold = -1 if question.gold is None else question.gold
    in_order = tuple(answers[k] for k in range(len(pairs)))
    return Tree(rows, in_order, scale, gold, scores, cut)


def _padded(arrays: Sequence[Ints], value: int) -> Tensor:
    """[B, L], `value` on the right."""
    out_BL = np.full((len(arrays), max(map(len, arrays))), value, dtype=np.int64)
    for row, array in enumerate(arrays):
        out_BL[row, : len(array)] = array
    return torch.from_numpy(out_BL)
