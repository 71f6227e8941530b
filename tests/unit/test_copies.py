"""Copies of what lies on a store: one for a machine, whole or not at all, never a stale one."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from s3_server import S3Server

from muscle import copies, storage
from muscle.errors import UserError


def put(path: str, data: bytes) -> None:
    storage.write_bytes(path, data)


def kept(tmp_path: Path) -> list[Path]:
    return sorted(p for p in (tmp_path / "tmp").glob("muscle-*/copies-*/files/**/*") if p.is_file())


def test_a_folder_and_a_file_are_fetched_once(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.bucket()
    put(f"{bucket}/adapter/a.json", b"{}")
    put(f"{bucket}/adapter/sub/b.json", b"[]")
    for _ in range(2):
        folder = Path(copies.fetch(f"{bucket}/adapter"))
        assert (folder / "a.json").read_bytes() == b"{}"
        assert (folder / "sub" / "b.json").read_bytes() == b"[]"
        file = Path(copies.fetch(f"{bucket}/adapter/a.json"))
        assert file.name == "a.json" and file.read_bytes() == b"{}"
    assert len(s3.gets("sub/b.json")) == 1 and len(s3.gets("a.json")) == 2  # two paths
    assert {p.name for p in kept(tmp_path)} == {"a.json", "b.json"}


def test_objects_that_stand_for_folders_are_no_files(s3: S3Server) -> None:
    """As Amazon's console makes them."""
    import boto3

    path = f"{s3.bucket()}/adapter"
    put(f"{path}/sub/a.json", b"{}")
    client = boto3.client("s3", endpoint_url=s3.url)
    for key in ("adapter/", "adapter/sub/"):
        client.put_object(Bucket=path.split("/")[2], Key=key, Body=b"")
    assert storage.sizes(path) == {"sub/a.json": 2}
    assert list(copies.list_files(path).files) == ["sub/a.json"]
    assert (Path(copies.fetch(path)) / "sub" / "a.json").read_bytes() == b"{}"


def test_what_changes_is_another_copy(s3: S3Server) -> None:
    path = f"{s3.bucket()}/data.jsonl"
    put(path, b"one")
    assert Path(copies.fetch(path)).read_bytes() == b"one"
    put(path, b"two")  # as long
    assert Path(copies.fetch(path)).read_bytes() == b"two"
    put(path, b"one")
    s3.calm()
    assert Path(copies.fetch(path)).read_bytes() == b"one"
    assert s3.gets("data.jsonl") == []  # is still here


def test_pinned_gives_that_or_nothing(s3: S3Server) -> None:
    path = f"{s3.bucket()}/adapter"
    put(f"{path}/a.json", b"one")
    pinned = copies.pin(path)
    assert pinned == copies.pin(pinned) != path and copies.unpinned(pinned)[0] == path
    put(f"{path}/a.json", b"two")
    with pytest.raises(UserError, match="holds other files than this run began with"):
        copies.fetch(pinned)
    put(f"{path}/a.json", b"one")
    assert (Path(copies.fetch(pinned)) / "a.json").read_bytes() == b"one"
    s3.fail = lambda method, path: (403, "AccessDenied")  # what is here needs no store
    assert (Path(copies.fetch(pinned)) / "a.json").read_bytes() == b"one"
    assert copies.pin("/a/local/folder") == "/a/local/folder"


@pytest.mark.parametrize("place", ["none", "none/", "none.jsonl"])
def test_nothing_there_is_one_line(place: str, s3: S3Server) -> None:
    with pytest.raises(UserError, match=r"s3://bucket-\d+/none\S* does not exist"):
        copies.fetch(f"{s3.bucket()}/{place}")


def test_changed_while_it_was_copied_is_no_copy(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{s3.bucket()}/a.bin"
    put(path, b"one")
    download = storage.download

    def swapping(source: str, target: Path) -> None:
        download(source, target)
        put(path, b"two")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "download", swapping)
        with pytest.raises(UserError, match=r"a.bin changed while it was copied: run again"):
            copies.fetch(path)
    assert kept(tmp_path) == []
    assert Path(copies.fetch(path)).read_bytes() == b"two"


