"""A whole update on chats: two templates, two ways to end a turn, one pair of tokenizers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model, make_tokenizer

from muscle import storage
from muscle.alone import Alone
from muscle.chats import chats_of
from muscle.config import Experiment
from muscle.errors import UserError
from muscle.metrics.outcomes import outcome_of
from muscle.models.head import Head, exchanged
from muscle.models.load import load_tokenizer
from muscle.models.sequences import collate, tokenise
from muscle.pipeline import Pipeline
from muscle.plan import make_plan
from muscle.planning.estimate import reckon
from muscle.planning.facts import gather_facts
from muscle.tables import read_examples, read_predictions
from muscle.tasks import load_task
from muscle.training.student import build_student

ONE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{{ eos_token if m.role == 'assistant' else '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
OTHER = (
    "{{ bos_token }}You are kind.\n{% for m in messages %}<|start|>{{ m.role }}: {{ m.content }}"
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant:{% endif %}"
)
TEAMS = ("billing", "shipping")


def save(folder: Path, seed: int, template: str | None, markers: bool, width: int) -> str:
    """A base whose tokenizer has or hasn't the markers of chats, with a head of some width."""
    tokenizer = make_tokenizer()
    if markers:
        tokenizer.add_tokens(["<|start|>", "<|end|>"], special_tokens=True)
    tokenizer.chat_template = template
    make_model(seed=seed, vocab_size=width, max_position_embeddings=128).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bases")
    size = len(make_tokenizer())
    return {
        "old": save(folder / "old", 0, ONE, False, size),
        "new": save(folder / "new", 1, OTHER, True, size + 2),
        "bare": save(folder / "bare", 0, None, False, size),
    }


def rows(part: str, count: int) -> str:
    found = []
    for i in range(count):
        messages = [{"role": "user", "content": f"{part} {i} is late"}]
        if i % 3 == 0:
            messages += [
                {"role": "assistant", "content": "what else?"},
                {"role": "user", "content": "nothing"},
            ]
        found.append({"id": f"{part}-{i}", "messages": messages, "gold": TEAMS[i % 2]})
    return "".join(json.dumps(row) + "\n" for row in found)


@pytest.fixture
def settings(tmp_path: Path, bases: dict[str, str]) -> dict[str, Any]:
    for part, count in (("train", 24), ("test", 12)):
        (tmp_path / f"{part}.jsonl").write_text(rows(part, count))
    return {
        "name": "tickets",
        "task": {
            "name": "tickets",
            "format": "chat",
            "train": str(tmp_path / "train.jsonl"),
            "test": str(tmp_path / "test.jsonl"),
            "labels": list(TEAMS),
            "max_gen_toks": 8,
        },
        "old": {"model": bases["old"]},
        "new": {"model": bases["new"]},
        "adapter": {"r": 4, "alpha": 8},
        "compatibility": {"level": "token"},
        "training": {
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "epochs": 2,
            "batch_size": 8,
            "accumulation": 1,
            "max_length": 128,
            "dtype": "float32",
        },
        "resources": {"teachers": "cached"},
        "storage": str(tmp_path / "artifacts"),
    }


def run(settings: dict[str, Any], output: Path) -> tuple[Any, Any]:
    plan = make_plan(Experiment.model_validate(settings))
    outcome = Pipeline(plan, str(output), Alone(), lambda _: None).run()
    return plan, outcome


def test_an_update_with_two_templates(settings: dict[str, Any], tmp_path: Path) -> None:
    plan, outcome = run(settings, tmp_path / "cached")
    assert plan.chats is not None and plan.chats.end_of_turn is not None
    assert plan.taught.old.key != plan.taught.new.key and plan.asked.old.key != plan.asked.new.key
    assert any("old teaches by the" in note for note in plan.notes)
    by_version = {}
    for version in ("old", "new", "compat"):
        path = tmp_path / "cached" / version / "tickets.parquet"
        by_version[version] = found = read_predictions(path)
        assert [p.question for p in found] == [p.question for p in by_version["old"]]
        assert all(p.reason and p.prompt for p in found)
    assert by_version["old"][0].prompt.startswith("<s>[user]")
    assert by_version["new"][0].prompt.startswith("<s>You are kind.")
    assert by_version["compat"][0].prompt == by_version["new"][0].prompt
    (shown,) = [d for d in _differences(outcome.report) if d["what"] == "chat template"]
    assert len(set(shown["values"].values())) == 2
    counted = outcome.report["tasks"]["tickets"]["outcomes"]
    for version, found in by_version.items():
        names = [outcome_of(p.reason) for p in found]
        assert counted[version] == {name: names.count(name) for name in counted[version]}
    assert sum(counted["old"].values()) == 12
    markdown = (tmp_path / "cached" / "report.md").read_text()
    assert "answers by outcome" in markdown and "| not a label |" in markdown
    page = (tmp_path / "cached" / "report.html").read_text()
    assert "Answers by outcome" in page and "You are kind." in page
    # Once more, from what is there: nothing is done, and the same bytes are written.
    before = storage.sha256(str(tmp_path / "cached" / "report.json"))
    _, again = run(settings, tmp_path / "cached")
    assert again.report == outcome.report
    assert storage.sha256(str(tmp_path / "cached" / "report.json")) == before


