"""The gate: does an update keep to its limits, for sure? `judge` reads, decides and writes."""

from muscle.gate.judging import GateResult, judge
from muscle.gate.limits import Limits, make_limits
from muscle.gate.show import print_gate

__all__ = ["GateResult", "Limits", "judge", "make_limits", "print_gate"]
