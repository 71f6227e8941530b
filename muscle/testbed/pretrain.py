"""Makes the tokenizer and the base models v1 and v2 again, from nothing but the seed.

v2 differs from v1 as a real update does: the same tokenizer and architecture, more
parameters, and all of the text, of which v1 has read the first part.
"""

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from muscle.testbed.arithmetic import arithmetic_rows
from muscle.testbed.choice import choice_rows
from muscle.testbed.lexicon import ONES, TENS
from muscle.testbed.summary import summary_rows
from muscle.testbed.text import documents
from muscle.testbed.world import SEED

log = logging.getLogger(__name__)

SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")
BOS, EOS, PAD = 1, 2, 3
QUESTION_WORDS = ("hundred", "plus", "minus", "How", "many", "left")
"""Words that questions about numbers use, whether or not the tasks do today."""
BLOCK = 128
WINDOW = 256


@dataclass(frozen=True)
class Recipe:
    """How one base model is made: its shape, its text, its training.

    `documents` counts the documents of part 0, part 1, …; a step takes `batch` blocks of
    `BLOCK` tokens; `rate` is the peak learning rate (warm-up, then cosine to a tenth).
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    documents: tuple[int, ...]
    epochs: int
    batch: int = 8
    rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.01
    seed: int = 0


RECIPES: dict[str, Recipe] = {
    "v1": Recipe(96, 3, 4, 2, 256, documents=(140_000,), epochs=1, seed=1),
    "v2": Recipe(128, 4, 4, 2, 352, documents=(140_000, 90_000), epochs=1, seed=2),
    # Ships with nothing: an older base, from which both others are an update with a real gain.
    "v0": Recipe(96, 3, 4, 2, 256, documents=(80_000,), epochs=1, seed=3),
}


def build_tokenizer(seed: int = SEED) -> Tokenizer:
    """A fast tokenizer: each word of the world is one token, anything else its bytes.

    A byte-level BPE model without merges, whose words are found whole (`ignore_merges`):
    every text can be encoded and comes back the same. BOS is put in front.
    """
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    texts = list(documents(seed, 1, 20_000))
    texts += [f"Question: {r['question']}\nAnswer:" for r in choice_rows(seed, "train", 2000)]
    for row in choice_rows(seed, "train", 2000):
        texts += [f" {choice}" for choice in cast(list[str], row["choices"])]
    texts += [f"Question: {r['question']}" for r in arithmetic_rows(seed, "train", 2000)]
    texts += [f"Dialogue: {r['dialogue']}\nSummary:" for r in summary_rows(seed, "train", 2000)]
    texts += [f" {word}" for word in (*ONES, *TENS[2:], *QUESTION_WORDS)]
    words = {piece for text in texts for piece, _ in split.pre_tokenize_str(text)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*SPECIALS, *alphabet, *sorted(words - set(alphabet))]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={word: index for index, word in enumerate(vocabulary)},
            merges=[],
            ignore_merges=True,
        )
    )
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.pre_tokenizer = split  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


def token_blocks(tokenizer: Tokenizer, seed: int, counts: tuple[int, ...]) -> torch.Tensor:
    """The text of these parts as token ids, [blocks, BLOCK]; documents end with EOS."""
    stream: list[int] = []
    for part, count in enumerate(counts):
        for encoding in tokenizer.encode_batch(list(documents(seed, part, count))):
            stream += [*encoding.ids, EOS]
    whole = len(stream) // BLOCK
    return torch.tensor(stream[: whole * BLOCK]).view(whole, BLOCK)


def build_model(recipe: Recipe, vocabulary: int) -> LlamaForCausalLM:
    """A model with random weights; its embedding is also its output layer."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=math.ceil(vocabulary / 64) * 64,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=WINDOW,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def _rate(recipe: Recipe, step: int, steps: int) -> float:
    if step < recipe.warmup:
        return recipe.rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, steps - recipe.warmup)
    return recipe.rate * (0.55 + 0.45 * math.cos(math.pi * done))


def train(model: LlamaForCausalLM, blocks: torch.Tensor, recipe: Recipe) -> list[float]:
    """Next-token training over `blocks` [blocks, BLOCK]; returns the loss of every step."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    per_epoch = len(blocks) // recipe.batch
    steps = per_epoch * recipe.epochs
    losses: list[float] = []
    began = time.monotonic()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(blocks), generator=generator)
        for batch in order[: per_epoch * recipe.batch].view(per_epoch, recipe.batch):
            for group in optimizer.param_groups:
                group["lr"] = _rate(recipe, len(losses), steps)
            loss = model(input_ids=blocks[batch], labels=blocks[batch]).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            if len(losses) % 100 == 0:
                seconds = (time.monotonic() - began) / len(losses)
                log.info("step %d/%d loss %.3f %.3f s", len(losses), steps, losses[-1], seconds)
    return losses


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, blocks: torch.Tensor) -> float:
    """Mean loss per token (nats) on text that no model has read."""
    model.eval()
    parts = [model(input_ids=part, labels=part).loss.item() for part in blocks.split(64)]
    return sum(parts) / len(parts)


def save(
    model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path, facts: dict[str, Any]
) -> None:
    """Writes model (fp16), tokenizer and `pretraining.json` in Hugging Face format."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    (folder / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n")


def pretrain(output: str, names: list[str], threads: int = 1) -> None:
    """Makes the named base models under `output`; the same again with equal libraries."""
    torch.set_num_threads(threads)
    tokenizer = build_tokenizer()
    # Part 2 is read by no model: what is left over to measure on.
    held_out = token_blocks(tokenizer, SEED, (0, 0, 2000))
    for name in names:
        recipe = RECIPES[name]
        blocks = token_blocks(tokenizer, SEED, recipe.documents)
        model = build_model(recipe, tokenizer.get_vocab_size())
        parameters = sum(p.numel() for p in model.parameters())
        log.info("%s: %d parameters, %d tokens", name, parameters, blocks.numel())
        losses = train(model, blocks, recipe)
        facts = {
            **asdict(recipe),
            "world_seed": SEED,
            "block": BLOCK,
            "parameters": parameters,
            "tokens_of_text": blocks.numel(),
            "tokens_seen": len(losses) * recipe.batch * BLOCK,
            "steps": len(losses),
            "train_loss": round(sum(losses[-50:]) / 50, 4),
            "held_out_loss": round(held_out_loss(model, held_out), 4),
            "torch": torch.__version__.split("+")[0],
        }
        save(model, tokenizer, Path(output) / name, facts)
        log.info("%s: held-out loss %.4f", name, facts["held_out_loss"])
