"""The answer-level loss against a naive formula on full logits, input by input."""

import math

import pytest
import torch
from torch import Tensor

from muscle.config import CompatibilityConfig
from muscle.losses import choices
from muscle.losses.choices import Targets, choice_sums, lead
from muscle.losses.needs import needed_teachers
from muscle.models.head import Head

V, D = 17, 5
ANSWERS = (2, 4, 3, 2)
"""K of each input."""

LENGTHS = (3, 1, 2, 2, 1, 4, 1, 2, 3, 2, 1)
GOLD = (1, -1, 0, 0)


class Toy:
    """Random hidden states of scored positions, some of which predict two answers' tokens."""

    def __init__(self, cap: float | None = None):
        generator = torch.Generator().manual_seed(3)
        self.head = Head(
            torch.randn(V, D, generator=generator, dtype=torch.float64),
            torch.randn(V, generator=generator, dtype=torch.float64),
            cap=cap,
        )
        answer = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
        place, free = [], 0
        starts = {sum(ANSWERS[:q]) for q in range(len(ANSWERS))}
        for number, length in enumerate(LENGTHS):
            if number in starts:
                shared, free = free, free + 1  # the prompt's end predicts every first token
            own = list(range(free, free + length - 1))
            free += length - 1
            place += [shared, *own]
        order = torch.tensor(place).argsort(stable=True)
        grid = torch.full((len(ANSWERS), max(ANSWERS)), -1)
        for q, count in enumerate(ANSWERS):
            grid[q, :count] = torch.arange(count) + sum(ANSWERS[:q])
        token = torch.randint(0, V, (len(place),), generator=generator)
        self.scale = torch.rand(len(LENGTHS), generator=generator, dtype=torch.float64) + 0.5
        self.targets = Targets(
            torch.tensor(place)[order], token[order], answer[order], grid, self.scale,
            torch.tensor(GOLD),
        )  # fmt: skip
        self.hidden = torch.randn(free, D, generator=generator, dtype=torch.float64)
        self.teachers = {
            name: torch.randn(len(LENGTHS), generator=generator, dtype=torch.float64) * 3
            for name in ("old", "new")
        }

    def fused(self, settings: CompatibilityConfig) -> tuple[choices.LossSums, Tensor]:
        hidden = self.hidden.clone().requires_grad_()
        teachers = {name: self.teachers[name] for name in needed_teachers(settings)}
        sums = choice_sums(hidden, self.head, self.targets, teachers, settings)
        sums.loss.backward()
        assert hidden.grad is not None
        return sums, hidden.grad

    def naive(self, settings: CompatibilityConfig) -> tuple[Tensor, Tensor]:
        hidden = self.hidden.clone().requires_grad_()
        logits = hidden @ self.head.weight.T + self.head.bias
        if self.head.cap is not None:
            logits = self.head.cap * torch.tanh(logits / self.head.cap)
        logprobs = logits.log_softmax(1)
        t = self.targets
        scores = []
        for number in range(len(LENGTHS)):
            mine = (t.answer == number).nonzero()[:, 0]
            total = sum((logprobs[t.place[e], t.token[e]] for e in mine), torch.zeros(()))
            scores.append(total * self.scale[number])
        loss = torch.zeros((), dtype=torch.float64)
        first = 0
        for count, gold in zip(ANSWERS, GOLD, strict=True):
            mine = torch.stack(scores[first : first + count])
            taught = {n: s[first : first + count] for n, s in self.teachers.items()}
            scale = self.scale[first : first + count]
            loss = loss + naive_loss(mine, taught, gold, settings, scale)
            first += count
        loss.backward()
        assert hidden.grad is not None
        return loss.detach(), hidden.grad


def naive_loss(
    mine: Tensor,
    taught: dict[str, Tensor],
    gold: int,
    settings: CompatibilityConfig,
    scale: Tensor,
) -> Tensor:
    """One input's loss, as docs/compatibility.md writes it."""
    tau = settings.temperature
    p_old, p_new = ((taught[n] / tau).softmax(0) for n in ("old", "new"))
    old_right = gold >= 0 and int(taught["old"].argmax()) == gold
    mix = 0.5 if settings.mix is None else settings.mix
    if settings.teacher == "old":
        share = 1.0
    elif settings.teacher == "new":
        share = 0.0
    elif settings.teacher == "mean":
        share = mix
    elif settings.teacher == "confident":
        sure_old, sure_new = (float(taught[n].softmax(0).max()) for n in ("old", "new"))
        share = float(mix * sure_old >= (1 - mix) * sure_new)
    else:
        share = 0.5 if gold < 0 else float(old_right)
    p = share * p_old + (1 - share) * p_new
    kl = (p * (p.log() - (mine / tau).log_softmax(0))).sum()
    best = int(p.argmax())
    others = torch.stack([s for k, s in enumerate(mine) if k != best])
    hinge = (settings.margin - (mine[best] - others.max())).relu() if settings.margin else 0.0
    nll = settings.nll_weight or 0.0
    bare = mine / scale  # log-likelihoods, whatever their length
    ce = -mine.log_softmax(0)[gold] - nll * bare[gold] if gold >= 0 else 0.0
    p1 = share * taught["old"].softmax(0) + (1 - share) * taught["new"].softmax(0)
    likelihood = -nll * sum((p1[k] * bare[k] for k in range(len(mine))), torch.zeros(()))
    weight = 1 + settings.focus * old_right
    w = settings.ce_weight
    return weight * (1 - w) * (kl + likelihood + hinge) + w * ce


