"""Writing a teacher cache: only what is missing, nothing half-written, one line for what fails."""

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from teacher_jobs import (
    MAX_LENGTH,
    MakeTeachers,
    direct,
    make_cache,
    opened,
    silent,
    teacher,
)

from muscle import storage
from muscle.alone import Alone
from muscle.artifacts import Store
from muscle.config import AdapterConfig
from muscle.errors import UserError
from muscle.models.adapters import attach_adapter, new_adapter, save_adapter
from muscle.models.load import load_base, load_tokenizer
from muscle.models.sequences import Sequences, tokenise
from muscle.tables import read_examples, write_examples
from muscle.teachers import write
from muscle.teachers.cache import open_cache
from muscle.teachers.job import TeacherAsk, TeacherJob
from muscle.teachers.shards import finish, missing
from muscle.training.job import Progress
from muscle.types import TrainingExample


def test_only_what_is_missing_is_computed(
    copied_teachers: TeacherJob, sequences: Sequences
) -> None:
    old, new = (Path(base.asks[0].folder) for base in copied_teachers.bases)
    before = {p: p.read_bytes() for p in [*old.iterdir(), *new.iterdir()]}
    (old / "000001.json").unlink()  # killed between a shard and its note
    (new / "000003.safetensors").unlink()
    (new / "head.safetensors").write_bytes(b"half")
    (new / "000002.safetensors").write_bytes(before[new / "000002.safetensors"][:-1])
    (new / "000000.json").write_text("{")
    harmed = {old / "000001", new / "000003", new / "head", new / "000002", new / "000000"}
    left = missing(copied_teachers)
    assert left.total == 40 and left.done == 40 - (6 + 2 + 6 + 6)
    assert left.units == {0: {(0, 1): 6}, 1: {(0, -1): 0, (0, 0): 6, (0, 2): 6, (0, 3): 2}}
    kept = {p: p.stat().st_mtime_ns for p in before if p.with_suffix("") not in harmed}
    seen: list[Progress] = []
    Alone("cpu").cache(copied_teachers, seen.append)
    assert seen[0].done == 20 and seen[-1].done == seen[-1].total == 40
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    # The same budget on the same machine: the same bits.
    assert {p: p.read_bytes() for p in before} == before


def test_another_teachers_shards_in_a_folder_do_not_count(copied_teachers: TeacherJob) -> None:
    base = copied_teachers.bases[0]
    other = dataclasses.replace(base.asks[0], identity={**base.asks[0].identity, "adapter": "x"})
    job = dataclasses.replace(copied_teachers, bases=(dataclasses.replace(base, asks=(other,)),))
    assert missing(job).done == 0
    assert missing(copied_teachers).done == missing(copied_teachers).total


def test_an_unfinished_cache_has_no_index(make_teachers: MakeTeachers, tmp_path: Path) -> None:
    job = make_teachers(tmp_path)
    ask = job.bases[0].asks[0]
    with pytest.raises(UserError, match=r"lacks head.safetensors \(5 of 5 files\): run again"):
        finish(job, ask)
    assert not (tmp_path / "old" / "index.json").exists()


def test_a_finished_cache_is_an_artifact(copied_teachers: TeacherJob, tmp_path: Path) -> None:
    """Its files aren't read again to commit or to find it; a missing one is noticed."""
    store = Store(str(tmp_path / "store"))
    attempt = store.shared_attempt("teacher", "k")
    ask = dataclasses.replace(copied_teachers.bases[0].asks[0], folder=attempt)
    storage.upload(Path(copied_teachers.bases[0].asks[0].folder), attempt)
    (Path(attempt) / "000000.safetensors.abc.part").write_bytes(b"of a killed worker")
    store.commit("teacher", "k", attempt, {}, {}, known=finish(copied_teachers, ask))
    assert not list(Path(attempt).glob("*.part"))
    found = Store(str(tmp_path / "store")).find("teacher", "k")
    assert found is not None and found.path == attempt
    (Path(attempt) / "000002.json").unlink()
    assert Store(str(tmp_path / "store")).find("teacher", "k") is None


def test_a_full_disk_loses_no_finished_shard(
    make_teachers: MakeTeachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_teachers(tmp_path)
    written = 0

    def full(descriptor: int) -> None:
        nonlocal written
        written += 1
        if written == 7:  # head and note, two shards and notes, then a shard
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"no space left while writing .*000002.safetensors"):
            Alone("cpu").cache(job, silent)
    assert missing(job).done == 12
    names = sorted(p.name for p in (tmp_path / "old").iterdir())
    assert names == sorted(
        f"{stem}.{kind}"
        for stem in ("head", "000000", "000001")
        for kind in ("json", "safetensors")
    )
    make_cache(job)


