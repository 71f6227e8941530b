"""`muscle run` with a fleet, as a user runs it: trainings side by side, one of which fails."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import muscle
from updates import update

pytestmark = pytest.mark.slow

WILD = 10**38
"""An alpha with which the first update's weights overflow."""


def sail(folder: Path, *entries: dict[str, Any], code: int) -> tuple[dict[str, Any], str]:
    """Run a fleet in a folder; returns its adapters by name, and what was printed."""
    fleet = update("crew", evaluated=60, epochs=1, limit=40) | {
        "gate": {"max_nfr": 0.9},
        "resources": {"teachers": "online", "max_failures": 0},
        "adapters": list(entries),
    }
    file, output = folder / "crew.yaml", folder / "out"
    file.write_text(yaml.safe_dump(fleet))
    printed = muscle("run", str(file), "--output", str(output), code=code).stdout
    record = json.loads((output / "fleet.json").read_text())
    return {one["name"]: one for one in record["adapters"]}, printed


def test_one_training_that_fails_stops_no_other(tmp_path: Path) -> None:
    found, printed = sail(
        tmp_path,
        {"name": "absent", "new": str(tmp_path / "nowhere")},
        {"name": "wild", "adapter": {"alpha": WILD}},
        {"name": "steady"},
        code=1,
    )
    assert "start Ray" in printed and "steady: train old" in printed
    decisions = {name: one["decision"] for name, one in found.items()}
    assert decisions == {"absent": "failed", "wild": "failed", "steady": "move"}
    assert "does not exist" in found["absent"]["reason"]
    assert re.search(r"\b(inf|NaN)\b", found["wild"]["reason"])


@pytest.mark.long
def test_compat_where_new_fails_and_a_second_run_starts_no_ray(tmp_path: Path) -> None:
    entries = ({"name": "steady"}, {"name": "strict", "gate": {"max_nfr": 0.001}})
    found, printed = sail(tmp_path, *entries, code=1)
    assert "strict: train compat" in printed and "steady: train compat" not in printed
    assert {name: one["decision"] for name, one in found.items()} == {
        "steady": "move",
        "strict": "stay",
    }
    # Steady's and strict's old and new are the same, and were made once.
    output = tmp_path / "out"
    assert len(list(output.glob("artifacts/task-adapter/*/manifest.json"))) == 2
    assert len(list(output.glob("artifacts/predictions/*/manifest.json"))) == 3
    before = {p: p.read_bytes() for p in (*output.glob("*/report.*"), *output.glob("fleet.*"))}
    _, printed = sail(tmp_path, *entries, code=1)
    assert "start Ray" not in printed
    assert {path: path.read_bytes() for path in before} == before
