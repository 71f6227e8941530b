"""Judged examples from files: our Parquet, the harness's sample logs, plain JSONL, Parquet, CSV.

Whatever the file, a `Side` comes out (muscle/side.py). Nothing here imports torch, Ray,
transformers or the harness.
"""

from muscle.inputs.asked import Asked, Columns
from muscle.inputs.opening import open_sides

__all__ = ["Asked", "Columns", "open_sides"]
