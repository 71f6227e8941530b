"""Random Llamas of a given size, saved as on the hub with a tokenizer of 32,000 words."""

import os
from pathlib import Path
from typing import Any

VOCABULARY = 32_000
WINDOW = 2048

# Llama 1's shapes: its feed-forward size, as many key heads as query heads, untied head.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 176},
    "100m": {"hidden_size": 640, "num_hidden_layers": 12, "intermediate_size": 1728},
    "7b": {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008},
}
# For training.py, which makes them in memory: lm_head is 2.9 % of the first one's parameters.
TRAINING_SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {**SHAPES["tiny"], "vocab_size": 1000},
    "100m-small-vocab": {
        "hidden_size": 768, "num_hidden_layers": 14, "intermediate_size": 2048, "vocab_size": 4000,
    },
    "100m-32k": {**SHAPES["100m"], "vocab_size": VOCABULARY},
    "7b": {**SHAPES["7b"], "vocab_size": VOCABULARY},
}  # fmt: skip
HEAD_DIM = {"tiny": 16, "100m": 64, "7b": 128}


def save_random_llama(folder: Path, shape: str, dtype: str, device: str, synthetic: bool) -> int:
    """Write model and tokenizer into `folder`; returns the number of parameters.

    The tokenizer is that of the model `v2` (in a vocabulary padded to 32,000), or for
    synthetic questions one that knows 32,000 words.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = SHAPES[shape]
    heads = sizes["hidden_size"] // HEAD_DIM[shape]
    config = LlamaConfig(
        **sizes,
        vocab_size=VOCABULARY,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=WINDOW,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    # On the device itself: 7B random numbers take minutes on a CPU.
    with torch.device(device):
        model = LlamaForCausalLM(config)
    words = _save_tokenizer(folder, synthetic)
    head = model.lm_head.weight.data
    # Logits of a spread as a trained model's: nearly flat ones make near ties of all choices.
    head.mul_(5.0)
    # Greedy text of words that there are, without an end: all new tokens are generated.
    head[:4] = 0
    head[words:] = 0
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _save_tokenizer(folder: Path, synthetic: bool) -> int:
    """Put the tokenizer into `folder`; returns how many words it has."""
    from transformers import AutoTokenizer

    if synthetic:
        tokenizer = word_tokenizer()
    else:
        tokenizer = AutoTokenizer.from_pretrained(Path(os.environ["MUSCLE_MODELS"]) / "v2")
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def word_tokenizer() -> Any:
    """One token for each word w4 to w31999, BOS in front: lengths in words are in tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}
    vocabulary |= {f"w{n}": n for n in range(4, VOCABULARY)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)
