"""Losses of a few rows of logits and their gradient, written out, in as few passes as possible.

Shapes: r rows, V logits of the student, W of the teacher. Everything works in place on buffers
that the caller owns; a row's losses are in fp64, made of sums in the logits' dtype.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """A row's loss is kl * KL(softmax(z_t / T) || softmax(z_s / T)) + ce * CE."""

    kl: float
    ce: float
    temperature: float


@dataclass(frozen=True)
class RowLosses:
    """KL and cross-entropy of each row [r], unweighted, fp64; None: its weight is 0."""

    kl: Tensor | None
    ce: Tensor | None


class Buffers:
    """Memory by name that every chunk uses again: fresh pages cost more than a pass."""

    def __init__(self, like: Tensor, dtype: torch.dtype):
        self.device, self.dtype = like.device, dtype
        self.held: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, width: int) -> Tensor:
        """[rows, width], contiguous, whatever it held before."""
        size = rows * width
        if name not in self.held or self.held[name].numel() < size:
            self.held.pop(name, None)
            self.held[name] = torch.empty(size, device=self.device, dtype=self.dtype)
        return self.held[name][:size].view(rows, width)


def gold_logprobs(logits: Tensor, top: Tensor, gold: Tensor, buffers: Buffers) -> Tensor:
    """log p(gold) at T = 1, fp64 [r]; logits [r, V] are left alone, top [r, 1] is their maximum."""
    shifted = torch.sub(logits, top, out=buffers.take("exp", *logits.shape))
    at_gold = shifted.gather(1, gold[:, None]).double()
    return (at_gold - shifted.exp_().sum(1, keepdim=True).double().log()).squeeze(1)


def row_losses(
    student: Tensor,
    top: Tensor,
    teacher: Tensor | None,
    gold: Tensor,
    weights: Weights,
    buffers: Buffers,
) -> RowLosses:
    """The losses of r rows; `student` [r, V] is overwritten with the gradient of their sum.

    top [r, 1] is the maximum of the student's rows, gold [r]. `teacher` [r, W] is used up; None
    leaves the cross-entropy alone. V and W differ by padding of the vocabulary: the KL is
    over what they share.
    """
    student.sub_(top)
    ce = None
    if weights.ce > 0:
        at_gold = student.gather(1, gold[:, None])
        # Beside a KL it is kept until the KL's gradient is there to be added to.
        place = student if teacher is None else buffers.take("share", *student.shape)
        share = torch.exp(student, out=place)
        total = share.sum(1, keepdim=True)
        ce = (total.double().log() - at_gold).squeeze(1)
        share.mul_(weights.ce / total)
        share.scatter_add_(1, gold[:, None], torch.full_like(at_gold, -weights.ce))
    kl = None
    if teacher is not None:
        kl = _kl(student, teacher, weights, buffers)
        if weights.ce > 0:
            student.add_(share)
    return RowLosses(kl, ce)


def _kl(student: Tensor, teacher: Tensor, weights: Weights, buffers: Buffers) -> Tensor:
    """KL of each row [r]; `student` [r, V], relative to its maximum, becomes the gradient.

    With a = (z - max) / T, e = exp(a), Z = sum(e): KL = sum(e_t (a_t - a_s)) / Z_t - ln(Z_t / Z_s)
    and dKL/dz_s = (e_s - e_t Z_s / Z_t) / (Z_s T). Both are exactly 0 where the logits are
    the same bits: autograd through log_softmax leaves rounding noise there, of which Adam
    would make full steps. Differences are taken before sums, so KLs near 0 are near 0.
    """
    shared = min(student.shape[1], teacher.shape[1])
    mine, theirs = student[:, :shared], teacher[:, :shared]
    if shared < student.shape[1]:
        mine.sub_(mine.amax(1, keepdim=True))
        student[:, shared:] = 0
    theirs.sub_(theirs.amax(1, keepdim=True))
    if weights.temperature != 1.0:
        mine.mul_(1 / weights.temperature)
        theirs.mul_(1 / weights.temperature)
    taught = torch.exp(theirs, out=buffers.take("exp", *theirs.shape))
    total_taught = taught.sum(1, keepdim=True)
    gap = theirs.sub_(mine).mul_(taught).sum(1, keepdim=True)
    total = mine.exp_().sum(1, keepdim=True)
    mine.addcmul_(taught, total / total_taught, value=-1)  # the ratio is exactly 1 where equal
    mine.mul_(weights.kl / (weights.temperature * total))
    kl = gap.double() / total_taught - (total_taught.double() / total).log()
    return kl.squeeze(1)
