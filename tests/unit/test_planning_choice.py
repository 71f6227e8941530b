"""`muscle plan` of whole answers: trees as they are trained, scores as they are kept, folds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from colours import colour_settings, write_data
from tiny import make_model, tiny_config

from muscle.answers import Reader
from muscle.config import AdapterConfig, Experiment, ResourcesConfig
from muscle.errors import UserError
from muscle.evaluation.attention import known_masks
from muscle.experiment import load_experiment
from muscle.losses.choices import Targets
from muscle.models import new_adapter
from muscle.models.load import load_tokenizer
from muscle.models.sequences import micro_batches
from muscle.planning.answers import distilled_notes
from muscle.planning.distilled import Distilled
from muscle.planning.estimate import Reckoned, reckon
from muscle.planning.facts import Facts, gather_facts
from muscle.planning.meta import Ledger, meta_model, trace_training
from muscle.planning.steps import StepEstimate
from muscle.planning.work import forward_work, training_work
from muscle.questions import Questions
from muscle.tasks import load_task
from muscle.teachers.scores import write_scores
from muscle.training.order import permutation, updates
from muscle.training.questions import ChoiceBatch, ChoiceData, choice_data
from muscle.training.student import Student, Teachers, tree_hidden

DEMO = Path(__file__).resolve().parents[2] / "jobs" / "experiments" / "demo.yaml"
QUICK = (
    "training.limit=120",
    "evaluation.limit=20",
    "training.max_length=512",
    "hardware.gpu=A100-80GB",
)
CHOICE = (*QUICK, "compatibility.level=choice")

Gather = Callable[..., Facts]


@pytest.fixture(scope="module")
def gather(tmp_path_factory: pytest.TempPathFactory) -> Gather:
    known: dict[tuple[str, ...], Facts] = {}

    def facts(*overrides: str) -> Facts:
        if overrides not in known:
            output = str(tmp_path_factory.mktemp("plan"))
            known[overrides] = gather_facts(load_experiment(DEMO, overrides), output)
        return known[overrides]

    return facts


def distilled(facts: Facts) -> Distilled:
    assert facts.distilled is not None
    return facts.distilled


def by_label(reckoned: Reckoned) -> dict[str, StepEstimate]:
    return {step.label: step for step in reckoned.steps}


def asked(experiment: Experiment) -> Questions:
    task = load_task(experiment.task)
    return Reader(experiment, task, None).read(experiment.compatibility).new


def as_trained(experiment: Experiment, tree: bool = True) -> ChoiceData:
    """The training's own reading of its questions, with scores of both teachers."""
    questions = asked(experiment).train
    one = {q.id: [0.0] * len(q.query.requests) for q in questions}
    tokenizer = load_tokenizer(experiment.new.model, None)
    scores = {"old": one, "new": one}
    return choice_data(questions, tokenizer, experiment.training.max_length, scores, False, tree)


def test_trees_are_those_that_the_training_runs(gather: Gather) -> None:
    facts = gather(*CHOICE)
    experiment, trees = facts.experiment, distilled(facts).train
    data, settings = as_trained(experiment), experiment.training
    order = permutation(len(data), 0, 0)
    tokens = scored = batches = 0
    for part in updates(len(data), settings.update_size):
        for rows in micro_batches(data, order[part].tolist(), 300):
            batch = data.collate(rows, 0)
            tokens += batch.input_ids.numel()
            scored += len(batch.scored)
            batches += 1
    work = training_work(trees, settings, 0, 300, 1)
    assert (work.tokens, work.scored, work.batches) == (tokens, scored, batches)
    assert sum(trees.answers) == 4 * len(trees) == 4 * len(data)
    kept = facts.training_work(facts.new, 300, 1)
    assert facts.training_work(facts.new, 300, 1, trees) == work != kept, "kept apart"


