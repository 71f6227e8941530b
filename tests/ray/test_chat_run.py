"""An update on chats on Ray (Train with DeepSpeed, Data) is what one process makes of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from muscle.alone import Alone
from muscle.config import Experiment
from muscle.launch.ray_launcher import RayLauncher
from muscle.pipeline import Pipeline
from muscle.plan import make_plan
from muscle.tables import read_predictions
from muscle.testbed.company import write_data

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("company")
    write_data(folder)
    files = {split: str(folder / "routing" / f"{split}.jsonl") for split in ("train", "test")}
    return {
        "name": "routing",
        "task": {
            "name": "routing",
            "format": "chat",
            "labels": ["post", "cart", "ship"],
            "max_gen_toks": 8,
            **files,
        },
        "old": {"model": "testbed:chat-v1"},
        "new": {"model": "testbed:chat-v2"},
        "adapter": {"r": 4, "alpha": 8},
        "training": {
            "learning_rate": 2e-3,
            "warmup_steps": 2,
            "epochs": 1,
            "limit": 60,
            "batch_size": 12,
            "accumulation": 1,
            "max_length": 256,
            "dtype": "float32",
        },
        "evaluation": {"limit": 40},
    }


def test_ray_makes_what_one_process_makes(
    settings: dict[str, Any], ray_local: None, tmp_path: Path
) -> None:
    launchers = {"alone": Alone(), "ray": None}
    for name in launchers:
        # From the cache on Ray, beside the student in one process.
        teachers = {"alone": "online", "ray": "cached"}[name]
        experiment = Experiment.model_validate({**settings, "resources": {"teachers": teachers}})
        launcher = launchers[name] or RayLauncher(experiment.resources)
        Pipeline(make_plan(experiment), str(tmp_path / name), launcher, lambda _: None).run()
    for version in ("old", "new", "compat"):
        here, there = (
            load_file(tmp_path / name / version / "adapter" / "adapter_model.safetensors")
            for name in launchers
        )
        for key, tensor in here.items():
            torch.testing.assert_close(there[key], tensor, rtol=1e-2, atol=1e-3)
        here, there = (
            read_predictions(tmp_path / name / version / "routing.parquet") for name in launchers
        )
        assert [p.prompt for p in here] == [p.prompt for p in there]
        assert all(p.error is None and p.reason for p in there)
        same = sum(a.prediction == b.prediction for a, b in zip(here, there, strict=True))
        assert same >= len(here) - 1  # two adapters that are equal up to rounding
