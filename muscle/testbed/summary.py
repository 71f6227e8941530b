"""The summary task: a short talk between two people, told in one sentence, ROUGE-1.

A summary has to name the right people and things and what came out in the end (the second
time that was proposed, not the first). One scenario needs the world: whoever is invited
home goes to the host's town, which nobody says. People also word the same summary
differently, so that even the best model stays below 1.
"""

import random
from dataclasses import dataclass

from muscle.testbed.lexicon import GOODS, OBJECTS, PLACES, TIMES, VALUES, number_words
from muscle.testbed.world import World, build_world, share

Row = dict[str, object]


@dataclass(frozen=True)
class Scenario:
    """A kind of talk: for each turn the wordings to choose from, a first; then summaries.

    The first summary is the usual one, the others come now and then.
    """

    name: str
    turns: tuple[tuple[str, ...], ...]
    summaries: tuple[str, ...]


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "accept",
        (
            ("Will you come to the {place} {time}?", "Let us go to the {place} {time}."),
            ("Yes, I need some {goods}.", "Good, I want to buy {goods}."),
        ),
        (
            "{b} will go to the {place} with {a} {time} for some {goods}.",
            "{a} and {b} meet at the {place} {time} to buy {goods}.",
        ),
    ),
    Scenario(
        "decline",
        (
            ("Will you come to the {place} {time}?", "Let us go to the {place} {time}."),
            ("No, I have to feed the {pet}.", "Sorry, my {pet} is ill."),
        ),
        (
            "{b} can not go to the {place} with {a} because of the {pet}.",
            "{b} stays at home with the {pet} {time}.",
        ),
    ),
    Scenario(
        "change",
        (
            ("Shall we meet at the {place} {time}?", "Come to the {place} {time}, please."),
            ("I have no time {time}. Is {later} good for you?", "No, I can only come {later}."),
            ("Yes, I will be there.", "Good, then I see you."),
        ),
        (
            "{a} will meet {b} at the {place} {later}.",
            "{a} and {b} can not meet {time}, so they meet {later}.",
        ),
    ),
    Scenario(
        "lost",
        (
            ("I can not find my {thing}.", "Where is my {thing}?"),
            ("I saw it in the {place} {time}.", "It is in the {place}, I saw it {time}."),
        ),
        (
            "{a} lost the {thing} and {b} saw it in the {place}.",
            "{b} tells {a} that the {thing} is in the {place}.",
        ),
    ),
    Scenario(
        "lend",
        (
            ("Can I have your {thing}?", "I need your {thing} for the {place}."),
            ("Yes, but bring it back {time}.", "Take the {thing}, but I need it {time}."),
        ),
        (
            "{b} lends {a} the {thing}, but needs it {time}.",
            "{a} has to bring back the {thing} {time}.",
        ),
    ),
    Scenario(
        "sell",
        (
            ("What does the {thing} cost?", "I want to buy your {thing}."),
            ("It is {high} coins.", "I sell it for {high} coins."),
            ("That is too much, I give you {low}.", "I only have {low} coins."),
            ("Good, it is yours.", "No, then I keep it."),
        ),
        (
            "{a} wants to buy the {thing} from {b} for {low} coins.",
            "{b} asks {a} for {high} coins for the {thing}.",
        ),
    ),
    Scenario(
        "news",
        (
            ("Did you hear of {c}?", "I have news of {c}."),
            ("No, what is it?", "Tell me, please."),
            ("There is a {pet} in the house.", "They sell the {thing} now."),
        ),
        ("{a} tells {b} the news of {c}.", "{a} and {b} speak of {c}."),
    ),
    Scenario(
        "home",
        (
            ("Come to my house {time}!", "Will you be at my house {time}?"),
            ("Yes, and I bring some {food}.", "I will come with {food}."),
        ),
        (
            "{b} will visit {a} in {town} {time} with some {food}.",
            "{b} brings {food} to {a} in {town}.",
        ),
    ),
)

USUAL = 0.7


@dataclass(frozen=True)
class Talk:
    """A talk that took place: (speaker, what is said) for each turn, and its summary."""

    turns: tuple[tuple[str, str], ...]
    summary: str
    scenario: str

    @property
    def dialogue(self) -> str:
        """The talk on one line, "Mira: … Tomas: …"."""
        return " ".join(f"{speaker}: {said}" for speaker, said in self.turns)


def draw_talk(rng: random.Random, world: World) -> Talk:
    """A random talk between two different people."""
    scenario = rng.choice(SCENARIOS)
    host, guest, third = rng.sample(world.people, 3)
    time, later = rng.sample(TIMES, 2)
    low = rng.randint(2, 60)
    slots = {
        "a": host.name, "b": guest.name, "c": third.name, "time": time, "later": later,
        "place": rng.choice(PLACES), "goods": rng.choice(GOODS), "thing": rng.choice(OBJECTS),
        "pet": rng.choice(VALUES["pet"]), "food": rng.choice(VALUES["food"]),
        "town": host.facts["town"], "low": number_words(low),
        "high": number_words(low + rng.randint(1, 30)),
    }  # fmt: skip
    turns = tuple(
        ((host, guest)[index % 2].name, rng.choice(wordings).format(**slots))
        for index, wordings in enumerate(scenario.turns)
    )
    usual = rng.random() < USUAL
    summary = scenario.summaries[0] if usual else rng.choice(scenario.summaries[1:])
    return Talk(turns, summary.format(**slots), scenario.name)


def split_of_talk(seed: int, talk: Talk) -> str:
    """ "test", "train" or "text" (pretraining): the one place where the words may stand."""
    side = share(seed, "talk", talk.dialogue)
    return "test" if side < 0.2 else "train" if side < 0.4 else "text"


def draw_talk_of(rng: random.Random, seed: int, world: World, split: str) -> Talk:
    """A random talk that belongs to this split."""
    while True:
        talk = draw_talk(rng, world)
        if split_of_talk(seed, talk) == split:
            return talk


def summary_rows(seed: int, split: str, count: int) -> list[Row]:
    """`count` talks of a split: id, dialogue (one line), summary (one sentence).

    No dialogue comes twice.
    """
    world = build_world(seed)
    rng = random.Random(f"{seed}:summary:{split}")
    rows: list[Row] = []
    seen: set[str] = set()
    while len(rows) < count:
        talk = draw_talk_of(rng, seed, world, split)
        if talk.dialogue not in seen:
            seen.add(talk.dialogue)
            identity = f"summary-{split}-{len(rows):05d}-{talk.scenario}"
            rows.append({"id": identity, "dialogue": talk.dialogue, "summary": talk.summary})
    return rows
