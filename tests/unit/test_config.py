"""Experiment files: what is accepted, and the one line a user reads when it is not."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from muscle.config import Experiment, InputsConfig, MaskName, ResourcesConfig, TaskConfig
from muscle.errors import UserError
from muscle.experiment import load_experiment

HARNESS = "name: demo\ntask: piqa\n"
BASES = "old: {model: base-a}\nnew: {model: base-b}\n"
MINIMAL = HARNESS + BASES
OWN = "{name: tickets, train: a.jsonl, test: b.jsonl, prompt: 'Q: {{q}}', target: label}"

Load = Callable[..., Experiment]
Refuse = Callable[..., str]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load an experiment file with this text."""

    def load(text: str, *overrides: str) -> Experiment:
        file = tmp_path / "e.yaml"
        file.write_text(text, encoding="utf-8")
        return load_experiment(file, overrides)

    return load


@pytest.fixture
def refuse(load: Load) -> Refuse:
    """The error of a text that must not load: always a single line."""

    def refuse(text: str, *overrides: str) -> str:
        with pytest.raises(UserError) as caught:
            load(text, *overrides)
        message = str(caught.value)
        assert message and "\n" not in message
        return message

    return refuse


def own(task: str) -> str:
    return f"name: demo\ntask: {task}\n{BASES}"


# --- defaults ---------------------------------------------------------------------------


def test_defaults_are_the_papers(load: Load) -> None:
    e = load(MINIMAL)
    assert (e.adapter.r, e.adapter.alpha, e.adapter.dropout) == (128, 256, 0.0)
    assert e.adapter.targets == "all-linear"
    t = e.training
    assert (t.learning_rate, t.warmup_steps, t.weight_decay, t.epochs) == (1e-4, 500, 0.0, 10)
    assert (t.accumulation, t.validation_fraction, t.loss_on) == (8, 0.2, "all")
    c = e.compatibility
    assert (c.mask, c.temperature, c.ce_weight, c.old_weight) == ("student-wrong", 2.0, 0.0, 1.0)
    assert e.compat_training == t
    assert (e.seeds, e.compat_seeds, e.runs) == ([0], None, [(0, 0)])


def test_a_task_may_be_just_its_name(load: Load) -> None:
    assert load(MINIMAL).task == load(own("{name: piqa}")).task


def test_compat_training_takes_only_what_compatibility_overrides(load: Load) -> None:
    e = load(MINIMAL + "compatibility: {epochs: 2, learning_rate: 3.0e-5, warmup_steps: 0}\n")
    changed = {"epochs": 2, "learning_rate": 3e-5, "warmup_steps": 0}
    assert e.compat_training == e.training.model_copy(update=changed)
    assert e.training.epochs == 10


def test_runs_pair_task_and_compat_seeds(load: Load) -> None:
    assert load(MINIMAL + "seeds: [3, 1]\n").runs == [(3, 3), (1, 1)]
    assert load(MINIMAL + "seeds: [5]\ncompat_seeds: [0, 1]\n").runs == [(5, 0), (5, 1)]


def test_an_experiment_is_frozen(load: Load) -> None:
    e = load(MINIMAL)
    with pytest.raises(ValidationError):
        e.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        e.training.epochs = 1  # type: ignore[misc]


# --- the file ---------------------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        load_experiment(tmp_path / "nowhere.yaml")


def test_a_directory_is_no_experiment(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be read"):
        load_experiment(tmp_path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="can't be read"):
        load_experiment(tmp_path / "e.yaml")


@pytest.mark.parametrize(
    "text", ["a: [b", "a: b: c", "day: 2024-13-45", "x: !!python/object/apply:os.getcwd []"]
)
def test_not_yaml(refuse: Refuse, text: str) -> None:
    assert "e.yaml is not YAML" in refuse(text)


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b", "just words", "3"])
def test_not_a_mapping(refuse: Refuse, text: str) -> None:
    assert "must be a mapping" in refuse(text)


def test_a_key_given_twice_is_not_silently_the_last(refuse: Refuse) -> None:
    assert "'seeds' is given twice" in refuse(MINIMAL + "seeds: [0]\nseeds: [1]\n")


# --- settings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "setting", "near"),
    [
        ("compatability: {}", "compatability", "compatibility"),
        ("compatibility: {temprature: 1}", "compatibility.temprature", "temperature"),
        ("training: {learning_rat: 1}", "training.learning_rat", "learning_rate"),
        ("resources: {worker: 1}", "resources.worker", "workers"),
    ],
)
def test_unknown_setting_names_the_near_one(
    refuse: Refuse, line: str, setting: str, near: str
) -> None:
    message = refuse(MINIMAL + line)
    assert f"unknown setting '{setting}'" in message
    assert f"did you mean '{near}'?" in message


