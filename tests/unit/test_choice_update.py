"""A whole update at level choice, in one process: what is made, reused, refused."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from colours import colour_settings, write_data
from safetensors.torch import load_file
from tiny import save_model

from muscle.alone import Alone
from muscle.answering import Answering, teaching_of
from muscle.artifacts import Store
from muscle.config import Experiment
from muscle.errors import UserError
from muscle.evaluation.job import EvaluateJob
from muscle.pipeline import Pipeline
from muscle.plan import Plan, make_plan, vary
from muscle.tables import read_predictions
from muscle.teachers.scores import FILE, read_scores, write_scores
from muscle.training.job import OnProgress, Progress, TrainJob
from muscle.training.loop import train_alone

pytestmark = pytest.mark.slow

CHOICE = {"level": "choice", "temperature": 1.0}


def silent(progress: Progress) -> None:
    pass


class Counting(Alone):
    """Runs here, and remembers what it ran."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.trained: list[str] = []
        self.asked = 0

    def train(self, jobs: Sequence[TrainJob], on_progress: OnProgress) -> None:
        super().train(jobs, on_progress)
        self.trained += [job.title for job in jobs]

    def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> tuple[str, ...]:
        self.asked += len(list(job.asks()))
        return super().evaluate(job, on_progress)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base whose tokenizer has other words."""
    return save_model(tmp_path_factory.mktemp("other"), window=256)


@pytest.fixture(scope="module")
def base(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = write_data(tmp_path_factory.mktemp("data"), test=12)
    settings = colour_settings(tiny_models, data)
    settings["storage"] = str(tmp_path_factory.mktemp("store"))  # old and new are trained once
    return settings


def plan_of(base: dict[str, Any], **compatibility: Any) -> Plan:
    given = {"compatibility": {**CHOICE, **compatibility}}
    return make_plan(Experiment.model_validate({**base, **given}))


def run(plan: Plan, output: Path, launcher: Alone | None = None) -> dict[str, Any]:
    return Pipeline(plan, str(output), launcher or Alone("cpu"), silent).run().report


def scores_of(plan: Plan, version: str) -> dict[str, list[float]]:
    assert plan.answers is not None and plan.experiment.storage is not None
    step = plan.answers.scores[version, (0, 0)]  # type: ignore[index]
    artifact = Store(plan.experiment.storage).find(step.kind, step.key)
    assert artifact is not None
    identity = json.loads(pq.read_schema(artifact.file(FILE)).metadata[b"muscle.identity"])
    return read_scores(artifact.path, identity)


def test_scores_are_what_evaluation_says_and_are_made_once(
    base: dict[str, Any], tmp_path: Path
) -> None:
    launcher = Counting()
    plan = plan_of(base)
    report = run(plan, tmp_path / "a", launcher)
    assert launcher.trained == ["train old", "train new", "train compat"]
    assert report["tasks"]["colours"]["n"] == 12
    train, validation = plan.split_of("new")
    found = scores_of(plan, "old")
    assert set(found) == {e.id for e in [*train, *validation]}
    assert all(len(scores) == 3 and max(scores) < 0 for scores in found.values())
    # Evaluated on the same examples, old says the same.
    twin = plan.task.on_training(sorted(found))
    engine_says = {}
    from muscle.evaluation.engine import Engine
    from muscle.teaching import adapter_folder

    pipeline = Pipeline(plan, str(tmp_path / "a"), launcher, silent)
    adapter = adapter_folder(plan, pipeline.workshop, "old", (0, 0))
    engine = Engine(plan.old.config.model, None, {"old": adapter}, "float32", None, device="cpu")
    for answer in engine.answer("old", twin.queries()):
        engine_says[answer.id] = [output.loglikelihood for output in answer.outputs]
    for name, scores in found.items():
        assert scores == pytest.approx(engine_says[name], rel=1e-4)
    # Other settings of the loss read the same scores.
    again = Counting()
    run(plan_of(base, teacher="confident", margin=0.5), tmp_path / "b", again)
    assert again.trained == ["train compat"] and again.asked == 1


def test_a_second_run_does_nothing_and_the_curve_is_per_input(
    base: dict[str, Any], tmp_path: Path
) -> None:
    plan = plan_of(base, teacher="mean", mix=0.25, epochs=2)
    run(plan, tmp_path / "out")
    again = Counting()
    run(plan, tmp_path / "out", again)
    assert again.trained == [] and again.asked == 0
    step = plan.adapters["compat", (0, 0)]
    assert step is not None and plan.experiment.storage is not None
    artifact = Store(plan.experiment.storage).find(step.kind, step.key)
    assert artifact is not None
    notes = json.loads(Path(artifact.file("training.json")).read_text())
    for epoch in notes["curve"]:
        assert epoch["old_share"] == pytest.approx(0.25)
        assert 0 <= epoch["loss"] <= 0.25 * epoch["kl_old"] + 0.75 * epoch["kl_new"] + 1e-9
        assert math.isfinite(epoch["validation_loss"])
    best = min(notes["curve"], key=lambda e: e["validation_loss"])
    assert notes["best_epoch"] == best["epoch"]


def test_taught_by_new_alone_compat_stays_new(base: dict[str, Any], tmp_path: Path) -> None:
    """The null test: who starts at its teacher has nothing to learn."""
    run(plan_of(base, teacher="new"), tmp_path / "out")
    new, compat = (
        read_predictions(next((tmp_path / "out").glob(f"**/{name}/colours.parquet")))
        for name in ("new", "compat")
    )
    for before, after in zip(new, compat, strict=True):
        assert after.loglikelihoods == pytest.approx(before.loglikelihoods, abs=5e-2)


@pytest.mark.parametrize("teacher", ["old", "mean"])
def test_an_update_across_tokenizers(
    base: dict[str, Any], other_model: str, teacher: str, tmp_path: Path
) -> None:
    across = {**base, "new": {"model": other_model}}
    with pytest.raises(UserError, match=r"different tokenizers.*level: choice"):
        make_plan(Experiment.model_validate(across))
    plan = plan_of(across, teacher=teacher, epochs=6, learning_rate=3e-2)
    report = run(plan, tmp_path / "out")
    assert report["tasks"]["colours"]["versions"]["compat"]["score"] is not None
    # It has come nearer to old, whose tokens it doesn't read.
    step = plan.adapters["compat", (0, 0)]
    assert step is not None and plan.experiment.storage is not None
    artifact = Store(plan.experiment.storage).find(step.kind, step.key)
    assert artifact is not None
    curve = json.loads(Path(artifact.file("training.json")).read_text())["curve"]
    assert curve[-1]["kl_old"] < 0.8 * curve[0]["kl_old"]


def test_folds_are_taught_by_adapters_that_have_not_seen_them(
    base: dict[str, Any], tmp_path: Path
) -> None:
    launcher = Counting()
    plan = plan_of(base, folds=2)
    assert plan.answers is not None
    run(plan, tmp_path / "out", launcher)
    assert sum("without part" in title for title in launcher.trained) == 4
    train, validation = (  # ids
        {example.id for example in part} for part in plan.split_of("new")
    )
    first, second = (fold.ids for fold in plan.answers.folds)
    assert first | second == train and not first & second and abs(len(first) - len(second)) <= 1
    mine, shipped = scores_of(plan, "old"), scores_of(plan_of(base), "old")
    assert mine.keys() == shipped.keys() == train | validation
    assert all(mine[name] == shipped[name] for name in validation)
    assert all(mine[name] != shipped[name] for name in train)
    with pytest.raises(UserError, match=r"compatibility\.folds' is 50"):
        plan_of(base, folds=50)


def written_task(base: dict[str, Any], **compatibility: Any) -> Plan:
    task = {**base["task"], "max_gen_toks": 4}
    del task["choices"]
    training = {**base["training"], "epochs": 3}
    return plan_of({**base, "task": task, "training": training}, **compatibility)


def test_written_answers_get_candidates(
    base: dict[str, Any], other_model: str, tmp_path: Path
) -> None:
    """Old's, new's and the right one, from models of two tokenizers."""
    plan = written_task({**base, "new": {"model": other_model}}, samples=3)
    launcher = Counting()
    run(plan, tmp_path / "out", launcher)
    assert launcher.asked == 7  # both teachers write, then score; three versions are evaluated
    assert plan.answers is not None and plan.experiment.storage is not None
    store = Store(plan.experiment.storage)
    step = plan.answers.questions[0, 0].new
    artifact = store.find(step.kind, step.key)
    assert artifact is not None
    rows = pq.read_table(artifact.file("train.parquet")).to_pylist()
    golds = {example.id: example.answer for example in plan.split_of("new")[0]}
    for row in rows:
        texts = [request["continuation"] for request in row["requests"]]
        assert 2 <= len(texts) == len({t.strip() for t in texts}) <= 1 + 2 * (1 + 3)
        assert texts[row["gold"]] == golds[row["id"]]
        assert row["lengths"] == [len(t.strip()) for t in texts]
    old, new = (scores_of(plan, version) for version in ("old", "new"))
    assert {row["id"] for row in rows} <= old.keys() == new.keys()


def test_what_the_task_decides_of_the_loss(base: dict[str, Any]) -> None:
    """Written answers are kept likely and compared whole; given ones as the metric has them."""

    def decided(plan: Plan) -> tuple[float | None, bool | None]:
        assert plan.answers is not None
        return plan.answers.loss.nll_weight, plan.answers.loss.length_normalised

    assert decided(written_task(base)) == (1.0, False)
    assert decided(written_task(base, teacher="new")) == (0.0, False)  # the null test
    assert decided(written_task(base, teacher="new", margin=1.0)) == (1.0, False)
    assert decided(written_task(base, nll_weight=0.3)) == (0.3, False)
    assert decided(plan_of(base)) == (0.0, False)
    acc_norm = {**base, "task": {**base["task"], "metric": "acc_norm"}}
    assert decided(plan_of(acc_norm)) == (0.0, True)
    # A setting that says nothing is in no key: what was trained before there was one stays.
    given, weighed = (
        plan.adapters["compat", (0, 0)] for plan in (plan_of(base), plan_of(base, nll_weight=0.5))
    )
    assert given is not None and weighed is not None and given.key != weighed.key
    assert "nll_weight" not in dict(given.inputs["loss"])  # type: ignore[call-overload]


def test_scores_of_something_else_are_refused(base: dict[str, Any], tmp_path: Path) -> None:
    write_scores(tmp_path, {"a": [-1.0, -2.0], "b": [-3.0]}, {"base": "x", "adapter": "y"})
    identity = {"base": "x", "adapter": "y"}
    assert read_scores(str(tmp_path), identity) == {"a": [-1.0, -2.0], "b": [-3.0]}
    with pytest.raises(UserError, match="made of another adapter: 'y' there and 'z' here"):
        read_scores(str(tmp_path), {"base": "x", "adapter": "z"})
    with pytest.raises(UserError, match="made of another weights"):
        read_scores(str(tmp_path), {**identity, "weights": "w"})
    write_scores(tmp_path, {"a": [-1.0, float("nan")]}, identity)
    with pytest.raises(UserError, match="hold NaN"):
        read_scores(str(tmp_path), identity)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:100])
    with pytest.raises(UserError, match="can't be read"):
        read_scores(str(tmp_path), identity)
    with pytest.raises(UserError, match="can't be read"):
        read_scores(str(tmp_path / "nowhere"), identity)


def test_damaged_scores_are_made_again(base: dict[str, Any], tmp_path: Path) -> None:
    settings = {**base, "storage": str(tmp_path / "store")}
    plan = plan_of(settings)
    run(plan, tmp_path / "a")
    assert plan.answers is not None
    step = plan.answers.scores["old", (0, 0)]
    (file,) = (tmp_path / "store" / step.kind / step.key).glob(f"*/{FILE}")
    file.write_bytes(b"damaged")
    shutil.rmtree(tmp_path / "store" / "compat-adapter")
    again = Counting()
    run(plan, tmp_path / "b", again)
    assert again.trained == ["train compat"] and again.asked == 1


def test_trials_share_what_they_ask(base: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_of(base)
    settings = plan.experiment.compatibility.model_copy(update={"teacher": "old"})
    other = vary(plan, settings)
    assert plan.answers is not None and other.answers is not None
    assert other.answers.asked is plan.answers.asked
    assert other.answers.scores["old", (0, 0)].key == plan.answers.scores["old", (0, 0)].key
    assert ("new", (0, 0)) not in other.answers.scores  # old alone teaches
    one, two = plan.adapters["compat", (0, 0)], other.adapters["compat", (0, 0)]
    assert one is not None and two is not None and one.key != two.key
    assert isinstance(teaching_of(plan, Store(str(tmp_path))), Answering)


def test_labels_alone_read_no_teacher(base: dict[str, Any], tmp_path: Path) -> None:
    launcher = Counting()
    plan = plan_of(base, ce_weight=1.0)
    assert plan.answers is not None and not plan.answers.scores
    run(plan, tmp_path / "out", launcher)
    assert launcher.asked <= 3  # the versions' own answers


def test_a_training_that_stops_goes_on_with_the_same_weights(
    base: dict[str, Any], tmp_path: Path
) -> None:
    plan = plan_of(base, epochs=3, inputs=["train"], margin=0.25)
    pipeline = Pipeline(plan, str(tmp_path / "out"), Alone("cpu"), silent)
    pipeline.train_tasks()
    pipeline.teaching.make(pipeline.workshop, pipeline.launcher)
    step = plan.adapters["compat", (0, 0)]
    assert step is not None
    job = pipeline.train_job((step.kind, step.key), str(tmp_path / "whole"))
    assert TrainJob.from_json(json.loads(json.dumps(job.to_json()))) == job
    train_alone(replace(job, checkpoints=str(tmp_path / "a")), silent, "cpu")
    halves = replace(job, checkpoints=str(tmp_path / "b"), output=str(tmp_path / "halves"))
    train_alone(replace(halves, until=1, output=str(tmp_path / "first")), silent, "cpu")
    train_alone(halves, silent, "cpu")
    whole, pieced = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "halves")
    )
    assert all(torch.equal(whole[name], pieced[name]) for name in whole)


def test_teachers_online_is_answered(base: dict[str, Any]) -> None:
    plan = plan_of({**base, "resources": {"teachers": "online"}})
    choice = teaching_of(plan, Store(str(base["storage"]))).choice
    assert choice.cached and "resources.teachers is online, but" in choice.reason
