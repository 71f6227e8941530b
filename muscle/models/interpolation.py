"""One adapter between two: what is served is a mixture of their weight changes, at their rank.

Between new's adapter and compat's lies a path from fewer negative flips to more accuracy
(weights between two models: Schumann et al. 2024, "Backward Compatibility During Data Updates
by Weight Interpolation"). LoRA's factors can't be mixed one by one, since B A isn't linear in
(A, B), and a mixture of two changes of rank r has rank up to 2r: it is brought back to r.
"""

import math
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muscle.errors import UserError
from muscle.models.adapters import NOTE, WEIGHTS, copy_adapter_config
from muscle.models.compatibility import noted_fingerprint, tensor_shapes

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig

_SAME = (
    "r",
    "lora_alpha",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "fan_in_fan_out",
)
"""Settings that both adapters must share: they say which weights change, and by what scale."""

_FREE = (
    "target_modules",  # PEFT shortens long lists; the tensors' names are compared anyway
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
)
"""Settings that a trained adapter's function doesn't depend on. All others must be PEFT's defaults:
they are other kinds of LoRA, biases or whole modules, which are more than B A."""

_PAIR = re.compile(r"(?P<module>.+)\.lora_(?:embedding_)?(?P<factor>[AB])(?:\.weight)?")


