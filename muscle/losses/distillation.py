"""Token-masked distillation from two frozen teachers (§4, A.4 of the paper).

    a_t = KL( softmax(z_t / T) || softmax(z_c / T) )          per token, teacher t
    L   = (1 - ce_weight) mean[old_weight m a_old + (1 - m) a_new] + ce_weight CE

Everything here returns sums over tokens; the training loop divides by the number of
tokens of the whole update, so that any split into micro-batches and workers gives the
same update.

Heads are frozen, so a chunk's gradient is known as soon as its loss is: the forward goes once
over chunks of tokens and keeps only d loss / d hidden, [N, D]. No [N, V] tensor exists, nothing
is recomputed, and backward reads no weight (under ZeRO-3 none is there by then).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from muscle.config import CompatibilityConfig
from muscle.losses.masks import MASKS, Prediction, Reads, TokenFacts
from muscle.losses.needs import BLOCK_LOGITS, CHUNK_LOGITS
from muscle.losses.rows import Buffers, Weights, gold_logprobs, row_losses
from muscle.models.head import Head


@dataclass(frozen=True)
class TokenOutputs:
    """A model's final hidden states [N, D] at N scored positions, and its frozen head."""

    hidden: Tensor
    head: Head


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


def cross_entropy_sums(student: TokenOutputs, gold: Tensor, sequence: Tensor) -> LossSums:
    """Next-token loss of N tokens, natural log: the task adapters' loss. gold, sequence [N]."""
    return distillation_sums(student, {}, gold, sequence, CompatibilityConfig(ce_weight=1.0))


def distillation_sums(
    student: TokenOutputs,
    teachers: Mapping[str, TokenOutputs],
    gold: Tensor,
    sequence: Tensor,
    settings: CompatibilityConfig,
) -> LossSums:
    """The compatibility adapter's loss (module docstring) over N tokens.

    gold, sequence [N]. `teachers` has the names of `needed_teachers(settings)`, each with
    hidden [N, D_teacher]. A vocabulary is cut to what student and teacher share; a mask and
    the cross-entropy look at each model's whole one. `loss` carries the gradient of
    `student.hidden`, which can be differentiated once.
    """
    hidden = student.hidden
    keeps = torch.is_grad_enabled() and hidden.requires_grad
    with torch.no_grad():
        work = _Pass(student, teachers, gold, sequence, settings, keeps)
        sums = work.run()
    if work.gradient is None:
        return sums
    loss: Tensor = KnownGradient.apply(hidden, sums.loss, work.gradient)
    return LossSums(loss, sums.cross_entropy, sums.old_tokens, sums.kl_old, sums.kl_new)


