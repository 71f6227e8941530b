"""Units of work through Ray Data: their names stream through one actor pool for each base.

Nothing but names passes through the driver, whose memory doesn't grow with the work; the
actors read and write files themselves.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext

from muscle.config import ResourcesConfig
from muscle.launch import cluster
from muscle.launch.capacity import Ask
from muscle.launch.streams import MAX_RESTARTS, explain, restarts_bounded, set_context
from muscle.launch.waiting import SCORING_WORKER, patient, waits_for
from muscle.training.job import OnProgress

Rows = Sequence[Mapping[str, int]]
"""Names of units; each actor gets one at a time."""


def work_off(
    units: Mapping[int, Rows],
    actor: type,
    arguments: Mapping[str, Any],
    resources: ResourcesConfig,
    what: str,
    retries: int = MAX_RESTARTS,
) -> None:
    """Send all units through pools of actors, one pool for each base; returns when all are done.

    Args:
        units: base -> its units.
        actor: called with a table of units; made with `arguments` and `base`.
        what: what failed, for the message, when it isn't a UserError.
        retries: how many actors one unit may take with it.

    Raises:
        UserError: an actor's own, or what Ray says of it in one line.
    """
    for bases in rounds([base for base, rows in units.items() if rows], resources):
        ask = cluster.scoring_ask(resources, len(bases), sharing=len(bases))
        set_context(DataContext.get_current())
        branches = [
            _through_pool(units[base], actor, {**arguments, "base": base}, resources, ask, retries)
            for base in bases
        ]
        stream = branches[0] if len(branches) == 1 else branches[0].union(*branches[1:])
        try:
            for _ in stream.iter_batches(batch_size=None, batch_format="pyarrow"):
                pass
        except ray.exceptions.RayError as error:
            raise explain(error, what) from error


@contextmanager
def waiting(
    on_progress: OnProgress, bases: list[int], resources: ResourcesConfig
) -> Iterator[OnProgress]:
    """Progress of pools of these bases; while no actor has a place, with remarks on it."""
    at_once = len(rounds(bases, resources)[0])
    ask = cluster.scoring_ask(resources, at_once, sharing=at_once)
    with patient(on_progress, lambda: waits_for(ask, SCORING_WORKER, 1)) as patience:
        yield patience


def rounds(bases: list[int], resources: ResourcesConfig) -> list[list[int]]:
    """The bases whose pools work at once: all, or one by one where there is no room for all.

    Pools of one stream wait for each other, so half of them would wait for ever.
    """
    if not bases:
        return []
    ask = cluster.scoring_ask(resources, len(bases), sharing=len(bases))
    have = cluster.could_have()
    if have.types is not None and have.room(ask) < ask.count:
        return [[base] for base in bases]
    return [bases]


def _through_pool(
    rows: Rows,
    actor: type,
    arguments: dict[str, Any],
    resources: ResourcesConfig,
    ask: Ask,
    retries: int,
) -> ray.data.Dataset:
    # A block a unit: any actor that is free takes the next one.
    data = ray.data.from_items(list(rows), override_num_blocks=len(rows))
    with restarts_bounded():
        return data.map_batches(
            actor,
            fn_constructor_kwargs=arguments,
            batch_size=1,  # the whole block; Ray refuses None for an actor with a GPU
            batch_format="pyarrow",
            num_cpus=ask.bundle["CPU"],
            num_gpus=ask.bundle.get("GPU", 0.0),
            label_selector=dict(ask.labels) or None,
            compute=ActorPoolStrategy(min_size=resources.min_actors, max_size=resources.max_actors),
            max_restarts=MAX_RESTARTS,
            max_task_retries=retries,
        )
