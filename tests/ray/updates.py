"""A small update of the shipped testbed, as an experiment's settings."""

from typing import Any


def update(name: str, evaluated: int, **training: Any) -> dict[str, Any]:
    """Adapters of rank 4 on `testbed_choice`; `evaluated` test questions."""
    return {
        "name": name,
        "task": "testbed_choice",
        "old": {"model": "testbed:v1"},
        "new": {"model": "testbed:v2"},
        "adapter": {"r": 4, "alpha": 8},
        "compatibility": {"level": "token"},
        "training": {
            "learning_rate": 2e-3,
            "warmup_steps": 5,
            "batch_size": 8,
            "accumulation": 1,
            "dtype": "float32",
            **training,
        },
        "evaluation": {"limit": evaluated},
    }
