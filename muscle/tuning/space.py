"""The search space: what `muscle tune` varies, checked before a trial costs anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from muscle.config import CompatibilityConfig, Experiment, RangeConfig, SpaceConfig
from muscle.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Space:
    """The parameters that a search varies, in the order of `SpaceConfig`.

    parameters  list of the values, or an interval with both ends; those of `epochs` are whole
    """

    parameters: Mapping[str, list[Any] | RangeConfig]

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

    def size(self) -> int | None:
        """The number of points; None where one parameter is a real interval."""
        lists = [self.values(name) for name in self.parameters]
        found = [len(values) for values in lists if values is not None]
        return prod(found) if len(found) == len(lists) else None

    def point(self, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """These values as a point: in the space's order and types; None where it has no such."""
        if params.keys() != self.parameters.keys():
            return None
        point: dict[str, Any] = {}
        for name, values in self.parameters.items():
            value = params[name]
            if isinstance(values, list):
                if value not in values:
                    return None
                point[name] = values[values.index(value)]
            elif not values.min <= value <= values.max or (name == "epochs" and value % 1):
                return None
            else:
                point[name] = int(value) if name == "epochs" else float(value)
        return point

    def settings(self, params: Mapping[str, Any], experiment: Experiment) -> CompatibilityConfig:
        """The experiment's compatibility settings with a point's values put in."""
        own = experiment.compatibility.model_dump()
        return CompatibilityConfig.model_validate({**own, **params})

    def start(self, experiment: Experiment) -> dict[str, Any] | None:
        """The experiment's own compatibility settings as a point; None where they lie outside.

        A `learning_rate` or `epochs` that isn't given is the task adapters'.
        """
        training = experiment.compat_training
        own = experiment.compatibility.model_dump()
        own |= {"learning_rate": training.learning_rate, "epochs": training.epochs}
        return self.point({name: own[name] for name in self.parameters})

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
    """What is searched where the experiment doesn't say: every setting, around its own rates.

    Masks are those that read the old model; without it there is nothing to be compatible with.
    """
    training = experiment.compat_training
    rate, epochs = training.learning_rate, training.epochs
    return SpaceConfig(
        mask=[
            "student-wrong",
            "old-right",
            "token-likelihood",
            "sequence-likelihood",
            "always-old",
        ],
        temperature=RangeConfig(min=1.0, max=4.0, log=True),
        ce_weight=[0.0, 0.1, 0.25, 0.5],  # a list, so that none at all is among them
        old_weight=RangeConfig(min=0.5, max=2.0, log=True),
        # Rounded, since people read the ends: 3e-05 x 3 is 8.999999999999999e-05.
        learning_rate=RangeConfig(
            min=float(f"{rate / 3:.4g}"), max=min(1.0, float(f"{3 * rate:.4g}")), log=True
        ),
        epochs=RangeConfig(min=1, max=epochs) if epochs > 1 else None,
    )


def make_space(experiment: Experiment) -> Space:
    """The experiment's space, or the default one.

    Raises:
        UserError: nothing to search, an empty list, a value given twice, an interval without
            an inside, or a value that the compatibility settings don't take.
    """
    config = experiment.tuning.space or default_space(experiment)
    parameters: dict[str, list[Any] | RangeConfig] = {}
    for name in SpaceConfig.model_fields:
        values = getattr(config, name)
        if values is None:
            continue
        where = f"tuning.space.{name}"
        if isinstance(values, RangeConfig):
            _check_range(where, name, values)
        else:
            _check_list(where, name, values)
        parameters[name] = values
    if all(isinstance(values, list) and len(values) == 1 for values in parameters.values()):
        known = ", ".join(SpaceConfig.model_fields)
        raise UserError(
            "setting 'tuning.space': the space has one point: "
            f"give several values, or an interval, to one of {known}"
        )
    return Space(parameters)


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
    try:
        CompatibilityConfig.model_validate({name: value})
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        raise UserError(f"setting '{where}' is {_shown(value)}: {message}") from None


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
