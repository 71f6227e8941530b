"""`muscle check-adapter`: real PEFT adapters, with and without what vLLM doesn't serve."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_model, save_model

from muscle.cli import main
from muscle.errors import UserError
from muscle.release import Serving, check_serving

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Save = Callable[..., str]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """`save(r=…, …)`: an adapter that PEFT itself made and saved, with any of its settings."""
    from peft import LoraConfig, get_peft_model

    def made(change: Callable[[Any], None] | None = None, **settings: Any) -> str:
        given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **settings}
        model = get_peft_model(make_model(), LoraConfig(task_type="CAUSAL_LM", **given))
        if change is not None:
            change(model)
        folder = tmp_path / f"adapter-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        return str(folder)

    return made


def of(found: Serving, what: str) -> tuple[str, str]:
    """The worst finding of a name: (level, text and mend)."""
    one = next(f for f in found.findings if f.what == what)
    return one.level, f"{one.text}: {one.mend}"


def test_plain_adapters_serve(save: Save) -> None:
    for targets in (["q_proj", "v_proj"], LINEAR, "all-linear", r".*\.(q_proj|up_proj)"):
        found = check_serving(save(target_modules=targets))
        assert found.serves and found.rank == 4 and found.max_lora_rank == 8
        assert {f.level for f in found.findings} == {"ok"}
    assert check_serving(save(r=8), max_rank=8).serves


@pytest.mark.parametrize(
    ("what", "settings", "says"),
    [
        ("use_dora", {"use_dora": True}, "does not load it"),
        ("modules_to_save", {"modules_to_save": ["lm_head"]}, "no whole layers"),
        ("bias", {"bias": "all"}, "does not load biases"),
        ("bias", {"bias": "lora_only"}, "does not load biases"),
        ("lora_bias", {"lora_bias": True}, "does not load biases"),
        ("targets", {"target_modules": ["q_proj", "lm_head"]}, "output head"),
        ("targets", {"target_modules": ["q_proj", "embed_tokens"]}, "embeddings"),
        ("trainable_token_indices", {"trainable_token_indices": [3, 5]}, "token embeddings"),
        ("init_lora_weights", {"init_lora_weights": "pissa"}, "changes the base"),
        ("init_lora_weights", {"init_lora_weights": "olora"}, "changes the base"),
        ("rank_pattern", {"rank_pattern": {"q_proj": 2}}, "another number"),
        ("alpha_pattern", {"alpha_pattern": {"q_proj": 2}}, "another number"),
        ("layer_replication", {"layer_replication": [(0, 2), (0, 2)]}, "leave out"),
        ("alora_invocation_tokens", {"alora_invocation_tokens": [5]}, "leave out"),
        ("rank", {"r": 513}, "above 512"),
    ],
)
def test_what_vllm_does_not_serve(
    save: Save, what: str, settings: dict[str, Any], says: str
) -> None:
    found = check_serving(save(**settings))
    level, text = of(found, what)
    assert not found.serves and level == "fails"
    assert says in text and not text.endswith(": ")


def test_rank_and_the_flag_that_it_needs(save: Save) -> None:
    big = save(r=128)
    assert of(check_serving(big, max_rank=16), "rank") == (
        "fails",
        "rank 128 is above --max-lora-rank 16: serve with --max-lora-rank 128",
    )
    free = check_serving(big)
    assert free.serves and free.max_lora_rank == 128
    assert of(free, "rank")[0] == "warning" and "--max-lora-rank 128" in of(free, "rank")[1]
    assert check_serving(save(r=65), max_rank=128).serves
    assert check_serving(save(r=257)).max_lora_rank == 320
    with pytest.raises(UserError, match="--max-lora-rank is 48: vLLM takes 1, 8, 16"):
        check_serving(big, max_rank=48)


def test_mixed_ranks_of_one_scale_serve_if_the_largest_fits(save: Save) -> None:
    """vLLM has one scale, alpha / r: PEFT's must be that in every layer."""
    patterns = {"rank_pattern": {"down_proj": 32}, "alpha_pattern": {"down_proj": 64}}
    found = check_serving(save(**patterns))
    assert found.serves and found.rank == 32 and found.max_lora_rank == 32
    assert not check_serving(save(**patterns), max_rank=16).serves
    # rsLoRA divides by the root: the same ranks and alphas are two scales then.
    assert not check_serving(save(**patterns, use_rslora=True)).serves
    # A pattern that is an expression can't be told from here: it doesn't pass unseen.
    odd = check_serving(save(alpha_pattern={r"layers\.\d+\.self_attn.*": 2}))
    assert of(odd, "alpha_pattern")[0] == "fails"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"down_proj": 2}},
        {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"down_proj": 4}},
        {"alpha_pattern": {"layers.0.self_attn.q_proj": 2}},
        {"rank_pattern": {"q_proj": 16}, "alpha_pattern": {"q_proj": 16}, "use_rslora": True},
    ],
)
def test_it_serves_where_peft_has_the_one_scale_that_vllm_has(
    save: Save, settings: dict[str, Any]
) -> None:
    """vLLM's own: alpha / r, or alpha / sqrt(r), of the config."""
    scales: set[float] = set()

    def scales_of(model: Any) -> None:
        found = [getattr(module, "scaling", None) for module in model.modules()]
        scales.update(one["default"] for one in found if isinstance(one, dict))

    adapter = save(change=scales_of, **settings)
    vllm = 8 / (2 if settings.get("use_rslora") else 4)
    assert scales and check_serving(adapter).serves == (scales == {vllm})


