"""Flips that somebody allowed, with a reason and until a day."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from muscle.errors import UserError
from muscle.experiment import describe
from muscle.gate.must_keep import read_text
from muscle.gate.outcomes import Example, Outcomes
from muscle.report.text import one_line

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


class Waiver(BaseModel):
    """One entry of a waivers file: this example may flip, for a reason, until a day."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    task: str | None = None
    reason: str
    until: date

    @field_validator("id", "reason")
    @classmethod
    def _not_empty(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("it is empty: say which example, and why it may flip")
        return text

    @field_validator("task")
    @classmethod
    def _empty_is_every_task(cls, task: str | None) -> str | None:
        return task or None

    @field_validator("until", mode="before")
    @classmethod
    def _a_day(cls, text: Any) -> Any:
        # pydantic would take "20260101" for a number of seconds.
        if isinstance(text, str) and not _DAY.fullmatch(text):
            raise ValueError(f"{one_line(text, 40)!r} is no day: write it as 2026-12-31")
        return text


@dataclass(frozen=True, slots=True)
class Applied:
    """Waivers held against a report: which flips they allow, and the state of each."""

    waived: frozenset[Example]
    entries: Sequence[dict[str, Any]]


def read_waivers(path: str) -> list[Waiver]:
    """The entries of a waivers file, YAML.

    Every scalar is read as the text that stands there: an id 0012 stays 0012.

    Raises:
        UserError: it can't be read, is no list, or an entry is wrong; one line.
    """
    try:
        text = read_text(path, "waivers")
        raw = yaml.load(text, yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise UserError(f"waivers {path} is not YAML: {one_line(str(error), 200)}") from None
    if not text.strip():
        raise UserError(f"waivers {path} is empty: write an entry, or [] where there is none yet")
    if raw in ("", None):  # nothing but comments
        return []
    if not isinstance(raw, list):
        raise UserError(
            f"waivers {path} must be a list of entries: - {{id: …, reason: …, until: 2026-12-31}}"
        )
    waivers = [_waiver(entry, f"waivers {path}, entry {i}") for i, entry in enumerate(raw, 1)]
    seen: dict[tuple[str, str | None], int] = {}
    for i, waiver in enumerate(waivers, 1):
        first = seen.setdefault((waiver.id, waiver.task), i)
        if first != i:
            raise UserError(
                f"waivers {path}, entry {i}: id {one_line(waiver.id, 80)!r} is waived a second "
                f"time, first in entry {first}: remove one of them"
            )
    return waivers


def _waiver(entry: Any, where: str) -> Waiver:
    try:
        return Waiver.model_validate(entry)
    except ValidationError as error:
        if not isinstance(entry, dict):
            raise UserError(f"{where} must have id, reason and until") from None
        raise UserError(f"{where}: {one_line(describe(error, Waiver), 300)}") from None


def apply(waivers: Sequence[Waiver], outcomes: Outcomes, file: str, today: date) -> Applied:
    """Hold waivers against what flipped. The last day itself still counts.

    Raises:
        UserError: a waiver for an id that no task has.
    """
    found = outcomes.resolve([(w.task, w.id) for w in waivers], file)
    waived: set[Example] = set()
    entries = []
    for waiver, examples in zip(waivers, found, strict=True):
        flips = examples & outcomes.flipped
        expired = waiver.until < today
        waived |= set() if expired else flips
        state = "expired" if expired else "used" if flips else "unused"
        entries.append({**waiver.model_dump(mode="json"), "state": state})
    return Applied(frozenset(waived), entries)
