"""Which teacher teaches which token (PAPER.md, "Training"; §4 and Table 7 of the paper).

A mask is a function from what is known of N tokens to a boolean tensor [N]: true
where the old model teaches, false where the new one does.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from muscle.config import MaskName


@dataclass(frozen=True)
class TokenFacts:
    """What a mask may look at, for N predicted tokens.

    student_logits [N, V] and gold [N] always; old_logits [N, V] only for masks in
    `NEEDS_OLD`. `sequence` [N] numbers the example that each token belongs to.
    """

    student_logits: Tensor
    old_logits: Tensor | None
    gold: Tensor
    sequence: Tensor


def gold_logprobs(logits: Tensor, gold: Tensor) -> Tensor:
    """log p(gold) at T = 1 for logits [N, V] and gold [N]; returns [N]."""
    chosen = logits.gather(-1, gold[:, None]).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def _old(facts: TokenFacts) -> Tensor:
    assert facts.old_logits is not None, "this mask needs the old teacher's logits"
    return facts.old_logits


def _student_wrong(f: TokenFacts) -> Tensor:
    return f.student_logits.argmax(-1) != f.gold


def _old_right(f: TokenFacts) -> Tensor:
    return _old(f).argmax(-1) == f.gold


def _token_likelihood(f: TokenFacts) -> Tensor:
    return gold_logprobs(f.student_logits, f.gold) < gold_logprobs(_old(f), f.gold)


def _sequence_likelihood(f: TokenFacts) -> Tensor:
    # The paper prints a sum of indicators; we compare the summed log-likelihoods.
    gap = gold_logprobs(f.student_logits, f.gold) - gold_logprobs(_old(f), f.gold)
    _, index = f.sequence.unique(return_inverse=True)
    total = gap.new_zeros(int(index.max()) + 1).index_add_(0, index, gap)
    return (total < 0)[index]


def _always_old(f: TokenFacts) -> Tensor:
    return torch.ones_like(f.gold, dtype=torch.bool)


def _never_old(f: TokenFacts) -> Tensor:
    return torch.zeros_like(f.gold, dtype=torch.bool)


MASKS: dict[MaskName, Callable[[TokenFacts], Tensor]] = {
    "student-wrong": _student_wrong,
    "old-right": _old_right,
    "token-likelihood": _token_likelihood,
    "sequence-likelihood": _sequence_likelihood,
    "always-old": _always_old,
    "never-old": _never_old,
}

NEEDS_OLD: frozenset[MaskName] = frozenset({"old-right", "token-likelihood", "sequence-likelihood"})
"""Masks that look at the old teacher on every token."""
