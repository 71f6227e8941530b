"""Stopped at any update, a training goes on with the same bits; nothing saved is ever lost."""

import dataclasses
import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file

from muscle import storage
from muscle.config import AdapterConfig
from muscle.errors import UserError
from muscle.models.load import load_tokenizer
from muscle.models.sequences import Sequences, tokenise
from muscle.training import loop
from muscle.training.batches import Batches, share
from muscle.training.checkpoint import TrainState, load_state, save_state
from muscle.training.data import read_splits
from muscle.training.dropout import drawn
from muscle.training.export import check_weights
from muscle.training.job import EpochRecord, Progress, TrainJob
from muscle.training.loop import train, train_alone
from muscle.training.student import build_student
from muscle.types import TrainingExample

MakeJob = Callable[..., TrainJob]


class Killed(Exception):
    pass


def silent(progress: Progress) -> None:
    pass


def kill_at(updates: int) -> Callable[[Progress], None]:
    """Stops a training after so many updates of this start."""
    seen: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == updates:
            raise Killed

    return on_progress


def output(job: TrainJob) -> tuple[dict[str, torch.Tensor], str, str]:
    folder = Path(job.output)
    texts = [(folder / name).read_text() for name in ("training.json", "curve.jsonl")]
    return load_file(folder / "adapter_model.safetensors"), texts[0], texts[1]


def assert_identical(a: TrainJob, b: TrainJob) -> None:
    (one, *texts), (other, *others) = output(a), output(b)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert texts == others


def into(job: TrainJob, folder: Path, **changes: Any) -> TrainJob:
    places = {"output": str(folder / "out"), "checkpoints": str(folder / "checkpoints")}
    return dataclasses.replace(job, **places, **changes)


