"""The search space: what `muscle tune` varies, checked before a trial costs anything.

Where several levels are searched, each has settings of its own; a point holds those of its level
only. So it is with `mix`, which only mixed teachers have, and `folds`, which only the training
split has.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from muscle.compatibility_config import (
    MIXED,
    Inputs,
    LevelName,
    inputs_text,
    level_of,
)
from muscle.config import CompatibilityConfig, Experiment, RangeConfig, SpaceConfig
from muscle.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LABELLED = ("folds", "focus")
"""Parameters that mean something where the training split is asked."""

DECIDING = ("level", "teacher", "inputs")
"""Parameters whose value decides whether others mean anything; each is a list."""


@dataclass(frozen=True)
class Space:
    """The parameters that a search varies, in the order of `SpaceConfig`.

    parameters  list of the values, or an interval with both ends; those of `epochs` are whole;
                those of `inputs` are texts
    inputs      what these texts stand for
    """

    parameters: Mapping[str, list[Any] | RangeConfig]
    inputs: Mapping[str, Sequence[Inputs]] = field(default_factory=dict)

    def distributions(self) -> "dict[str, BaseDistribution]":
        """Optuna's: lists are categorical, even of numbers; `epochs` intervals are ints."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        found: dict[str, BaseDistribution] = {}
        for name, values in self.parameters.items():
            if isinstance(values, list):
                found[name] = CategoricalDistribution(values)
            elif name == "epochs":
                found[name] = IntDistribution(int(values.min), int(values.max), values.log)
            else:
                found[name] = FloatDistribution(values.min, values.max, values.log)
        return found

    def values(self, name: str) -> list[Any] | None:
        """All values of a parameter; None for an interval of real numbers."""
        values = self.parameters[name]
        if isinstance(values, list):
            return values
        return list(range(int(values.min), int(values.max) + 1)) if name == "epochs" else None

    def _listed(self, name: str) -> list[Any]:
        return (self.values(name) or []) if name in self.parameters else []

    def in_force(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The values among these that mean something beside the others."""
        return {name: params[name] for name in params if self._means(name, params)}

    def _means(self, name: str, params: Mapping[str, Any]) -> bool:
        level = params.get("level")
        if level is not None and level_of(name) not in (None, level):
            return False
        if name == "mix" and "teacher" in params:
            return params["teacher"] in MIXED
        if name in LABELLED and "inputs" in params:
            return "train" in self.inputs[params["inputs"]]
        return True

    @property
    def always(self) -> list[str]:
        """The parameters that every point has."""
        cases = list(self._cases())
        return [name for name in self.parameters if all(name in case for case in cases)]

    def _cases(self) -> Iterator[dict[str, list[Any] | None]]:
        """The values of the parameters that mean something, for each choice of those that
        decide it."""
        deciding = [name for name in DECIDING if name in self.parameters]
        seen = []
        for chosen in product(*map(self._listed, deciding)):
            kept = self.in_force(dict(zip(deciding, chosen, strict=True)))
            if kept in seen:
                continue
            seen.append(kept)
            yield {
                name: [kept[name]] if name in kept else self.values(name)
                for name in self.parameters
                if self._means(name, kept)
            }

    def size(self) -> int | None:
        """The number of points; None where one parameter is a real interval."""
        total = 0
        for case in self._cases():
            counts = [len(values) for values in case.values() if values is not None]
            if len(counts) < len(case):
                return None
            total += prod(counts)
        return total

    def points(self) -> Iterator[dict[str, Any]]:
        """All points of a space without real intervals, one after the other."""
        for case in self._cases():
            for values in product(*(given or [] for given in case.values())):
                yield dict(zip(case, values, strict=True))

    def point(self, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """These values as a point: in the space's order and types; None where it has no such."""
        point: dict[str, Any] = {}
        for name, values in self.parameters.items():
            if name not in params:
                continue
            value = params[name]
            if isinstance(values, list):
                if value not in values:
                    return None
                point[name] = values[values.index(value)]
            elif not isinstance(value, int | float) or not values.min <= value <= values.max:
                return None
            elif name == "epochs":
                if value % 1:
                    return None
                point[name] = int(value)
            else:
                point[name] = float(value)
        means = {name for name in self.parameters if self._means(name, point)}
        return point if params.keys() == point.keys() == means else None

    def settings(self, params: Mapping[str, Any], experiment: Experiment) -> CompatibilityConfig:
        """The experiment's compatibility settings with a point's values put in.

        What the experiment has for another level, teacher or other inputs goes to its default.
        """
        values = {**experiment.compatibility.model_dump(), **params}
        if "inputs" in params:
            values["inputs"] = list(self.inputs[params["inputs"]])
        here = (None, values["level"])
        without = {name for name in values if level_of(name) not in here and name not in params}
        if values["teacher"] not in MIXED and "mix" not in params:
            without.add("mix")
        if "train" not in values["inputs"]:
            without |= {name for name in LABELLED if name not in params}
        return CompatibilityConfig.model_validate(
            {name: value for name, value in values.items() if name not in without}
        )

    def start(self, experiment: Experiment) -> dict[str, Any] | None:
        """The experiment's own compatibility settings as a point; None where they lie outside.

        A `learning_rate` or `epochs` that isn't given is the task adapters', a `mix` the half.
        """
        training, given = experiment.compat_training, experiment.compatibility
        own = {name: getattr(given, name) for name in self.parameters}
        own |= {"learning_rate": training.learning_rate, "epochs": training.epochs}
        own |= {"mix": given.old_share}
        if "inputs" in own:
            same = (text for text, inputs in self.inputs.items() if list(inputs) == given.inputs)
            own["inputs"] = next(same, None)
            if own["inputs"] is None and given.by_choice:
                return None
        return self.point(self.in_force({name: own[name] for name in self.parameters}))

    def levels(self, experiment: Experiment) -> list[LevelName]:
        """The levels that are searched."""
        return self._listed("level") or [experiment.compatibility.level]

    def taught(self, experiment: Experiment) -> list[CompatibilityConfig]:
        """Settings that between them read all that teachers leave for any point.

        Tokens: both teachers' states. Choices: their answers to each set of inputs.
        """
        found = []
        for level in self.levels(experiment):
            if level == "token":
                found.append(CompatibilityConfig(level="token"))
                continue
            teachers = {*self._listed("teacher")} or {experiment.compatibility.teacher}
            keys = [name for name in ("inputs", "folds") if name in self.parameters]
            for values in product(*map(self._listed, keys)):
                kept = self.in_force({"level": level, **dict(zip(keys, values, strict=True))})
                who = "old" if teachers == {"old"} else "mean"
                reading = {"teacher": who, "mix": None, "ce_weight": 0.0}
                one = self.settings({**kept, **reading}, experiment)
                found += [one] if one not in found else []
        return found

    def to_json(self) -> dict[str, Any]:
        """Name -> list of values, or `{min, max, log}`."""
        found: dict[str, Any] = {}
        for name, values in self.parameters.items():
            if isinstance(values, list):
                found[name] = list(values)
            else:
                kind = int if name == "epochs" else float
                found[name] = {
                    "min": kind(values.min),
                    "max": kind(values.max),
                    "log": values.log,
                }
        return found


def default_space(experiment: Experiment) -> SpaceConfig:
    """What is searched where the experiment doesn't say: every setting of its level, around its
    own rates.

    Of its level: two at once take twice the trials and twice the teachers' answers, and who
    wants that writes `level: [token, choice]`. Masks and teachers are those that read the old
    model; without it there is nothing to be compatible with.
    """
    training = experiment.compat_training
    rate, epochs = training.learning_rate, training.epochs
    common: dict[str, Any] = {
        "temperature": RangeConfig(min=1.0, max=4.0, log=True),
        # Rounded, since people read the ends: 3e-05 x 3 is 8.999999999999999e-05.
        "learning_rate": RangeConfig(
            min=float(f"{rate / 3:.4g}"), max=min(1.0, float(f"{3 * rate:.4g}")), log=True
        ),
        "epochs": RangeConfig(min=1, max=epochs) if epochs > 1 else None,
    }
    own = experiment.compatibility
    if own.by_choice:
        return SpaceConfig(
            teacher=["old", "mean", "confident", "old-where-right"],
            mix=RangeConfig(min=min(0.2, own.old_share), max=max(0.8, own.old_share)),
            margin=[0.0, 0.5, 1.0, 2.0],  # a list, so that none at all is among them
            **common,
        )
    return SpaceConfig(
        mask=[
            "student-wrong",
            "old-right",
            "token-likelihood",
            "sequence-likelihood",
            "always-old",
        ],
        ce_weight=[0.0, 0.1, 0.25, 0.5],
        old_weight=RangeConfig(min=0.5, max=2.0, log=True),
        **common,
    )


def make_space(experiment: Experiment) -> Space:
    """The experiment's space, or the default one.

    Raises:
        UserError: nothing to search, an empty list, a value given twice, an interval without
            an inside, or a value that the compatibility settings don't take.
    """
    config = experiment.tuning.space or default_space(experiment)
    parameters: dict[str, list[Any] | RangeConfig] = {}
    inputs: dict[str, Sequence[Inputs]] = {}
    for name in SpaceConfig.model_fields:
        values = getattr(config, name)
        if values is None:
            continue
        where = f"tuning.space.{name}"
        if isinstance(values, RangeConfig):
            _check_range(where, name, values)
        else:
            _check_list(where, name, values)
        if name == "inputs":
            inputs = _named(values)
            values = list(inputs)
        parameters[name] = values
    if all(isinstance(values, list) and len(values) == 1 for values in parameters.values()):
        known = ", ".join(SpaceConfig.model_fields)
        raise UserError(
            "setting 'tuning.space': the space has one point: "
            f"give several values, or an interval, to one of {known}"
        )
    space = Space(parameters, inputs)
    _check_means(space, experiment)
    return space


def _named(values: list[list[Inputs]]) -> dict[str, Sequence[Inputs]]:
    """Each of the inputs under a text of its own."""
    found: dict[str, Sequence[Inputs]] = {}
    for inputs in values:
        text = inputs_text(inputs)
        again = sum(name == text or name.startswith(f"{text} #") for name in found)
        found[f"{text} #{again + 1}" if again else text] = inputs
    return found


def _check_means(space: Space, experiment: Experiment) -> None:
    """Refuse parameters that no point of the space would have."""
    own = experiment.compatibility
    levels = space.levels(experiment)
    for name in space.parameters:
        of = level_of(name)
        if of is not None and of not in levels:
            raise UserError(
                f"setting 'tuning.space.{name}' is of level {of}, and the level is {levels[0]}: "
                f"put level: [{levels[0]}, {of}] into the space, or set compatibility.level"
            )
    teachers = space.values("teacher") if "teacher" in space.parameters else [own.teacher]
    if "mix" in space.parameters and MIXED.isdisjoint(teachers or []):
        raise UserError(
            "setting 'tuning.space.mix' weighs the teachers mean and confident: name one of them "
            "in tuning.space.teacher, or leave it out"
        )
    asked = list(space.inputs.values()) or [own.inputs]
    for name in LABELLED:
        if name in space.parameters and not any("train" in inputs for inputs in asked):
            raise UserError(
                f"setting 'tuning.space.{name}' is of the training split: put train among the "
                "inputs, or leave it out"
            )
    weights = space.parameters.get("ce_weight", [own.ce_weight])
    most = max(weights) if isinstance(weights, list) else weights.max
    if "choice" in levels and not all("train" in inputs for inputs in asked):
        for text, given in (("old-where-right", "old-where-right" in (teachers or [])),
                            ("ce_weight 1", most == 1.0)):  # fmt: skip
            if given:
                raise UserError(
                    f"setting 'tuning.space': {text} needs labels: put train among all inputs"
                )


def _check_range(where: str, name: str, values: RangeConfig) -> None:
    if values.min >= values.max:
        raise UserError(f"setting '{where}': min {values.min:g} is not below max {values.max:g}")
    if values.log and values.min <= 0:
        raise UserError(f"setting '{where}': with log, min must be above 0; it is {values.min:g}")
    _check_value(f"{where}.min", name, values.min)
    _check_value(f"{where}.max", name, values.max)


def _check_list(where: str, name: str, values: list[Any]) -> None:
    if not values:
        raise UserError(f"setting '{where}' is an empty list: give its values, or leave it out")
    for i, value in enumerate(values):
        if value in values[:i]:
            raise UserError(f"setting '{where}': the value {_shown(value)} is given twice")
        _check_value(f"{where}.{i}", name, value)


def _check_value(where: str, name: str, value: Any) -> None:
    """Whether `CompatibilityConfig` takes it; its ranges are intervals, so ends are enough."""
    level = level_of(name) or "token"
    try:
        CompatibilityConfig.model_validate({"level": level, name: value})
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"setting '{where}' is {_shown(value)}: {message}") from None


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return inputs_text(value)
    return f"{value:g}" if isinstance(value, int | float) else str(value)
