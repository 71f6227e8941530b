"""Older releases that answer beside an update's versions (`also`), to see what is lost since."""

from dataclasses import dataclass

from muscle.bases import Base, resolve_base
from muscle.config import Experiment, VersionConfig
from muscle.errors import UserError
from muscle.released import open_release
from muscle.report.older import labelled


@dataclass(frozen=True)
class Older:
    """An older release under its label: its settings, its base and adapter pinned."""

    label: str
    version: VersionConfig
    base: Base

    @property
    def adapter(self) -> str:
        """The directory of its adapter."""
        assert self.base.config.adapter is not None  # a release has one
        return self.base.config.adapter

    @property
    def fingerprint(self) -> str:
        """What stands for its adapter in keys."""
        assert self.base.given_adapter is not None
        return self.base.given_adapter

    @property
    def called(self) -> str:
        """The base as the user calls it."""
        revision = self.version.revision
        return self.version.model + (f"@{revision}" if revision else "")


def resolve_older(experiment: Experiment, old: Base) -> list[Older]:
    """The releases that `also` names.

    Raises:
        UserError: a name twice, no release, one whose files or base aren't there any more, or
            what old is too.
    """
    found = []
    for label, path in labelled(experiment.also, "setting 'also'").items():
        try:
            released = open_release(path)
            version = VersionConfig.model_validate({**released.version(), "release": released.path})
        except UserError as error:
            raise UserError(f"setting 'also': {error}") from None
        base = resolve_base(version, f"setting 'also' ({label})")
        if (base.fingerprint, base.given_adapter) == (old.fingerprint, old.given_adapter):
            raise UserError(
                f"setting 'also': {path} is old itself, whose flips the report counts anyhow: give "
                "an older release, or leave it out"
            )
        found.append(Older(label, version, base))
    return found
