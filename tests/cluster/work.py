"""Run by the tests here, in a process of its own: work on a cluster that is already there.

    work.py jobs JOBS ADDRESS [RESOURCES]     trainings and evaluations, and where actors were
    work.py driver - ADDRESS                  where Tune puts a trial that drives Ray Train
    work.py check - ADDRESS RESOURCES...      what is said of each of them, a line each

JOBS is a pickle of this test run, RESOURCES is JSON. What the display would show in a log is
printed.
"""

import json
import pickle
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from muscle.config import ResourcesConfig
from muscle.display import ProgressDisplay
from muscle.errors import UserError
from muscle.launch import cluster
from muscle.launch.evaluation import evaluate
from muscle.launch.training import train_all
from muscle.training.job import TrainJob


def places() -> dict[str, list[str]]:
    """Class of actors -> the nodes that they were on, by Ray's own record."""
    import ray

    found: dict[str, set[str]] = {}
    for actor in ray._private.state.actors().values():
        if actor["Address"]["NodeID"].strip("f"):  # it never had a place otherwise
            found.setdefault(actor["ActorClassName"], set()).add(actor["Address"]["NodeID"])
    return {name: sorted(nodes) for name, nodes in found.items()}


def said(settings: str) -> str:
    """What `check_resources` refuses of these resources."""
    try:
        cluster.check_resources(ResourcesConfig.model_validate_json(settings))
    except UserError as error:
        return str(error)
    return "fits"


def driver() -> tuple[dict[str, str], str]:
    """A trial's place by Tune: its node's labels, and what Ray calls its actor."""
    from ray import tune

    from muscle.launch.tuning import _place, placement

    def trial(config: dict[str, object]) -> None:
        import ray

        here = ray.get_runtime_context()
        found = ray._private.state.actors(here.get_actor_id())
        tune.report({"labels": here.get_node_labels(), "actor": found["ActorClassName"]})

    place = _place(ResourcesConfig(workers=2), inside=False, cpus=1)
    result = tune.Tuner(
        tune.with_resources(trial, placement(place)),
        run_config=tune.RunConfig(storage_path=tempfile.mkdtemp(), verbose=0),
    ).fit()[0]
    assert result.metrics is not None, result.error
    return result.metrics["labels"], result.metrics["actor"]


def main(what: str, job_file: str, address: str, *settings: str) -> None:
    cluster.connect(address)
    if what == "check":
        print("\n".join(map(said, settings)))
        return
    if what == "driver":
        print(json.dumps(driver()))
        return
    jobs = pickle.loads(Path(job_file).read_bytes())
    resources = ResourcesConfig.model_validate_json(settings[0] if settings else "{}")
    cluster.check_resources(resources)
    with ProgressDisplay(Console(width=400)) as display:
        for job in jobs:
            if isinstance(job, TrainJob):
                train_all([job], resources, display)
            else:
                evaluate(job, resources, display)
    print(json.dumps(places()))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"UserError: {error}")
