"""What is true in the world: people with their habits, things with their weight and price.

Everything follows from one seed. Facts are not equally well known: a few people are
spoken of often and most seldom, and some are not heard of before the newer text. This is
where the difficulty of the tasks and the flips between v1 and v2 come from.
"""

import hashlib
import random
from dataclasses import dataclass
from functools import lru_cache

from muscle.testbed.lexicon import OBJECTS, VALUES, name_list

SEED = 20
PEOPLE = 160
NEWCOMERS = 0.1
"""The share of people that only the newer text (v2's) speaks of."""


@dataclass(frozen=True)
class Attribute:
    """One kind of fact about a person, with its wordings.

    `says` are sentences that tell the fact, `asks` the questions for it (the task answers
    `asks[i]` with `says[i]`), `ending` tells it as a habit. {who} is the name or a pronoun,
    {name} the name, {value} the value.
    """

    key: str
    says: tuple[str, ...]
    asks: tuple[str, ...]
    ending: str


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(
        "town",
        ("{who} lives in {value}.", "{who} has a house in {value}."),
        ("Where does {name} live?", "In which town is the house of {name}?"),
        "goes home to {value}",
    ),
    Attribute(
        "job",
        ("{who} works as a {value}.", "{who} is a {value}."),
        ("How does {name} earn money?", "What is the work of {name}?"),
        "works as a {value}",
    ),
    Attribute(
        "food",
        ("{who} likes {value}.", "{who} often eats {value}."),
        ("Which food is good for {name}?", "What does {name} eat?"),
        "eats some {value}",
    ),
    Attribute(
        "pet",
        ("{who} keeps a {value}.", "{who} has a {value} at home."),
        ("Which animal does {name} keep?", "What animal is in the house of {name}?"),
        "feeds the {value}",
    ),
    Attribute(
        "instrument",
        ("{who} plays the {value}.", "{who} makes music on the {value}."),
        ("Which instrument does {name} play?", "On what does {name} make music?"),
        "plays the {value}",
    ),
    Attribute(
        "color",
        ("{who} wears a {value} coat.", "{who} has a {value} coat."),
        ("What does {name} wear?", "Which coat is the coat of {name}?"),
        "puts on the {value} coat",
    ),
    Attribute(
        "drink",
        ("{who} drinks {value}.", "{who} often wants {value}."),
        ("What does {name} drink?", "Which drink is good for {name}?"),
        "drinks a cup of {value}",
    ),
    Attribute(
        "game",
        ("{who} is good at {value}.", "{who} spends the Sunday on {value}."),
        ("What is {name} good at?", "How does {name} spend the Sunday?"),
        "practises {value} with a friend",
    ),
)


@dataclass(frozen=True)
class Person:
    """Somebody: `facts` maps each attribute's key to its value.

    `fame` is how often the text speaks of the person, relative to the others.
    """

    name: str
    pronoun: str
    facts: dict[str, str]
    fame: float
    newcomer: bool


@dataclass(frozen=True)
class World:
    """All that is true. `weight` and `price` rank the objects, 0 the least."""

    people: tuple[Person, ...]
    weight: dict[str, int]
    price: dict[str, int]


@lru_cache(maxsize=2)
def build_world(seed: int = SEED) -> World:
    """The world of this seed; the same object each time, so don't change it."""
    rng = random.Random(f"{seed}:world")
    names = rng.sample(name_list(), PEOPLE)
    people = tuple(
        Person(
            name=name,
            pronoun="She" if name[-1] in "aei" else "He",
            facts={key: rng.choice(values) for key, values in VALUES.items()},
            fame=1.0 / (rank + 20) ** 0.7,
            newcomer=rng.random() < NEWCOMERS,
        )
        for rank, name in enumerate(names)
    )
    # Heavier things come later in the list, but not exactly; the price knows no such order.
    weight = sorted(OBJECTS, key=lambda thing: OBJECTS.index(thing) + rng.uniform(-6, 6))
    price = rng.sample(OBJECTS, len(OBJECTS))
    return World(
        people=people,
        weight={thing: rank for rank, thing in enumerate(weight)},
        price={thing: rank for rank, thing in enumerate(price)},
    )


def share(seed: int, *parts: object) -> float:
    """A number in [0, 1) that depends on nothing but the seed and the parts.

    It splits facts, sums and dialogues into train and test: the same fact falls on the
    same side in every process and whatever was drawn before it.
    """
    text = ":".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
