"""What the caching of teachers is told: plain records of JSON values; no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from muscle.config import VersionConfig

SHARD_SEQUENCES = 128
"""Sequences of one shard: the unit of work, of writing and of checking."""


@dataclass(frozen=True)
class TeacherAsk:
    """One signal to have: the final hidden states of a base with one adapter.

    name      of the adapter among all that are loaded on this base
    adapter   its directory
    folder    where the cache goes
    identity  what it is made of, by name, for `teachers.cache.open_cache` to compare
    """

    name: str
    adapter: str
    folder: str
    identity: Mapping[str, Any]


@dataclass(frozen=True)
class TeacherBase:
    """One base model, loaded once, and the signals that are wanted of it.

    examples  folder with train.parquet, where this base reads its chats by a template of its
              own; None: the job's
    """

    base: VersionConfig
    asks: tuple[TeacherAsk, ...]
    examples: str | None = None


@dataclass(frozen=True)
class TeacherJob:
    """All signals that are missing; bases run side by side.

    examples    folder with train.parquet
    tokens      budget of one forward; None: by device
    shard_sequences  sequences of one shard
    """

    bases: tuple[TeacherBase, ...]
    examples: str
    dtype: str
    max_length: int
    loss_on: str
    tokens: int | None
    shard_sequences: int = SHARD_SEQUENCES
