"""Adapters: made, saved, attached, switched; and refused when they do not fit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_model, save_model, save_random_adapter

from muscle import models
from muscle.config import AdapterConfig
from muscle.errors import UserError

IDS = torch.arange(3, 23)[None]
SMALL = AdapterConfig(r=2, alpha=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapter(base: str, tmp_path: Path) -> str:
    return save_random_adapter(tmp_path / "adapter", base, seed=1)


def check(adapter: str, base: str, fingerprint: str | None = None) -> None:
    models.check_adapter(adapter, base, fingerprint, models.load_config(base))


# -- making


def test_init_depends_on_the_seed_alone(base: str) -> None:
    def weights(seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        model = models.new_adapter(models.load_base(base), SMALL, seed, "new")
        assert torch.equal(before, torch.get_rng_state())
        return models.adapter_parameters(model, "new")

    first, again, other = weights(0, noise=1), weights(0, noise=2), weights(1, noise=1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
    assert all(not tensor.any() for key, tensor in first.items() if "lora_B" in key)


def test_all_linear_leaves_the_head_and_the_base_alone(base: str) -> None:
    model = models.new_adapter(models.load_base(base), SMALL, 0, "new")
    trainable = {key for key, p in model.named_parameters() if p.requires_grad}
    assert trainable == set(models.adapter_parameters(model, "new"))
    assert len(trainable) == 2 * 7 * 2  # A and B, seven linear layers, two blocks
    assert not any("lm_head" in key for key in trainable)


@pytest.mark.parametrize(
    ("targets", "message"), [(["nonesuch"], "nonesuch"), (["q_proj", "lm_head"], "output head")]
)
def test_bad_targets(base: str, targets: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.new_adapter(models.load_base(base), AdapterConfig(targets=targets), 0, "new")


def test_new_adapter_starts_as_the_base(base: str) -> None:
    plain = models.load_base(base)(IDS).logits
    model = models.new_adapter(models.load_base(base), SMALL, 0, "new")
    assert torch.equal(model(IDS).logits, plain)


# -- saving and loading


def test_plain_peft_reads_what_we_save(base: str, adapter: str) -> None:
    from peft import PeftModel

    names = {p.name for p in Path(adapter).iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json", "muscle.json"}
    ours = models.attach_adapter(models.load_base(base), adapter, "compat")
    theirs = PeftModel.from_pretrained(models.load_base(base), adapter)
    assert torch.equal(ours(IDS).logits, theirs(IDS).logits)
    assert not torch.allclose(ours(IDS).logits, models.load_base(base)(IDS).logits)


def test_same_weights_same_bytes(base: str, adapter: str, tmp_path: Path) -> None:
    model = models.attach_adapter(models.load_base(base), adapter, "x")
    models.save_adapter(model, "x", str(tmp_path / "again"), models.fingerprint_base(base))
    for file in Path(adapter).iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    assert models.fingerprint_adapter(adapter) == models.fingerprint_adapter(
        str(tmp_path / "again")
    )


def test_fingerprint_adapter_ignores_the_base_name(adapter: str) -> None:
    before = models.fingerprint_adapter(adapter)
    edit(adapter, base_model_name_or_path="elsewhere", peft_version="0.0")
    assert models.fingerprint_adapter(adapter) == before
    edit(adapter, lora_alpha=5)
    assert models.fingerprint_adapter(adapter) != before


def test_two_adapters_on_one_base(base: str, adapter: str, tmp_path: Path) -> None:
    other = save_random_adapter(tmp_path / "other", base, seed=2)
    alone = [
        models.attach_adapter(models.load_base(base), path, "x")(IDS).logits
        for path in (adapter, other)
    ]
    state = torch.get_rng_state()
    model = models.attach_adapter(models.load_base(base), adapter, "new")
    model = models.attach_adapter(model, other, "compat", trainable=True)
    assert torch.equal(state, torch.get_rng_state())
    flags = {key: p.requires_grad for key, p in model.named_parameters()}
    assert {k for k, on in flags.items() if on} == set(models.adapter_parameters(model, "compat"))
    for name, expected in [("new", alone[0]), ("compat", alone[1])]:
        with models.using_adapter(model, name):
            assert torch.equal(model(IDS).logits, expected)
    with models.using_adapter(model, None):
        assert torch.equal(model(IDS).logits, models.load_base(base)(IDS).logits)
    assert torch.equal(model(IDS).logits, alone[1])  # compat stays active
    assert flags == {key: p.requires_grad for key, p in model.named_parameters()}


def test_adapter_merges_to_the_same_model(base: str, adapter: str) -> None:
    model = models.attach_adapter(models.load_base(base), adapter, "x")
    expected = model(IDS).logits
    merged = model.merge_and_unload()(IDS).logits
    assert torch.allclose(merged, expected, rtol=1e-4, atol=1e-4)


def test_body_and_head_with_an_adapter(base: str, adapter: str) -> None:
    model = models.attach_adapter(models.load_base(base), adapter, "x")
    logits = models.project(model, models.hidden_states(model, IDS)[0])
    assert torch.equal(logits, model(IDS).logits[0])


def test_adapter_stays_fp32_on_a_bf16_base_unless_told(base: str, adapter: str) -> None:
    for fp32, dtype in [(True, torch.float32), (False, torch.bfloat16)]:
        model = models.attach_adapter(
            models.load_base(base, dtype="bfloat16"), adapter, "x", fp32=fp32
        )
        assert {p.dtype for p in models.adapter_parameters(model, "x").values()} == {dtype}


def test_copied_config(adapter: str) -> None:
    config = models.copy_adapter_config(adapter)
    assert (config.r, config.lora_alpha, config.inference_mode) == (2, 4, False)


# -- refusing


def edit(adapter: str, **changes) -> None:
    file = Path(adapter) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_tensors(adapter: str, change) -> None:
    file = Path(adapter) / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def first(tensors: dict) -> str:
    return sorted(tensors)[0]


def to_bin(adapter: str) -> None:
    weights = Path(adapter) / "adapter_model.safetensors"
    weights.rename(Path(adapter) / "adapter_model.bin")


BAD = {
    "not lora": (lambda a: edit(a, peft_type="IA3"), "IA3, not LoRA"),
    "pickle": (to_bin, r"adapter_model\.bin.*pickle"),
    "corrupt": (
        lambda a: (Path(a) / "adapter_model.safetensors").write_bytes(b"\0" * 99),
        "corrupt",
    ),
    "empty tensor": (
        lambda a: change_tensors(a, lambda t: t.update({first(t): torch.zeros(0)})),
        "is empty",
    ),
    "no tensors": (lambda a: change_tensors(a, lambda t: t.clear()), "no tensors"),
    "tensor missing": (lambda a: change_tensors(a, lambda t: t.pop(first(t))), "1 tensors missing"),
    "tensor left over": (
        lambda a: change_tensors(a, lambda t: t.update({"more": torch.ones(2)})),
        "1 tensors left over",
    ),
    "saved head": (lambda a: edit(a, modules_to_save=["lm_head"]), "modules_to_save"),
    "adapted head": (lambda a: edit(a, target_modules=["q_proj", "lm_head"]), "output head"),
    "bias": (lambda a: edit(a, bias="all"), "biases"),
    "pissa": (lambda a: edit(a, init_lora_weights="pissa"), "pissa"),
    "not json": (lambda a: (Path(a) / "adapter_config.json").write_text("{"), "not JSON"),
    "no config": (lambda a: (Path(a) / "adapter_config.json").unlink(), "no adapter_config.json"),
    "targets absent": (lambda a: edit(a, target_modules=["c_attn"]), "another base"),
    "note damaged": (lambda a: (Path(a) / "muscle.json").write_text("[]"), "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_adapters_are_one_line(name: str, base: str, adapter: str) -> None:
    check(adapter, base, models.fingerprint_base(base))
    damage, message = BAD[name]
    damage(adapter)
    with pytest.raises(UserError, match=message) as caught:
        check(adapter, base, models.fingerprint_base(base))
    assert adapter in str(caught.value) and "\n" not in str(caught.value)


def test_missing_adapter_directory(base: str) -> None:
    with pytest.raises(UserError, match=r"nowhere.*does not exist"):
        check("nowhere", base)


def test_adapter_of_another_base(base: str, adapter: str, tmp_path: Path) -> None:
    wider = save_model(tmp_path / "wider", hidden_size=40)
    with pytest.raises(UserError, match=r"made for another base.*has shape") as caught:
        check(adapter, wider)
    assert base in str(caught.value) and wider in str(caught.value)
    # Same shapes, other weights: only the fingerprint can tell.
    twin = save_model(tmp_path / "twin", seed=9)
    check(adapter, twin)
    with pytest.raises(UserError, match=r"made for another base.*fingerprint"):
        check(adapter, twin, models.fingerprint_base(twin))
    # Fewer layers of the same width: PEFT alone would add empty ones in silence.
    # (On so small a base PEFT writes `all-linear` out layer by layer: name the kinds.)
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    edit(adapter, target_modules=kinds)
    check(adapter, base)
    deeper = save_model(tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(UserError, match="14 tensors missing"):
        check(adapter, deeper)


def test_attaching_notices_a_missing_tensor(base: str, adapter: str) -> None:
    model = models.attach_adapter(models.load_base(base), adapter, "one")
    change_tensors(adapter, lambda t: t.pop(first(t)))
    for onto in (model, models.load_base(base)):
        with pytest.raises(UserError, match="cannot be loaded on this base"):
            models.attach_adapter(onto, adapter, "two")


def test_hub_ids_must_match(base: str, adapter: str) -> None:
    (Path(adapter) / "muscle.json").unlink()
    edit(adapter, base_model_name_or_path="owner/one")
    config = models.load_config(base)
    models.check_adapter(adapter, "owner/one", None, config)
    with pytest.raises(UserError, match=r"owner/one.*owner/two"):
        models.check_adapter(adapter, "owner/two", None, config)
    check(adapter, base)  # a local copy may be of any name


def test_nan_weights_are_refused(base: str, adapter: str) -> None:
    change_tensors(adapter, lambda t: t[first(t)].fill_(float("nan")))
    with pytest.raises(UserError, match="NaN"):
        models.attach_adapter(models.load_base(base), adapter, "x")


def test_empty_tensors_are_not_saved(tmp_path: Path) -> None:
    model = models.new_adapter(make_model(), SMALL, 0, "new")
    key = next(iter(models.adapter_parameters(model, "new")))
    model.get_parameter(key).data = torch.zeros(0)
    with pytest.raises(ValueError, match="gather"):
        models.save_adapter(model, "new", str(tmp_path), "f")
