"""Token-masked distillation from two frozen teachers (§4, A.4 of the paper).

    a_t = KL( softmax(z_t / T) || softmax(z_c / T) )          per token, teacher t
    L   = (1 - ce_weight) mean[old_weight m a_old + (1 - m) a_new] + ce_weight CE

Everything here returns sums over tokens; the training loop divides by the number of
tokens of the whole update, so that any split into micro-batches and workers gives the
same update.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from muscle.config import CompatibilityConfig
from muscle.losses.masks import MASKS, NEEDS_OLD, TokenFacts, gold_logprobs

MAX_LOGITS = 64 * 2**20
"""Logits of one chunk (256 MiB in fp32): beyond it, chunks of whole sequences."""


@dataclass(frozen=True)
class TokenOutputs:
    """A model's final hidden states at N scored positions and its frozen lm_head.

    hidden [N, D]; project maps [n, D] to logits [n, V] in fp32 (fp64 for fp64 input).
    """

    hidden: Tensor
    project: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LossSums:
    """Sums over tokens (0-dim tensors); only `loss` carries a gradient."""

    loss: Tensor
    cross_entropy: Tensor
    old_tokens: Tensor  # tokens taught by the old model
    kl_old: Tensor
    kl_new: Tensor

    def __add__(self, other: "LossSums") -> "LossSums":
        names = (f.name for f in fields(self))
        return LossSums(**{n: getattr(self, n) + getattr(other, n) for n in names})


class _TeacherKL(torch.autograd.Function):
    """Sum over rows of KL(p_t || p_s), with the gradient p_s - p_t written out.

    Autograd through log_softmax leaves rounding noise where both distributions are
    equal, and Adam would turn that noise into full-size steps; written out, the
    gradient is exactly 0 there, and only one [n, V] tensor is kept for it.
    """

    @staticmethod
    def forward(ctx, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        log_student = student_logits.log_softmax(-1)
        log_teacher = teacher_logits.log_softmax(-1)
        teacher = log_teacher.exp()
        ctx.save_for_backward(log_student.exp() - teacher)
        return (teacher * (log_teacher - log_student)).sum()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def, override]
        (difference,) = ctx.saved_tensors
        return difference * grad, None


def teacher_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Sum over rows of KL(softmax(z_t/T) || softmax(z_s/T)); no T^2 factor, as printed.

    Both [n, V]; widths may differ by padding of the vocabulary and are cut to the
    shared one. The gradient goes to the student only.
    """
    shared = min(student_logits.shape[-1], teacher_logits.shape[-1])
    student, teacher = student_logits[:, :shared], teacher_logits[:, :shared]
    total: Tensor = _TeacherKL.apply(student / temperature, teacher.detach() / temperature)
    return total


def cross_entropy_sums(student: TokenOutputs, gold: Tensor, sequence: Tensor) -> LossSums:
    """Next-token loss of N tokens, natural log: the task adapters' loss. gold, sequence [N]."""

    def part(hidden: Tensor, rows: slice) -> LossSums:
        loss = -gold_logprobs(student.project(hidden), gold[rows]).sum()
        zero = loss.new_zeros(())
        return LossSums(loss, loss.detach(), zero, zero, zero)

    return _in_chunks(part, student, sequence)


def distillation_sums(
    student: TokenOutputs,
    teachers: Mapping[str, TokenOutputs],
    gold: Tensor,
    sequence: Tensor,
    settings: CompatibilityConfig,
) -> LossSums:
    """The compatibility adapter's loss (module docstring) over N tokens.

    gold, sequence [N]; tokens of one sequence are adjacent. `teachers` has the names
    of `needed_teachers(settings)`, each with hidden [N, D_teacher].
    """

    def part(hidden: Tensor, rows: slice) -> LossSums:
        return _chunk(student.project(hidden), teachers, gold[rows], sequence[rows], rows, settings)

    return _in_chunks(part, student, sequence)


def _chunk(
    student_logits: Tensor,
    teachers: Mapping[str, TokenOutputs],
    gold: Tensor,
    sequence: Tensor,
    rows: slice,
    settings: CompatibilityConfig,
) -> LossSums:
    """The loss of one chunk of whole sequences; student_logits [n, V]."""
    zero = student_logits.new_zeros(())
    ce = zero
    if settings.ce_weight > 0:
        ce = -gold_logprobs(student_logits, gold).sum()
    kl = {"old": zero, "new": zero}
    old_tokens = zero
    if settings.ce_weight < 1:
        # The facts and the teachers are data to the gradient.
        with torch.no_grad():
            known = {"old": _logits(teachers["old"], rows)} if settings.mask in NEEDS_OLD else {}
            facts = TokenFacts(student_logits.detach(), known.get("old"), gold, sequence)
            by_old = MASKS[settings.mask](facts)
        old_tokens = by_old.sum().to(zero.dtype)
        for name, taught in (("old", by_old), ("new", ~by_old)):
            if not taught.any():
                continue
            with torch.no_grad():
                logits = (
                    known[name][taught] if name in known else _logits(teachers[name], rows, taught)
                )
            kl[name] = teacher_kl(student_logits[taught], logits, settings.temperature)
    distilled = settings.old_weight * kl["old"] + kl["new"]
    loss = (1 - settings.ce_weight) * distilled + settings.ce_weight * ce
    return LossSums(loss, ce.detach(), old_tokens, kl["old"].detach(), kl["new"].detach())


def _logits(teacher: TokenOutputs, rows: slice, chosen: Tensor | None = None) -> Tensor:
    hidden = teacher.hidden[rows]
    return teacher.project(hidden if chosen is None else hidden[chosen])


def _in_chunks(
    part: Callable[[Tensor, slice], LossSums], student: TokenOutputs, sequence: Tensor
) -> LossSums:
    """Sum `part` over chunks of whole sequences; several chunks are recomputed in backward."""
    chunks = list(_chunks(sequence, _rows_per_chunk(student)))
    if len(chunks) == 1:
        return part(student.hidden, slice(0, len(sequence)))
    total: LossSums | None = None
    for rows in chunks:
        sums = checkpoint(part, student.hidden[rows], rows, use_reentrant=False)
        total = sums if total is None else total + sums
    assert total is not None, "a micro-batch has at least one token"
    return total


def _rows_per_chunk(student: TokenOutputs) -> int:
    with torch.no_grad():
        vocabulary = student.project(student.hidden[:1]).shape[-1]
    return max(1, MAX_LOGITS // vocabulary)


def _chunks(sequence: Tensor, rows: int) -> Iterator[slice]:
    """Slices of at most `rows` tokens that never split a sequence, unless it alone is longer."""
    if len(sequence) <= rows:
        yield slice(0, len(sequence))
        return
    _, lengths = sequence.unique_consecutive(return_counts=True)
    start = stop = 0
    for length in lengths.tolist():
        if stop > start and stop + length - start > rows:
            yield slice(start, stop)
            start = stop
        stop += length
    yield slice(start, stop)
