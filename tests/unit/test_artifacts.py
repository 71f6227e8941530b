"""Artifacts: whole or not there, found by key, one driver at a time."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from muscle import artifacts, copies, storage
from muscle.artifacts import Store, key_of
from muscle.errors import UserError


def put(store: Store, key: str, text: str = "hello") -> Path:
    attempt = store.new_attempt("step", key)
    storage.write_bytes(storage.join(attempt, "a.txt"), text.encode())
    storage.write_bytes(storage.join(attempt, "sub", "b.txt"), b"b")
    store.commit("step", key, attempt, {"why": 1}, {"n": 2})
    return Path(attempt)


def test_keys_are_of_content_not_of_order() -> None:
    assert key_of({"a": 1, "b": [2, None]}) == key_of({"b": [2, None], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 1.5})
    with pytest.raises(ValueError):
        key_of({"a": float("nan")})


@pytest.mark.parametrize("root", ["local", "memory://store"])
def test_found_again_with_its_notes(root: str, tmp_path: Path) -> None:
    where = str(tmp_path / "store") if root == "local" else f"{root}-{os.getpid()}"
    store = Store(where)
    assert store.find("step", "k") is None
    attempt = store.new_attempt("step", "k")
    storage.write_bytes(storage.join(attempt, "a.txt"), b"hello")
    store.commit("step", "k", attempt, {}, {"n": 2})
    found = Store(where).find("step", "k")
    assert found is not None and found.notes == {"n": 2}
    fs, inside = storage.filesystem(found.file("a.txt"))
    assert fs.cat_file(inside) == b"hello"


def test_no_manifest_is_no_artifact(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    attempt = store.new_attempt("step", "k")
    storage.write_bytes(storage.join(attempt, "a.txt"), b"half")
    assert store.find("step", "k") is None


@pytest.mark.parametrize("harm", ["alter", "cut", "delete", "manifest"])
def test_altered_or_half_written_is_redone(harm: str, tmp_path: Path) -> None:
    attempt = put(Store(str(tmp_path)), "k")
    file = attempt / "sub" / "b.txt"
    if harm == "alter":
        file.write_bytes(b"c")
    elif harm == "cut":
        file.write_bytes(b"")
    elif harm == "delete":
        file.unlink()
    else:
        manifest = tmp_path / "step" / "k" / "manifest.json"
        manifest.write_text(manifest.read_text()[:20])
    store = Store(str(tmp_path))
    assert store.find("step", "k") is None
    again = put(store, "k")
    assert Store(str(tmp_path)).find("step", "k") is not None
    assert not attempt.exists() and again.exists()  # the loser is dropped


def test_a_moved_store_is_still_whole(tmp_path: Path) -> None:
    put(Store(str(tmp_path / "here")), "k")
    (tmp_path / "here").rename(tmp_path / "there")
    assert Store(str(tmp_path / "there")).find("step", "k") is not None


def put_big(store: Store, key: str, reads: list[str]) -> Path:
    """An artifact with one file whose checksum is known and one that is read."""
    attempt = store.shared_attempt("step", key)
    storage.write_bytes(storage.join(attempt, "big.bin"), b"big")
    storage.write_bytes(storage.join(attempt, "index.json"), b"{}")
    digest = hashlib.sha256(b"big").hexdigest()
    reads.clear()
    store.commit(
        "step", key, attempt, {}, {}, known={"big.bin": {"sha256": digest, "size": 3, "more": 1}}
    )
    return Path(attempt)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read for their checksum."""
    names: list[str] = []
    read = storage.sha256

    def noting(path: str) -> str:
        names.append(path.rsplit("/", 1)[1])
        return read(path)

    monkeypatch.setattr(storage, "sha256", noting)
    return names


def test_known_checksums_are_not_computed_again(tmp_path: Path, reads: list[str]) -> None:
    attempt = put_big(Store(str(tmp_path)), "k", reads)
    assert reads == ["index.json"]
    files = json.loads((tmp_path / "step" / "k" / "manifest.json").read_text())["files"]
    digest = hashlib.sha256(b"big").hexdigest()
    assert files["big.bin"] == {"sha256": digest, "size": 3, "content": "checked by its reader"}
    assert files["index.json"].keys() == {"sha256", "size"}
    reads.clear()
    assert Store(str(tmp_path)).find("step", "k") is not None
    assert reads == ["index.json"]
    (attempt / "big.bin").write_bytes(b"BIG")  # its reader's to notice
    assert Store(str(tmp_path)).find("step", "k") is not None
    (attempt / "big.bin").write_bytes(b"bigger")
    assert Store(str(tmp_path)).find("step", "k") is None
    (attempt / "big.bin").unlink()
    assert Store(str(tmp_path)).find("step", "k") is None
    put_big(Store(str(tmp_path)), "k", reads)  # made again in the same folder
    assert Store(str(tmp_path)).find("step", "k") is not None


