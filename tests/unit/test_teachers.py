"""Reading a teacher cache: exact rows in any order; what is damaged or not ours is refused."""

import dataclasses
import errno
from pathlib import Path

import pytest
import torch
from teacher_jobs import (
    MAX_LENGTH,
    MakeTeachers,
    direct,
    flip,
    make_cache,
    opened,
    teacher,
)

from muscle import storage
from muscle.errors import UserError
from muscle.models.head import load_head
from muscle.models.load import load_tokenizer
from muscle.models.sequences import Sequences, collate, tokenise
from muscle.models.structure import hidden_states
from muscle.tables import read_examples
from muscle.teachers.cache import open_cache
from muscle.teachers.job import TeacherJob
from muscle.teachers.shards import missing


@pytest.mark.parametrize("which", [0, 1])
def test_rows_are_those_of_each_sequence_alone(
    which: int, made_teachers: TeacherJob, sequences: Sequences
) -> None:
    model = teacher(made_teachers, which)
    with opened(made_teachers, sequences, which) as cache:
        for index in range(len(sequences)):
            got = cache.read([index])
            assert got.dtype == torch.float32 and got.shape == (
                sequences.targets(index),
                16 << which,
            )
            torch.testing.assert_close(got, direct(model, sequences, index), rtol=1e-5, atol=1e-5)


def test_rows_come_in_the_order_of_a_micro_batch(
    made_teachers: TeacherJob, sequences: Sequences
) -> None:
    model = teacher(made_teachers, 1)
    with opened(made_teachers, sequences) as cache:
        for seed in range(3):
            order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(seed))
            rows = order[:7].tolist()
            batch = collate(sequences, rows, pad=3)
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
    sequences = tokenise(rows, load_tokenizer(tiny_models["new"]), MAX_LENGTH, "answer")
    model = teacher(job, 1)
    with opened(job, sequences) as cache:
        expected = torch.cat([direct(model, sequences, i) for i in (13, 2)])
        torch.testing.assert_close(cache.read([13, 2]), expected, rtol=1e-5, atol=1e-5)
        index = storage.read_json(storage.join(job.bases[1].asks[0].folder, "index.json"))
    assert index is not None
    assert index["tokens"] == sum(sequences.targets(i) for i in range(len(sequences)))


def test_bf16_is_kept_as_bf16(
    make_teachers: MakeTeachers, sequences: Sequences, tmp_path: Path
) -> None:
    job = make_cache(make_teachers(tmp_path, dtype="bfloat16"))
    model = teacher(job, 1)
    with opened(job, sequences) as cache:
        for index in (19, 0, 7):
            got, expected = cache.read([index]), direct(model, sequences, index)
            assert got.dtype == expected.dtype == torch.bfloat16
            distance = (got.float() - expected.float()).norm() / expected.float().norm()
            assert distance < 2**-6  # a few roundings of 8 bits
        # Two bytes a number, whatever else the files hold.
        index_ = storage.read_json(storage.join(job.bases[1].asks[0].folder, "index.json"))
        assert index_ is not None
        raw = 2 * 32 * index_["tokens"]
        assert raw < sum(s["size"] for s in index_["shards"]) < raw + 4 * 200


