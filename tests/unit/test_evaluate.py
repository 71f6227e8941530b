"""`muscle evaluate` in one process: what is typed, what is kept, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import save_random_adapter

from muscle.alone import Alone
from muscle.commands import show_evaluated
from muscle.errors import UserError
from muscle.evaluate import Evaluated, Evaluating, plan_evaluation
from muscle.evaluation.job import EvaluateJob
from muscle.experiment import build_evaluation, given_settings
from muscle.metrics.summary import repeat_noise, score_summary
from muscle.tables import read_about, read_predictions
from muscle.training.job import OnProgress, Progress
from muscle.types import Prediction

COLOURS = ["red", "blue", "green"]


def silent(progress: Progress) -> None:
    pass


class Counting(Alone):
    """Runs here, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.asked: list[str] = []

    def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> tuple[str, ...]:
        self.asked += [ask.version for _, ask in job.asks()]
        return super().evaluate(job, on_progress)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A task file of our own, with its data beside it."""
    folder = tmp_path_factory.mktemp("task")
    rows = [{"q": f"thing {i}", "a": COLOURS[i % 3]} for i in range(12)]
    (folder / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "colours.yaml").write_text(
        "name: colours\ntest: test.jsonl\nprompt: '{{q}} is'\n"
        f"choices: {json.dumps(COLOURS)}\ntarget: a\n"
    )
    return str(folder / "colours.yaml")


def run(
    tasks: list[str], models: list[str], output: Path, launcher: Alone | None = None, **more: Any
) -> Evaluated:
    config = build_evaluation(given_settings(tasks, models) | more)
    return Evaluating(plan_evaluation(config), str(output), launcher or Alone("cpu"), silent).run()


def test_predictions_and_scores(task: str, tiny_models: dict[str, str], tmp_path: Path) -> None:
    adapter = save_random_adapter(tmp_path / "adapter", tiny_models["old"], 1)
    models = [
        f"old={tiny_models['old']}+{adapter}",
        f"bare={tiny_models['old']}",
        f"new={tiny_models['new']}",
    ]
    done = run([task], models, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert saved == done.result
    for name in ("old", "bare", "new"):
        rows = read_predictions(tmp_path / "out" / name / "colours.parquet")
        assert [r.gold for r in rows] == [COLOURS[i % 3] for i in range(12)]
        found = saved["versions"][name]["tasks"]["colours"]
        assert found["score"] == pytest.approx(sum(r.score or 0 for r in rows) / 12)
        assert found["scores"]["acc,none"] == pytest.approx(found["score"])  # the harness's own
        assert found["n"] == 12 and found["unscored"] == 0
    old, bare = (
        read_predictions(tmp_path / "out" / n / "colours.parquet") for n in ("old", "bare")
    )
    assert old[0].loglikelihoods != bare[0].loglikelihoods  # the adapter answers


def test_predictions_say_how_they_were_made(
    task: str, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    adapter = save_random_adapter(tmp_path / "adapter", tiny_models["old"], 1)
    models = [f"old={tiny_models['old']}+{adapter}", f"new={tiny_models['new']}"]
    prompting = {"system_instruction": "Be brief."}
    evaluation = {"limit": 5, "max_length": 100}
    done = run([task], models, tmp_path / "out", prompting=prompting, evaluation=evaluation)
    about = {
        name: read_about(tmp_path / "out" / name / "colours.parquet") for name in ("old", "new")
    }
    for name, found in about.items():
        version = done.result["versions"][name]
        assert found["base"] == version["fingerprint"] and found["model"] == tiny_models[name]
        assert found["adapter"] == version["adapter_fingerprint"]
        assert (found["limit"], found["max_length"], found["dtype"]) == (5, 100, "float32")
        assert found["system_instruction"] == "Be brief." and found["num_fewshot"] == 0
        assert found["chat_template"] is None and found["fewshot_as_multiturn"] is False
        assert found["backend"] == "transformers" and found["groups"] == []
        assert set(found["software"]) == {"muscle", "lm_eval", "transformers", "torch"}
    assert about["old"]["adapter_path"] == adapter and about["new"]["adapter"] is None
    rows = read_predictions(tmp_path / "out" / "old" / "colours.parquet")
    assert all(row.document and row.fields["a"] == row.gold for row in rows)


def test_going_on_asks_only_what_is_missing(
    task: str, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    first, second, third = Counting(), Counting(), Counting()
    old, new = (f"{n}={tiny_models[n]}" for n in ("old", "new"))
    run([task], [old], tmp_path, first)
    assert first.asked == ["old"]
    before = (tmp_path / "old" / "colours.parquet").read_bytes()
    done = run([task], [old, new], tmp_path, second)
    assert second.asked == ["new"]
    assert (tmp_path / "old" / "colours.parquet").read_bytes() == before
    assert set(done.result["versions"]) == {"old", "new"}
    done = run([task], [new], tmp_path, third)
    assert third.asked == []
    assert set(done.result["versions"]) == {"new"}  # shown: what was asked for
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(saved["versions"]) == {"old", "new"}  # kept: everything


def test_one_model_under_two_names_is_asked_once(
    task: str, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    launcher = Counting()
    models = [f"a={tiny_models['old']}", f"b={tiny_models['old']}"]
    run([task], models, tmp_path, launcher)
    assert len(launcher.asked) == 1
    a, b = (read_predictions(tmp_path / name / "colours.parquet") for name in "ab")
    assert a == b


def test_another_model_under_the_same_name_is_refused(
    task: str, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    run([task], [f"m={tiny_models['old']}"], tmp_path)
    before = (tmp_path / "evaluation.json").read_bytes()
    with pytest.raises(UserError, match="another model's answers under the name 'm'"):
        run([task], [f"m={tiny_models['new']}"], tmp_path)
    assert (tmp_path / "evaluation.json").read_bytes() == before


def test_other_settings_in_the_same_folder_are_refused(
    task: str, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    """Numbers that stand side by side in evaluation.json must be comparable."""
    old, new = (f"{n}={tiny_models[n]}" for n in ("old", "new"))
    run([task], [old], tmp_path)
    before = (tmp_path / "evaluation.json").read_bytes()
    for model in (old, new):
        with pytest.raises(UserError, match="with limit None, not 5: choose another --output"):
            run([task], [model], tmp_path, evaluation={"limit": 5})
    with pytest.raises(UserError, match="dtype"):
        run([task], [new], tmp_path, evaluation={"dtype": "bfloat16"})
    assert (tmp_path / "evaluation.json").read_bytes() == before


def test_a_damaged_summary_is_not_overwritten(
    task: str, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "evaluation.json").write_text('{"versions": {')
    with pytest.raises(UserError, match=r"evaluation\.json is damaged: delete it"):
        run([task], [f"m={tiny_models['old']}"], tmp_path)


def test_few_shot_is_recorded(task: str, tiny_models: dict[str, str], tmp_path: Path) -> None:
    done = run([task], [f"m={tiny_models['old']}"], tmp_path)
    settings = done.result["versions"]["m"]["tasks"]["colours"]["settings"]
    assert settings["num_fewshot"] == 0 and settings["generation"] is None
    assert settings["dtype"] == "float32" and settings["limit"] is None


def broken_model(source: str, folder: Path) -> str:
    """A copy of a model whose weights are all NaN."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor * float("nan") for name, tensor in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return str(folder)


