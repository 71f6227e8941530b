"""Masks by truth table; losses and gradients against naive formulas on full logits."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from muscle.config import CompatibilityConfig
from muscle.losses import distillation
from muscle.losses.distillation import (
    LossSums,
    TokenOutputs,
    cross_entropy_sums,
    distillation_sums,
)
from muscle.losses.masks import MASKS, Prediction, TokenFacts
from muscle.losses.needs import needed_teachers
from muscle.models.head import Head

V, D = 23, 5
LENGTHS = (1, 6, 3, 9, 2)  # ragged sequences, one longer than the small chunks


class Toy:
    """Random heads and hidden states for N tokens; the old teacher has a width of its own."""

    def __init__(
        self,
        dtype: torch.dtype = torch.float64,
        widths: tuple[int, int, int] = (V, V, V),
        lengths: tuple[int, ...] = LENGTHS,
        **extras: float,
    ):
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        n = sum(lengths)
        extra = {"bias": random(max(widths))} if extras.pop("bias", 0) else {}
        outputs = []
        for width, size in zip(widths, (D, D + 2, D), strict=True):
            bias = {name: value[:width].contiguous() for name, value in extra.items()}
            head = Head(random(width, size), **bias, **extras)
            outputs.append(TokenOutputs(random(n, size) * 0.8, head))
        self.student, self.old, self.new = outputs
        self.gold = torch.randint(0, min(widths), (n,), generator=generator)
        for start, model in ((0, self.student), (1, self.old)):  # each is right now and then
            best = full_logits(model.hidden.double(), model.head).argmax(-1)
            self.gold[start::3] = best[start::3].clamp(max=min(widths) - 1)
        self.sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    def fused(self, settings: CompatibilityConfig) -> tuple[LossSums, Tensor]:
        hidden = self.student.hidden.clone().requires_grad_()
        signals = {"old": self.old, "new": self.new}
        teachers = {name: signals[name] for name in needed_teachers(settings)}
        student = TokenOutputs(hidden, self.student.head)
        sums = distillation_sums(student, teachers, self.gold, self.sequence, settings)
        sums.loss.backward()
        assert hidden.grad is not None
        return sums, hidden.grad

    def naive(self, settings: CompatibilityConfig) -> tuple[Tensor, Tensor]:
        hidden = self.student.hidden.clone().requires_grad_()
        student = full_logits(hidden, self.student.head)
        with torch.no_grad():
            old = full_logits(self.old.hidden, self.old.head)
            new = full_logits(self.new.hidden, self.new.head)
        loss = naive_loss(student, old, new, self.gold, self.sequence, settings)
        loss.backward()
        assert hidden.grad is not None
        return loss.detach(), hidden.grad


def full_logits(hidden: Tensor, head: Head) -> Tensor:
    """A head's logits in plain, differentiable torch."""
    logits = hidden @ head.weight.to(hidden.dtype).T
    if head.bias is not None:
        logits = logits + head.bias.to(hidden.dtype)
    logits = logits * (head.scale or 1.0) / (head.divisor or 1.0)
    return head.cap * torch.tanh(logits / head.cap) if head.cap else logits


def naive_mask(name: str, student: Tensor, old: Tensor, gold: Tensor, sequence: Tensor) -> Tensor:
    """PAPER.md's table of masks, row by row."""
    rows = torch.arange(len(gold))
    log_student = student.log_softmax(-1)[rows, gold]
    log_old = old.log_softmax(-1)[rows, gold]
    same = sequence[:, None] == sequence[None, :]
    return {
        "student-wrong": student.argmax(-1) != gold,
        "old-right": old.argmax(-1) == gold,
        "token-likelihood": log_student < log_old,
        "sequence-likelihood": (same * (log_student - log_old)[None, :]).sum(-1) < 0,
        "always-old": torch.ones(len(gold), dtype=torch.bool),
        "never-old": torch.zeros(len(gold), dtype=torch.bool),
    }[name]