def interpolate_adapters(first: str, second: str, weight: float, directory: str) -> float:
    """Write the adapter whose weight change is (1 - weight) dW_first + weight dW_second.

    dW = scale B A, with A [r, in] and B [out, r]. Each module's sum is replaced by the nearest
    matrix of rank r in the Frobenius norm, its truncated SVD U S V^T (Eckart and Young 1936), with
    B = U sqrt(S) and A = sqrt(S) V^T, in float64 on the CPU, from factors of rank 2r: dW is never
    formed. Config, note and dtypes are the second adapter's. Weight 1 copies its tensors. The same
    adapters give the same bytes.

    Args:
        first, second: directories of LoRA adapters of one base, one config and one shape.
        weight: in (0, 2]; above 1 the change goes beyond the second's.
        directory: a folder of its own for the new adapter, made where missing.

    Returns:
        ||dW - truncated dW||_F / ||dW||_F over all modules together, before rounding to the dtype:
        0 where nothing is lost, or where dW is 0.

    Raises:
        UserError: a weight out of range; adapters of different bases, configs, tensors or shapes;
            other than plain LoRA of matrices; NaN or infinity; files missing or damaged.
        ValueError: `directory` is one of the two adapters.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    if not 0 < weight <= 2:
        raise UserError(f"interpolation weight {weight:g} is out of range: give one in (0, 2]")
    if Path(directory).resolve() in (Path(first).resolve(), Path(second).resolve()):
        raise ValueError(f"the interpolated adapter can't overwrite {directory!r}")
    configs = _check_configs(first, second)
    pairs = _check_tensors(first, second)
    blended: dict[str, torch.Tensor] = {}
    lost = whole = 0.0
    with (
        safe_open(Path(first) / WEIGHTS, framework="pt") as one,
        safe_open(Path(second) / WEIGHTS, framework="pt") as two,
    ):
        for key_a, key_b in pairs:
            a1, b1 = (_read(one, first, key) for key in (key_a, key_b))
            a2, b2 = (_read(two, second, key) for key in (key_a, key_b))
            scale = _shared_scale(first, second, configs, key_a, rank=len(a2))
            if weight == 1:
                continue
            a, b, lost_here, whole_here = _mix(a1, b1, a2, b2, weight)
            blended[key_a] = _rounded(a, two.get_tensor(key_a).dtype, second, key_a)
            blended[key_b] = _rounded(b, two.get_tensor(key_b).dtype, second, key_b)
            lost += scale**2 * lost_here
            whole += scale**2 * whole_here
    os.makedirs(directory, exist_ok=True)
    if weight == 1:
        shutil.copyfile(Path(second) / WEIGHTS, Path(directory) / WEIGHTS)
    else:
        tensors = dict(sorted(blended.items()))
        save_file(tensors, Path(directory) / WEIGHTS, metadata={"format": "pt"})
    for name in ("adapter_config.json", NOTE):
        if (Path(second) / name).is_file():
            shutil.copyfile(Path(second) / name, Path(directory) / name)
    return math.sqrt(lost / whole) if whole else 0.0


def _mix(
    a1: "torch.Tensor", b1: "torch.Tensor", a2: "torch.Tensor", b2: "torch.Tensor", weight: float
) -> "tuple[torch.Tensor, torch.Tensor, float, float]":
    """A [r, in] and B [out, r] nearest to the mixture; squared norms of the rest and of all of it.

    The signs of singular vectors, which no SVD settles, make B's largest entries positive.
    """
    import torch

    rank = len(a2)
    b_wide = torch.cat([(1 - weight) * b1, weight * b2], dim=1)  # [out, 2r]
    a_tall = torch.cat([a1, a2])  # [2r, in]
    q_b, r_b = torch.linalg.qr(b_wide)
    q_a, r_a = torch.linalg.qr(a_tall.T)
    u, values, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    # What two changes leave when they cancel is rounding, a change of its own to no one: it
    # would have an arbitrary direction, and stand in the residual.
    size = (b_wide.norm(dim=0) * a_tall.norm(dim=1)).sum()
    noise = torch.finfo(torch.float64).eps * max(len(b_wide), a_tall.shape[1]) * size
    values = torch.where(values > noise, values, 0.0)
    kept = min(rank, int((values > 0).sum()))
    left, right = q_b @ u[:, :kept], v[:kept] @ q_a.T
    if kept:
        signs = left.gather(0, left.abs().argmax(dim=0, keepdim=True)).sign()
        left, right = left * signs, right * signs.T
    root = values[:kept].sqrt()
    a, b = torch.zeros_like(a2), torch.zeros_like(b2)
    b[:, :kept] = left * root
    a[:kept] = root[:, None] * right
    squares = values**2
    return a, b, float(squares[rank:].sum()), float(squares.sum())


def _read(file: Any, path: str, key: str) -> "torch.Tensor":
    """One tensor in float64.

    Raises:
        UserError: it isn't finite, or not of real numbers.
    """
    import torch

    stored = file.get_tensor(key)
    if not stored.is_floating_point():
        raise UserError(f"adapter {path!r}: {key} is {stored.dtype}: save it as float32")
    tensor = stored.to(torch.float64)
    if not tensor.isfinite().all():
        raise UserError(f"adapter {path!r}: {key} holds NaN or infinity: train it again")
    return tensor


def _rounded(tensor: "torch.Tensor", dtype: "torch.dtype", path: str, key: str) -> "torch.Tensor":
    """The tensor in the dtype it is saved in.

    Raises:
        UserError: its values are too large for it.
    """
    result = tensor.to(dtype)
    if not result.double().isfinite().all():
        raise UserError(
            f"adapter {path!r}: interpolated, {key} is too large for {dtype}: save it as float32"
        )
    return result.contiguous()


def _check_configs(first: str, second: str) -> "tuple[LoraConfig, LoraConfig]":
    """Both adapters' settings; refuses all but plain LoRA of one base, one config."""
    configs = copy_adapter_config(first), copy_adapter_config(second)
    for path, config in zip((first, second), configs, strict=True):
        _check_plain(path, config)
    for field in _SAME:
        mine, other = (_setting(getattr(config, field, None)) for config in configs)
        if mine != other:
            raise UserError(
                f"adapters {first!r} and {second!r} can't be interpolated: {field} is {mine!r} "
                f"in the first and {other!r} in the second; train both with one config"
            )
    bases = [noted_fingerprint(path) for path in (first, second)]
    if None not in bases and bases[0] != bases[1]:
        raise UserError(
            f"adapters {first!r} and {second!r} can't be interpolated: they were made for "
            "different bases, as their muscle.json say"
        )
    return configs


