"""A release of an update on chats, and the next update, which asks it by its own template."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from test_chat_update import ONE, OTHER, TEAMS, rows, save
from tiny import make_tokenizer

from muscle.alone import Alone
from muscle.errors import UserError
from muscle.experiment import load_experiment
from muscle.pipeline import Pipeline
from muscle.plan import make_plan
from muscle.release.make import Request, make_release
from muscle.release.vllm import serve_command
from muscle.tables import read_about, read_predictions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """v1 has its template from a file, v2 from its tokenizer."""
    folder = tmp_path_factory.mktemp("chats")
    for part, count in (("train", 16), ("test", 10)):
        (folder / f"{part}.jsonl").write_text(rows(part, count))
    (folder / "one.jinja").write_text(ONE)
    size = len(make_tokenizer())
    task = {"name": "tickets", "format": "chat", "choices": list(TEAMS)}
    files = {part: str(folder / f"{part}.jsonl") for part in ("train", "test")}
    training = {"learning_rate": 1e-2, "warmup_steps": 0, "epochs": 1, "batch_size": 8}
    return {
        "name": "tickets",
        "task": {**task, **files},
        "old": {
            "model": save(folder / "old", 0, None, False, size),
            "chat_template": str(folder / "one.jinja"),
        },
        "new": {"model": save(folder / "new", 1, OTHER, True, size + 2)},
        "adapter": {"r": 4, "alpha": 8},
        "training": {**training, "accumulation": 1, "max_length": 128, "dtype": "float32"},
        "gate": {"max_nfr": 0.999},
        "storage": str(folder / "artifacts"),
    }


def run(folder: Path, settings: dict[str, Any], output: Path) -> dict[str, Any]:
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(settings))
    plan = make_plan(load_experiment(file))
    return Pipeline(plan, str(output), Alone("cpu"), lambda progress: None).run().report


def test_from_chats_to_a_release_and_on(settings: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path, settings, tmp_path / "v2")
    second = make_release(Request(str(tmp_path / "v2"), version="new"))
    record = second.record
    # New reads by its tokenizer's template; who goes back needs old's file.
    assert record.chat_template is not None and record.chat_template.file is None
    assert (
        record.chat_template.fingerprint
        == read_about(tmp_path / "v2" / "new" / "tickets.parquet")["chat_template"]
    )
    assert record.previous.chat_template is not None
    back = serve_command(record.previous, "tickets", "bfloat16")
    assert f"--chat-template {settings['old']['chat_template']}" in back

    # v1 as a release of its own: the way back, made the way on by an update the other way.
    turned = {**settings, "old": settings["new"], "new": settings["old"]}
    run(tmp_path, turned, tmp_path / "v1")
    first = make_release(Request(str(tmp_path / "v1"), version="new"))
    assert first.record.chat_template is not None and first.record.chat_template.file is not None

    after = {**settings, "old": {"release": second.path}, "also": [f"v1={first.path}"]}
    report = run(tmp_path, {**after, "data_seed": 1}, tmp_path / "v3")
    block = report["tasks"]["tickets"]["also"]["v1"]
    assert block["n"] == 10 and set(block["pairs"]) == {"also->old", "also->new", "also->compat"}
    older = read_predictions(tmp_path / "v3" / "also" / "v1" / "tickets.parquet")
    old = read_predictions(tmp_path / "v3" / "old" / "tickets.parquet")
    assert [p.id for p in older] == [p.id for p in old]
    assert all((p.prompt or "").startswith("<s>[user]") for p in older)
    assert all((p.prompt or "").startswith("<s>You are kind.") for p in old)
    # What it answers is what it answered when it was released.
    then = read_predictions(tmp_path / "v1" / "new" / "tickets.parquet")
    assert [p.loglikelihoods for p in older] == [p.loglikelihoods for p in then]
    (note,) = [d for d in block["comparability"] if d["what"] == "chat template"]
    assert note["values"]["also"] != note["values"]["old"] == note["values"]["new"]

    Path(settings["old"]["chat_template"]).write_text(ONE + "\n")
    with pytest.raises(UserError, match=r"'also': release .* its chat template at .*one\.jinja"):
        run(tmp_path, after, tmp_path / "v4")