def naive_loss(
    student: Tensor,
    old: Tensor,
    new: Tensor,
    gold: Tensor,
    sequence: Tensor,
    c: CompatibilityConfig,
) -> Tensor:
    """The loss written from PAPER.md on full logits, differentiated by plain autograd."""
    m = naive_mask(c.mask, student.detach(), old, gold, sequence).to(student.dtype)

    def kl(teacher: Tensor) -> Tensor:
        shared = min(teacher.shape[1], student.shape[1])
        log_t = (teacher[:, :shared] / c.temperature).log_softmax(-1)
        log_s = (student[:, :shared] / c.temperature).log_softmax(-1)
        return (log_t.exp() * (log_t - log_s)).sum(-1)

    ce = -student.log_softmax(-1)[torch.arange(len(gold)), gold]
    distilled = c.old_weight * m * kl(old) + (1 - m) * kl(new)
    return ((1 - c.ce_weight) * distilled + c.ce_weight * ce).sum()


SETTINGS = [
    CompatibilityConfig(mask=mask, temperature=t, ce_weight=ce, old_weight=w)
    for mask, t, ce, w in itertools.product(MASKS, (1.0, 2.0, 5.0), (0.0, 0.3, 1.0), (1.0, 0.3))
]


@pytest.fixture(params=["one chunk", "chunks", "blocks"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything at once; chunks of 4 rows, which split sequences; blocks of 3 in chunks of 10."""
    chunk, block = {"one chunk": (10**9, 10**9), "chunks": (4, 10**6), "blocks": (10, 3)}[
        request.param
    ]
    monkeypatch.setattr(distillation, "CHUNK_LOGITS", {"cpu": chunk * V})
    monkeypatch.setattr(distillation, "BLOCK_LOGITS", {"cpu": block * V})


# -- masks


def test_truth_table_of_token_masks() -> None:
    # student right/wrong x old right/wrong, gold is token 2 everywhere
    facts = TokenFacts(
        gold=torch.full((4,), 2),
        sequence=torch.arange(4),
        student=Prediction(torch.tensor([2, 2, 5, 5]), torch.tensor([-0.3, -0.3, -3.0, -3.0])),
        old=Prediction(torch.tensor([2, 4, 2, 4]), torch.tensor([-0.3, -3.0, -0.3, -3.0])),
    )
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
        assert MASKS[name].decide(facts).tolist() == want, name


def test_sequence_likelihood_decides_for_all_tokens_of_a_sequence() -> None:
    facts = TokenFacts(
        gold=torch.zeros(5, dtype=torch.long),
        sequence=torch.tensor([7, 7, 7, 9, 9]),
        student=Prediction(None, torch.tensor([-1.0, -1.0, -1.0, -2.0, -0.5])),
        old=Prediction(None, torch.tensor([-2.0, -2.0, -0.5, -0.5, -1.0])),
    )
    got = MASKS["sequence-likelihood"].decide(facts)
    assert got.tolist() == [False, False, False, True, True]


def test_the_toy_exercises_both_teachers_of_every_mask() -> None:
    toy = Toy()
    for name in MASKS:
        sums, _ = toy.fused(CompatibilityConfig(mask=name))
        share = sums.old_tokens.item() / len(toy.gold)
        assert share == {"always-old": 1, "never-old": 0}.get(name, share)
        assert 0 < share < 1 or name.endswith("-old")


# -- losses


@pytest.mark.usefixtures("sizes")
def test_loss_and_gradient_equal_the_naive_formula() -> None:
    toy = Toy()
    for settings in SETTINGS:
        sums, gradient = toy.fused(settings)
        expected, expected_gradient = toy.naive(settings)
        torch.testing.assert_close(sums.loss.detach(), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-11)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize(
    "extras",
    [
        {"bias": 1},
        {"scale": 0.25},
        {"divisor": 3.0},
        {"cap": 2.0},
        {"bias": 1, "scale": 2.0, "divisor": 0.7, "cap": 1.5},
        {"widths": (V, V + 4, V)},
        {"widths": (V, V - 4, V)},
        {"widths": (V, V - 4, V + 4), "bias": 1, "cap": 2.0},
    ],
    ids=str,
)
def test_every_kind_of_head_and_vocabularies_of_different_width(extras: dict) -> None:
    toy = Toy(**extras)
    for mask, ce_weight in itertools.product(MASKS, (0.0, 0.3, 1.0)):
        settings = CompatibilityConfig(mask=mask, ce_weight=ce_weight, old_weight=0.7)
        sums, gradient = toy.fused(settings)
        expected, expected_gradient = toy.naive(settings)
        torch.testing.assert_close(sums.loss.detach(), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-11)


@pytest.mark.usefixtures("sizes")
def test_single_precision_keeps_five_figures() -> None:
    exact, single = Toy(), Toy(torch.float32)
    for settings in SETTINGS:
        if settings.ce_weight < 1 and settings.mask in ("token-likelihood", "sequence-likelihood"):
            continue  # a mask may decide a near tie otherwise
        expected, expected_gradient = exact.naive(settings)
        sums, gradient = single.fused(settings)
        torch.testing.assert_close(sums.loss.detach().double(), expected, rtol=1e-5, atol=0.0)
        error = (gradient.double() - expected_gradient).norm() / expected_gradient.norm()
        assert error < 1e-5, settings


def test_bfloat16_is_near() -> None:
    settings = CompatibilityConfig(mask="old-right", ce_weight=0.3)
    toy = Toy(torch.bfloat16)
    sums, gradient = toy.fused(settings)
    assert sums.loss.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    expected, expected_gradient = Toy().naive(settings)
    assert math.isclose(sums.loss.item(), expected.item(), rel_tol=0.05)
    error = (gradient.double() - expected_gradient).norm() / expected_gradient.norm()
    assert error < 0.05


def test_gradcheck() -> None:
    toy = Toy(lengths=(2, 3))
    settings = CompatibilityConfig(mask="old-right", ce_weight=0.3, old_weight=0.5)

    def loss(hidden: Tensor) -> Tensor:
        student = TokenOutputs(hidden, toy.student.head)
        teachers = {"old": toy.old, "new": toy.new}
        return distillation_sums(student, teachers, toy.gold, toy.sequence, settings).loss * 0.5

    assert torch.autograd.gradcheck(loss, toy.student.hidden.clone().requires_grad_())


@pytest.mark.parametrize("width", [300, 1021])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_is_exactly_zero_at_the_teacher(
    width: int, temperature: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam makes a full step of any noise, so 'almost 0' would move the null test's adapter."""
    monkeypatch.setattr(distillation, "CHUNK_LOGITS", {"cpu": 40 * width})
    monkeypatch.setattr(distillation, "BLOCK_LOGITS", {"cpu": 7 * width})
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(width, 16, generator=generator).to(dtype))
    hidden = torch.randn(64, 16, generator=generator).to(dtype).requires_grad_()
    teachers = {"new": TokenOutputs(hidden.detach().clone(), Head(head.weight.clone()))}
    settings = CompatibilityConfig(mask="never-old", temperature=temperature)
    gold = torch.zeros(64, dtype=torch.long)
    sums = distillation_sums(TokenOutputs(hidden, head), teachers, gold, gold, settings)
    sums.loss.backward()
    assert sums.loss.item() == 0.0 and sums.kl_new.item() == 0.0
    assert hidden.grad is not None and torch.count_nonzero(hidden.grad) == 0


def test_kl_of_what_differs_by_rounding_is_near_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(32_000, 24, generator=generator))
    hidden = torch.randn(32, 24, generator=generator)
    other = hidden * (1 + 1e-7 * torch.randn(hidden.shape, generator=generator))
    assert not torch.equal(hidden, other)
    gold = torch.zeros(32, dtype=torch.long)
    sums = distillation_sums(
        TokenOutputs(hidden, head),
        {"new": TokenOutputs(other, head)},
        gold,
        gold,
        CompatibilityConfig(mask="never-old", temperature=1.0),
    )
    assert abs(sums.kl_new.item()) / len(gold) < 2e-7