def test_unknown_setting_inside_an_optional_part(refuse: Refuse) -> None:
    message = refuse(own("{name: piqa, data_files: {tset: a.jsonl}}"))
    assert "unknown setting 'task.data_files.tset': did you mean 'test'?" in message


def test_unknown_setting_with_nothing_near_lists_the_known(refuse: Refuse) -> None:
    message = refuse(MINIMAL + "adapter: {zzz: 1}")
    assert "unknown setting 'adapter.zzz': known are r, alpha, dropout, targets" in message


def test_unknown_mask_lists_the_masks(refuse: Refuse) -> None:
    message = refuse(MINIMAL + "compatibility: {mask: student_wrong}")
    assert "setting 'compatibility.mask' is 'student_wrong'" in message
    for mask in get_args(MaskName):
        assert f"'{mask}'" in message


@pytest.mark.parametrize(
    ("line", "setting"),
    [
        ("adapter: {r: big}", "'adapter.r' is 'big'"),
        ("adapter: {r: 0}", "'adapter.r' is 0"),
        ("adapter: 3", "'adapter' is 3"),
        ("adapter: {dropout: 1.0}", "'adapter.dropout' is 1.0"),
        ("training: {epochs: 1.5}", "'training.epochs' is 1.5"),
        ("training: {learning_rate: 0}", "'training.learning_rate' is 0"),
        ("training: {learning_rate: .nan}", "'training.learning_rate' is nan"),
        ("training: {validation_fraction: 1.0}", "'training.validation_fraction' is 1.0"),
        ("training: {dtype: float16}", "'training.dtype' is 'float16'"),
        ("compatibility: {temperature: 0}", "'compatibility.temperature' is 0"),
        ("compatibility: {temperature: .inf}", "'compatibility.temperature' is inf"),
        ("compatibility: {ce_weight: 1.1}", "'compatibility.ce_weight' is 1.1"),
        ("resources: {workers: 0}", "'resources.workers' is 0"),
        ("resources: {gpus_per_worker: lots}", "'resources.gpus_per_worker' is 'lots'"),
        ("resources: {min_actors: 3, max_actors: 2}", "'resources': 'max_actors'"),
        ("seeds: 3", "'seeds' is 3"),
        ("seeds: []", "'seeds' is []"),
        ("seeds: [0, one]", "'seeds.1' is 'one'"),
        ("seeds: [-1]", "'seeds.0' is -1"),
        ("seeds: [1, 2, 1]", "'seeds': a seed occurs twice"),
        ("compat_seeds: [1, 1]", "'compat_seeds': a seed occurs twice"),
        ("seeds: [0, 1]\ncompat_seeds: [0, 1]", "'compat_seeds' varies only the compat adapter"),
    ],
)
def test_a_wrong_value_is_named_with_its_setting(refuse: Refuse, line: str, setting: str) -> None:
    assert setting in refuse(MINIMAL + line)


def test_a_setting_of_two_types_says_both(refuse: Refuse) -> None:
    message = refuse(MINIMAL + "resources: {gpus_per_worker: lots}")
    assert "valid number" in message and "'auto'" in message and "more" not in message


def test_a_long_value_is_cut(refuse: Refuse) -> None:
    message = refuse(MINIMAL + "seeds: " + "x" * 5000)
    assert "'seeds' is 'xxx" in message and len(message) < 400


@pytest.mark.parametrize("key", ["name", "task", "old", "new"])
def test_a_missing_setting(refuse: Refuse, key: str) -> None:
    text = "".join(li for li in MINIMAL.splitlines(True) if not li.startswith(key + ":"))
    assert f"setting '{key}' is missing" in refuse(text)


