"""The teacher cache: exact rows in any order, made again where damaged, refused where not ours."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from muscle import storage
from muscle.alone import Alone
from muscle.artifacts import Store
from muscle.config import AdapterConfig, VersionConfig
from muscle.errors import UserError
from muscle.models.adapters import attach_adapter, new_adapter, save_adapter
from muscle.models.head import load_head
from muscle.models.load import load_base, load_tokenizer
from muscle.models.sequences import Sequences, collate, tokenise
from muscle.models.structure import hidden_states
from muscle.tables import read_examples, write_examples
from muscle.teachers import cache as cache_module
from muscle.teachers.cache import TeacherCache, open_cache
from muscle.teachers.job import TeacherAsk, TeacherBase, TeacherJob
from muscle.teachers.shards import finish, missing
from muscle.teachers.staging import PREFIX, Content, Staged
from muscle.training.job import Progress
from muscle.types import TrainingExample

MAX_LENGTH = 100
MakeTeachers = Callable[..., TeacherJob]


def silent(progress: Progress) -> None:
    pass


def identity(name: str, dtype: str, loss_on: str) -> dict[str, Any]:
    return {
        "base": f"base of {name}",
        "adapter": f"adapter of {name}",
        "tokenizer": "t",
        "examples": "e",
        "dtype": dtype,
        "max_length": MAX_LENGTH,
        "loss_on": loss_on,
    }


@pytest.fixture(scope="module")
def make_teachers(
    tiny_models: dict[str, str], trained: dict[str, str], examples: str
) -> MakeTeachers:
    """`make_teachers(folder)`: the old and the new teacher, four shards each."""

    def make(folder: Path | str, dtype: str = "float32", loss_on: str = "all") -> TeacherJob:
        bases = tuple(
            TeacherBase(
                VersionConfig(model=tiny_models[name]),
                (
                    TeacherAsk(
                        name,
                        trained[name],
                        storage.join(str(folder), name),
                        identity(name, dtype, loss_on),
                    ),
                ),
            )
            for name in ("old", "new")
        )
        return TeacherJob(bases, examples, dtype, MAX_LENGTH, loss_on, 64, shard_sequences=6)

    return make


@pytest.fixture(scope="module")
def data(tiny_models: dict[str, str], examples: str) -> Sequences:
    rows = read_examples(f"{examples}/train.parquet")
    return tokenise(rows, load_tokenizer(tiny_models["new"]), MAX_LENGTH, "all")


def make_cache(job: TeacherJob) -> TeacherJob:
    """Write all caches of a job, with their indices."""
    Alone("cpu").cache(job, silent)
    for base in job.bases:
        for ask in base.asks:
            finish(job, ask)
    return job


@pytest.fixture(scope="module")
def made(make_teachers: MakeTeachers, tmp_path_factory: pytest.TempPathFactory) -> TeacherJob:
    """A finished fp32 cache; tests that harm it work on a copy."""
    return make_cache(make_teachers(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def copied(made: TeacherJob, make_teachers: MakeTeachers, tmp_path: Path) -> TeacherJob:
    job = make_teachers(tmp_path / "copy")
    for base, other in zip(made.bases, job.bases, strict=True):
        storage.upload(Path(base.asks[0].folder), other.asks[0].folder)
    return job


def opened(job: TeacherJob, data: Sequences, which: int = 1) -> TeacherCache:
    ask = job.bases[which].asks[0]
    return open_cache(ask.folder, ask.identity, data, job.dtype)


def teacher(job: TeacherJob, which: int) -> Any:
    base = job.bases[which]
    model = load_base(base.base.model, dtype=job.dtype, device="cpu")
    return attach_adapter(model, base.asks[0].adapter, "direct").eval()


def direct(model: Any, data: Sequences, index: int) -> torch.Tensor:
    """One sequence alone, through transformers' own outputs."""
    with torch.no_grad():
        ids = torch.from_numpy(data.ids[index])[None]
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    return states[data.first[index] - 1 : -1]


@pytest.mark.parametrize("which", [0, 1])
def test_rows_are_those_of_each_sequence_alone(
    which: int, made: TeacherJob, data: Sequences
) -> None:
    model = teacher(made, which)
    with opened(made, data, which) as cache:
        for index in range(len(data)):
            got = cache.read([index])
            assert got.dtype == torch.float32 and got.shape == (data.targets(index), 16 << which)
            torch.testing.assert_close(got, direct(model, data, index), rtol=1e-5, atol=1e-5)


