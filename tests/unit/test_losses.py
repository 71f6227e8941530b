"""Masks by truth table, losses against a naive float64 formula."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from muscle.config import CompatibilityConfig
from muscle.losses import distillation
from muscle.losses.distillation import (
    TokenOutputs,
    cross_entropy_sums,
    distillation_sums,
    teacher_kl,
)
from muscle.losses.masks import MASKS, NEEDS_OLD, TokenFacts
from muscle.losses.needs import needed_teachers

V = 7
LENGTHS = (1, 5, 3, 4)  # ragged sequences


def one_hot_logits(tokens: list[int], sharp: float = 3.0) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tokens), V).double() * sharp


def identity(hidden: Tensor) -> Tensor:
    return hidden


def toy(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """student, old, new logits [N, V] in float64, gold [N], sequence [N]."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(LENGTHS)
    logits = [torch.randn(n, V, generator=generator, dtype=torch.float64) * 2 for _ in range(3)]
    gold = torch.randint(0, V, (n,), generator=generator)
    sequence = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    return *logits, gold, sequence  # type: ignore[return-value]


def test_truth_table_of_token_masks() -> None:
    # student right/wrong x old right/wrong, gold is token 2 everywhere
    student = one_hot_logits([2, 2, 5, 5])
    old = one_hot_logits([2, 4, 2, 4])
    gold = torch.full((4,), 2)
    facts = TokenFacts(student, old, gold, torch.arange(4))
    expected = {
        "student-wrong": [False, False, True, True],
        "old-right": [True, False, True, False],
        "token-likelihood": [False, False, True, False],  # equal likelihood: not smaller
        "sequence-likelihood": [False, False, True, False],
        "always-old": [True] * 4,
        "never-old": [False] * 4,
    }
    assert expected.keys() == MASKS.keys()
    for name, want in expected.items():
        assert MASKS[name](facts).tolist() == want, name


def test_sequence_likelihood_decides_for_all_tokens_of_a_sequence() -> None:
    student, old, _, gold, sequence = toy()
    got = MASKS["sequence-likelihood"](TokenFacts(student, old, gold, sequence))
    for s in range(len(LENGTHS)):
        rows = [i for i in range(len(gold)) if sequence[i] == s]
        total = sum(
            (student[i].log_softmax(-1)[gold[i]] - old[i].log_softmax(-1)[gold[i]]).item()
            for i in rows
        )
        assert got[rows].tolist() == [total < 0] * len(rows)
    assert 0 < got.sum() < len(got)  # the toy exercises both outcomes


def naive(
    student: Tensor,
    old: Tensor,
    new: Tensor,
    gold: Tensor,
    sequence: Tensor,
    c: CompatibilityConfig,
) -> Tensor:
    """The loss written token by token from PAPER.md, differentiated by plain autograd."""
    facts = TokenFacts(student.detach(), old, gold, sequence)
    mask = MASKS[c.mask](facts)
    total = student.new_zeros(())
    for i in range(len(gold)):
        p = {}
        for name, z in (("c", student), ("old", old), ("new", new)):
            p[name] = torch.exp(z[i] / c.temperature) / torch.exp(z[i] / c.temperature).sum()
        teacher = p["old"] if mask[i] else p["new"]
        kl = (teacher * torch.log(teacher / p["c"])).sum()
        weight = c.old_weight if mask[i] else 1.0
        ce = -torch.log(torch.exp(student[i, gold[i]]) / torch.exp(student[i]).sum())
        total = total + (1 - c.ce_weight) * weight * kl + c.ce_weight * ce
    return total


SETTINGS = [
    CompatibilityConfig(mask=mask, temperature=t, ce_weight=ce, old_weight=w)
    for mask, t, ce, w in itertools.product(MASKS, (1.0, 2.0, 5.0), (0.0, 0.5, 1.0), (1.0, 0.3))
]