def test_private_chats_show_no_text(settings: dict[str, Any], tmp_path: Path) -> None:
    run({**settings, "report": {"text": "none"}}, tmp_path / "out")
    for name in ("report.html", "report.md", "report.json", "flips.csv", "examples.parquet"):
        content = (tmp_path / "out" / name).read_bytes()
        assert b"is late" not in content and b"You are kind" not in content, name
    outcomes = json.loads((tmp_path / "out" / "report.json").read_text())["tasks"]["tickets"]
    assert sum(outcomes["outcomes"]["new"].values()) == 12


def _differences(report: dict[str, Any]) -> list[dict[str, Any]]:
    return report["tasks"]["tickets"]["comparability"]


def test_cached_and_online_teachers_teach_the_same(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    weights = {}
    for teachers in ("cached", "online"):
        given = {**settings, "resources": {"teachers": teachers}}
        given["storage"] = str(tmp_path / teachers)
        run(given, tmp_path / f"out-{teachers}")
        from safetensors.torch import load_file

        path = tmp_path / f"out-{teachers}" / "compat" / "adapter" / "adapter_model.safetensors"
        weights[teachers] = load_file(path)
    for name, tensor in weights["cached"].items():
        torch.testing.assert_close(tensor, weights["online"][name], rtol=1e-3, atol=1e-4)


def test_old_teaches_the_answers_by_its_own_template(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """Against a naive formula in float64, token by token of each model's own rendering."""
    plan, _ = run(settings, tmp_path / "out")
    pipeline = Pipeline(plan, str(tmp_path / "out"), Alone(), lambda _: None)
    pipeline.teaching.trainings = 1
    (step,) = [s for s in plan.steps() if s.kind == "compat-adapter"]
    job = replace(pipeline.train_job((step.kind, step.key), str(tmp_path / "attempt")), teachers={})
    old_base = plan.old.config.model_copy(update={"adapter": pipeline._adapter("old", (0, 0))})
    job = replace(job, old=old_base, loss=job.loss.model_copy(update={"mask": "always-old"}))
    student, tokenizer = build_student(job, "cpu", half_adapter=False)
    student.eval()
    data = {
        "new": _read(job.examples, tokenizer),
        "old": _read(job.old_examples, load_tokenizer(plan.old.config.model)),
    }
    assert data["new"].fingerprint() == data["old"].fingerprint()
    chosen = [0, 1, 3]
    batch = collate(data["new"], chosen, 2)
    other = collate(data["old"], chosen, 2)
    names = ("input_ids", "attention_mask", "scored")
    batch = replace(batch, old={name: getattr(other, name) for name in names})
    with torch.no_grad():
        sums = student(batch)
        expected = _naive(student, data, chosen, plan.chats.end_of_turn)
    assert sums.kl_old.item() == pytest.approx(expected, rel=1e-4)


def _read(folder: str, tokenizer: Any) -> Any:
    return tokenise(read_examples(f"{folder}/train.parquet"), tokenizer, 128, "all")


def _naive(student: Any, data: Any, rows: list[int], ends: tuple[int, int]) -> float:
    """Sum of KL(old || student) at T = 2 over all tokens of all answers."""
    total = 0.0
    for row in rows:
        logits, places = {}, {}
        for name, model in (("new", student.model), ("old", student.teachers.old)):
            ids = torch.from_numpy(data[name].ids[row])[None]
            logits[name] = model(input_ids=ids).logits[0].double()
            places[name] = [p for a, b in data[name].ranges(row) for p in range(a, b)]
        for at_new, at_old in zip(places["new"], places["old"], strict=True):
            gold_new = int(data["new"].ids[row][at_new])
            gold_old = int(data["old"].ids[row][at_old])
            assert gold_new == (ends[1] if gold_old == ends[0] else gold_old)
            taught = logits["old"][at_old - 1]
            # What old means by its own end of a turn is the student's.
            moved = torch.full_like(logits["new"][at_new - 1], -1e4)
            moved[: len(taught)] = taught
            moved[ends[1]], moved[ends[0]] = taught[ends[0]], torch.tensor(-1e4)
            p = torch.softmax(moved / 2, -1)
            q = torch.log_softmax(logits["new"][at_new - 1] / 2, -1)
            total += float((p * (torch.log(p.clamp_min(1e-300)) - q)).sum())
    return total


def test_heads_in_which_two_ids_change_places() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(4, 3)
    for bias in (None, torch.randn(5)):
        head = Head(torch.randn(5, 3), bias)
        before = head.logits(hidden)
        inside = exchanged(head, (1, 3)).logits(hidden)
        torch.testing.assert_close(inside, before[:, [0, 3, 2, 1, 4]])
        beyond = exchanged(head, (1, 7)).logits(hidden)
        assert beyond.shape == (4, 8)
        torch.testing.assert_close(beyond[:, [0, 7, 2, 3, 4]], before)
        assert (torch.softmax(beyond, -1)[:, [1, 5, 6]] == 0).all()


def test_what_no_update_on_chats_can_be_made_of(
    settings: dict[str, Any], bases: dict[str, str], tmp_path: Path
) -> None:
    def refused(message: str, **changes: Any) -> None:
        experiment = Experiment.model_validate({**settings, **changes})
        with pytest.raises(UserError, match=message) as caught:
            chats_of(experiment, load_task(experiment.task))
        assert "\n" not in str(caught.value)

    refused("^old: the tokenizer of .* has no chat template", old={"model": bases["bare"]})
    no_end = tmp_path / "no-end.jinja"
    no_end.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    new = {"model": bases["new"], "chat_template": str(no_end)}
    refused("^new: .* writes no end-of-turn token", new=new)
    training = {**settings["training"], "max_length": 12}
    refused("every training chat is longer than training.max_length 12", training=training)
    spaced = tmp_path / "spaced.jinja"
    spaced.write_text(OTHER.replace("assistant:{%", "assistant: {%"))
    new = {"model": bases["new"], "chat_template": str(spaced)}
    refused("answers are other tokens in the chat templates", new=new)
    plain = {"name": "tickets", "train": settings["task"]["train"], "prompt": "x", "target": "gold"}
    plain["test"] = settings["task"]["test"]
    new = {"model": bases["new"], "chat_template": str(spaced)}
    refused("setting 'new.chat_template': task 'tickets' is no task of chats", task=plain, new=new)


def test_chats_that_are_too_long_train_nobody(settings: dict[str, Any], tmp_path: Path) -> None:
    path = Path(settings["task"]["train"])
    long = {
        "id": "long",
        "messages": [{"role": "user", "content": "late " * 60}],
        "gold": "billing",
    }
    path.write_text(path.read_text() + json.dumps(long) + "\n")
    plan = make_plan(Experiment.model_validate(settings))
    assert plan.chats is not None and plan.chats.too_long == {"long"}
    assert any("1 of 25 training chats are longer" in note for note in plan.notes)
    sides = [[e.id for part in plan.split_of(v) for e in part] for v in ("old", "new")]
    assert sides[0] == sides[1] and "long" not in sides[0] and len(sides[0]) == 24


@pytest.mark.parametrize("written", [True, False])
def test_whole_answers_are_planned_as_each_base_reads_its_chats(
    settings: dict[str, Any], tmp_path: Path, written: bool
) -> None:
    task = dict(settings["task"])
    if not written:
        task = {k: v for k, v in task.items() if k not in ("labels", "max_gen_toks")}
        task["choices"] = ["billing", "shipping"]
    made = {**settings, "task": task, "compatibility": {"level": "choice", "samples": 1}}
    facts = gather_facts(Experiment.model_validate(made), str(tmp_path))
    steps = [step.label for step in reckon(facts, facts.experiment.resources).steps]
    assert facts.distilled is not None
    assert ("old writes" in steps) == written and "new scores" in steps
    assert set(facts.distilled.train.answers) == ({5} if written else {2})
    old, new = (facts.distilled.scoring[name] for name in ("old", "new"))
    assert old.examples == new.examples and old.tokens != new.tokens, "each by its template"
