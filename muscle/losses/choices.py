"""Answer-level distillation: from the teachers' scores of whole answers to the student's.

An input has K answers. Each model gives each of them a log-likelihood, by its own tokens, so
that teachers and student need no vocabulary in common. With s a model's log-likelihoods
(perhaps by length), p_old = softmax(s_old / T), p_new likewise, and p their mixture:

    teacher          p
    old, new         p_old, p_new
    mean             mix p_old + (1 - mix) p_new
    confident        p_old where mix max p_old >= (1 - mix) max p_new (at T = 1), else p_new
    old-where-right  p_old where old's likeliest answer is the right one, else p_new;
                     where nobody labelled the input, their mean

    L = w (1 - ce_weight) (KL(p || q) - nll_weight sum_k p1_k l_k + relu(margin - lead))
        - ce_weight (log softmax(s)[gold] + nll_weight l_gold)

s the student's, l its log-likelihoods whatever the length, q = softmax(s / T), p1 is p at T = 1,
lead = s of p's likeliest answer less the largest other, w = 1 + focus where old is right, else 1
(focal distillation, Yan et al. 2021, with base weight 1); the last line is 0 where nobody
labelled the input. Sums over inputs; the loop divides.

KL and CE compare the K answers alone: all of them may become unlikely together. Where a model
writes its answers, nll_weight > 0 keeps them what it writes; alone that term is sequence-level
distillation (Kim and Rush 2016) over K answers.

Shapes: Q inputs, K answers of the input that has most, A answers of all, N positions at which
something is scored, E scored tokens, D hidden size, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from muscle.compatibility_config import CompatibilityConfig
from muscle.losses.distillation import KnownGradient, LossSums
from muscle.losses.needs import CHUNK_LOGITS
from muscle.models.head import Head
from muscle.models.sequences import Moved

NOTHING = -1e300
"""The log-probability of an answer that isn't there: finite, so that 0 times it is 0."""

ROUNDING = 1e-5
"""Relative error of a log-likelihood in fp32: what two batches with the same models differ by."""


@dataclass(frozen=True)
class Targets(Moved):
    """What is scored of N positions, and whose it is.

    place [E]   which of the N positions predicts a token; ascending
    token [E]   its id
    answer [E]  which of the A answers it belongs to
    grid [Q, K] the answers of each input, -1 where it has fewer
    scale [A]   what a log-likelihood is multiplied by: 1, or mean length / length
    gold [Q]    place of the right answer among the K, -1 where nobody labelled the input
    """

    place: Tensor
    token: Tensor
    answer: Tensor
    grid: Tensor
    scale: Tensor
    gold: Tensor


def choice_sums(
    hidden: Tensor,
    head: Head,
    targets: Targets,
    teachers: Mapping[str, Tensor],
    settings: CompatibilityConfig,
) -> LossSums:
    """The loss of Q inputs, summed; `loss` carries the gradient of `hidden` [N, D].

    teachers: log-likelihoods [A] by name, those of `needed_teachers(settings)`. In the sums,
    `old_tokens` is old's weight in the mixture, summed over inputs, and `kl_old`, `kl_new` are
    KL(p_teacher || q) of each teacher that is there.

    No [N, V] tensor outlives its chunk: tokens' log-probabilities come first, the gradient
    of each answer's score is known from them, and a second pass carries it to `hidden`.
    """
    keeps = torch.is_grad_enabled() and hidden.requires_grad
    with torch.no_grad():
        work = _Head(hidden.detach(), head, targets)
        scores_A = work.scores()
    with torch.enable_grad():
        leaf_A = scores_A.detach().requires_grad_(keeps)
        sums = loss_of_scores(leaf_A, targets, teachers, settings)
        if not keeps:
            return _detached(sums)
        (slope_A,) = torch.autograd.grad(sums.loss, leaf_A)
    with torch.no_grad():
        slope_A = without_rounding(slope_A, scores_A, targets)
        gradient_ND = work.gradient(slope_A)
    sums = _detached(sums)
    return replace(sums, loss=KnownGradient.apply(hidden, sums.loss, gradient_ND))


