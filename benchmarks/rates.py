"""What a GPU reaches at the sizes that matter; see benchmarks/README.md.

Random Llamas in bfloat16, LoRA r 128 on all linear layers, gradient checkpointing. torch,
transformers and peft only.
"""

import sys
import time
from pathlib import Path

import record
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

# Llama 2: (hidden, feed-forward, heads, key heads, layers built: 70B has 80)
SHAPES = {
    "7b": (4096, 11008, 32, 32, 32),
    "13b": (5120, 13824, 40, 40, 40),
    "70b": (8192, 28672, 64, 8, 8),
}
LENGTH, ROWS, TURNS = 128, 64, 7


def measure(shape):
    """Tokens per second of a plain LoRA step and of a forward without gradient."""
    torch.cuda.empty_cache()  # the shape before this one
    hidden, wide, heads, keys, layers = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        base = LlamaForCausalLM(config)
        lora = LoraConfig(r=128, lora_alpha=256, target_modules="all-linear")
        model = get_peft_model(base, lora, autocast_adapter_dtype=False)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])

    def step(ids):
        model(input_ids=ids, labels=ids).loss.backward()
        adam.step()
        adam.zero_grad()

    found = {"layers": layers, "train": timed(step)}
    model.eval()
    with torch.no_grad():
        found["forward"] = timed(lambda ids: base.model(input_ids=ids))
    record.say(f"{shape} {found}")
    return found


def timed(work):
    """Tokens per second, after two unmeasured turns."""
    rates = []
    for _ in range(TURNS):
        ids = torch.randint(9, 9999, (ROWS, LENGTH), device="cuda")
        torch.cuda.synchronize()
        start = time.perf_counter()
        work(ids)
        torch.cuda.synchronize()
        rates.append(ROWS * LENGTH / (time.perf_counter() - start))
    return record.spread(rates[2:])


if __name__ == "__main__":
    found = {shape: measure(shape) for shape in SHAPES}
    result = {"rows": ROWS, "length": LENGTH, "tokens_per_second": found}
    record.write_result("rates-cuda", result, Path(sys.argv[1]))
