"""The loop alone in one process: data order, resume equality, null test, controls."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from muscle.config import TrainingConfig, VersionConfig
from muscle.errors import UserError
from muscle.models.load import load_base, load_tokenizer
from muscle.models.sequences import collate, micro_batches, tokenise
from muscle.training import loop
from muscle.training.checkpoint import load_state
from muscle.training.job import Progress, TrainJob
from muscle.training.loop import train_alone
from muscle.training.order import permutation, updates
from muscle.training.schedule import learning_rate
from muscle.training.student import build_student
from muscle.types import TrainingExample

MakeJob = Callable[..., TrainJob]


def silent(progress: Progress) -> None:
    pass


def adapter(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "adapter_model.safetensors")


# --- data -----------------------------------------------------------------------------


def test_tokens_in_the_loss(tiny_models: dict[str, str]) -> None:
    tokenizer = load_tokenizer(tiny_models["new"])
    example = TrainingExample("a", "what colour is the sky?", " blue")
    whole = [*tokenizer.encode("what colour is the sky? blue"), tokenizer.eos_token_id]
    everything = tokenise([example], tokenizer, 100, "all")
    answer = tokenise([example], tokenizer, 100, "answer")
    assert everything.ids[0].tolist() == whole
    assert everything.targets(0) == len(whole) - 1  # all but BOS
    size = len(tokenizer.encode("what colour is the sky?"))
    assert answer.targets(0) == len(whole) - size
    batch = collate(answer, [0], pad=3)
    assert batch.gold.tolist() == whole[size:]
    assert batch.gold[-1] == tokenizer.eos_token_id


def test_long_examples_keep_their_answer(tiny_models: dict[str, str]) -> None:
    tokenizer = load_tokenizer(tiny_models["new"])
    example = TrainingExample("a", "x " * 100, " blue")
    data = tokenise([example], tokenizer, 10, "answer")
    assert data.truncated == 1 and len(data.ids[0]) == 10
    assert tokenizer.decode(data.ids[0][data.first[0] :]).strip() == "blue</s>"


def test_collate_scores_exactly_the_targets(tiny_models: dict[str, str]) -> None:
    tokenizer = load_tokenizer(tiny_models["new"])
    rows = [TrainingExample(str(i), "a" * (i + 1), " b" * (3 - i)) for i in range(3)]
    data = tokenise(rows, tokenizer, 100, "answer")
    batch = collate(data, [2, 0, 1], pad=3)
    assert batch.gold.tolist() == [int(t) for i in (2, 0, 1) for t in data.ids[i][data.first[i] :]]
    assert batch.sequence.tolist() == [
        r for r, i in enumerate((2, 0, 1)) for _ in range(data.targets(i))
    ]
    assert batch.scored.sum() == len(batch.gold)


def test_order_is_a_permutation_of_seed_and_epoch() -> None:
    orders = [permutation(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert permutation(50, 0, 1).tolist() == orders[1]
    covered = np.concatenate([np.arange(50)[part] for part in updates(50, 8)])
    assert covered.tolist() == list(range(50))


def test_micro_batches_partition_within_the_budget(tiny_models: dict[str, str]) -> None:
    tokenizer = load_tokenizer(tiny_models["new"])
    rows = [TrainingExample(str(i), "word " * (1 + i % 7), " b") for i in range(20)]
    data = tokenise(rows, tokenizer, 1000, "all")
    batches = micro_batches(data, range(20), 40)
    assert sorted(i for batch in batches for i in batch) == list(range(20))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(len(data.ids[i]) for i in batch) <= 40


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_an_update_keeps_all_workers_busy(workers: int, tiny_models: dict[str, str]) -> None:
    tokenizer = load_tokenizer(tiny_models["new"])
    rows = [TrainingExample(str(i), "word " * (1 + i % 7), " b") for i in range(20)]
    data = tokenise(rows, tokenizer, 1000, "all")

    def size(batch: list[int]) -> int:
        return len(batch) * max(len(data.ids[i]) for i in batch)

    for budget in (10_000, 200, 40):
        alone = micro_batches(data, range(20), budget)
        batches = micro_batches(data, range(20), budget, workers)
        assert sorted(i for batch in batches for i in batch) == list(range(20))
        # No more turns than before, and none of them larger.
        assert math.ceil(len(batches) / workers) == math.ceil(len(alone) / workers)
        assert max(map(size, batches)) <= max(map(size, alone))
    busy = micro_batches(data, range(20), 10_000, workers)
    assert len(busy) == workers
    total = sum(len(ids) for ids in data.ids)
    assert max(map(size, busy)) <= 1.5 * total / workers


def test_learning_rate() -> None:
    settings = TrainingConfig(learning_rate=1.0, warmup_steps=4, schedule="linear")
    rates = [learning_rate(step, 12, settings) for step in range(12)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5)
    constant = TrainingConfig(learning_rate=1.0, warmup_steps=0)
    assert learning_rate(11, 12, constant) == 1.0
    cosine = TrainingConfig(learning_rate=1.0, warmup_steps=0, schedule="cosine")
    assert learning_rate(6, 12, cosine) == pytest.approx(0.5)


# --- training -------------------------------------------------------------------------


def test_training_lowers_the_loss_and_keeps_the_best_epoch(trained: dict[str, str]) -> None:
    notes = json.loads((Path(trained["new"]) / "training.json").read_text())
    curve = notes["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]
    best = min(curve, key=lambda r: r["validation_cross_entropy"])
    assert notes["best_epoch"] == best["epoch"]


def test_one_update_is_the_mean_over_its_tokens(make_job: MakeJob, tmp_path: Path) -> None:
    """Micro-batch budgets change nothing but rounding."""
    outputs = []
    for tokens in (16, 10_000):
        folder = tmp_path / str(tokens)
        train_alone(make_job(folder, training_tokens=tokens), silent, "cpu")
        outputs.append(adapter(folder / "out"))
    for name, tensor in outputs[0].items():
        torch.testing.assert_close(tensor, outputs[1][name], rtol=1e-3, atol=1e-5)


def test_first_loss_is_transformers_own(
    tiny_models: dict[str, str], examples: str, make_job: MakeJob, tmp_path: Path
) -> None:
    from muscle.tables import read_examples

    one = make_job(tmp_path)
    student, tokenizer = build_student(one, "cpu", half_adapter=False)
    data = tokenise(read_examples(f"{examples}/train.parquet"), tokenizer, 100, "all")
    batch = collate(data, range(5), pad=3)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    plain = load_base(tiny_models["new"], dtype="float32", device="cpu")
    expected = plain(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels
    ).loss
    got = student(batch).loss / len(batch.gold)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("role", ["new", "compat"])
def test_stopped_and_resumed_equals_undisturbed(
    role: str, make_job: MakeJob, make_compat: MakeJob, tmp_path: Path
) -> None:
    make = make_job if role == "new" else make_compat
    train_alone(make(tmp_path / "a"), silent, "cpu")

    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if "epoch 2/" in progress.remark:
            raise Killed

    with pytest.raises(Killed):
        train_alone(make(tmp_path / "b"), kill, "cpu")
    assert load_state(str(tmp_path / "b" / "checkpoints"))[0].epoch == 1
    seen: list[str] = []
    train_alone(make(tmp_path / "b"), lambda p: seen.append(p.remark), "cpu")
    assert all("epoch 2/" in remark for remark in seen)  # the first epoch isn't trained again
    whole, resumed = adapter(tmp_path / "a" / "out"), adapter(tmp_path / "b" / "out")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_damaged_checkpoint_starts_afresh(make_job: MakeJob, tmp_path: Path) -> None:
    train_alone(make_job(tmp_path), silent, "cpu")
    (state,) = (tmp_path / "checkpoints").glob("state-*.safetensors")
    state.write_bytes(state.read_bytes()[:-7])
    seen: list[str] = []
    train_alone(make_job(tmp_path), lambda p: seen.append(p.remark), "cpu")
    assert "epoch 1/2" in seen[1] and all("the checkpoint was damaged" in s for s in seen)


def test_null_test_never_old_does_not_move(
    trained: dict[str, str], make_compat: MakeJob, tmp_path: Path
) -> None:
    train_alone(make_compat(tmp_path, mask="never-old"), silent, "cpu")
    before, after = adapter(trained["new"]), adapter(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_compat_learns_from_old_and_keeps_the_teachers_frozen(
    trained: dict[str, str], make_compat: MakeJob, tmp_path: Path
) -> None:
    one = make_compat(tmp_path, mask="always-old")
    train_alone(one, silent, "cpu")
    curve = json.loads((tmp_path / "out" / "training.json").read_text())["curve"]
    assert curve[-1]["kl_old"] < curve[0]["kl_old"]
    assert curve[0]["old_share"] == 1.0 and curve[0]["kl_new"] == 0.0
    before, after = adapter(trained["new"]), adapter(tmp_path / "out")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_ce_control_is_the_task_adapter_trained_on(
    trained: dict[str, str], make_job: MakeJob, make_compat: MakeJob, tmp_path: Path
) -> None:
    control = make_compat(tmp_path / "a", ce_weight=1.0)
    train_alone(control, silent, "cpu")
    plain = make_job(tmp_path / "b", start=trained["new"])
    train_alone(plain, silent, "cpu")
    a, b = adapter(tmp_path / "a" / "out"), adapter(tmp_path / "b" / "out")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_changes_nothing(make_compat: MakeJob, tmp_path: Path) -> None:
    results = []
    for flag in (False, True):
        one = make_compat(tmp_path / str(flag))
        train_alone(dataclasses.replace(one, gradient_checkpointing=flag), silent, "cpu")
        results.append(adapter(tmp_path / str(flag) / "out"))
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-4, atol=1e-6)


def test_not_a_number_is_one_clear_line(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "learning_rate", lambda *a: float("inf"))
    with pytest.raises(
        UserError, match=r"training new: the loss is nan.*lower training.learning_rate"
    ):
        train_alone(make_job(tmp_path), silent, "cpu")
    assert not (tmp_path / "out").exists()


def test_two_tokenizers_are_refused_for_token_distillation(
    tiny_models: dict[str, str], trained: dict[str, str], make_compat: MakeJob, tmp_path: Path
) -> None:
    one = make_compat(tmp_path)
    other = VersionConfig(model=tiny_models["other"], adapter=trained["old"])
    with pytest.raises(UserError, match=r"different tokenizers.*ce_weight: 1"):
        train_alone(dataclasses.replace(one, old=other), silent, "cpu")


def test_a_job_survives_json(make_compat: MakeJob, tmp_path: Path) -> None:
    one = make_compat(tmp_path)
    assert TrainJob.from_json(json.loads(json.dumps(one.to_json()))) == one
