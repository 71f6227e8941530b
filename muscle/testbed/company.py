"""A company's own update, to play with: its data, and two versions of a base that read chats.

`python -m muscle.testbed.company DIR` writes

    DIR/routing/train.jsonl, test.jsonl   which desk takes a parcel: post, cart or ship
    DIR/orders/train.jsonl, test.jsonl    what was agreed, as a JSON object

The bases ship as testbed:chat-v1 and testbed:chat-v2 (`make testbed` makes them again). v1 and v2
have never read a brace or a quotation mark, and none can be written that was never read. So
they go on with text that has some: chats in each one's own template, and ledgers in JSON. The
newer one also gets special tokens of its own, as a newer base does.
"""

import argparse
import json
import logging
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from muscle.testbed import model_path
from muscle.testbed.chat import DESKS, MARKERS, TEMPLATES, chat_rows
from muscle.testbed.lexicon import OBJECTS, PLACES, TIMES, number_words
from muscle.testbed.pretrain import BLOCK, EOS, RECIPES, train
from muscle.testbed.summary import draw_talk_of
from muscle.testbed.text import documents
from muscle.testbed.world import SEED, World, build_world

log = logging.getLogger(__name__)

TRAIN_ROWS, TEST_ROWS = 2400, 1500
TEXTS = {"v1": 16_000, "v2": 26_000}
RATE = 2e-3


def ledger(rng: random.Random, world: World) -> str:
    """An entry: what happened, and the same as a JSON object, in words that no task uses."""
    who, thing = rng.choice(world.people).name, rng.choice(OBJECTS)
    coins, when = number_words(rng.randint(2, 91)), rng.choice(TIMES)
    where = rng.choice(PLACES)
    facts = {"thing": thing, "coins": coins, "time": when, "place": where}
    told = (
        f" {who} wants {coins} coins for the {thing} at the {where} {when}."
        if rng.random() < 0.5
        else f" The {thing} is at the {where} {when}, it costs {coins} coins."
    )
    names = rng.sample(list(facts), rng.randint(2, 4))
    return f"{told} {json.dumps({name: facts[name] for name in names})}"


def chat(rng: random.Random, world: World) -> list[dict[str, str]]:
    """A talk as messages, or a ledger's entry asked for."""
    if rng.random() < 0.4:
        told, _, entry = ledger(rng, world).partition(" {")
        return [
            {"role": "user", "content": told.strip()},
            {"role": "assistant", "content": "{" + entry},
        ]
    turns = draw_talk_of(rng, SEED, world, "text").turns
    roles = ("user", "assistant")
    found = [{"role": roles[i % 2], "content": said} for i, (_, said) in enumerate(turns)]
    if rng.random() < 0.3:
        desk = rng.choice(DESKS)
        found = [
            {"role": "system", "content": f"Say {desk}."},
            {"role": "user", "content": "Which desk is it?"},
            {"role": "assistant", "content": desk},
        ]
    return found


def texts(version: str, tokenizer: Any, count: int) -> Iterator[str]:
    """Documents to go on with: chats, ledgers, and what the base has read before."""
    world, rng = build_world(), random.Random(f"{SEED}:company:{version}")
    before = documents(SEED, 0 if version == "v1" else 1, count)
    for old in before:
        kind = rng.random()
        if kind < 0.35:
            yield ledger(rng, world)
        elif kind < 0.7:
            messages = chat(rng, world)
            text = tokenizer.apply_chat_template(
                messages, chat_template=TEMPLATES[version], tokenize=False
            )
            yield str(text).removeprefix(tokenizer.bos_token)
        else:
            yield old


def pretrain_chats(output: str, names: list[str], threads: int = 1) -> None:
    """Makes the named chat models under `output`; the same again with equal libraries."""
    torch.set_num_threads(threads)
    for name in names:
        loss = _write_base(name.removeprefix("chat-"), Path(output) / name)
        log.info("%s: mean loss of the last 50 steps %.4f", name, loss)


def _write_base(version: str, folder: Path) -> float:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = model_path(version)
    tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if version == "v2":
        tokenizer.add_tokens(list(MARKERS), special_tokens=True)
    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, trust_remote_code=False
    )
    assert len(tokenizer) <= model.config.vocab_size, "the markers need rows of the embedding"
    recipe = replace(RECIPES[version], rate=RATE)
    stream: list[int] = []
    for text in texts(version, tokenizer, TEXTS[version]):
        stream += [*tokenizer(text).input_ids, EOS]
    whole = len(stream) // BLOCK
    blocks = torch.tensor(stream[: whole * BLOCK]).view(whole, BLOCK)
    log.info("%s: %d tokens", version, blocks.numel())
    model.train()
    losses = train(model, blocks, recipe)
    tokenizer.chat_template = TEMPLATES[version]
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _forget_place(folder / "tokenizer_config.json")
    return sum(losses[-50:]) / len(losses[-50:])


def _forget_place(file: Path) -> None:
    """Drop what transformers notes of where a tokenizer came from."""
    found = json.loads(file.read_text(encoding="utf-8"))
    kept = {k: v for k, v in found.items() if k not in ("is_local", "local_files_only")}
    file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def write_data(folder: Path, seed: int = SEED) -> list[Path]:
    """Both tasks' files; returns their paths."""
    written = []
    for task in ("routing", "orders"):
        for split, count in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
            path = folder / task / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps(row) + "\n" for row in chat_rows(task, seed, split, count))
            path.write_text("".join(lines), encoding="utf-8")
            written.append(path)
    return written


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a company's data: two tasks of chats.")
    parser.add_argument("folder", type=Path, help="where it goes, e.g. company")
    for path in write_data(parser.parse_args().folder):
        print(path)


if __name__ == "__main__":
    main()
