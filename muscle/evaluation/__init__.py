"""Ask a model: log-likelihoods of choices and generated answers, with the harness's numbers."""

from muscle.evaluation.engine import Engine

__all__ = ["Engine"]
