"""The pipeline in one process (no Ray): what runs, what is reused, what is refused."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from colours import colour_settings, write_data
from rich.console import Console

from muscle.alone import Alone
from muscle.commands import show_outcome
from muscle.compare import Comparison, compare
from muscle.config import Experiment
from muscle.errors import UserError
from muscle.evaluation.job import EvaluateJob
from muscle.experiment import load_experiment
from muscle.models.fingerprint import fingerprint_adapter, fingerprint_base
from muscle.pipeline import Pipeline, check_output, claim_output
from muscle.plan import make_plan, vary
from muscle.tables import read_about, read_predictions
from muscle.training.job import OnProgress, Progress, TrainJob


def silent(progress: Progress) -> None:
    pass


class Counting(Alone):
    """Runs here, and remembers what it ran."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.ran: list[str] = []

    def train(self, jobs: Sequence[TrainJob], on_progress: OnProgress) -> None:
        super().train(jobs, on_progress)
        self.ran += [job.title for job in jobs]

    def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> tuple[str, ...]:
        notes = super().evaluate(job, on_progress)
        self.ran.append(f"evaluate {len(list(job.asks()))}")
        return notes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), test=12)


def make(base: dict[str, Any], **changes: Any) -> Experiment:
    return Experiment.model_validate({**base, **changes})


def run(experiment: Experiment, output: Path, launcher: Alone | None = None) -> dict[str, Any]:
    pipeline = Pipeline(make_plan(experiment), str(output), launcher or Alone("cpu"), silent)
    return pipeline.run().report


@pytest.fixture(scope="module")
def base(tiny_models: dict[str, str], data: Path) -> dict[str, Any]:
    return colour_settings(tiny_models, data)


@pytest.fixture(scope="module")
def finished(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run's output folder; tests copy it before they change anything."""
    output = tmp_path_factory.mktemp("finished") / "out"
    run(make(base), output)
    return output


def test_one_update_leaves_everything_it_should(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    task = report["tasks"]["colours"]
    assert task["n"] == 12 and task["unscored"] == 0 and task["metric"] == "acc"
    assert set(task["pairs"]) == {"old->new", "old->compat", "new->compat"}
    assert (finished / "report.md").exists()
    for version in ("old", "new", "compat"):
        rows = read_predictions(finished / version / "colours.parquet")
        assert len(rows) == 12
        score = sum(r.score or 0 for r in rows) / 12
        assert task["versions"][version]["score"] == pytest.approx(score)
        assert (finished / version / "adapter" / "adapter_model.safetensors").exists()


def test_running_again_does_nothing(base: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    before = (output / "report.json").read_bytes()
    launcher = Counting()
    run(make(base), output, launcher)
    assert launcher.ran == []
    assert (output / "report.json").read_bytes() == before


def test_resources_names_and_paths_change_no_key(
    base: dict[str, Any], tiny_models: dict[str, str], tmp_path: Path
) -> None:
    plan = make_plan(make(base))
    shutil.copytree(tiny_models["new"], tmp_path / "moved")
    other = make(
        base,
        name="renamed",
        new={"model": str(tmp_path / "moved")},
        resources={"workers": 2, "deepspeed": "zero3", "scoring_tokens": 64},
        storage="elsewhere",
    )
    assert [s.key for s in make_plan(other).steps()] == [s.key for s in plan.steps()]


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"compatibility": {"mask": "old-right"}}, {"train compat", "evaluate compat"}),
        ({"compatibility": {"level": "token", "epochs": 3}}, {"train compat", "evaluate compat"}),
        ({"evaluation": {"limit": 5}}, {"evaluation requests", "evaluate *"}),
        ({"evaluation": {"dtype": "bfloat16"}}, {"evaluate *"}),
        ({"data_seed": 1}, {"training examples", "train *", "evaluate *"}),
        ({"seeds": [7]}, {"train *", "evaluate *"}),
        ({"adapter": {"r": 3, "alpha": 4}}, {"train *", "evaluate *"}),
        ({"tuning": {"trials": 3, "epsilon": 0.1, "space": {"ce_weight": [0.1]}}}, set()),
        ({"compatibility": {"level": "token", "interpolation": 1.0}}, set()),
        ({"gate": {"max_nfr": 0.02}, "report": {"text": "none", "min_slice": 3}}, set()),
    ],
)
def test_a_key_changes_exactly_when_its_numbers_do(
    change: dict[str, Any], changed: set[str], base: dict[str, Any]
) -> None:
    before = {s.label: s.key for s in make_plan(make(base)).steps()}
    after = {s.label: s.key for s in make_plan(make(base, **change)).steps()}
    assert before.keys() == after.keys()
    for label in before:
        expected = label in changed or f"{label.split()[0]} *" in changed
        assert (before[label] != after[label]) == expected, label