def test_cross_entropy_sums_is_torchs() -> None:
    toy = Toy()
    hidden = toy.student.hidden.clone().requires_grad_()
    student = TokenOutputs(hidden, toy.student.head)
    sums = cross_entropy_sums(student, toy.gold, toy.sequence)
    logits = full_logits(toy.student.hidden, toy.student.head)
    expected = torch.nn.functional.cross_entropy(logits, toy.gold, reduction="sum")
    torch.testing.assert_close(sums.loss.detach(), expected)
    torch.testing.assert_close(sums.cross_entropy, expected)
    assert sums.loss.requires_grad and not sums.cross_entropy.requires_grad


def test_without_a_gradient_nothing_is_kept_and_the_sums_are_the_same() -> None:
    toy = Toy()
    for settings in SETTINGS[::7]:
        sums, _ = toy.fused(settings)
        teachers = {"old": toy.old, "new": toy.new}
        with torch.no_grad():
            plain = distillation_sums(toy.student, teachers, toy.gold, toy.sequence, settings)
        assert not plain.loss.requires_grad
        assert torch.equal(plain.loss, sums.loss)


def test_backward_reads_no_weight() -> None:
    """Under ZeRO-3 the head's weight is gone by then."""
    toy = Toy()
    hidden = toy.student.hidden.clone().requires_grad_()
    settings = CompatibilityConfig(mask="old-right")
    expected = toy.fused(settings)[1]
    teachers = {"old": toy.old, "new": toy.new}
    student = TokenOutputs(hidden, toy.student.head)
    sums = distillation_sums(student, teachers, toy.gold, toy.sequence, settings)
    for outputs in (toy.student, toy.old, toy.new):
        outputs.head.weight.fill_(math.nan)
    sums.loss.backward()
    assert hidden.grad is not None and torch.equal(hidden.grad, expected)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return result


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("ce_weight", [0.0, 0.3, 1.0])
def test_no_tensor_of_all_tokens_by_the_vocabulary(
    mask: str, ce_weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "CHUNK_LOGITS", {"cpu": 16 * V})
    toy = Toy(lengths=(40,) * 5, cap=3.0)
    settings = CompatibilityConfig(mask=mask, ce_weight=ce_weight)  # type: ignore[arg-type]
    with Largest() as largest:
        toy.fused(settings)
    assert 0 < largest.numel <= max(16 * V, 200 * (D + 2))


