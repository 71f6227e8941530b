"""An adapter's tensors by the header of their safetensors file, and what no header says: NaN.

No torch: bytes are mapped, never loaded as a whole.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from muscle.errors import UserError

WEIGHTS = "adapter_model.safetensors"

# What NaN and infinity look like: the type in which the bits are read, and an exponent of ones.
_EXPONENTS: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "BF16": ("<u2", 0x7F80),
    "F16": ("<u2", 0x7C00),
}
_BLOCK = 1 << 22  # elements looked at together


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file: its type as safetensors calls it, and where its bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_tensors(folder: str) -> list[Tensor]:
    """The tensors of an adapter's file, by its header alone, sorted by name.

    Raises:
        UserError: no such file, one cut short or damaged, or one without tensors.
    """
    file = Path(folder) / WEIGHTS
    if not file.is_file():
        pickled = [
            n for n in ("adapter_model.bin", "adapter_model.pt") if (Path(folder) / n).exists()
        ]
        why = (
            f", only {pickled[0]}, a pickle, which can run code when it is read" if pickled else ""
        )
        raise UserError(f"there is no {WEIGHTS}{why}: save it as safetensors")
    try:
        with safe_open(file, framework="np"):  # checks the header against the file's size
            pass
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{WEIGHTS} is damaged ({reason}): copy or save it again") from None
    found = []
    for name, entry in sorted(header.items()):
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            shape = tuple(int(size) for size in entry["shape"])
            found.append(Tensor(name, str(entry["dtype"]), shape, 8 + length + start, end - start))
    if not found:
        raise UserError(f"{WEIGHTS} holds no tensors: save it again")
    return found


def not_finite(folder: str, tensors: list[Tensor]) -> str | None:
    """The first tensor that holds NaN or infinity, by name. Types other than floating point of
    16 to 64 bits are passed over."""
    for tensor in tensors:
        if tensor.dtype not in _EXPONENTS or not tensor.size:
            continue
        name, ones = _EXPONENTS[tensor.dtype]
        kind: np.dtype[Any] = np.dtype(name)
        count = tensor.size // kind.itemsize
        bits = np.memmap(
            Path(folder) / WEIGHTS, dtype=kind, mode="r", offset=tensor.start, shape=(count,)
        )
        for start in range(0, count, _BLOCK):
            block = bits[start : start + _BLOCK]
            if bool(((block & kind.type(ones)) == ones).any()):
                return tensor.name
    return None
