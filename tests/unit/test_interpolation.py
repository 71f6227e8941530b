"""Interpolated adapters, against dense weight changes, PEFT and a model's own logits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from tiny import save_model, save_random_adapter

from muscle import models, testbed
from muscle.errors import UserError
from muscle.models.adapters import NOTE, WEIGHTS, write_adapter
from muscle.models.interpolation import interpolate_adapters

IDS = torch.arange(3, 23)[None]
BASE = testbed.model_path("v1")
Tensors = dict[str, torch.Tensor]

SHAPES = {"layers.0.q_proj": (12, 10), "layers.0.up_proj": (20, 9), "layers.1.q_proj": (7, 16)}
"""[out, in] of the layers of the adapters that need no model."""


def keys(module: str) -> tuple[str, str]:
    name = f"base_model.model.{module}.lora_"
    return f"{name}A.weight", f"{name}B.weight"


def draw(seed: int, rank: int = 3, dtype: torch.dtype = torch.float32) -> Tensors:
    """Random A and B for every layer of SHAPES."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for module, (rows, columns) in SHAPES.items():
        for key, shape in zip(keys(module), [(rank, columns), (rows, rank)], strict=True):
            state[key] = torch.randn(shape, generator=generator).to(dtype)
    return state


def save(directory: Path, state: Tensors, rank: int = 3, **settings: Any) -> str:
    fields = {"r": rank, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"]} | settings
    config = LoraConfig(**fields)  # type: ignore[arg-type]
    write_adapter(state, config, str(directory), "base")
    return str(directory)


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    return save(tmp_path / "first", draw(1)), save(tmp_path / "second", draw(2))


def read(directory: str | Path) -> Tensors:
    return load_file(Path(directory) / WEIGHTS)


def dense(state: Tensors, module: str) -> torch.Tensor:
    """B A in float64."""
    a, b = (state[key].double() for key in keys(module))
    return b @ a


def mixture(first: str, second: str, weight: float, module: str) -> torch.Tensor:
    return (1 - weight) * dense(read(first), module) + weight * dense(read(second), module)


def bytes_of(directory: str | Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(directory).iterdir()}


# -- the numbers


@pytest.mark.parametrize("weight", [0.25, 0.75, 1.25, 2.0])
def test_is_the_best_approximation_of_the_mixture(
    two: tuple[str, str], tmp_path: Path, weight: float
) -> None:
    residual = interpolate_adapters(*two, weight, str(tmp_path / "out"))
    lost = whole = 0.0
    for module in SHAPES:
        wanted = mixture(*two, weight, module)
        u, s, v = torch.linalg.svd(wanted, full_matrices=False)
        best = (u[:, :3] * s[:3]) @ v[:3]
        got = dense(read(tmp_path / "out"), module)
        assert torch.allclose(got, best, rtol=1e-5, atol=1e-5)
        lost += float((wanted - best).square().sum())
        whole += float(wanted.square().sum())
    assert residual == pytest.approx((lost / whole) ** 0.5, rel=1e-9)
    assert 0 < residual < 1


def test_factors_are_balanced_and_their_signs_fixed(two: tuple[str, str], tmp_path: Path) -> None:
    interpolate_adapters(*two, 0.5, str(tmp_path / "out"))
    for module in SHAPES:
        a, b = (read(tmp_path / "out")[key].double() for key in keys(module))
        assert torch.allclose(b.T @ b, a @ a.T, atol=1e-5)  # diag(S), both
        assert torch.allclose(b.T @ b, torch.diag(b.square().sum(0)), atol=1e-5)
        largest = b.gather(0, b.abs().argmax(0, keepdim=True))
        assert (largest > 0).all()


def test_differs_from_mixing_the_factors(two: tuple[str, str], tmp_path: Path) -> None:
    interpolate_adapters(*two, 0.5, str(tmp_path / "out"))
    first, second = (read(path) for path in two)
    naive = {key: (first[key] + second[key]) / 2 for key in first}
    for module in SHAPES:
        wanted = mixture(*two, 0.5, module)
        ours = (dense(read(tmp_path / "out"), module) - wanted).norm()
        assert ours < 0.9 * (dense(naive, module) - wanted).norm()


@pytest.mark.parametrize("weight", [0.3, 1.5])
def test_another_form_of_the_factors_changes_nothing(
    two: tuple[str, str], tmp_path: Path, weight: float
) -> None:
    """(B M, M^-1 A) is the same weight change, so the mixture is the same."""
    turn = torch.tensor([[0.0, 2.0, 0.0], [-1.0, 0.0, 0.5], [0.0, 0.0, 4.0]])
    turned = read(two[0])
    for module in SHAPES:
        a, b = keys(module)
        turned[a], turned[b] = torch.linalg.inv(turn) @ turned[a], turned[b] @ turn
    other = save(tmp_path / "turned", turned)
    residuals = [
        interpolate_adapters(path, two[1], weight, str(tmp_path / name))
        for path, name in [(two[0], "plain"), (other, "other")]
    ]
    assert residuals[0] == pytest.approx(residuals[1], rel=1e-5)
    for key, tensor in read(tmp_path / "plain").items():
        assert torch.allclose(tensor, read(tmp_path / "other")[key], atol=1e-4)


def halves(rank: int, directory: Path, **settings: Any) -> tuple[str, str]:
    """Two adapters of the given even rank; the first uses half of it, the second the other."""
    paths = []
    for seed in (1, 2):
        state = draw(seed, rank)
        for module in SHAPES:
            state[keys(module)[1]][:, : rank // 2] = 0
        paths.append(save(directory / str(seed), state, rank, **settings))
    return paths[0], paths[1]


@pytest.mark.parametrize("weight", [0.4, 1.25])
def test_exact_where_the_rank_holds_both(tmp_path: Path, weight: float) -> None:
    two = halves(4, tmp_path)
    assert interpolate_adapters(*two, weight, str(tmp_path / "out")) == pytest.approx(0, abs=1e-12)
    for module in SHAPES:
        wanted = mixture(*two, weight, module)
        assert torch.allclose(dense(read(tmp_path / "out"), module), wanted, atol=1e-5)


def test_one_adapter_between_itself_is_itself(two: tuple[str, str], tmp_path: Path) -> None:
    assert interpolate_adapters(two[0], two[0], 0.3, str(tmp_path / "out")) == 0
    for module in SHAPES:
        got, wanted = dense(read(tmp_path / "out"), module), dense(read(two[0]), module)
        assert torch.allclose(got, wanted, atol=1e-5)


def test_changes_that_cancel_leave_nothing(two: tuple[str, str], tmp_path: Path) -> None:
    """(1 - 2) 2 dW + 2 dW = 0: no rounding is blown up into factors or residual."""
    state = read(two[1])
    for module in SHAPES:  # in other factors: no column meets its own negative
        a, b = keys(module)
        state[a], state[b] = 4 * state[a].flip(0), 0.5 * state[b].flip(1)
    first = save(tmp_path / "double", state)
    assert interpolate_adapters(first, two[1], 2.0, str(tmp_path / "out")) == 0
    assert not any(tensor.any() for tensor in read(tmp_path / "out").values())


def test_untrained_adapters_stay_zero(tmp_path: Path) -> None:
    state = draw(1)
    for module in SHAPES:
        state[keys(module)[1]].zero_()
    path = save(tmp_path / "zero", state)
    assert interpolate_adapters(path, path, 0.5, str(tmp_path / "out")) == 0
    assert not any(tensor.any() for tensor in read(tmp_path / "out").values())


def test_rank_beyond_the_layers_own(tmp_path: Path) -> None:
    two = (save(tmp_path / "1", draw(1, 12), 12), save(tmp_path / "2", draw(2, 12), 12))
    assert interpolate_adapters(*two, 0.5, str(tmp_path / "out")) == 0
    for module in SHAPES:
        got, wanted = dense(read(tmp_path / "out"), module), mixture(*two, 0.5, module)
        assert torch.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "root"), [({}, False), ({"use_rslora": True, "lora_alpha": 5}, True)]
)
def test_residual_weighs_modules_by_their_scale(
    tmp_path: Path, settings: dict[str, Any], root: bool
) -> None:
    """A layer with a rank and an alpha of its own counts as in the model."""
    alphas = {"up_proj": 40, "^layers.1.q_proj": 3}
    settings |= {"alpha_pattern": alphas, "rank_pattern": {"up_proj": 2}}
    paths = []
    for seed in (1, 2):
        state = draw(seed)
        small = draw(seed, rank=2)
        state.update({key: small[key] for key in keys("layers.0.up_proj")})
        paths.append(save(tmp_path / str(seed), state, **settings))
    residual = interpolate_adapters(paths[0], paths[1], 0.5, str(tmp_path / "out"))
    lost = whole = 0.0
    for module in SHAPES:
        rank = 2 if "up_proj" in module else 3
        alpha = next((v for k, v in alphas.items() if module.endswith(k.strip("^"))), None)
        alpha = alpha or settings.get("lora_alpha", 6)
        s = torch.linalg.svdvals(mixture(paths[0], paths[1], 0.5, module)) * alpha
        s = s / (rank**0.5 if root else rank)
        lost, whole = lost + float((s[rank:] ** 2).sum()), whole + float((s**2).sum())
    assert residual == pytest.approx((lost / whole) ** 0.5, rel=1e-9)