def test_what_looks_odd_and_serves(save: Save) -> None:
    found = check_serving(
        save(use_rslora=True, layers_to_transform=[1], fan_in_fan_out=False, lora_dropout=0.1)
    )
    assert found.serves
    assert {"use_rslora", "layers_to_transform"} <= {f.what for f in found.findings}


def edit(adapter: str, **changes: Any) -> None:
    """Change fields of the config; ... takes one out."""
    file = Path(adapter) / "adapter_config.json"
    found = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: v for name, v in found.items() if v is not ...}))


def tensors(adapter: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = Path(adapter) / "adapter_model.safetensors"
    found = load_file(file)
    change(found)
    save_file(found, file)


def first(found: dict[str, torch.Tensor]) -> str:
    return sorted(found)[0]


BAD: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "nan": (
        lambda a: tensors(a, lambda t: t[first(t)].view(-1)[-1:].fill_(torch.nan)),
        "values",
        "NaN or infinity",
    ),
    "infinity in bf16": (
        lambda a: tensors(
            a, lambda t: t.update({first(t): torch.full_like(t[first(t)], -torch.inf).bfloat16()})
        ),
        "values",
        "NaN or infinity",
    ),
    "infinity in fp16": (
        lambda a: tensors(
            a, lambda t: t.update({first(t): torch.full_like(t[first(t)], torch.inf).half()})
        ),
        "values",
        "NaN or infinity",
    ),
    "empty": (
        lambda a: tensors(a, lambda t: t.update({first(t): torch.zeros(0, 32)})),
        "shapes",
        "empty",
    ),
    "vector": (
        lambda a: tensors(a, lambda t: t.update({first(t): torch.ones(4)})),
        "shapes",
        "no matrix",
    ),
    "other rank": (lambda a: edit(a, r=2), "shapes", "says rank 2"),
    "half a pair": (
        lambda a: tensors(a, lambda t: t.pop(first(t))),
        "tensors",
        "A or B is missing",
    ),
    "left over": (
        lambda a: tensors(
            a, lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(2)})
        ),
        "tensors",
        "lm_head.weight",
    ),
    "other targets": (lambda a: edit(a, target_modules=["v_proj"]), "targets", "doesn't name"),
    "no tensors": (lambda a: tensors(a, lambda t: t.clear()), "weights", "holds no tensors"),
    "pickle": (
        lambda a: (Path(a) / "adapter_model.safetensors").rename(Path(a) / "adapter_model.bin"),
        "weights",
        "pickle",
    ),
    "cut short": (
        lambda a: (Path(a) / "adapter_model.safetensors").write_bytes(
            (Path(a) / "adapter_model.safetensors").read_bytes()[:-9]
        ),
        "weights",
        "damaged",
    ),
    "no config": (lambda a: (Path(a) / "adapter_config.json").unlink(), "config", "adapter_config"),
    "not json": (lambda a: (Path(a) / "adapter_config.json").write_text("{"), "config", "not JSON"),
    "no alpha": (lambda a: edit(a, lora_alpha=...), "config", "no lora_alpha"),
    "a rank of words": (lambda a: edit(a, r="many"), "config", "'r' is 'many'"),
    "not lora": (lambda a: edit(a, peft_type="IA3"), "type", "IA3"),
    "named head": (
        lambda a: edit(a, modules_to_save=["lm_head"]),
        "modules_to_save",
        "whole layers",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_adapters_fail(save: Save, name: str) -> None:
    adapter = save()
    assert check_serving(adapter).serves
    damage, what, says = BAD[name]
    damage(adapter)
    found = check_serving(adapter)
    level, text = of(found, what)
    assert not found.serves and level == "fails" and says in text and "\n" not in text


def test_unknown_layers_and_types_are_named(save: Save) -> None:
    adapter = save()
    tensors(adapter, lambda t: t.update({k: v.double() for k, v in t.items()}))
    assert of(check_serving(adapter), "dtypes") == (
        "warning",
        "weights are F64: vLLM casts them to its own dtype: save them as float32 or bfloat16",
    )

    def rename(found: dict[str, torch.Tensor]) -> None:
        for key in [*found]:
            found[key.replace("q_proj", "oddly_named")] = found.pop(key)

    tensors(adapter, rename)
    edit(adapter, target_modules=["oddly_named", "down_proj"])
    found = check_serving(adapter)
    assert found.serves and "oddly_named" in of(found, "targets")[1]


def test_an_adapter_of_another_base(save: Save, tmp_path: Path) -> None:
    adapter = save(target_modules=LINEAR)
    mine = save_model(tmp_path / "mine")
    wider = save_model(tmp_path / "wider", hidden_size=40)
    assert check_serving(adapter, base=mine).serves
    level, text = of(check_serving(adapter, base=wider), "base")
    assert level == "fails" and "another base" in text and adapter in text


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["check-adapter", *arguments])
    return int(ended.value.code or 0)


def test_the_command(save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fine, bad = save(), save(use_dora=True, r=32)
    assert command(fine) == 0
    assert "serves in vLLM with --max-lora-rank 8" in capsys.readouterr().out
    assert command(bad, "--max-lora-rank", "16", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["serves"] and found["max_lora_rank"] == 32
    assert {f["what"] for f in found["findings"] if f["level"] == "fails"} >= {"use_dora", "rank"}
    assert command(bad) == 1
    assert "does not serve in vLLM" in capsys.readouterr().out
    assert command(str(tmp_path / "nowhere")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "nowhere" in said


def test_it_starts_without_torch(save: Save) -> None:
    code = (
        "import sys\n"
        "from muscle.release import check_serving\n"
        f"assert check_serving({save()!r}).serves\n"
        "assert not {'torch', 'peft', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
