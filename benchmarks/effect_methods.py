"""The study's methods: a table. Each is a setting of the compatibility adapter, or what is made
of predictions that are there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from effect_cells import MORE

from muscle.config import MaskName

Kind = Literal["version", "fit", "ensemble"]

UNLABELLED = MORE[1]
"""Inputs beside the training split's, unless a method says otherwise."""


@dataclass(frozen=True)
class Method:
    """One way to update.

    name      of its records
    title     in tables
    group     control, published, answer, other, growth
    kind      version: old or new, as they are; fit: a compat adapter; ensemble: both versions'
              choice probabilities averaged
    loss      settings under `compatibility`
    training  settings under `training`, for compat alone
    more      unlabelled inputs beside the training split's
    labelled  further labelled rows
    old, new  which adapters stand for the two teachers: "old", "new", or of the next seed
    seeds     new's adapters of so many seeds teach as one, in old's place
    """

    name: str
    title: str
    group: str
    kind: Kind = "fit"
    loss: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    more: int = 0
    labelled: int = 0
    old: str = "old"
    new: str = "new"
    seeds: int = 0

    @property
    def tokens(self) -> bool:
        """Whether it reads both teachers' tokens, which takes one tokenizer."""
        return self.loss.get("level") == "token" and self.loss.get("ce_weight") != 1.0


def _answer(name: str, title: str, teacher: str, group: str = "answer", **given: Any) -> Method:
    own = {k: given.pop(k) for k in ("more", "old", "new", "seeds") if k in given}
    loss = {"level": "choice", "teacher": teacher, "temperature": 1.0, **given}
    return Method(name, title, group, loss=loss, **own)


def _versions() -> list[Method]:
    return [
        Method("new", "new", "control", "version", new="new"),
        Method("old", "staying on old", "control", "version", new="old"),
        Method("again", "old, second seed (noise floor)", "control", "version", new="old+1"),
        Method("ensemble", "old + new averaged, two models at inference", "control", "ensemble"),
    ]


def _controls() -> list[Method]:
    ce = {"level": "token", "ce_weight": 1.0}
    return [
        Method("ce", "CE on, as many updates", "control", loss=ce),
        Method(
            "ce-twice",
            "CE on, as many updates as with unlabelled inputs",
            "control",
            loss={**ce, "epochs": 4},
        ),
        Method(
            "ce-labelled",
            f"CE on, {UNLABELLED:,} more labelled inputs",
            "control",
            loss=ce,
            labelled=UNLABELLED,
        ),
        _answer(
            "second-new",
            "second seed of new teaches, + unlabelled",
            "old",
            "control",
            more=UNLABELLED,
            old="new+1",
        ),
        _answer(
            "interpolate",
            "weights halfway between new and “mean teaches, + unlabelled”",
            "mean",
            "control",
            more=UNLABELLED,
            interpolation=0.5,
        ),
    ]


def _published() -> list[Method]:
    found = []
    for part, words in (("answer", "answer tokens"), ("all", "all tokens")):
        for mask in get_args(MaskName):
            found.append(
                Method(
                    f"mask-{mask}-{part}",
                    f"mask {mask}, {words}",
                    "published",
                    loss={"level": "token", "mask": mask, "temperature": 2.0},
                    training={"loss_on": part},
                )
            )
    return found


TEACHERS = {
    "old": "old teaches",
    "new": "new teaches",
    "mean": "mean of both teaches",
    "confident": "the more confident teaches",
    "old-where-right": "old where right, else new (labels)",
}