def _check_plain(path: str, config: "LoraConfig") -> None:
    """The weight change must be scale B A on the base's own weights, and nothing else."""
    from peft import LoraConfig

    # Initialisations by another name may move the base's weights, so that B A isn't the change.
    if config.init_lora_weights not in (True, False, "gaussian"):
        raise UserError(
            f"adapter {path!r} was initialised by {config.init_lora_weights!r}, which may change "
            "the base's weights: convert it to plain LoRA before interpolating"
        )
    known = {"peft_type", "init_lora_weights", *_SAME, *_FREE}
    for field, default in LoraConfig().to_dict().items():
        value = getattr(config, field)
        if field not in known and _setting(value) != _setting(default):
            raise UserError(
                f"adapter {path!r} has {field}: {value!r}: only plain LoRA, whose weight change "
                "is scale * B A, can be interpolated"
            )


def _setting(value: Any) -> Any:
    """A setting for comparison: PEFT writes nothing in several ways, and lists in any order."""
    if isinstance(value, list | set | tuple):
        value = sorted(value, key=str)
    return value or None


def _check_tensors(first: str, second: str) -> list[tuple[str, str]]:
    """The keys of every module's A and B, sorted, from the headers alone."""
    mine, other = tensor_shapes(first), tensor_shapes(second)
    pairs = _pairs(first, mine)
    _pairs(second, other)
    between = f"adapters {first!r} and {second!r} can't be interpolated"
    for key in sorted(mine.keys() ^ other.keys()):
        owner = "first" if key in mine else "second"
        raise UserError(f"{between}: only the {owner} has {key}; train both with one config")
    for key, shape in sorted(mine.items()):
        if shape != other[key]:
            raise UserError(
                f"{between}: {key} has shape {list(shape)} in the first and {list(other[key])} in "
                "the second; train both with one config on one base"
            )
    return pairs


def _pairs(path: str, shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, str]]:
    """The keys of every module's A and B, sorted.

    Raises:
        UserError: a tensor that isn't one of two, not a matrix, or not of its partner's rank.
    """
    pairs = []
    for key, shape in sorted(shapes.items()):
        match = _PAIR.fullmatch(key)
        partner = match and _other_factor(key, match)
        if partner not in shapes:
            raise UserError(
                f"adapter {path!r} holds {key}, which is not one of a pair lora_A, lora_B: only "
                "plain LoRA can be interpolated"
            )
        if len(shape) != 2:
            raise UserError(
                f"adapter {path!r}: {key} has shape {list(shape)}: only LoRA of matrices can be "
                "interpolated, not of convolutions"
            )
        if match and partner and match["factor"] == "A":
            if shape[0] != shapes[partner][-1]:
                raise UserError(
                    f"adapter {path!r}: {key} and {partner} have different ranks: save it again"
                )
            pairs.append((key, partner))
    return pairs


def _other_factor(key: str, match: re.Match[str]) -> str:
    """The key of B for that of A, and of A for that of B."""
    start, end = match.span("factor")
    return key[:start] + ("B" if match["factor"] == "A" else "A") + key[end:]


def _shared_scale(
    first: str, second: str, configs: "tuple[LoraConfig, LoraConfig]", key: str, rank: int
) -> float:
    """A module's scale in both adapters, as PEFT computes it; the patterns' order counts there.

    Raises:
        UserError: it isn't the same.
    """
    from peft.utils.other import get_pattern_key

    match = _PAIR.fullmatch(key)
    assert match is not None  # `_check_tensors` has seen to it
    module = match["module"].removeprefix("base_model.model.")
    scales = []
    for config in configs:
        pattern = config.alpha_pattern or {}
        alpha = pattern.get(get_pattern_key(list(pattern), module), config.lora_alpha)
        scales.append(alpha / (math.sqrt(rank) if config.use_rslora else rank))
    if scales[0] != scales[1]:
        raise UserError(
            f"adapters {first!r} and {second!r} can't be interpolated: {module} is scaled by "
            f"{scales[0]:g} in the first and {scales[1]:g} in the second; order alpha_pattern alike"
        )
    return float(scales[0])