def test_the_ce_control_ignores_what_it_does_not_use(base: dict[str, Any]) -> None:
    keys = {
        mask: make_plan(make(base, compatibility={"ce_weight": 1.0, "mask": mask})).steps()[-1].key
        for mask in ("student-wrong", "old-right")
    }
    assert len(set(keys.values())) == 1


def test_held_out_examples_change_the_keys_of_what_trains_on_the_others(
    base: dict[str, Any],
) -> None:
    """A fraction that isn't given leaves all keys as they were before there was one."""
    before = {s.label: s for s in make_plan(make(base)).steps()}
    assert "tuning_fraction" not in before["training examples"].inputs
    held_out = make(base, training={**base["training"], "tuning_fraction": 0.2})
    after = {s.label: s for s in make_plan(held_out).steps()}
    assert before.keys() == after.keys()
    same = {label for label in before if before[label].key == after[label].key}
    assert same == {"evaluation requests"}
    assert "tuning_fraction" not in after["train old"].inputs["training"]
    other = make(base, training={**base["training"], "tuning_fraction": 0.3})
    assert make_plan(other).examples.key != after["training examples"].key


def test_an_interpolation_is_made_of_what_is_there(
    base: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    """Nothing is trained for it, compat alone is asked again, and what is served is the mixture."""
    from safetensors.torch import load_file

    plain = {s.label: s.key for s in make_plan(make(base)).steps()}
    half = make(base, compatibility={"level": "token", "interpolation": 0.5})
    plan = make_plan(half)
    labels = [s.label for s in plan.steps()]
    assert labels.index("train compat") < labels.index("interpolate compat x 0.5")
    assert labels.index("interpolate compat x 0.5") < labels.index("evaluate old")
    keys = {s.label: s.key for s in plan.steps()}
    changed = {label for label in plain if plain[label] != keys[label]}
    assert changed == {"evaluate compat"}
    output = tmp_path / "out"
    shutil.copytree(finished / "artifacts", output / "artifacts")
    launcher = Counting()
    run(half, output, launcher)
    assert launcher.ran == ["evaluate 1"]
    new, compat, served = (
        load_file(folder / "adapter" / "adapter_model.safetensors")
        for folder in (finished / "new", finished / "compat", output / "compat")
    )
    for key in (k for k in served if "lora_A" in k):
        b = key.replace("lora_A", "lora_B")
        exact = 0.5 * (new[b] @ new[key]) + 0.5 * (compat[b] @ compat[key])
        left = (exact - served[b] @ served[key]).norm()
        assert served[key].shape == new[key].shape
        # The nearest of rank 2 leaves what the smaller singular values hold, no more.
        smaller = exact.svd().S[2:].norm()
        assert left == pytest.approx(float(smaller), abs=1e-4)


def test_weights_of_an_interpolation_have_keys_of_their_own(base: dict[str, Any]) -> None:
    plans = [make_plan(make(base, compatibility={"interpolation": w})) for w in (0.5, 0.75, 1.0)]
    served = [plan.predictions["compat", (0, 0)].key for plan in plans]
    assert len(set(served)) == 3 and plans[2].interpolated == {}


def test_shared_storage_trains_task_adapters_once(
    base: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished / "artifacts", store)
    launcher = Counting()
    masked = make(base, storage=str(store), compatibility={"mask": "always-old"})
    run(masked, tmp_path / "out", launcher)
    assert launcher.ran == ["train compat", "evaluate 1"]


def test_an_altered_artifact_is_redone_and_nothing_else(
    base: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    before = json.loads((output / "report.json").read_text())
    step = next(s for s in make_plan(make(base)).steps() if s.label == "evaluate new")
    file = next((output / "artifacts" / step.kind / step.key).glob("attempt-*/*.parquet"))
    file.write_bytes(file.read_bytes()[:-1])
    launcher = Counting()
    assert run(make(base), output, launcher) == before
    assert launcher.ran == ["evaluate 1"]


def test_artifacts_can_live_on_an_object_store(
    base: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    """fsspec's memory store has no renames and no local paths, like S3."""
    where = f"memory://store-{tmp_path.name}-{time.time_ns()}"
    report = run(make(base, storage=where), tmp_path / "out")
    assert report["tasks"] == json.loads((finished / "report.json").read_text())["tasks"]
    launcher = Counting()
    run(make(base, storage=where), tmp_path / "again", launcher)
    assert launcher.ran == []


def test_given_adapters_skip_their_training(
    base: dict[str, Any], finished: Path, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    experiment = make(
        base,
        old={"model": tiny_models["old"], "adapter": str(finished / "old" / "adapter")},
        new={"model": tiny_models["new"], "adapter": str(finished / "new" / "adapter")},
    )
    launcher = Counting()
    report = run(experiment, tmp_path / "out", launcher)
    assert launcher.ran == ["train compat", "evaluate 3"]
    expected = json.loads((finished / "report.json").read_text())["tasks"]
    assert report["tasks"] == expected  # the same adapters, so the same compat and flips


def test_null_test_has_no_flips_against_new(base: dict[str, Any], tmp_path: Path) -> None:
    report = run(make(base, compatibility={"mask": "never-old"}), tmp_path / "out")
    pairs = report["tasks"]["colours"]["pairs"]
    assert pairs["new->compat"]["nfr"] == 0 and pairs["new->compat"]["pfr"] == 0
    assert report["tasks"]["colours"]["reduction"]["nfr"] == 0


def test_several_seeds_train_all_three_and_compat_seeds_only_the_last(
    base: dict[str, Any], tmp_path: Path
) -> None:
    launcher = Counting()
    report = run(make(base, seeds=[0, 1]), tmp_path / "a", launcher)
    assert set(report["tasks"]["colours"]["by_seed"]) == {"0", "1"}
    assert sorted(launcher.ran) == sorted(
        [f"train {v} (seed {s})" for v in ("old", "new", "compat") for s in (0, 1)] + ["evaluate 6"]
    )
    assert (tmp_path / "a" / "seed-1" / "compat" / "colours.parquet").exists()
    launcher = Counting()
    storage = str(tmp_path / "a" / "artifacts")
    run(make(base, compat_seeds=[0, 1, 2], storage=storage), tmp_path / "b", launcher)
    # compat seeds 0 and task seed 0 are there already
    assert sorted(launcher.ran) == ["evaluate 2", "train compat (seed 1)", "train compat (seed 2)"]


# --- the noise floor ------------------------------------------------------------------


def labels(experiment: Experiment) -> list[str]:
    return [step.label for step in make_plan(experiment).steps()]


def test_a_second_old_is_two_steps_more_and_no_other_key(base: dict[str, Any]) -> None:
    plain = {s.label: s.key for s in make_plan(make(base)).steps()}
    floor = {s.label: s.key for s in make_plan(make(base, noise_floor=True)).steps()}
    added = ["train old again (seed 1)", "evaluate old again"]
    assert [label for label in floor if label not in plain] == added
    assert {label: key for label, key in floor.items() if label in plain} == plain
    assert list(floor).index(added[0]) < list(floor).index("train compat")
    # It is what a run with that seed calls old, so a shared store has it once.
    other = {s.label: s.key for s in make_plan(make(base, seeds=[1])).steps()}
    assert floor[added[0]] == other["train old"] and floor[added[1]] == other["evaluate old"]


def test_compat_seeds_share_one_second_old_and_seeds_have_it_anyway(base: dict[str, Any]) -> None:
    shared = labels(make(base, compat_seeds=[0, 1, 2], noise_floor=True))
    assert [label for label in shared if "again" in label] == [
        "train old again (seed 1)",
        "evaluate old again",
    ]
    several = make(base, seeds=[0, 3, 7], noise_floor=True)
    assert labels(several) == labels(make(base, seeds=[0, 3, 7]))
    plan = make_plan(several)
    for run, other in {(0, 0): (3, 3), (3, 3): (7, 7), (7, 7): (0, 0)}.items():
        assert plan.again[run].predictions is plan.predictions["old", other]
        assert plan.again[run].seed == other[0]


def test_a_search_and_its_trials_have_no_noise_floor(base: dict[str, Any]) -> None:
    settings = make(base, noise_floor=True)
    trial = vary(make_plan(settings), settings.compatibility.model_copy(update={"epochs": 2}))
    assert trial.again == {} and not [s for s in trial.steps() if "again" in s.label]
    assert trial.experiment.noise_floor is True  # best.yaml keeps it


def test_a_noise_floor_can_be_had_later_and_is_asked_once(
    base: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    """The same folder goes on: old is trained once more, nothing else is."""
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    before = json.loads((output / "report.json").read_text())["tasks"]["colours"]
    launcher = Counting()
    task = run(make(base, noise_floor=True), output, launcher)["tasks"]["colours"]
    assert launcher.ran == ["train old again (seed 1)", "evaluate 1"]
    assert before["noise_floor"] is None
    for name in ("n", "versions", "pairs", "reduction", "slices", "comparability"):
        assert task[name] == before[name], name
    old, again = (
        {p.id: p.score for p in read_predictions(output / name / "colours.parquet")}
        for name in ("old", "again")
    )
    assert task["noise_floor"]["nfr"] == pytest.approx(
        sum(again[i] < old[i] for i in old) / len(old)
    )
    assert read_about(output / "again" / "colours.parquet")["seed"] == 1
    assert (output / "curves" / "again").exists()
    given = str(output / "again" / "adapter")
    launcher = Counting()
    found = run(make(base, noise_floor=given), output, launcher)["tasks"]["colours"]
    assert launcher.ran == ["evaluate 1"]  # a given adapter goes by its content
    assert found == task
    launcher = Counting()
    run(make(base, noise_floor=given), output, launcher)
    assert launcher.ran == []


def test_with_several_seeds_the_next_old_is_the_second_one(
    base: dict[str, Any], tmp_path: Path
) -> None:
    launcher = Counting()
    experiment = make(base, seeds=[0, 1], noise_floor=True)
    report = run(experiment, tmp_path / "out", launcher)
    assert launcher.ran[-1] == "evaluate 6"
    place = [tmp_path / "out" / f"seed-{seed}" for seed in (0, 1)]
    for here, there in (place, place[::-1]):
        rows = read_predictions(here / "again" / "colours.parquet")
        assert rows == read_predictions(there / "old" / "colours.parquet")
    floors = [block["noise_floor"] for block in report["tasks"]["colours"]["by_seed"].values()]
    assert floors[0]["counts"]["negative"] == floors[1]["counts"]["positive"]


def test_no_second_old_of_a_given_adapter(base: dict[str, Any], finished: Path) -> None:
    adapter = str(finished / "old" / "adapter")
    old = {**base["old"], "adapter": adapter}
    with pytest.raises(ValueError, match=r"give the directory .* another seed"):
        make(base, old=old, noise_floor=True)
    with pytest.raises(UserError, match=r"noise_floor.* is old's own adapter"):
        make_plan(make(base, old=old, noise_floor=adapter))
    with pytest.raises(UserError, match=r"noise_floor.*another base"):
        make_plan(make(base, noise_floor=str(finished / "new" / "adapter")))
    with pytest.raises(UserError, match=r"noise_floor.*nowhere"):
        make_plan(make(base, noise_floor="nowhere"))


# --- the report -----------------------------------------------------------------------


def test_a_run_ends_with_the_report_of_a_comparison(finished: Path) -> None:
    for name in ("report.json", "report.md", "report.html", "report.csv", "flips.csv"):
        assert (finished / name).exists(), name
    assert (finished / "examples.parquet").exists() and not (finished / "gate.json").exists()
    command = json.loads((finished / "report.json").read_text())["provenance"]["command"]
    assert command == "muscle run experiment.json"
    again = load_experiment(finished / "experiment.json")
    check_output(again, str(finished))  # it is the same experiment


def test_predictions_say_how_they_were_made(
    base: dict[str, Any], finished: Path, tiny_models: dict[str, str]
) -> None:
    found = {v: read_about(finished / v / "colours.parquet") for v in ("old", "new", "compat")}
    for version, about in found.items():
        of = "old" if version == "old" else "new"
        assert about["model"] == tiny_models[of] and about["base"] == fingerprint_base(
            about["model"]
        )
        assert about["adapter"] == fingerprint_adapter(str(finished / version / "adapter"))
        assert about["seed"] == 0 and about["dtype"] == "float32" and about["num_fewshot"] == 0
        assert about["software"]["torch"] and about["chat_template"] is None
        assert about["filter"] == "none" and about["limit"] is None
    assert len({about["adapter"] for about in found.values()}) == 3


def test_other_report_settings_only_rewrite_the_report(
    base: dict[str, Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    ids = [p.id for p in read_predictions(output / "old" / "colours.parquet")]
    (tmp_path / "keep.txt").write_text("\n".join(ids))
    launcher = Counting()
    gate = {"max_nfr": 0.9, "min_gain": -0.9, "must_keep": str(tmp_path / "keep.txt")}
    settings = make(base, report={"text": "none", "min_slice": 2}, gate=gate)
    pipeline = Pipeline(make_plan(settings), str(output), launcher, silent)
    outcome = pipeline.run()
    assert launcher.ran == [] and outcome.gate is not None
    show_outcome(outcome, Console(width=200))
    printed = capsys.readouterr().out
    assert outcome.gate["verdict"] in printed.lower()
    names = ("report.html", "report.md", "report.json")
    assert printed.split()[-3:] == [str(output / name) for name in names]
    written = json.loads((output / "gate.json").read_text())
    assert written == outcome.gate
    negative = outcome.report["tasks"]["colours"]["pairs"]["old->compat"]["negative"]
    assert (written["verdict"] == "fail") == (negative > 0)
    assert (output / "junit.xml").exists()
    assert set(pq.read_table(output / "examples.parquet").column("question").to_pylist()) == {None}
    # Without a gate its files go.
    run(make(base), output)
    assert not (output / "gate.json").exists() and not (output / "junit.xml").exists()
    assert (output / "report.json").read_bytes() == (finished / "report.json").read_bytes()


def test_comparing_its_folder_gives_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    request = Comparison(str(finished), output=str(tmp_path / "compared"))
    assert compare(request, Console(quiet=True)) == 0
    ours, theirs = (
        json.loads((folder / "report.json").read_text())["tasks"]
        for folder in (finished, tmp_path / "compared")
    )
    assert theirs == ours


def test_a_list_of_unknown_ids_is_told_after_the_report(
    base: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    (tmp_path / "keep.txt").write_text("nobody\n")
    settings = make(base, gate={"must_keep": str(tmp_path / "keep.txt")})
    with pytest.raises(UserError, match="nobody"):
        run(settings, output)
    assert (output / "report.html").exists() and not (output / "gate.json").exists()


# --- refused --------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["must_keep", "waive"])
def test_the_gates_files_are_read_before_anything_is_trained(
    setting: str, base: dict[str, Any], tmp_path: Path
) -> None:
    settings = make(base, gate={"max_nfr": 0.5, setting: str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match="nowhere"):
        run(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_folder_belongs_to_one_experiment(
    base: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    before = (output / "report.json").read_bytes()
    with pytest.raises(UserError, match=r"another experiment \(training.epochs is 1 there and 2"):
        claim_output(make(base, training={**base["training"], "epochs": 2}), str(output))
    assert (output / "report.json").read_bytes() == before
    claim_output(make(base, resources={"workers": 3}), str(output))  # resources may change


def test_different_tokenizers_are_refused_early_but_labels_still_train(
    base: dict[str, Any], tiny_models: dict[str, str], tmp_path: Path
) -> None:
    other = {"old": {"model": tiny_models["other"]}}
    with pytest.raises(UserError, match=r"different tokenizers.*ce_weight: 1"):
        make_plan(make(base, **other))
    report = run(make(base, **other, compatibility={"ce_weight": 1.0}), tmp_path / "out")
    assert report["tasks"]["colours"]["n"] == 12


def test_a_folder_without_a_report_can_be_taken_over(base: dict[str, Any], tmp_path: Path) -> None:
    """Who mends the setting that an error named goes on in the same folder."""
    claim_output(make(base, data_seed=7), str(tmp_path))
    claim_output(make(base), str(tmp_path))
    assert json.loads((tmp_path / "experiment.json").read_text())["data_seed"] == 0


def test_why_nothing_is_scored_is_told(
    base: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = {k: v for k, v in base["task"].items() if k != "choices"}
    long = make(base, task={**task, "max_gen_toks": 128})  # all of the tiny models' window
    pipeline = Pipeline(make_plan(long), str(tmp_path / "out"), Alone("cpu"), silent)
    outcome = pipeline.run()
    assert sum(outcome.errors.values()) == 36
    with pytest.raises(UserError, match=r"no example could be scored.*max_gen_toks"):
        show_outcome(outcome, Console())
    assert "unscored: 36 answers: " in capsys.readouterr().out


def test_an_output_that_is_a_file_is_refused(base: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UserError, match=r"--output is .* a file"):
        check_output(make(base), str(file))
    with pytest.raises(UserError, match=r"storage is .* a file"):
        check_output(make(base, storage=str(file)), str(tmp_path / "out"))
    assert file.read_text() == "mine"


def test_what_a_launcher_refuses_leaves_no_output(base: dict[str, Any], tmp_path: Path) -> None:
    class Unreachable(Counting):
        def prepare(self, on_progress: OnProgress) -> None:
            raise UserError("no cluster")

    with pytest.raises(UserError, match="no cluster"):
        run(make(base), tmp_path / "out", Unreachable())
    assert not (tmp_path / "out").exists()


def test_prompts_in_both_splits_are_named(base: dict[str, Any], data: Path) -> None:
    assert make_plan(make(base)).notes == ()
    leaking = {**base["task"], "test": str(data / "train.jsonl")}
    assert make_plan(make(base, task=leaking)).notes == (
        "20 of 20 evaluation prompts are also prompts of the training split",
    )


def test_an_adapter_for_another_base_is_refused(
    base: dict[str, Any], finished: Path, tiny_models: dict[str, str]
) -> None:
    wrong = {"model": tiny_models["old"], "adapter": str(finished / "new" / "adapter")}
    with pytest.raises(UserError, match="another base"):
        make_plan(make(base, old=wrong))


def test_a_missing_model_directory_is_named(base: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        make_plan(make(base, old={"model": str(tmp_path / "nowhere")}))


def test_what_stopped_a_training_loses_nothing(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN in compat: one line, task adapters stay, mended settings go on from there."""

    class Diverging(Counting):
        def train(self, jobs: Sequence[TrainJob], on_progress: OnProgress) -> None:
            if jobs[0].role == "compat":
                raise UserError("training compat: the loss is nan")
            super().train(jobs, on_progress)

    launcher = Diverging()
    with pytest.raises(UserError, match="loss is nan"):
        run(make(base), tmp_path / "out", launcher)
    assert launcher.ran == ["train old", "train new"]
    assert not (tmp_path / "out" / "report.json").exists()
    again = Counting()
    run(make(base), tmp_path / "out", again)
    assert again.ran == ["train compat", "evaluate 3"]
