"""One side of training.py in a process of its own: `python steps.py SPEC.json`.

Builds the side, runs the warm-up, then the timed updates, and writes JSON to `spec["out"]`. All
sides read the same random tokens with the same LoRA and AdamW; a side is one function from
a spec to the loss of a micro-batch.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import HEAD_DIM, TRAINING_SHAPES
from safetensors.torch import save
from sides import peak_rss_mib, resident_mib

from muscle.config import AdapterConfig, CompatibilityConfig
from muscle.losses.distillation import TokenOutputs, cross_entropy_sums, distillation_sums
from muscle.losses.needs import needed_teachers
from muscle.models import head_of, hidden_states, load_base, load_head, new_adapter, using_adapter
from muscle.models.head import Head, save_head
from muscle.models.sequences import Batch
from muscle.teachers.job import TeacherAsk, TeacherJob
from muscle.teachers.shards import write_piece

Micro = Callable[[Batch], torch.Tensor]
"""One micro-batch to its mean loss, ready for backward."""


# -- models and data


def base(spec: dict[str, Any], version: str) -> Any:
    """The frozen base "old" or "new": random weights of a shape, or a directory's."""
    if spec["shape"] is None:
        return load_base(spec[version], dtype=spec["dtype"], device=spec["device"])
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = TRAINING_SHAPES[spec["shape"]]
    heads = sizes["hidden_size"] // HEAD_DIM[spec["shape"].split("-")[0]]
    config = LlamaConfig(
        **sizes,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max(2048, spec["length"]),
        tie_word_embeddings=False,
    )
    torch.manual_seed({"old": 1, "new": 2}[version])
    torch.set_default_dtype(getattr(torch, spec["dtype"]))
    with torch.device(spec["device"]):  # 7B random numbers take minutes on a CPU
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model.requires_grad_(False).eval()


def adapted(spec: dict[str, Any], model: Any, name: str, trains: bool) -> Any:
    """A LoRA adapter on `model` in its dtype; B is random, since at 0 it would be no teacher."""
    config = AdapterConfig(r=spec["rank"], alpha=2 * spec["rank"])
    seed = {"old": 11, "new": 12, "student": 12}[name]
    model = new_adapter(model, config, seed, name, fp32=False)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if f".lora_B.{name}." in key:
            noise = torch.randn(parameter.shape, generator=generator) * 1e-3
            parameter.data.copy_(noise)
    if not trains:
        model.requires_grad_(False)
    return model


def student(spec: dict[str, Any]) -> Any:
    """The new base with the adapter in training."""
    return in_training(spec, adapted(spec, base(spec, "new"), "student", trains=True))


