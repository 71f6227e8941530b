"""A head by itself: the model's own bits, gradients, files, and heads that are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model as random_model

from muscle import models
from muscle.errors import UserError
from muscle.models.head import Head, head_of, load_head, save_head

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {}),
    ("Phi", {}),  # a bias
    ("Gemma2", {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8}),
    ("Cohere", {"logit_scale": 0.25}),
    ("Granite", {"logits_scaling": 3.0}),
]
IDS = torch.arange(3, 23)[None]


def make_model(kind: str = "Llama", **changes: Any) -> Any:
    return random_model(kind, **changes).requires_grad_(False)  # as `load_base` does


def lora(model: Any, **settings: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **settings))


@pytest.mark.parametrize(("kind", "changes"), KINDS, ids=[k for k, _ in KINDS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_logits_are_the_models(kind: str, changes: dict, dtype: torch.dtype) -> None:
    model = make_model(kind, **changes).to(dtype)
    with torch.no_grad():
        hidden = models.hidden_states(model, IDS)[0]
        whole = model(input_ids=IDS).logits[0]
    head = head_of(model)
    logits = head.logits(hidden)
    assert logits.dtype == head.logits_dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(logits, whole.to(logits.dtype))
    assert torch.equal(logits.float(), models.project(model, hidden))
    out = torch.empty_like(logits)
    assert head.logits(hidden, out=out) is out
    assert torch.equal(out, logits)


@pytest.mark.parametrize(("kind", "changes"), KINDS, ids=[k for k, _ in KINDS])
def test_hidden_gradient_is_autograds(kind: str, changes: dict) -> None:
    model = make_model(kind, **changes).double()
    hidden = torch.randn(6, 32, dtype=torch.float64, requires_grad=True)
    module = model.get_output_embeddings()
    logits = models.structure.finish_logits(
        module(hidden), **models.structure.logit_settings(model.config)
    )
    gradient = torch.randn_like(logits)
    logits.backward(gradient)
    head = head_of(model)
    got = head.hidden_gradient(gradient, logits.detach())
    torch.testing.assert_close(got, hidden.grad, rtol=1e-12, atol=1e-12)


def test_head_of_a_peft_model_is_its_bases() -> None:
    model = make_model()
    plain = head_of(model)
    wrapped = head_of(lora(model, target_modules="all-linear"))
    assert wrapped.weight.data_ptr() == plain.weight.data_ptr()
    assert not wrapped.weight.requires_grad


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["adapted", "saved whole"],
)
def test_an_adapted_head_is_refused(settings: dict) -> None:
    with pytest.raises(UserError, match="lm_head, which must be frozen"):
        head_of(lora(make_model(), **settings))


def test_a_head_in_training_is_refused() -> None:
    model = make_model()
    model.lm_head.weight.requires_grad_(True)
    with pytest.raises(UserError, match="lm_head is in training"):
        head_of(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_saved_head_comes_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    path = str(tmp_path / "head.safetensors")
    head = Head(torch.randn(7, 3).to(dtype), torch.randn(7).to(dtype), scale=0.1, cap=30.0)
    save_head(head, path)
    back = load_head(path)
    assert back.weight.dtype == dtype
    assert torch.equal(back.weight, head.weight)
    assert back.bias is not None and torch.equal(back.bias, head.bias)  # type: ignore[arg-type]
    assert (back.scale, back.divisor, back.cap) == (0.1, None, 30.0)
    save_head(Head(torch.randn(3, 7).t()), path)  # a view, without a bias
    assert load_head(path).bias is None


def test_a_missing_or_damaged_head_is_one_line(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "head.safetensors"
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(2, 2)}, other)
    save_head(Head(torch.randn(7, 3)), str(path))
    path.write_bytes(path.read_bytes()[:-10])
    for bad in (tmp_path / "none.safetensors", path, other):
        with pytest.raises(UserError, match=bad.name) as caught:
            load_head(str(bad))
        assert "\n" not in str(caught.value) and "again" in str(caught.value)