# -- the files


def test_weight_one_is_the_second_adapter(two: tuple[str, str], tmp_path: Path) -> None:
    assert interpolate_adapters(*two, 1.0, str(tmp_path / "out")) == 0.0
    assert bytes_of(tmp_path / "out") == bytes_of(two[1])


def test_same_adapters_same_bytes(two: tuple[str, str], tmp_path: Path) -> None:
    for pair in (two, halves(4, tmp_path)):
        for name in ("one", "again"):
            interpolate_adapters(*pair, 0.75, str(tmp_path / name))
        assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "again")


def test_config_and_note_are_the_seconds(two: tuple[str, str], tmp_path: Path) -> None:
    edit(two[0], lora_dropout=0.3, base_model_name_or_path="elsewhere")
    interpolate_adapters(*two, 0.5, str(tmp_path / "out"))
    ours, theirs = bytes_of(tmp_path / "out"), bytes_of(two[1])
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == {WEIGHTS}


def test_a_foreign_adapter_has_no_note(two: tuple[str, str], tmp_path: Path) -> None:
    (Path(two[1]) / NOTE).unlink()
    interpolate_adapters(*two, 0.5, str(tmp_path / "out"))
    assert not (tmp_path / "out" / NOTE).exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_is_the_seconds(two: tuple[str, str], tmp_path: Path, dtype: torch.dtype) -> None:
    second = save(tmp_path / "half", draw(2, dtype=dtype))
    interpolate_adapters(two[0], second, 0.5, str(tmp_path / "out"))
    state = read(tmp_path / "out")
    assert {tensor.dtype for tensor in state.values()} == {dtype}
    for module in SHAPES:
        u, s, v = torch.linalg.svd(mixture(two[0], second, 0.5, module), full_matrices=False)
        error = dense(state, module) - (u[:, :3] * s[:3]) @ v[:3]
        assert error.norm() < 2 * torch.finfo(dtype).eps * s.norm()


