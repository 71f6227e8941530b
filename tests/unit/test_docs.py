"""The docs name what exists."""

import re
from pathlib import Path

from pydantic import BaseModel

from muscle.config import DataFiles, Experiment

ROOT = Path(__file__).parents[2]


def names(part: type[BaseModel], prefix: str = "") -> set[str]:
    """Dotted names of all settings."""
    found = set()
    for name, field in part.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= names(kind, f"{prefix}{name}.")
        elif name == "data_files":
            found |= names(DataFiles, f"{prefix}{name}.")
        else:
            found.add(prefix + name)
    return found


def test_every_setting_is_documented_and_no_other() -> None:
    documented = set()
    for line in (ROOT / "docs" / "settings.md").read_text().splitlines():
        if not line.startswith("| `"):
            continue
        group = ""
        for name in re.findall(r"`([^`]+)`", line.split("|")[1]):
            if not name.startswith("."):
                group = name.rpartition(".")[0]
            documented.add(name if not name.startswith(".") else group + name)
    documented.discard("task")
    assert documented == names(Experiment)


def test_files_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", text):
        assert (ROOT / target).exists(), target
    for command in re.findall(r"^make (\w+)", text, flags=re.MULTILINE):
        assert f"\n{command}:" in (ROOT / "Makefile").read_text()
