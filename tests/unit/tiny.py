"""Tiny random models and a small tokenizer, made on the spot, for the model and engine tests."""

from pathlib import Path
from typing import Any

import pytest

TEXTS = [
    "Question: What is the capital of France?\nAnswer: Paris is the capital of France.",
    "The quick brown fox jumps over the lazy dog, and the dog sleeps in the sun.",
    "Summary: they will meet tomorrow at the station.\n\nDialogue: see you tomorrow!",
    "To open a jar, turn the lid; to close it, turn the lid the other way.",
    "naïve café, 12345 + 67 = 12412. Übung macht den Meister.",
]


def make_tokenizer(vocab_size: int = 400, bos: bool = True) -> Any:
    """Byte-level BPE; `<s>` is put before every text if `bos`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TEXTS, trainer)
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
        )
    names = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="</s>", pad_token="<pad>", **names
    )


def tiny_config(kind: str, vocab_size: int = 400, window: int = 64, **changes: Any) -> Any:
    """A config of two layers and 32 dimensions of one of the supported architectures."""
    import transformers

    common = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": window,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "initializer_range": 0.4,  # peaked enough that greedy decoding has no near ties
        "tie_word_embeddings": False,
    }
    return getattr(transformers, f"{kind}Config")(**(common | changes))


def make_model(kind: str = "Llama", seed: int = 0, **changes: Any) -> Any:
    """A random model in fp32, the same one for the same seed."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zeros would hide a forgotten bias
                parameter.data.normal_()
    return model.eval()


def save_model(directory: Path, kind: str = "Llama", seed: int = 0, **changes: Any) -> str:
    """A model directory as on the hub, tokenizer included."""
    make_model(kind, seed, **changes).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return str(directory)


def save_random_adapter(directory: Path, base: str, seed: int, std: float = 0.3) -> str:
    """A LoRA adapter of `base` whose B is not zero."""
    import torch

    from muscle.config import AdapterConfig
    from muscle.models import (
        adapter_parameters,
        fingerprint_base,
        load_base,
        new_adapter,
        save_adapter,
    )

    model = new_adapter(load_base(base), AdapterConfig(r=2, alpha=4), seed, "new")
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(model, "new").values():
        parameter.data.normal_(std=std, generator=generator)
    save_adapter(model, "new", str(directory), fingerprint_base(base))
    return str(directory)


@pytest.mark.parametrize("bos", [True, False])
def test_tokenizer_puts_bos_only_if_asked(bos: bool) -> None:
    assert (make_tokenizer(bos=bos).encode("The fox")[0] == 0) is bos
