"""A launcher that runs no model, for searches that end in a second and know what is right.

Adapters are real files, drawn from their settings; which things an adapter knows is a rule
of the test. So a test can plan which trial is best, infeasible or hopeless, and can stop a
search wherever it likes.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from colours import colour_settings
from tiny import save_random_adapter

from muscle import copies, storage
from muscle.alone import Alone
from muscle.config import Experiment
from muscle.evaluation.job import BaseJob, EvaluateJob
from muscle.evaluation.units import answer_unit, outstanding
from muscle.models.adapters import NOTE, WEIGHTS
from muscle.search import plan_search
from muscle.tables import read_queries
from muscle.training.job import OnProgress, Progress, TrainJob
from muscle.tune import Search, Searched
from muscle.types import Answer, Output, Query

TEST = 100
"""Things from this number on are of the test split."""


@dataclass(frozen=True)
class Who:
    """Who answers: an adapter, by what it was trained with.

    loss    compatibility settings; empty for task adapters
    until   the epochs of an adapter that is looked at on the way
    weight  of an interpolation; 1 is the trained adapter
    """

    role: str
    seed: int
    loss: Mapping[str, Any]
    learning_rate: float
    epochs: int
    until: int | None = None
    weight: float = 1.0


Rule = Callable[[Who, int], bool]
"""Whether somebody is right about a thing."""


def chance(*what: object) -> float:
    """A number in [0, 1), always the same for the same arguments."""
    return int.from_bytes(sha256(repr(what).encode()).digest()[:6], "big") / 2**48


def usual(who: Who, thing: int) -> bool:
    """Old and new know half, each half of the other's; heat mends flips, old_weight costs score.

    A quarter of things are negative flips of new, and temperature 4 mends them all.
    """
    cell = thing % 4
    if who.role == "old":
        return cell in (0, 1)
    if who.role == "new" or who.loss["ce_weight"] == 1:
        return cell in (1, 2)
    mended = (who.loss["temperature"] - 1) / 3 * min(1.0, who.weight)
    lost = (who.loss["old_weight"] - 0.5) * 0.25 * who.weight
    if cell == 0:
        return chance("mended", thing, who.seed) < mended
    return cell in (1, 2) and chance("lost", thing, who.seed) >= lost


def thing_of(query: Query) -> int:
    """The number of the thing that a query asks for."""
    return int(query.requests[0].context.split()[1])


class Played(Alone):
    """Plays training and answering; what it did stands in `log`, in order.

    log     ("train", titles) and ("ask", {version: things})
    trained outputs of trainings that were done, with the epochs they were asked for
    """

    def __init__(self, rule: Rule = usual):
        super().__init__("cpu")
        self.rule = rule
        self.log: list[tuple[str, Any]] = []
        self.trained: list[tuple[str, int | None]] = []

    def train(self, jobs: Sequence[TrainJob], on_progress: OnProgress) -> None:
        """Write every job's adapter."""
        for job in jobs:
            self.train_one(job)
            if not self.is_done(job):  # else it went on from a checkpoint, to write it again
                self.trained.append((job.output, job.until))
            storage.write_json(_mark(job), True)
        self.log.append(("train", tuple(job.title for job in jobs)))

    def is_done(self, job: TrainJob) -> bool:
        """Whether its checkpoint is that of a training that came so far."""
        return storage.exists(_mark(job))

    def train_one(self, job: TrainJob) -> None:
        """Write an adapter that depends on the settings alone, and who it is."""
        training = job.training
        loss = {} if job.loss is None else job.loss.model_dump()
        who = Who(
            job.role, job.seed, loss, training.learning_rate, training.epochs, until=job.until
        )
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if job.start is None:
                save_random_adapter(folder, job.base.model, job.seed)
            else:
                move_adapter(Path(copies.fetch(job.start)), folder, repr(who))
            storage.write_json(str(folder / "training.json"), {"who": asdict(who)})
            storage.upload(folder, job.output)

    def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> tuple[str, ...]:
        """Answer by the rule."""
        self.log.append(("ask", things_asked(job)))
        for number, units in outstanding(job).units.items():
            for unit in units:
                answer_unit(_Player(self.rule, job.bases[number]), job.bases[number], unit, ignore)
        return ()

    def asked_for(self, things: Callable[[int], bool]) -> list[set[str]]:
        """The versions that were asked for such things, call by call."""
        asked = [call for kind, call in self.log if kind == "ask"]
        found = [{v for v, of in call.items() if any(map(things, of))} for call in asked]
        return [versions for versions in found if versions]


