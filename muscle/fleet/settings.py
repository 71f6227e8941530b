"""A fleet's file: an experiment whose `adapters` say what is theirs. No torch."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from muscle.compatibility_config import at_level
from muscle.config import Experiment, ResourcesConfig
from muscle.errors import UserError
from muscle.experiment import (
    check_raw,
    describe,
    expand,
    experiment_of,
    read_raw,
    refuse_secrets,
)
from muscle.overrides import FLEET, SHORT
from muscle.settings import Part

When = Literal["gate-fails", "always"]
"""Where a compat adapter is trained: where new fails the gate, or everywhere."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
FILES = ("fleet.json", "fleet.html", "fleet.md", "fleet.csv")
TAKEN = {"artifacts", *FILES}
"""What lies beside the adapters' folders."""

COMMON = ("storage", "resources", "hardware")
"""Settings of the one run that serves all adapters; an entry can't have its own."""

# A fleet's common settings are no whole experiment: what is missing is each entry's.
_INCOMPLETE = ("missing", "value_error")


class Entry(Part):
    """One adapter of a fleet: an experiment, called by the entry's name.

    when     where its compat adapter is trained
    problem  why its release can't be read, so that it can't begin; None: nothing is wrong
    """

    name: str
    when: When
    experiment: Experiment
    problem: str | None = None


class Fleet(Part):
    """All adapters of one run; `storage` and `resources` are theirs together."""

    name: str
    entries: tuple[Entry, ...]
    storage: str | None
    resources: ResourcesConfig


def is_fleet(file: Path, overrides: Sequence[str] = ()) -> bool:
    """Whether a file holds a fleet.

    Raises:
        UserError: missing or malformed file, malformed override.
    """
    return FLEET in read_raw(file, overrides)


def load_fleet(path: str | Path, overrides: Sequence[str] = ()) -> Fleet:
    """Read a fleet's file, each of its entries merged over the common settings.

    Mappings are merged key by key, everything else is replaced; who names another
    `compatibility.level` takes over only what both levels have. `--set a.b=value` changes a
    common setting, `--set adapters.NAME.a.b=value` one of an entry.

    Raises:
        UserError: whatever is wrong with the file; of an entry it names the number and the name.
    """
    file = Path(path)
    raw = read_raw(file, overrides)
    refuse_secrets(raw)
    _check_common(raw, file)
    entries = []
    for label, name, when, settings in _merged(raw, file):
        experiment, problem = _experiment(settings, file, label)
        _check_gate(experiment, label, file)
        entries.append(Entry(name=name, when=when, experiment=experiment, problem=problem))
    first = entries[0].experiment
    for entry, (label, *_) in zip(entries, _merged(raw, file), strict=True):
        mine, theirs = entry.experiment.evaluation.backend, first.evaluation.backend
        if mine != theirs:
            raise UserError(
                f"{file}: {label}: setting 'evaluation.backend' is {mine!r} and another's is "
                f"{theirs!r}: one run has one, set it at the top"
            )
    return Fleet(
        name=expand(raw["name"], "name"),
        entries=tuple(entries),
        storage=first.storage,
        resources=first.resources,
    )


def _experiment(settings: dict[str, Any], file: Path, label: str) -> tuple[Experiment, str | None]:
    """An entry's experiment. A release that isn't there, or isn't as it was released, is that
    entry's trouble alone, as a missing adapter is: the reason comes second.

    Raises:
        UserError: settings that are wrong whatever the release says.
    """
    try:
        return experiment_of(settings, file, label), None
    except UserError as error:
        bare = dict(settings)
        for name in ("old", "new"):
            version = settings.get(name)
            if isinstance(version, dict) and version.get("release") is not None:
                bare[name] = {"model": str(version["release"])}
        if settings.get("also"):
            bare["also"] = []
        if bare == settings:
            raise
        return experiment_of(bare, file, label), str(error).removeprefix(f"{label}: ")


def check_fleet(raw: dict[str, Any], file: Path) -> None:
    """Validate a fleet whose `${NAME}`s another machine will read, as `check_raw`.

    Raises:
        UserError: as `load_fleet`, but for what variables stand for.
    """
    _check_common(raw, file)
    for label, _, _, settings in _merged(raw, file):
        check_raw(settings, file, label)


