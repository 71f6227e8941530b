"""What `muscle plan` says of memory against what training steps really take.

    python benchmarks/memory.py                    # CPU: growth of the resident set
    python benchmarks/memory.py --device cuda      # torch.cuda.max_memory_allocated

Each case is a process of its own: random models, an adapter, two updates of the real
student and `PlainEngine`. Prints planned / measured; no data, no network.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import record

SHAPES: dict[str, dict[str, Any]] = {
    # activations dominate
    "narrow": {"hidden": 128, "layers": 8, "inner": 352, "heads": 4, "keys": 2, "words": 896},
    "mid": {"hidden": 512, "layers": 8, "inner": 1408, "heads": 8, "keys": 8, "words": 4096},
    # weights dominate
    "wide": {"hidden": 1024, "layers": 12, "inner": 2816, "heads": 16, "keys": 4, "words": 8192},
    # logits count
    "words": {"hidden": 256, "layers": 4, "inner": 704, "heads": 4, "keys": 4, "words": 32000},
    # what runs before the baseline is taken
    "least": {"hidden": 16, "layers": 1, "inner": 16, "heads": 2, "keys": 2, "words": 64},
    # on a GPU only
    "7b": {"hidden": 4096, "layers": 32, "inner": 11008, "heads": 32, "keys": 32, "words": 32000},
}
LAYERS_OF = {"Llama": "LlamaConfig", "Qwen2": "Qwen2Config", "Phi": "PhiConfig"}


def cases(device: str) -> list[dict[str, Any]]:
    """What is run: shape, architecture, batch, dtype, checkpointing, and what is trained."""
    plain = {"kind": "Llama", "dtype": "float32", "checkpointing": False, "role": "new", "rank": 16}
    found = [
        {"shape": "narrow", "rows": 16, "length": 256},
        {"shape": "narrow", "rows": 16, "length": 256, "checkpointing": True},
        {"shape": "mid", "rows": 8, "length": 256},
        {"shape": "mid", "rows": 8, "length": 256, "dtype": "bfloat16"},
        {"shape": "mid", "rows": 8, "length": 256, "checkpointing": True},
        {"shape": "mid", "rows": 8, "length": 256, "kind": "Phi"},
        {"shape": "mid", "rows": 8, "length": 256, "kind": "Qwen2", "rank": 64},
        {"shape": "wide", "rows": 2, "length": 128},
        {"shape": "wide", "rows": 2, "length": 128, "rank": 128},
        {"shape": "wide", "rows": 2, "length": 128, "checkpointing": True},
        {"shape": "words", "rows": 8, "length": 128},
        {"shape": "mid", "rows": 8, "length": 256, "role": "compat"},
        {"shape": "wide", "rows": 2, "length": 128, "role": "compat"},
    ]
    if device == "cuda":
        big = {"shape": "7b", "dtype": "bfloat16", "rank": 128, "length": 512}
        found += [
            {**big, "rows": 4},
            {**big, "rows": 16, "checkpointing": True},
            {**big, "rows": 16, "checkpointing": True, "role": "compat"},
        ]
    return [plain | case for case in found]


def hf_config(case: dict[str, Any]) -> Any:
    """The transformers config of a case."""
    import transformers

    shape = SHAPES[case["shape"]]
    keys = shape["heads"] if case["kind"] == "Phi" else shape["keys"]
    return getattr(transformers, LAYERS_OF[case["kind"]])(
        hidden_size=shape["hidden"],
        intermediate_size=shape["inner"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=keys,
        vocab_size=shape["words"],
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )


def planned(case: dict[str, Any], device: str) -> dict[str, float]:
    """Bytes by part, as the plan reckons a training with `PlainEngine`."""
    from muscle.config import AdapterConfig, CompatibilityConfig
    from muscle.planning.memory import Sharding, logit_bytes, training_memory
    from muscle.planning.meta import meta_model, trace_training

    settings = AdapterConfig(r=case["rank"], alpha=case["rank"])
    model = meta_model(hf_config(case), settings, case["dtype"], True, case["kind"])
    peaks = trace_training(model, case["rows"], case["length"], case["checkpointing"])
    scored = case["rows"] * (case["length"] - 1)
    compat = case["role"] == "compat"
    loss = CompatibilityConfig(level="token") if compat else None
    itemsize = 4 if case["dtype"] == "float32" else 2
    memory = training_memory(
        model,
        Sharding(stage=0, workers=1),
        peaks,
        logit_bytes(scored, model.vocabulary, case["dtype"], device, loss),
        device,
        teacher=4.0 * model.adapter if compat else 0.0,
        old_teacher=model.weight_bytes + 4.0 * model.adapter if compat else 0.0,
        signals=float((4 if compat else 2) * scored * model.hidden * itemsize),
    )
    return {
        "weights": memory.weights,
        "adapter": memory.adapter,
        "optimizer": memory.optimizer,
        "gradients": memory.gradients,
        "activations": memory.activations,
        "logits": memory.logits,
        "old_teacher": memory.old_teacher,
        "total": memory.total - memory.runtime,
    }


def measured(case: dict[str, Any], device: str) -> dict[str, Any]:
    """Peak bytes of two updates above what the process held before there was a model."""
    train(case | {"shape": "least", "rows": 2, "length": 8}, device)  # what libraries load
    baseline = start_measuring(device)
    train(case, device)
    return {"bytes": peak(device) - baseline}


def train(case: dict[str, Any], device: str) -> None:
    """Two updates: the optimizer's moments are there from the second on."""
    import torch

    from muscle.config import AdapterConfig, CompatibilityConfig, TrainingConfig
    from muscle.models import new_adapter
    from muscle.training.engine import PlainEngine
    from muscle.training.student import TEACHER, Student, Teachers

    torch.manual_seed(0)
    rank = AdapterConfig(r=case["rank"], alpha=case["rank"])
    compat = case["role"] == "compat"
    model = new_adapter(random_base(case, device), rank, 0, "new")
    names: tuple[str, ...] = ()
    old = None
    if compat:
        names = ("old", "new")
        new_adapter(model, rank, 1, TEACHER)
        model.set_adapter("new")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".new." in name)
        old = new_adapter(random_base(case, device), rank, 2, TEACHER)
        old.requires_grad_(False).eval()
    if case["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    loss = CompatibilityConfig(level="token") if compat else None
    student = Student(model, "new", Teachers(names, old), loss)
    engine = PlainEngine(student, TrainingConfig(), device)
    batch = random_batch(case, device)
    for _ in range(2):
        student.training_mode()
        sums = engine.forward(batch)
        engine.backward(sums.loss / len(batch.gold), last=True)
        engine.step(1e-4)


def random_base(case: dict[str, Any], device: str) -> Any:
    """A frozen model of random weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            hf_config(case), dtype=getattr(torch, case["dtype"])
        )
    return model.requires_grad_(False).eval()


def random_batch(case: dict[str, Any], device: str) -> Any:
    """[rows, length] random tokens, all but one in the loss."""
    import torch

    from muscle.models.sequences import Batch

    ids = torch.randint(4, SHAPES[case["shape"]]["words"], (case["rows"], case["length"]))
    mask = torch.ones_like(ids)
    mask[-1, -1] = 0  # one padded token: ragged rows have a mask
    scored = mask[:, 1:].bool()
    rows = torch.arange(case["rows"])[:, None].expand_as(scored)[scored]
    return Batch(ids, mask, scored, ids[:, 1:][scored], rows).to(device)


def start_measuring(device: str) -> int:
    """What is held now; the peak counts from here."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    return _status("VmRSS")


def peak(device: str) -> int:
    """The most that was held since."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def in_process(case: dict[str, Any], device: str) -> dict[str, Any]:
    """`measured` in a process of its own."""
    # Freed memory goes back at once, or the peak would be that of the allocator's habits.
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
    }
    words = [sys.executable, __file__, "--device", device, "--case", json.dumps(case)]
    run = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if run.returncode:
        raise SystemExit(f"{case}: {run.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--name", help="of the result file; default memory-DEVICE")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measured(json.loads(arguments.case), arguments.device)))
        return
    rows = []
    for case in cases(arguments.device):
        expected = planned(case, arguments.device)
        found = in_process(case, arguments.device)["bytes"]
        ratio = expected["total"] / found
        result = {"planned": expected, "measured": found, "planned_over_measured": ratio}
        rows.append({**case, **result})
        shown = " ".join(str(value) for value in case.values())
        print(f"{ratio:5.2f}  {expected['total'] / 2**20:8.0f} / {found / 2**20:.0f} MiB  {shown}")
    ratios = [row["planned_over_measured"] for row in rows]
    print(f"planned / measured from {min(ratios):.2f} to {max(ratios):.2f}")
    path = record.write_result(arguments.name or f"memory-{arguments.device}", {"cases": rows})
    print(path)


if __name__ == "__main__":
    main()
