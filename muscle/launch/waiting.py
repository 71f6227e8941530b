"""A stage that waits for nodes says what it asks, what the cluster has and what is coming.

Ray waits in silence, and for ever. Here a stage that stands still while its workers have no
place gets a remark every few seconds, on its own line of the display.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from muscle.launch import cluster
from muscle.launch.capacity import Answer, Ask, Node, matches
from muscle.training.job import OnProgress, Progress

LOOK_S = 5.0
"""Between two looks at the cluster, and the least that a stage stands still before the first."""

REASON = 160
"""Letters of an autoscaler's reason: the display has one line."""

TRAINING_WORKER, SCORING_WORKER, TRIAL = "RayTrainWorker", "MapWorker", "ImplicitFunc"
"""How Ray's actors are called that train, score, or are a trial."""

FEEDERS = ("(Asking))", "(Keeping))")


class Patience:
    """Passes progress on; while `watching`, adds remarks to what stands still.

    Args:
        on_progress: gets all progress, and the remarks.
        describe: what is being waited for; "" where nothing is.
    """

    def __init__(self, on_progress: OnProgress, describe: Callable[[], str]):
        self.on_progress, self.describe = on_progress, describe
        self.latest: dict[str, tuple[Progress, float]] = {}
        self.working: set[str] | None = None
        self._lock = threading.Lock()

    def __call__(self, progress: Progress) -> None:
        """Pass on, and remember."""
        with self._lock:
            self.latest[progress.stage] = progress, time.monotonic()
        self.on_progress(progress)

    def only(self, stages: set[str]) -> None:
        """Remark on these stages alone: the others wait for their turn, not for nodes."""
        with self._lock:
            self.working = set(stages)

    def still(self, since_s: float) -> list[Progress]:
        """The latest progress of unfinished stages that haven't moved for so long."""
        now = time.monotonic()
        with self._lock:
            return [
                progress
                for progress, moved in self.latest.values()
                if progress.done < progress.total
                and now - moved >= since_s
                and (self.working is None or progress.stage in self.working)
            ]

    def remark(self) -> None:
        """Say what the stages that stand still wait for, if for anything."""
        standing = self.still(LOOK_S)
        text = self.describe() if standing else ""
        if not text:
            return
        for progress in standing:
            self.on_progress(dataclasses.replace(progress, remark=text))

    def watch(self, stop: threading.Event) -> None:
        """Remark again and again, until told to stop."""
        while not stop.wait(LOOK_S):
            try:
                self.remark()
            except Exception:  # a remark must never end the work it is about
                continue


@contextmanager
def patient(on_progress: OnProgress, describe: Callable[[], str]) -> Iterator[Patience]:
    """A `Patience` that remarks while the block runs; silent on a Ray that we started, which
    has all that it will ever have."""
    patience = Patience(on_progress, describe)
    stop = threading.Event()
    thread = threading.Thread(target=patience.watch, args=(stop,), daemon=True)
    if not cluster.on_local_ray():
        thread.start()
    try:
        yield patience
    finally:
        stop.set()
        if thread.is_alive():
            thread.join(timeout=15)


def waits_for(ask: Ask, worker: str, least: int) -> str:
    """What is waited for while fewer than `least` of this job's workers are alive; else ""."""
    from muscle.launch.lookout import look

    if alive(worker) >= least:
        return ""
    sight = look()
    return sentence(ask, sight.nodes, sight.answer)


def alive(worker: str) -> int:
    """How many actors of this job, of classes with this in their names, have a place; those
    that only feed vLLM's engines aren't what is waited for."""
    import ray

    mine = ray.get_runtime_context().get_job_id()
    found = ray._private.state.actors(actor_state_name="ALIVE").values()
    names = [actor["ActorClassName"] for actor in found if actor["JobID"] == mine]
    return sum(worker in name and not name.endswith(FEEDERS) for name in names)


def sentence(ask: Ask, nodes: tuple[Node, ...], answer: Answer) -> str:
    """One line: what is asked, what is free of what there is, what the autoscaler says."""
    parts = [f"waits for {ask}: {_free(ask, nodes)}"]
    if answer.starting:
        coming = (f"{number:g} {kind}" for kind, number in sorted(answer.starting.items()))
        parts.append("starting " + ", ".join(coming))
    for kind, reason in sorted(answer.failed.items()):
        parts.append(f"the autoscaler could not start {kind}: {reason[:REASON] or 'no reason'}")
    if any(_same(bundle, ask.bundle) for bundle in answer.infeasible):
        parts.append("the autoscaler has no node type for it")
    return "; ".join(parts)


def _free(ask: Ask, nodes: tuple[Node, ...]) -> str:
    here = [node for node in nodes if matches(ask.labels, node.labels)]
    unit = next((unit for unit in ("GPU", "CPU") if ask.bundle.get(unit)), None)
    if unit is None:
        return f"{len(here)} such nodes"
    free = sum(node.free.get(unit, 0.0) for node in here)
    total = sum(node.total.get(unit, 0.0) for node in here)
    return f"{free:g} of {total:g} {unit} free"


def _same(bundle: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return all(bundle.get(name, 0.0) == other.get(name, 0.0) for name in ("CPU", "GPU"))
