"""Connect to a Ray cluster, or start a local one."""

import logging
import math
import os
import platform
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from muscle.config import BackendName, ResourcesConfig
from muscle.errors import UserError
from muscle.launch.capacity import Ask, Capacity, Settings, check, size

# Read by Ray at import: nothing of a user's is reported anywhere, and our own progress
# display replaces Ray's.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")


CONNECT_TIMEOUT_S = 10.0

LOCAL = "MUSCLE_LOCAL_RAY"
"""Set in a process that started a Ray of its own, and so in all of that Ray's workers."""

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
    os.environ.pop(LOCAL, None)
    if address is None:
        os.environ[LOCAL] = "1"
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
            check_welcome(address)
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
        UserError: no connection to `host:port` or `ray://host:port`; a job server's URL.
    """
    asked = address or os.environ.get("RAY_ADDRESS") or ""
    if asked.startswith(("http://", "https://")):
        raise UserError(
            f"{asked} is a job server's address: `muscle submit EXPERIMENT --address {asked}` "
            "takes it; here --address (or RAY_ADDRESS) is the HOST:PORT of the cluster itself"
        )
    place = asked.removeprefix("ray://")
    host, colon, port = place.rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto", "local" or nothing: Ray finds it itself
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(
            f"Ray cluster {asked!r} can't be reached "
            f"({error.strerror or error}): check --address or RAY_ADDRESS, and that it runs"
        ) from None


def check_welcome(address: str) -> None:
    """Ask a cluster's control store who may come in: `ray.init` takes 20 seconds to find the
    same, and says less.

    Raises:
        UserError: a missing or wrong token; another version of Ray or Python on the cluster.
    """
    if address.startswith("ray://") or ":" not in address:
        return
    import ray
    from ray._common.usage.usage_lib import get_cluster_metadata
    from ray.exceptions import AuthenticationError

    core: Any = ray._raylet  # has no types
    place = "in RAY_AUTH_TOKEN or ~/.ray/auth_token"
    sends = core.get_authentication_mode() == core.AuthenticationMode.TOKEN
    if sends and not core.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        # Ray's core ends the process here.
        raise UserError(f"RAY_AUTH_MODE is token and no token is here: put the cluster's {place}")
    try:
        told = get_cluster_metadata(core.GcsClient(address))
    except AuthenticationError:
        wrong = f"refuses the token: put the cluster's own {place}"
        if not sends:
            wrong = (
                "asks for a token and none was sent: export RAY_AUTH_MODE=token, with the "
                f"cluster's token {place}"
            )
        raise UserError(f"Ray cluster {address!r} {wrong}") from None
    except Exception:  # whatever it is, `ray.init` finds it too
        return
    if told:
        check_versions(address, told["ray_version"], told["python_version"])


def check_versions(address: str, rays: str, pythons: str) -> None:
    """Compare what runs here with what runs on the cluster.

    Raises:
        UserError: they differ, so that neither can read what the other sends.
    """
    import ray

    if rays != ray.__version__:
        raise UserError(
            f"Ray {ray.__version__} here and {rays} on the cluster {address!r}: install "
            f"ray=={rays}, or use the cluster's image"
        )
    here = platform.python_version()
    level = os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "patch")
    parts = 2 if level == "minor" else 3
    if here.split(".")[:parts] != pythons.split(".")[:parts]:
        raise UserError(
            f"Python {here} here and {pythons} on the cluster {address!r}: use Python {pythons}, "
            "or the cluster's image"
        )


def quiet_libraries(verbose: bool) -> None:
    """Leave the terminal to our own progress display."""
    if verbose:
        return
    import ray.data
    import ray.train

    for library in (ray, ray.data, ray.train):  # they set their loggers up at import
        # What fails reaches the user as one line of ours.
        logging.getLogger(library.__name__).setLevel(logging.CRITICAL)


def check_resources(resources: ResourcesConfig, backend: BackendName = "transformers") -> None:
    """Refuse at once what this machine or cluster will never have, whatever it starts.

    Raises:
        UserError: more than there can be, for training or for scoring, and what would fit.
    """
    if is_local():
        _check_here(resources)
        return
    have = could_have()
    training = training_ask(resources, 1)
    least = "workers" if resources.min_workers is None else "min_workers"
    check(have, training, Settings("gpus_per_worker", "cpus_per_worker", least, "training_labels"))
    if least == "min_workers":
        _check_elastic(have, training)
    scoring = scoring_ask(resources, 1, sharing=2)  # pools that don't fit both take turns
    if backend == "vllm":  # an engine has a GPU, whatever is said of actors
        scoring = replace(scoring, bundle={**scoring.bundle, "GPU": 1.0})
    check(
        have, scoring, Settings("gpus_per_actor", "cpus_per_actor", "min_actors", "scoring_labels")
    )


def _check_elastic(have: Capacity, training: Ask) -> None:
    """Ray counts how many workers of an elastic training fit without looking at labels, and
    then waits for ever for places on nodes that it may not use."""
    carrying = {kind.name for kind in have.kinds(training.labels)}
    for kind in have.kinds() if training.labels else ():
        if kind.name not in carrying and Capacity((), (kind,)).room(replace(training, labels={})):
            raise UserError(
                f"resources.min_workers can't go with resources.training_labels here: a worker "
                f"({size(training.bundle)}) fits {kind.name} too, and Ray would wait for it: ask "
                "for CPUs or GPUs that only nodes with the labels have, or give up one of the two"
            )


def _check_here(resources: ResourcesConfig) -> None:
    import ray

    have = ray.cluster_resources()
    cpus, gpus_here = have.get("CPU", 0.0), have.get("GPU", 0.0)
    workers, actors = resources.min_workers or resources.workers, resources.min_actors
    each = scoring_gpus(resources.gpus_per_actor, gpus_here, 2)
    least = "min_workers" if resources.min_workers is not None else "workers"
    wanted = [
        (f"{least} x resources.gpus_per_worker", workers * gpus(resources), "GPUs"),
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


def on_local_ray() -> bool:
    """Whether this process, which may be a worker, runs on a Ray that we started."""
    return LOCAL in os.environ


def could_have() -> Capacity:
    """What the cluster has and what its autoscaler may add."""
    from muscle.launch.lookout import capacity

    return capacity(alone=on_local_ray())


def labels(wanted: Mapping[str, str]) -> dict[str, str]:
    """Label selectors; none on a Ray that we started, whose one node has no labels."""
    return {} if on_local_ray() else dict(wanted)


def local_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def scoring_gpus(setting: float | str, available: float, pools: int) -> float:
    """GPUs of one scoring actor: "auto" is one each, or a share where there are fewer."""
    if setting != "auto":
        return float(setting)
    return min(1.0, available / pools)


def gpus(resources: ResourcesConfig) -> float:
    """GPUs of a training worker: "auto" is 1 where the cluster has GPUs, or could, else 0."""
    setting = resources.gpus_per_worker
    if setting != "auto":
        return float(setting)
    return 1.0 if could_have().most("GPU", labels(resources.training_labels)) >= 1 else 0.0


def training_ask(resources: ResourcesConfig, width: int) -> Ask:
    """The workers that a training can't start without, of `width` side by side."""
    bundle = {"CPU": float(cpus_each(resources, width))}
    if each := gpus(resources):
        bundle["GPU"] = each
    count = resources.min_workers or resources.workers
    return Ask(bundle, count, labels(resources.training_labels))


