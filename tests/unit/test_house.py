"""The house: imports point one way, and light rooms stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import muscle

ROOT = Path(muscle.__file__).parent

# A module may import from its own layer and from layers above it in this list.
LAYERS = [
    ["errors", "credentials", "types", "__init__"],
    [
        "config",
        "settings",
        "task_config",
        "compatibility_config",
        "tuning_config",
        "overrides",
        "remote",
        "storage",
        "copies",
    ],
    ["experiment", "released", "tables", "question_tables", "artifacts", "side"],
    ["tasks", "metrics", "losses", "models", "teachers", "testbed"],
    ["evaluation", "training"],
    ["inputs"],
    [
        "bases",
        "splits",
        "chats",
        "older",
        "questions",
        "unlabelled",
        "answers",
        "candidates",
        "recipes",
        "plan",
        "tuning",
        "report",
        "planning",
        "gate",
    ],
    ["steps"],
    ["predict", "teaching", "answering", "alone", "served"],
    ["compare"],
    ["results"],
    ["pipeline", "evaluate", "promptings"],
    ["release"],
    ["bench", "search", "trials", "tuned", "tune", "fleet"],
    ["display", "submission"],
    ["launch"],
    ["commands", "submitting"],
    ["cli", "cli_flags", "cli_jobs", "cli_release", "__main__"],
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_point_one_way() -> None:
    for path in files():
        mine = LEVEL[room(path)]  # a KeyError is a room that nobody gave a place
        for name in imports(path):
            if not name.startswith("muscle."):
                continue
            other = name.split(".")[1]
            if other in LEVEL:
                assert LEVEL[other] <= mine, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize(("library", "only"), [("ray", "launch"), ("deepspeed", "training")])
def test_one_room_alone_imports(library: str, only: str) -> None:
    for path in files():
        for name in imports(path):
            if name.split(".")[0] == library and path.name != "ray_launcher.py":
                assert room(path) == only, f"{path.relative_to(ROOT)} imports {library}"


def test_no_file_or_function_is_long() -> None:
    for path in files():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 420, f"{path.relative_to(ROOT)} is long"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                size = node.end_lineno - node.lineno + 1
                assert size <= 62, f"{path.relative_to(ROOT)}: {node.name} has {size} lines"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_light_rooms_import_no_torch() -> None:
    code = (
        "import sys, muscle.types, muscle.config, muscle.experiment, muscle.metrics, muscle.report,"
        " muscle.cli, muscle.tables\n"
        "heavy = {'torch', 'ray', 'deepspeed', 'transformers', 'lm_eval'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_core_needs_no_ray_deepspeed_or_harness(tiny_models: dict[str, str]) -> None:
    """Scoring, losses and the loop run on a machine with torch, transformers and peft only."""
    code = f"""
import sys
for name in ("ray", "deepspeed", "lm_eval", "datasets"):
    sys.modules[name] = None
import muscle.alone, muscle.losses.distillation, muscle.training.loop
from muscle.evaluation import Engine
from muscle.types import Query, Request
engine = Engine({tiny_models["new"]!r}, None, {{"new": None}}, "float32", None, device="cpu")
answer, = engine.answer("new", [Query("a", (Request("loglikelihood", "the", " cat"),))])
assert answer.error is None
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