def test_several_problems_are_counted(refuse: Refuse) -> None:
    assert refuse("name: x").endswith("setting 'task' is missing (and 2 more)")


@pytest.mark.parametrize("name", ["a b", "../up", "", ".hidden", "a/b"])
def test_a_name_that_is_no_file_name(refuse: Refuse, name: str) -> None:
    assert "setting 'name' is" in refuse(f"name: '{name}'\ntask: piqa\n{BASES}")


# --- the user's own task ----------------------------------------------------------------


def test_own_task(load: Load) -> None:
    task = load(own(OWN)).task
    assert task.is_own and task.choices is None
    assert not load(MINIMAL).task.is_own


def test_choices_are_texts_or_a_field(load: Load) -> None:
    assert load(own(OWN[:-1] + ", choices: ['yes', 'no']}")).task.choices == ["yes", "no"]
    assert load(own(OWN[:-1] + ", choices: options}")).task.choices == "options"


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("{name: t, train: a, prompt: p, target: x}", "needs 'test'"),
        ("{name: t, train: a, test: b, target: x}", "needs 'prompt'"),
        ("{name: t, train: a, target: x}", "needs 'test' and 'prompt'"),
        ("{name: t, train: a, test: b, prompt: p}", "'target' is missing"),
        (OWN[:-1] + ", choices: []}", "'choices' is empty"),
        (OWN[:-1] + ", choices: ''}", "'choices' is empty"),
        (OWN[:-1] + ", choices: [only]}", "at least two choices"),
        (OWN[:-1] + ", num_fewshot: 2}", "'num_fewshot' is for harness tasks"),
        (OWN[:-1] + ", data_files: {test: b}}", "'data_files' is for harness tasks"),
        (OWN[:-1] + ", include_path: d}", "'include_path' is for harness tasks"),
        ("{name: a/b}", "must not be empty or contain '/'"),
    ],
)
def test_own_task_refused(refuse: Refuse, task: str, expected: str) -> None:
    message = refuse(own(task))
    assert "setting 'task" in message and expected in message


# --- environment variables and paths ----------------------------------------------------


