"""What an evaluation step is told: plain records."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from muscle.config import BackendName, VersionConfig


@dataclass(frozen=True)
class Ask:
    """Who answers a set of queries, and where the answers go.

    version   a name in `BaseJob.adapters`
    answers   folder of this version's answers to this set: one Parquet part a group
    repeat    0, or the how-manieth time the same is asked in another order and other batches
    """

    version: str
    answers: str
    repeat: int = 0


@dataclass(frozen=True)
class QuerySet:
    """A Parquet file of queries, whose row groups are the units of work, and who answers it."""

    queries: str
    asks: tuple[Ask, ...]


@dataclass(frozen=True)
class BaseJob:
    """One base model, the adapters that answer on it (name -> directory, None for the bare
    base), and what they are asked."""

    base: VersionConfig
    adapters: Mapping[str, str | None]
    sets: tuple[QuerySet, ...]


@dataclass(frozen=True)
class EvaluateJob:
    """Everything to ask, base by base; what has a part of answers isn't asked again."""

    bases: tuple[BaseJob, ...]
    dtype: str
    max_length: int | None
    scoring_tokens: int | None
    backend: BackendName = "transformers"

    def asks(self) -> Iterator[tuple[QuerySet, Ask]]:
        """All (set, ask) pairs."""
        for base in self.bases:
            for queries in base.sets:
                for ask in queries.asks:
                    yield queries, ask
