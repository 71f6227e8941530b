"""The multiple-choice task: what is so in the world, four answers, one right.

Three kinds of questions: a fact of a person, a habit (one true ending among three of
other people), the heaviest or dearest of four things. A fact that the test asks for is
asked nowhere in the training split: a model knows it from its pretraining or not at all.
"""

import random

from muscle.testbed.lexicon import OBJECTS, PLACES, TIMES, VALUES
from muscle.testbed.world import ATTRIBUTES, Attribute, Person, World, build_world, share

CHOICES = 4
TEST_FACTS = 0.5
KINDS = ("recall", "habit", "most")
KIND_SHARES = (0.3, 0.2, 0.5)

Row = dict[str, object]


def split_of_fact(seed: int, person: Person, attribute: Attribute) -> str:
    """ "train" or "test": the side on which this fact may be asked for."""
    side = share(seed, "fact", person.name, attribute.key)
    return "test" if side < TEST_FACTS else "train"


def _facts(seed: int, world: World, split: str) -> list[tuple[Person, Attribute]]:
    return [
        (person, attribute)
        for person in world.people
        for attribute in ATTRIBUTES
        if split_of_fact(seed, person, attribute) == split
    ]


def _arrange(rng: random.Random, gold: str, wrong: list[str]) -> tuple[list[str], int]:
    choices = [gold, *wrong]
    rng.shuffle(choices)
    return choices, choices.index(gold)


def recall_question(rng: random.Random, person: Person, attribute: Attribute) -> Row:
    """A fact of one person; the wrong answers are other values of the same attribute."""
    true = person.facts[attribute.key]
    others = [value for value in VALUES[attribute.key] if value != true]
    ask, say = rng.choice(list(zip(attribute.asks, attribute.says, strict=True)))
    choices, gold = _arrange(
        rng,
        say.format(who=person.name, value=true),
        [say.format(who=person.name, value=v) for v in rng.sample(others, CHOICES - 1)],
    )
    return {"question": ask.format(name=person.name), "choices": choices, "gold": gold}


def _scene(rng: random.Random, seed: int, person: Person, split: str) -> str:
    """Where the person comes from and when: a scene that belongs to this split."""
    while True:
        when, where = rng.choice(TIMES), rng.choice(PLACES)
        side = "test" if share(seed, "scene", person.name, when, where) < 0.5 else "train"
        if side == split:
            return f"{person.name} comes from the {where} {when}."


def habit_question(rng: random.Random, person: Person, attribute: Attribute, scene: str) -> Row:
    """What happens next: one ending fits the person, three are false of him or her."""
    wrong = []
    for other in rng.sample([a for a in ATTRIBUTES if a.key != attribute.key], CHOICES - 1):
        values = [v for v in VALUES[other.key] if v != person.facts[other.key]]
        wrong.append(other.ending.format(value=rng.choice(values)))
    true = attribute.ending.format(value=person.facts[attribute.key])
    choices, gold = _arrange(
        rng, f"{person.name} {true}.", [f"{person.name} {ending}." for ending in wrong]
    )
    return {"question": f"{scene} What is next?", "choices": choices, "gold": gold}


def most_question(rng: random.Random, world: World, things: list[str]) -> Row:
    """The heaviest or the dearest of four things."""
    word, ranks = rng.choice((("heaviest", world.weight), ("dearest", world.price)))
    top = max(things, key=lambda thing: ranks[thing])
    listed = f"the {things[0]}, the {things[1]}, the {things[2]} or the {things[3]}"
    return {
        "question": f"Which is the {word}, {listed}?",
        "choices": [f"the {thing}" for thing in things],
        "gold": things.index(top),
    }


def _things(rng: random.Random, seed: int, split: str) -> list[str]:
    """Four things whose set belongs to this split."""
    while True:
        things = rng.sample(OBJECTS, CHOICES)
        side = "test" if share(seed, "things", *sorted(things)) < 0.5 else "train"
        if side == split:
            return things


def choice_rows(seed: int, split: str, count: int) -> list[Row]:
    """`count` questions of a split: id, question, choices (4 texts), gold (an index).

    No question text comes twice.
    """
    world = build_world(seed)
    rng = random.Random(f"{seed}:choice:{split}")
    facts = _facts(seed, world, split)
    rows: list[Row] = []
    seen: set[str] = set()
    while len(rows) < count:
        kind = rng.choices(KINDS, KIND_SHARES)[0]
        if kind == "most":
            row = most_question(rng, world, _things(rng, seed, split))
        else:
            person, attribute = rng.choice(facts)
            if kind == "recall":
                row = recall_question(rng, person, attribute)
            else:
                row = habit_question(rng, person, attribute, _scene(rng, seed, person, split))
        if row["question"] not in seen:
            seen.add(str(row["question"]))
            rows.append({"id": f"choice-{split}-{len(rows):05d}-{kind}", **row})
    return rows
