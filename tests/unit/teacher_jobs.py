"""Jobs that cache the tiny teachers, and what their rows must be."""

from collections.abc import Callable
from typing import Any

import torch

from muscle.alone import Alone
from muscle.models.adapters import attach_adapter
from muscle.models.load import load_base
from muscle.models.sequences import Sequences
from muscle.teachers.cache import TeacherCache, open_cache
from muscle.teachers.job import TeacherJob
from muscle.teachers.shards import finish
from muscle.training.job import Progress

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


def make_cache(job: TeacherJob) -> TeacherJob:
    """Write all caches of a job, with their indices."""
    Alone("cpu").cache(job, silent)
    for base in job.bases:
        for ask in base.asks:
            finish(job, ask)
    return job


def opened(job: TeacherJob, sequences: Sequences, which: int = 1) -> TeacherCache:
    ask = job.bases[which].asks[0]
    return open_cache(ask.folder, ask.identity, sequences, job.dtype)


def teacher(job: TeacherJob, which: int) -> Any:
    base = job.bases[which]
    model = load_base(base.base.model, dtype=job.dtype, device="cpu")
    return attach_adapter(model, base.asks[0].adapter, "direct").eval()


def direct(model: Any, sequences: Sequences, index: int) -> torch.Tensor:
    """One sequence alone, through transformers' own outputs."""
    with torch.no_grad():
        ids = torch.from_numpy(sequences.ids[index])[None]
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    return states[sequences.first[index] - 1 : -1]


def flip(content: bytes) -> bytes:
    """One bit of the last byte: the size stays."""
    return content[:-1] + bytes([content[-1] ^ 1])
