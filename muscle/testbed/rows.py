"""What the harness files in `tasks/` call: the data sets and the score of a summary.

The harness imports this module by name and calls a data set function with the task's
metadata and `dataset_kwargs` as keywords. The rows are made when a task is loaded; the
package ships no data files.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from muscle.testbed.arithmetic import arithmetic_rows
from muscle.testbed.choice import choice_rows
from muscle.testbed.summary import summary_rows
from muscle.testbed.world import SEED

if TYPE_CHECKING:
    from datasets import DatasetDict

TRAIN_ROWS = 2400
TEST_ROWS = 2000


def _splits(make: Callable[[int, str, int], list[dict[str, object]]]) -> DatasetDict:
    from datasets import Dataset, DatasetDict

    return DatasetDict(
        {
            "train": Dataset.from_list(make(SEED, "train", TRAIN_ROWS)),
            "test": Dataset.from_list(make(SEED, "test", TEST_ROWS)),
        }
    )


def choice(**_: Any) -> DatasetDict:
    """Splits "train" and "test"; columns id, question, choices (4 texts), gold (index)."""
    return _splits(choice_rows)


def arithmetic(**_: Any) -> DatasetDict:
    """Splits "train" and "test"; columns id, question, answer (in words)."""
    return _splits(arithmetic_rows)


def summary(**_: Any) -> DatasetDict:
    """Splits "train" and "test"; columns id, dialogue, summary."""
    return _splits(summary_rows)


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1"], use_stemmer=False)


def score_summary(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """ROUGE-1 F, in [0, 1], of the generated summary against the reference."""
    return {"rouge1": _scorer().score(doc["summary"], results[0])["rouge1"].fmeasure}
