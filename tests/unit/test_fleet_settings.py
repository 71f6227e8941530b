"""A fleet's file: what is common, what is an entry's, and every mistake in one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from muscle.errors import UserError
from muscle.experiment import load_experiment
from muscle.fleet.settings import Fleet, check_fleet, is_fleet, load_fleet, merge
from muscle.overrides import apply_override

COMMON: dict[str, Any] = {
    "name": "desk",
    "task": "piqa",
    "old": {"model": "org/base-1", "revision": "abc"},
    "new": {"model": "org/base-2"},
    "training": {"epochs": 3, "batch_size": 8},
    "gate": {"max_nfr": 0.02},
}


def written(folder: Path, *entries: Any, **common: Any) -> Path:
    file = folder / "fleet.yaml"
    file.write_text(yaml.safe_dump({**COMMON, **common, "adapters": list(entries)}))
    return file


def load(folder: Path, *entries: Any, overrides: tuple[str, ...] = (), **common: Any) -> Fleet:
    return load_fleet(written(folder, *entries, **common), overrides)


def refused(folder: Path, *entries: Any, overrides: tuple[str, ...] = (), **common: Any) -> str:
    with pytest.raises(UserError) as error:
        load(folder, *entries, overrides=overrides, **common)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_mappings_are_merged_and_the_rest_replaced() -> None:
    common = {"a": {"b": 1, "c": [1, 2]}, "d": {"e": 5}, "f": 6}
    own = {"a": {"c": [3], "g": 7}, "d": None, "f": {"h": 8}}
    assert merge(common, own) == {"a": {"b": 1, "c": [3], "g": 7}, "d": None, "f": {"h": 8}}
    assert common["a"] == {"b": 1, "c": [1, 2]}, "the common settings are the next entry's too"


def test_an_entry_has_the_common_settings_and_its_own(tmp_path: Path) -> None:
    (tmp_path / "billing-1").mkdir()
    fleet = load(
        tmp_path,
        {"name": "billing", "old": "billing-1", "training": {"epochs": 5}, "when": "always"},
        {"name": "routing", "task": {"name": "arc_easy", "num_fewshot": 2}, "seeds": [4]},
        {"name": "search", "new": {"model": "org/other"}, "gate": {"min_gain": -0.01}},
    )
    billing, routing, search = (entry.experiment for entry in fleet.entries)
    assert [entry.name for entry in fleet.entries] == ["billing", "routing", "search"]
    assert [entry.when for entry in fleet.entries] == ["always", "gate-fails", "gate-fails"]
    assert billing.name == "billing" and fleet.name == "desk"
    # A text is the adapter's directory, found beside the file, on the common base.
    assert billing.old.adapter == str(tmp_path / "billing-1")
    assert (billing.old.model, billing.old.revision) == ("org/base-1", "abc")
    assert (billing.training.epochs, billing.training.batch_size) == (5, 8)
    assert routing.training.epochs == 3 and routing.seeds == [4] and routing.old.adapter is None
    assert (routing.task.name, routing.task.num_fewshot) == ("arc_easy", 2)
    assert (search.new.model, search.old.model) == ("org/other", "org/base-1")
    assert (search.gate.max_nfr, search.gate.min_gain) == (0.02, -0.01)


def test_a_task_by_name_takes_the_common_tasks_settings(tmp_path: Path) -> None:
    fleet = load(
        tmp_path, {"name": "a", "task": "arc_easy"}, task={"name": "piqa", "num_fewshot": 3}
    )
    task = fleet.entries[0].experiment.task
    assert (task.name, task.num_fewshot) == ("arc_easy", 3)


def test_set_changes_what_is_common_or_one_entry(tmp_path: Path) -> None:
    entries = ({"name": "a", "old": "x"}, {"name": "a.b", "training": {"epochs": 9}})
    fleet = load(
        tmp_path,
        *entries,
        overrides=(
            "training.batch_size=2",
            "adapters.a.training.epochs=7",
            "adapters.a.old.revision=r",
            "adapters.a.b.seeds=[5]",
            "adapters.a.b.when=always",
        ),
    )
    a, b = fleet.entries
    assert [e.experiment.training.batch_size for e in fleet.entries] == [2, 2]
    assert (a.experiment.training.epochs, b.experiment.training.epochs) == (7, 9)
    assert (a.experiment.old.adapter, a.experiment.old.revision) == ("x", "r")
    assert (b.experiment.seeds, b.when, a.when) == ([5], "always", "gate-fails")


def test_an_entry_of_another_level_has_none_of_the_common_ones_settings(tmp_path: Path) -> None:
    entries = [
        {"name": "masked", "compatibility": {"epochs": 5}},
        {"name": "chosen", "compatibility": {"level": "choice", "teacher": "old"}},
        {"name": "masked-too", "compatibility": {"level": "token"}},
    ]
    common = {"level": "token", "mask": "always-old", "old_weight": 0.5, "temperature": 3.0}
    fleet = load(
        tmp_path,
        *entries,
        compatibility=common,
        overrides=("adapters.chosen.compatibility.inputs=[train, {path: s3://b/t.jsonl}]",),
    )
    masked, chosen, too = (entry.experiment.compatibility for entry in fleet.entries)
    assert (masked.mask, masked.old_weight, masked.epochs) == ("always-old", 0.5, 5)
    assert (too.mask, too.old_weight, too.temperature) == ("always-old", 0.5, 3.0)
    assert (chosen.level, chosen.teacher, chosen.temperature) == ("choice", "old", 3.0)
    assert (chosen.mask, chosen.old_weight) == ("student-wrong", 1.0), "the defaults"
    assert len(chosen.inputs) == 2
    check_fleet(yaml.safe_load((tmp_path / "fleet.yaml").read_text()), tmp_path / "fleet.yaml")
    switched = load(
        tmp_path,
        {"name": "a"},
        compatibility=common,
        overrides=("adapters.a.compatibility.level=choice",),
    )
    assert switched.entries[0].experiment.compatibility.mask == "student-wrong"


def test_set_of_an_entry_that_is_not_there(tmp_path: Path) -> None:
    said = refused(tmp_path, {"name": "billing"}, overrides=("adapters.biling.seeds=[1]",))
    assert "adapters.biling.seeds" in said and "billing" in said


def test_an_experiments_set_knows_nothing_of_entries() -> None:
    raw: dict[str, Any] = {"old": "x"}
    with pytest.raises(UserError, match="'old' is not a group"):
        apply_override(raw, "old.model=y")


BAD: dict[str, tuple[list[Any], dict[str, Any], tuple[str, ...]]] = {
    "no list": ([], {"adapters": {"a": {}}}, ("'adapters'", "list")),
    "no entries": ([], {}, ("'adapters' is []",)),
    "no mapping": (["billing"], {}, ("adapters[0] is 'billing'", "mapping")),
    "no name": ([{"seeds": [1]}], {}, ("adapters[0]", "'name' is missing")),
    "a path for a name": ([{"name": "a/b"}], {}, ("adapters[0]", "'a/b'")),
    "a number for a name": ([{"name": 7}], {}, ("adapters[0]", "'name' is 7")),
    "our folder": ([{"name": "artifacts"}], {}, ("'artifacts'", "the fleet's own")),
    "our file": ([{"name": "Fleet.json"}], {}, ("'Fleet.json'",)),
    "one name twice": ([{"name": "a"}, {"name": "A"}], {}, ("adapters[1] (A)", "adapters[0]")),
    "unknown": (
        [{"name": "a"}, {"name": "b", "training": {"epoch": 2}}],
        {},
        ("adapters[1] (b): unknown setting 'training.epoch'", "epochs"),
    ),
    "unknown everywhere": ([{"name": "a"}], {"training": {"epoch": 2}}, ("'training.epoch'",)),
    "a bad value": ([{"name": "a", "seeds": []}], {}, ("adapters[0] (a): setting 'seeds'",)),
    "no base": ([{"name": "a"}], {"old": {"adapter": "x"}}, ("adapters[0] (a)", "'old.model'")),
    "a text at the top": ([{"name": "a"}], {"old": "x"}, ("setting 'old' is 'x'",)),
    "a store of its own": ([{"name": "a", "storage": "s"}], {}, ("'storage' is common",)),
    "workers of its own": ([{"name": "a", "resources": {"workers": 2}}], {}, ("'resources'",)),
    "a fleet in it": ([{"name": "a", "adapters": []}], {}, ("'adapters' is common",)),
    "an engine of its own": (
        [{"name": "a"}, {"name": "b", "evaluation": {"backend": "vllm"}}],
        {},
        ("adapters[1] (b)", "'evaluation.backend' is 'vllm'"),
    ),
    "no gate": ([{"name": "a"}], {"gate": {}}, ("adapters[0] (a): no gate is set",)),
    "a pair": ([{"name": "a", "gate": {"pair": "old->new"}}], {}, ("(a)", "'gate.pair'")),
    "when what": ([{"name": "a", "when": "often"}], {}, ("(a)", "'when' is 'often'", "always")),
    "no name of the fleet": ([{"name": "a"}], {"name": None}, ("'name' is missing: the fleet's",)),
    "a variable": (
        [{"name": "a", "old": "${MUSCLE_NOT_SET}"}],
        {},
        ("adapters[0] (a)", "MUSCLE_NOT_SET"),
    ),
    "a secret": (
        [{"name": "a", "assumed": {"note": "hf_" + "Ab1" * 12}}],
        {},
        ("adapters[0].assumed.note", "HF_TOKEN"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line(case: str, tmp_path: Path) -> None:
    entries, common, words = BAD[case]
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump({**COMMON, "adapters": entries, **common}))
    with pytest.raises(UserError) as error:
        load_fleet(file)
    said = str(error.value)
    assert "\n" not in said
    for word in words:
        assert word in said
    if "at the top" in case or "everywhere" in case:
        assert "adapters[" not in said, "it is no entry's fault"


def test_a_file_says_itself_whether_it_is_a_fleet(tmp_path: Path) -> None:
    file = written(tmp_path, {"name": "a"})
    assert is_fleet(file)
    with pytest.raises(UserError, match=r"fleet\.yaml holds a fleet .* one experiment"):
        load_experiment(file)
    single = tmp_path / "single.yaml"
    single.write_text(yaml.safe_dump(COMMON))
    assert not is_fleet(single) and load_experiment(single).name == "desk"


def test_variables_of_another_machine_are_left_to_it(tmp_path: Path) -> None:
    entry = {"name": "a", "old": "${MUSCLE_NOT_SET}/a", "training": {"epochs": "${MUSCLE_NOT_SET}"}}
    raw = {**COMMON, "adapters": [entry]}
    check_fleet(raw, tmp_path / "fleet.yaml")
    with pytest.raises(UserError, match=r"adapters\[0\] \(a\): unknown setting 'sed'"):
        check_fleet({**COMMON, "adapters": [{"name": "a", "sed": 1}]}, tmp_path / "fleet.yaml")


def test_a_release_that_is_not_there_is_one_entrys_trouble(tmp_path: Path) -> None:
    fleet = load(
        tmp_path, {"name": "billing", "old": {"release": "nowhere.json"}}, {"name": "routing"}
    )
    billing, routing = fleet.entries
    assert billing.problem is not None and "nowhere.json" in billing.problem
    assert "does not exist" in billing.problem and routing.problem is None
    # What is wrong whatever the release says is refused as ever.
    entry = {"name": "billing", "old": {"release": "nowhere.json"}, "seeds": []}
    assert "adapters[0] (billing): setting 'seeds'" in refused(tmp_path, entry)
