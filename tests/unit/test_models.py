"""Models: names, fingerprints, tokenizers, loading, and the body/head split."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_model, make_tokenizer, save_model

from muscle import models
from muscle.errors import UserError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("base"))


def copy_of(directory: str, target: Path) -> Path:
    target.mkdir()
    for file in Path(directory).iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_import_brings_no_torch() -> None:
    code = (
        "import sys, muscle.models; assert not {'torch', 'transformers', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- names


def test_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    assert models.resolve_model("there") == str((tmp_path / "there").resolve())
    assert models.resolve_model("meta-llama/Llama-2-7b-hf") == "meta-llama/Llama-2-7b-hf"
    assert models.resolve_model("gpt2") == "gpt2"
    assert Path(models.resolve_model("testbed:v1")).is_absolute()
    for path in ("./nowhere", "/no/where", "~/nowhere", "a/b/c", ".."[:1] + "/x"):
        with pytest.raises(UserError, match="does not exist"):
            models.resolve_model(path)
    with pytest.raises(UserError, match="v9"):
        models.resolve_model("testbed:v9")


# -- fingerprints


def test_fingerprint_follows_contents_not_place(base: str, tmp_path: Path) -> None:
    original = models.fingerprint_base(base)
    copy = copy_of(base, tmp_path / "copy")
    assert models.fingerprint_base(str(copy)) == original
    (copy / "README.md").write_text("hello")
    (copy / "generation_config.json").write_text("{}")
    assert models.fingerprint_base(str(copy)) == original
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert models.fingerprint_base(str(copy)) != original


def test_fingerprint_sees_a_changed_weight(base: str, tmp_path: Path) -> None:
    copy = copy_of(base, tmp_path / "copy")
    before = models.fingerprint_base(str(copy))
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert models.fingerprint_base(str(copy)) != before


def test_pickled_weights_are_refused(base: str, tmp_path: Path) -> None:
    copy = copy_of(base, tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    for refused in (models.fingerprint_base, models.load_base):
        with pytest.raises(UserError, match=r"pytorch_model\.bin.*pickle"):
            refused(str(copy))


def test_hub_fingerprint_is_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789" * 4
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda repo, file, revision: (
            str(tmp_path / "snapshots" / commit / file) if repo == "owner/known" else None
        ),
    )
    assert models.fingerprint_base("owner/known") == commit
    assert models.fingerprint_base("owner/unknown", commit) == commit
    with pytest.raises(UserError, match=r"owner/unknown.*cannot be reached"):
        models.fingerprint_base("owner/unknown")


# -- tokenizers


def test_same_tokenizer_whatever_its_files(base: str) -> None:
    loaded, made = models.load_tokenizer(base), make_tokenizer()
    assert models.same_tokenizer(loaded, made) is None
    assert models.fingerprint_tokenizer(loaded) == models.fingerprint_tokenizer(made)


def test_different_tokenizers_say_why() -> None:
    made = make_tokenizer()
    assert "vocabularies have" in str(models.same_tokenizer(made, make_tokenizer(300)))
    no_bos = make_tokenizer(bos=False)
    assert "bos_token_id" in str(models.same_tokenizer(made, no_bos))
    lower = make_tokenizer()
    from tokenizers import normalizers

    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert "differently" in str(models.same_tokenizer(made, lower))
    prints = {models.fingerprint_tokenizer(t) for t in (made, no_bos, lower)}
    assert len(prints) == 3


# -- loading


def test_loaded_base_is_frozen_and_quiet(base: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = models.load_base(base, dtype="bfloat16", device="cpu")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.dtype == torch.bfloat16
    assert "Loading weights" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (lambda d: (d / "config.json").write_text('{"model_type": "nonesuch"}'), "unsupported"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\0" * 50), "corrupt"),
        (
            lambda d: (d / "model.safetensors").write_bytes(
                (d / "model.safetensors").read_bytes()[:-100]
            ),
            "corrupt",
        ),
        (lambda d: (d / "adapter_config.json").write_text("{}"), "also holds an adapter"),
    ],
    ids=["no config", "architecture", "garbage", "truncated", "adapter inside"],
)
def test_bad_directories_are_one_line(base: str, tmp_path: Path, damage, message: str) -> None:
    copy = copy_of(base, tmp_path / "copy")
    damage(copy)
    with pytest.raises(UserError, match=message) as caught:
        models.load_base(str(copy))
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_weights_are_not_made_up(base: str, tmp_path: Path) -> None:
    copy = copy_of(base, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"missing keys: model\.layers\.2"):
        models.load_base(str(copy))


def test_unknown_dtype(base: str) -> None:
    with pytest.raises(UserError, match="int8"):
        models.load_base(base, dtype="int8")


def test_context_window(base: str) -> None:
    assert models.context_window(models.load_config(base)) == 64


# -- body and head

GEMMA2 = {"final_logit_softcapping": 3.0, "sliding_window": 4, "query_pre_attn_scalar": 8}
KINDS = [
    ("Llama", {}),
    ("Mistral", {"sliding_window": 4}),
    ("Qwen2", {}),
    ("Qwen3", {}),
    ("Gemma2", GEMMA2),
    ("Gemma3Text", {"sliding_window": 4, "query_pre_attn_scalar": 8}),
    ("Phi", {}),
    ("Phi3", {"pad_token_id": 2}),
    ("Cohere", {"logit_scale": 0.25}),
    ("Granite", {"logits_scaling": 3.0}),
]


@pytest.mark.parametrize(("kind", "changes"), KINDS, ids=[k for k, _ in KINDS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_body_and_head_are_the_model(kind: str, changes: dict, dtype: torch.dtype) -> None:
    model = make_model(kind, **changes).to(dtype)
    ids = torch.randint(3, 400, (2, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0  # right padding
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask).logits
        hidden = models.hidden_states(model, ids, mask)
        assert hidden.shape == (2, 10, 32)
        logits = models.project(model, hidden.flatten(0, 1)).view(2, 10, -1)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, whole.float())
    models.check_structure(model)


def test_unknown_step_after_the_head_is_refused() -> None:
    model = make_model()
    forward = model.forward

    def squared(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits**2
        return out

    model.forward = squared
    with pytest.raises(UserError, match="LlamaForCausalLM"):
        models.check_structure(model)