def test_rows_come_in_the_order_of_a_micro_batch(made: TeacherJob, data: Sequences) -> None:
    model = teacher(made, 1)
    with opened(made, data) as cache:
        for seed in range(3):
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
            rows = order[:7].tolist()
            batch = collate(data, rows, pad=3)
            with torch.no_grad():
                expected = hidden_states(model, batch.input_ids, batch.attention_mask)
            expected = expected[:, :-1][batch.scored]
            torch.testing.assert_close(cache.read(rows), expected, rtol=1e-5, atol=1e-5)
            assert torch.equal(cache.read(rows), torch.cat([cache.read([i]) for i in rows]))
        assert cache.read([]).shape == (0, 32)


def test_loss_on_answer_keeps_the_answer_only(
    make_teachers: MakeTeachers, tiny_models: dict[str, str], examples: str, tmp_path: Path
) -> None:
    job = make_cache(make_teachers(tmp_path, loss_on="answer"))
    rows = read_examples(f"{examples}/train.parquet")
    data = tokenise(rows, load_tokenizer(tiny_models["new"]), MAX_LENGTH, "answer")
    model = teacher(job, 1)
    with opened(job, data) as cache:
        expected = torch.cat([direct(model, data, i) for i in (13, 2)])
        torch.testing.assert_close(cache.read([13, 2]), expected, rtol=1e-5, atol=1e-5)
        index = storage.read_json(storage.join(job.bases[1].asks[0].folder, "index.json"))
    assert index is not None
    assert index["tokens"] == sum(data.targets(i) for i in range(len(data)))


def test_bf16_is_kept_as_bf16(make_teachers: MakeTeachers, data: Sequences, tmp_path: Path) -> None:
    job = make_cache(make_teachers(tmp_path, dtype="bfloat16"))
    model = teacher(job, 1)
    with opened(job, data) as cache:
        for index in (19, 0, 7):
            got, expected = cache.read([index]), direct(model, data, index)
            assert got.dtype == expected.dtype == torch.bfloat16
            distance = (got.float() - expected.float()).norm() / expected.float().norm()
            assert distance < 2**-6  # a few roundings of 8 bits
        # Two bytes a number, whatever else the files hold.
        index_ = storage.read_json(storage.join(job.bases[1].asks[0].folder, "index.json"))
        assert index_ is not None
        raw = 2 * 32 * index_["tokens"]
        assert raw < sum(s["size"] for s in index_["shards"]) < raw + 4 * 200


def test_the_head_gives_the_models_own_logits(made: TeacherJob, data: Sequences) -> None:
    for which in (0, 1):
        model = teacher(made, which)
        with opened(made, data, which) as cache:
            logits = load_head(cache.head_path(), "cpu")(cache.read([4]))
            with torch.no_grad():
                whole = model(input_ids=torch.from_numpy(data.ids[4])[None]).logits[0]
        expected = whole[data.first[4] - 1 : -1]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


# --- writing --------------------------------------------------------------------------


def test_only_what_is_missing_is_computed(copied: TeacherJob, data: Sequences) -> None:
    old, new = (Path(base.asks[0].folder) for base in copied.bases)
    before = {p: p.read_bytes() for p in [*old.iterdir(), *new.iterdir()]}
    (old / "000001.json").unlink()  # killed between a shard and its note
    (new / "000003.safetensors").unlink()
    (new / "head.safetensors").write_bytes(b"half")
    (new / "000002.safetensors").write_bytes(before[new / "000002.safetensors"][:-1])
    (new / "000000.json").write_text("{")
    harmed = {old / "000001", new / "000003", new / "head", new / "000002", new / "000000"}
    left = missing(copied)
    assert left.total == 40 and left.done == 40 - (6 + 2 + 6 + 6)
    assert left.units == {0: {(0, 1): 6}, 1: {(0, -1): 0, (0, 0): 6, (0, 2): 6, (0, 3): 2}}
    kept = {p: p.stat().st_mtime_ns for p in before if p.with_suffix("") not in harmed}
    seen: list[Progress] = []
    Alone("cpu").cache(copied, seen.append)
    assert seen[0].done == 20 and seen[-1].done == seen[-1].total == 40
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    # The same budget on the same machine: the same bits.
    assert {p: p.read_bytes() for p in before} == before


