"""The testbed's chats: what is asked, what is right, and two bases that read them differently."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from muscle.chats import chats_of
from muscle.config import Experiment
from muscle.tasks import load_task
from muscle.testbed import CHAT_MODELS, model_path
from muscle.testbed.chat import DESKS, MARKERS, TEMPLATES, chat_rows
from muscle.testbed.company import write_data
from muscle.testbed.world import SEED, build_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("company")
    write_data(found)
    return found


def experiment(folder: Path, task: str, **more: Any) -> Experiment:
    files = {split: str(folder / task / f"{split}.jsonl") for split in ("train", "test")}
    return Experiment.model_validate(
        {
            "name": task,
            "task": {"name": task, "format": "chat", **files, **more},
            "old": {"model": "testbed:chat-v1"},
            "new": {"model": "testbed:chat-v2"},
            "training": {"max_length": 256},
        }
    )


@pytest.mark.parametrize(
    ("task", "more"),
    [("routing", {"labels": list(DESKS), "group": "order"}), ("orders", {"scorer": "json_fields"})],
)
def test_an_update_of_a_company_can_be_planned(
    folder: Path, task: str, more: dict[str, Any]
) -> None:
    """No overlap, no chat that is too long, the same answers in both templates."""
    found = experiment(folder, task, **more)
    loaded = load_task(found.task)
    chats = chats_of(found, loaded)
    assert chats is not None and chats.notes == () and loaded.notes == ()
    assert chats.old.end_of_turn == "</s>" and chats.new.end_of_turn == "<|end|>"
    old, new = (loaded.queries(3, chats.prompting_of(v)) for v in ("old", "new"))
    assert old[0].requests[0].context.endswith(" Answer:")
    assert new[0].requests[0].context.startswith("<s><|system|> It is 26.07.2024.<|end|>")


def test_the_desk_is_the_heaviest_things(folder: Path) -> None:
    world = build_world(SEED)
    for row in chat_rows("routing", SEED, "test", 200):
        things = str(row["order"]).split()
        heaviest = max(things, key=world.weight.__getitem__)
        assert row["gold"] == DESKS[world.weight[heaviest] * 3 // len(world.weight)]
        said = str(row["messages"])
        assert all(f"the {thing}" in said for thing in things) and len(things) == row["things"]


def test_an_order_is_what_was_agreed() -> None:
    world = build_world(SEED)
    for row in chat_rows("orders", SEED, "train", 200):
        text, gold = row["messages"][1]["content"], row["gold"]  # type: ignore[index]
        assert gold == {
            "by": DESKS[world.weight[str(row["thing"])] * 3 // len(world.weight)],
            "cheaper": "too much" in text,
            "later": "I have no time" in text,
        }


def test_bases_read_their_own_templates() -> None:
    from transformers import AutoTokenizer

    for name in CHAT_MODELS:
        tokenizer = AutoTokenizer.from_pretrained(model_path(name))
        assert tokenizer.chat_template == TEMPLATES[name.removeprefix("chat-")]
        known = set(MARKERS) <= set(tokenizer.get_vocab())
        assert known == (name == "chat-v2")


def test_the_command_writes_the_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "muscle.testbed.company", str(tmp_path / "company")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for path in map(Path, result.stdout.splitlines()):
        first = json.loads(path.read_text().splitlines()[0])
        assert first["id"].startswith(path.parent.name) and first["messages"]
