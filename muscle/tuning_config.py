"""How `muscle tune` searches; no key holds anything of it."""

from typing import Annotated

from pydantic import Field

from muscle.compatibility_config import Inputs, LevelName, TeacherName, level_of
from muscle.settings import Interpolation, MaskName, Part, Positive, RangeConfig, Values

TUNING_FRACTION = 0.2
"""Share of the training split that `muscle tune` compares trials on, where none is given."""


class SpaceConfig(Part):
    """What `muscle tune` varies of `CompatibilityConfig`: lists of values, or intervals.

    What isn't named stays as the experiment has it. No rank: the adapter has new's shape.
    With several levels a trial has the settings of its own level only; so it is with `mix`,
    which only mixed teachers have, and `folds`, which only the training split has.

    inputs  each value is a list of inputs
    folds   null: none
    """

    level: list[LevelName] | None = None
    mask: list[MaskName] | None = None
    teacher: list[TeacherName] | None = None
    mix: Values | None = None
    inputs: list[list[Inputs]] | None = None
    folds: list[int | None] | None = None
    temperature: Values | None = None
    margin: Values | None = None
    focus: Values | None = None
    ce_weight: Values | None = None
    old_weight: Values | None = None
    learning_rate: Values | None = None
    epochs: list[int] | RangeConfig | None = None

    def named_level(self) -> LevelName | None:
        """The level that all settings given are of, where only one has some and none is listed."""
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        levels = {level_of(name) for name in given} - {None}
        return levels.pop() if len(levels) == 1 and self.level is None else None


class TuningConfig(Part):
    """`muscle tune`: the fewest negative flips at an accuracy of at least new's - `epsilon`.

    trials          settings tried
    epsilon         as a fraction: 0.005 is half a point
    difference      of NFR, as a fraction, that each half of the tuning examples must be able
                    to show; halves that can't are refused
    space           default: `muscle.tuning.space.default_space`
    interpolations  between new's adapter and compat's, scored for the best trials
    finalists       how many of half A's best are judged by half B, and how many trials are
                    interpolated
    pareto          search the front of (NFR, accuracy) instead of one constrained optimum
    seed            of the suggestions
    concurrent      trials at once; default: as many as there is room for
    """

    trials: Positive = 24
    epsilon: Annotated[float, Field(ge=0.0, le=0.1)] = 0.005
    difference: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    space: SpaceConfig | None = None
    interpolations: list[Interpolation] = Field(default=[0.5, 0.75, 1.25])
    finalists: Positive = 3
    pareto: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    concurrent: Positive | None = None
