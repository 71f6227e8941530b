"""An update at level choice on Ray, by two workers with ZeRO-3, is what one process makes of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from updates import update

from muscle.alone import Alone
from muscle.config import Experiment
from muscle.launch.ray_launcher import RayLauncher
from muscle.pipeline import Pipeline
from muscle.plan import make_plan
from muscle.tables import read_predictions

pytestmark = pytest.mark.slow

CHOICE = {
    "level": "choice",
    "teacher": "mean",
    "margin": 0.5,
    "temperature": 1.0,
    "inputs": ["train", {"split": "train", "limit": 24}],
}


def test_ray_makes_what_one_process_makes(ray_local: None, tmp_path: Path) -> None:
    settings = update("choices", evaluated=40, epochs=1, limit=60)
    settings["compatibility"] = CHOICE
    here = tmp_path / "alone"
    Pipeline(
        make_plan(Experiment.model_validate(settings)), str(here), Alone("cpu"), lambda _: None
    ).run()

    def trained(version: str) -> dict[str, Any]:  # not again: it is compat that is compared
        return {**settings[version], "adapter": str(here / version / "adapter")}

    there = tmp_path / "ray"
    given = {"old": trained("old"), "new": trained("new")}
    resources = {"resources": {"workers": 2, "cpus_per_worker": 1, "deepspeed": "zero3"}}
    experiment = Experiment.model_validate({**settings, **given, **resources})
    launcher = RayLauncher(experiment.resources)
    Pipeline(make_plan(experiment), str(there), launcher, lambda _: None).run()
    mine, theirs = (
        load_file(output / "compat" / "adapter" / "adapter_model.safetensors")
        for output in (here, there)
    )
    start = load_file(here / "new" / "adapter" / "adapter_model.safetensors")
    assert any((mine[key] - start[key]).abs().max() > 1e-3 for key in mine)
    for key, tensor in mine.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=1e-2, atol=1e-3)
    mine_said, theirs_said = (
        read_predictions(output / "compat" / "testbed_choice.parquet") for output in (here, there)
    )
    same = sum(a.prediction == b.prediction for a, b in zip(mine_said, theirs_said, strict=True))
    assert same >= len(mine_said) - 1  # two adapters that are equal up to rounding
