"""A teacher cache on another machine: checked copies on the local disk, shared and cleaned up."""

import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from teacher_jobs import (
    MakeTeachers,
    flip,
    make_cache,
    opened,
)

from muscle import storage
from muscle.errors import UserError
from muscle.models.head import load_head
from muscle.models.sequences import Sequences
from muscle.teachers import cache as cache_module
from muscle.teachers.job import TeacherJob
from muscle.teachers.shards import missing
from muscle.teachers.staging import PREFIX, Content, Staged


def copies(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "tmp").glob(f"muscle-*/{PREFIX}*/*.safetensors"))


@pytest.fixture
def remote(made_teachers: TeacherJob, make_teachers: MakeTeachers, elsewhere: str) -> TeacherJob:
    job = make_teachers(elsewhere)
    for base, other in zip(made_teachers.bases, job.bases, strict=True):
        storage.upload(Path(base.asks[0].folder), other.asks[0].folder)
    return job


def test_written_elsewhere_is_the_same(
    made_teachers: TeacherJob, make_teachers: MakeTeachers, elsewhere: str
) -> None:
    job = make_cache(make_teachers(elsewhere))
    for base, other in zip(made_teachers.bases, job.bases, strict=True):
        for path in Path(base.asks[0].folder).iterdir():
            fs, inside = storage.filesystem(storage.join(other.asks[0].folder, path.name))
            assert fs.cat_file(inside) == path.read_bytes()


def test_copies_are_shared_and_go_with_the_last_reader(
    made_teachers: TeacherJob, remote: TeacherJob, sequences: Sequences, tmp_path: Path
) -> None:
    rows = [19, 3, 7, 4]
    with opened(made_teachers, sequences) as local:
        expected = local.read(rows)
    first, second = opened(remote, sequences), opened(remote, sequences)
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
    remote: TeacherJob, sequences: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "THREADS", 1)
    order: list[str] = []
    download = storage.download

    def noting(path: str, target: Path) -> None:
        order.append(path.rsplit("/", 1)[1])
        download(path, target)

    monkeypatch.setattr(storage, "download", noting)
    with opened(remote, sequences) as cache:
        cache.ahead([13, 0, 14, 19, 1, 7])
        for index in (7, 13, 0, 19):  # whoever is first: each is copied once
            cache.read([index])
    assert len(order) == 4
    ahead = [name for name in order if name != "000001.safetensors"]
    assert ahead == ["000002.safetensors", "000000.safetensors", "000003.safetensors"]


def test_a_damaged_copy_is_made_again_and_a_damaged_original_is_removed(
    remote: TeacherJob, sequences: Sequences, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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
        with opened(remote, sequences) as cache:
            cache.read([0])
    assert calls == 3
    folder = remote.bases[1].asks[0].folder
    fs, inside = storage.filesystem(storage.join(folder, "000001.safetensors"))
    fs.pipe_file(inside, flip(fs.cat_file(inside)))
    with opened(remote, sequences) as cache:
        with pytest.raises(UserError, match=r"memory://.*000001.safetensors .*damaged"):
            cache.read([7])
        assert copies(tmp_path) == []
    assert missing(remote).units == {1: {(0, 1): 6}}


def test_no_room_for_copies_is_said_before_any_is_made(
    remote: TeacherJob, sequences: Sequences, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(storage, "disk_free", lambda path: 1000)
    with pytest.raises(UserError, match=r"need .* of local disk .* 1e-06 GB free: point TMPDIR"):
        opened(remote, sequences)
    assert copies(tmp_path) == []


def test_a_disk_that_fills_up_while_copying_is_said(
    remote: TeacherJob, sequences: Sequences, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(path: str, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "download", full)
    with opened(remote, sequences) as cache, pytest.raises(UserError, match="no space left"):
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