@pytest.fixture(scope="module")
def dropped(make_job: MakeJob, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """An undisturbed training of 2 x 5 updates with dropout, finished."""
    job = make_job(
        tmp_path_factory.mktemp("dropped"),
        adapter=AdapterConfig(r=4, alpha=8, dropout=0.1),
        training_tokens=20,
    )
    train_alone(job, silent, "cpu")
    return job


# --- resume ---------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [1, 3, 5, 6, 9, 10])
def test_resumed_at_any_update_is_bit_identical(
    updates: int, dropped: TrainJob, tmp_path: Path
) -> None:
    job = into(dropped, tmp_path, checkpoint_seconds=0.0)
    with pytest.raises(Killed):
        train_alone(job, kill_at(updates), "cpu")
    # The one it was killed in was not saved yet.
    assert load_state(job.checkpoints)[0].updates == updates - 1
    train_alone(job, silent, "cpu")
    assert_identical(job, dropped)


def test_killed_at_every_second_update_is_bit_identical(dropped: TrainJob, tmp_path: Path) -> None:
    job = into(dropped, tmp_path, checkpoint_seconds=0.0)
    starts = 0
    while True:
        try:
            train_alone(job, kill_at(2), "cpu")
            break
        except Killed:
            starts += 1
    assert starts == 9
    assert_identical(job, dropped)


def test_a_notice_saves_at_once(dropped: TrainJob, tmp_path: Path) -> None:
    """What asks to save travels with the sums: no clock is needed."""
    from muscle.training.engine import PlainEngine

    job = into(dropped, tmp_path)
    student, tokenizer = build_student(job, "cpu", half_adapter=False)
    notices = iter([False, True, False, False])
    with pytest.raises(Killed):
        train(
            job,
            student,
            tokenizer,
            lambda s: PlainEngine(s, job.training, "cpu"),
            kill_at(4),
            save_now=lambda: next(notices),
        )
    assert load_state(job.checkpoints)[0].updates == 2


def test_dropout_is_a_function_of_the_position(make_job: MakeJob, tmp_path: Path) -> None:
    one = make_job(tmp_path, adapter=AdapterConfig(r=4, alpha=8, dropout=0.5))
    student, _ = build_student(one, "cpu", half_adapter=False)

    def draw(*position: int) -> list[float]:
        with drawn(student, "cpu", *position):
            return torch.rand(4).tolist()

    torch.manual_seed(1)
    expected = torch.rand(3).tolist()
    torch.manual_seed(1)
    draws = [draw(0, 0, 0), draw(0, 0, 1), draw(0, 1, 0), draw(1, 0, 0)]
    assert torch.rand(3).tolist() == expected  # the caller's random state never notices
    assert len({tuple(d) for d in draws}) == 4
    torch.manual_seed(2)
    assert draw(0, 0, 1) == draws[1]


def test_the_random_state_outside_is_not_touched(dropped: TrainJob, tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train_alone(into(dropped, tmp_path), silent, "cpu")
    assert torch.equal(torch.get_rng_state(), before)


# --- checkpoints ----------------------------------------------------------------------


def state_after(updates: int, epoch: int = 0) -> TrainState:
    curve = [EpochRecord(e + 1, 1.0, 1.0, None, None, None, 1.0 / (e + 1)) for e in range(epoch)]
    return TrainState(
        epoch=epoch,
        updates=updates,
        position=updates,
        sums=[0.1 + 0.2, 1 / 3],
        tokens=7,
        curve=curve,
        best={"w": torch.full((3,), float(epoch))} if epoch else {},
        optimizer={"param/w": torch.full((3,), float(updates))},
    )


def test_a_state_comes_back_whole(tmp_path: Path) -> None:
    folder = str(tmp_path)
    save_state(folder, state_after(4, epoch=1))
    state, remark = load_state(folder)
    assert remark is None
    assert (state.epoch, state.updates, state.position, state.tokens) == (1, 4, 4, 7)
    assert state.sums == [0.1 + 0.2, 1 / 3]
    assert state.optimizer["param/w"].tolist() == [4.0] * 3
    assert state.best["w"].tolist() == [1.0] * 3


def test_best_weights_are_written_once_and_old_files_go(tmp_path: Path) -> None:
    folder = str(tmp_path)
    state = state_after(4, epoch=1)
    save_state(folder, state)
    (best,) = tmp_path.glob("best-*")
    written = best.stat().st_mtime_ns, best.stat().st_ino
    (tmp_path / "state-9999-00000001.safetensors").write_bytes(b"half")  # left by a dead writer
    (tmp_path / "ray").mkdir()
    state.updates, state.optimizer = 5, {"param/w": torch.zeros(3)}
    save_state(folder, state)
    assert (best.stat().st_mtime_ns, best.stat().st_ino) == written
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [
        "best-0001.safetensors",
        "latest.json",
        "ray",
        "state-0001-00000005.safetensors",
        "updates-0001-00000005.jsonl",
    ]
    best.unlink()  # someone tidied up: it is written again
    state.updates = 6
    save_state(folder, state)
    assert load_state(folder)[0].best["w"].tolist() == [1.0] * 3


@pytest.mark.parametrize("place", ["local", "memory"])
@pytest.mark.parametrize("failing", range(4))
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("gone")])
def test_a_failed_write_loses_nothing_that_was_saved(
    place: str, failing: int, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails at each of three files and at `latest.json` in turn, after half of it is written."""
    folder = str(tmp_path) if place == "local" else f"memory://{tmp_path.name}-{failing}"
    save_state(folder, state_after(1))
    fs, inside = storage.filesystem(folder)
    before = {p: fs.cat_file(p) for p in fs.find(inside)}
    left = [failing]
    kind = fsspec.get_filesystem_class("memory" if place == "memory" else "file")
    put, write = kind.put_file, storage.write_bytes

    def failing_put(self: Any, source: str, target: str, *rest: Any, **more: Any) -> None:
        left[0] -= 1
        if left[0] == -1:
            self.pipe_file(target, b"half")
            raise error
        put(self, source, target, *rest, **more)

    def failing_write(path: str, data: bytes) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise storage.storage_error(path, error) if isinstance(error, OSError) else error
        write(path, data)

    monkeypatch.setattr(kind, "put_file", failing_put)
    monkeypatch.setattr(storage, "write_bytes", failing_write)
    with pytest.raises(UserError) as caught:
        save_state(folder, state_after(2, epoch=1))
    assert "\n" not in str(caught.value)
    assert ("no space left" in str(caught.value)) == isinstance(error, OSError)
    monkeypatch.undo()
    assert {p: fs.cat_file(p) for p in fs.find(inside)} == before
    assert load_state(folder)[0].updates == 1
    save_state(folder, state_after(2, epoch=1))
    assert load_state(folder)[0].updates == 2


def test_a_full_disk_in_a_training_resumes_to_the_same_bits(
    dropped: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = into(dropped, tmp_path, checkpoint_seconds=0.0)
    puts: list[str] = []
    local = type(fsspec.filesystem("file"))
    put = local.put_file

    def full(self: Any, source: str, target: str, *rest: Any, **more: Any) -> None:
        puts.append(target)
        if len(puts) == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, source, target, *rest, **more)

    monkeypatch.setattr(local, "put_file", full)
    with pytest.raises(UserError, match="no space left while writing"):
        train_alone(job, silent, "cpu")
    assert load_state(job.checkpoints)[0].updates == 4
    train_alone(job, silent, "cpu")
    assert_identical(job, dropped)


def test_remote_checkpoints(dropped: TrainJob, tmp_path: Path) -> None:
    where = f"memory://{tmp_path.name}"
    job = dataclasses.replace(
        into(dropped, tmp_path),
        checkpoints=f"{where}/checkpoints",
        logs=f"{where}/logs",
        checkpoint_seconds=0.0,
    )
    with pytest.raises(Killed):
        train_alone(job, kill_at(4), "cpu")
    assert load_state(job.checkpoints)[0].updates == 3
    train_alone(job, silent, "cpu")
    assert_identical(job, dropped)
    fs, inside = storage.filesystem(f"{where}/logs/curve.jsonl")
    assert fs.cat_file(inside).decode() == output(dropped)[2]


# --- records --------------------------------------------------------------------------


def test_a_record_of_every_update(dropped: TrainJob, make_compat: MakeJob, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in output(dropped)[2].splitlines()]
    assert [r["update"] for r in lines] == list(range(1, 11))
    assert [r["epoch"] for r in lines] == [1] * 5 + [2] * 5
    assert [r["examples"] for r in lines] == [4 * n for n in range(1, 11)]
    assert all(r["gradient_norm"] > 0 and r["old_share"] is None for r in lines)
    assert all(r["cross_entropy"] == r["loss"] for r in lines)
    assert lines[0]["learning_rate"] == 5e-3 / 2 and lines[9]["learning_rate"] == 5e-3
    epoch = json.loads(output(dropped)[1])["curve"][0]
    tokens = sum(r["tokens"] for r in lines[:5])
    mean = sum(r["loss"] * r["tokens"] for r in lines[:5]) / tokens
    assert epoch["loss"] == pytest.approx(mean, rel=1e-12)
    compat = make_compat(tmp_path)
    train_alone(compat, silent, "cpu")
    first = json.loads(output(compat)[2].splitlines()[0])
    assert first["cross_entropy"] is None and 0 <= first["old_share"] <= 1


def test_gradient_norm_is_that_of_the_whole_update_before_clipping(
    make_job: MakeJob, tmp_path: Path
) -> None:
    norms = []
    for name, tokens, clip in (("a", 10_000, None), ("b", 16, 0.01)):
        one = make_job(tmp_path / name, training_tokens=tokens)
        settings = one.training.model_copy(update={"clip_norm": clip, "epochs": 1})
        train_alone(dataclasses.replace(one, training=settings), silent, "cpu")
        norms.append(json.loads(output(one)[2].splitlines()[0])["gradient_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    student, tokenizer = build_student(one, "cpu", half_adapter=False)
    data = read_splits(one, tokenizer, tree=False)["train"]
    rows = loop.permutation(len(data), 0, 0)[:4].tolist()
    batch = data.collate(rows, 3)
    (student(batch).loss / len(batch.gold)).backward()
    gradients = [p.grad for p in student.trainable().values() if p.grad is not None]
    expected = sum(float(g.double().square().sum()) for g in gradients) ** 0.5
    assert norms[0] == pytest.approx(expected, rel=1e-5)


# --- read-ahead and hooks -------------------------------------------------------------


@pytest.mark.parametrize(("batches", "world"), [(5, 2), (1, 3), (6, 3), (4, 1)])
def test_micro_batches_are_dealt_out_whole(batches: int, world: int) -> None:
    all_rows = [[n] for n in range(batches)]
    dealt = [share(all_rows, rank, world) for rank in range(world)]
    assert len({len(mine) for mine in dealt}) == 1
    counted = sorted((m.number, m.rows) for mine in dealt for m in mine if m.weight)
    assert counted == list(enumerate(all_rows))
    assert all([m.last for m in mine] == [False] * (len(mine) - 1) + [True] for mine in dealt)


@pytest.fixture
def sequences(tiny_models: dict[str, str]) -> Sequences:
    tokenizer = load_tokenizer(tiny_models["new"])
    rows = [TrainingExample(str(i), "a" * (i + 1), " b") for i in range(8)]
    return tokenise(rows, tokenizer, 100, "all")


def test_the_next_batch_is_made_while_this_one_is_used(sequences: Sequences) -> None:
    import threading

    made: list[int] = []
    third = threading.Event()

    def attach(rows: Any) -> dict[str, torch.Tensor]:
        made.append(rows[0])
        if len(made) == 2:
            third.set()
        assert threading.current_thread() is not threading.main_thread()
        return {"old": torch.zeros(sum(sequences.targets(r) for r in rows), 2)}

    plan = share([[n] for n in range(5)], 0, 1)
    with Batches({"train": sequences, "validation": sequences}, 3, "cpu", attach) as batches:
        stream = batches.stream("train", plan)
        micro, batch = next(stream)
        assert micro.number == 0 and len(batch.teachers["old"]) == len(batch.gold)
        assert third.wait(5) and made == [0, 1]  # nobody asked for the second one yet
        assert [m.number for m, _ in stream] == [1, 2, 3, 4]
        validation = list(batches.stream("validation", plan))
        assert all(not b.teachers for _, b in validation) and len(made) == 5


def threads() -> Iterator[str]:
    import threading

    return (t.name for t in threading.enumerate() if t.name.startswith("muscle-batches"))


class NoTeachers:
    """Stands in for the cached teachers, and remembers what it is asked."""

    def __init__(self, fails_at: int | None = None):
        self.fails_at, self.reads, self.orders = fails_at, 0, list[list[int]]()

    def __call__(self, job: TrainJob, data: Any) -> "NoTeachers":
        return self

    def __enter__(self) -> "NoTeachers":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def give_heads(self, student: Any, device: str) -> None:
        pass

    def attach(self, rows: Any) -> dict[str, torch.Tensor]:
        self.reads += 1
        if self.reads == self.fails_at:
            raise UserError("shard 7 is damaged")
        return {}

    def ahead(self, rows: list[int]) -> None:
        self.orders.append(list(rows))


def test_an_error_in_the_thread_is_itself_and_the_thread_ends(
    dropped: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = into(dropped, tmp_path)
    monkeypatch.setattr(loop, "CachedTeachers", NoTeachers(fails_at=3))
    with pytest.raises(UserError, match="shard 7 is damaged"):
        train_alone(job, silent, "cpu")
    with pytest.raises(Killed):
        train_alone(job, kill_at(2), "cpu")
    assert not list(threads())


def test_caches_are_told_the_order_and_the_start_is_checked_once(
    dropped: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from muscle.training.order import permutation

    told = NoTeachers()
    starts: list[tuple[bool, bool, int]] = []

    def check_start(student: Any, forward: Any, batch: Any) -> None:
        starts.append((student.model.training, torch.is_grad_enabled(), len(batch.gold)))

    monkeypatch.setattr(loop, "CachedTeachers", told)
    monkeypatch.setattr(loop, "check_start", check_start)
    job = into(dropped, tmp_path, checkpoint_seconds=0.0)
    with pytest.raises(Killed):
        train_alone(job, kill_at(3), "cpu")
    train_alone(job, silent, "cpu")
    whole = [permutation(20, 0, epoch).tolist() for epoch in (0, 1)]
    assert told.orders == [whole[0], whole[0][8:], whole[1]]
    assert len(starts) == 1 and starts[0][:2] == (False, False) and starts[0][2] > 0
    assert_identical(job, dropped)  # the look at the start changes nothing


# --- what comes out -------------------------------------------------------------------


def test_weights_are_checked_by_name() -> None:
    good = {"a": torch.ones(2), "b": torch.ones(1)}
    check_weights("new", good, ["a", "b"])
    with pytest.raises(ValueError, match="tensor c is missing"):
        check_weights("new", good, ["a", "b", "c"])
    with pytest.raises(ValueError, match="tensor b doesn't belong"):
        check_weights("new", good, ["a"])
    with pytest.raises(ValueError, match="tensor b is empty"):
        check_weights("new", {**good, "b": torch.ones(0)}, ["a", "b"])
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"compat: b holds NaN.*compatibility\.learning_rate"):
            check_weights("compat", {**good, "b": torch.tensor([value])}, ["a", "b"])


def test_compat_keeps_the_new_adapters_own_configuration(
    trained: dict[str, str], make_compat: MakeJob, tmp_path: Path
) -> None:
    import shutil

    start = tmp_path / "start"
    shutil.copytree(trained["new"], start)
    file = start / "adapter_config.json"
    fields = json.loads(file.read_text())
    # As a user's own adapter has it: what PEFT would fill in or sort differently.
    fields |= {"base_model_name_or_path": "someone/base", "inference_mode": False}
    fields["target_modules"] = list(reversed(fields["target_modules"]))
    file.write_text(json.dumps(fields))
    job = dataclasses.replace(make_compat(tmp_path), start=str(start))
    train_alone(job, silent, "cpu")
    written = json.loads((Path(job.output) / "adapter_config.json").read_text())
    assert written == {**fields, "inference_mode": True}
