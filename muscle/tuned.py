"""What a search leaves in its output folder."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from muscle import copies, storage
from muscle.bench import Bench
from muscle.compatibility_config import at_level
from muscle.config import CompatibilityConfig
from muscle.report.front import front_png
from muscle.report.tuning import found_to_json, write_tables
from muscle.training.job import Progress
from muscle.tuning.records import Found


@dataclass(frozen=True)
class Searched:
    """A search that has ended, and where its files are."""

    found: Found
    tune_json: str
    tables: str
    front: str
    best: str | None  # an experiment; None without a feasible trial


def write_search(found: Found, bench: Bench, settings: CompatibilityConfig | None) -> Searched:
    """Write every file whole, tune.json last; those of an earlier answer go.

    settings: of the chosen candidate; None where there is none.
    """
    path = {n: storage.join(bench.output, n) for n in ("tune.json", "tune.md", "front.png")}
    best = storage.join(bench.output, "best.yaml")
    storage.remove(best)
    storage.remove(storage.join(bench.output, "chosen"))
    storage.write_bytes(path["tune.md"], write_tables(found).encode("utf-8", "replace"))
    storage.write_bytes(path["front.png"], front_png(found))
    if settings is not None:
        _keep_adapters(bench, settings)
        storage.write_bytes(best, best_experiment(bench, settings).encode())
    storage.write_json(path["tune.json"], found_to_json(found))
    bench.on_progress(Progress("search", 1, 1, "report"))
    kept = best if settings is not None else None
    return Searched(found, path["tune.json"], path["tune.md"], path["front.png"], kept)


def best_experiment(bench: Bench, settings: CompatibilityConfig) -> str:
    """The experiment file of a choice: `muscle run` takes it, and finds all of it done."""
    experiment = bench.experiment.model_copy(
        update={"name": f"{bench.experiment.name}-best", "storage": bench.store.root}
    )
    values = experiment.model_dump(
        mode="json", exclude_defaults=True, exclude={"tuning", "compatibility"}
    )
    values["compatibility"] = at_level(settings.model_dump(mode="json", exclude_none=True))
    head = (
        "# What `muscle tune` chose. `muscle run` takes it as it is and reuses what the search\n"
        "# has trained, from `storage`; training.tuning_fraction stays held out. The search's own\n"
        "# settings (`tuning`) aren't here.\n"
    )
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _keep_adapters(bench: Bench, settings: CompatibilityConfig) -> None:
    """The chosen adapter of every seed, to be served."""
    runs = bench.experiment.runs
    for wanted, run in zip(bench.wanted(settings, bench.test, ["compat"]), runs, strict=True):
        seed = f"seed-{run[1]}" if len(runs) > 1 else ""
        source = Path(copies.fetch(str(wanted.adapter)))
        storage.upload(source, storage.join(bench.output, "chosen", seed, "adapter"))