def in_training(spec: dict[str, Any], model: Any) -> Any:
    """In training mode (no dropout anywhere), with gradient checkpointing if it is asked for."""
    if spec["gradient_checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def micro_batches(spec: dict[str, Any], vocabulary: int) -> list[Batch]:
    """The micro-batches of one update, all sequences of one length, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    rows = spec["tokens"] // spec["length"]
    scored = torch.ones(rows, spec["length"] - 1, dtype=torch.bool)
    sequence = torch.arange(rows)[:, None].expand_as(scored)[scored]
    batches = []
    for _ in range(spec["accumulation"]):
        ids = torch.randint(4, vocabulary, (rows, spec["length"]), generator=generator)
        batches.append(Batch(ids, torch.ones_like(ids), scored, ids[:, 1:][scored], sequence))
    return batches


def hidden_of(model: Any, batch: Batch) -> torch.Tensor:
    """Final hidden states at the scored positions [N, D]."""
    states = hidden_states(model, batch.input_ids, batch.attention_mask)
    return states[:, :-1][batch.scored]


# -- the sides


def loss_settings(spec: dict[str, Any]) -> CompatibilityConfig:
    return CompatibilityConfig(mask=spec["mask"], temperature=spec["temperature"])


def compat(spec: dict[str, Any], batches: list[Batch]) -> tuple[Any, Micro]:
    """The compatibility step from cached hidden states, which wait in memory."""
    model = student(spec)
    head = head_of(model)
    heads = {"old": old_head(spec), "new": head}
    settings = loss_settings(spec)
    names = needed_teachers(settings)
    generator = torch.Generator().manual_seed(5)
    for number, batch in enumerate(batches):
        cached = {
            name: torch.randn(len(batch.gold), heads[name].weight.shape[1], generator=generator)
            for name in names
        }
        cached = {name: hidden.to(head.weight.dtype) for name, hidden in cached.items()}
        gold = mixed_gold(spec, model, batch, generator)
        batches[number] = Batch(
            batch.input_ids, batch.attention_mask, batch.scored, gold, batch.sequence, cached
        )

    def micro(batch: Batch) -> torch.Tensor:
        outputs = TokenOutputs(hidden_of(model, batch), head)
        signals = {n: TokenOutputs(h, heads[n]) for n, h in batch.teachers.items()}
        sums = distillation_sums(outputs, signals, batch.gold, batch.sequence, settings)
        return sums.loss / len(batch.gold)

    return model, micro


def old_head(spec: dict[str, Any]) -> Head:
    """The old teacher's head without its body, as a cache keeps it."""
    if spec["old_head"] is not None:
        return load_head(spec["old_head"], spec["device"])
    sizes = TRAINING_SHAPES[spec["shape"]]
    shape = (sizes["vocab_size"], sizes["hidden_size"])
    weight = torch.empty(shape, dtype=getattr(torch, spec["dtype"]), device=spec["device"])
    return Head(weight.normal_(std=0.02))


def mixed_gold(
    spec: dict[str, Any], model: Any, batch: Batch, generator: torch.Generator
) -> torch.Tensor:
    """Gold tokens of which the student gets `wrong_share` wrong: both teachers have rows."""
    with torch.no_grad():
        moved = batch.to(spec["device"])
        logits = head_of(model).logits(hidden_of(model, moved))
        best = logits.argmax(-1).cpu()
    wrong = torch.rand(len(best), generator=generator) < spec["wrong_share"]
    return torch.where(wrong, (best + 1) % logits.shape[1], best)


def online(spec: dict[str, Any], batches: list[Batch]) -> tuple[Any, Micro]:
    """The compatibility step with both teachers' forwards in it; the base is there once."""
    model = adapted(spec, base(spec, "new"), "student", trains=True)
    model = adapted_beside(spec, model)
    old = adapted(spec, base(spec, "old"), "old", trains=False).eval()
    in_training(spec, model)
    settings = loss_settings(spec)

    def micro(batch: Batch) -> torch.Tensor:
        signals = {}
        with torch.no_grad():
            signals["old"] = TokenOutputs(hidden_of(old, batch), head_of(old))
            with using_adapter(model, "new"):
                signals["new"] = TokenOutputs(hidden_of(model, batch), head_of(model))
        outputs = TokenOutputs(hidden_of(model, batch), head_of(model))
        sums = distillation_sums(outputs, signals, batch.gold, batch.sequence, settings)
        return sums.loss / len(batch.gold)

    return model, micro


def adapted_beside(spec: dict[str, Any], model: Any) -> Any:
    """A second, frozen adapter "new" on the student's base; "student" stays the active one."""
    model = adapted(spec, model, "new", trains=True)
    model.set_adapter("student")
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(".student." in key)
    return model


def cross_entropy(spec: dict[str, Any], batches: list[Batch]) -> tuple[Any, Micro]:
    """A plain LoRA step, through our loss."""
    model = student(spec)

    def micro(batch: Batch) -> torch.Tensor:
        outputs = TokenOutputs(hidden_of(model, batch), head_of(model))
        return cross_entropy_sums(outputs, batch.gold, batch.sequence).loss / len(batch.gold)

    return model, micro


def cross_entropy_hf(spec: dict[str, Any], batches: list[Batch]) -> tuple[Any, Micro]:
    """A plain LoRA step, through transformers' own loss."""
    model = student(spec)

    def micro(batch: Batch) -> torch.Tensor:
        return model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            labels=batch.input_ids,
            use_cache=False,
        ).loss

    return model, micro


