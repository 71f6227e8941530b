"""What a training leaves: a standard PEFT adapter directory, and its curve beside it."""

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from muscle import copies, storage
from muscle.errors import NotFiniteError
from muscle.models.adapters import write_adapter
from muscle.training.checkpoint import TrainState, record_lines
from muscle.training.job import TrainJob
from muscle.training.student import Student


def write_trained(job: TrainJob, student: Student, state: TrainState, truncated: int) -> None:
    """Write the best epoch's adapter, `training.json` and `curve.jsonl` to `job.output`.

    An adapter that went on from another one keeps that one's own configuration.

    Raises:
        ValueError: a tensor is missing, left over or empty.
        UserError: a weight isn't finite; storage that can't be written.
    """
    check_weights(job.role, state.best, student.trainable())
    # Named as in the student module; PEFT's own names drop the wrapper and the adapter.
    tensors = {
        name.removeprefix("model.").replace(f".{job.role}.", "."): tensor
        for name, tensor in state.best.items()
    }
    with tempfile.TemporaryDirectory() as temporary:
        config = student.model.peft_config[job.role]
        write_adapter(tensors, config, temporary, job.base_fingerprint)
        if job.start is not None:
            _keep_config(job.start, Path(temporary))
        notes = {
            "best_epoch": state.best_epoch,
            "updates": state.updates,
            "truncated_examples": truncated,
            "curve": [asdict(record) for record in state.curve],
        }
        storage.write_json(str(Path(temporary) / "training.json"), notes)
        curve = Path(temporary) / "curve.jsonl"
        curve.write_text(record_lines(state.records), encoding="utf-8")
        storage.upload(Path(temporary), job.output)


def check_weights(role: str, weights: Mapping[str, Tensor], expected: Iterable[str]) -> None:
    """Refuse weights that aren't exactly the trained ones, whole and finite.

    Raises:
        ValueError: a tensor is missing, left over, or empty as an ungathered partition is.
        UserError: NaN or infinity.
    """
    names = set(expected)
    for name in sorted(names ^ set(weights)):
        what = "is missing" if name in names else "doesn't belong to it"
        raise ValueError(f"adapter {role}: tensor {name} {what}")
    for name, tensor in weights.items():
        if tensor.numel() == 0:
            raise ValueError(f"adapter {role}: tensor {name} is empty, so it wasn't gathered")
        if not torch.isfinite(tensor).all():
            setting = "compatibility" if role == "compat" else "training"
            raise NotFiniteError(
                f"training {role}: {name} holds NaN or infinity: lower {setting}.learning_rate "
                "or set training.clip_norm"
            )


def _keep_config(start: str, folder: Path) -> None:
    """Put the start adapter's configuration in place of PEFT's rewriting of it."""
    source = Path(copies.fetch(start)) / "adapter_config.json"
    fields = json.loads(source.read_text(encoding="utf-8"))
    fields["inference_mode"] = True
    text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
