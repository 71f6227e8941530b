"""What an evaluation step is told: plain records."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from muscle.config import VersionConfig


@dataclass(frozen=True)
class BaseJob:
    """One base model and the adapters that answer on it: label -> adapter directory."""

    base: VersionConfig
    adapters: Mapping[str, str]


@dataclass(frozen=True)
class EvaluateJob:
    """All questions (a Parquet file of queries) to all adapters of some bases.

    outputs: label -> path of the answers' Parquet file to write.
    """

    queries: str
    bases: tuple[BaseJob, ...]
    outputs: Mapping[str, str]
    dtype: str
    max_length: int | None
    scoring_tokens: int | None

    def labels(self) -> Iterator[str]:
        """The labels of all adapters, base by base."""
        for base in self.bases:
            yield from base.adapters
