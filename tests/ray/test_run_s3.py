"""`muscle run` with everything on an object store: models, artifacts, results."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import muscle
from s3_server import S3Server
from updates import update

from muscle import storage
from muscle.testbed import model_path

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def short_temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Ray's sockets are under TMPDIR too, and their names may not be long."""
    folder = tempfile.mkdtemp(prefix="m", dir="/tmp")
    monkeypatch.setenv("TMPDIR", folder)
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


def run(settings: dict[str, Any], output: str, folder: Path) -> str:
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(settings))
    result = muscle("run", str(file), "--output", output)
    return result.stdout + result.stderr


def test_on_a_store_it_gives_the_same_report_and_is_done_once(
    s3: S3Server, short_temporary: Path, tmp_path: Path
) -> None:
    bucket = s3.bucket()
    settings = update("stored", evaluated=64, epochs=1, limit=64)
    settings["resources"] = {"teachers": "cached", "workers": 2, "checkpoint_seconds": 2}
    run(settings, str(tmp_path / "out"), tmp_path)
    local = (tmp_path / "out" / "report.json").read_bytes()
    output = f"{bucket}/out"
    run({**settings, "storage": f"{bucket}/store"}, output, tmp_path)
    fs, inside = storage.filesystem(f"{output}/report.json")
    assert fs.cat_file(inside) == local
    left = storage.sizes(f"{bucket}/store")
    assert not [name for name in left if "lease" in name or "claim" in name or "/ray/" in name]
    s3.calm()
    printed = run({**settings, "storage": f"{bucket}/store"}, output, tmp_path)
    assert "reused" in printed
    assert not [path for path in s3.puts() if "/store/" in path]

    # The same models from the store: other keys, the same numbers; one download for all workers.
    for version, name in (("old", "v1"), ("new", "v2")):
        storage.upload(Path(model_path(name)), f"{bucket}/models/{name}")
        settings[version] = {"model": f"{bucket}/models/{name}"}
    s3.calm()
    run({**settings, "storage": f"{bucket}/store"}, f"{bucket}/stored", tmp_path)
    report = storage.read_json(f"{bucket}/stored/report.json")
    assert report["tasks"] == json.loads(local)["tasks"]
    for name in ("v1", "v2"):
        headers = 2
        assert len(s3.gets(f"{name}/model.safetensors")) == headers + 1