@pytest.mark.parametrize("there", [None, b"half"])
def test_a_known_file_must_be_there_whole(there: bytes | None, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    attempt = store.shared_attempt("step", "k")
    storage.write_bytes(storage.join(attempt, "a.txt"), b"a")
    if there is not None:
        storage.write_bytes(storage.join(attempt, "big.bin"), there)
    with pytest.raises(UserError, match=r"big.bin isn't what was written .* of 9\): run again"):
        store.commit("step", "k", attempt, {}, {}, known={"big.bin": {"sha256": "x", "size": 9}})
    assert Store(str(tmp_path)).find("step", "k") is None


def test_the_shared_attempt_outlives_other_attempts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    shared = store.shared_attempt("step", "k")
    assert shared == Store(str(tmp_path)).shared_attempt("step", "k")
    storage.write_bytes(storage.join(shared, "000000.bin"), b"kept")
    put(store, "k")
    assert (Path(shared) / "000000.bin").exists()


def test_the_first_of_two_drivers_wins(tmp_path: Path) -> None:
    """Whoever lost its lease while it worked finds the other's artifact, and drops its own."""
    first = put(Store(str(tmp_path)), "k")
    store = Store(str(tmp_path))
    second = store.new_attempt("step", "k")
    storage.write_bytes(storage.join(second, "a.txt"), b"rounded otherwise")
    assert store.commit("step", "k", second, {}, {}).path == str(first)
    assert not Path(second).exists()
    found = Store(str(tmp_path)).find("step", "k")
    assert found is not None and found.path == str(first) and found.notes == {"n": 2}


@pytest.mark.parametrize("name", ["plain", "with [brackets] * and space"])
def test_many_small_files_are_listed_and_read_at_once(name: str, tmp_path: Path) -> None:
    for root in (str(tmp_path / name), f"memory://{os.getpid()}-{name}"):
        assert storage.sizes(root) == {}
        storage.write_bytes(storage.join(root, "a.json"), b"1")
        storage.write_bytes(storage.join(root, "sub", "b.json"), b"22")
        assert storage.sizes(root) == {"a.json": 1, "sub/b.json": 2}
        found = storage.read_all(root, ["a.json", "gone.json", "sub/b.json"])
        assert found == {"a.json": b"1", "sub/b.json": b"22"}
        assert storage.read_all(root, []) == {}
        assert storage.size(storage.join(root, "a.json")) == 1
        assert storage.size(storage.join(root, "gone.json")) is None


def test_a_lease_keeps_the_second_driver_waiting(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    order: list[str] = []
    told = threading.Event()

    def second() -> None:
        with Store(str(tmp_path)).lease("step", "k", lambda holder: told.set()):
            order.append("second")

    with store.lease("step", "k"):
        thread = threading.Thread(target=second)
        thread.start()
        assert told.wait(10)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert not (tmp_path / "step" / "k" / "lease.json").exists()


def test_a_dead_drivers_lease_is_taken_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys; from muscle.artifacts import Store\n"
        f"lease = Store({str(tmp_path)!r}).lease('step', 'k'); lease.__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (tmp_path / "step" / "k" / "lease.json").exists()
    began = time.monotonic()
    with Store(str(tmp_path)).lease("step", "k"):
        assert time.monotonic() - began < artifacts.LEASE_SECONDS / 4


def test_a_foreign_lease_that_expired_is_taken(tmp_path: Path) -> None:
    lease = tmp_path / "step" / "k" / "lease.json"
    lease.parent.mkdir(parents=True)
    old = {"host": "elsewhere", "pid": 1, "token": "x"}
    lease.write_text(json.dumps({**old, "renewed": time.time() - artifacts.LEASE_SECONDS - 1}))
    with Store(str(tmp_path)).lease("step", "k"):
        assert json.loads(lease.read_text())["token"] != "x"


def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"no space left.*run again"):
        storage.write_bytes(str(tmp_path / "a" / "b.json"), b"{}")
    assert list((tmp_path / "a").iterdir()) == []


def test_unknown_store_is_one_line() -> None:
    with pytest.raises(UserError, match="can't be opened"):
        Store("nostore://bucket").find("step", "k")


def test_remote_folders_are_fetched(tmp_path: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe_file(f"/remote-{os.getpid()}/x/a.txt", b"hello")
    local = Path(copies.fetch(f"memory://remote-{os.getpid()}/x"))
    assert (local / "a.txt").read_bytes() == b"hello"
    assert copies.fetch(str(tmp_path)) == str(tmp_path)