def test_another_teachers_shards_in_a_folder_do_not_count(copied: TeacherJob) -> None:
    base = copied.bases[0]
    other = dataclasses.replace(base.asks[0], identity={**base.asks[0].identity, "adapter": "x"})
    job = dataclasses.replace(copied, bases=(dataclasses.replace(base, asks=(other,)),))
    assert missing(job).done == 0
    assert missing(copied).done == missing(copied).total


def test_an_unfinished_cache_has_no_index(make_teachers: MakeTeachers, tmp_path: Path) -> None:
    job = make_teachers(tmp_path)
    ask = job.bases[0].asks[0]
    with pytest.raises(UserError, match=r"lacks head.safetensors \(5 of 5 files\): run again"):
        finish(job, ask)
    assert not (tmp_path / "old" / "index.json").exists()


def test_a_finished_cache_is_an_artifact(copied: TeacherJob, tmp_path: Path) -> None:
    """Its files aren't read again to commit or to find it; a missing one is noticed."""
    store = Store(str(tmp_path / "store"))
    attempt = store.shared_attempt("teacher", "k")
    ask = dataclasses.replace(copied.bases[0].asks[0], folder=attempt)
    storage.upload(Path(copied.bases[0].asks[0].folder), attempt)
    (Path(attempt) / "000000.safetensors.abc.part").write_bytes(b"of a killed worker")
    store.commit("teacher", "k", attempt, {}, {}, known=finish(copied, ask))
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
    data = tokenise(rows, load_tokenizer(base.base.model), MAX_LENGTH, "all")
    for ask in both.asks:
        alone = dataclasses.replace(job, bases=(dataclasses.replace(base, asks=(ask,)),))
        expected = direct(teacher(alone, 0), data, 3)
        with open_cache(ask.folder, ask.identity, data, "float32") as cache:
            torch.testing.assert_close(cache.read([3]), expected, rtol=1e-5, atol=1e-5)


# --- reading --------------------------------------------------------------------------


def flip(content: bytes) -> bytes:
    """One bit of the last byte: the size stays."""
    return content[:-1] + bytes([content[-1] ^ 1])


def test_a_damaged_shard_is_removed_and_made_again(copied: TeacherJob, data: Sequences) -> None:
    folder = Path(copied.bases[1].asks[0].folder)
    shard = folder / "000002.safetensors"
    before = shard.read_bytes()
    shard.write_bytes(flip(before))
    with opened(copied, data) as cache:
        cache.read([0, 19])  # other shards are still good
        cache.ahead([13])
        for _ in range(2):
            with pytest.raises(UserError, match=r"000002.safetensors .*damaged.*run again") as said:
                cache.read([13])
            assert "\n" not in str(said.value)
    assert missing(copied).units == {1: {(0, 2): 6}}
    make_cache(copied)
    assert shard.read_bytes() == before
    head = folder / "head.safetensors"
    head.write_bytes(flip(head.read_bytes()))
    with opened(copied, data) as cache, pytest.raises(UserError, match=r"head.*damaged"):
        cache.head_path()
    assert missing(copied).units == {1: {(0, -1): 0}}


