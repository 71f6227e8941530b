"""Connect to a Ray cluster, or start a local one."""

import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from muscle.config import ResourcesConfig
from muscle.errors import UserError

# Read by Ray at import: nothing of a user's is reported anywhere, and our own progress
# display replaces Ray's.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")


CONNECT_TIMEOUT_S = 10.0

_started_here = False


def connect(address: str | None = None, verbose: bool = False) -> None:
    """Join the cluster at `address` (else RAY_ADDRESS), else start Ray in this machine.

    A local Ray listens on loopback only, has no dashboard, and gets more logical CPUs
    than cores: scoring pools and readers that wait for each other must all fit.

    Raises:
        UserError: the cluster can't be reached.
    """
    global _started_here
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        # Read at Ray's import. Its servers listen on all interfaces otherwise: this makes
        # a node of this machine alone, on every system, whose address is the loopback's.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Inherited by all workers. Threads that wait by spinning slow a busy machine down
        # several times over.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import ray

    if ray.is_initialized():
        return
    level = logging.INFO if verbose else logging.ERROR
    if not verbose:  # what Ray's C++ core prints into the terminal; its log files keep it
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    common: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level}
    with warnings.catch_warnings(), nullcontext() if verbose else _silent_core():
        warnings.simplefilter("ignore")
        if address is None:
            cpus = 2 * (os.cpu_count() or 1) + 2
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=500 * 2**20,
                **common,
            )
            _started_here = True
        else:
            check_reachable(address)
            try:
                ray.init(address=address, **common)
            except Exception as error:  # Ray raises several unrelated types here
                reason = " ".join(str(error).split())[:200]
                if address == "auto":
                    reason = "none runs here; use `muscle run`, or submit the job to a cluster"
                raise UserError(f"Ray cluster {address!r} can't be reached: {reason}") from None
    quiet_libraries(verbose)


@contextmanager
def _silent_core() -> Iterator[None]:
    """Drop what Ray's C++ core says while it starts; Python's own errors still come through."""
    sys.stderr.flush()
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nothing)
        os.close(kept)


def check_reachable(address: str | None) -> None:
    """Fail early where nothing listens: Ray's own client ends the process instead.

    Raises:
        UserError: no connection to `host:port` or `ray://host:port`.
    """
    place = (address or os.environ.get("RAY_ADDRESS") or "").removeprefix("ray://")
    host, colon, port = place.rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto", "local" or nothing: Ray finds it itself
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(
            f"Ray cluster {address or os.environ['RAY_ADDRESS']!r} can't be reached "
            f"({error.strerror or error}): check --address or RAY_ADDRESS, and that it runs"
        ) from None


def quiet_libraries(verbose: bool) -> None:
    """Leave the terminal to our own progress display."""
    if verbose:
        return
    import ray.data
    import ray.train

    for library in (ray, ray.data, ray.train):  # they set their loggers up at import
        # What fails reaches the user as one line of ours.
        logging.getLogger(library.__name__).setLevel(logging.CRITICAL)


def check_resources(resources: ResourcesConfig) -> None:
    """Refuse what this machine will never have; a cluster may still grow.

    Raises:
        UserError: more CPUs or GPUs than there are, for training or for scoring.
    """
    import ray

    if not is_local():
        return
    have = ray.cluster_resources()
    cpus, gpus_here = have.get("CPU", 0.0), have.get("GPU", 0.0)
    workers, actors = resources.min_workers or resources.workers, resources.min_actors
    each = scoring_gpus(resources.gpus_per_actor, gpus_here, 2)
    least = "min_workers" if resources.min_workers is not None else "workers"
    wanted = [
        (f"{least} x resources.gpus_per_worker", workers * gpus(resources.gpus_per_worker), "GPUs"),
        ("min_actors x resources.gpus_per_actor", actors * each, "GPUs"),
        (
            f"{least} x resources.cpus_per_worker",
            workers * (resources.cpus_per_worker or 1),
            "CPUs",
        ),
        # Both bases' pools work at once.
        ("min_actors x resources.cpus_per_actor", 2 * actors * resources.cpus_per_actor, "CPUs"),
    ]
    for setting, number, unit in wanted:
        available = gpus_here if unit == "GPUs" else cpus
        if number > available:
            raise UserError(
                f"resources.{setting} asks for {number:g} {unit} and Ray has {available:g} here: "
                "ask for less, or name a cluster with --address"
            )


def is_local() -> bool:
    """Whether Ray was started by us, on this machine alone: it will never grow."""
    return _started_here


def local_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def scoring_gpus(setting: float | str, available: float, pools: int) -> float:
    """GPUs of one scoring actor: "auto" is one each, or a share where there are fewer."""
    if setting != "auto":
        return float(setting)
    return min(1.0, available / pools)


def gpus(setting: float | str) -> float:
    """A GPU setting as a number: "auto" is 1 where the cluster has GPUs, else 0."""
    import ray

    if setting != "auto":
        return float(setting)
    return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def room(resources: ResourcesConfig) -> int | None:
    """How many trainings, each with all of its workers, the cluster's GPUs or this machine's
    cores hold at present; None on a cluster of CPUs, which places them itself."""
    import ray

    per_worker = gpus(resources.gpus_per_worker)
    if per_worker:
        available = ray.cluster_resources().get("GPU", 0)
        return int(available / (per_worker * resources.workers))
    if is_local():
        return int(local_cores() / (resources.workers * (resources.cpus_per_worker or 1)))
    return None


def cpus_each(resources: ResourcesConfig, side_by_side: int) -> int:
    """CPUs of a training worker: without GPUs, the local cores shared where nothing is asked."""
    asked = resources.cpus_per_worker
    if asked is not None or not is_local() or gpus(resources.gpus_per_worker):
        return asked or 1
    return max(1, local_cores() // (side_by_side * resources.workers))