# -- in a model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two random adapters on every linear layer of the testbed's base, of rank 2."""
    root = tmp_path_factory.mktemp("trained")
    paths = [save_random_adapter(root / str(i), BASE, seed=i, std=0.1) for i in (1, 2)]
    return paths[0], paths[1]


@pytest.mark.parametrize("weight", [0.5, 1.25])
def test_peft_agrees(trained: tuple[str, str], tmp_path: Path, weight: float) -> None:
    """PEFT forms dW and keeps its own alpha: the weight changes are compared, and the logits."""
    interpolate_adapters(*trained, weight, str(tmp_path / "out"))
    models.check_adapter(
        str(tmp_path / "out"), BASE, models.fingerprint_base(BASE), models.load_config(BASE)
    )
    model = models.attach_adapter(models.load_base(BASE), trained[0], "first")
    model = models.attach_adapter(model, trained[1], "second")
    model = models.attach_adapter(model, str(tmp_path / "out"), "ours")
    model.add_weighted_adapter(
        ["first", "second"], [1 - weight, weight], "theirs", combination_type="svd", svd_rank=2
    )
    logits = {}
    for name in ("first", "second", "ours", "theirs"):
        with models.using_adapter(model, name):
            logits[name] = model(IDS).logits
    assert torch.allclose(logits["ours"], logits["theirs"], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(logits["ours"], logits["second"], rtol=1e-2, atol=1e-2)
    layers: list[Any] = [m for m in model.modules() if isinstance(m, LoraLayer)]
    assert len(layers) == 3 * 7
    for layer in layers:
        ours, theirs = layer.get_delta_weight("ours"), layer.get_delta_weight("theirs")
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base whose head isn't its embedding."""
    return save_model(tmp_path_factory.mktemp("base"))


def half_used(root: Path, base: str, targets: list[str]) -> tuple[str, str]:
    """Two adapters by plain PEFT, of rank 4, that use 2 of it."""
    for name in ("1", "2"):
        config = LoraConfig(r=4, lora_alpha=8, target_modules=targets)
        model = get_peft_model(models.load_base(base), config, "x")
        generator = torch.Generator().manual_seed(int(name))
        for key, parameter in models.adapter_parameters(model, "x").items():
            parameter.data.normal_(std=0.1, generator=generator)
            if "_B" in key:
                parameter.data[:, 2:] = 0
        models.save_adapter(model, "x", str(root / name), models.fingerprint_base(base))
    return str(root / "1"), str(root / "2")


def logits_of(base: str, adapter: str | Path) -> torch.Tensor:
    with torch.no_grad():
        return models.attach_adapter(models.load_base(base), str(adapter), "x")(IDS).logits


@pytest.mark.parametrize("weight", [0.25, 1.5])
def test_logits_are_linear_in_the_head(untied: str, tmp_path: Path, weight: float) -> None:
    two = half_used(tmp_path, untied, ["lm_head"])
    assert interpolate_adapters(*two, weight, str(tmp_path / "out")) == pytest.approx(0, abs=1e-12)
    first, second = (logits_of(untied, path) for path in two)
    wanted = (1 - weight) * first + weight * second
    assert torch.allclose(logits_of(untied, tmp_path / "out"), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first, second, rtol=1e-2, atol=1e-2)


def test_exact_mixture_equals_a_base_with_both_changes(untied: str, tmp_path: Path) -> None:
    """In all layers and the embedding: the base's weights and both changes, mixed densely."""
    two = half_used(tmp_path, untied, ["embed_tokens", "v_proj", "down_proj"])
    assert any(key.endswith("embed_tokens.lora_embedding_A") for key in read(two[0]))
    assert interpolate_adapters(*two, 0.3, str(tmp_path / "out")) == pytest.approx(0, abs=1e-12)
    first, second = (
        models.attach_adapter(models.load_base(untied), path, "x").merge_and_unload().state_dict()
        for path in two
    )
    model = models.load_base(untied)
    model.load_state_dict({key: 0.7 * first[key] + 0.3 * second[key] for key in first})
    got = logits_of(untied, tmp_path / "out")
    assert torch.allclose(got, model(IDS).logits, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(got, logits_of(untied, two[0]), rtol=1e-2, atol=1e-2)


# -- refusals


def edit(directory: str, **fields: Any) -> None:
    file = Path(directory) / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | fields
    file.write_text(json.dumps(config), encoding="utf-8")


def edit_tensors(directory: str, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(read(directory)), Path(directory) / WEIGHTS)


def refuses(two: tuple[str, str], message: str, weight: float = 0.5) -> None:
    out = Path(two[0]).parent / "refused"
    with pytest.raises(UserError, match=message) as caught:
        interpolate_adapters(*two, weight, str(out))
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("weight", [0.0, -0.5, 2.001, float("nan"), float("inf")])
def test_weight_out_of_range(two: tuple[str, str], weight: float) -> None:
    refuses(two, "interpolation weight", weight)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 4),
        ("lora_alpha", 7),
        ("rank_pattern", {"q_proj": 3}),
        ("alpha_pattern", {"q_proj": 3}),
        ("use_rslora", True),
        ("layers_to_transform", [0]),
        ("exclude_modules", ["k_proj"]),
        ("fan_in_fan_out", True),
    ],
)
def test_configs_that_differ(two: tuple[str, str], field: str, value: Any) -> None:
    edit(two[0], **{field: value})
    for pair in (two, two[::-1]):
        for weight in (0.5, 1.0):
            refuses(pair, f"can't be interpolated: {field} is ", weight)


