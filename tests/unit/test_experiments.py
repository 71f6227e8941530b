"""Every shipped experiment file resolves, and the paper's say what the paper says."""

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from muscle.config import Experiment
from muscle.experiment import load_experiment
from muscle.fleet.settings import is_fleet, load_fleet

EXPERIMENTS = Path(__file__).parents[2] / "jobs" / "experiments"
ALL = sorted(EXPERIMENTS.rglob("*.yaml"))
PAPER = sorted((EXPERIMENTS / "paper").glob("*.yaml"))

MODELS = {
    "llama1": "huggyllama/llama-7b",
    "llama2": "meta-llama/Llama-2-7b-hf",
    "phi1": "microsoft/phi-1",
    "phi1.5": "microsoft/phi-1_5",
    "phi2": "microsoft/phi-2",
    "vicuna1.3": "lmsys/vicuna-7b-v1.3",
    "vicuna1.5": "lmsys/vicuna-7b-v1.5",
}
TASKS = ("hellaswag", "piqa", "gsm8k", "samsum")
UPDATES = ("llama1-llama2", "phi1.5-phi2", "phi1-phi1.5", "vicuna1.3-vicuna1.5")
# A.4: where v1 is much weaker.
WITH_CE = {
    "piqa-phi1-phi1.5",
    "samsum-phi1-phi1.5",
    "gsm8k-phi1-phi1.5",
    "gsm8k-phi1.5-phi2",
    "hellaswag-phi1-phi1.5",
    "hellaswag-phi1.5-phi2",
}
# Setting -> the paper's value (§4, §5, A.1).
PUBLISHED = {
    "adapter.r": 128,
    "adapter.alpha": 256,
    "adapter.dropout": 0.0,
    "adapter.targets": "all-linear",
    "training.learning_rate": 1e-4,
    "training.warmup_steps": 500,
    "training.weight_decay": 0.0,
    "training.epochs": 10,
    "training.accumulation": 8,
    "training.loss_on": "all",
    "training.validation_fraction": 0.2,
    "compatibility.level": "token",
    "compatibility.mask": "student-wrong",
    "compatibility.temperature": 2.0,
}
UNPUBLISHED = {
    "old.revision",
    "new.revision",
    "task.num_fewshot",
    "training.batch_size",
    "training.schedule",
    "training.max_length",
    "training.clip_norm",
    "training.dtype",
    "seeds",
    "data_seed",
}


def paper_files() -> Any:
    return pytest.mark.parametrize("file", PAPER, ids=lambda file: file.stem)


def dig(tree: Any, key: str) -> Any:
    """The value at `a.b` of nested mappings or models; KeyError if there is no such setting."""
    for name in key.split("."):
        if not isinstance(tree, dict):
            tree = {field: getattr(tree, field) for field in type(tree).model_fields}
        tree = tree[name]
    return tree


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("reading an experiment file must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("file", ALL, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_shipped_file_resolves(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = file.read_text(encoding="utf-8")
    for name in re.findall(r"\$\{(\w+)\}", text):
        monkeypatch.setenv(name, "/somewhere")
    if is_fleet(file):
        assert all(isinstance(e.experiment, Experiment) for e in load_fleet(file).entries)
    else:
        assert isinstance(load_experiment(file), Experiment)
    assert "/work/" not in text and "/root/" not in text, "a path of one machine"


def test_the_sixteen_published_cells_are_there() -> None:
    assert {file.stem for file in PAPER} == {f"{t}-{u}" for t in TASKS for u in UPDATES}


@paper_files()
def test_the_name_says_what_the_file_holds(file: Path) -> None:
    experiment = load_experiment(file)
    task, old, new = file.stem.split("-")
    assert experiment.name == file.stem
    assert experiment.task.name == task
    assert (experiment.old.model, experiment.new.model) == (MODELS[old], MODELS[new])
    # Both adapters are trained here, none is brought along.
    assert experiment.old.adapter is None and experiment.new.adapter is None


@paper_files()
def test_the_papers_values_are_stated(file: Path) -> None:
    raw, experiment = yaml.safe_load(file.read_text(encoding="utf-8")), load_experiment(file)
    for key, value in PUBLISHED.items():
        assert dig(raw, key) == value, f"{key} is written in the file, not left to a default"
        assert dig(experiment, key) == value
    # "Same hyper-parameters" for the compatibility adapter (A.1).
    assert experiment.compat_training == experiment.training


@pytest.mark.parametrize(
    "name",
    ["demo", "demo-tune", *(f"local/{f.stem}" for f in (EXPERIMENTS / "local").glob("*.yaml"))],
)
def test_what_docs_give_numbers_of_states_its_level(name: str) -> None:
    """So a later default of the level changes none of it."""
    raw = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert raw["compatibility"]["level"] == "token"


@paper_files()
def test_cross_entropy_where_the_paper_uses_it(file: Path) -> None:
    experiment = load_experiment(file)
    used = file.stem in WITH_CE
    assert experiment.compatibility.ce_weight == (0.5 if used else 0.0)
    # That it is used is published, its weight is not.
    assert ("compatibility.ce_weight" in experiment.assumed) == used
    assert ("auxiliary cross-entropy" in file.read_text(encoding="utf-8")) == used


@paper_files()
def test_what_is_not_published_is_marked_assumed(file: Path) -> None:
    experiment = load_experiment(file)
    assert set(experiment.assumed) >= UNPUBLISHED
    assert not set(experiment.assumed) & set(PUBLISHED)
    for key, why in experiment.assumed.items():
        dig(experiment, key)  # names a real setting
        assert isinstance(why, str) and len(why) > 10
    assert experiment.task.num_fewshot == 0


@paper_files()
def test_one_gpu_for_a_worker_and_a_deepspeed_file_that_exists(file: Path) -> None:
    resources = load_experiment(file).resources
    assert resources.gpus_per_worker == 1 and resources.gpus_per_actor == 1
    assert resources.deepspeed == "zero2"
    stages = EXPERIMENTS.parents[1] / "cluster" / "deepspeed"
    assert (stages / f"{resources.deepspeed}.json").is_file()


@paper_files()
def test_the_published_numbers_in_the_comment_agree_with_each_other(file: Path) -> None:
    """∆% = ∆NFR / NFR(old→new), up to the rounding of numbers printed with two decimals."""
    head = file.read_text(encoding="utf-8").split("\nname:")[0]
    found = re.search(r"NFR old->new ([\d.]+); compat changes it by (\S+) points \((\S+) %\)", head)
    assert found, "the head of the file states the cell's NFR"
    nfr, delta, percent = map(float, found.groups())
    rounding = 100 * (0.005 + 0.005 * abs(delta) / nfr) / nfr + 0.005
    assert 100 * delta / nfr == pytest.approx(percent, abs=rounding)
    assert re.search(r"old [\d.]+, new [\d.]+, compat [\d.]+", head)