def naive(spec: dict[str, Any], batches: list[Batch]) -> tuple[Any, Micro]:
    """Three models in memory, full logits of each, both KLs on every token."""
    model = student(spec)
    frozen = {n: adapted(spec, base(spec, n), n, trains=False).eval() for n in ("old", "new")}
    temperature = spec["temperature"]

    def log_probabilities(one: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = batch.input_ids, batch.attention_mask
        logits = one(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        return logits, (logits / temperature).log_softmax(-1)

    def micro(batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            (_, old), (_, new) = (log_probabilities(frozen[n], batch) for n in ("old", "new"))
        logits, mine = log_probabilities(model, batch)
        kl = torch.nn.functional.kl_div
        by_old = kl(mine, old, log_target=True, reduction="none").sum(-1)
        by_new = kl(mine, new, log_target=True, reduction="none").sum(-1)
        wrong = logits.argmax(-1) != batch.input_ids[:, 1:]
        return torch.where(wrong, by_old, by_new).mean()

    return model, micro


SIDES: dict[str, Callable[[dict[str, Any], list[Batch]], tuple[Any, Micro]]] = {
    "compat": compat,
    "online": online,
    "ce": cross_entropy,
    "ce-hf": cross_entropy_hf,
    "naive": naive,
}


def side_of(spec: dict[str, Any]) -> Callable[[dict[str, Any], list[Any]], tuple[Any, Any]]:
    """The function that builds a side."""
    if spec["choices"]:
        import choice_steps

        return choice_steps.SIDES[spec["side"]]
    return SIDES[spec["side"]]


# -- actions


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Warm-up, then `updates` updates against the clock."""
    loaded_libraries(spec)
    before = resident_mib()
    vocabulary = vocabulary_of(spec)
    batches = micro_batches(spec, vocabulary)
    start = time.perf_counter()
    if spec["side"].startswith("trl"):
        from trl_sides import run_trl

        seconds, processor, loss = run_trl(spec, batches)
    else:
        model, micro = side_of(spec)(spec, batches)
        settled(spec)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0)
        seconds, processor = [], []
        for _ in range(spec["warm_up"] + spec["updates"]):
            began, worked = now(spec), time.process_time()
            for batch in batches:
                loss = micro(batch.to(spec["device"]))
                (loss / len(batches)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds.append(now(spec) - began)
            processor.append(time.process_time() - worked)
        loss = loss.item()
    count = spec["updates"] * spec["accumulation"]
    found = {
        "seconds": sum(seconds[spec["warm_up"] :]) / count,
        "cpu_seconds": sum(processor[spec["warm_up"] :]) / count,
        "loss": loss,
        "whole_seconds": time.perf_counter() - start,
        "rss_before_mib": before,
        "peak_rss_mib": peak_rss_mib(),
    }
    if spec["device"] == "cuda":
        found["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def loaded_libraries(spec: dict[str, Any]) -> None:
    """Import what the side needs: libraries are no part of its memory."""
    import peft  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    if spec["side"] == "trl-gkd":
        from trl.experimental.gkd import GKDTrainer  # noqa: F401
    elif spec["side"] == "trl-chunked":
        from trl import DistillationTrainer  # noqa: F401


def settled(spec: dict[str, Any]) -> None:
    """Setting up is done: from here on the peak is counted."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held
    except OSError:
        pass
    if spec["device"] == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def now(spec: dict[str, Any]) -> float:
    """The clock, after all that the device was told."""
    if spec["device"] == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


NO_COUNTS = {"sequences": 0, "tokens": 0, "hidden_size": 0, "data": ""}


def teacher(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds to cache one frozen teacher of a micro-batch: forward, checksum, file and fsync."""
    if spec["choices"]:
        import choice_steps

        return choice_steps.teacher(spec)
    name = spec["teacher"]
    model = adapted(spec, base(spec, name), name, trains=False).eval()
    batches = micro_batches(spec, vocabulary_of(spec))
    ask = TeacherAsk(name, "", str(Path(spec["out"]).parent / "cache"), {})
    job = TeacherJob((), "", spec["dtype"], spec["length"], "all", None)
    seconds = []
    with torch.no_grad():
        for _ in range(spec["warm_up"] + spec["updates"]):
            began = now(spec)
            for number, batch in enumerate(batches):
                hidden = hidden_of(model, batch.to(spec["device"])).cpu()
                write_piece(job, ask, number, save({"hidden": hidden}), NO_COUNTS)
            seconds.append(now(spec) - began)
    timed = seconds[spec["warm_up"] :]
    return {
        "seconds": sum(timed) / len(timed) / spec["accumulation"],
        "bytes_per_token": hidden.shape[1] * hidden.element_size(),
    }


def prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """Sizes, the old teacher's head as a file, and the rate of bare matrix products."""
    if spec["shape"] is None:
        save_head(head_of(base(spec, "old")), spec["old_head"])
        sized = base(spec, "new")
    else:
        sized = base({**spec, "device": "meta"}, "new")
    config = sized.config
    head = sized.get_output_embeddings().weight.numel()
    tied = sized.get_input_embeddings().weight is sized.get_output_embeddings().weight
    total = sum(p.numel() for p in sized.parameters())
    body = total - head * (1 if tied else 2)
    return {
        "parameters": total,
        "head_parameters": head,
        "head_share": head / total,
        "body_parameters": body,
        "lora_parameters": lora_parameters(spec, sized),
        "hidden_size": config.hidden_size,
        "layers": config.num_hidden_layers,
        "matmul_flops": matmul_rate(spec),
    }


def lora_parameters(spec: dict[str, Any], model: Any) -> int:
    """Of an adapter of that rank on every linear layer but the head."""
    head = model.get_output_embeddings()
    linear = (m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
    return sum(spec["rank"] * (m.in_features + m.out_features) for m in linear)


def matmul_rate(spec: dict[str, Any]) -> float:
    """Multiply-adds counted twice, per second: the best of several square products."""
    size = 8192 if spec["device"] == "cuda" else 2048
    a = torch.randn(size, size, device=spec["device"]).to(getattr(torch, spec["dtype"]))
    out = torch.empty_like(a)
    best = float("inf")
    for _ in range(8):
        began = now(spec)
        torch.mm(a, a.t(), out=out)
        best = min(best, now(spec) - began)
    return 2 * size**3 / best


def vocabulary_of(spec: dict[str, Any]) -> int:
    """How many tokens there are."""
    if spec["shape"] is not None:
        return int(TRAINING_SHAPES[spec["shape"]]["vocab_size"])
    from muscle.models import load_config

    return min(int(load_config(spec[version]).vocab_size) for version in ("old", "new"))


def main() -> None:
    """Do the action of the spec."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(spec["threads"])
    result = {"prepare": prepare, "run": run, "teacher": teacher}[spec["action"]](spec)
    Path(spec["out"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
