"""The search's suggestions: constrained, the same after a restart, and never twice the same."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from muscle.config import Experiment
from muscle.tuning import study as study_module
from muscle.tuning.space import Space, make_space
from muscle.tuning.study import Study

Point = Mapping[str, Any]
Result = tuple[float, float, float]  # nfr, score, violation


def make(**parameters: Any) -> Space:
    settings = {"name": "e", "task": "piqa", "old": {"model": "a"}, "new": {"model": "b"}}
    more = {"tuning": {"space": parameters}, "compatibility": {"level": "token"}}
    return make_space(Experiment.model_validate({**settings, **more}))


REAL = make(
    mask=["student-wrong", "always-old"],
    temperature={"min": 1, "max": 4},
    ce_weight={"min": 0, "max": 1},
    epochs={"min": 1, "max": 3},
)
PLANE = make(temperature={"min": 1, "max": 2}, ce_weight={"min": 0, "max": 1})


def bounded(point: Point) -> Result:
    """NFR falls with ce_weight, whose better half is infeasible; the best is (1.5, 0.5), 0.1."""
    x = point["ce_weight"]
    return 0.2 - 0.2 * x + 0.1 * abs(point["temperature"] - 1.5), 1 - x, x - 0.5


def run(
    study: Study, numbers: range, measure: Callable[[Point], Result]
) -> list[tuple[dict[str, Any], Result]]:
    found = []
    for number in numbers:
        point = study.ask(number)
        assert point is not None
        found.append((point, measure(point)))
        study.tell(number, *found[-1][1])
    return found


# --- what it finds ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_constraint_keeps_the_search_where_it_is_feasible(seed: int) -> None:
    found = run(Study(PLANE, seed, 40, pareto=False), range(40), bounded)
    free = run(
        Study(PLANE, seed, 40, pareto=False),
        range(40),
        lambda point: (*bounded(point)[:2], -1.0),
    )
    best = min(result[0] for _, result in found if result[2] <= 0)
    assert 0.1 <= best < 0.125
    late, late_free = (
        sum(bounded(point)[2] <= 0 for point, _ in trials[20:]) for trials in (found, free)
    )
    assert late > 2 * late_free
    assert min(result[0] for _, result in free) < 0.06


def test_what_each_search_reads() -> None:
    """A constrained one NFR and violation; a Pareto one NFR and score."""

    def asked(pareto: bool, measure: Callable[[Point], Result]) -> list[dict[str, Any]]:
        found = run(Study(PLANE, 3, 24, pareto), range(16), measure)
        return [point for point, _ in found]

    def score(point: Point) -> Result:
        nfr, score, violation = bounded(point)
        return nfr, -score, violation

    def violation(point: Point) -> Result:
        nfr, score, violation = bounded(point)
        return nfr, score, -violation

    for pareto in (False, True):
        plain = asked(pareto, bounded)
        assert (asked(pareto, score) == plain) == (not pareto)
        assert (asked(pareto, violation) == plain) == pareto


def test_a_pareto_search_goes_to_the_front() -> None:
    """The front is temperature 1; the others are dominated, more so the hotter they are."""

    def measure(point: Point) -> Result:
        x, worse = point["ce_weight"], point["temperature"] - 1
        return 0.2 * (1 - x) + worse, 1 - x - worse, 0.0

    points = [point for point, _ in run(Study(PLANE, 0, 60, True), range(60), measure)]
    heat = [point["temperature"] - 1 for point in points]
    assert sum(heat[-30:]) < 0.5 * sum(heat[:10]) / 10 * 30
    ends = [point["ce_weight"] for point in points[-30:]]
    assert max(ends) - min(ends) > 0.4  # along it, not to one end of it


# --- stop and go on -----------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    number: int
    point: dict[str, Any]
    result: Result | None  # None: it failed


def history(study: Study, numbers: range) -> list[Record]:
    """Trials that were asked for two at a time and end in another order; some fail."""
    records = []
    for first in numbers[::2]:
        pair = {number: study.ask(number) for number in (first, first + 1)}
        for number, point in reversed(pair.items()):
            assert point is not None
            result = None if number % 5 == 3 else bounded(point)
            records.append(Record(number, point, result))
            if result is None:
                study.fail(number)
            else:
                study.tell(number, *result)
    return records


def replay(study: Study, records: list[Record]) -> None:
    for record in records:
        assert study.ask(record.number, record.point) == record.point
        if record.result is None:
            study.fail(record.number)
        else:
            study.tell(record.number, *record.result)


@pytest.mark.parametrize("pareto", [False, True])
@pytest.mark.parametrize("stopped", [2, 8, 16])
def test_a_search_that_goes_on_suggests_what_an_undisturbed_one_would(
    pareto: bool, stopped: int
) -> None:
    undisturbed = Study(REAL, 5, 24, pareto)
    records = history(undisturbed, range(stopped))
    later = history(undisturbed, range(stopped, stopped + 6))
    for order in (records, sorted(records, key=lambda r: r.number), records[::-1]):
        again = Study(REAL, 5, 24, pareto)
        replay(again, order)
        assert history(again, range(stopped, stopped + 6)) == later
        assert again.importances() == undisturbed.importances()


def test_a_trial_that_was_running_goes_on_after_a_restart() -> None:
    first, second = Study(REAL, 0, 24, False), Study(REAL, 0, 24, False)
    records = history(first, range(12))
    running = first.ask(12)
    assert running is not None
    second.ask(12, running)
    replay(second, records)
    assert first.ask(13) == second.ask(13)
    first.tell(12, *bounded(running))
    second.tell(12, *bounded(running))
    assert first.ask(14) == second.ask(14)


def test_the_seed_and_the_number_tell_suggestions_apart() -> None:
    points = [Study(REAL, seed, 24, False).ask(number) for seed in (0, 1) for number in (0, 1)]
    assert all(point not in points[:i] for i, point in enumerate(points))
    assert Study(REAL, 1, 24, False).ask(1) == points[3]


# --- points ---------------------------------------------------------------------------------


def test_the_first_point_is_exactly_the_given_one() -> None:
    given = {"epochs": 3, "mask": "always-old", "temperature": 1.1, "ce_weight": 0.3}
    study = Study(REAL, 0, 24, False)
    point = study.ask(0, given)
    assert point == given and list(point) == list(REAL.parameters)
    assert study.known == {0}
    point["epochs"] = 1  # the caller's copy
    study.tell(0, 0.1, 0.5, 0.0)
    again = Study(REAL, 0, 24, False)
    again.ask(0, given)
    again.tell(0, 0.1, 0.5, 0.0)
    assert again.ask(1) == study.ask(1)


def test_trials_side_by_side_differ() -> None:
    """Also at the same numbers' results: TPE would draw its favourite each time."""
    space = make(mask=["student-wrong", "old-right"], epochs={"min": 1, "max": 20})
    study = Study(space, 0, 40, False)
    run(study, range(12), lambda point: (0.01 * point["epochs"], 0.5, 0.0))
    points = [study.ask(number) for number in range(12, 24)]
    assert None not in points
    assert all(point not in points[:i] for i, point in enumerate(points))


