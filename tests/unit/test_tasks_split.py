"""The one split of the training examples, and what a search holds out before it."""

import re
from collections import Counter
from contextlib import suppress
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscle.errors import UserError
from muscle.tasks import limit_examples, split
from muscle.tasks.split import hold_out
from muscle.types import TrainingExample


def make(count, distinct=None):
    distinct = distinct or count
    return [TrainingExample(str(i), f"q{i % distinct}", " a") for i in range(count)]


def test_it_is_seeded_complete_and_in_order():
    examples = make(100)
    training, validation = split(examples, 0, 0.2)
    assert (len(training), len(validation)) == (80, 20)
    assert sorted(training + validation, key=lambda e: int(e.id)) == examples
    assert validation == sorted(validation, key=lambda e: int(e.id))
    assert (training, validation) == split(examples, 0, 0.2)
    assert validation != split(examples, 1, 0.2)[1]
    # The order of the file does not matter, nor does it on another machine.
    assert {e.id for e in split(examples[::-1], 0, 0.2)[1]} == {e.id for e in validation}
    assert [e.id for e in validation][:4] == EXPECTED_FIRST


EXPECTED_FIRST = ["1", "2", "4", "5"]


def test_equal_examples_stay_together():
    training, validation = split(make(60, distinct=20), 3, 0.25)
    assert len(training) + len(validation) == 60 and len(validation) == 15
    assert not {e.prompt for e in training} & {e.prompt for e in validation}


@pytest.mark.parametrize(
    ("examples", "fraction", "side"),
    [(make(2), 0.1, "validation"), (make(5, distinct=1), 0.2, "training"), (make(2), 0.9, "train")],
)
def test_no_side_may_be_empty(examples, fraction, side):
    with pytest.raises(UserError, match=f"leave no {side}"):
        split(examples, 0, fraction)


def test_limit():
    examples = make(50)
    some = limit_examples(examples, 10, 0)
    assert len(some) == 10 and some == sorted(some, key=lambda e: int(e.id))
    assert some == limit_examples(examples, 10, 0) != limit_examples(examples, 10, 1)
    assert limit_examples(examples, None, 0) == limit_examples(examples, 99, 0) == examples


texts = st.sampled_from("abcdefghij")
some = st.lists(st.tuples(texts, texts), min_size=4, max_size=40).map(
    lambda pairs: [TrainingExample(str(i), q, " " + a) for i, (q, a) in enumerate(pairs)]
)


def groups_of(examples):
    return Counter((e.prompt, e.answer) for e in examples)


@given(examples=some, seed=st.integers(0, 9), fraction=st.floats(0.05, 0.95))
def test_what_a_search_holds_out(examples, seed, fraction):
    """Every example is in one part, equal ones in the same, also after the later split."""
    try:
        rest, a, b = hold_out(examples, seed, fraction)
    except UserError as error:
        assert re.search("leave (none to train on|fewer than two different)", str(error))
        return
    parts = [rest, a, b]
    with suppress(UserError):  # what is left may be too little to split
        parts = [*split(rest, seed, 0.2), a, b]
    assert sorted((e for part in parts for e in part), key=lambda e: int(e.id)) == examples
    assert all(part == sorted(part, key=lambda e: int(e.id)) for part in parts)
    for one, other in combinations([groups_of(part) for part in parts], 2):
        assert not one.keys() & other.keys()
    # As many as wanted; the last group may bring more than that.
    held = groups_of([*a, *b])
    wanted, largest = round(len(examples) * fraction), max(held.values())
    assert wanted <= held.total() < wanted + largest
    # No group of the larger half could go to the smaller one and make them more equal.
    difference = abs(len(a) - len(b))
    assert difference <= min(groups_of(max(a, b, key=len)).values())
    # The order of the file does not matter.
    again = hold_out(examples[::-1], seed, fraction)
    assert [groups_of(part) for part in again] == [groups_of(part) for part in (rest, a, b)]


@given(count=st.integers(20, 200), seed=st.integers(0, 99), fraction=st.floats(0.1, 0.9))
def test_halves_of_different_examples(count, seed, fraction):
    rest, a, b = hold_out(make(count), seed, fraction)
    assert len(a) + len(b) == round(count * fraction) and len(a) - len(b) in (0, 1)
    assert len(rest) == count - len(a) - len(b)


def test_holding_out_has_an_order_of_its_own():
    examples = make(400)
    rest, a, b = hold_out(examples, 0, 0.2)
    held = {e.id for e in (*a, *b)}
    assert held != {e.id for e in hold_out(examples, 1, 0.2)[1] + hold_out(examples, 1, 0.2)[2]}
    # Validation of all examples is no neighbour of it: a fifth of a fifth is in both.
    both = held & {e.id for e in split(examples, 0, 0.2)[1]}
    assert 4 <= len(both) <= 32
    assert len(split(rest, 0, 0.2)[1]) == 64


@pytest.mark.parametrize(
    ("examples", "fraction", "message"),
    [
        (make(4), 0.1, "4 training examples (4 different) leave fewer than two different ones"),
        (make(9), 0.1, "leave fewer than two different ones to tune on"),
        (make(20, distinct=2), 0.2, "20 training examples (2 different) leave fewer than two"),
        (make(4), 0.9, "leave none to train on at training.tuning_fraction 0.9"),
    ],
)
def test_no_part_may_be_empty(examples, fraction, message):
    with pytest.raises(UserError, match=re.escape(message)):
        hold_out(examples, 0, fraction)