def scoring_ask(resources: ResourcesConfig, pools: int, sharing: int) -> Ask:
    """The actors that so many pools can't start without; `sharing` pools share the GPUs."""
    wanted = labels(resources.scoring_labels)
    available = could_have().most("GPU", wanted)
    bundle = {"CPU": resources.cpus_per_actor}
    if each := scoring_gpus(resources.gpus_per_actor, available, sharing):
        bundle["GPU"] = each
    return Ask(bundle, resources.min_actors * pools, wanted)


def room(resources: ResourcesConfig) -> int | None:
    """How many trainings, each with all of its workers, this machine's GPUs or cores hold, or
    the cluster once it has grown; None where that isn't known."""
    import ray

    per_worker = gpus(resources)
    if is_local():
        if per_worker:
            available = ray.cluster_resources().get("GPU", 0)
            return int(available / (per_worker * resources.workers))
        return int(local_cores() / (resources.workers * (resources.cpus_per_worker or 1)))
    have = could_have()
    if have.types is None and not per_worker:
        return None
    room = have.room(training_ask(resources, 1)) / resources.workers
    return None if math.isinf(room) else int(room)


def cpus_each(resources: ResourcesConfig, side_by_side: int) -> int:
    """CPUs of a training worker: without GPUs, the local cores shared where nothing is asked."""
    asked = resources.cpus_per_worker
    if asked is not None or not is_local() or gpus(resources):
        return asked or 1
    return max(1, local_cores() // (side_by_side * resources.workers))
