"""The one split of the training examples."""

import pytest

from muscle.errors import UserError
from muscle.tasks import limit_examples, split
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