def test_targets_in_another_order_are_the_same(two: tuple[str, str], tmp_path: Path) -> None:
    edit(two[0], target_modules=["up_proj", "q_proj"], rank_pattern=None, layers_to_transform=[])
    assert interpolate_adapters(*two, 0.5, str(tmp_path / "out")) > 0


def test_patterns_in_another_order_are_another_scale(tmp_path: Path) -> None:
    paths = [save(tmp_path / str(seed), draw(seed)) for seed in (1, 2)]
    patterns = [("q_proj", 3), ("layers.0.q_proj", 12)]
    edit(paths[0], alpha_pattern=dict(patterns))
    edit(paths[1], alpha_pattern=dict(patterns[::-1]))
    refuses((paths[0], paths[1]), "layers.0.q_proj is scaled by 1 in the first and 4 in the second")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1, 2]),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("use_qalora", True),
        ("init_lora_weights", "pissa"),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_kinds_of_lora_that_are_more_than_b_a(
    two: tuple[str, str], field: str, value: Any, which: int
) -> None:
    edit(two[which], **{field: value})
    refuses(two, str(value) if field == "init_lora_weights" else f"has {field}: ")


def test_other_methods(two: tuple[str, str]) -> None:
    edit(two[0], peft_type="IA3")
    refuses(two, "IA3, not LoRA")