def entries_of(raw: Mapping[str, Any], file: Path) -> list[dict[str, Any]]:
    """The entries as they stand in the file, what they write in short written out.

    Raises:
        UserError: they are no list of mappings, each with a name of its own.
    """
    given = raw[FLEET]
    if not isinstance(given, list) or not given:
        raise UserError(
            f"{file}: setting '{FLEET}' is {_shown(given)}: give a list of adapters, each with a "
            "name and its own settings"
        )
    found: list[dict[str, Any]] = []
    numbers: dict[str, int] = {}
    for number, entry in enumerate(given):
        name = _name_of(entry, number, file)
        # Not every disk tells "Billing" from "billing".
        other = numbers.setdefault(name.casefold(), number)
        if other != number:
            raise UserError(
                f"{file}: {FLEET}[{number}] ({name}): {FLEET}[{other}] is called so too: give each "
                "a name of its own, which is its folder's"
            )
        found.append({key: _long(key, value) for key, value in entry.items()})
    return found


def merge(common: Any, own: Any) -> Any:
    """`own` over `common`: mappings key by key, anything else replaced, and a version by an
    entry's own release, which is all of it."""
    if not isinstance(common, dict) or not isinstance(own, dict) or "release" in own:
        return own
    return common | {
        key: merge(common[key], value) if key in common else value for key, value in own.items()
    }


def _merged(raw: dict[str, Any], file: Path) -> Iterator[tuple[str, str, When, dict[str, Any]]]:
    """Each entry's label for messages, name, `when` and whole settings."""
    common = {key: value for key, value in raw.items() if key not in ("when", FLEET)}
    if isinstance(common.get("task"), str):
        common["task"] = _long("task", common["task"])
    for number, entry in enumerate(entries_of(raw, file)):
        name = entry["name"]
        label = f"{FLEET}[{number}] ({name})"
        for key in (*COMMON, FLEET):
            if key in entry:
                raise UserError(
                    f"{file}: {label}: setting '{key}' is common to all adapters: set it at the top"
                )
        when = entry.pop("when", raw.get("when", "gate-fails"))
        if when not in ("gate-fails", "always"):
            raise UserError(
                f"{file}: {label}: setting 'when' is {_shown(when)}: give gate-fails or always"
            )
        yield label, name, when, merge(_at_its_level(common, entry), entry)


def _at_its_level(common: dict[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """The common settings for an entry; where it names a level, without those of the other."""
    shared, own = common.get("compatibility"), entry.get("compatibility")
    if not isinstance(shared, dict) or not isinstance(own, dict) or "level" not in own:
        return common
    return {**common, "compatibility": at_level({**shared, "level": own["level"]})}


def _name_of(entry: Any, number: int, file: Path) -> str:
    where = f"{file}: {FLEET}[{number}]"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {_shown(entry)}: give a mapping with a name and settings")
    name = entry.get("name")
    if name is None:
        raise UserError(f"{where}: setting 'name' is missing: it is the adapter's folder")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(
            f"{where}: setting 'name' is {_shown(name)}: use letters, digits and ._-, beginning "
            "with a letter or digit"
        )
    if name.casefold() in TAKEN:
        raise UserError(f"{where}: setting 'name' is {name!r}, which is a file of the fleet's own")
    return name


def _long(key: str, value: Any) -> Any:
    return {SHORT[key]: value} if key in SHORT and isinstance(value, str) else value


def _check_common(raw: dict[str, Any], file: Path) -> None:
    """Refuse what is wrong at the top whatever the entries say.

    Raises:
        UserError: it names the setting, and no entry.
    """
    if raw.get("name") is None:
        raise UserError(f"{file}: setting 'name' is missing: the fleet's")
    common = {key: value for key, value in raw.items() if key not in ("when", FLEET)}
    try:
        Experiment.model_validate(expand(common, lenient=True))
    except ValidationError as error:
        problem = describe(error, but=_INCOMPLETE)
        if problem:
            raise UserError(f"{file}: {problem}") from None


def _check_gate(experiment: Experiment, label: str, file: Path) -> None:
    gate = experiment.gate
    if not gate.asked:
        raise UserError(
            f"{file}: {label}: no gate is set, and a fleet decides by it: set gate.max_nfr or "
            "another limit"
        )
    if gate.pair is not None:
        raise UserError(
            f"{file}: {label}: setting 'gate.pair' is {gate.pair!r}, but a fleet judges old->new "
            "and then old->compat: leave it out"
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