@pytest.mark.parametrize("max_logits", [10**9, 5 * V])  # one chunk, several chunks
def test_loss_and_gradient_equal_the_naive_formula(
    max_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "MAX_LOGITS", max_logits)
    for settings in SETTINGS:
        student, old, new, gold, sequence = toy()
        mine, reference = student.clone().requires_grad_(), student.clone().requires_grad_()
        signals = {"old": TokenOutputs(old, identity), "new": TokenOutputs(new, identity)}
        teachers = {name: signals[name] for name in needed_teachers(settings)}
        sums = distillation_sums(TokenOutputs(mine, identity), teachers, gold, sequence, settings)
        expected = naive(reference, old, new, gold, sequence, settings)
        sums.loss.backward()
        expected.backward()
        torch.testing.assert_close(sums.loss, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-10, atol=1e-12)


def test_teacher_kl_cuts_padded_vocabularies_and_divides_by_temperature() -> None:
    student, teacher, *_ = toy()
    wide = torch.cat([teacher, torch.full((len(teacher), 3), 50.0, dtype=torch.float64)], dim=1)
    assert torch.equal(teacher_kl(student, wide, 2.0), teacher_kl(student, teacher, 2.0))
    by_torch = torch.nn.functional.kl_div(
        (student / 2).log_softmax(-1),
        (teacher / 2).log_softmax(-1),
        log_target=True,
        reduction="sum",
    )
    torch.testing.assert_close(teacher_kl(student, teacher, 2.0), by_torch)


def test_gradient_is_exactly_zero_at_the_teacher() -> None:
    """Adam makes a full step of any noise, so 'almost 0' would move the null test's adapter."""
    logits = (torch.randn(64, 300) * 3).requires_grad_()
    kl = teacher_kl(logits, logits.detach().clone(), 2.0)
    kl.backward()
    assert kl.item() == 0.0
    assert torch.count_nonzero(logits.grad) == 0  # type: ignore[arg-type]


def test_cross_entropy_sums_is_torchs() -> None:
    student, _, _, gold, sequence = toy()
    sums = cross_entropy_sums(TokenOutputs(student, identity), gold, sequence)
    expected = torch.nn.functional.cross_entropy(student, gold, reduction="sum")
    torch.testing.assert_close(sums.loss, expected)
    torch.testing.assert_close(sums.cross_entropy, expected)


def test_sums_add_up_over_any_split_of_sequences() -> None:
    settings = CompatibilityConfig(mask="sequence-likelihood", ce_weight=0.5)
    student, old, new, gold, sequence = toy()

    def loss(rows: slice) -> Tensor:
        teachers = {n: TokenOutputs(z[rows], identity) for n, z in (("old", old), ("new", new))}
        outputs = TokenOutputs(student[rows], identity)
        return distillation_sums(outputs, teachers, gold[rows], sequence[rows], settings).loss

    split = LENGTHS[0] + LENGTHS[1]
    whole = loss(slice(0, len(gold)))
    torch.testing.assert_close(loss(slice(0, split)) + loss(slice(split, len(gold))), whole)


def test_needed_teachers() -> None:
    assert needed_teachers(CompatibilityConfig(ce_weight=1.0)) == ()
    assert needed_teachers(CompatibilityConfig(mask="always-old")) == ("old",)
    assert needed_teachers(CompatibilityConfig(mask="never-old")) == ("new",)
    assert needed_teachers(CompatibilityConfig()) == ("old", "new")
    assert set(MASKS) >= NEEDS_OLD


def test_reported_parts_make_up_the_loss() -> None:
    settings = CompatibilityConfig(ce_weight=0.25, old_weight=0.5)
    student, old, new, gold, sequence = toy()
    teachers = {"old": TokenOutputs(old, identity), "new": TokenOutputs(new, identity)}
    s = distillation_sums(TokenOutputs(student, identity), teachers, gold, sequence, settings)
    total = 0.75 * (0.5 * s.kl_old + s.kl_new) + 0.25 * s.cross_entropy
    assert math.isclose(total.item(), s.loss.item(), rel_tol=1e-12)
    assert s.old_tokens.item() == (student.argmax(-1) != gold).sum().item()
