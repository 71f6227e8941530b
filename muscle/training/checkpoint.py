"""The resumable state of a training, at any update.

    FOLDER/state-<epoch>-<update>.safetensors   trained parameters and their Adam moments
    FOLDER/updates-<epoch>-<update>.jsonl       the record of every update so far
    FOLDER/best-<epoch>.safetensors             the best epoch's weights, written once
    FOLDER/latest.json     put last: which files stand, their checksums, the position

Whole tensors by name, safetensors and JSON: any number of workers and any engine can
read it. There is no random state in it: the order of the data, the learning rate and
dropout are functions of the position.
"""

import contextlib
import errno
import json
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from muscle import storage
from muscle.errors import UserError
from muscle.training.job import EpochRecord, UpdateRecord

FORMAT = 2
OURS = re.compile(r"(state|updates|best)-[\d-]+\.(safetensors|jsonl)")


@dataclass
class TrainState:
    """Where a training stands: after `epoch` whole epochs and `position` examples more.

    sums, tokens  of the present epoch so far (float64: JSON gives back the same bits)
    best          weights of `best_epoch`; kept by rank 0 only, {} before the first epoch's end
    optimizer     `Engine.state()`; {} unless it was just loaded or is about to be saved
    """

    epoch: int = 0
    updates: int = 0
    position: int = 0
    sums: list[float] = field(default_factory=list)
    tokens: int = 0
    curve: list[EpochRecord] = field(default_factory=list)
    records: list[UpdateRecord] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    best_file: dict[str, Any] | None = None  # where `best` was written: name, sha256, size

    @property
    def best_epoch(self) -> int:
        """The epoch (1-based) with the lowest criterion, the first of equals."""
        return min(self.curve, key=lambda r: (r.criterion, r.epoch)).epoch


def save_state(folder: str, state: TrainState) -> None:
    """Write the state's files and then point `latest.json` at them; drop what it replaces.

    Raises:
        UserError: a full disk or a failed upload. What was saved before still stands, and
            nothing of this attempt is left.
    """
    name = f"{state.epoch:04d}-{state.updates:08d}"
    best = f"best-{state.best_epoch:04d}.safetensors" if state.best else None
    keep = state.best_file
    if keep is not None and (keep["name"] != best or not _is_there(folder, keep["name"])):
        keep = None
    names = [f"state-{name}.safetensors", f"updates-{name}.jsonl"]
    if best is not None and keep is None:
        names.append(best)
    try:
        files = _write(folder, names, state)
        if keep is not None:
            files[keep["name"]] = {"sha256": keep["sha256"], "size": keep["size"]}
        latest = {
            "format": FORMAT,
            "epoch": state.epoch,
            "updates": state.updates,
            "position": state.position,
            "sums": state.sums,
            "tokens": state.tokens,
            "curve": [asdict(record) for record in state.curve],
            "best": best,
            "files": files,
        }
        storage.write_json(storage.join(folder, "latest.json"), latest)
    except Exception as error:  # drivers of stores raise errors of their own
        _remove(folder, _not_standing(folder, names))
        raise _one_line(folder, error) from error
    state.best_file = {"name": best, **files[best]} if best is not None else None
    _remove(folder, {n for n in _listed(folder) if OURS.fullmatch(n)} - set(files))


def load_state(folder: str) -> tuple[TrainState, str | None]:
    """The last state, or a fresh one; and a remark when a state was there but is damaged.

    Raises:
        OSError: storage that can't be reached, which is no reason to begin again.
    """
    if not storage.exists(storage.join(folder, "latest.json")):
        return TrainState(), None
    latest = storage.read_json(storage.join(folder, "latest.json"))
    damaged = TrainState(), "the checkpoint was damaged, so the training began afresh"
    if not isinstance(latest, dict) or latest.get("format") != FORMAT:
        return damaged
    with tempfile.TemporaryDirectory() as temporary:
        for name, file in latest["files"].items():
            path = storage.join(folder, name)
            if not storage.exists(path):
                return damaged
            storage.download(path, Path(temporary) / name)
            if storage.sha256(f"{temporary}/{name}") != file["sha256"]:
                return damaged
        name = f"{latest['epoch']:04d}-{latest['updates']:08d}"
        lines = (Path(temporary) / f"updates-{name}.jsonl").read_text(encoding="utf-8")
        best = latest["best"]
        state = TrainState(
            epoch=latest["epoch"],
            updates=latest["updates"],
            position=latest["position"],
            sums=latest["sums"],
            tokens=latest["tokens"],
            curve=[EpochRecord(**record) for record in latest["curve"]],
            records=[UpdateRecord(**json.loads(line)) for line in lines.splitlines()],
            best=load_file(Path(temporary) / best) if best else {},
            optimizer=load_file(Path(temporary) / f"state-{name}.safetensors"),
            best_file={"name": best, **latest["files"][best]} if best else None,
        )
    return state, None


def record_lines(records: Iterable[UpdateRecord]) -> str:
    """Records as JSON lines: the same floats give the same bytes."""
    return "".join(json.dumps(asdict(r), allow_nan=False) + "\n" for r in records)


def _write(folder: str, names: list[str], state: TrainState) -> dict[str, dict[str, Any]]:
    """Write the named files; returns their checksums."""
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            path = Path(temporary) / name
            if name.startswith("state-"):
                save_file(state.optimizer, path)
            elif name.startswith("best-"):
                save_file(state.best, path)
            else:
                path.write_text(record_lines(state.records), encoding="utf-8")
        files = storage.upload(Path(temporary), folder)
    if not storage.is_remote(folder):
        for name in names:  # `latest.json` must not reach the disk before them
            with open(storage.join(storage.absolute(folder), name), "rb") as file:
                os.fsync(file.fileno())
    return files


def _not_standing(folder: str, names: Iterable[str]) -> set[str]:
    """The names that `latest.json` doesn't hold: a put that raised may still have happened."""
    try:
        latest = storage.read_json(storage.join(folder, "latest.json"))
    except Exception:  # unreachable: remove nothing
        return set()
    return set(names) - set(latest.get("files", ()) if isinstance(latest, dict) else ())


def _is_there(folder: str, name: str) -> bool:
    try:
        return storage.exists(storage.join(folder, name))
    except Exception:
        return False


def _listed(folder: str) -> list[str]:
    with contextlib.suppress(Exception):  # left-overs cost space only; the next time they go
        fs, inside = storage.filesystem(folder)
        return [str(p).rsplit("/", 1)[-1] for p in fs.ls(inside, detail=False)]
    return []


def _remove(folder: str, names: Iterable[str]) -> None:
    for name in names:
        with contextlib.suppress(Exception):
            storage.remove(storage.join(folder, name))


def _one_line(folder: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        return storage.storage_error(folder, error)
    text = " ".join(str(error).split())
    if "No space left" in text:  # safetensors wraps the system's error
        return storage.storage_error(folder, OSError(errno.ENOSPC, "no space left"))
    return UserError(f"checkpoint {folder} can't be written: {text[:200]}")
