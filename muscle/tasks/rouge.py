"""ROUGE-1 for harness tasks."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

# A Chinese or Japanese character, or a run of letters and digits of any other script.
_TOKEN = re.compile("[\u3040-\u30ff\u3400-\u9fff]|[^\\W_\u3040-\u30ff\u3400-\u9fff]+")


class _AnyScript:
    """Tokens of any script; on ASCII text exactly rouge_score's own, which drops the rest."""

    def tokenize(self, text: str) -> list[str]:
        return _TOKEN.findall(text.lower())


@cache
def _scorer(any_script: bool) -> Any:
    from rouge_score import rouge_scorer

    # No stemming: the paper does not say (assumed), and without it the score does
    # not depend on the language.
    tokenizer = _AnyScript() if any_script else None
    return rouge_scorer.RougeScorer(["rouge1"], use_stemmer=False, tokenizer=tokenizer)


def rouge1(prediction: str, gold: str, any_script: bool = False) -> float:
    """ROUGE-1 F, in [0, 1]: unigram overlap of lower-cased alphanumeric tokens.

    Lin 2004, as Google's rouge_score computes it; an empty text scores 0. Plain
    rouge_score knows ASCII only; `any_script` counts all letters and digits.
    """
    return float(_scorer(any_script).score(gold, prediction)["rouge1"].fmeasure)


def process_summary(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """A harness `process_results` for documents with the gold text in `summary`."""
    return {"rouge1": rouge1(results[0], doc["summary"])}
