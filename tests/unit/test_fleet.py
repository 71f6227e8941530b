"""A fleet's run in one process: what it trains, asks and decides, and who pays for a failure.

Old, new and compat answer by a rule of the test (`searching.Played`): an entry's seed says what
its new version breaks and what a compat adapter mends.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from colours import colour_settings, write_data
from searching import Played, Who
from tiny import save_random_adapter

from muscle.errors import NotFiniteError, UserError
from muscle.evaluation.job import EvaluateJob
from muscle.evaluation.units import outstanding
from muscle.fleet.running import Decided, FleetRun
from muscle.fleet.settings import load_fleet
from muscle.gate import judge, make_limits
from muscle.teachers.job import TeacherJob
from muscle.training.job import OnProgress, Progress, TrainJob

SAFE, MENDED, BROKEN, UNSURE, NAN = 0, 1, 2, 3, 4
"""Seeds. Of the 100 things that are asked, new breaks none, 20, 20, 4."""


def rule(who: Who, thing: int) -> bool:
    """Old knows all things, and who is worse misses every fifth or the first four."""
    number = thing % 100
    breaks = {SAFE: False, MENDED: number % 5 == 0, BROKEN: number % 5 == 0, UNSURE: number < 4}
    if who.role == "old" or (who.role == "compat" and who.seed == MENDED):
        return True
    return not breaks[who.seed]


class Crew(Played):
    """Plays, and counts the bases that are loaded."""

    def __init__(self) -> None:
        super().__init__(rule)
        self.loads: list[int] = []
        self.prepared = 0
        self.caches: list[list[int]] = []

    def prepare(self, on_progress: OnProgress) -> None:
        self.prepared += 1

    def train_one(self, job: TrainJob) -> None:
        if job.seed == NAN:
            raise NotFiniteError(f"{job.title}: the loss became NaN in update 3")
        super().train_one(job)

    def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> tuple[str, ...]:
        self.loads.append(len(outstanding(job).units))
        return super().evaluate(job, on_progress)

    def cache(self, job: TeacherJob, on_progress: OnProgress) -> None:
        self.caches.append([len(base.asks) for base in job.bases])
        super().cache(job, on_progress)

    @property
    def titles(self) -> list[str]:
        return [title for kind, titles in self.log if kind == "train" for title in titles]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), test=100)


@pytest.fixture(scope="module")
def common(tiny_models: dict[str, str], data: Path) -> dict[str, Any]:
    return {
        **colour_settings(tiny_models, data),
        "name": "desk",
        "gate": {"max_nfr": 0.05},
        "resources": {"teachers": "online"},
        "tracking": {"tensorboard": False},
        "report": {"slices": []},
    }


def sail(
    common: dict[str, Any], entries: Sequence[dict[str, Any]], output: Path, crew: Crew
) -> Decided:
    """Run a fleet."""
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**common, "adapters": list(entries)}))
    run = FleetRun(load_fleet(file), str(output), crew, quiet)
    run.resolve()
    return run.run()


def quiet(progress: Progress) -> None:
    """Nobody watches."""


def entry(name: str, seed: int, **settings: Any) -> dict[str, Any]:
    return {"name": name, "seeds": [seed], **settings}


FOUR = (
    entry("safe", SAFE),
    entry("mended", MENDED),
    entry("broken", BROKEN),
    entry("unsure", UNSURE),
)


def decisions(decided: Decided) -> dict[str, str]:
    return {one["name"]: one["decision"] for one in decided.record["adapters"]}


def reasons(decided: Decided) -> dict[str, str]:
    return {one["name"]: str(one["reason"]) for one in decided.record["adapters"]}


def contents(output: Path) -> dict[str, bytes]:
    """What a run leaves besides its artifacts."""
    files = (p for p in output.rglob("*") if p.is_file())
    found = {str(p.relative_to(output)): p.read_bytes() for p in files}
    return {name: data for name, data in found.items() if not name.startswith("artifacts/")}


@pytest.fixture(scope="module")
def sailed(
    common: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Crew, Decided]:
    output, crew = tmp_path_factory.mktemp("sailed") / "out", Crew()
    return output, crew, sail(common, FOUR, output, crew)


def test_each_adapter_gets_the_decision_that_its_flips_ask_for(
    sailed: tuple[Path, Crew, Decided],
) -> None:
    output, _, decided = sailed
    assert decisions(decided) == {
        "safe": "move",
        "mended": "move with compat",
        "broken": "stay",
        "unsure": "not enough evidence",
    }
    assert decided.exit_code == 1
    assert decided.record == json.loads((output / "fleet.json").read_text())
    unsure = decided.record["adapters"][3]
    assert unsure["needed_n"] > 100 and not unsure["trained_compat"]


def test_compat_is_trained_only_where_new_fails(sailed: tuple[Path, Crew, Decided]) -> None:
    output, crew, _ = sailed
    assert [title for title in crew.titles if "compat" in title] == [
        "mended: train compat",
        "broken: train compat",
    ]
    assert len(set(crew.titles)) == len(crew.titles) == 10
    for name, there in (("safe", False), ("mended", True), ("broken", True), ("unsure", False)):
        assert (
            output / name / "compat" / "adapter" / "adapter_model.safetensors"
        ).exists() == there
        report = json.loads((output / name / "report.json").read_text())
        assert ("compat" in report["tasks"]["colours"]["versions"]) == there
        assert (output / name / "report.html").exists() and (output / name / "gate.json").exists()


def test_every_base_is_loaded_once_for_all_adapters(sailed: tuple[Path, Crew, Decided]) -> None:
    _, crew, _ = sailed
    # Both bases for old and new of all four, new's once more for the compat adapters.
    assert crew.loads == [2, 1]
    asked = [set(call) for kind, call in crew.log if kind == "ask"]
    assert asked[0] == {f"{e['name']}/{v}" for e in FOUR for v in ("old", "new")}
    assert asked[1] == {"mended/compat", "broken/compat"}
    assert crew.prepared == 1


def test_the_record_says_what_each_report_and_gate_say(sailed: tuple[Path, Crew, Decided]) -> None:
    output, _, decided = sailed
    for one in decided.record["adapters"]:
        folder = output / one["folder"]
        task = json.loads((folder / "report.json").read_text())["tasks"]["colours"]
        assert one["n"] == task["n"] == 100
        for version, found in one["scores"].items():
            assert found["score"] == task["versions"][version]["score"]
        assert set(one["pairs"]) == set(task["pairs"])
        for pair, found in one["pairs"].items():
            for rate in ("nfr", "relative_nfr", "gain", "negative"):
                assert found[rate] == task["pairs"][pair][rate], (pair, rate)
            assert found["ci95"]["nfr"] == task["pairs"][pair]["ci95"]["nfr"]
        gate = json.loads((folder / "gate.json").read_text())
        assert gate["pair"] == one["pair"] and gate["reason"] == one["reason"]
        again = judge(
            str(folder), make_limits(max_nfr=0.05), pair="old->new", output=str(folder / "g")
        )
        shutil.rmtree(folder / "g")
        assert one["gates"]["old->new"]["verdict"] == again.verdict


def test_a_second_run_does_nothing_and_says_the_same(
    sailed: tuple[Path, Crew, Decided], common: dict[str, Any], tmp_path: Path
) -> None:
    output, crew = tmp_path / "out", Crew()
    shutil.copytree(sailed[0], output)
    before = contents(output)
    sail(common, FOUR, output, crew)
    assert crew.log == [] and crew.prepared == 0, "no Ray would start"
    assert contents(output) == before


def test_a_changed_entry_alone_is_done_again(
    sailed: tuple[Path, Crew, Decided], common: dict[str, Any], tmp_path: Path
) -> None:
    output, crew = tmp_path / "out", Crew()
    shutil.copytree(sailed[0], output)
    before = contents(output)
    changed = entry("mended", MENDED, compatibility={"mask": "old-right"})
    added = entry("another", SAFE, gate={"max_nfr": 0.5})
    sail(common, (FOUR[0], changed, *FOUR[2:], added), output, crew)
    assert crew.titles == ["mended: train compat"]
    after = contents(output)
    others = [name for name in before if name.startswith(("safe/", "broken/", "unsure/"))]
    assert others and all(after[name] == before[name] for name in others)
    assert after["mended/report.json"] != before["mended/report.json"]
    assert after["another/old/colours.parquet"] == before["safe/old/colours.parquet"]


def test_what_a_looser_gate_no_longer_needs_goes(
    sailed: tuple[Path, Crew, Decided], common: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(sailed[0], output)
    loose = [{**one, "gate": {"max_nfr": 0.5}} for one in FOUR]
    decided = sail(common, loose, output, Crew())
    assert set(decisions(decided).values()) == {"move"} and decided.exit_code == 0
    assert not (output / "mended" / "compat").exists()
    assert list(output.glob("artifacts/compat-adapter/*/manifest.json"))


def test_always_trains_everywhere(common: dict[str, Any], tmp_path: Path) -> None:
    crew = Crew()
    entries = (*FOUR[:1], entry("unsure", UNSURE, when="gate-fails"))
    decided = sail({**common, "when": "always"}, entries, tmp_path / "out", crew)
    assert [title for title in crew.titles if "compat" in title] == ["safe: train compat"]
    assert decisions(decided) == {"safe": "move", "unsure": "not enough evidence"}
    assert decided.exit_code == 3
    safe = decided.record["adapters"][0]
    assert safe["trained_compat"] and safe["pair"] == "old->new"
    assert set(safe["pairs"]) == {"old->new", "old->compat", "new->compat"}


def test_entries_that_are_asked_differently_have_passes_of_their_own(
    common: dict[str, Any], tmp_path: Path
) -> None:
    crew = Crew()
    entries = (*FOUR[:1], entry("few", SAFE, evaluation={"limit": 40}))
    decided = sail(common, entries, tmp_path / "out", crew)
    assert [set(call) for kind, call in crew.log if kind == "ask"] == [
        {"safe/old", "safe/new"},
        {"few/old", "few/new"},
    ]
    assert [one["n"] for one in decided.record["adapters"]] == [100, 40]
    assert crew.titles == ["safe: train old", "safe: train new"], "both have the same adapters"


def damaged(folder: Path, base: str) -> str:
    """An adapter with a weight that isn't finite."""
    from safetensors.torch import load_file, save_file

    save_random_adapter(folder, base, 1)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    return str(folder)


