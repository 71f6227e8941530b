"""A whole search: what it leaves is true, what it chose is what is served."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from colours import write_data
from searching import (
    TEST,
    Played,
    Rule,
    Who,
    changed,
    leases,
    not_waiting,
    result,
    search,
    search_settings,
    thing_of,
    things_asked,
    usual,
)

from muscle.alone import Alone
from muscle.cli import main
from muscle.config import Experiment
from muscle.errors import NotFiniteError, UserError
from muscle.evaluation.job import EvaluateJob
from muscle.experiment import load_experiment
from muscle.pipeline import Pipeline
from muscle.plan import make_plan
from muscle.search import plan_search
from muscle.tables import read_examples, read_predictions
from muscle.training.job import OnProgress, Progress, TrainJob
from muscle.tune import _delivered
from muscle.tuning.records import Contender, Measured
from muscle.types import Prediction


class Real(Alone):
    """Trains and answers, and remembers what it was asked, as `Played` does."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.log: list[tuple[str, Any]] = []

    def train(self, jobs: Sequence[TrainJob], on_progress: OnProgress) -> None:
        super().train(jobs, on_progress)
        self.log.append(("train", tuple(job.title for job in jobs)))

    def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> tuple[str, ...]:
        self.log.append(("ask", things_asked(job)))
        return super().evaluate(job, on_progress)