@pytest.mark.parametrize("draws", [True, False])
def test_a_finite_space_is_used_up_without_a_point_twice(
    draws: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not draws:  # then points come in the space's order
        monkeypatch.setattr(study_module, "GUIDED", 0)
        monkeypatch.setattr(study_module, "UNIFORM", 0)
    space = make(
        mask=["student-wrong", "old-right"], temperature=[1, 2], epochs={"min": 1, "max": 3}
    )
    study = Study(space, 0, 24, False)
    given = {"mask": "old-right", "temperature": 2.0, "epochs": 2}
    points = [study.ask(0, given), study.ask(1, given)]
    points.pop()  # the same point, on purpose
    for number in range(2, 13):
        point = study.ask(number)
        assert point is not None and space.point(point) == point
        assert point not in points
        points.append(point)
        if number % 3 == 0:
            study.tell(number, 0.01 * number, 0.5, 0.0)
        elif number % 3 == 1:
            study.fail(number)
    assert len(points) == space.size() == 12
    assert study.ask(13) is None and study.ask(14) is None
    assert study.known == set(range(13))


def test_values_are_plain_and_inside() -> None:
    found = run(Study(REAL, 2, 24, False), range(20), bounded)
    for point, _ in found:
        types = [type(value) for value in point.values()]
        assert types == [str, float, float, int]
        assert REAL.point(point) == point


def test_failed_points_are_kept_away_from() -> None:
    """Cold trials fail; TPE takes a region of which it has never heard for a promising one."""
    cold: list[bool] = []
    for seed in range(3):
        study = Study(PLANE, seed, 24, False)
        for number in range(40):
            point = study.ask(number)
            assert point is not None
            failing = point["temperature"] < 1.5
            if failing:
                study.fail(number)
            else:
                study.tell(number, 0.1 + 0.1 * abs(point["ce_weight"] - 0.5), 0.5, 0.0)
            if number >= 20:
                cold.append(failing)
    assert sum(cold) < 0.35 * len(cold)


def test_numbers_need_no_order() -> None:
    study = Study(REAL, 0, 24, False)
    for number in (40, 7, 12):
        study.ask(number)
    study.tell(7, 0.1, 0.5, 0.0)
    study.fail(40)
    assert study.known == {7, 12, 40}


# --- misuse ---------------------------------------------------------------------------------


def test_what_a_study_refuses() -> None:
    study = Study(PLANE, 0, 24, False)
    study.ask(0)
    with pytest.raises(ValueError, match="before"):
        study.ask(0)
    with pytest.raises(ValueError, match="no point"):
        study.ask(1, {"temperature": 5.0, "ce_weight": 0.0})
    with pytest.raises(ValueError, match="no point"):
        study.ask(1, {"temperature": 1.0})
    with pytest.raises(ValueError, match="isn't running"):
        study.tell(1, 0.1, 0.5, 0.0)
    with pytest.raises(ValueError, match="nan"):
        study.tell(0, float("nan"), 0.5, 0.0)
    study.tell(0, 0.1, 0.5, 0.0)
    with pytest.raises(ValueError, match="isn't running"):
        study.fail(0)
    study.ask(1)
    study.fail(1)
    with pytest.raises(ValueError, match="isn't running"):
        study.tell(1, 0.1, 0.5, 0.0)
    assert study.known == {0, 1}


# --- importances ------------------------------------------------------------------------------


@pytest.mark.parametrize("pareto", [False, True])
@pytest.mark.parametrize("name", ["mask", "temperature"])
def test_importances_find_the_one_that_matters(name: str, pareto: bool) -> None:
    def measure(point: Point) -> Result:
        x = {"mask": point["mask"] == "always-old", "temperature": point["temperature"] / 4}
        return 0.1 + 0.1 * x[name], point["ce_weight"], 0.0

    space = make(**REAL.to_json(), old_weight=[1.0])
    study = Study(space, 1, 24, pareto)
    run(study, range(24), measure)
    found = study.importances()
    assert found is not None
    assert list(found) == ["mask", "temperature", "ce_weight", "epochs"]
    assert sum(found.values()) == pytest.approx(1) and min(found.values()) >= 0
    assert max(found, key=found.__getitem__) == name and found[name] > 0.5
    assert study.importances() == found


def test_importances_of_too_little_are_none() -> None:
    study = Study(REAL, 0, 24, False)
    run(study, range(9), bounded)
    for number in range(9, 20):
        study.ask(number)
        study.fail(number)
    assert study.importances() is None
    equal = Study(REAL, 0, 24, False)
    run(equal, range(12), lambda point: (0.1, 0.5, 0.0))
    assert equal.importances() is None
    one = Study(REAL, 0, 24, False)
    point = one.ask(0)
    for number in range(12):  # noise alone: the point is always the same
        if number:
            one.ask(number, point)
        one.tell(number, 0.1 + 0.01 * number, 0.5, 0.0)
    assert one.importances() is None


def test_importances_of_one_parameter_are_all() -> None:
    study = Study(make(temperature={"min": 1, "max": 2}), 0, 24, False)
    run(study, range(12), lambda point: (0.1 * point["temperature"], 0.5, 0.0))
    assert study.importances() == {"temperature": pytest.approx(1)}


# --- manners ----------------------------------------------------------------------------------


def test_it_is_quiet_and_leaves_others_alone(capfd: pytest.CaptureFixture[str]) -> None:
    import optuna

    level = optuna.logging.get_verbosity()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study = Study(PLANE, 0, 24, True)
        run(study, range(14), bounded)
        study.importances()
        filters = list(warnings.filters)
    assert not caught and filters[0][0] == "always"
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == level


def test_importing_it_is_light() -> None:
    code = (
        "import sys, muscle.tuning.study\n"
        "heavy = {'optuna', 'torch', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
