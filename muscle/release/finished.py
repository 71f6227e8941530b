"""A finished run's output folder, read for a release: what answered, and that its files belong
together."""

import hashlib
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from muscle import copies, storage
from muscle.compatibility_config import recorded
from muscle.config import Experiment, VersionConfig
from muscle.errors import UserError
from muscle.gate.reading import checked, parsed, part
from muscle.models.fingerprint import fingerprint_adapter
from muscle.pipeline import first_difference, numbers
from muscle.tables import read_about
from muscle.types import Version


@dataclass(frozen=True)
class Finished:
    """A run's output: its experiment and report, and the one of its runs that is released.

    seed   of the run; None where there is only one
    place  the folder of that run's predictions and adapters
    """

    output: str
    experiment: Experiment
    report: dict[str, Any]
    report_sha256: str
    seed: int | None
    place: str

    @property
    def task(self) -> str:
        """The task's name."""
        return self.experiment.task.name

    def config(self, version: Version) -> VersionConfig:
        """A version's settings; compat is new's base."""
        return self.experiment.old if version == "old" else self.experiment.new

    def block(self) -> dict[str, Any]:
        """The report's numbers of this run."""
        task = part(self.report, "tasks", self.task, of=self.output)
        seed = self.experiment.runs[0][1] if self.seed is None else self.seed
        block: dict[str, Any] = part(task, "by_seed", str(seed), of=self.output)
        return {**{k: task.get(k) for k in ("n", "unscored", "metric")}, **block}

    def versions(self) -> list[Version]:
        """What can be released, what the update is for first."""
        known: list[Version] = ["compat", "new"]
        return [version for version in known if version in self.block()["versions"]]

    def adapter(self, version: Version) -> str:
        """The folder of what a version served."""
        given = self.config(version).adapter
        if given is not None and version != "compat":
            return given
        return storage.join(self.place, version, "adapter")

    def about(self, version: Version) -> dict[str, Any]:
        """How a version's predictions were made, once it is sure that its adapter made them.

        Raises:
            UserError: predictions or adapter aren't there, or aren't this report's.
        """
        about = read_about(storage.join(self.place, version, f"{self.task}.parquet"))
        role = "old" if version == "old" else "new"
        where = ("provenance", "models", role, "fingerprint")
        if about.get("base") != part(self.report, *where, of=self.output):
            raise UserError(
                f"{self.output}: {version}'s predictions are of another base than report.json: "
                "run it again"
            )
        folder = self.adapter(version)
        found = fingerprint_adapter(copies.fetch(folder))
        if about.get("adapter") != found:
            raise UserError(
                f"{self.output}: {version}'s adapter in {folder} is not the one that answered (it "
                "was changed since the report): run it again"
            )
        return about


def read_finished(output: str, seed: int | None = None) -> Finished:
    """Read a run's output folder.

    Args:
        seed: of the run, where there are several.

    Raises:
        UserError: it isn't one, isn't finished, or its files don't belong together.
    """
    output = storage.absolute(output)
    if storage.exists(storage.join(output, "fleet.json")):
        raise UserError(
            f"{output} is a fleet: name one adapter's folder in it, {storage.join(output, 'NAME')}"
        )
    data = _bytes(storage.join(output, "report.json"), output)
    report = checked(parsed(data, f"{output}/report.json"), f"{output}/report.json")
    there = storage.read_json(storage.join(output, "experiment.json"))
    recorded = (report.get("provenance") or {}).get("experiment")
    if there is None or recorded is None:
        raise UserError(
            f"{output} holds a report but no run (as of `muscle compare`): a release is made of "
            "the output folder of `muscle run`"
        )
    experiment = _experiment(there, f"{output}/experiment.json")
    reported = _experiment(recorded, f"{output}/report.json")
    difference = first_difference(numbers(reported), numbers(experiment))
    if difference is not None or [*report["tasks"]] != [experiment.task.name]:
        why = f" ({difference})" if difference else ""
        raise UserError(f"{output}: report.json is of another experiment{why}: run it again")
    seeds = [run[1] for run in experiment.runs]
    if len(seeds) == 1:
        if seed not in (None, *seeds):
            raise UserError(f"--seed is {seed}: this run has only {seeds[0]}")
        return _finished(output, experiment, report, data, None, output)
    if seed not in seeds:
        given = "" if seed is None else f"--seed is {seed}: "
        several = ", ".join(map(str, seeds))
        raise UserError(f"{given}{output} has several seeds: name one of {several} with --seed")
    return _finished(output, experiment, report, data, seed, storage.join(output, f"seed-{seed}"))


def _finished(
    output: str,
    experiment: Experiment,
    report: dict[str, Any],
    data: bytes,
    seed: int | None,
    place: str,
) -> Finished:
    digest = hashlib.sha256(data).hexdigest()
    return Finished(output, experiment, report, digest, seed, place)


def _bytes(path: str, output: str) -> bytes:
    fs, inside = storage.filesystem(path)
    try:
        return bytes(fs.cat_file(inside))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{output} has no report.json: name the output folder of a finished `muscle run`"
        ) from None


def _experiment(settings: Any, where: str) -> Experiment:
    try:
        return Experiment.model_validate(recorded(settings))
    except (AttributeError, TypeError, ValidationError):
        raise UserError(f"{where} is of another version of muscle: run it again") from None