def test_sums_add_up_over_any_split_of_sequences() -> None:
    settings = CompatibilityConfig(mask="sequence-likelihood", ce_weight=0.5)
    toy = Toy()

    def part(rows: slice) -> LossSums:
        cut = {
            name: TokenOutputs(outputs.hidden[rows], outputs.head)
            for name, outputs in (("student", toy.student), ("old", toy.old), ("new", toy.new))
        }
        student = cut.pop("student")
        return distillation_sums(student, cut, toy.gold[rows], toy.sequence[rows], settings)

    split, end = LENGTHS[0] + LENGTHS[1], len(toy.gold)
    both = part(slice(0, split)) + part(slice(split, end))
    torch.testing.assert_close(both.loss, part(slice(0, end)).loss)


def test_needed_teachers() -> None:
    assert needed_teachers(CompatibilityConfig(ce_weight=1.0)) == ()
    assert needed_teachers(CompatibilityConfig(mask="always-old")) == ("old",)
    assert needed_teachers(CompatibilityConfig(mask="never-old")) == ("new",)
    assert needed_teachers(CompatibilityConfig(level="token")) == ("old", "new")


def test_reported_parts_make_up_the_loss() -> None:
    toy = Toy()
    s, _ = toy.fused(CompatibilityConfig(ce_weight=0.25, old_weight=0.5))
    total = 0.75 * (0.5 * s.kl_old + s.kl_new) + 0.25 * s.cross_entropy
    assert math.isclose(total.item(), s.loss.item(), rel_tol=1e-12)
    wrong = full_logits(toy.student.hidden, toy.student.head).argmax(-1) != toy.gold
    assert s.old_tokens.item() == wrong.sum().item()
