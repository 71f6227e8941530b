"""`muscle run` with a fleet, as a user runs it: trainings side by side, one of which fails."""

import json
import re
from pathlib import Path

import pytest
import yaml
from processes import muscle
from updates import update

pytestmark = pytest.mark.slow

WILD = 10**38
"""An alpha with which the first update's weights overflow."""


def test_one_training_that_fails_stops_no_other(tmp_path: Path) -> None:
    fleet = update("crew", evaluated=60, epochs=1, limit=40) | {
        "gate": {"max_nfr": 0.9},
        "resources": {"teachers": "online", "max_failures": 0},
        "adapters": [
            {"name": "absent", "new": str(tmp_path / "nowhere")},
            {"name": "wild", "adapter": {"alpha": WILD}},
            {"name": "steady"},
            {"name": "strict", "gate": {"max_nfr": 0.001}},
        ],
    }
    file, output = tmp_path / "crew.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(fleet))
    printed = muscle("run", str(file), "--output", str(output), code=1).stdout
    assert "start Ray" in printed and "strict: train compat" in printed
    record = json.loads((output / "fleet.json").read_text())
    found = {one["name"]: one for one in record["adapters"]}
    assert {name: one["decision"] for name, one in found.items()} == {
        "absent": "failed",
        "wild": "failed",
        "steady": "move",
        "strict": "stay",
    }
    assert "does not exist" in found["absent"]["reason"]
    assert re.search(r"\b(inf|NaN)\b", found["wild"]["reason"])
    # Steady's and strict's old and new are the same, and were made once.
    assert len(list(output.glob("artifacts/task-adapter/*/manifest.json"))) == 2
    assert len(list(output.glob("artifacts/predictions/*/manifest.json"))) == 3