CASES = [
    {"teacher": "old", "temperature": 1.0},
    {"teacher": "new"},
    {"teacher": "mean"},
    {"teacher": "mean", "mix": 0.8, "temperature": 3.0},
    {"teacher": "confident", "mix": 0.6},
    {"teacher": "old-where-right", "temperature": 0.5},
    {"teacher": "mean", "margin": 1.5},
    {"teacher": "new", "focus": 4.0},
    {"teacher": "old", "ce_weight": 0.3, "margin": 0.5, "focus": 1.0},
    {"ce_weight": 1.0},
    {"teacher": "mean", "nll_weight": 0.7},
    {"teacher": "old", "nll_weight": 2.0, "ce_weight": 0.4, "focus": 1.0, "margin": 0.5},
    {"ce_weight": 1.0, "nll_weight": 1.0},
]


@pytest.mark.parametrize("cap", [None, 4.0])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("rows", [1000, 2])
def test_loss_and_gradient_are_the_naive_ones(
    case: dict[str, object], cap: float | None, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(choices.CHUNK_LOGITS, "cpu", rows * V)  # in one chunk, and in many
    toy, settings = Toy(cap), CompatibilityConfig.model_validate({"level": "choice", **case})
    sums, gradient = toy.fused(settings)
    loss, expected = toy.naive(settings)
    assert sums.loss.item() == pytest.approx(loss.item(), rel=1e-9)
    assert torch.allclose(gradient, expected, rtol=1e-7, atol=1e-10)
    assert gradient.abs().max() > 0


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn() -> None:
    toy = Toy()
    settings = CompatibilityConfig(level="choice", teacher="old", temperature=1.0)
    work = choices._Head(toy.hidden, toy.head, toy.targets)
    toy.teachers["old"] = work.scores()
    sums, gradient = toy.fused(settings)
    assert abs(sums.loss.item()) < 1e-12 and gradient.abs().max() < 1e-12
    assert sums.old_tokens.item() == len(ANSWERS)


def test_the_sums_say_how_far_each_teacher_is_and_how_much_old_teaches() -> None:
    toy = Toy()
    sums, _ = toy.fused(CompatibilityConfig(level="choice", teacher="mean", mix=0.25))
    assert sums.old_tokens.item() == pytest.approx(0.25 * len(ANSWERS))
    for name, value in (("old", sums.kl_old), ("new", sums.kl_new)):
        alone, _ = toy.fused(CompatibilityConfig(level="choice", teacher=name))
        assert value.item() == pytest.approx(alone.loss.item())


def test_confident_follows_the_surer_teacher_and_mix_tips_it() -> None:
    toy = Toy()
    counts = [
        toy.fused(CompatibilityConfig(level="choice", teacher="confident", mix=mix))[0].old_tokens
        for mix in (0.0, 0.5, 1.0)
    ]
    assert counts[0] == 0 < counts[1] < counts[2] == len(ANSWERS)


def test_unlabelled_inputs_have_no_cross_entropy() -> None:
    toy = Toy()
    sums, _ = toy.fused(CompatibilityConfig(level="choice", ce_weight=1.0))
    labelled = [q for q, gold in enumerate(GOLD) if gold >= 0]
    assert 0 < sums.loss.item() < len(labelled) * 50 and math.isfinite(sums.loss.item())
    toy.targets = Targets(*(getattr(toy.targets, n) for n in ("place", "token", "answer", "grid",
                            "scale")), gold=torch.full((len(ANSWERS),), -1))  # fmt: skip
    assert toy.fused(CompatibilityConfig(level="choice", ce_weight=1.0))[0].loss.item() == 0


def test_lead_is_over_the_largest_other_answer() -> None:
    scores = torch.tensor([[1.0, 4.0, 2.5], [3.0, -torch.inf, 1.0]])
    assert lead(scores, torch.tensor([1, 2])).tolist() == [1.5, -2.0]


def test_a_difference_that_rounding_makes_has_no_gradient() -> None:
    toy = Toy()
    settings = CompatibilityConfig(level="choice", teacher="new", temperature=1.0)
    scores = choices._Head(toy.hidden, toy.head, toy.targets).scores()
    noise = torch.linspace(-1, 1, len(scores), dtype=torch.float64) * 1e-6
    toy.teachers["new"] = scores * (1 + noise)
    _, gradient = toy.fused(settings)
    assert gradient.abs().max() == 0
    toy.teachers["new"] = scores * (1 + noise * 1e4)
    _, gradient = toy.fused(settings)
    assert gradient.abs().max() > 0
