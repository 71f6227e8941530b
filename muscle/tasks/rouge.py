"""ROUGE-1 for harness tasks."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any


@cache
def _scorer() -> Any:
    from rouge_score import rouge_scorer

    # No stemming: the paper does not say (assumed), and without it the score does
    # not depend on the language.
    return rouge_scorer.RougeScorer(["rouge1"], use_stemmer=False)


def rouge1(prediction: str, gold: str) -> float:
    """ROUGE-1 F, in [0, 1]: unigram overlap of lower-cased alphanumeric tokens.

    Lin 2004, as Google's rouge_score computes it; an empty text scores 0.
    """
    return float(_scorer().score(gold, prediction)["rouge1"].fmeasure)


def process_summary(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """A harness `process_results` for documents with the gold text in `summary`."""
    return {"rouge1": rouge1(results[0], doc["summary"])}