def _answers() -> list[Method]:
    found = []
    for teacher, title in TEACHERS.items():
        found.append(_answer(f"by-{teacher}+u", f"{title}, + unlabelled", teacher, more=UNLABELLED))
    for teacher, title in TEACHERS.items():
        found.append(_answer(f"by-{teacher}", title, teacher))
    both = {"more": UNLABELLED}
    found += [
        _answer("by-old-t2+u", "old teaches, T 2, + unlabelled", "old", temperature=2.0, **both),
        _answer("by-mean-t2+u", "mean teaches, T 2, + unlabelled", "mean", temperature=2.0, **both),
        # What the first screening led to.
        _answer("by-mean-t4+u", "mean teaches, T 4, + unlabelled", "mean", temperature=4.0, **both),
        _answer("by-confident-t2+u", f"{TEACHERS['confident']}, T 2, + unlabelled", "confident",
                temperature=2.0, **both),
        _answer("by-mean-t2-margin+u", "mean, T 2, margin 1, + unlabelled", "mean", margin=1.0,
                temperature=2.0, **both),
        _answer("by-mean-t2+u-e4", "mean, T 2, + unlabelled, 4 epochs", "mean", temperature=2.0,
                epochs=4, **both),
        _answer("by-mean-t2-margin+u-e4", "mean, T 2, margin 1, + unlabelled, 4 epochs", "mean",
                margin=1.0, temperature=2.0, epochs=4, **both),
        _answer("by-mean-t2", "mean teaches, T 2", "mean", temperature=2.0),
        _answer("by-mean-t2-margin", "mean, T 2, margin 1", "mean", margin=1.0, temperature=2.0),
        _answer("by-mean-t2-margin3+u", "mean, T 2, margin 3, + unlabelled", "mean", margin=3.0,
                temperature=2.0, **both),
        _answer("by-confident-t2", f"{TEACHERS['confident']}, T 2", "confident", temperature=2.0),
        _answer("by-confident-t2-margin", "the more confident, T 2, margin 1", "confident",
                margin=1.0, temperature=2.0),
        _answer("by-confident-t2-margin+u", "the more confident, T 2, margin 1, + unlabelled",
                "confident", margin=1.0, temperature=2.0, **both),
        _answer("by-confident-t2-margin+u-e4",
                "the more confident, T 2, margin 1, + unlabelled, 4 epochs", "confident",
                margin=1.0, temperature=2.0, epochs=4, **both),
        _answer("by-mean-t2-margin-ce+u", "mean, T 2, margin 1, CE .5, + unlabelled", "mean",
                margin=1.0, temperature=2.0, ce_weight=0.5, **both),
        *(_answer(f"by-confident-t2-margin+u-x{x:g}",
                  f"the more confident, T 2, margin 1, + unlabelled, {x:g} times the change",
                  "confident", margin=1.0, temperature=2.0, interpolation=x, **both)
          for x in (1.25, 1.5)),
        _answer("by-mean-t2-ce+u", "mean, T 2, CE .5, + unlabelled", "mean", temperature=2.0,
                ce_weight=0.5, **both),
        _answer("by-old-folds", "old teaches, 4 folds", "old", folds=4),
        _answer("by-mean-folds", "mean teaches, 4 folds", "mean", folds=4),
        _answer(
            "by-old-margin+u", "old teaches, margin 1, + unlabelled", "old", margin=1.0, **both
        ),
        _answer(
            "by-mean-margin+u", "mean teaches, margin 1, + unlabelled", "mean", margin=1.0, **both
        ),
        _answer("by-old-ce+u", "old teaches, CE .3, + unlabelled", "old", ce_weight=0.3, **both),
    ]  # fmt: skip
    return found


def _others() -> list[Method]:
    return [
        _answer("focus", "focal distillation (PCT): old, weight 1 + 5 where right, CE .5", "old",
                "other", focus=5.0, ce_weight=0.5),
        _answer("focus+u", "old, weight 1 + 5 where right, + unlabelled", "old", "other",
                focus=5.0, more=UNLABELLED),
        _answer("elodi+u", "three seeds of new teach (ELODI), + unlabelled", "old", "other",
                more=UNLABELLED, seeds=3),
    ]  # fmt: skip


def growth(teacher: str) -> list[Method]:
    """How the effect of a teacher grows: with inputs, epochs and old's weight."""
    title = TEACHERS[teacher]
    found = []
    for n in MORE:
        if n != UNLABELLED:
            name = f"by-{teacher}+{n}"
            found.append(_answer(name, f"{title}, + {n:,} inputs", teacher, "growth", more=n))
    for epochs in (1, 4, 8):
        found.append(_answer(f"by-{teacher}+u-e{epochs}", f"{title}, + unlabelled, {epochs} epochs",
                             teacher, "growth", more=UNLABELLED, epochs=epochs))  # fmt: skip
    return found


def mixes() -> list[Method]:
    """The mean teacher with other weights of old than a half; 0 and 1 are one teacher alone."""
    return [
        _answer(f"by-mean-{mix:g}+u", f"mean, old's weight {mix:g}, + unlabelled", "mean", "growth",
                more=UNLABELLED, mix=mix)
        for mix in (0.25, 0.75)
    ]  # fmt: skip


GROWN = ("old", "mean")

ALL: list[Method] = [
    *_versions(),
    *_controls(),
    *_answers(),
    *_published(),
    *_others(),
    *mixes(),
    *(m for teacher in GROWN for m in growth(teacher)),
]

METHODS: dict[str, Method] = {m.name: m for m in ALL}

CONTROLS: tuple[str, ...] = tuple(m.name for m in METHODS.values() if m.group == "control")

RIVALS = ("ce", "ce-twice", "ce-labelled", "second-new", "interpolate")
"""Controls that serve one model: a method is to be better than each."""

GROWTH: dict[str, dict[str, Sequence[tuple[float, str]]]] = {
    "inputs": {
        t: [
            (0, f"by-{t}"),
            (0.5, f"by-{t}+1000"),
            (1, f"by-{t}+u"),
            (2, f"by-{t}+4000"),
            (4, f"by-{t}+8000"),
        ]
        for t in GROWN
    },
    "epochs": {
        t: [
            (1, f"by-{t}+u-e1"),
            (2, f"by-{t}+u"),
            (4, f"by-{t}+u-e4"),
            (8, f"by-{t}+u-e8"),
        ]
        for t in GROWN
    },
    "mix": {
        "mean": [
            (0, "by-new+u"),
            (0.25, "by-mean-0.25+u"),
            (0.5, "by-mean+u"),
            (0.75, "by-mean-0.75+u"),
            (1, "by-old+u"),
        ]
    },
}
"""What is varied -> teacher -> (its value, the method)."""


def candidates() -> list[str]:
    """Methods that the best are chosen from: those that nobody else's table holds already."""
    return [m.name for m in METHODS.values() if m.group in ("answer", "published", "other")]