def test_without_a_tree_each_answer_is_a_row(gather: Gather) -> None:
    from muscle.planning.distilled import _given

    experiment = gather(*CHOICE).experiment
    tokenizer = load_tokenizer(experiment.new.model, None)
    questions = asked(experiment).train
    alone = _given(questions, tokenizer, 512, False)
    data = as_trained(experiment, tree=False)
    batch = data.collate([0, 1], 0)
    # Answers of one token each differ in what is predicted alone, and are one row.
    assert {rows for rows, _ in alone.shapes} == {1, 4}
    rows = sum(rows for rows, _ in alone.shapes[:2])
    assert batch.input_ids.shape == (rows, max(longest for _, longest in alone.shapes[:2]))
    whole = forward_work(alone, 10**9)
    assert (whole.rows, whole.length) == tuple(data.collate(range(len(data)), 0).input_ids.shape)
    assert alone.scored[0] + alone.scored[1] == len(batch.scored)
    together = sum(map(distilled(gather(*CHOICE)).train.size, range(len(questions))))
    assert sum(map(alone.size, range(len(questions)))) > 1.4 * together


def test_no_teacher_is_beside_the_student_and_the_cache_is_small(
    gather: Gather, tmp_path: Path
) -> None:
    choice, token = gather(*CHOICE), gather(*QUICK)
    mine, theirs = (reckon(f, f.experiment.resources) for f in (choice, token))
    online = reckon(choice, ResourcesConfig(teachers="online"))
    assert by_label(online)["train compat"].memory.old_teacher == 0
    assert by_label(theirs)["train compat"].memory.old_teacher > 0
    assert mine.cache.choice.cached and online.cache.choice.cached
    assert mine.cache.bytes < theirs.cache.bytes / 10
    assert "cache old" not in by_label(mine) and "old scores" in by_label(mine)
    # What is written is as large as was reckoned with, but for what a Parquet file is by itself.
    questions = asked(choice.experiment)
    ids = [q.id for q in (*questions.train, *questions.validation)]
    write_scores(tmp_path, {name: [-1.25 - i / 7] * 4 for i, name in enumerate(ids)}, {})
    size = (tmp_path / "scores.parquet").stat().st_size
    assert distilled(choice).score_bytes / 4 < size < 2 * distilled(choice).score_bytes + 2000
    assert mine.cache.bytes == 2 * distilled(choice).score_bytes


def test_only_teachers_that_are_read_are_asked(gather: Gather) -> None:
    facts = gather(*CHOICE, "compatibility.teacher=old")
    found = by_label(reckon(facts, facts.experiment.resources))
    assert "old scores" in found and "new scores" not in found
    labels = gather(*CHOICE, "compatibility.ce_weight=1")
    steps = reckon(labels, labels.experiment.resources)
    assert not any("scores" in step.label for step in steps.steps)
    assert steps.cache.bytes == 0 and not steps.cache.choice.cached


def test_scoring_is_an_evaluation_of_the_inputs(gather: Gather) -> None:
    facts = gather(*CHOICE)
    found = by_label(reckon(facts, facts.experiment.resources))
    per_question = found["evaluate old"].tokens / facts.examples
    n = len(distilled(facts).train) + len(distilled(facts).validation)
    assert found["old scores"].tokens == pytest.approx(per_question * n, rel=0.05)


def test_folds_train_adapters_that_only_teach(gather: Gather) -> None:
    whole, folded = gather(*CHOICE), gather(*CHOICE, "compatibility.folds=4")
    before, after = (by_label(reckon(f, f.experiment.resources)) for f in (whole, folded))
    assert after.keys() - before.keys() == {"train old's folds", "train new's folds"}
    for name in ("old", "new"):
        folds, one = after[f"train {name}'s folds"], before[f"train {name}"]
        assert folds.count == 4
        assert folds.flops == pytest.approx(3 * one.flops)  # four of three quarters
        assert folds.tokens == pytest.approx(3 * one.tokens, abs=4)
        assert after[f"{name} scores"].tokens == before[f"{name} scores"].tokens
        assert after[f"{name} scores"].memory.adapter == 5 * before[f"{name} scores"].memory.adapter
    two = gather(*CHOICE, "compatibility.folds=4", "seeds=[0,1]")
    seeds = by_label(reckon(two, two.experiment.resources))
    assert seeds["train old's folds"].count == 8 and seeds["old scores"].count == 2


