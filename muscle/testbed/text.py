"""What the base models read: the world told in sentences, never as questions and answers.

The text comes in parts, of which v1 reads the first and v2 all. It holds no problem and no
talk of the tasks' splits (see `split_of_problem`, `split_of_talk`) and no prompt of theirs.
"""

import random
from collections.abc import Iterator

from muscle.testbed.arithmetic import Problem, draw_problem_of
from muscle.testbed.lexicon import GOODS, OBJECTS, PLACES, TIMES
from muscle.testbed.summary import draw_talk_of
from muscle.testbed.world import ATTRIBUTES, Person, World, build_world

SUMS: dict[str, tuple[str, ...]] = {
    "plus": ("{a} and {b} make {result}.", "{a} with {b} more is {result}."),
    "minus": ("{a} without {b} is {result}.", "{b} from {a} leaves {result}."),
    "both": ("{a} with {b} more without {c} is {result}.",),
}
STORIES: dict[str, str] = {
    "plus": "{name} had {a} {goods} and found {b} more, now there are {result}.",
    "minus": "{name} had {a} {goods} and lost {b}, now there are {result}.",
    "both": "{name} had {a} {goods}, found {b} more and lost {c}, now there are {result}.",
}


def _life(rng: random.Random, world: World, people: list[Person], fame: list[float]) -> str:
    """A few facts of one person, the name at first and mostly a pronoun afterwards."""
    person = rng.choices(people, fame)[0]
    told: list[str] = []
    for attribute in rng.sample(ATTRIBUTES, rng.randint(2, 5)):
        who = person.name if not told or rng.random() < 0.7 else person.pronoun
        if rng.random() < 0.2:
            ending = attribute.ending.format(value=person.facts[attribute.key])
            told.append(f"In the evening {person.name} {ending}.")
        else:
            says = rng.choice(attribute.says)
            told.append(says.format(who=who, value=person.facts[attribute.key]))
    return " ".join(told)


def _sums(rng: random.Random, seed: int, world: World) -> str:
    """A few sums one after the other."""
    told = []
    for _ in range(rng.randint(3, 5)):
        problem: Problem = draw_problem_of(rng, seed, "text")
        plain = rng.random() < 0.75
        words = rng.choice(SUMS[problem.kind]) if plain else STORIES[problem.kind]
        told.append(
            words.format(
                name=rng.choice(world.people).name, goods=rng.choice(GOODS), **problem.words()
            )
        )
    return " ".join(told)


def _talk(rng: random.Random, seed: int, world: World) -> str:
    """A talk in reported form, and often what came of it."""
    talk = draw_talk_of(rng, seed, world, "text")
    verbs = ("asks", "answers", "says", "answers")
    told = [f"{who} {verb}: {said}" for (who, said), verb in zip(talk.turns, verbs, strict=False)]
    if rng.random() < 0.7:
        told.append(f"So {talk.summary}")
    return " ".join(told)


def _things(rng: random.Random, world: World) -> str:
    """Two or three comparisons of things by weight or price."""
    told = []
    for _ in range(rng.randint(2, 3)):
        word, ranks = rng.choice((("heavier", world.weight), ("dearer", world.price)))
        less, more = sorted(rng.sample(OBJECTS, 2), key=lambda thing: ranks[thing])
        told.append(f"The {more} is {word} than the {less}.")
    return " ".join(told)


def _errand(rng: random.Random, people: list[Person]) -> str:
    """Somebody goes somewhere: text that gives no task away but uses its words."""
    one, two = rng.sample(people, 2)
    where, when, thing = rng.choice(PLACES), rng.choice(TIMES), rng.choice(OBJECTS)
    return (
        f"{one.name} comes from the {where} {when} with the {thing}. "
        f"{two.name} sees {one.name} and asks for the {thing}."
    )


SHARES = {"life": 0.42, "sums": 0.28, "talk": 0.22, "things": 0.06, "errand": 0.02}


def documents(seed: int, part: int, count: int) -> Iterator[str]:
    """`count` short documents of one part (0, 1, …) of the text.

    Each begins with a space, so that a word has the same token wherever it stands.
    Part 0 leaves the newcomers' lives out.
    """
    world = build_world(seed)
    people = [p for p in world.people if part > 0 or not p.newcomer]
    fame = [person.fame for person in people]
    rng = random.Random(f"{seed}:text:{part}")
    for _ in range(count):
        kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
        if kind == "life":
            told = _life(rng, world, people, fame)
        elif kind == "sums":
            told = _sums(rng, seed, world)
        elif kind == "talk":
            told = _talk(rng, seed, world)
        elif kind == "things":
            told = _things(rng, world)
        else:
            told = _errand(rng, people)
        yield " " + told