def test_a_failed_put_is_one_line(make_teachers: MakeTeachers, elsewhere: str) -> None:
    import fsspec

    job = make_teachers(elsewhere)
    memory = fsspec.filesystem("memory")
    put = memory.pipe_file

    def fail(path: str, value: bytes, **kwargs: Any) -> None:
        if "000001" in path:
            raise OSError(errno.EIO, "the store says no")
        put(path, value, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(memory), "pipe_file", staticmethod(fail))
        with pytest.raises(UserError, match=r"000001.safetensors can't be written: the store"):
            Alone("cpu").cache(job, silent)
    assert missing(job).done == 6


def test_not_a_number_names_the_example(
    make_teachers: MakeTeachers, trained: dict[str, str], tmp_path: Path
) -> None:
    model = load_base(make_teachers(tmp_path).bases[0].base.model)
    model = attach_adapter(model, trained["old"], "huge")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(1e38)
    save_adapter(model, "huge", str(tmp_path / "huge"), "f")
    job = make_teachers(tmp_path)
    ask = dataclasses.replace(job.bases[0].asks[0], adapter=str(tmp_path / "huge"))
    job = dataclasses.replace(job, bases=(dataclasses.replace(job.bases[0], asks=(ask,)),))
    with pytest.raises(UserError, match=r"teacher 'old'.*training example '\d+' hold NaN or inf"):
        Alone("cpu").cache(job, silent)
    assert missing(job).done == 0


def test_a_forward_that_does_not_fit_names_the_setting(
    make_teachers: MakeTeachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(write, "hidden_states", full)
    with pytest.raises(UserError, match=r"the budget is 64\): lower resources.scoring_tokens"):
        Alone("cpu").cache(make_teachers(tmp_path), silent)


def test_an_adapted_head_is_refused(make_teachers: MakeTeachers, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    job = make_teachers(tmp_path)
    for number, settings in enumerate(
        ({"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]})
    ):
        model = load_base(job.bases[1].base.model)
        config = LoraConfig(r=2, task_type="CAUSAL_LM", **settings)
        folder = str(tmp_path / str(number))
        get_peft_model(model, config, "default").save_pretrained(folder)
        ask = dataclasses.replace(job.bases[1].asks[0], adapter=folder)
        bases = (dataclasses.replace(job.bases[1], asks=(ask,)),)
        with pytest.raises(UserError, match=r"frozen head|modules_to_save: \['lm_head'\]"):
            Alone("cpu").cache(dataclasses.replace(job, bases=bases), silent)


def test_adapters_of_one_base_share_it(make_teachers: MakeTeachers, tmp_path: Path) -> None:
    """Two asks of one base are two different signals."""
    job = make_teachers(tmp_path)
    base = job.bases[1]
    model = new_adapter(load_base(base.base.model), AdapterConfig(r=2, alpha=64), 7, "x")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    save_adapter(model, "x", str(tmp_path / "second"), "f")
    second = TeacherAsk("v1.5", str(tmp_path / "second"), str(tmp_path / "b"), {"adapter": "b"})
    both = dataclasses.replace(base, asks=(*base.asks, second))
    job = make_cache(dataclasses.replace(job, bases=(both,)))
    rows = read_examples(f"{job.examples}/train.parquet")
    sequences = tokenise(rows, load_tokenizer(base.base.model), MAX_LENGTH, "all")
    for ask in both.asks:
        alone = dataclasses.replace(job, bases=(dataclasses.replace(base, asks=(ask,)),))
        expected = direct(teacher(alone, 0), sequences, 3)
        with open_cache(ask.folder, ask.identity, sequences, "float32") as cache:
            torch.testing.assert_close(cache.read([3]), expected, rtol=1e-5, atol=1e-5)


def test_a_note_is_json_that_says_what_the_shard_is(
    made_teachers: TeacherJob, sequences: Sequences
) -> None:
    folder = Path(made_teachers.bases[1].asks[0].folder)
    note = json.loads((folder / "000003.json").read_text())
    shard = folder / "000003.safetensors"
    assert note["sequences"] == 2 and note["tokens"] == sequences.targets(18) + sequences.targets(
        19
    )
    assert note["size"] == shard.stat().st_size
    assert note["sha256"] == storage.sha256(str(shard))


def test_one_sequence_is_a_cache_too(
    make_teachers: MakeTeachers, tmp_path: Path, tiny_models: dict[str, str]
) -> None:
    one = [TrainingExample("only", "the cat", " sat")]
    write_examples(tmp_path / "train.parquet", one)
    job = dataclasses.replace(make_teachers(tmp_path / "cache"), examples=str(tmp_path))
    make_cache(job)
    sequences = tokenise(one, load_tokenizer(tiny_models["new"]), MAX_LENGTH, "all")
    with opened(job, sequences) as cache:
        assert cache.read([0]).shape == (sequences.targets(0), 32)