def test_answers_that_models_write_are_reckoned_with(gather: Gather) -> None:
    few, many = (
        gather(*CHOICE, "task=testbed_summary", f"compatibility.samples={n}") for n in (0, 4)
    )
    mine, theirs = (by_label(reckon(f, f.experiment.resources)) for f in (few, many))
    assert {"old writes", "new writes", "old scores", "new scores"} <= mine.keys()
    assert set(distilled(few).train.answers) == {3}  # greedy of each, and the right one
    assert set(distilled(many).train.answers) == {11}
    assert distilled(many).writing["old"].requests == 5 * distilled(few).writing["old"].requests
    for label in ("old writes", "new scores", "train compat"):
        assert theirs[label].tokens > mine[label].tokens
    (note,) = [n for n in distilled_notes(many, distilled(many)) if "still to be written" in n]
    assert "4 drawn" in note and "\n" not in note


def test_two_tokenizers_can_be_planned_by_whole_answers(
    tiny_models: dict[str, str], tmp_path: Path
) -> None:
    settings: dict[str, Any] = colour_settings(tiny_models, write_data(tmp_path, test=24))
    settings["old"] = {"model": tiny_models["other"]}
    with pytest.raises(UserError, match="different tokenizers"):
        gather_facts(Experiment.model_validate(settings), str(tmp_path))
    traffic = tmp_path / "traffic.jsonl"
    traffic.write_text("".join(f'{{"q": "thing {i}"}}\n' for i in range(300, 308)))
    settings["compatibility"] = {"level": "choice", "inputs": ["train", {"path": str(traffic)}]}
    facts = gather_facts(Experiment.model_validate(settings), str(tmp_path))
    assert len(distilled(facts).train) == 16 + 8
    assert distilled(facts).scoring["old"].tokens != distilled(facts).scoring["new"].tokens
    assert any(
        "24 inputs (train + traffic.jsonl)" in n for n in distilled_notes(facts, distilled(facts))
    )
    assert all(step.fits for step in reckon(facts, facts.experiment.resources).steps)


@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
def test_the_memory_of_trees_is_that_of_a_real_step(kind: str) -> None:
    """Activations of rows of one length, and the masks that trees take beside them."""
    wide = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6, "head_dim": 16}
    lora, rows, length = AdapterConfig(r=4, alpha=8), 4, 96
    model = new_adapter(make_model(kind, **wide), lora, 0, "plan")
    masks = known_masks(model)
    assert not isinstance(masks, str)
    Student(model, "plan", Teachers((), None), None).training_mode()
    ids_BL = torch.randint(3, 60, (rows, length))
    position_BL = torch.arange(length).expand(rows, length).contiguous()
    ends_BL, scored_N = torch.full((rows, length), length), torch.arange(rows * length)
    targets = Targets(*[scored_N] * 6)  # of no meaning to the body
    batch = ChoiceBatch(ids_BL, position_BL, ends_BL, scored_N, targets, {})
    with Ledger(iter([*model.parameters(), *model.buffers()])) as ledger:
        hidden_ND = tree_hidden(model, batch, masks)
        hidden_ND.backward(torch.ones_like(hidden_ND))
        real = ledger.peak
    meta = meta_model(tiny_config(kind, **wide), lora, "float32", False, kind)
    planned = trace_training(meta, rows, length, False).backward
    of_masks = 4 * len(masks.windows) * rows * length**2
    assert planned + of_masks == pytest.approx(real, rel=0.05)