def test_other_base(two: tuple[str, str]) -> None:
    (Path(two[0]) / NOTE).write_text('{"base_fingerprint": "another"}')
    refuses(two, "different bases")
    (Path(two[0]) / NOTE).write_text("{}")
    refuses(two, "muscle.json is damaged")


PREFIX = "base_model.model.layers.0.q_proj."


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lora_magnitude_vector", (12,)),
        ("lora_B.bias", (12,)),
        ("base_layer.weight", (12, 10)),
        ("bias", (12,)),
    ],
)
def test_tensors_that_are_no_pair(two: tuple[str, str], name: str, shape: tuple[int, ...]) -> None:
    for path in two:
        edit_tensors(path, lambda state: state | {PREFIX + name: torch.ones(shape)})
    refuses(two, f"{name}, which is not one of a pair")


def test_half_a_pair(two: tuple[str, str]) -> None:
    for path in two:
        edit_tensors(path, lambda s: {k: v for k, v in s.items() if k != f"{PREFIX}lora_A.weight"})
    refuses(two, "lora_B.weight, which is not one of a pair")


def test_a_pair_that_one_lacks(two: tuple[str, str]) -> None:
    edit_tensors(two[1], lambda s: {k: v for k, v in s.items() if not k.startswith(PREFIX)})
    refuses(two, "only the first has .*q_proj.lora_A")
    refuses(two[::-1], "only the second has .*q_proj.lora_A")


def test_convolutions(two: tuple[str, str]) -> None:
    convolution = {
        "base_model.model.conv.lora_A.weight": torch.ones(3, 4, 2, 2),
        "base_model.model.conv.lora_B.weight": torch.ones(5, 3, 1, 1),
    }
    for path in two:
        edit_tensors(path, lambda state: state | convolution)
    refuses(two, "not of convolutions")


def test_shapes_that_differ(two: tuple[str, str]) -> None:
    key = f"{PREFIX}lora_B.weight"
    edit_tensors(two[1], lambda state: state | {key: torch.ones(11, 3)})
    refuses(two, r"shape \[12, 3\] in the first and \[11, 3\] in the second")


def test_ranks_that_differ_within_a_pair(two: tuple[str, str]) -> None:
    key = f"{PREFIX}lora_B.weight"
    for path in two:
        edit_tensors(path, lambda state: state | {key: torch.ones(12, 2)})
    refuses(two, "have different ranks")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_values_that_are_not_finite(two: tuple[str, str], value: float, which: int) -> None:
    key = f"{PREFIX}lora_B.weight"
    edit_tensors(two[which], lambda s: s | {key: s[key].index_fill(0, torch.tensor(2), value)})
    refuses(two, "NaN or infinity")
    refuses(two, "NaN or infinity", weight=1.0)


def test_values_too_large_for_their_dtype(tmp_path: Path) -> None:
    big = {key: torch.full_like(tensor, 6e4) for key, tensor in draw(1).items()}
    big = {key: tensor.to(torch.float16) for key, tensor in big.items()}
    path = save(tmp_path / "big", big)
    refuses((path, path), "too large for torch.float16")


def test_whole_numbers(two: tuple[str, str]) -> None:
    for path in two:
        edit_tensors(
            path, lambda state: {key: value.to(torch.int8) for key, value in state.items()}
        )
    refuses(two, "torch.int8")


def test_files_missing_or_damaged(two: tuple[str, str]) -> None:
    (Path(two[0]) / WEIGHTS).write_bytes(b"no tensors")
    refuses(two, "is damaged")
    (Path(two[0]) / WEIGHTS).unlink()
    refuses(two, f"has no {WEIGHTS}")
    shutil.rmtree(two[0])
    refuses(two, "does not exist")


def test_never_over_its_own_sources(two: tuple[str, str]) -> None:
    before = [bytes_of(path) for path in two]
    for path in two:
        with pytest.raises(ValueError, match="overwrite"):
            interpolate_adapters(*two, 0.5, path + "/")
    assert before == [bytes_of(path) for path in two]