def test_what_is_wrong_with_an_entry_is_its_own(
    common: dict[str, Any], tiny_models: dict[str, str], data: Path, tmp_path: Path
) -> None:
    """Every failure has one line, and those around it are as they would be alone."""
    other = save_random_adapter(tmp_path / "other", tiny_models["old"], 1)
    own = {"task": {"name": "gone", "test": str(data / "gone.jsonl")}}
    named = {key: None for key in ("train", "test", "prompt", "choices", "target")}
    bad: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        "base": ({"new": other}, ("new: adapter", "another base")),
        "folder": ({"old": str(tmp_path / "nowhere")}, ("old: adapter", "does not exist")),
        "release": ({"old": {"release": str(tmp_path / "none.json")}}, ("none.json",)),
        "model": ({"new": {"model": str(tmp_path / "none")}}, ("none",)),
        "task": ({"task": {**named, "name": "no_such_task"}}, ("no_such_task",)),
        "file": (own, ("gone.jsonl",)),
        "weights": ({"new": damaged(tmp_path / "nan", tiny_models["new"])}, ("NaN",)),
        "loss": ({"seeds": [NAN]}, ("train old", "NaN in update 3")),
        "keep": ({"gate": {"must_keep": str(tmp_path / "ids.txt")}}, ("ids.txt",)),
        "slice": ({"gate": {"slices": ["no such column"]}}, ("no such column",)),
    }
    entries = [entry(name, SAFE) | settings for name, (settings, _) in bad.items()]
    crew = Crew()
    decided = sail(common, [FOUR[0], *entries, FOUR[1]], tmp_path / "out", crew)
    found = decisions(decided)
    assert found.pop("safe") == "move" and found.pop("mended") == "move with compat"
    assert set(found.values()) == {"failed"} and decided.exit_code == 1
    for name, (_, words) in bad.items():
        said = reasons(decided)[name]
        assert "\n" not in said
        for word in words:
            assert word in said, (name, said)
    failed = {one["name"]: one for one in decided.record["adapters"] if one["name"] in bad}
    assert all(one["report"] is None for one in failed.values())