def loss_of_scores(
    scores: Tensor,
    targets: Targets,
    teachers: Mapping[str, Tensor],
    settings: CompatibilityConfig,
) -> LossSums:
    """The loss as a function of the student's log-likelihoods [A], fp64; differentiable."""
    temperature = settings.temperature
    student_QK = _gridded(scores, targets)
    taught = {n: _gridded(s.to(scores.dtype), targets) for n, s in teachers.items()}
    log_q_QK = _log_softmax(student_QK, targets, temperature)
    known_Q = targets.gold >= 0
    gold_Q = targets.gold.clamp(min=0)
    zero = scores.new_zeros(())
    ce_Q = -_log_softmax(student_QK, targets, 1.0).gather(1, gold_Q[:, None])[:, 0] * known_Q
    own_QK = _gridded(scores / targets.scale, targets)
    nll_QK = -(settings.nll_weight or 0.0) * torch.where(targets.grid >= 0, own_QK, 0.0)
    gold_nll_Q = nll_QK.gather(1, gold_Q[:, None])[:, 0] * known_Q
    loss_Q = settings.ce_weight * (ce_Q + gold_nll_Q)
    kl, old_share = {"old": zero, "new": zero}, zero
    for name, scores_QK in taught.items():
        kl[name] = _kl(_log_softmax(scores_QK, targets, temperature), log_q_QK, targets).sum()
    if settings.ce_weight < 1:
        share_Q = old_weight(taught, targets, settings)
        old_share = share_Q.sum()
        p_QK = mixture(taught, share_Q, targets, temperature)
        log_p_QK = p_QK.clamp(min=torch.finfo(p_QK.dtype).tiny).log()
        p1_QK = mixture(taught, share_Q, targets, 1.0)
        part_Q = _kl(log_p_QK, log_q_QK, targets) + (p1_QK * nll_QK).sum(1)
        if settings.margin > 0:
            part_Q = part_Q + (settings.margin - lead(student_QK, p_QK.argmax(1))).relu()
        if settings.focus > 0:
            right_Q = known_Q & (taught["old"].argmax(1) == targets.gold)
            part_Q = part_Q * (1 + settings.focus * right_Q)
        loss_Q = loss_Q + (1 - settings.ce_weight) * part_Q
    return LossSums(loss_Q.sum(), ce_Q.sum(), old_share, kl["old"], kl["new"])


def old_weight(
    teachers: Mapping[str, Tensor], targets: Targets, settings: CompatibilityConfig
) -> Tensor:
    """Old's weight in the mixture [Q], from the teachers' gridded scores [Q, K]."""
    some, share = next(iter(teachers.values())), settings.old_share
    if settings.teacher in ("new", "old", "mean"):
        fixed = {"new": 0.0, "old": 1.0, "mean": share}[settings.teacher]
        return some.new_full((len(some),), fixed)
    if settings.teacher == "confident":
        sure = {n: _log_softmax(s, targets, 1.0).amax(1).exp() for n, s in teachers.items()}
        return (share * sure["old"] >= (1 - share) * sure["new"]).to(some.dtype)
    right_Q = (teachers["old"].argmax(1) == targets.gold).to(some.dtype)
    return torch.where(targets.gold >= 0, right_Q, torch.full_like(right_Q, 0.5))


def mixture(
    teachers: Mapping[str, Tensor], old_weight: Tensor, targets: Targets, temperature: float
) -> Tensor:
    """p [Q, K] at a temperature: old's distribution by its weight [Q], and new's by the rest. A
    teacher without weight needn't be there."""
    weights = {"old": old_weight, "new": 1 - old_weight}
    parts = [
        weights[name][:, None] * _log_softmax(scores, targets, temperature).exp()
        for name, scores in teachers.items()
    ]
    return torch.stack(parts).sum(0)


def lead(scores: Tensor, answer: Tensor) -> Tensor:
    """By how much [Q] an answer's score leads the largest other, of [Q, K]; -inf is no answer."""
    chosen_Q1 = answer[:, None]
    others_QK = scores.scatter(1, chosen_Q1, -torch.inf)
    return scores.gather(1, chosen_Q1)[:, 0] - others_QK.amax(1)