def test_a_model_without_one_scored_row_is_an_error_that_names_it(
    task: str, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    broken = broken_model(tiny_models["old"], tmp_path / "nan")
    models = [f"good={tiny_models['old']}", f"bad={broken}"]
    done = run([task], models, tmp_path / "out")
    assert done.notes == ()  # the mask isn't to blame
    console = Console(record=True, width=200)
    with pytest.raises(UserError, match=r"no example could be scored in colours of bad: .*nan"):
        show_evaluated(done, console)
    text = console.export_text()
    assert "unscored: bad, colours: 12 answers (0, 1, 2, 3, 4, …)" in text
    assert "unscored: good" not in text
    errors = done.result["versions"]["bad"]["tasks"]["colours"]["errors"]
    assert sum(error["n"] for error in errors) == 12


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda d: cut_short(d / "model.safetensors"), "model.safetensors: corrupt"),
        (lambda d: (d / "config.json").write_text("{"), "config.json"),
        (lambda d: [p.unlink() for p in d.glob("tokenizer*")], "no tokenizer files"),
        (lambda d: (d / "tokenizer.json").write_bytes(b"\xb6"), "tokenizer.json"),
    ],
)
def test_a_broken_model_is_refused_before_anything_starts(
    damage: Callable[[Path], Any],
    text: str,
    task: str,
    tiny_models: dict[str, str],
    tmp_path: Path,
) -> None:
    shutil.copytree(tiny_models["old"], tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(UserError, match=text):
        plan_evaluation(build_evaluation(given_settings([task], [f"m={tmp_path / 'model'}"])))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_repeats_stay_when_fewer_are_asked_for(
    task: str, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    run([task], [f"m={tiny_models['old']}"], tmp_path, repeat=2)
    done = run([task], [f"m={tiny_models['old']}"], tmp_path)
    assert len(done.result["versions"]["m"]["tasks"]["colours"]["repeats"]) == 1


def test_repeats_measure_the_engines_own_noise(
    task: str, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    done = run([task], [f"m={tiny_models['new']}"], tmp_path, repeat=3)
    noises = done.result["versions"]["m"]["tasks"]["colours"]["repeats"]
    assert len(noises) == 2
    for number, noise in enumerate(noises, start=2):
        assert noise["n"] == 12 and noise["changed"] == noise["negative"] == 0
        assert 0 <= noise["loglikelihood"]["relative"] < 1e-5  # fp32 rounding, no more
        assert len(read_predictions(tmp_path / f"m@{number}" / "colours.parquet")) == 12
    console = Console(record=True, width=200)
    show_evaluated(done, console)
    text = console.export_text()
    assert "colours" in text and "repeat 3: 0 of 12 answers" in text


def prediction(name: str, answer: str, score: float, *lls: float) -> Prediction:
    return Prediction("t", name, "q", "g", answer, "acc", score, loglikelihoods=lls or None)


def test_noise_counts_what_changed() -> None:
    first = [prediction("1", "a", 1, -2.0, -3.0), prediction("2", "b", 0), prediction("3", "c", 0)]
    again = [prediction("1", "b", 0, -2.5, -3.0), prediction("2", "b", 0), prediction("3", "d", 1)]
    noise = repeat_noise(first, again)
    assert (noise["n"], noise["changed"], noise["negative"], noise["positive"]) == (3, 2, 1, 1)
    assert noise["loglikelihood"] == {"nats": 0.5, "relative": 0.25}
    with pytest.raises(ValueError, match="same example"):
        repeat_noise(first, again[::-1])


def test_score_summary_has_an_interval_of_its_kind() -> None:
    whole = score_summary([prediction(str(i), "a", i % 2) for i in range(40)])
    assert whole["score"] == 0.5 and whole["ci95"][0] < 0.5 < whole["ci95"][1]
    graded = [Prediction("t", str(i), "q", "g", "a", "rouge1", i / 10) for i in range(11)]
    assert score_summary(graded)["score"] == pytest.approx(0.5)
    assert score_summary([])["score"] is None


def test_what_is_typed() -> None:
    given = given_settings(
        ["piqa, arc_easy", "mmlu"], ["old=org/base@abc+./adapter", "new=./dir"], "yamls", 5
    )
    assert [t["name"] for t in given["tasks"]] == ["piqa", "arc_easy", "mmlu"]
    assert all(t["include_path"] == "yamls" and t["num_fewshot"] == 5 for t in given["tasks"])
    assert given["models"] == {
        "old": {"model": "org/base", "revision": "abc", "adapter": "./adapter"},
        "new": {"model": "./dir"},
    }


def test_a_path_may_hold_plus_and_at(tmp_path: Path) -> None:
    odd = tmp_path / "my+model@1"
    odd.mkdir()
    models = given_settings(["t"], [f"a={odd}", f"b={odd}+{tmp_path}", "c=org/m@v2"])["models"]
    assert models["a"] == {"model": str(odd)}
    assert models["b"] == {"model": str(odd), "adapter": str(tmp_path)}
    assert models["c"] == {"model": "org/m", "revision": "v2"}


@pytest.mark.parametrize(
    ("tasks", "models", "text"),
    [
        (["piqa"], ["nothing"], "write it as NAME=BASE"),
        (["piqa"], ["a=x", "a=y"], "given twice"),
        (["missing.yaml"], ["a=x"], "does not exist"),
        ([], ["a=x"], "--task names no task"),
        ([""], ["a=x"], "--task names no task"),
        (["piqa"], ["artifacts=x"], "a folder of ours"),
        (["piqa"], [], "models"),
        (["piqa"], ["../a=x"], "can't be a model's name"),
    ],
)
def test_what_is_typed_wrongly(tasks: list[str], models: list[str], text: str) -> None:
    with pytest.raises(UserError, match=text):
        build_evaluation(given_settings(tasks, models))


def test_unknown_settings_are_named() -> None:
    with pytest.raises(UserError, match=r"resources.max_actor.*did you mean 'max_actors'"):
        build_evaluation(given_settings(["t"], ["a=x"]), ["resources.max_actor=2"])
    with pytest.raises(UserError, match=r"setting 'tasks.0.num_fewshot' is -1"):
        build_evaluation(given_settings(["t"], ["a=x"], None, -1))
    with pytest.raises(UserError, match="backend"):
        build_evaluation(given_settings(["t"], ["a=x"]), ["evaluation.backend=tgi"])


def test_models_with_templates_of_their_own(
    task: str, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    """Each base is asked through its own chat template; questions stay the same text."""
    models = []
    for name, template in (("a", "<A>"), ("b", "<B>")):
        folder = tmp_path / name
        shutil.copytree(tiny_models["old"], folder)
        (folder / "chat_template.jinja").write_text(
            "{% for m in messages %}" + template + "{{ m['content'] }}{% endfor %}\n"
        )
        models.append(f"{name}={folder}")
    prompting = {"apply_chat_template": True, "system_instruction": "Be brief."}
    done = run([task], models, tmp_path / "out", prompting=prompting)
    a, b = (read_predictions(tmp_path / "out" / n / "colours.parquet") for n in "ab")
    assert [r.question for r in a] == [r.question for r in b]
    assert a[0].loglikelihoods != b[0].loglikelihoods
    settings = done.result["versions"]["a"]["tasks"]["colours"]["settings"]
    assert settings["apply_chat_template"] is True
