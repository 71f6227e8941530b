"""The resumable state of a training, written after every epoch.

    FOLDER/epoch-0003/{state,best}.safetensors
    FOLDER/latest.json     put last: which epoch stands, its checksums, the curve

Whole tensors by name, safetensors and JSON: any number of workers and any engine can
read it.
"""

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from muscle import storage
from muscle.training.job import EpochRecord


@dataclass
class TrainState:
    """Where a training stands after `epoch` epochs."""

    epoch: int = 0
    updates: int = 0
    curve: list[EpochRecord] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)

    @property
    def best_epoch(self) -> int:
        """The epoch (1-based) with the lowest validation cross-entropy, the first of equals."""
        return min(self.curve, key=lambda r: (r.validation_cross_entropy, r.epoch)).epoch


def save_state(folder: str, state: TrainState) -> None:
    """Write the state and then point `latest.json` at it; older epochs are dropped."""
    name = f"epoch-{state.epoch:04d}"
    with tempfile.TemporaryDirectory() as temporary:
        save_file(state.optimizer, Path(temporary) / "state.safetensors")
        save_file(state.best, Path(temporary) / "best.safetensors")
        storage.remove(storage.join(folder, name))
        files = storage.upload(Path(temporary), storage.join(folder, name))
    latest = {
        "folder": name,
        "epoch": state.epoch,
        "updates": state.updates,
        "curve": [asdict(record) for record in state.curve],
        "files": files,
    }
    storage.write_json(storage.join(folder, "latest.json"), latest)
    for epoch in range(state.epoch):
        storage.remove(storage.join(folder, f"epoch-{epoch:04d}"))


def load_state(folder: str) -> TrainState:
    """The last state, or a fresh one where there is none or its files are damaged."""
    latest = storage.read_json(storage.join(folder, "latest.json"))
    if not isinstance(latest, dict):
        return TrainState()
    place = storage.join(folder, latest["folder"])
    with tempfile.TemporaryDirectory() as temporary:
        for name, file in latest["files"].items():
            path = storage.join(place, name)
            if not storage.exists(path):
                return TrainState()
            storage.download(path, Path(temporary) / name)
            if storage.sha256(f"{temporary}/{name}") != file["sha256"]:
                return TrainState()
        return TrainState(
            epoch=latest["epoch"],
            updates=latest["updates"],
            curve=[EpochRecord(**record) for record in latest["curve"]],
            best=load_file(Path(temporary) / "best.safetensors"),
            optimizer=load_file(Path(temporary) / "state.safetensors"),
        )