def test_the_head_gives_the_models_own_logits(
    made_teachers: TeacherJob, sequences: Sequences
) -> None:
    for which in (0, 1):
        model = teacher(made_teachers, which)
        with opened(made_teachers, sequences, which) as cache:
            logits = load_head(cache.head_path(), "cpu").logits(cache.read([4]))
            with torch.no_grad():
                whole = model(input_ids=torch.from_numpy(sequences.ids[4])[None]).logits[0]
        expected = whole[sequences.first[4] - 1 : -1]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_damaged_shard_is_removed_and_made_again(
    copied_teachers: TeacherJob, sequences: Sequences
) -> None:
    folder = Path(copied_teachers.bases[1].asks[0].folder)
    shard = folder / "000002.safetensors"
    before = shard.read_bytes()
    shard.write_bytes(flip(before))
    with opened(copied_teachers, sequences) as cache:
        cache.read([0, 19])  # other shards are still good
        cache.ahead([13])
        for _ in range(2):
            with pytest.raises(UserError, match=r"000002.safetensors .*damaged.*run again") as said:
                cache.read([13])
            assert "\n" not in str(said.value)
    assert missing(copied_teachers).units == {1: {(0, 2): 6}}
    make_cache(copied_teachers)
    assert shard.read_bytes() == before
    head = folder / "head.safetensors"
    head.write_bytes(flip(head.read_bytes()))
    with (
        opened(copied_teachers, sequences) as cache,
        pytest.raises(UserError, match=r"head.*damaged"),
    ):
        cache.head_path()
    assert missing(copied_teachers).units == {1: {(0, -1): 0}}


def test_a_damaged_shard_that_cannot_be_removed_says_what_to_delete(
    copied_teachers: TeacherJob, sequences: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = Path(copied_teachers.bases[1].asks[0].folder) / "000000.safetensors"
    shard.write_bytes(flip(shard.read_bytes()))

    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(storage, "remove", refuse)
    with opened(copied_teachers, sequences) as cache:
        with pytest.raises(UserError, match=r"can't be removed: delete it and 000000.json"):
            cache.read([0])


FIELDS = ["base", "adapter", "tokenizer", "examples", "dtype", "max_length", "loss_on"]


@pytest.mark.parametrize("field", FIELDS)
def test_another_identity_is_refused(
    field: str, made_teachers: TeacherJob, sequences: Sequences
) -> None:
    ask = made_teachers.bases[1].asks[0]
    with pytest.raises(UserError) as caught:
        open_cache(ask.folder, {**ask.identity, field: "mine"}, sequences, "float32")
    line = str(caught.value)
    assert "\n" not in line and ask.folder in line and f"another {field}" in line
    assert repr(ask.identity[field]) in line and "'mine'" in line
    assert "delete the folder" in line and "--set resources.teachers=online" in line


def test_a_field_more_or_less_or_another_dtype_is_refused(
    made_teachers: TeacherJob, sequences: Sequences
) -> None:
    ask = made_teachers.bases[1].asks[0]
    with pytest.raises(UserError, match="another recipe: None there and 2 here"):
        open_cache(ask.folder, {**ask.identity, "recipe": 2}, sequences, "float32")
    less = {k: v for k, v in ask.identity.items() if k != "base"}
    with pytest.raises(UserError, match="another base: 'base of new' there and None here"):
        open_cache(ask.folder, less, sequences, "float32")
    with pytest.raises(UserError, match="another dtype: 'float32' there and 'bfloat16' here"):
        open_cache(ask.folder, ask.identity, sequences, "bfloat16")
    with pytest.raises(UserError, match=r"nowhere is not whole \(no index.json"):
        open_cache("/nowhere", ask.identity, sequences, "float32")


@pytest.mark.parametrize("change", ["tokenizer", "max_length", "loss_on", "text", "fewer"])
def test_other_tokens_are_refused_whatever_the_identity_says(
    change: str, made_teachers: TeacherJob, tiny_models: dict[str, str], examples: str
) -> None:
    rows = read_examples(f"{examples}/train.parquet")
    model = tiny_models["other" if change == "tokenizer" else "new"]
    if change == "text":
        rows[5] = dataclasses.replace(rows[5], answer=" purple")
    if change == "fewer":
        rows = rows[:-1]
    sequences = tokenise(
        rows,
        load_tokenizer(model),
        8 if change == "max_length" else MAX_LENGTH,
        "answer" if change == "loss_on" else "all",
    )
    what = "number of sequences: 20 there and 19" if change == "fewer" else "tokens fingerprint"
    with pytest.raises(UserError, match=f"another {what}"):
        opened(made_teachers, sequences)
