"""The student with cached and with online teachers: the same losses, the same gradients."""

import copy
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from muscle.config import CompatibilityConfig, MaskName
from muscle.errors import UserError
from muscle.losses.distillation import LossSums
from muscle.models.sequences import Batch, Sequences, collate, tokenise
from muscle.tables import read_examples
from muscle.training.job import TrainJob
from muscle.training.loop import train_alone
from muscle.training.student import Student, build_student, check_start

MakeJob = Callable[..., TrainJob]
Cached = Callable[[TrainJob, Path], TrainJob]


@pytest.fixture(scope="module")
def built(make_compat: MakeJob, tmp_path_factory: pytest.TempPathFactory) -> tuple[Student, Any]:
    """A student that has moved away from its start, with both teachers online."""
    student, tokenizer = build_student(make_compat(tmp_path_factory.mktemp("s")), "cpu", False)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in student.trainable().values():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return student, tokenizer


@pytest.fixture(scope="module")
def data(built: tuple[Student, Any], examples: str) -> Sequences:
    return tokenise(read_examples(f"{examples}/train.parquet"), built[1], 100, "all")


@pytest.fixture(scope="module")
def students(built: tuple[Student, Any]) -> dict[torch.dtype, Student]:
    return {dtype: to(built[0], dtype) for dtype in (torch.float64, torch.float32)}


def to(student: Student, dtype: torch.dtype) -> Student:
    """A copy in another precision, its old teacher too."""
    other = copy.deepcopy(student).to(dtype)
    other._teachers = [
        dataclasses.replace(student.teachers, old=copy.deepcopy(student.teachers.old).to(dtype))
    ]
    return other


def with_signals(student: Student, data: Sequences, rows: list[int], batch: Batch) -> Batch:
    """The batch with its teachers' hidden states, each sequence run alone."""
    parts: dict[str, list[torch.Tensor]] = {"old": [], "new": []}
    for row in rows:
        for name, hidden in student.hidden_of_teachers(collate(data, [row], 3)).items():
            parts[name].append(hidden)
    return dataclasses.replace(batch, teachers={n: torch.cat(p) for n, p in parts.items()})


def gradients(student: Student, batch: Batch) -> tuple[LossSums, dict[str, torch.Tensor]]:
    student.zero_grad()
    sums = student(batch)
    sums.loss.backward()
    return sums, {n: p.grad.clone() for n, p in student.trainable().items() if p.grad is not None}


@pytest.mark.parametrize("ce_weight", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("mask", get_args(MaskName))
def test_cached_equals_online(
    mask: MaskName,
    temperature: float,
    ce_weight: float,
    students: dict[torch.dtype, Student],
    data: Sequences,
) -> None:
    rows = [3, 11, 4, 17, 8]  # ragged
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        student = students[dtype]
        student.loss = CompatibilityConfig(
            mask=mask, temperature=temperature, ce_weight=ce_weight, old_weight=0.7
        )
        batch = collate(data, rows, 3)
        online, online_gradients = gradients(student, batch)
        given = with_signals(student, data, rows, batch)
        cached, cached_gradients = gradients(student, given)
        assert online.loss.item() > 1e-4
        torch.testing.assert_close(cached.loss, online.loss, rtol=tolerance, atol=0)
        assert cached.old_tokens == online.old_tokens
        for name, expected in online_gradients.items():
            difference = (cached_gradients[name] - expected).norm()
            assert difference <= tolerance * expected.norm(), name


def test_a_training_from_caches_holds_one_base(
    make_compat: MakeJob, cached: Cached, tmp_path: Path
) -> None:
    job = cached(make_compat(tmp_path), tmp_path / "teachers")
    student, _ = build_student(job, "cpu", half_adapter=False)
    assert student.teachers.old is None
    assert list(student.model.peft_config) == ["compat"]  # nor the new task adapter
    train_alone(job, lambda progress: None, "cpu")
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_the_start_is_the_new_teacher(
    make_compat: MakeJob, tmp_path: Path, data: Sequences
) -> None:
    student, _ = build_student(make_compat(tmp_path), "cpu", half_adapter=False)
    student.eval()
    batch = with_signals(student, data, [0, 5], collate(data, [0, 5], 3))
    loss = student.loss
    with torch.no_grad():
        check_start(student, student.forward, batch)
    assert student.loss is loss


def test_a_cache_of_another_model_is_noticed_at_the_start(
    make_compat: MakeJob, cached: Cached, tmp_path: Path
) -> None:
    job = cached(make_compat(tmp_path), tmp_path / "teachers")
    # Same shapes, other numbers: the file is whole, and all that is written of it fits.
    swapped = dict(job.teachers)
    online = make_compat(tmp_path)
    other = cached(dataclasses.replace(online, start=moved(job, tmp_path)), tmp_path / "others")
    swapped["new"] = other.teachers["new"]
    with pytest.raises(
        UserError, match=r"at step 0 its KL to the new task model.*teachers: online"
    ):
        train_alone(dataclasses.replace(job, teachers=swapped), lambda progress: None, "cpu")
    assert not (tmp_path / "out").exists()


def moved(job: TrainJob, folder: Path) -> str:
    """The start adapter with other weights."""
    assert job.start is not None
    place = folder / "moved"
    shutil.copytree(job.start, place)
    file = place / "adapter_model.safetensors"
    save_file({n: t + 0.05 for n, t in load_file(file).items()}, file, {"format": "pt"})
    return str(place)