def test_variables_are_expanded_everywhere(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASES", "/models")
    monkeypatch.setenv("SPLIT", "test")
    e = load(
        "name: demo\ntask: {name: piqa, data_files: {test: '${BASES}/${SPLIT}.jsonl'}}\n"
        "old: {model: '${BASES}/v1'}\nnew: {model: b}\n"
    )
    assert e.old.model == "/models/v1"
    assert e.task.data_files is not None and e.task.data_files.test == "/models/test.jsonl"
    assert load(MINIMAL, "new.model=${BASES}/v2").new.model == "/models/v2"


def test_an_unset_variable_is_named(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUSCLE_NOT_SET", raising=False)
    message = refuse(HARNESS + "old: {model: '${MUSCLE_NOT_SET}/v1'}\nnew: {model: b}\n")
    assert "'old.model'" in message and "MUSCLE_NOT_SET" in message


def test_the_prompts_own_braces_are_no_variables(load: Load) -> None:
    assert load(own(OWN)).task.prompt == "Q: {{q}}"


def test_paths_beside_the_file_are_found_from_anywhere(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.jsonl").touch()
    (tmp_path / "base-a").mkdir()
    (elsewhere / "base-b").mkdir()
    (elsewhere / "a.jsonl").touch()  # the experiment's neighbour wins
    e = load(own(OWN))
    assert (e.task.train, e.task.test) == (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    assert e.old.model == str(tmp_path / "base-a")
    assert e.new.model == str(elsewhere / "base-b")


def test_what_does_not_exist_is_left_as_written(load: Load) -> None:
    text = HARNESS + "old: {model: org/base}\nnew: {model: 's3://bucket/base'}\n"
    e = load(text)
    assert (e.old.model, e.new.model) == ("org/base", "s3://bucket/base")
    long = "x" * 5000  # longer than a file name may be
    assert load(MINIMAL, f"old.model={long}").old.model == long


# --- --set ------------------------------------------------------------------------------


def test_set_overrides_and_is_parsed_as_yaml(load: Load) -> None:
    e = load(
        MINIMAL + "training: {epochs: 3, batch_size: 2}\n",
        "training.epochs=1",
        "training.learning_rate=1e-3",
        "seeds=[4, 5]",
        "compatibility.mask=old-right",
        "name=other",
        "training.clip_norm=null",
    )
    assert (e.training.epochs, e.training.batch_size) == (1, 2)
    assert e.training.learning_rate == 1e-3
    assert (e.seeds, e.compatibility.mask, e.name) == ([4, 5], "old-right", "other")


def test_set_reaches_into_a_task_given_by_name(load: Load) -> None:
    task = load(MINIMAL, "task.num_fewshot=0", "task.data_files.test=t.jsonl").task
    assert (task.name, task.num_fewshot) == ("piqa", 0)
    assert task.data_files is not None and task.data_files.given() == {"test": "t.jsonl"}


def test_the_last_set_wins_and_values_may_hold_equals(load: Load) -> None:
    assert load(MINIMAL, "data_seed=1", "data_seed=2").data_seed == 2
    assert load(MINIMAL, "storage=s3://b/x?a=b").storage == "s3://b/x?a=b"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.epochs", "write it as key.sub=value"),
        ("=3", "write it as key.sub=value"),
        ("training.epochs=[", "--set training.epochs: the value is not YAML"),
        ("data_seed=2024-13-45", "--set data_seed: the value is not YAML"),
        ("name.sub=1", "'name' is not a group of settings"),
        ("training.epoch=1", "did you mean 'epochs'?"),
        ("nothing.here=1", "unknown setting 'nothing'"),
        ("training.epochs=", "'training.epochs' is None"),
        ("training.epochs=many", "'training.epochs' is 'many'"),
    ],
)
def test_set_refused(refuse: Refuse, override: str, expected: str) -> None:
    assert expected in refuse(MINIMAL, override)


INPUTS = """
compatibility:
  level: choice
  inputs:
    - train
    - path: traffic.jsonl
    - task: {name: own, train: more.jsonl, test: more.jsonl, prompt: "{{q}}", target: a}
    - path: ${DAYS}/today.parquet
tuning:
  space:
    inputs: [[train], [train, {path: traffic.jsonl}]]
"""


def test_inputs_are_found_beside_the_experiment(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("traffic.jsonl", "more.jsonl"):
        (tmp_path / name).write_text("{}\n")
    monkeypatch.setenv("DAYS", "s3://bucket")
    monkeypatch.chdir(tmp_path.parent)
    found = load(MINIMAL + INPUTS)
    train, traffic, task, today = found.compatibility.inputs
    assert train == "train"
    assert isinstance(traffic, InputsConfig) and traffic.path == str(tmp_path / "traffic.jsonl")
    assert isinstance(task, InputsConfig) and task.task is not None
    assert task.task.train == task.task.test == str(tmp_path / "more.jsonl")
    assert isinstance(today, InputsConfig) and today.path == "s3://bucket/today.parquet"
    space = found.tuning.space
    assert space is not None and space.inputs is not None
    assert space.inputs[1][1] == traffic


def test_inputs_need_their_variables(refuse: Refuse) -> None:
    said = refuse(MINIMAL + INPUTS)
    assert "'compatibility.inputs[3].path' needs the environment variable DAYS" in said


def test_set_reaches_into_a_list(
    load: Load, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAYS", "s3://bucket")
    found = load(MINIMAL + INPUTS, "compatibility.inputs.1.limit=7", "compatibility.inputs.0=train")
    traffic = found.compatibility.inputs[1]
    assert isinstance(traffic, InputsConfig) and traffic.limit == 7
    more = load(MINIMAL + INPUTS, "compatibility.inputs.2.task.max_gen_toks=9")
    task = more.compatibility.inputs[2]
    assert isinstance(task, InputsConfig) and task.task is not None and task.task.max_gen_toks == 9
    assert "'4' is no item of a list of 4" in refuse(
        MINIMAL + INPUTS, "compatibility.inputs.4.limit=7"
    )
    assert "'0' is not a group" in refuse(MINIMAL + INPUTS, "compatibility.inputs.0.limit=7")


def test_what_is_of_another_level_is_one_line(refuse: Refuse) -> None:
    said = refuse(MINIMAL, "compatibility.teacher=old", "compatibility.level=token")
    assert "'teacher' is of level choice: set 'level: choice' or leave it out" in said
    said = refuse(MINIMAL, "compatibility.mask=always-old", "compatibility.level=choice")
    assert "'mask' is of level token: set 'level: token' or leave it out" in said


def test_stop_strings_are_for_own_files() -> None:
    with pytest.raises(ValueError, match="'until' is for own files"):
        TaskConfig(name="piqa", until=["\n\n"])


# --- the report, the gate and the noise floor ----------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gate: {max_nfr: 2}", r"'gate.max_nfr' is 2: .* less than 1"),
        ("gate: {max_nfr: -0.1}", "'gate.max_nfr' is -0.1"),
        ("gate: {max_nfr: 2%}", "'gate.max_nfr' is '2%'"),
        ("gate: {min_gain: 1.0}", "'gate.min_gain' is 1.0"),
        ("gate: {pair: old-new}", "'gate.pair' is 'old-new'"),
        ("gate: {slices: [subject]}", "'gate': 'slices' are held against 'max_nfr' or 'min_gain'"),
        ("gate: {waive: w.yaml}", "'gate': 'waive' allows flips that no limit forbids"),
        ("gate: {max_excess_nfr: 0.01}", "'gate.max_excess_nfr' needs a noise floor"),
        ("report: {text: some}", "'report.text' is 'some'"),
        ("report: {min_slice: 0}", "'report.min_slice' is 0"),
        ("noise_floor: 0.5", "'noise_floor' is 0.5"),
        ("noise_floor: ''", "'noise_floor' is empty"),
    ],
)
def test_limits_and_floors_that_make_no_sense(refuse: Refuse, line: str, expected: str) -> None:
    assert re.search(expected, refuse(MINIMAL + line))


def test_a_given_adapter_has_no_second_seed_of_its_own(refuse: Refuse, load: Load) -> None:
    given = HARNESS + "old: {model: a, adapter: b}\nnew: {model: c}\n"
    assert "(noise_floor: DIR)" in refuse(given + "noise_floor: true")
    assert load(given + "noise_floor: d").noise_floor == "d"
    assert load(MINIMAL, "noise_floor=true").noise_floor is True


def test_limits_take_either_sign_and_lists_may_be_empty(load: Load) -> None:
    found = load(MINIMAL + "gate: {min_gain: -0.01, max_relative_nfr: 1, slices: [a, b=c]}").gate
    assert (found.min_gain, found.max_relative_nfr, found.slices) == (-0.01, 1.0, ["a", "b=c"])
    assert found.asked and not load(MINIMAL).gate.asked
    assert load(MINIMAL + "report: {slices: []}").report.slices == []
    assert load(MINIMAL).report.slices is None


def test_files_of_a_gate_are_found_beside_the_experiment(load: Load, tmp_path: Path) -> None:
    for name in ("keep.txt", "waive.yaml", "second"):
        (tmp_path / name).write_text("")
    found = load(MINIMAL + "gate: {must_keep: keep.txt, waive: waive.yaml}\nnoise_floor: second")
    assert found.gate.must_keep == str(tmp_path / "keep.txt")
    assert found.gate.waive == str(tmp_path / "waive.yaml")
    assert found.noise_floor == str(tmp_path / "second")


@pytest.mark.parametrize("labels", [{"a": ""}, {"a": "in()"}, {"a b": "x"}, {"a": "!!x"}, {"a": 1}])
def test_labels_that_no_ray_node_can_have_are_refused(labels: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="scoring_labels"):
        ResourcesConfig(scoring_labels=labels)


def test_labels_are_rays_selectors() -> None:
    wanted = {"muscle-role": "!in(head, cpu)", "ray.io/zone": "eu-1a", "gpu": "in(a100,h100)"}
    assert ResourcesConfig(training_labels=wanted).training_labels == wanted
