"""Dropout as a function of the position in training: nothing to save, nothing to restore."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch

from muscle.training.student import Student


def has_dropout(student: Student) -> bool:
    """Whether the adapter in training has dropout."""
    return bool(getattr(student.model.peft_config[student.adapter], "lora_dropout", 0.0))


def drawn(student: Student, device: str, *position: int) -> AbstractContextManager[None]:
    """Inside, torch draws from `position` alone: (seed, update, number of the micro-batch).

    The caller's random state is neither read nor changed. A micro-batch's forward and
    backward belong inside: gradient checkpointing draws again in backward.
    """
    return _seeded(device, position) if has_dropout(student) else nullcontext()


@contextmanager
def _seeded(device: str, position: tuple[int, ...]) -> Iterator[None]:
    place = torch.device(device)
    cuda = []
    if place.type == "cuda":
        cuda = [torch.cuda.current_device() if place.index is None else place.index]
    seed = int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0] >> np.uint64(1))
    with torch.random.fork_rng(devices=cuda):
        torch.random.default_generator.manual_seed(seed)
        for index in cuda:
            with torch.cuda.device(index):
                torch.cuda.manual_seed(seed)
        yield