def test_cut_off_or_altered_copies_are_made_again(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{s3.bucket()}/a.bin"
    put(path, b"whole")
    download, calls = storage.download, []

    def shaky(source: str, target: Path) -> None:
        calls.append(source)
        if len(calls) == 1:
            target.write_bytes(b"who")
            raise OSError("connection reset")
        download(source, target)
        if len(calls) == 2:
            target.write_bytes(b"who")

    monkeypatch.setattr(storage, "download", shaky)
    assert Path(copies.fetch(path)).read_bytes() == b"whole"
    assert len(calls) == 3 and not list((tmp_path / "tmp").rglob("*.part"))


def test_no_room_is_said_before_anything_is_copied(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = f"{s3.bucket()}/a.bin"
    put(path, b"1" * 2000)
    monkeypatch.setattr(storage, "disk_free", lambda path: 1000)
    with pytest.raises(UserError, match=r"a.bin takes 2e-06 GB of local disk .* point TMPDIR"):
        copies.fetch(path)
    assert kept(tmp_path) == [] and s3.gets("a.bin") == []


OTHER = """
import os, sys
from pathlib import Path
from muscle import copies
go, path = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
while not go.exists():
    pass
print(Path(copies.fetch(path)).read_bytes().decode(), flush=True)
"""


def other(go: Path, path: str) -> "subprocess.Popen[str]":
    """Another process of this machine, which fetches as soon as `go` is there."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(go), path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_room_is_made_of_copies_that_nobody_reads(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket = s3.bucket()
    for name in "abc":
        put(f"{bucket}/{name}", name.encode() * 1000)
    (tmp_path / "go").touch()
    assert other(tmp_path / "go", f"{bucket}/a").wait(60) == 0  # its reader is gone
    copies.fetch(f"{bucket}/b")  # its reader is here
    assert [p.name for p in kept(tmp_path)] in (["a", "b"], ["b", "a"])

    def free(path: str) -> int:
        return 2500 - 1000 * len(kept(tmp_path))

    monkeypatch.setattr(storage, "disk_free", free)
    copies.fetch(f"{bucket}/c")
    assert {p.name for p in kept(tmp_path)} == {"b", "c"}
    put(f"{bucket}/d", b"d" * 1000)
    with pytest.raises(UserError, match="point TMPDIR to a larger disk"):
        copies.fetch(f"{bucket}/d")
    assert {p.name for p in kept(tmp_path)} == {"b", "c"}


def test_of_two_processes_one_downloads(s3: S3Server, tmp_path: Path) -> None:
    path = f"{s3.bucket()}/model.safetensors"
    put(path, b"weights")
    s3.calm()
    began = threading.Event()

    def slowly(method: str, name: str) -> None:
        if method == "GET" and name.endswith("model.safetensors"):
            began.set()
            time.sleep(0.7)

    s3.fail = slowly
    racing = [other(tmp_path / "go", path) for _ in range(2)]
    (tmp_path / "go").touch()
    assert [process.communicate(timeout=60)[0] for process in racing] == ["weights\n"] * 2
    assert began.is_set() and len(s3.gets("model.safetensors")) == 1


def test_a_killed_download_neither_counts_nor_blocks(s3: S3Server, tmp_path: Path) -> None:
    path = f"{s3.bucket()}/model.safetensors"
    put(path, b"weights" * 100_000)
    began, ended = threading.Event(), threading.Event()

    def hanging(method: str, name: str) -> None:
        if method == "GET" and name.endswith("model.safetensors"):
            began.set()
            ended.wait(60)

    s3.fail = hanging
    (tmp_path / "go").touch()
    process = other(tmp_path / "go", path)
    assert began.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    s3.calm()
    ended.set()
    assert kept(tmp_path) == []
    assert Path(copies.fetch(path)).read_bytes() == b"weights" * 100_000


# --- the place of the copies ------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"muscle-{os.getuid()}"


def test_the_place_of_copies_is_for_its_owner_alone(temporary: Path) -> None:
    before = os.umask(0)
    try:
        assert storage.scratch("x") == temporary / "x"
    finally:
        os.umask(before)
    assert temporary.stat().st_mode & 0o777 == 0o700
    temporary.chmod(0o777)  # by an earlier version, or by hand
    storage.scratch("x")
    assert temporary.stat().st_mode & 0o777 == 0o700


def test_a_link_in_its_place_is_refused(temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    temporary.symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match=r"muscle-\d+ is not a folder of yours.*TMPDIR"):
        storage.scratch("x")
    assert list((tmp_path / "theirs").iterdir()) == []


def test_another_users_folder_is_refused(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary.mkdir()
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    temporary.rename(temporary.with_name(f"muscle-{owner + 1}"))
    with pytest.raises(UserError, match="is not a folder of yours"):
        storage.scratch("x")