def test_a_damaged_shard_that_cannot_be_removed_says_what_to_delete(
    copied: TeacherJob, data: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = Path(copied.bases[1].asks[0].folder) / "000000.safetensors"
    shard.write_bytes(flip(shard.read_bytes()))

    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(storage, "remove", refuse)
    with opened(copied, data) as cache:
        with pytest.raises(UserError, match=r"can't be removed: delete it and 000000.json"):
            cache.read([0])


FIELDS = ["base", "adapter", "tokenizer", "examples", "dtype", "max_length", "loss_on"]


@pytest.mark.parametrize("field", FIELDS)
def test_another_identity_is_refused(field: str, made: TeacherJob, data: Sequences) -> None:
    ask = made.bases[1].asks[0]
    with pytest.raises(UserError) as caught:
        open_cache(ask.folder, {**ask.identity, field: "mine"}, data, "float32")
    line = str(caught.value)
    assert "\n" not in line and ask.folder in line and f"another {field}" in line
    assert repr(ask.identity[field]) in line and "'mine'" in line
    assert "delete the folder" in line and "--set resources.teachers=online" in line


def test_a_field_more_or_less_or_another_dtype_is_refused(
    made: TeacherJob, data: Sequences
) -> None:
    ask = made.bases[1].asks[0]
    with pytest.raises(UserError, match="another recipe: None there and 2 here"):
        open_cache(ask.folder, {**ask.identity, "recipe": 2}, data, "float32")
    less = {k: v for k, v in ask.identity.items() if k != "base"}
    with pytest.raises(UserError, match="another base: 'base of new' there and None here"):
        open_cache(ask.folder, less, data, "float32")
    with pytest.raises(UserError, match="another dtype: 'float32' there and 'bfloat16' here"):
        open_cache(ask.folder, ask.identity, data, "bfloat16")
    with pytest.raises(UserError, match=r"nowhere is not whole \(no index.json"):
        open_cache("/nowhere", ask.identity, data, "float32")


@pytest.mark.parametrize("change", ["tokenizer", "max_length", "loss_on", "text", "fewer"])
def test_other_tokens_are_refused_whatever_the_identity_says(
    change: str, made: TeacherJob, tiny_models: dict[str, str], examples: str
) -> None:
    rows = read_examples(f"{examples}/train.parquet")
    model = tiny_models["other" if change == "tokenizer" else "new"]
    if change == "text":
        rows[5] = dataclasses.replace(rows[5], answer=" purple")
    if change == "fewer":
        rows = rows[:-1]
    data = tokenise(
        rows,
        load_tokenizer(model),
        8 if change == "max_length" else MAX_LENGTH,
        "answer" if change == "loss_on" else "all",
    )
    what = "number of sequences: 20 there and 19" if change == "fewer" else "tokens fingerprint"
    with pytest.raises(UserError, match=f"another {what}"):
        opened(made, data)


# --- reading from elsewhere -----------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store that isn't a disk; copies go under the test's folder."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    url = f"memory://teachers-{os.getpid()}-{tmp_path.name}"
    yield url
    storage.remove(url)


def copies(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "tmp").glob(f"muscle-*/{PREFIX}*/*.safetensors"))


@pytest.fixture
def remote(made: TeacherJob, make_teachers: MakeTeachers, elsewhere: str) -> TeacherJob:
    job = make_teachers(elsewhere)
    for base, other in zip(made.bases, job.bases, strict=True):
        storage.upload(Path(base.asks[0].folder), other.asks[0].folder)
    return job


def test_written_elsewhere_is_the_same(
    made: TeacherJob, make_teachers: MakeTeachers, elsewhere: str
) -> None:
    job = make_cache(make_teachers(elsewhere))
    for base, other in zip(made.bases, job.bases, strict=True):
        for path in Path(base.asks[0].folder).iterdir():
            fs, inside = storage.filesystem(storage.join(other.asks[0].folder, path.name))
            assert fs.cat_file(inside) == path.read_bytes()


def test_copies_are_shared_and_go_with_the_last_reader(
    made: TeacherJob, remote: TeacherJob, data: Sequences, tmp_path: Path
) -> None:
    rows = [19, 3, 7, 4]
    with opened(made, data) as local:
        expected = local.read(rows)
    first, second = opened(remote, data), opened(remote, data)
    first.ahead(range(20))
    assert torch.equal(first.read(rows), expected)
    assert load_head(first.head_path(), "cpu").weight.shape[1] == 32
    while len(copies(tmp_path)) < 5:  # in the background
        time.sleep(0.01)
    there = {path: path.stat().st_mtime_ns for path in copies(tmp_path)}
    assert torch.equal(second.read(rows), expected)
    first.close()
    assert torch.equal(second.read(rows), expected)
    assert {path: path.stat().st_mtime_ns for path in copies(tmp_path)} == there
    second.close()
    second.close()  # twice does no harm
    assert copies(tmp_path) == []