@pytest.fixture(scope="module")
def base(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = write_data(tmp_path_factory.mktemp("data"), test=24, train=100)
    return search_settings(tiny_models, data)


REAL = {
    "trials": 3,
    "space": {"mask": ["student-wrong", "always-old"], "learning_rate": {"min": 0.003, "max": 0.1}},
}


@pytest.fixture(scope="module")
def trained(
    base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[tuple[str, Any]]]:
    """A search that really trained, and what was asked of the launcher, in order."""
    output, launcher = tmp_path_factory.mktemp("trained") / "out", Real()
    search(changed(base, tuning=REAL), output, launcher)
    return output, launcher.log


@pytest.fixture(scope="module")
def played(
    base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[tuple[str, Any]]]:
    """The same of a search whose adapters know what a rule says."""
    output, launcher = tmp_path_factory.mktemp("played") / "out", Played()
    search(base, output, launcher)
    return output, launcher.log


@pytest.fixture(params=["trained", "played"])
def searched(request: pytest.FixtureRequest) -> tuple[Path, list[tuple[str, Any]]]:
    found: tuple[Path, list[tuple[str, Any]]] = request.getfixturevalue(request.param)
    return found


# --- numbers, computed again ----------------------------------------------------------------


class Answers:
    """All predictions in a store: adapter key -> thing -> row. Reads nothing but files."""

    def __init__(self, output: Path):
        self.store = output / "artifacts"
        self.of: dict[str, dict[int, Prediction]] = {}
        for inputs, attempt in self.artifacts("predictions"):
            rows = read_predictions(attempt / "predictions.parquet")
            mine = self.of.setdefault(inputs["adapter"], {})
            mine |= {int(row.question.split()[1]): row for row in rows}

    def artifacts(self, kind: str) -> Iterator[tuple[dict[str, Any], Path]]:
        for file in sorted((self.store / kind).glob("*/manifest.json")):
            manifest = json.loads(file.read_text())
            yield manifest["inputs"], file.parent / manifest["attempt"]

    def key(self, kind: str, **wanted: Any) -> str:
        """The key of the one artifact with these inputs."""
        found = [
            attempt.parent.name
            for inputs, attempt in self.artifacts(kind)
            if all(at(inputs, name) == value for name, value in wanted.items())
        ]
        assert len(found) == 1, (kind, wanted, found)
        return found[0]

    def compat(self, settings: Mapping[str, Any], **more: Any) -> str:
        """The key of the adapter of a trial's params."""
        training = ("learning_rate", "epochs")
        wanted = {
            ("training__" if name in training else "loss__") + name: value
            for name, value in settings.items()
        }
        own = {"loss__ce_weight": 0.0, "loss__mask": "student-wrong"}  # the experiment's
        return self.key("compat-adapter", **{**own, **wanted, **more})

    def measured(
        self, teachers: tuple[str, str], compat: str, things: set[int]
    ) -> dict[str, float]:
        """NFR, new's NFR and gain, by their definitions."""
        old, new, mine = ({n: self.of[key][n].score for n in things} for key in (*teachers, compat))
        return {
            "nfr": sum(old[n] == 1 and mine[n] == 0 for n in things) / len(things),
            "nfr_new": sum(old[n] == 1 and new[n] == 0 for n in things) / len(things),
            "gain": sum((mine[n] or 0) - (new[n] or 0) for n in things) / len(things),
            "n": len(things),
        }


def at(inputs: Mapping[str, Any], name: str) -> Any:
    found: Any = inputs
    for part in name.split("__"):
        found = found[part] if isinstance(found, Mapping) and part in found else None
    return found


def teachers_of(answers: Answers) -> tuple[str, str]:
    """The keys of old's and new's adapter, as a compat adapter's own inputs name them."""
    compat = next(inputs for inputs, _ in answers.artifacts("compat-adapter") if inputs["old"])
    return compat["old"][1], compat["start"]


def halves(settings: dict[str, Any]) -> tuple[set[int], set[int]]:
    parts = plan_search(Experiment.model_validate(settings)).parts
    a, b = ({thing_of(q) for q in part.task.queries()} for part in (parts.a, parts.b))
    return a, b


def close(found: Mapping[str, Any], expected: Mapping[str, float]) -> None:
    assert {k: found[k] for k in expected} == pytest.approx(dict(expected))


def test_tuning_examples_are_apart_from_all_others(
    base: dict[str, Any], played: tuple[Path, Any]
) -> None:
    output, _ = played
    answers = Answers(output)
    ((_, folder),) = answers.artifacts("examples")
    train, validation = (
        {int(e.prompt.split()[1]) for e in read_examples(folder / f"{name}.parquet")}
        for name in ("train", "validation")
    )
    a, b = halves(base)
    parts = (train, validation, a, b)
    assert set.union(*parts) == set(range(100)) and sum(map(len, parts)) == 100
    assert (len(train), len(validation), len(a), len(b)) == (48, 12, 20, 20)
    found = result(output)["tuning_examples"]
    assert (found["a"], found["b"]) == (20, 20)


def test_every_number_follows_from_the_predictions(
    base: dict[str, Any], searched: tuple[Path, Any]
) -> None:
    output, _ = searched
    answers, found = Answers(output), result(output)
    a, b = halves(base)
    teachers = teachers_of(answers)
    keys = {}
    for trial in found["trials"]:
        assert trial["state"] == "finished"
        keys[trial["number"]] = answers.compat(trial["params"])
        close(trial["a"], answers.measured(teachers, keys[trial["number"]], a))
    for candidate in found["candidates"]:
        key = keys[candidate["trial"]]
        if candidate["interpolation"] != 1:
            key = answers.key("interpolated-adapter", compat=key, weight=candidate["interpolation"])
        close(candidate["a"], answers.measured(teachers, key, a))
        if candidate["b"] is not None:
            close(candidate["b"], answers.measured(teachers, key, b))
        if candidate["name"] == found["chosen"]["name"]:
            test = answers.measured(teachers, key, set(range(TEST, TEST + 24)))
            close(found["promised"]["test"], test)
            close(found["test"][0]["test"], test)
    promised = found["promised"]
    assert [promised[half]["nfr"] for half in "ab"] == [found["chosen"][h]["nfr"] for h in "ab"]


def test_the_chosen_is_the_best_feasible_finalist(searched: tuple[Path, Any]) -> None:
    output, _ = searched
    found = result(output)
    epsilon, candidates = found["settings"]["epsilon"], found["candidates"]
    finalists = [c for c in candidates if c["b"] is not None]
    feasible = [c for c in candidates if c["a"]["gain"] >= -epsilon - 1e-9]
    best = sorted((c["a"]["nfr"], -c["a"]["score"]) for c in feasible)[:2]
    assert sorted((c["a"]["nfr"], -c["a"]["score"]) for c in finalists) == best
    kept = [c for c in finalists if c["b"]["gain"] >= -epsilon - 1e-9]
    chosen = found["chosen"]
    assert chosen in kept
    assert chosen["b"]["nfr"] == min(c["b"]["nfr"] for c in kept)
    assert found["closest"] is None and chosen["name"] in found["why"]


def test_half_a_is_for_all_half_b_for_finalists(
    base: dict[str, Any], searched: tuple[Path, Any]
) -> None:
    output, _ = searched
    answers, found = Answers(output), result(output)
    a, b = halves(base)
    teachers = teachers_of(answers)
    asked_b = {key for key, rows in answers.of.items() if b & rows.keys()} - set(teachers)
    assert len(asked_b) == sum(c["b"] is not None for c in found["candidates"]) == 2
    for trial in found["trials"]:
        assert a <= answers.of[answers.compat(trial["params"])].keys()


def test_the_test_split_is_asked_once_and_last(searched: tuple[Path, Any]) -> None:
    _, log = searched
    tests = [i for i, (kind, of) in enumerate(log) if kind == "ask" and asks_test(of)]
    assert tests == [len(log) - 1]
    versions = log[-1][1]
    assert {name.split("-")[0] for name in versions} == {"old", "new", "candidate"}
    assert len(versions) <= 2 + 4  # chosen, default, always-old, control
    assert all(things == set(range(TEST, TEST + 24)) for things in versions.values())


def asks_test(of: Mapping[str, frozenset[int]]) -> bool:
    return any(thing >= TEST for things in of.values() for thing in things)


def test_references_are_told_from_the_chosen(played: tuple[Path, Any]) -> None:
    output, _ = played
    found, answers = result(output), Answers(output)
    rows = {row["name"]: row for row in found["test"]}
    assert list(rows) == ["chosen", "default", "always-old", "control"]
    assert rows["default"]["compatibility"]["mask"] == "student-wrong"
    assert rows["always-old"]["compatibility"]["mask"] == "always-old"
    control, chosen = rows["control"]["compatibility"], rows["chosen"]["compatibility"]
    assert control["ce_weight"] == 1 and control["interpolation"] == 1
    assert all(control[k] == chosen[k] for k in ("learning_rate", "epochs", "warmup_steps"))
    for name in ("default", "always-old", "control"):
        difference = rows[name]["difference"]
        mine, theirs = found["test"][0]["test"], rows[name]["test"]
        assert difference["nfr"] == pytest.approx(theirs["nfr"] - mine["nfr"])
        assert difference["score"] == pytest.approx(theirs["score"] - mine["score"])
    # On labels alone it is new again: the rule says so.
    assert rows["control"]["test"]["nfr"] == rows["control"]["test"]["nfr_new"]
    assert answers.of.keys() >= set(teachers_of(answers))


def test_all_files_are_there(base: dict[str, Any], searched: tuple[Path, Any]) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file

    from muscle.models import load_base

    output, _ = searched
    found = result(output)
    assert found["schema"] == "muscle.tune/1"
    names = sorted(file.name for file in (output / "trials").iterdir())
    assert names == [f"{t['number']:04d}.json" for t in found["trials"]]
    assert (output / "front.png").read_bytes().startswith(b"\x89PNG")
    page = (output / "tune.md").read_text()
    assert found["chosen"]["name"] in page and found["why"] in page
    adapter = output / "chosen" / "adapter"
    PeftModel.from_pretrained(load_base(base["new"]["model"]), str(adapter))
    tensors = load_file(adapter / "adapter_model.safetensors")
    ranks = {t.shape[0] for name, t in tensors.items() if "lora_A" in name}
    assert ranks == {base["adapter"]["r"]}
    assert leases(output) == []


# --- what it is good for --------------------------------------------------------------------


def run_best(output: Path, folder: Path) -> tuple[dict[str, Any], Real]:
    """`muscle run best.yaml`."""
    launcher = Real()
    experiment = load_experiment(output / "best.yaml", [])
    outcome = Pipeline(make_plan(experiment), str(folder), launcher, not_waiting).run()
    return outcome.report["tasks"]["colours"], launcher


def test_best_runs_as_it_is_and_finds_all_done(searched: tuple[Path, Any], tmp_path: Path) -> None:
    output, _ = searched
    task, launcher = run_best(output, tmp_path / "run")
    assert launcher.log == []
    promised = result(output)["promised"]["test"]
    assert task["pairs"]["old->compat"]["nfr"] == promised["nfr"]
    assert task["pairs"]["old->new"]["nfr"] == promised["nfr_new"]
    gain = task["versions"]["compat"]["score"] - task["versions"]["new"]["score"]
    assert gain == pytest.approx(promised["gain"])
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        served = (tmp_path / "run" / "compat" / "adapter" / name).read_bytes()
        assert served == (output / "chosen" / "adapter" / name).read_bytes()


def prefers_half(who: Who, thing: int) -> bool:
    """Half of the way is best: the whole one loses what new knows."""
    if who.role == "compat" and who.loss["ce_weight"] < 1 and who.weight == 1:
        return thing % 4 == 2
    return usual(who, thing)


def test_an_interpolation_can_be_chosen_and_run(base: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "out"
    settings = changed(base, compatibility={"temperature": 4.0}, tuning={"trials": 1})
    search(settings, output, Played(prefers_half))
    found = result(output)
    assert found["chosen"]["name"] == "trial 0 x 0.5" and found["chosen"]["residual"] > 0
    best = yaml.safe_load((output / "best.yaml").read_text())
    assert best["compatibility"]["interpolation"] == 0.5
    task, launcher = run_best(output, tmp_path / "run")
    assert launcher.log == []
    assert task["pairs"]["old->compat"]["nfr"] == found["promised"]["test"]["nfr"]
    served = (tmp_path / "run/compat/adapter/adapter_model.safetensors").read_bytes()
    assert served == (output / "chosen/adapter/adapter_model.safetensors").read_bytes()


def test_a_search_that_is_done_does_nothing(
    base: dict[str, Any], played: tuple[Path, Any], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(played[0], output)
    launcher = Played()
    search(changed(base, tuning={"concurrent": 7}), output, launcher)
    assert launcher.log == []
    assert result(output) == result(played[0])


def test_a_second_choice_is_no_longer_blind(base: dict[str, Any], tmp_path: Path) -> None:
    """It is said whenever the test split had been read for another one, however often it starts."""
    output = tmp_path / "out"
    fewer = changed(base, tuning={"trials": 2})
    search(fewer, output, Played())
    assert "blind" not in result(output)["why"]
    search(fewer, output, Played())
    assert "blind" not in result(output)["why"]
    search(base, output, Played())
    found = result(output)
    assert "read before, after 2 trials" in found["why"] and "no longer blind" in found["why"]
    search(base, output, Played())
    assert result(output) == found


def test_a_damaged_adapter_of_a_finished_trial_is_made_again(
    base: dict[str, Any], played: tuple[Path, Any], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(played[0], output)
    answers, number = Answers(output), result(output)["chosen"]["trial"]
    key = answers.compat(result(output)["trials"][number]["params"])
    next((output / "artifacts/compat-adapter" / key).glob("attempt-*/*.safetensors")).unlink()
    launcher = Played()
    search(base, output, launcher)
    assert [kind for kind, _ in launcher.log] == ["train"]
    assert result(output) == result(played[0])


def test_stopped_in_a_training_it_goes_on_from_the_checkpoint(
    base: dict[str, Any], trained: tuple[Path, Any], tmp_path: Path
) -> None:
    """With real training: the same bits, and no update twice."""
    output = tmp_path / "out"
    settings = changed(base, tuning=REAL, resources={"checkpoint_seconds": 0.0})
    shutil.copytree(trained[0], output)
    for folder in ("trials", "artifacts/compat-adapter", "artifacts/interpolated-adapter"):
        shutil.rmtree(output / folder)
    seen: list[int] = []

    def watch(progress: Progress) -> None:
        if progress.stage == "trial 1" and progress.done:
            seen.append(progress.done)
            if len(seen) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(settings, output, Real(), watch)
    assert leases(output) == []
    states = [json.loads(f.read_text())["state"] for f in sorted((output / "trials").iterdir())]
    assert states == ["finished", "running"]
    launcher = Real()
    search(settings, output, launcher, watch)
    # The update that was told of when it was stopped is the only one that is made again.
    assert seen == [4, 8, 12, *range(12, 49, 4)]
    assert ("train", ("trial 0",)) not in launcher.log
    again, once = result(output), result(trained[0])
    for one in (again, once):
        del one["provenance"]
    assert again == once


# --- no feasible trial ----------------------------------------------------------------------


def worse(who: Who, thing: int) -> bool:
    """Every distilled adapter loses some of what new knows, the hotter the more."""
    if who.role != "compat" or who.loss["ce_weight"] == 1:
        return usual(who, thing)
    return thing % 4 == 1 or (thing % 4 == 2 and thing % 16 > 2 * who.loss["temperature"])


def only_on(things: set[int], inside: Rule, outside: Rule) -> Rule:
    return lambda who, thing: (inside if thing in things else outside)(who, thing)


def test_no_feasible_trial_is_an_answer(base: dict[str, Any], tmp_path: Path) -> None:
    output, launcher = tmp_path / "out", Played(worse)
    searched = search(changed(base, tuning={"epsilon": 0.0}), output, launcher)
    found = result(output)
    assert found["chosen"] is None and found["promised"] is None and found["test"] == []
    assert searched.best is None and not (output / "best.yaml").exists()
    assert found["why"].startswith("No feasible trial")
    gains = [c["a"]["gain"] for c in found["candidates"]]
    assert found["closest"]["a"]["gain"] == max(gains) < 0
    assert found["closest"]["name"] in (output / "tune.md").read_text()
    assert not any(kind == "ask" and asks_test(of) for kind, of in launcher.log)
    assert all(c["b"] is None for c in found["candidates"])


def test_what_half_a_promised_half_b_can_deny(base: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "out"
    _, b = halves(base)
    launcher = Played(only_on(b, worse, usual))
    search(changed(base, tuning={"epsilon": 0.0}), output, launcher)
    found = result(output)
    assert found["chosen"] is None
    assert found["why"].startswith("No feasible trial") and "on half B" in found["why"]
    assert found["closest"]["a"]["gain"] >= 0 > found["closest"]["b"]["gain"]
    assert not any(kind == "ask" and asks_test(of) for kind, of in launcher.log)


def test_a_reference_that_cannot_be_trained_is_said_and_the_choice_stands(
    base: dict[str, Any], tmp_path: Path
) -> None:
    class Fragile(Played):
        def train_one(self, job: TrainJob) -> None:
            if job.title.endswith("control"):
                raise NotFiniteError("training compat: the loss is nan")
            super().train_one(job)

    output = tmp_path / "out"
    searched = search(base, output, Fragile())
    found = result(output)
    assert [row["name"] for row in found["test"]] == ["chosen", "default", "always-old"]
    assert "control could not be trained: training compat: the loss is nan" in found["why"]
    assert searched.best is not None and not leases(output)
    search(base, output, Played())  # the next start has it
    assert [row["name"] for row in result(output)["test"]][-1] == "control"


# --- several seeds, Pareto --------------------------------------------------------------------


def test_two_seeds_are_measured_together(base: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "out"
    search(changed(base, seeds=[0, 1], tuning={"trials": 2}), output, Played())
    found, answers = result(output), Answers(output)
    a, _ = halves(base)
    for trial in found["trials"]:
        values = []
        for seed in (0, 1):
            key = answers.compat(trial["params"], seed=seed)
            ((inputs, _),) = [
                (i, p) for i, p in answers.artifacts("compat-adapter") if p.parent.name == key
            ]
            values.append(answers.measured((inputs["old"][1], inputs["start"]), key, a))
        assert values[0] != values[1]
        for name in ("nfr", "nfr_new", "gain"):
            assert trial["a"][name] == pytest.approx((values[0][name] + values[1][name]) / 2)
        assert trial["a"]["p"] is None
    for seed in (0, 1):
        adapter = output / "chosen" / f"seed-{seed}" / "adapter" / "adapter_model.safetensors"
        assert adapter.exists()
    task, launcher = run_best(output, tmp_path / "run")
    assert launcher.log == []
    nfr = task["pairs"]["old->compat"]["nfr"]
    assert nfr == pytest.approx(found["promised"]["test"]["nfr"])


def test_a_pareto_search_chooses_too(base: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "out"
    search(changed(base, tuning={"pareto": True}), output, Played())
    found = result(output)
    assert found["settings"]["pareto"] and found["chosen"] is not None
    points = {t["number"]: (t["a"]["nfr"], -t["a"]["score"]) for t in found["trials"]}
    front = [points[number] for number in found["front"]]
    for point in points.values():
        beaten = any(beats(other, point) for other in points.values())
        assert (point in front) != beaten


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]


# --- refused ----------------------------------------------------------------------------------


def test_a_folder_belongs_to_one_search(
    base: dict[str, Any], played: tuple[Path, Any], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(played[0], output, ignore=shutil.ignore_patterns("artifacts"))
    before = {f: f.read_bytes() for f in output.rglob("*") if f.is_file()}
    task = {**base["task"], "prompt": "{{q}} looks"}
    for change, named in (
        ({"tuning": {"epsilon": 0.02}}, r"tuning\.epsilon is 0\.1 there and 0\.02 here"),
        ({"task": task}, r"task\.prompt is "),
        ({"tuning": {"seed": 1}}, r"tuning\.seed"),
        ({"compatibility": {"ce_weight": 0.1}}, r"compatibility\.ce_weight"),
    ):
        launcher = Played()
        with pytest.raises(UserError, match=f"search of another experiment .*{named}") as error:
            search(changed(base, **change), output, launcher)
        assert "\n" not in str(error.value) and launcher.log == []
    assert {f: f.read_bytes() for f in output.rglob("*") if f.is_file()} == before


def test_a_runs_folder_is_no_searchs(base: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UserError, match="holds the report of a run: choose another --output"):
        search(base, tmp_path, Played())
    assert [f.name for f in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("bounds", "nfr", "score", "said"),
    [
        ((-0.04, -0.02), 0.03, 0.8, "fewer negative flips than new, by 2.00 to 4.00 points."),
        ((-0.02, 0.01), 0.03, 0.8, "no difference to new's negative flips."),
        ((0.01, 0.02), 0.03, 0.8, "more negative flips than new, by 1.00 to 2.00 points."),
        ((-0.02, 0.01), 0.01, 0.8, "negative flips; control had fewer there at no lower score."),
        ((-0.02, 0.01), 0.01, 0.6, "no difference to new's negative flips."),
    ],
)
def test_what_the_test_split_delivers_is_said(
    bounds: tuple[float, float], nfr: float, score: float, said: str
) -> None:
    """`nfr` and `score` are the control's; the chosen one has 0.02 and 0.7."""
    ci95 = {"nfr": None, "score": None, "gain": None, "reduction": bounds}
    chosen = Measured(100, 0, 0.02, 0.03, 0.7, 0.0, ci95, None)
    control = Measured(100, 0, nfr, 0.03, score, 0.0, ci95, None)
    rows = [Contender("chosen", {}, chosen), Contender("control", {}, control)]
    assert _delivered(rows).endswith(said)


def test_data_that_changed_in_its_place_is_another_search(
    base: dict[str, Any], played: tuple[Path, Any], tmp_path: Path
) -> None:
    """Trials that were measured on other examples can't be compared with new ones."""
    output = tmp_path / "out"
    shutil.copytree(played[0], output, ignore=shutil.ignore_patterns("artifacts"))
    train = Path(base["task"]["train"])
    before = train.read_text()
    train.write_text(before.replace('thing 7"', 'thing 777"'))
    try:
        with pytest.raises(
            UserError, match=r"another experiment .*what it reads\.training examples"
        ):
            search(base, output, Played())
    finally:
        train.write_text(before)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "halves too small": (
        {"tuning": {"difference": 0.05}},
        r"each half .* has 20, .* takes \d+: raise training\.tuning_fraction",
    ),
    "no halves": ({"training": {"tuning_fraction": 0.001}}, r"tuning_fraction 0\.001"),
    "an empty space": ({"tuning": {"space": {}}}, r"tuning\.space"),
    "an empty list": ({"tuning": {"space": {"mask": []}}}, r"tuning\.space\.mask"),
    "one point": ({"tuning": {"space": {"ce_weight": [0.5]}}}, r"one point"),
    "no training split": ({"task": {"train": None}}, r"task\.train"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cant_be_searched_is_one_line(case: str, base: dict[str, Any], tmp_path: Path) -> None:
    change, expected = BAD[case]
    with pytest.raises(UserError, match=expected) as error:
        search(changed(base, **change), tmp_path / "out", Played())
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_two_tokenizers_are_refused(
    base: dict[str, Any], tiny_models: dict[str, str], tmp_path: Path
) -> None:
    """Even where the experiment itself trains on labels: the space and references don't."""
    other = {"old": {"model": tiny_models["other"]}, "compatibility": {"ce_weight": 1.0}}
    with pytest.raises(UserError, match="different tokenizers"):
        search(changed(base, **other), tmp_path / "out", Played())


def test_given_adapters_are_remarked(base: dict[str, Any], played: tuple[Path, Any]) -> None:
    answers = Answers(played[0])
    old, _ = teachers_of(answers)
    folder = next((played[0] / "artifacts/task-adapter" / old).glob("attempt-*"))
    given = changed(base, old={"adapter": str(folder)})
    examples, note = plan_search(Experiment.model_validate(given)).notes
    assert "half A" in examples and "compare trials" in examples
    assert note.startswith("old bring") and "tuning examples" in note
    assert plan_search(Experiment.model_validate(base)).notes == (examples,)


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def command(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """`muscle tune` with a launcher that plays by a rule; returns the exit code."""
    file = tmp_path / "colours.yaml"

    def call(rule: Rule, *arguments: str) -> int:
        @contextmanager
        def launcher(*ignored: Any) -> Iterator[Played]:
            yield Played(rule)

        monkeypatch.setattr("muscle.commands.ray_launcher", launcher)
        file.write_text(yaml.safe_dump(base))
        with pytest.raises(SystemExit) as stopped:
            main(["tune", str(file), "--output", str(tmp_path / "out"), *arguments])
        return int(stopped.value.code or 0)

    return call


def test_the_command_says_what_was_found(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(usual, "--trials", "2") == 0
    said = capsys.readouterr().out
    out = tmp_path / "out"
    for name in ("tune.md", "front.png", "tune.json", "best.yaml"):
        assert str(out / name) in said
    found = result(out)
    assert found["why"] in " ".join(said.split()) and len(found["trials"]) == 2


def test_the_command_without_a_feasible_trial(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3, and nothing of an earlier answer is left to be served."""
    out = tmp_path / "out"
    (out / "chosen" / "adapter").mkdir(parents=True)
    (out / "best.yaml").write_text("name: stale\n")
    assert command(worse, "--trials", "2", "--set", "tuning.epsilon=0.0") == 3
    assert not (out / "best.yaml").exists() and not (out / "chosen").exists()
    assert "No feasible trial. Closest is trial" in " ".join(capsys.readouterr().out.split())


def test_a_dry_run_says_what_would_be_searched(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(usual, "--dry-run", "--pareto") == 0
    said = capsys.readouterr().out
    for text in (
        "temperature",
        "half A: 20 examples, half B: 20",
        "trials: 4, of which 0 are done",
    ):
        assert text in said
    assert not (tmp_path / "out").exists()
