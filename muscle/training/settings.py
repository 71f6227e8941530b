"""Checks of settings that can be made before anything starts; no torch."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from muscle.config import Experiment, TrackingConfig
from muscle.errors import UserError

STAGES = Path(__file__).resolve().parents[2] / "cluster" / "deepspeed"


def check_settings(experiment: Experiment) -> None:
    """Refuse what would fail minutes later.

    Raises:
        UserError: an unknown DeepSpeed stage, a configuration that can't be used, or a
            tracker that isn't installed.
    """
    read_deepspeed(experiment.resources.deepspeed)
    check_tracking(experiment.tracking)


def read_deepspeed(name: str) -> dict[str, Any]:
    """A DeepSpeed configuration by stage name (`cluster/deepspeed/NAME.json`) or by path.

    Raises:
        UserError: no such stage or file, not a JSON object, or ZeRO stage 0.
    """
    path = Path(name) if name.endswith(".json") else STAGES / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in STAGES.glob("*.json")))
        raise UserError(f"resources.deepspeed is {name!r}: use one of {known}, or a path to a JSON")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"DeepSpeed configuration {path} is not JSON: {error}") from None
    stage = config.get("zero_optimization", {}).get("stage", 0) if isinstance(config, dict) else 0
    if stage not in (1, 2, 3):
        # At stage 0 DeepSpeed can't hand out the optimizer's state, so nothing could resume.
        raise UserError(f"DeepSpeed configuration {path}: zero_optimization.stage must be 1 to 3")
    return dict(config)


def zero_stage(name: str) -> int:
    """The ZeRO stage, 1 to 3, of a configuration by name or path; errors of `read_deepspeed`."""
    return int(read_deepspeed(name)["zero_optimization"]["stage"])


def check_tracking(config: TrackingConfig | None) -> None:
    """Refuse a tracker whose package isn't installed; imports nothing, starts nothing.

    Raises:
        UserError: names the extra.
    """
    if config is None:
        return
    for setting, value in (("mlflow", config.mlflow), ("wandb", config.wandb)):
        if value is not None and importlib.util.find_spec(setting) is None:
            raise UserError(
                f"tracking.{setting} is {value!r} and {setting} isn't installed: "
                f"pip install 'muscle-llm[{setting}]' (on a cluster, on its nodes)"
            )
