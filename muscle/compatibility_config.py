"""How the compatibility adapter is taught: by tokens, as published, or by whole answers."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from muscle.settings import Fraction, Interpolation, MaskName, Part, Positive
from muscle.task_config import TaskConfig

LevelName = Literal["token", "choice"]

TeacherName = Literal["old", "new", "mean", "confident", "old-where-right"]

MIXED: frozenset[TeacherName] = frozenset({"mean", "confident"})
"""Teachers that `mix` weighs."""


class InputsConfig(Part):
    """Inputs of a task that nobody labelled: a file, the rest of a split, another task.

    path     JSONL(.gz) or Parquet with the fields that the task's prompt reads, or chats
    split    "train" is what `training.limit` leaves out, "validation" the task's own
    task     another task, whose training split is asked in its own words
    limit    so many of them, by `data_seed`
    overlap  what to do with those that are test inputs too
    """

    path: str | None = None
    split: Literal["train", "validation"] | None = None
    task: TaskConfig | None = None
    limit: Positive | None = None
    overlap: Literal["refuse", "drop"] = "refuse"

    @field_validator("task", mode="before")
    @classmethod
    def _task_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> "InputsConfig":
        given = [n for n in ("path", "split", "task") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError("give one of 'path', 'split' and 'task' (or write train)")
        return self


def _kind(value: Any) -> str:
    # Names that `muscle.experiment.describe` knows for a union's: they are no settings.
    return "[text]" if isinstance(value, str) else "InputsConfig"


def _is_train(value: str) -> str:
    if value != "train":
        raise ValueError(
            f"'{value}' is no input: write train, or {{path: {value}}} for a file, "
            f"{{split: {value}}} for a split"
        )
    return value


Inputs = Annotated[
    Annotated[str, AfterValidator(_is_train), Tag("[text]")]
    | Annotated[InputsConfig, Tag("InputsConfig")],
    Discriminator(_kind),
]
"""train, or one of unlabelled ones."""

TOKEN_ONLY = ("mask", "old_weight")
CHOICE_ONLY = (
    "teacher",
    "mix",
    "margin",
    "focus",
    "nll_weight",
    "length_normalised",
    "inputs",
    "folds",
    "samples",
)


def level_of(name: str) -> LevelName | None:
    """The level that alone has a setting; None: both have it."""
    if name in TOKEN_ONLY:
        return "token"
    return "choice" if name in CHOICE_ONLY else None


class CompatibilityConfig(Part):
    """The loss of the compatibility adapter, and what it is taught on.

    Level auto is the one whose settings are given (token for labels alone, ce_weight 1), else
    choice where the task gives its answers and token where a model writes them.

    Level token, as published (section 4, A.4):
        L = (1 - ce_weight) mean[old_weight m a_old + (1 - m) a_new] + ce_weight CE
    Level choice, over the K answers of an input, p the teachers' mixed distribution over
    them and q the student's, both of log-likelihoods divided by the temperature:
        L = mean[w (1 - ce_weight) (KL(p || q) + nll_weight NLL + hinge(margin)) + ce_weight CE]
    with w = 1 + focus where old is right, else 1 (`muscle.losses.choices`).

    teacher            whose distribution p is; `mix` is old's weight in mean and confident
    nll_weight         of the answers' own negative log-likelihood, weighed by p (at
                       T = 1); default: 1 where a model writes its answers, 0 where they are
                       given and in the null test of teacher new
    margin             by how much (nats) p's likeliest answer is to lead all others
    length_normalised  log-likelihoods by length, as acc_norm has it; default: as the task's
                       metric does
    inputs             what is asked: "train" and unlabelled ones
    folds              teach the training split by adapters that haven't seen the example
    samples            answers drawn from each teacher beside its greedy one, where a model
                       writes its answers

    `learning_rate`, `epochs` and `warmup_steps` are the task adapters' unless given
    ("same hyper-parameters", A.1). `interpolation` w serves (1 - w) new + w compat, of the
    weight changes BA, at new's rank; 1 is the trained adapter itself.
    """

    level: LevelName | Literal["auto"] = "auto"
    mask: MaskName = "student-wrong"
    temperature: Annotated[float, Field(gt=0.0)] = 2.0
    ce_weight: Fraction = 0.0
    old_weight: Annotated[float, Field(ge=0.0)] = 1.0
    teacher: TeacherName = "confident"
    mix: Fraction | None = None  # default: 0.5
    margin: Annotated[float, Field(ge=0.0)] = 0.0
    focus: Annotated[float, Field(ge=0.0)] = 0.0
    nll_weight: Annotated[float, Field(ge=0.0)] | None = None
    length_normalised: bool | None = None
    inputs: Annotated[list[Inputs], Field(min_length=1)] = Field(default=["train"])
    folds: Annotated[int, Field(ge=2)] | None = None
    samples: Annotated[int, Field(ge=0, le=32)] = 2
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    epochs: Positive | None = None
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    interpolation: Interpolation = 1.0

    @model_validator(mode="after")
    def _one_level(self) -> "CompatibilityConfig":
        token, choice = self._given(TOKEN_ONLY), self._given(CHOICE_ONLY)
        if self.level == "auto":
            if token and choice:
                raise ValueError(
                    f"'{token[0]}' is of level token and '{choice[0]}' of level choice: leave one "
                    "out"
                )
            if token or choice or self.ce_weight == 1.0:
                object.__setattr__(self, "level", "choice" if choice else "token")
        wrong, other = (choice, "choice") if self.level == "token" else (token, "token")
        if wrong:
            raise ValueError(
                f"'{wrong[0]}' is of level {other}: set 'level: {other}' or leave it out"
            )
        if self.mix is not None and self.teacher not in MIXED:
            raise ValueError(f"'mix' weighs the teachers mean and confident, not {self.teacher}")
        if self.folds is not None and "train" not in self.inputs:
            raise ValueError("'folds' are of the training split: put train among 'inputs'")
        if "train" not in self.inputs:
            self._labels_are_read()
        if self.inputs.count("train") > 1:
            raise ValueError("'train' is among 'inputs' twice")
        return self

    def _given(self, names: Sequence[str]) -> list[str]:
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].get_default()]

    def at(self, level: LevelName) -> "CompatibilityConfig":
        """These settings, at a level that was left to the task."""
        return self.model_copy(update={"level": level}) if self.level == "auto" else self

    def _labels_are_read(self) -> None:
        """Refuse what means nothing without labels, where no input has any."""
        named = {
            "ce_weight: 1": self.ce_weight == 1.0,
            "teacher: old-where-right": self.teacher == "old-where-right",
            f"focus: {self.focus:g}": self.focus > 0,
        }
        for text, given in named.items():
            if given:
                raise ValueError(f"'{text}' needs labels: put train among 'inputs'")

    @property
    def by_choice(self) -> bool:
        """Whether whole answers are taught."""
        return self.level == "choice"

    @property
    def keeps_new(self) -> bool:
        """Whether whole answers teach the student nothing but what new says: a null test."""
        others = self.margin or self.focus or self.ce_weight or self.folds
        return self.teacher == "new" and not others

    @property
    def old_share(self) -> float:
        """The weight of old in a mixed teacher."""
        return 0.5 if self.mix is None else self.mix


def at_level(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dumped settings without those that are of another level, and so mean nothing; with auto
    nothing of either is given."""
    level = values.get("level", "auto")
    return {name: value for name, value in values.items() if level_of(name) in (None, level)}


def recorded(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment's settings as a record holds them: those that were written before there were
    levels are of tokens, whatever the default is today."""
    settings = experiment.get("compatibility")
    if not isinstance(settings, Mapping):
        return dict(experiment)
    return {**experiment, "compatibility": {"level": "token", **settings}}


def inputs_text(inputs: Sequence[Inputs]) -> str:
    """Inputs as tables show them: train + traffic.jsonl."""
    return " + ".join(_input_text(one) for one in inputs)


def _input_text(one: Inputs) -> str:
    if isinstance(one, str):
        return one
    text = one.path.rstrip("/").rpartition("/")[2] if one.path is not None else ""
    if one.split is not None:
        text = f"split {one.split}"
    if one.task is not None:
        text = f"task {one.task.name}"
    return text if one.limit is None else f"{text} ({one.limit})"
