"""Two chat tasks of the testbed, as a company would have them, and how its bases read chats.

A parcel goes by the heaviest thing in it, which only the world tells, so a model knows it from
its pretraining or learns it here. An order is what two people agree on in the end: by which
desk the thing goes, whether the price came down, whether the time was moved.
`muscle.testbed.company` writes them as files.
"""

import json
import random
from collections.abc import Callable

from muscle.testbed.lexicon import OBJECTS, PLACES, TIMES, number_words
from muscle.testbed.world import World, build_world, share

Row = dict[str, object]

DESKS = ("post", "cart", "ship")

ROUTING = "You route parcels. Say which desk takes the parcel: post, cart or ship."
ORDERS = "You write down an order. Answer with one JSON object: by, cheaper, later."

MARKERS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
"""Special tokens that only the newer base has."""

TEMPLATES = {
    "v1": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'system' %} {{ message['content'] }}\n"
        "{% elif message['role'] == 'user' %} Question: {{ message['content'] }}\n"
        "{% else %} Answer: {{ message['content'] }}{{ eos_token }}\n"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %} Answer:{% endif %}"
    ),
    "v2": (
        "{{ bos_token }}<|system|> It is {{ strftime_now('%d.%m.%Y') }}.<|end|>"
        "{% for message in messages %}"
        "<|{{ message['role'] }}|> {{ message['content'] }}<|end|>"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
}
"""An update may well change how a model is spoken to: markers of its own, another end of a turn, a
date on top."""


def desk_of(world: World, things: list[str]) -> str:
    """The desk that takes a parcel of these things: by the heaviest, in three equal classes."""
    heaviest = max(world.weight[thing] for thing in things)
    return DESKS[heaviest * len(DESKS) // len(OBJECTS)]


def routing_row(rng: random.Random, world: World, seed: int, split: str) -> Row:
    """A customer with one to three things, now and then in two turns of a chat.

    `order` is the set of things: rows that share it are near-copies, however they are worded.
    """
    while True:
        things = rng.sample(OBJECTS, rng.choice((1, 2, 3, 3)))
        key = " ".join(sorted(things))
        # Single things train only: a test parcel asks which of several is the heaviest.
        side = "test" if share(seed, "parcel", key) < 0.5 and len(things) > 1 else "train"
        if side == split:
            break
    listed = " and ".join(f"the {thing}" for thing in things)
    place = rng.choice(PLACES)
    messages = [{"role": "system", "content": ROUTING}]
    if rng.random() < 0.3:
        messages += [
            {"role": "user", "content": f"I have a parcel for the {place}."},
            {"role": "assistant", "content": "What is in it?"},
            {"role": "user", "content": f"In it is {listed}."},
        ]
    else:
        ask = rng.choice(("Please send {} to the {}.", "I want to send {} to the {}."))
        messages.append({"role": "user", "content": ask.format(listed, place)})
    return {
        "messages": messages,
        "gold": desk_of(world, things),
        "things": len(things),
        "to": place,
        "order": key,
    }


def orders_row(rng: random.Random, world: World, seed: int, split: str) -> Row:
    """Two people agree on a thing, its price and a time; the first offer may be refused."""
    while True:
        thing, (time, later) = rng.choice(OBJECTS), rng.sample(TIMES, 2)
        low = rng.randint(2, 60)
        high = low + rng.randint(1, 30)
        if ("test" if share(seed, "order", thing, high, time) < 0.5 else "train") == split:
            break
    haggles, moves = rng.random() < 0.5, rng.random() < 0.4
    said = [rng.choice(("I sell the {} for {} coins.", "The {} costs {} coins."))]
    said[0] = said[0].format(thing, number_words(high))
    if haggles:
        said.append(f"That is too much, I give you {number_words(low)}.")
        said.append("Good, it is yours.")
    said.append(f"I come {time}.")
    if moves:
        said.append(f"I have no time {time}. Is {later} good for you?")
        said.append("Yes, I will be there.")
    return {
        "messages": [
            {"role": "system", "content": ORDERS},
            {"role": "user", "content": " ".join(said)},
        ],
        "gold": {"by": desk_of(world, [thing]), "cheaper": haggles, "later": moves},
        "thing": thing,
    }


def chat_rows(task: str, seed: int, split: str, count: int) -> list[Row]:
    """`count` rows of "routing" or "orders": id, messages, gold and what they can be sliced by.

    No chat comes twice in a split.
    """
    make: Callable[[random.Random, World, int, str], Row]
    make = {"routing": routing_row, "orders": orders_row}[task]
    world, rng = build_world(seed), random.Random(f"{seed}:{task}:{split}")
    rows: list[Row] = []
    seen: set[str] = set()
    while len(rows) < count:
        row = make(rng, world, seed, split)
        text = json.dumps(row["messages"])
        if text not in seen:
            seen.add(text)
            rows.append({"id": f"{task}-{split}-{len(rows):05d}", **row})
    return rows
