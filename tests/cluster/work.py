"""Run by the tests here, in a process of its own: work on a cluster that is already there.

    work.py train JOB ADDRESS [RESOURCES]     one training
    work.py evaluate JOB ADDRESS [RESOURCES]  an evaluation
    work.py places - ADDRESS                  where the actors of all jobs were
    work.py check - ADDRESS RESOURCES...      what is said of each of them, a line each

JOB is a pickle of this test run, RESOURCES is JSON. What the display would show in a log is
printed.
"""

import json
import pickle
import sys
from pathlib import Path

from rich.console import Console

from muscle.config import ResourcesConfig
from muscle.display import ProgressDisplay
from muscle.errors import UserError
from muscle.launch import cluster


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


def main(what: str, job_file: str, address: str, *settings: str) -> None:
    cluster.connect(address)
    if what == "check":
        print("\n".join(map(said, settings)))
        return
    if what == "places":
        print(json.dumps(places()))
        return
    job = pickle.loads(Path(job_file).read_bytes())
    resources = ResourcesConfig.model_validate_json(settings[0] if settings else "{}")
    cluster.check_resources(resources)
    with ProgressDisplay(Console(width=400)) as display:
        if what == "train":
            from muscle.launch.training import train_all

            train_all([job], resources, display)
        else:
            from muscle.launch.evaluation import evaluate

            evaluate(job, resources, display)
    print("DONE", json.dumps(places()), flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"UserError: {error}")