def things_asked(job: EvaluateJob) -> dict[str, frozenset[int]]:
    """The things that a job asks for, by version."""
    found: dict[str, frozenset[int]] = {}
    for base in job.bases:
        for queries in base.sets:
            things = frozenset(thing_of(query) for query in read_queries(queries.queries))
            for ask in queries.asks:
                found[ask.version] = found.get(ask.version, frozenset()) | things
    return found


def ignore(what: object) -> None:
    """For callbacks that nobody waits for."""


def not_waiting(progress: Progress) -> None:
    """Progress of a search that is alone: whatever it would wait for has been left behind."""
    assert "waits for another run" not in progress.remark, progress


def search_settings(models: dict[str, str], data: Path, **tuning: Any) -> dict[str, Any]:
    """An experiment to search: of 100 training examples 40 are held out."""
    settings = colour_settings(models, data)
    settings["training"]["tuning_fraction"] = 0.4
    settings["resources"] = {"teachers": "online"}
    settings["tracking"] = {"tensorboard": False}
    settings["tuning"] = {
        "trials": 4,
        "epsilon": 0.1,
        "difference": 0.9,
        "space": {"temperature": {"min": 1, "max": 4}, "old_weight": {"min": 0.5, "max": 2}},
        "interpolations": [0.5],
        "finalists": 2,
        **tuning,
    }
    return settings


def changed(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The settings with some changed; mappings are merged."""
    found = dict(settings)
    for name, value in changes.items():
        own = settings.get(name)
        merge = isinstance(own, dict) and isinstance(value, dict)
        found[name] = {**own, **value} if merge else value  # type: ignore[dict-item]
    return found


def search(
    settings: dict[str, Any], output: Path, launcher: Alone, on_progress: OnProgress = not_waiting
) -> Searched:
    """Carry a search out."""
    plan = plan_search(Experiment.model_validate(settings))
    return Search(plan, str(output), launcher, on_progress).run()


def result(output: Path) -> dict[str, Any]:
    """tune.json, without what differs between equal searches."""
    found: dict[str, Any] = json.loads((output / "tune.json").read_text())
    del found["seconds"]
    for trial in found["trials"]:
        del trial["seconds"]
    return found


def records(output: Path) -> list[dict[str, Any]]:
    """The trials' records, by number."""
    return [json.loads(file.read_text()) for file in sorted((output / "trials").iterdir())]


def leases(output: Path) -> list[Path]:
    """What a search holds, or has left behind."""
    return list(output.rglob("lease.json"))


def _mark(job: TrainJob) -> str:
    return storage.join(job.checkpoints, f"done-{job.until}.json")


class _Player:
    """Answers the questions of one base by a rule."""

    batch_tokens = 1

    def __init__(self, rule: Rule, base: BaseJob):
        self.rule, self.adapters = rule, base.adapters

    def answer(self, version: str, queries: Sequence[Query]) -> list[Answer]:
        """One likely choice each: the right one, or the next."""
        who = who_is(str(self.adapters[version]))
        answers = []
        for query in queries:
            thing = thing_of(query)
            gold = thing % TEST % 3
            likely = gold if self.rule(who, thing) else (gold + 1) % 3
            outputs = (Output(-1.0 if i == likely else -9.0, i == likely) for i in range(3))
            answers.append(Answer(query.id, tuple(outputs)))
        return answers


@cache
def who_is(adapter: str) -> Who:
    """Who an adapter's folder belongs to."""
    note = storage.read_json(storage.join(adapter, "training.json"))
    if note is not None:
        return Who(**note["who"])
    parent, root = adapter.rsplit("/", 1)[0], adapter.rsplit("/", 3)[0]
    manifest = storage.read_json(storage.join(parent, "manifest.json"))["inputs"]
    key = storage.join(root, "compat-adapter", manifest["compat"])
    attempt = storage.read_json(storage.join(key, "manifest.json"))["attempt"]
    who = asdict(who_is(storage.join(key, attempt)))
    return Who(**{**who, "weight": manifest["weight"]})


def move_adapter(start: Path, folder: Path, seed: str) -> None:
    """Another adapter of the same shape; the same for the same start and seed."""
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(int(chance(seed) * 2**31))
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in sorted(load_file(start / WEIGHTS).items())
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    for name in ("adapter_config.json", NOTE):
        (folder / name).write_bytes((start / name).read_bytes())
