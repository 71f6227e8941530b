"""A small experiment of own files: which colour is a thing?"""

import json
from pathlib import Path
from typing import Any

COLOURS = ["red", "blue", "green"]


def write_data(folder: Path, test: int, train: int = 20) -> Path:
    """`train` rows to train on, at most 100, and `test` others, whose things have other numbers."""
    for name, size, start in (("train", train, 0), ("test", test, 100)):
        rows = [{"q": f"thing {start + i}", "a": COLOURS[i % 3]} for i in range(size)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def colour_settings(models: dict[str, str], data: Path) -> dict[str, Any]:
    """An experiment of one epoch on the tiny models."""
    return {
        "name": "colours",
        "task": {
            "name": "colours",
            "train": str(data / "train.jsonl"),
            "test": str(data / "test.jsonl"),
            "prompt": "{{q}} is",
            "choices": COLOURS,
            "target": "a",
        },
        "old": {"model": models["old"]},
        "new": {"model": models["new"]},
        "adapter": {"r": 2, "alpha": 4},
        "compatibility": {"level": "token"},
        "training": {
            "learning_rate": 1e-2,
            "warmup_steps": 1,
            "epochs": 1,
            "accumulation": 1,
            "dtype": "float32",
        },
    }
