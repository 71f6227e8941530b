"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from muscle.config import TrainingConfig


def learning_rate(step: int, total: int, settings: TrainingConfig) -> float:
    """The rate of update `step` (0-based) of `total`: linear warm-up, then the schedule."""
    peak, warmup = settings.learning_rate, settings.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.schedule == "constant":
        return peak
    done = (step - warmup) / max(1, total - warmup)
    if settings.schedule == "linear":
        return peak * max(0.0, 1.0 - done)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