class KnownGradient(torch.autograd.Function):
    """`loss`, a function of `hidden` whose gradient is already there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None


class _Pass:
    """One pass over N tokens in chunks; `gradient` [N, D] afterwards, if it is kept."""

    def __init__(
        self,
        student: TokenOutputs,
        teachers: Mapping[str, TokenOutputs],
        gold: Tensor,
        sequence: Tensor,
        settings: CompatibilityConfig,
        keeps: bool,
    ):
        self.student = TokenOutputs(student.hidden.detach(), student.head)
        self.teachers, self.gold, self.sequence = teachers, gold, sequence
        self.mask = MASKS[settings.mask]
        kl = 1 - settings.ce_weight
        self.distils = kl > 0
        self.weights = {
            "old": Weights(kl * settings.old_weight, settings.ce_weight, settings.temperature),
            "new": Weights(kl, settings.ce_weight, settings.temperature),
        }
        self.gradient = torch.empty_like(self.student.hidden) if keeps else None
        self.buffers = Buffers(student.hidden, student.head.logits_dtype)
        self.device = "cpu" if student.hidden.device.type == "cpu" else "cuda"
        # ce, old_tokens, kl_old, kl_new
        self.sums = torch.zeros(4, dtype=torch.float64, device=student.hidden.device)

    def run(self) -> LossSums:
        """All chunks; sums in the logits' dtype."""
        decided = self._decide_whole() if self.distils and self.mask.whole else None
        for rows in self._chunks():
            self._chunk(rows, None if decided is None else decided[rows])
        ce, old_tokens, kl_old, kl_new = self.sums
        loss = self.weights["new"].ce * ce
        if self.distils:
            loss = loss + self.weights["old"].kl * kl_old + self.weights["new"].kl * kl_new
        parts = (loss, ce, old_tokens, kl_old, kl_new)
        return LossSums(*(part.to(self.buffers.dtype) for part in parts))

    def _chunks(self) -> Iterator[slice]:
        """Slices of all tokens, about equally long."""
        count = len(self.gold)
        widths = [self.student.head.width, *(t.head.width for t in self.teachers.values())]
        rows = max(1, CHUNK_LOGITS[self.device] // max(widths))
        size = math.ceil(count / math.ceil(count / rows)) if count else 1
        for start in range(0, count, size):
            yield slice(start, min(start + size, count))

    def _logits(self, name: str, model: TokenOutputs, hidden: Tensor) -> Tensor:
        out = self.buffers.take(name, len(hidden), model.head.width)
        return model.head.logits(hidden, out=out)

    def _decide_whole(self) -> Tensor:
        """[N], for a mask that needs all tokens of a sequence: a pass for the facts alone."""
        found: dict[str, list[Tensor]] = {"student": [], "old": []}
        for rows in self._chunks():
            for name, model in (("student", self.student), ("old", self.teachers["old"])):
                logits = self._logits(name, model, model.hidden[rows])
                _, fact = self._facts(logits, rows, "likelihood")
                assert fact.gold_logprob is not None
                found[name].append(fact.gold_logprob)
        student, old = (Prediction(None, torch.cat(parts)) for parts in found.values())
        return self.mask.decide(TokenFacts(self.gold, self.sequence, student, old))

    def _facts(self, logits: Tensor, rows: slice, reads: Reads) -> tuple[Tensor, Prediction]:
        """Row maxima [n, 1] of a chunk's logits, and what a mask reads of them."""
        if reads == "best":
            top, best = logits.max(1, keepdim=True)  # twelve times as long as amax on a CPU
            return top, Prediction(best.squeeze(1))
        top = logits.amax(1, keepdim=True)
        if reads is None:
            return top, Prediction()
        gold = self.gold[rows]
        parts = [
            gold_logprobs(logits[block], top[block], gold[block], self.buffers)
            for block in self._blocks(*logits.shape)
        ]
        return top, Prediction(None, torch.cat(parts))

    def _chunk(self, rows: slice, by_old: Tensor | None) -> None:
        """Losses of one chunk, added to the sums, and its gradient."""
        logits = self._logits("student", self.student, self.student.hidden[rows])
        head = self.student.head
        # The slope of a soft-cap is in the logits, which become their own gradient.
        raw = logits.clone() if head.cap is not None and self.gradient is not None else None
        reads = self.mask.student if self.distils and by_old is None else None
        top, fact = self._facts(logits, rows, reads)
        if not self.distils:
            self._taught("", logits, top, rows, None, None)
        else:
            old_logits = None
            if by_old is None:
                by_old, old_logits = self._decide(fact, rows)
            self.sums[1] += by_old.sum()
            for name, taught in (("old", by_old), ("new", ~by_old)):
                index = taught.nonzero().squeeze(1)
                if len(index):
                    chosen = None if len(index) == len(logits) else index
                    known = old_logits if name == "old" else None
                    self._taught(name, logits, top, rows, chosen, known)
        if self.gradient is not None:
            self.gradient[rows] = head.hidden_gradient(logits, raw)

    def _decide(self, student: Prediction, rows: slice) -> tuple[Tensor, Tensor | None]:
        """The mask of a chunk [n], and the old teacher's logits [n, V] if the mask reads them."""
        old, logits = Prediction(), None
        if self.mask.old is not None:
            teacher = self.teachers["old"]
            logits = self._logits("old", teacher, teacher.hidden[rows])
            _, old = self._facts(logits, rows, self.mask.old)
        facts = TokenFacts(self.gold[rows], self.sequence[rows], student, old)
        return self.mask.decide(facts), logits

    def _taught(
        self,
        name: str,
        logits: Tensor,
        top: Tensor,
        rows: slice,
        index: Tensor | None,
        known: Tensor | None,
    ) -> None:
        """The rows of a chunk that one teacher teaches; their logits become their gradient.

        index: which rows of the chunk, None for all. known: the teacher's logits of all rows.
        name "": no teacher, cross-entropy alone.
        """
        gold = self.gold[rows]
        theirs = known
        if name and known is None:
            teacher = self.teachers[name]
            hidden = teacher.hidden[rows]
            theirs = self._logits("teacher", teacher, hidden if index is None else hidden[index])
        weights = self.weights[name or "new"]
        count = len(logits) if index is None else len(index)
        for block in self._blocks(count, logits.shape[1]):
            at = block if index is None else index[block]
            mine = self._picked("mine", logits, at)
            their = None
            if theirs is not None:
                their = self._picked("known", theirs, at) if known is not None else theirs[block]
            found = row_losses(mine, top[at], their, gold[at], weights, self.buffers)
            if isinstance(at, Tensor):
                logits.index_copy_(0, at, mine)
            if found.ce is not None:
                self.sums[0] += found.ce.sum()
            if found.kl is not None:
                self.sums[2 if name == "old" else 3] += found.kl.sum()

    def _picked(self, name: str, logits: Tensor, at: slice | Tensor) -> Tensor:
        """Rows of `logits`: themselves for a slice, a copy in a buffer for an index."""
        if isinstance(at, slice):
            return logits[at]
        out = self.buffers.take(name, len(at), logits.shape[1])
        return torch.index_select(logits, 0, at, out=out)

    def _blocks(self, count: int, width: int) -> Iterator[slice]:
        size = max(1, BLOCK_LOGITS[self.device] // width)
        for start in range(0, count, size):
            yield slice(start, min(start + size, count))
