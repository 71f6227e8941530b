"""Run the trials of a search with Ray Tune: each is an actor, asked for when there is room.

What is tried and what becomes of it is the driver's (`TrialSource`); Tune places trials,
starts a lost one again, and stops the hopeless ones. Its own records aren't kept: ours, in
JSON, are what a search goes on from.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# Read by Tune at import: no loggers of its own, and Ctrl-C ends the program at once.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # what `verbose=0` silences

import ray
from ray import tune
from ray.tune.search import Searcher

from muscle.config import BackendName, ResourcesConfig
from muscle.evaluation.units import WorkerBrokenError
from muscle.launch import cluster
from muscle.launch.capacity import Ask, driver_labels
from muscle.launch.progress import Poster, watching
from muscle.launch.waiting import TRIAL, patient, waits_for
from muscle.training.job import OnProgress, Progress
from muscle.training.settings import zero_stage
from muscle.tuning.trial import Later, Runner, TrialJob, TrialSource, attempt

DRIVER = {"memory": 64.0 * 2**20}
"""What a trial takes that drives Ray Train and Ray Data: no CPU, so that those that it waits
for find all of them (Tune wants something to be taken)."""

PLACING = "place trials"

LEARN = 3
"""At most this part of the trials runs at once, unless told: suggestions learn from results."""


def search(
    trials: TrialSource,
    resources: ResourcesConfig,
    backend: BackendName,
    concurrent: int | None,
    on_progress: OnProgress,
) -> None:
    """Run every trial that the source has.

    A trial of one worker trains and scores in a process of its own; one of several workers
    drives Ray Train and Ray Data, and takes no CPU itself, so that what it waits for always
    has room.
    """
    first = trials.next()
    if first is None or isinstance(first, Later):  # not later: nothing of ours runs yet
        return
    inside = fits_one_process(resources, backend)
    width = concurrent or min(_room(resources), max(2, trials.left // LEARN))
    width = max(1, min(trials.left, width))
    cpus = cluster.cpus_each(resources, width)
    place = _place(resources, inside, cpus)
    with _placing(on_progress, place) as board, tempfile.TemporaryDirectory() as scratch:
        trainable = tune.with_parameters(
            _trial,
            board=board,
            resources=resources if not inside else None,
            backend=backend,
            cpus=cpus,
        )
        tuner = tune.Tuner(
            tune.with_resources(trainable, placement(place)),
            tune_config=tune.TuneConfig(
                search_alg=_Asking(trials, first),
                num_samples=-1,
                max_concurrent_trials=width,
                # Not `reuse_actors`: a process that is lost, or slow to stop, between two trials
                # leaves this Tune waiting for ever.
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=scratch,
                stop=_Looking(trials),
                failure_config=tune.FailureConfig(max_failures=resources.max_failures),
                verbose=0,
            ),
        )
        tuner.fit()


def _place(resources: ResourcesConfig, inside: bool, cpus: int) -> Ask:
    """What a trial itself takes, and where: a worker's place, or a driver's off the GPUs."""
    if inside:
        needs = {"CPU": float(cpus), "GPU": cluster.gpus(resources)}
        return Ask(needs, 1, cluster.labels(resources.training_labels))
    if cluster.on_local_ray():
        return Ask(DRIVER, 1)
    return Ask(DRIVER, 1, driver_labels(cluster.could_have()))


def placement(place: Ask) -> tune.PlacementGroupFactory:
    """One trial's place, as Tune asks Ray for it: with the labels of its node."""
    labels: Any = {"bundle_label_selector": [dict(place.labels)]} if place.labels else {}
    return tune.PlacementGroupFactory([dict(place.bundle)], **labels)


@contextmanager
def _placing(on_progress: OnProgress, place: Ask) -> Iterator[Any]:
    """A board for trials' progress; while none of them has a place, remarks on it."""
    first = Progress(PLACING, 0, 1, "trials", "waits for room")
    with patient(on_progress, lambda: waits_for(place, TRIAL, 1)) as patience:

        def tell(progress: Progress) -> None:
            if PLACING in patience.latest and patience.latest[PLACING][0] is first:
                patience(Progress(PLACING, 1, 1, "trials"))
            patience(progress)

        if not cluster.on_local_ray():
            patience(first)
        with watching(tell) as board:
            yield board


def fits_one_process(resources: ResourcesConfig, backend: BackendName) -> bool:
    """Whether a trial needs neither several workers nor a partitioned base nor a server."""
    return (
        resources.workers == 1 and zero_stage(resources.deepspeed) < 3 and backend == "transformers"
    )


def _room(resources: ResourcesConfig) -> int:
    """How many trials fit at present; `tuning.concurrent` where a cluster will grow."""
    room = cluster.room(resources)
    if room is not None:
        return room
    cpus = ray.cluster_resources().get("CPU", 1)
    return int(cpus / (resources.workers * (resources.cpus_per_worker or 1)))


class _Asking(Searcher):
    """Tune's questions, passed on to the source of trials."""

    def __init__(self, trials: TrialSource, first: TrialJob):
        super().__init__()
        self.trials = trials
        self.first: TrialJob | None = first
        self.numbers: dict[str, int] = {}

    def suggest(  # type: ignore[override]  # Ray takes a text for "there are no more"
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        job, self.first = (self.first or self.trials.next()), None
        if job is None:
            return Searcher.FINISHED
        if isinstance(job, Later):
            return None  # Tune asks again
        self.numbers[trial_id] = job.number
        return {"job": job.to_json()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        said = (result or {}).get("outcome")
        died = {"reason": "its process died again and again (out of memory?)"}
        outcome: Mapping[str, Any] = died if error or said is None else json.loads(said)
        self.trials.end(self.numbers.pop(trial_id), outcome)

    # Tune pickles its state now and then; a search goes on from its own records.

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing of ours."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing of ours."""


class _Looking(tune.Stopper):
    """Asks the driver after each look whether a trial may go on."""

    def __init__(self, trials: TrialSource):
        self.trials = trials

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        look = result.get("look")
        if look is None:
            return False
        return self.trials.look(result["number"], look, json.loads(result["seconds"]))

    def stop_all(self) -> bool:
        return self.trials.error is not None

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _trial(
    config: dict[str, Any],
    board: Any,
    resources: ResourcesConfig | None,
    backend: BackendName,
    cpus: int,
) -> None:
    """What a trial's actor runs; without `resources` all of it in this process."""
    job = TrialJob.from_json(config["job"])
    poster = Poster(board)

    def tell(progress: Progress) -> None:
        # Scoring is short beside training, and its rows aren't the training's examples.
        if progress.stage.startswith("trial"):
            poster(progress)

    def look(number: int, seconds: Mapping[str, float]) -> None:
        tune.report({"number": job.number, "look": number, "seconds": json.dumps(seconds)})

    try:
        outcome = attempt(job, _runner(resources, backend, cpus), look, tell)
    except WorkerBrokenError:
        os._exit(1)  # Tune starts a new process, which goes on from the checkpoint
    tune.report({"number": job.number, "look": None, "outcome": json.dumps(outcome)})


def _runner(resources: ResourcesConfig | None, backend: BackendName, cpus: int) -> Runner:
    if resources is not None:
        from muscle.launch.ray_launcher import RayLauncher

        return RayLauncher(resources, backend=backend)
    os.environ["OMP_NUM_THREADS"] = str(cpus)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    from muscle.alone import Alone

    torch.set_num_threads(cpus)
    return Alone()