def test_shards_are_copied_in_the_order_of_first_need(
    remote: TeacherJob, data: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "THREADS", 1)
    order: list[str] = []
    download = storage.download

    def noting(path: str, target: Path) -> None:
        order.append(path.rsplit("/", 1)[1])
        download(path, target)

    monkeypatch.setattr(storage, "download", noting)
    with opened(remote, data) as cache:
        cache.ahead([13, 0, 14, 19, 1, 7])
        for index in (7, 13, 0, 19):  # whoever is first: each is copied once
            cache.read([index])
    assert len(order) == 4
    ahead = [name for name in order if name != "000001.safetensors"]
    assert ahead == ["000002.safetensors", "000000.safetensors", "000003.safetensors"]


def test_a_damaged_copy_is_made_again_and_a_damaged_original_is_removed(
    remote: TeacherJob, data: Sequences, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    download = storage.download
    calls = 0

    def shaky(path: str, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(errno.EIO, "connection reset")
        download(path, target)
        if calls == 2:
            target.write_bytes(b"altered on the way")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "download", shaky)
        with opened(remote, data) as cache:
            cache.read([0])
    assert calls == 3
    folder = remote.bases[1].asks[0].folder
    fs, inside = storage.filesystem(storage.join(folder, "000001.safetensors"))
    fs.pipe_file(inside, flip(fs.cat_file(inside)))
    with opened(remote, data) as cache:
        with pytest.raises(UserError, match=r"memory://.*000001.safetensors .*damaged"):
            cache.read([7])
        assert copies(tmp_path) == []
    assert missing(remote).units == {1: {(0, 1): 6}}


def test_no_room_for_copies_is_said_before_any_is_made(
    remote: TeacherJob, data: Sequences, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(storage, "disk_free", lambda path: 1000)
    with pytest.raises(UserError, match=r"needs .* of local disk .* 1e-06 GB free: point TMPDIR"):
        opened(remote, data)
    assert copies(tmp_path) == []


def test_a_disk_that_fills_up_while_copying_is_said(
    remote: TeacherJob, data: Sequences, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(path: str, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "download", full)
    with opened(remote, data) as cache, pytest.raises(UserError, match="no space left"):
        cache.read([0])
    assert not list((tmp_path / "tmp").rglob("*.part"))


DEAD = """
import os, sys, tempfile
tempfile.tempdir = sys.argv[1]
from muscle.teachers.staging import Staged
Staged("memory://dead", {}).folder.joinpath("000000.safetensors").write_bytes(b"left behind")
os._exit(9)
"""


def test_what_a_killed_reader_left_is_swept(elsewhere: str, tmp_path: Path) -> None:
    place = str(tmp_path / "tmp")
    subprocess.run([sys.executable, "-c", DEAD, place], check=False, timeout=60)
    assert len(copies(tmp_path)) == 1
    staged = Staged(elsewhere, {"x": Content("", 0)})
    assert copies(tmp_path) == []
    staged.close()
    # And its marker doesn't keep the copies of others.
    subprocess.run([sys.executable, "-c", DEAD, place], check=False, timeout=60)
    Staged("memory://dead", {}).close()
    assert copies(tmp_path) == []


def test_free_space_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    free = storage.disk_free(str(tmp_path / "not" / "yet"))
    assert free is not None and 0 < free < 1 << 60
    assert storage.disk_free("memory://x") is None


def test_a_note_is_json_that_says_what_the_shard_is(made: TeacherJob, data: Sequences) -> None:
    folder = Path(made.bases[1].asks[0].folder)
    note = json.loads((folder / "000003.json").read_text())
    shard = folder / "000003.safetensors"
    assert note["sequences"] == 2 and note["tokens"] == data.targets(18) + data.targets(19)
    assert note["size"] == shard.stat().st_size
    assert note["sha256"] == storage.sha256(str(shard))


def test_one_sequence_is_a_cache_too(
    make_teachers: MakeTeachers, tmp_path: Path, tiny_models: dict[str, str]
) -> None:
    one = [TrainingExample("only", "the cat", " sat")]
    write_examples(tmp_path / "train.parquet", one)
    job = dataclasses.replace(make_teachers(tmp_path / "cache"), examples=str(tmp_path))
    make_cache(job)
    data = tokenise(one, load_tokenizer(tiny_models["new"]), MAX_LENGTH, "all")
    with opened(job, data) as cache:
        assert cache.read([0]).shape == (data.targets(0), 32)
