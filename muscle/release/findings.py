"""What a check found: one line with the mend."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "fails"]

_ORDER = ("fails", "warning", "ok")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    what   its name, that of the field in adapter_config.json where it is one
    text   what was found; foreign names in it may hold anything
    mend   what to do, empty where all is well
    """

    level: Level
    what: str
    text: str
    mend: str = ""

    @property
    def order(self) -> int:
        """The worst come first."""
        return _ORDER.index(self.level)


def ok(what: str, text: str) -> Finding:
    """All is well."""
    return Finding("ok", what, text)


def note(what: str, text: str, mend: str) -> Finding:
    """It serves if the mend is followed."""
    return Finding("warning", what, text, mend)


def fails(what: str, text: str, mend: str) -> Finding:
    """It doesn't serve, or not as it was trained."""
    return Finding("fails", what, text, mend)
