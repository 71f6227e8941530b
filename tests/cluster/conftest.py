"""Tests on Ray clusters of several nodes, each started and ended by its own test."""

import sys
from pathlib import Path

# `processes` and `updates`, which the tests of a single Ray share with these.
sys.path.append(str(Path(__file__).parents[1] / "ray"))