def test_nothing_is_written_where_no_entry_can_be_resolved(
    common: dict[str, Any], tmp_path: Path
) -> None:
    entries = [entry(name, SAFE, old=str(tmp_path / name)) for name in ("a", "b")]
    with pytest.raises(UserError, match=r"no adapter of the fleet .*: a: old: .*\(and 1 more\)"):
        sail(common, entries, tmp_path / "out", Crew())
    assert not (tmp_path / "out").exists()


class Sick(Crew):
    """One adapter's presence breaks a whole pass, and what is asked with it."""

    def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> tuple[str, ...]:
        if any("broken/new" in base.adapters for base in job.bases):
            self.loads.append(len(outstanding(job).units))
            raise RuntimeError("the actor died")
        return super().evaluate(job, on_progress)


def test_a_pass_that_fails_is_split_until_it_is_ones_own(
    common: dict[str, Any], tmp_path: Path
) -> None:
    decided = sail(common, FOUR, tmp_path / "out", Sick())
    found = decisions(decided)
    assert found.pop("broken") == "failed"
    assert found == {"safe": "move", "mended": "move with compat", "unsure": "not enough evidence"}
    assert reasons(decided)["broken"] == "our own failure: RuntimeError: the actor died"


class Clumsy(Crew):
    """Can't train compat adapters."""

    def train_one(self, job: TrainJob) -> None:
        if job.role == "compat":
            raise UserError("no room for a third model")
        super().train_one(job)


