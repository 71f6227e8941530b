"""Models, adapters and data named by a path of an object store."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from colours import colour_settings, write_data
from s3_server import S3Server

from muscle import copies, storage
from muscle.alone import Alone
from muscle.bases import resolve_base
from muscle.config import Experiment, VersionConfig
from muscle.errors import UserError
from muscle.evaluate import Evaluating, plan_evaluation
from muscle.experiment import build_evaluation, given_settings
from muscle.models.load import load_base, load_config, load_tokenizer
from muscle.pipeline import Pipeline
from muscle.plan import make_plan
from muscle.training.job import Progress


def silent(progress: Progress) -> None:
    pass


@pytest.fixture
def stored(s3: S3Server, tiny_models: dict[str, str]) -> str:
    """The new tiny model in a folder of a bucket, among what no one should read."""
    path = f"{s3.bucket()}/models/new"
    storage.upload(Path(tiny_models["new"]), path)
    for name in ("pytorch_model.bin", "optimizer.pt", "README.md", "runs/1/model.safetensors"):
        storage.write_bytes(storage.join(path, name), b"no")
    s3.calm()
    return path


def test_weights_are_fetched_where_they_are_loaded_only(s3: S3Server, stored: str) -> None:
    base = resolve_base(VersionConfig(model=stored), "new")
    assert base.config.model == stored and base.config.revision == base.fingerprint
    assert not [p for p in s3.gets() if p.endswith((".bin", ".pt", ".md"))]
    headers = len(s3.gets(".safetensors"))  # are looked at, piece by piece
    assert headers == 2
    model = load_base(base.config.model, base.config.revision)
    assert len(s3.gets(".safetensors")) == headers + 1
    load_base(base.config.model, base.config.revision)
    assert len(s3.gets(".safetensors")) == headers + 1
    assert model.config.hidden_size == 32
    assert not [p for p in s3.gets() if p.endswith((".bin", ".pt", ".md")) or "/runs/" in p]


def test_what_was_pinned_is_loaded_or_nothing(
    s3: S3Server, stored: str, tiny_models: dict[str, str]
) -> None:
    base = resolve_base(VersionConfig(model=stored), "new")
    config = json.loads((Path(tiny_models["new"]) / "config.json").read_text())
    storage.write_json(f"{stored}/config.json", {**config, "rms_norm_eps": 0.125})
    changed = resolve_base(VersionConfig(model=stored), "new")
    assert changed.fingerprint != base.fingerprint
    assert load_config(stored, base.fingerprint).rms_norm_eps != 0.125  # still here
    assert load_config(stored, changed.fingerprint).rms_norm_eps == 0.125
    assert load_config(stored).rms_norm_eps == 0.125
    shutil.rmtree(storage.scratch(""))  # as on another machine
    with pytest.raises(UserError, match="holds other files than this run began with"):
        load_base(stored, base.fingerprint)
    with pytest.raises(UserError, match=rf"new: model .* is at revision {changed.fingerprint}, no"):
        resolve_base(VersionConfig(model=stored, revision=base.fingerprint), "new")


def test_equal_files_have_one_revision(stored: str, tiny_models: dict[str, str]) -> None:
    before = resolve_base(VersionConfig(model=stored), "new").fingerprint
    storage.upload(Path(tiny_models["new"]), stored)  # again: other times, the same content
    storage.write_bytes(f"{stored}/README.md", b"more")
    assert resolve_base(VersionConfig(model=f"{stored}/"), "new").fingerprint == before


@pytest.mark.parametrize("harm", ["cut", "no header", "empty"])
def test_damaged_weights_are_found_before_any_worker(harm: str, stored: str) -> None:
    fs, inside = storage.filesystem(f"{stored}/model.safetensors")
    data = fs.cat_file(inside)
    harmed = {"cut": data[:-7], "no header": b"\xff" * 64, "empty": b""}[harm]
    fs.pipe_file(inside, harmed)
    with pytest.raises(UserError, match=r"model.safetensors is cut short or damaged: copy it"):
        resolve_base(VersionConfig(model=stored), "new")


@pytest.mark.parametrize(
    ("remove", "said"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", r"has no \*.safetensors \(pickles are never read\)"),
        ("", "does not exist, or its folder is empty"),
        ("tokenizer.json tokenizer_config.json", "has no tokenizer files"),
    ],
)
def test_what_lacks_is_one_line(remove: str, said: str, stored: str) -> None:
    for name in remove.split() or [""]:
        storage.remove(f"{stored}/{name}".rstrip("/"))
    with pytest.raises(UserError, match=said) as caught:
        resolve_base(VersionConfig(model=stored), "old")
    assert str(caught.value).startswith("old: model ") and "s3://" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_on_a_store_is_the_same(stored: str, tiny_models: dict[str, str]) -> None:
    text = "the cat sat"
    assert load_tokenizer(stored).encode(text) == load_tokenizer(tiny_models["new"]).encode(text)


# --- whole commands ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(
    tiny_models: dict[str, str], trained: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """An update with given task adapters."""
    data = write_data(tmp_path_factory.mktemp("data"), test=12)
    found = colour_settings(tiny_models, data)
    for version in ("old", "new"):
        adapter = tmp_path_factory.mktemp(version) / "adapter"
        shutil.copytree(trained[version], adapter)
        (adapter / "muscle.json").unlink()  # it names a base that there isn't
        found[version]["adapter"] = str(adapter)
    return found


def on_store(settings: dict[str, Any], bucket: str) -> dict[str, Any]:
    """The same settings, after everything they name was put on a store."""
    found = json.loads(json.dumps(settings))
    for version in ("old", "new"):
        for key in ("model", "adapter"):
            path = f"{bucket}/{version}/{key}"
            storage.upload(Path(found[version][key]), path)
            found[version][key] = path
    for key in ("train", "test"):
        storage.upload(Path(settings["task"][key]).parent, f"{bucket}/data")
        found["task"][key] = f"{bucket}/data/{key}.jsonl"
    return found


@pytest.mark.slow
def test_an_update_of_what_lies_on_a_store(
    s3: S3Server, settings: dict[str, Any], tmp_path: Path
) -> None:
    bucket = s3.bucket()
    found = {}
    for name, given in {"here": settings, "there": on_store(settings, bucket)}.items():
        s3.calm()
        plan = make_plan(Experiment.model_validate(given))
        report = Pipeline(plan, str(tmp_path / name), Alone("cpu"), silent).run().report
        found[name] = report["tasks"]
    assert found["here"] == found["there"]
    for weights in ("old/model/model.safetensors", "new/adapter/adapter_model.safetensors"):
        whole = len(s3.gets(weights)) - (2 if "/model/" in weights else 0)  # without the headers
        assert whole == 1, weights
    assert len(s3.gets("test.jsonl")) == 1
    # What travels to workers is the store's path, pinned; not this machine's copy of it.
    assert plan.old.config.model == f"{bucket}/old/model"
    pinned = str(plan.old.config.adapter)
    assert pinned.startswith(f"{bucket}/old/adapter#") and copies.unpinned(pinned)[1] is not None
    report = storage.read_json(str(tmp_path / "there" / "report.json"))
    assert "tmp/muscle-" not in json.dumps(report) and "#" not in json.dumps(report["provenance"])


@pytest.mark.slow
def test_evaluating_a_model_on_a_store(
    s3: S3Server, settings: dict[str, Any], tmp_path: Path
) -> None:
    given = on_store(settings, s3.bucket())
    task = tmp_path / "task.yaml"
    task.write_text(json.dumps({**given["task"], "train": None}))
    scores = []
    for versions in (settings, given):
        model = f"mine={versions['new']['model']}+{versions['new']['adapter']}"
        config = build_evaluation(given_settings([str(task)], [model]))
        output = str(tmp_path / f"out{len(scores)}")
        done = Evaluating(plan_evaluation(config), output, Alone("cpu"), silent).run()
        scores.append(done.result["versions"]["mine"]["tasks"]["colours"]["scores"])
    assert scores[0] == scores[1]


def test_an_adapter_of_a_base_that_moved_to_a_store(
    s3: S3Server, stored: str, tiny_models: dict[str, str], settings: dict[str, Any], tmp_path: Path
) -> None:
    """Fingerprints of different kinds say nothing of each other; of one kind they do."""
    adapter = tmp_path / "adapter"
    shutil.copytree(settings["new"]["adapter"], adapter)
    note = adapter / "muscle.json"
    here = resolve_base(VersionConfig(model=tiny_models["new"]), "new").fingerprint
    there = resolve_base(VersionConfig(model=stored), "new").fingerprint
    for made_on in (here, there):
        note.write_text(json.dumps({"base_fingerprint": made_on}))
        resolve_base(VersionConfig(model=stored, adapter=str(adapter)), "new")
    note.write_text(json.dumps({"base_fingerprint": "0" * len(there)}))
    with pytest.raises(UserError, match=r"made for another base.*delete the adapter's muscle.json"):
        resolve_base(VersionConfig(model=stored, adapter=str(adapter)), "new")
