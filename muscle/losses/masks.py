"""Which teacher teaches which token (PAPER.md, "Training"; §4 and Table 7 of the paper).

A mask decides from what is known of N tokens: true where the old model teaches, false where
the new one does. It names what it reads, so that nothing else is computed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from muscle.config import MaskName


@dataclass(frozen=True)
class Prediction:
    """What one model says of N tokens; None is what the mask doesn't read.

    best [N]: its most likely token; gold_logprob [N]: log p(gold) at T = 1, natural.
    """

    best: Tensor | None = None
    gold_logprob: Tensor | None = None


@dataclass(frozen=True)
class TokenFacts:
    """What a mask may look at: gold [N], the sequence [N] that each token belongs to."""

    gold: Tensor
    sequence: Tensor
    student: Prediction
    old: Prediction


Reads = Literal["best", "likelihood"] | None
"""The fact of a model that a mask looks at."""


@dataclass(frozen=True)
class Mask:
    """decide(facts) is a boolean tensor [N].

    student, old: what it reads of each model; a mask that reads of the old teacher needs it on
    every token. whole: it decides for whole sequences at once.
    """

    decide: Callable[[TokenFacts], Tensor]
    student: Reads = None
    old: Reads = None
    whole: bool = False


def _known(fact: Tensor | None) -> Tensor:
    assert fact is not None, "a mask reads a fact that it does not name"
    return fact


def _student_wrong(f: TokenFacts) -> Tensor:
    return _known(f.student.best) != f.gold


def _old_right(f: TokenFacts) -> Tensor:
    return _known(f.old.best) == f.gold


def _token_likelihood(f: TokenFacts) -> Tensor:
    return _known(f.student.gold_logprob) < _known(f.old.gold_logprob)


def _sequence_likelihood(f: TokenFacts) -> Tensor:
    # The paper prints a sum of indicators; we compare the summed log-likelihoods.
    gap = _known(f.student.gold_logprob) - _known(f.old.gold_logprob)
    _, index = f.sequence.unique(return_inverse=True)
    total = gap.new_zeros(int(index.max()) + 1).index_add_(0, index, gap)
    return (total < 0)[index]


def _always_old(f: TokenFacts) -> Tensor:
    return torch.ones_like(f.gold, dtype=torch.bool)


def _never_old(f: TokenFacts) -> Tensor:
    return torch.zeros_like(f.gold, dtype=torch.bool)


MASKS: dict[MaskName, Mask] = {
    "student-wrong": Mask(_student_wrong, student="best"),
    "old-right": Mask(_old_right, old="best"),
    "token-likelihood": Mask(_token_likelihood, student="likelihood", old="likelihood"),
    "sequence-likelihood": Mask(_sequence_likelihood, "likelihood", "likelihood", whole=True),
    "always-old": Mask(_always_old),
    "never-old": Mask(_never_old),
}
