"""Predictions from an OpenAI-compatible server (vLLM, llama.cpp, TGI, transformers serve).

No torch and no Ray: the driver asks, with many requests at once.
"""

from muscle.served.asking import Served
from muscle.served.base import ServedBase, resolve_served, served_about, served_step
from muscle.served.checks import needs_of
from muscle.served.prompting import served_prompting

__all__ = [
    "Served",
    "ServedBase",
    "needs_of",
    "resolve_served",
    "served_about",
    "served_prompting",
    "served_step",
]
