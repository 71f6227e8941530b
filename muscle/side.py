"""One version's judged examples of one task, in columns, wherever they come from.

Our own Parquet, the harness's sample logs and plain files all become a `Side`; the
comparison reads columns of it one at a time, so that a million examples and their texts
need not be in memory together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from muscle.tables import predictions_to_table
from muscle.types import Prediction


@dataclass(frozen=True)
class Side:
    """Columns named and typed as in `PREDICTION_SCHEMA`, all of length `n`.

    label    what messages call it: a path, or "old", "new (seed 1)", …
    about    how it was made: task version, few-shot count, dtype, …; empty where unknown.
             `muscle.metrics.comparable` says which differences are refused and which shown
    read     one column by name; None where the source has no such column. Ids, scores
             (null: unscored) and metric are always there
    """

    task: str
    metric: str
    label: str
    n: int
    read: Callable[[str], pa.ChunkedArray | None] = field(repr=False)
    about: Mapping[str, Any] = field(default_factory=dict)


def side_of(
    predictions: Sequence[Prediction], label: str, about: Mapping[str, Any] | None = None
) -> Side:
    """The predictions of one task as a side.

    Raises:
        ValueError: there are none, or they are of several tasks or metrics.
    """
    kinds = {(p.task, p.metric) for p in predictions}
    if len(kinds) != 1:
        raise ValueError(f"{label}: predictions of {len(kinds)} tasks and metrics, not of one")
    ((task, metric),) = kinds
    table = predictions_to_table(predictions)

    def read(name: str) -> pa.ChunkedArray | None:
        return table.column(name)

    return Side(task, metric, label, len(predictions), read, about or {})
