"""Stores that refuse, fail half-way or can't be reached: one line, and nothing half-done."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3fs
from s3_server import Failure, S3Server

from muscle import artifacts, storage
from muscle.artifacts import Store
from muscle.cli import main
from muscle.errors import UserError
from muscle.plan import Step
from muscle.remote import StoreError
from muscle.steps import Workshop
from muscle.training.job import Progress


def silent(progress: Progress) -> None:
    pass


FAILURES: dict[str, tuple[Failure, str]] = {
    "full": ((507, "InsufficientStorage"), "no space left while writing s3://.*: free some"),
    "quota": ((403, "QuotaExceeded"), "no space left while writing s3://"),
    "minio": ((507, "XMinioStorageFull"), "no space left while writing s3://"),
    "denied": ((403, "AccessDenied"), r"access denied .*let these credentials list, read, write"),
    "key": ((403, "InvalidAccessKeyId"), "the store refuses the credentials .*renew them"),
    "expired": ((400, "ExpiredToken"), "the store refuses the credentials .*renew them"),
    "broken": ((500, "InternalError"), "can't be written: told to fail"),
    "strange": ((418, "Teapot"), "can't be written: "),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_refused_write_is_one_line(name: str, s3: S3Server, tmp_path: Path) -> None:
    failure, said = FAILURES[name]
    path = f"{s3.bucket()}/a/b.json"
    (tmp_path / "x.txt").write_text("x")
    s3.fail = lambda method, path: failure if method == "PUT" else None
    for write in (
        lambda: storage.write_json(path, {}),
        lambda: storage.create_exclusive(path, b"{}"),
        lambda: storage.upload(tmp_path, path),
    ):
        with pytest.raises(UserError, match=said) as caught:
            write()
        assert "\n" not in str(caught.value) and path in str(caught.value)


@pytest.mark.parametrize("name", ["denied", "key", "expired"])
def test_a_refused_read_is_no_missing_file(name: str, s3: S3Server) -> None:
    """What can't be read isn't taken for absent, or the work would be done again."""
    path = f"{s3.bucket()}/a.json"
    storage.write_json(path, {})
    s3.fail = lambda method, path: FAILURES[name][0]
    reads: list[Callable[[], Any]] = [
        lambda: storage.read_json(path),
        lambda: storage.exists(path),
        lambda: storage.size(path),
        lambda: storage.sha256(path),
        lambda: storage.sizes(path.removesuffix("/a.json")),
        lambda: storage.read_all(path.removesuffix("/a.json"), ["a.json"]),
        lambda: Store(path.removesuffix("/a.json")).find("step", "k"),
    ]
    for number, read in enumerate(reads):
        with pytest.raises(StoreError, match=r"^s3://bucket-\d+[^\n]*$"):
            pytest.fail(f"read {number} gave {read()!r}")


def test_a_missing_bucket_is_said_and_never_made(s3: S3Server, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    for call in (
        lambda: Store("s3://no-such-bucket/store").find("step", "k"),
        lambda: storage.write_json("s3://no-such-bucket/a.json", {}),
        lambda: storage.upload(tmp_path, "s3://no-such-bucket/a"),
    ):
        with pytest.raises(StoreError, match="there is no bucket 'no-such-bucket': create it"):
            call()
    assert not [path for path in s3.puts() if path.strip("/") == "no-such-bucket"]


def test_no_credentials_and_nobody_there(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{s3.bucket()}/a.json"
    s3fs.S3FileSystem.clear_instance_cache()
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        patch.setenv("AWS_CONFIG_FILE", "/nowhere")
        with pytest.raises(StoreError, match=r"no credentials .*set AWS_ACCESS_KEY_ID and"):
            storage.exists(path)
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"can't be reached .*AWS_ENDPOINT_URL"):
        storage.write_json(path, {})


def test_commands_end_with_one_line_and_code_2(
    s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = s3.bucket()
    s3.fail = lambda method, path: FAILURES["denied"][0]
    for command in (
        ["gate", f"{bucket}/report.json", "--max-nfr", "0.02"],
        ["compare", f"{bucket}/old", f"{bucket}/new", "--output", str(tmp_path / "out")],
        ["compare", str(tmp_path), str(tmp_path), "--output", f"{bucket}/out"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 2
        said = capsys.readouterr().err.strip()
        assert "access denied" in said and bucket in said and "Traceback" not in said
        assert len(said.splitlines()) == 1


# --- half-way -----------------------------------------------------------------------------


def make(folder: Path) -> dict[str, Any]:
    """A step of three files."""
    (folder / "a.txt").write_text("first")
    (folder / "sub").mkdir()
    (folder / "sub" / "b.txt").write_text("second")
    (folder / "weights.bin").write_bytes(b"w" * 1000)
    return {"n": 3}


STEP = Step("examples", "a small step", {"why": 1})
WRITES = 5
"""The lease, three files, the manifest."""


def content(store: str) -> dict[str, bytes]:
    artifact = Store(store).find(STEP.kind, STEP.key)
    assert artifact is not None and artifact.notes == {"n": 3}
    fs, inside = storage.filesystem(artifact.path)
    return {n: fs.cat_file(storage.join(inside, n)) for n in storage.sizes(artifact.path)}


def test_a_small_step_writes_so_much(s3: S3Server) -> None:
    store = f"{s3.bucket()}/store"
    s3.calm()
    Workshop(Store(store), silent).once(STEP, make)
    assert len(s3.puts()) == WRITES
    assert set(content(store)) == {"a.txt", "sub/b.txt", "weights.bin"}


@pytest.mark.parametrize("failing", range(WRITES))
def test_an_upload_that_fails_half_way_never_counts(failing: int, s3: S3Server) -> None:
    """Whichever put fails, and again at another one: no artifact, no lease, and the next start
    makes what an undisturbed one makes."""
    store, name = f"{s3.bucket()}/store", ["full", "broken"][failing % 2]
    for number in (failing, WRITES - 1 - failing):
        s3.calm()

        def fail(method: str, path: str, number: int = number) -> Failure | None:
            last = method == "PUT" and len(s3.puts()) == number + 1
            return FAILURES[name][0] if last else None

        s3.fail = fail
        with pytest.raises(UserError, match=r"^[^\n]*s3://bucket[^\n]*$"):
            Workshop(Store(store), silent).once(STEP, make)
        s3.calm()
        assert Store(store).find(STEP.kind, STEP.key) is None
        assert not [n for n in storage.sizes(store) if n.endswith(("lease.json", "manifest.json"))]
    Workshop(Store(store), silent).once(STEP, make)
    assert content(store) == {
        "a.txt": b"first",
        "sub/b.txt": b"second",
        "weights.bin": b"w" * 1000,
    }
    attempts = {n.split("/")[2] for n in storage.sizes(store) if "attempt-" in n}
    assert len(attempts) == 1  # what was begun before is gone


# --- leases -----------------------------------------------------------------------------


def renewed(path: str) -> float:
    return float((storage.read_json(path) or {})["renewed"])


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def test_a_lease_outlives_a_store_that_fails_for_a_while(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "LEASE_SECONDS", 0.4)
    store = Store(f"{s3.bucket()}/store")
    path = storage.join(store.folder("step", "k"), "lease.json")
    with store.lease("step", "k"):
        before = renewed(path)
        failed: list[str] = []

        def fail(method: str, name: str) -> Failure | None:
            failed.append(method)
            return (500, "InternalError")

        s3.fail = fail
        until(lambda: len(failed) >= 4)
        s3.calm()
        until(lambda: renewed(path) > before)
    assert not storage.exists(path)


def test_a_lease_that_was_taken_over_is_not_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "LEASE_SECONDS", 0.2)
    store = Store(str(tmp_path))
    path = tmp_path / "step" / "k" / "lease.json"
    theirs = json.dumps({"host": "elsewhere", "pid": 1, "token": "x", "renewed": 0})
    with store.lease("step", "k"):
        path.write_text(theirs)
        time.sleep(0.3)
        assert path.read_text() == theirs
    assert path.read_text() == theirs  # not ours to let go


def test_of_two_conditional_puts_one_wins(s3: S3Server, tmp_path: Path) -> None:
    for path in (f"{s3.bucket()}/lease.json", f"memory://{os.getpid()}/lease.json",
                 str(tmp_path / "lease.json")):  # fmt: skip
        assert storage.create_exclusive(path, b"1")
        assert not storage.create_exclusive(path, b"2")
        fs, inside = storage.filesystem(path)
        assert fs.cat_file(inside) == b"1"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["lease.json"]
