"""The limits of a gate: what they are called, which values make sense, what they read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from muscle.errors import UserError
from muscle.report.text import one_line

LimitName = Literal["max_nfr", "max_excess_nfr", "max_relative_nfr", "min_gain"]
NAMES: tuple[LimitName, ...] = ("max_nfr", "max_excess_nfr", "max_relative_nfr", "min_gain")
MUST_KEEP = "must_keep"


@dataclass(frozen=True, slots=True)
class Limits:
    """What an update must keep to; every field None or empty: not asked for.

    max_nfr           the negative flip rate, at most
    max_excess_nfr    NFR less that between two seeds of old (the noise floor), at most
    max_relative_nfr  NFR / (acc1 (1 - acc2)), at most
    min_gain          score(after) - score(before), at least; may be negative
    must_keep         a file of ids that may not flip
    waive             a file of flips that somebody allowed
    slices            "COLUMN" (each of its values) or "COLUMN=VALUE", judged like tasks
    """

    max_nfr: float | None = None
    max_excess_nfr: float | None = None
    max_relative_nfr: float | None = None
    min_gain: float | None = None
    must_keep: str | None = None
    waive: str | None = None
    slices: tuple[str, ...] = ()

    def given(self) -> dict[LimitName, float]:
        """The limits on rates and scores that are asked for, in a fixed order."""
        return {n: getattr(self, n) for n in NAMES if getattr(self, n) is not None}


def make_limits(
    *,
    max_nfr: str | float | None = None,
    max_excess_nfr: str | float | None = None,
    max_relative_nfr: str | float | None = None,
    min_gain: str | float | None = None,
    must_keep: str | None = None,
    waive: str | None = None,
    slices: Sequence[str] = (),
) -> Limits:
    """Limits from what a user wrote: fractions (0.02) or percent with its sign ("2%").

    Raises:
        UserError: no limit at all, a value that is no share or that nothing could break,
            slices without a limit that slices have.
    """
    limits = Limits(
        max_nfr=_share("max-nfr", max_nfr),
        max_excess_nfr=_share("max-excess-nfr", max_excess_nfr),
        max_relative_nfr=_share("max-relative-nfr", max_relative_nfr, most=True),
        min_gain=_share("min-gain", min_gain, negative=True),
        must_keep=must_keep,
        waive=waive,
        slices=tuple(slices),
    )
    if not limits.given() and must_keep is None:
        raise UserError(
            "no limit was given: add --max-nfr 0.02, --max-excess-nfr, --max-relative-nfr, "
            "--min-gain or --must-keep"
        )
    if slices and limits.max_nfr is None and limits.min_gain is None:
        raise UserError(
            f"slice {one_line(slices[0], 60)!r} has nothing to keep to: slices are judged by "
            "max-nfr and min-gain, add one"
        )
    return limits


def _share(
    name: str, given: str | float | None, *, negative: bool = False, most: bool = False
) -> float | None:
    """A limit's value; `negative`: from -1 on, `most`: 1 is a limit that can be broken."""
    if given is None:
        return None
    text = str(given).strip()
    in_percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{name} is {one_line(text, 40)!r}: give a fraction (0.02) or percent (2%)")
    value = value / 100 if in_percent else value
    least = -1.0 if negative else 0.0
    if not least <= value <= 1 and in_percent:
        raise UserError(f"{name} is {text}: give {'-100' if negative else '0'}% to 100%")
    # 1 was meant as a percent: nothing could break (or reach) it.
    if not least <= value <= 1 or (abs(value) == 1 and not most and not in_percent):
        if value < least and not negative:
            raise UserError(f"{name} is {text}: a rate is never below 0, give a fraction from 0")
        raise UserError(
            f"{name} is {text}: limits are fractions; if {text} percent was meant, write "
            f"{value / 100:g} or {text}%"
        )
    return value