def without_rounding(slope: Tensor, scores: Tensor, targets: Targets) -> Tensor:
    """d loss / d score [A], 0 on inputs whose student is its target but for rounding.

    Teachers and student score by other batches, so equal models differ by rounding. What is
    left of a gradient then is noise, of which Adam would make full steps.
    """
    there_QK, place_QK = targets.grid >= 0, targets.grid.clamp(min=0)
    most_Q = torch.where(there_QK, slope[place_QK].abs(), 0.0).amax(1)
    size_Q = torch.where(there_QK, scores[place_QK].abs(), 0.0).amax(1)
    noise_QK = (most_Q <= ROUNDING * size_Q)[:, None] & there_QK
    return slope.index_fill(0, targets.grid[noise_QK], 0.0)


class _Head:
    """The frozen head over N positions, in chunks that bound the logits that exist at once."""

    def __init__(self, hidden: Tensor, head: Head, targets: Targets):
        self.hidden, self.head, self.targets = hidden, head, targets
        rows = max(1, CHUNK_LOGITS[hidden.device.type] // head.width)
        self.cuts = [slice(a, min(a + rows, len(hidden))) for a in range(0, len(hidden), rows)]
        edges = torch.tensor([[c.start, c.stop] for c in self.cuts], device=hidden.device)
        self.ranges = torch.searchsorted(targets.place, edges).tolist()
        self.kept: Tensor | None = None  # the only chunk's logits: no second product then

    def scores(self) -> Tensor:
        """Log-likelihood of each answer [A], fp64: the log-softmax in fp32, the sum in fp64."""
        count = len(self.targets.scale)
        scores_A = torch.zeros(count, dtype=torch.float64, device=self.hidden.device)
        for cut, of in self._chunks():
            logits_nV = self.head.logits(self.hidden[cut])
            place_e = self.targets.place[of] - cut.start
            logprob_e = torch.log_softmax(logits_nV, 1)[place_e, self.targets.token[of]]
            scores_A.index_add_(0, self.targets.answer[of], logprob_e.double())
            self.kept = logits_nV if len(self.cuts) == 1 else None
        return scores_A * self.targets.scale

    def gradient(self, slope: Tensor) -> Tensor:
        """d loss / d hidden [N, D], from d loss / d score [A]."""
        slope_A = slope * self.targets.scale
        gradient_ND = torch.empty_like(self.hidden)
        for cut, of in self._chunks():
            logits_nV = self.head.logits(self.hidden[cut]) if self.kept is None else self.kept
            place_e = self.targets.place[of] - cut.start
            slope_e = slope_A[self.targets.answer[of]].to(logits_nV.dtype)
            total_n = logits_nV.new_zeros(len(logits_nV)).index_add_(0, place_e, slope_e)
            back_nV = torch.softmax(logits_nV, 1).mul_(-total_n[:, None])
            back_nV.index_put_((place_e, self.targets.token[of]), slope_e, accumulate=True)
            gradient_ND[cut] = self.head.hidden_gradient(back_nV, logits_nV)
        return gradient_ND

    def _chunks(self) -> Iterator[tuple[slice, slice]]:
        for cut, (low, high) in zip(self.cuts, self.ranges, strict=True):
            yield cut, slice(low, high)


def _gridded(scores: Tensor, targets: Targets) -> Tensor:
    """[A] -> [Q, K], -inf where an input has no such answer."""
    grid_QK = targets.grid
    return torch.where(grid_QK >= 0, scores[grid_QK.clamp(min=0)], -torch.inf)


def _log_softmax(scores: Tensor, targets: Targets, temperature: float) -> Tensor:
    """[Q, K], fp64; where an input has no such answer a number whose exponential is 0."""
    found_QK = torch.log_softmax(scores / temperature, 1)
    return torch.where(targets.grid >= 0, found_QK, NOTHING)


def _kl(log_p: Tensor, log_q: Tensor, targets: Targets) -> Tensor:
    """KL(p || q) [Q] of log-probabilities [Q, K]."""
    there_QK = targets.grid >= 0
    gap_QK = torch.where(there_QK, log_p - log_q, 0.0)
    return (log_p.exp() * gap_QK).sum(1)


def _detached(sums: LossSums) -> LossSums:
    return LossSums(**{f.name: getattr(sums, f.name).detach() for f in fields(sums)})