def test_a_compat_that_fails_costs_only_what_needs_it(
    common: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    decided = sail({**common, "when": "always"}, FOUR[:2], output, Clumsy())
    assert decisions(decided) == {"safe": "move", "mended": "failed"}
    safe, mended = decided.record["adapters"]
    assert safe["note"] == mended["reason"] == "no room for a third model"
    # What is known of old and new is told all the same.
    assert mended["pairs"]["old->new"]["nfr"] == 0.2 and mended["report"]
    assert set(
        json.loads((output / "mended/report.json").read_text())["tasks"]["colours"]["pairs"]
    ) == {"old->new"}


def test_teachers_that_read_the_same_examples_are_cached_in_one_pass(
    common: dict[str, Any], tmp_path: Path
) -> None:
    crew, cached = Crew(), {**common, "resources": {"teachers": "cached"}}
    other = entry("other", BROKEN, data_seed=5)  # another split
    decided = sail(cached, (*FOUR[1:3], other), tmp_path / "out", crew)
    assert crew.caches == [[2, 2], [1, 1]], "asks of old and of new"
    assert decisions(decided) == {"mended": "move with compat", "broken": "stay", "other": "stay"}
    assert len(list((tmp_path / "out").glob("artifacts/teacher/*/manifest.json"))) == 6


class Forgetful(Crew):
    """Can't cache several adapters' teachers at once."""

    def cache(self, job: TeacherJob, on_progress: OnProgress) -> None:
        if any(len(base.asks) > 1 for base in job.bases):
            raise UserError("no room for two adapters")
        super().cache(job, on_progress)


def test_caches_that_fail_together_are_made_for_each_training(
    common: dict[str, Any], tmp_path: Path
) -> None:
    crew, cached = Forgetful(), {**common, "resources": {"teachers": "cached"}}
    decided = sail(cached, FOUR[1:3], tmp_path / "out", crew)
    assert crew.caches == [[1, 1], [1, 1]]
    assert decisions(decided) == {"mended": "move with compat", "broken": "stay"}


def test_with_two_tokenizers_all_but_the_training_works(
    common: dict[str, Any], tiny_models: dict[str, str], tmp_path: Path
) -> None:
    other, output, crew = {"model": tiny_models["other"]}, tmp_path / "out", Crew()
    entries = [entry("safe", SAFE, new=other), entry("mended", MENDED, new=other)]
    decided = sail(common, entries, output, crew)
    assert decisions(decided) == {"safe": "move", "mended": "failed"}
    assert "tokenizer" in reasons(decided)["mended"]
    mended = decided.record["adapters"][1]
    assert mended["pairs"]["old->new"]["nfr"] == 0.2 and mended["report"]
    report = json.loads((output / "mended" / "report.json").read_text())
    assert report["provenance"]["experiment"]["compatibility"]["mask"] == "student-wrong"
    assert not [title for title in crew.titles if "compat" in title]


def test_entries_of_two_levels_train_side_by_side(
    common: dict[str, Any], tiny_models: dict[str, str], tmp_path: Path
) -> None:
    """By whole answers from another tokenizer too; teachers of folds only where a gate fails."""
    crew, output = Crew(), tmp_path / "out"
    shared = {**common, "compatibility": {"mask": "always-old"}}
    choice = {"level": "choice", "teacher": "old", "folds": 2}
    entries = [
        entry("safe", SAFE, compatibility=choice),
        entry("masked", MENDED),
        entry("chosen", MENDED, compatibility=choice, old={"model": tiny_models["other"]}),
    ]
    decided = sail(shared, entries, output, crew)
    assert decisions(decided) == {
        "safe": "move",
        "masked": "move with compat",
        "chosen": "move with compat",
    }
    report = json.loads((output / "chosen" / "report.json").read_text())
    settings = report["provenance"]["experiment"]["compatibility"]
    assert settings["teacher"] == "old" and "mask" not in settings
    folds = [title for title in crew.titles if "without part" in title]
    assert len(folds) == 2 and all("old" in title for title in folds), "chosen's, not safe's"


def test_an_output_of_something_else_is_refused(common: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "fleet.json").write_text('{"name": "other"}')
    with pytest.raises(UserError, match="holds the fleet 'other'"):
        sail(common, FOUR, output, Crew())
    (output / "fleet.json").unlink()
    (output / "report.json").write_text("{}")
    with pytest.raises(UserError, match="report of one update"):
        sail(common, FOUR, output, Crew())
    (output / "report.json").unlink()
    (output / "safe").mkdir()
    (output / "safe" / "report.json").write_text("{}")
    decided = sail(common, FOUR, output, Crew())
    assert "no run left" in reasons(decided)["safe"]
    assert (output / "safe" / "report.json").read_text() == "{}"
