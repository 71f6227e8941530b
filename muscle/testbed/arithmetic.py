"""The arithmetic task: sums, differences and both in a row, in words, exact match.

"sixty one with nine more is" asks for "seventy". Which numbers stand together decides the
split (`split_of_problem`), whatever story they are told in: a test sum is in no training
example and in no pretraining text. What is hard is what is hard for people, carrying and
borrowing, and two steps more than one.
"""

import random
from dataclasses import dataclass

from muscle.testbed.lexicon import GOODS, number_words
from muscle.testbed.world import build_world, share

KINDS = ("plus", "minus", "both")
KIND_SHARES = (0.4, 0.4, 0.2)
LARGEST = 99
SMALL, ROUND = 0.6, 0.2
"""How often the second number is below ten, or a round one; else it is any."""

Row = dict[str, object]

QUESTIONS: dict[str, tuple[str, ...]] = {
    "plus": (
        "{a} with {b} more is",
        "{name} has {a} {goods} and buys {b} more, now there are",
    ),
    "minus": (
        "{a} without {b} is",
        "{name} has {a} {goods} and sells {b}, now there are",
    ),
    "both": (
        "{a} with {b} more without {c} is",
        "{name} has {a} {goods}, buys {b} more and sells {c}, now there are",
    ),
}
"""Beginnings that the answer ends: models this small can't carry a sum over "Answer:"."""


@dataclass(frozen=True)
class Problem:
    """a + b, a - b or a + b - c, by kind; c is 0 where there is none."""

    kind: str
    a: int
    b: int
    c: int = 0

    @property
    def result(self) -> int:
        """The right answer, at least 0."""
        return self.a - self.b if self.kind == "minus" else self.a + self.b - self.c

    def words(self) -> dict[str, str]:
        """The numbers in words, for the templates."""
        return {
            "a": number_words(self.a),
            "b": number_words(self.b),
            "c": number_words(self.c),
            "result": number_words(self.result),
        }


def draw_problem(rng: random.Random) -> Problem:
    """A random problem whose numbers and result lie between 0 and 99."""
    while True:
        kind = rng.choices(KINDS, KIND_SHARES)[0]
        size = rng.random()
        a, b = rng.randint(2, LARGEST), rng.randint(2, LARGEST)
        if size < SMALL:
            b = rng.randint(2, 9)
        elif size < SMALL + ROUND:
            b = 10 * rng.randint(1, 9)
        problem = Problem(kind, a, b, rng.randint(1, 9) if kind == "both" else 0)
        if problem.result >= 0 and a + (b if kind != "minus" else 0) <= LARGEST:
            return problem


def split_of_problem(seed: int, problem: Problem) -> str:
    """ "test", "train" or "text" (pretraining): the one place where it may stand."""
    side = share(seed, "problem", problem.kind, problem.a, problem.b, problem.c)
    return "test" if side < 0.2 else "train" if side < 0.4 else "text"


def draw_problem_of(rng: random.Random, seed: int, split: str) -> Problem:
    """A random problem that belongs to this split."""
    while True:
        problem = draw_problem(rng)
        if split_of_problem(seed, problem) == split:
            return problem


def arithmetic_rows(seed: int, split: str, count: int) -> list[Row]:
    """`count` problems of a split: id, question, answer (a number in words).

    No question text comes twice.
    """
    people = build_world(seed).people
    rng = random.Random(f"{seed}:arithmetic:{split}")
    rows: list[Row] = []
    seen: set[str] = set()
    while len(rows) < count:
        problem = draw_problem_of(rng, seed, split)
        words = problem.words()
        question = rng.choice(QUESTIONS[problem.kind]).format(
            name=rng.choice(people).name, goods=rng.choice(GOODS), **words
        )
        if question not in seen:
            seen.add(question)
            identity = f"arithmetic-{split}-{len(rows):05d}-{problem.kind}"
            rows.append({"id": identity, "question": question, "answer": words["result"]})
    return rows
