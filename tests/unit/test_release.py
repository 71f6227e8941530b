"""`muscle release`, and the next update that begins with it."""

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from colours import colour_settings, write_data

from muscle import storage
from muscle.alone import Alone
from muscle.cli import main
from muscle.config import Experiment
from muscle.errors import UserError
from muscle.experiment import given_settings, load_experiment
from muscle.models.fingerprint import fingerprint_adapter, fingerprint_base
from muscle.pipeline import Pipeline, claim_output
from muscle.plan import make_plan
from muscle.release.judged import RefusedError
from muscle.release.make import Request, make_release
from muscle.released import Released, open_release
from muscle.storage import sha256
from muscle.tables import read_about, read_predictions, write_predictions

LENIENT = {"max_nfr": 0.999}
STRICT = {"max_nfr": 0.0001}


def run(experiment: Experiment, output: Path) -> dict[str, Any]:
    pipeline = Pipeline(make_plan(experiment), str(output), Alone("cpu"), lambda progress: None)
    return pipeline.run().report


def load(folder: Path, settings: dict[str, Any]) -> Experiment:
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(settings))
    return load_experiment(file)


@pytest.fixture(scope="module")
def settings(
    tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    data = write_data(tmp_path_factory.mktemp("data"), test=12)
    return {**colour_settings(tiny_models, data), "gate": LENIENT}


@pytest.fixture(scope="module")
def finished(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's output folder; tests copy it before they change anything."""
    folder = tmp_path_factory.mktemp("finished")
    run(load(folder, settings), folder / "out")
    return folder / "out"


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "out", ignore=shutil.ignore_patterns("artifacts"))
    return tmp_path / "out"


def release(output: Path, **asked: Any) -> Released:
    return make_release(Request(str(output), **asked))


def gate(output: Path, **limits: Any) -> dict[str, Any]:
    from muscle.gate import judge, make_limits

    pair = limits.pop("pair", None)
    return judge(str(output), make_limits(**limits), pair=pair).gate


# -- what is written


def test_a_release_says_what_is_served_and_how_it_was_judged(
    output: Path, tiny_models: dict[str, str]
) -> None:
    found = release(output)
    assert found.path == str(output / "release.json")
    record, report = found.record, json.loads((output / "report.json").read_text())
    assert (record.name, record.tasks, record.version) == ("colours", ["colours"], "compat")
    assert record.base.model == tiny_models["new"] and record.base.revision is None
    assert record.base.fingerprint == fingerprint_base(tiny_models["new"])
    assert record.adapter.path == "compat/adapter"
    weights = output / "compat/adapter/adapter_model.safetensors"
    assert record.adapter.files["adapter_model.safetensors"] == sha256(str(weights))
    assert record.adapter.fingerprint == fingerprint_adapter(str(output / "compat/adapter"))
    assert (record.adapter.config.r, record.adapter.config.alpha) == (2, 4)
    assert record.chat_template is None
    assert record.engine.dtype == "float32" and "torch" in record.engine.software
    assert record.gate is not None and record.gate["verdict"] == "pass"
    assert record.report_sha256 == sha256(str(output / "report.json"))
    assert record.gate["report_sha256"] == record.report_sha256
    pair = report["tasks"]["colours"]["pairs"]["old->compat"]
    assert record.scores["colours"]["flips"]["nfr"] == pair["nfr"]
    assert record.scores["colours"]["flips"]["negative"] == pair["negative"]
    assert record.serving["serves"] and record.serving["rank"] == 2
    assert record.allowed is None and record.waivers == []
    old = record.previous
    assert old.release is None and old.base.model == tiny_models["old"]
    assert old.adapter.path == "old/adapter"
    assert old.adapter.fingerprint == fingerprint_adapter(str(output / "old/adapter"))


def test_the_same_run_gives_the_same_bytes(output: Path) -> None:
    first = Path(release(output).path).read_bytes()
    assert Path(release(output).path).read_bytes() == first
    assert str(output).encode() not in first  # it can be moved with its folder
    shutil.move(output, output.parent / "moved")
    moved = open_release(str(output.parent / "moved"))
    assert moved.version()["adapter"] == str(output.parent / "moved" / "compat" / "adapter")


def test_new_is_released_where_compat_fails(output: Path) -> None:
    """Each version is held against the same limits, gate.json itself judging only one."""
    report = json.loads((output / "report.json").read_text())
    pairs = report["tasks"]["colours"]["pairs"]
    assert release(output, version="new").record.version == "new"
    assert release(output, version="new").record.gate["pair"] == "old->new"  # type: ignore[index]
    # A gain that new has for sure and compat hasn't can't be made by training: write it.
    pairs["old->compat"]["bounds95"]["gain"] = [-0.9, -0.8]
    pairs["old->new"]["bounds95"]["gain"] = [0.1, 0.2]
    (output / "report.json").write_text(json.dumps(report))
    gate(output, min_gain=-0.5)
    found = release(output).record
    assert found.version == "new" and found.gate is not None and found.gate["verdict"] == "pass"
    with pytest.raises(RefusedError, match="the gate says fail for old->compat"):
        release(output, version="compat")


def test_the_gate_refuses_and_a_reason_is_written_down(output: Path) -> None:
    gate(output, **STRICT)
    with pytest.raises(RefusedError, match=r"old->compat.*old->new.*--allow-failed-gate"):
        release(output)
    assert not (output / "release.json").exists()
    found = release(output, allow="the shop opens tomorrow").record
    assert found.version == "compat" and found.allowed is not None
    assert found.allowed.reason == "the shop opens tomorrow"
    assert "the gate says" in found.allowed.what[0]
    with pytest.raises(UserError, match="--allow-failed-gate is empty"):
        release(output, allow=" ")


def test_without_a_gate_it_is_refused(output: Path) -> None:
    (output / "gate.json").unlink()
    with pytest.raises(RefusedError, match=r"has no gate\.json.*muscle gate"):
        release(output)
    found = release(output, allow="first release").record
    assert found.gate is None and found.allowed is not None
    assert found.allowed.what == ["there is no gate"]


def test_waivers_stand_in_the_release_and_run_out(output: Path, tmp_path: Path) -> None:
    from muscle.report.example_reader import read_example_table

    task = read_example_table(str(output / "examples.parquet"))["colours"]
    worse = task.scores[0, "compat"] < task.scores[0, "old"]
    assert worse.any(), "the tiny models' update is to lose something"
    ids = [str(task.ids[i]) for i in worse.nonzero()[0]]
    waive = tmp_path / "waive.yaml"
    allowed = [{"id": i, "reason": "known", "until": "2999-01-01"} for i in ids]
    waive.write_text(yaml.safe_dump(allowed))
    gate(output, max_nfr=0.5, waive=str(waive))
    found = release(output, version="compat").record
    assert [w["id"] for w in found.waivers] == ids
    assert {w["reason"] for w in found.waivers} == {"known"}
    with pytest.raises(RefusedError, match="ran out on 2999-01-01"):
        make_release(Request(str(output), "compat"), today=date(2999, 1, 2))
    with pytest.raises(UserError, match=r"gate\.json judges old->compat, with waivers"):
        release(output, version="new")


def test_an_adapter_that_does_not_serve_is_refused(output: Path) -> None:
    edit(output / "compat/adapter/adapter_config.json", lambda c: c.update(fan_in_fan_out=False))
    release(output)  # not what the adapter computes
    config = output / "compat/adapter/adapter_config.json"
    edit(config, lambda c: c.update(layer_replication=[[0, 2]]))
    with pytest.raises(RefusedError, match="does not serve in vLLM"):
        release(output)
    allowed = release(output, allow="served by our own engine").record.allowed
    assert allowed is not None and "layer_replication" in allowed.what[0]


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_chat_s_template_is_released_with_its_hash(
    output: Path, settings: dict[str, Any], tiny_models: dict[str, str], tmp_path: Path
) -> None:
    from muscle.models.chat_template import load_chat_template
    from muscle.models.load import load_tokenizer

    file = output / "chat.jinja"
    file.write_text(TEMPLATE)
    name = load_chat_template(load_tokenizer(tiny_models["new"]), str(file)).name
    for version in ("new", "compat"):  # as a run on chats leaves them
        path = output / version / "colours.parquet"
        about = {**read_about(path), "chat_template": name}
        write_predictions(path, read_predictions(path), about)
    chat = {"chat_template": str(file)}
    edit(output / "experiment.json", lambda e: e["new"].update(chat))
    edit(output / "report.json", lambda r: r["provenance"]["experiment"]["new"].update(chat))
    gate(output, max_nfr=0.999)
    found = release(output)
    assert found.record.chat_template is not None
    assert found.record.chat_template.fingerprint == name
    assert found.record.chat_template.file == "chat.jinja"
    assert found.record.chat_template.sha256 == sha256(str(file))
    # Old had none of its own: it goes back to the tokenizer's.
    assert found.record.previous.chat_template is None
    after = {**settings, "old": {"release": found.path}}
    assert load(tmp_path, after).old.chat_template == str(file)
    file.write_text(TEMPLATE + " ")
    with pytest.raises(UserError, match=r"its chat template at .*chat\.jinja is not what was"):
        load(tmp_path, after)
    with pytest.raises(UserError, match=r"chat\.jinja is not the one that chats were rendered by"):
        release(output)
    file.unlink()
    with pytest.raises(UserError, match=r"its chat template is not at"):
        load(tmp_path, after)


# -- files that don't belong together


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))


def swap(output: Path, version: str) -> None:
    shutil.copy(
        output / "new/adapter/adapter_model.safetensors",
        output / version / "adapter/adapter_model.safetensors",
    )


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no report": (lambda o: (o / "report.json").unlink(), r"has no report\.json"),
    "half a report": (lambda o: (o / "report.json").write_text("{"), "not whole JSON"),
    "no experiment": (lambda o: (o / "experiment.json").unlink(), "muscle compare"),
    "another's report": (
        lambda o: edit(
            o / "report.json", lambda r: r["provenance"]["experiment"].update(data_seed=9)
        ),
        r"report\.json is of another experiment \(data_seed",
    ),
    "another's experiment": (
        lambda o: edit(o / "experiment.json", lambda e: e["training"].update(epochs=7)),
        r"of another experiment \(training\.epochs",
    ),
    "report altered": (
        lambda o: edit(
            o / "report.json",
            lambda r: r["tasks"]["colours"]["pairs"]["old->compat"].update(nfr=0.0),
        ),
        r"gate\.json is of another report\.json",
    ),
    "verdict altered": (
        lambda o: edit(o / "gate.json", lambda g: g.update(verdict="fail")),
        "verdict is not that of its checks",
    ),
    "checks altered": (
        lambda o: edit(o / "gate.json", lambda g: g["checks"][0].update(upper=0.0)),
        "is not what the gate says of the report",
    ),
    "gate without its pair": (
        lambda o: edit(o / "gate.json", lambda g: g.pop("pair")),
        "is not whole",
    ),
    "gate cut short": (lambda o: (o / "gate.json").write_text("{"), r"gate\.json is not JSON"),
    "gate of another version": (
        lambda o: edit(o / "gate.json", lambda g: g.update(schema="muscle.gate/9")),
        "another version",
    ),
    "adapter changed": (lambda o: swap(o, "compat"), "compat's adapter in .* is not the one"),
    "old's adapter changed": (lambda o: swap(o, "old"), "old's adapter in .* is not the one"),
    "adapter gone": (lambda o: shutil.rmtree(o / "compat/adapter"), "compat/adapter"),
    "predictions gone": (lambda o: (o / "compat/colours.parquet").unlink(), r"colours\.parquet"),
    "predictions of another base": (
        lambda o: shutil.copy(o / "old/colours.parquet", o / "compat/colours.parquet"),
        "compat's predictions are of another base",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_do_not_belong_together(output: Path, name: str) -> None:
    damage, message = BAD[name]
    damage(output)
    with pytest.raises(UserError, match=message) as caught:
        release(output)
    assert "\n" not in str(caught.value) and not isinstance(caught.value, RefusedError)
    assert not (output / "release.json").exists()


def test_what_was_only_measured_can_be_released(settings: dict[str, Any], tmp_path: Path) -> None:
    """As a fleet leaves it where new passes the gate: there is no compat."""
    experiment = load(tmp_path, settings)
    works = Pipeline(make_plan(experiment), str(tmp_path / "out"), Alone("cpu"), lambda p: None)
    claim_output(experiment, works.output)
    works.train_tasks()
    works.predictor.run(works.wanted(("old", "new")))
    works.results(("old", "new")).write((), pair="old->new")
    found = release(tmp_path / "out").record
    assert found.version == "new" and found.adapter.path == "new/adapter"
    with pytest.raises(UserError, match="--version is 'compat': this run has new"):
        release(tmp_path / "out", version="compat")


def test_several_seeds_are_released_one_at_a_time(settings: dict[str, Any], tmp_path: Path) -> None:
    run(load(tmp_path, {**settings, "seeds": [0, 3]}), tmp_path / "out")
    with pytest.raises(UserError, match="has several seeds: name one of 0, 3 with --seed"):
        release(tmp_path / "out")
    found = release(tmp_path / "out", seed=3).record
    assert found.seed == 3 and found.adapter.path == "seed-3/compat/adapter"
    report = json.loads((tmp_path / "out" / "report.json").read_text())["tasks"]["colours"]
    mine = report["by_seed"]["3"]["pairs"]["old->compat"]
    assert found.scores["colours"]["flips"]["negative"] == mine["negative"]


def test_a_run_on_a_store(
    output: Path, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    store = f"memory://releases-{os.getpid()}"
    storage.upload(output, f"{store}/out")
    try:
        found = make_release(Request(f"{store}/out"))
        assert found.path == f"{store}/out/release.json"
        assert found.record.adapter.path == "compat/adapter"
        experiment = load(tmp_path, {**settings, "old": {"release": found.path}})
        assert experiment.old.adapter == f"{store}/out/compat/adapter"
        assert make_plan(experiment).old.given_adapter == found.record.adapter.fingerprint
        storage.write_bytes(f"{store}/out/compat/adapter/adapter_config.json", b"{}")
        with pytest.raises(UserError, match=r"adapter_config\.json .* is not what was released"):
            load(tmp_path, {**settings, "old": {"release": found.path}})
    finally:
        storage.remove(store)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"version": "old"}, "--version is 'old': this run has compat and new"),
        ({"seed": 3}, "--seed is 3: this run has only 0"),
        ({"file": "out/compat"}, "which is a folder"),
        ({"file": "out/report.json"}, "which is no release: name another"),
        ({"previous": "out/nowhere.json"}, "does not exist"),
        ({"adapter_path": ""}, "--adapter-path is empty"),
        ({"adapter_path": "s3://AKIAIOSFODNN7EXAMPLE:secret@bucket/x"}, "--adapter-path"),
        ({"adapter_path": "out/new/adapter"}, "is not the judged adapter's"),
    ],
)
def test_wrong_usage(
    output: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(output.parent)
    before = sorted(p.name for p in output.iterdir())
    with pytest.raises(UserError, match=message):
        release(Path("out"), **asked)
    assert sorted(p.name for p in output.iterdir()) == before


# -- the command


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["release", *arguments])
    return int(ended.value.code or 0)


def test_the_command_prints_what_serves_and_what_goes_back(
    output: Path, tiny_models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    spaced = output.parent / "a folder, it's"
    shutil.move(output, spaced)
    assert command(str(spaced)) == 0
    said = capsys.readouterr().out.splitlines()
    served, back = (
        shlex.split(said[said.index(f"{name}:") + 1]) for name in ("serve it", "go back")
    )
    assert served == [
        *("vllm", "serve", tiny_models["new"], "--enable-lora", "--max-lora-rank", "8"),
        *("--lora-modules", f"colours={spaced}/compat/adapter", "--dtype", "bfloat16"),
    ]
    assert back == [
        *("vllm", "serve", tiny_models["old"], "--enable-lora", "--max-lora-rank", "8"),
        *("--lora-modules", f"colours={spaced}/old/adapter", "--dtype", "bfloat16"),
    ]
    gate(spaced, **STRICT)
    assert command(str(spaced)) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--allow-failed-gate" in err
    assert command(str(spaced / "nowhere")) == 2


def test_serving_arguments_of_a_hub_model_with_a_template() -> None:
    from muscle.release.vllm import notes, serve_command
    from muscle.released import Engine, Serves

    made = {"r": 100, "alpha": 200, "targets": ["q_proj"]}
    digest = "0" * 64
    what = Serves.model_validate(
        {
            "base": {"model": "own/er", "revision": "c" * 40, "fingerprint": "c" * 40},
            "adapter": {
                "path": "s3://bucket/ad apter",
                "files": {"adapter_config.json": digest, "adapter_model.safetensors": digest},
                "fingerprint": "f",
                "config": made,
            },
            "chat_template": {"fingerprint": "t", "file": "/x y/chat.jinja", "sha256": digest},
        }
    )
    assert serve_command(what, "shop", "float16") == (
        f"vllm serve own/er --revision {'c' * 40} --enable-lora --max-lora-rank 128 "
        "--lora-modules 'shop=s3://bucket/ad apter' --chat-template '/x y/chat.jinja' "
        "--dtype float16"
    )
    engine = Engine(backend="transformers", dtype="float16", software={})
    assert any("copy s3://bucket/ad apter" in note for note in notes(what, engine))


# -- the next update


def test_the_next_update_begins_with_a_release(
    output: Path, settings: dict[str, Any], tiny_models: dict[str, str], tmp_path: Path
) -> None:
    first = release(output)
    after = {**settings, "old": {"release": str(output / "release.json")}}
    experiment = load(tmp_path, after)
    assert experiment.old.model == tiny_models["new"]
    assert experiment.old.adapter == str(output / "compat/adapter")
    assert experiment.old.release == str(output / "release.json")
    plan = make_plan(experiment)
    assert plan.adapters["old", (0, 0)] is None  # it brings its own: nothing is trained
    assert plan.old.given_adapter == first.record.adapter.fingerprint
    # Named beside the experiment, as its folder, or with the same words as a run writes them.
    shutil.copytree(output, tmp_path / "near")
    near = load(tmp_path, {**after, "old": {"release": "near"}})
    assert near.old.adapter == str(tmp_path / "near/compat/adapter")
    again = {**after, "old": experiment.old.model_dump()}
    assert load(tmp_path, again).old == experiment.old
    # As the new side, and as one that is evaluated.
    assert load(tmp_path, {**settings, "new": after["old"]}).new == experiment.old
    models = given_settings(["colours"], [f"v1={output / 'release.json'}"])["models"]
    assert models["v1"]["adapter"] == experiment.old.adapter


def test_a_release_of_the_next_update_knows_the_one_before(
    output: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    first = release(output)
    after = {**settings, "old": {"release": first.path}}
    run(load(tmp_path, after), tmp_path / "next")
    second = release(tmp_path / "next").record
    assert second.previous.release == first.path
    assert second.previous.sha256 == first.sha256
    assert second.previous.adapter.fingerprint == first.record.adapter.fingerprint
    assert release(tmp_path / "next", previous=first.path).record == second
    # A release that isn't this run's old: the flips were counted from something else.
    other = release(output, version="new", file=str(output / "other.json"))
    with pytest.raises(UserError, match="is not that of this run's old"):
        release(tmp_path / "next", previous=other.path)


def test_drift_over_three_releases(
    output: Path, settings: dict[str, Any], tiny_models: dict[str, str], tmp_path: Path
) -> None:
    """v1 is released, v2 begins with it, v3 with v2 and looks back at v1."""
    v1 = release(output, version="new", file=str(output / "v1.json"))
    shared = {**settings, "storage": str(tmp_path / "store"), "training": settings["training"]}
    second = {**shared, "old": {"release": v1.path}, "new": {"model": tiny_models["old"]}}
    run(load(tmp_path, second), tmp_path / "two")
    v2 = release(tmp_path / "two", version="new")
    third = {**shared, "old": {"release": v2.path}, "also": [v1.path], "seeds": [5]}
    experiment = load(tmp_path, third)
    report = run(experiment, tmp_path / "three")
    block = report["tasks"]["colours"]["also"]["v1"]
    assert block["n"] == 12 and set(block["pairs"]) == {"also->old", "also->new", "also->compat"}
    # Its answers are those that its own run counted: the same score, the same drift to v2.
    then = json.loads((tmp_path / "two" / "report.json").read_text())["tasks"]["colours"]
    assert block["score"]["score"] == then["versions"]["old"]["score"]
    assert block["pairs"]["also->old"]["nfr"] == then["pairs"]["old->new"]["nfr"]
    for version in ("new", "compat"):
        pair = block["pairs"][f"also->{version}"]
        lost = pair["lost"]["before"]["count"] + pair["lost"]["now"]["count"]
        assert lost == pair["counts"]["negative"]
    about = read_about(tmp_path / "three" / "also" / "v1" / "colours.parquet")
    assert about["adapter"] == v1.record.adapter.fingerprint and about["release"] == v1.path
    for name in ("report.md", "report.html"):
        assert "v1" in (tmp_path / "three" / name).read_text()
    before = {f: f.read_bytes() for f in (tmp_path / "three").iterdir() if f.is_file()}
    assert "--also" in report["provenance"]["command"]
    run(experiment, tmp_path / "three")
    assert {f: f.read_bytes() for f in before} == before
    # Who looks back later goes on in the same folder, and changes no number of the update.
    run(load(tmp_path, {**third, "also": []}), tmp_path / "three")
    alone = json.loads((tmp_path / "three" / "report.json").read_text())["tasks"]["colours"]
    with_v1 = dict(report["tasks"]["colours"])
    assert with_v1.pop("also") and alone == with_v1
    # And the third is released over the second, whose own file names the first.
    assert release(tmp_path / "three", allow="drift").record.previous.sha256 == v2.sha256
    assert v2.record.previous.sha256 == v1.sha256


def test_also_on_the_command_line_is_the_setting(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Experiment] = []

    def run_experiment(file: Path, overrides: list[str], *more: Any) -> int:
        given.append(load_experiment(file, overrides))
        return 0

    monkeypatch.setattr("muscle.commands.run_experiment", run_experiment)
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(settings))
    (tmp_path / "v1").mkdir()
    also = ["--also", "v1", "--also", "old one=s3://bucket/release.json"]
    for arguments in ([], also):
        with pytest.raises(SystemExit):
            main(["run", str(file), *arguments])
    assert given[0].also == []
    assert given[1].also == [str(tmp_path / "v1"), "old one=s3://bucket/release.json"]


def test_also_is_checked_before_anything_runs(
    output: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    path = release(output).path
    other = release(output, version="new", file=str(output / "other.json")).path
    for also, message in (
        ([str(tmp_path / "nowhere.json")], "setting 'also': release .* does not exist"),
        ([path, path], "'out' comes twice: write NAME=PATH"),
        ([f"old={path}"], "'old' can't be an older release's name"),
        ([path], "is old itself"),
    ):
        begun = {**settings, "old": {"release": path}, "also": also}
        with pytest.raises(UserError, match=message):
            make_plan(load(tmp_path, begun))
    named = load(tmp_path, {**settings, "old": {"release": path}, "also": ["v0=out/other.json"]})
    assert named.also == [f"v0={other}"]
    edit(Path(other), lambda r: r["base"].update(fingerprint="0" * 64))
    with pytest.raises(UserError, match=r"setting 'also' \(v0\): release .* fingerprint 0000"):
        make_plan(named)


def test_an_older_release_is_asked_chats_in_its_own_words(
    output: Path, settings: dict[str, Any], tiny_models: dict[str, str], tmp_path: Path
) -> None:
    from types import SimpleNamespace

    from muscle.older import resolve_older

    file = output / "chat.jinja"
    file.write_text(TEMPLATE)
    path = release(output).path
    template = {"fingerprint": "f", "file": "chat.jinja", "sha256": sha256(str(file))}
    edit(Path(path), lambda r: r.update(chat_template=template))
    experiment = load(tmp_path, {**settings, "also": [f"v1={path}"]})
    plan = make_plan(experiment)
    chats: Any = SimpleNamespace(is_chat=True)
    (older,) = resolve_older(experiment, plan.old, chats)
    assert older.prompting is not None and older.prompting.template is not None
    assert older.chat == older.prompting.template.name
    asked = older.prompting.template.prompt([{"role": "user", "content": "What?"}])
    assert asked == "<s>user: What?</s>assistant: "
    (plain,) = resolve_older(experiment, plan.old, plan.task)
    assert plain.prompting is None and plain.chat is None


def test_the_setting_of_also_makes_no_new_key(settings: dict[str, Any], output: Path) -> None:
    path = release(output).path
    plain, more = (
        make_plan(Experiment.model_validate({**settings, "also": also})) for also in ([], [path])
    )
    mine = {(s.kind, s.key) for s in plain.steps()}
    added = {(s.kind, s.key) for s in more.steps()} - mine
    assert mine < {(s.kind, s.key) for s in more.steps()}
    assert [kind for kind, _ in added] == ["predictions"]


def test_a_fleet_s_entry_begins_with_its_own_release(
    output: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    from muscle.fleet.settings import load_fleet

    path = release(output).path
    entries = [{"name": "plain"}, {"name": "later", "old": {"release": "out/release.json"}}]
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump({**settings, "adapters": entries}))
    plain, later = (entry.experiment for entry in load_fleet(file).entries)
    assert plain.old.release is None and later.old.release == path
    assert later.old.adapter == str(output / "compat/adapter")
    swap(output, "compat")
    plain, later = load_fleet(file).entries
    assert plain.problem is None and "is not what was released" in str(later.problem)


@pytest.mark.parametrize("name", ["model", "revision", "adapter", "chat_template"])
def test_nothing_else_stands_beside_a_release(
    output: Path, settings: dict[str, Any], tmp_path: Path, name: str
) -> None:
    path = release(output).path
    with pytest.raises(UserError, match=f"setting 'old.{name}' is given beside 'old.release'"):
        load(tmp_path, {**settings, "old": {"release": path, name: "other"}})


def test_what_was_released_must_still_be_there(
    output: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    after = {**settings, "old": {"release": release(output).path}}
    swap(output, "compat")
    with pytest.raises(UserError, match=r"'old\.release'.*adapter_model\.safetensors.*not what"):
        load(tmp_path, after)
    shutil.rmtree(output / "compat/adapter")
    with pytest.raises(UserError, match=r"'old\.release'.*is not at .*compat/adapter"):
        load(tmp_path, after)


def test_the_base_must_be_the_released_one(
    output: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    found = release(output)
    edit(Path(found.path), lambda r: r["base"].update(fingerprint="0" * 64))
    experiment = load(tmp_path, {**settings, "old": {"release": found.path}})
    with pytest.raises(UserError, match=r"old: release .* fingerprint 000000000000, and there is"):
        make_plan(experiment)


ALTERED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another schema": (lambda r: r.update(schema="muscle.release/2"), "update muscle"),
    "no release": (lambda r: r.update(schema="muscle.report/2"), "is no release"),
    "an unknown field": (lambda r: r.update(scorer="python:os:system"), "'scorer'"),
    "a file elsewhere": (
        lambda r: r["adapter"]["files"].update({"../../secret": "0" * 64}),
        r"'adapter\.files",
    ),
    "no hashes": (lambda r: r["adapter"].update(files={}), "hashes are missing"),
    "a hash of words": (
        lambda r: r["adapter"]["files"].update({"adapter_config.json": "none"}),
        "should match pattern",
    ),
    "a name with a slash": (lambda r: r.update(name="../x"), "'name'"),
    "no base": (lambda r: r.pop("base"), "'base': Field required"),
    "a template without its hash": (
        lambda r: r.update(chat_template={"fingerprint": "f", "file": "x.jinja"}),
        "template's hash is missing",
    ),
}


@pytest.mark.parametrize("name", ALTERED)
def test_a_release_comes_from_outside(output: Path, name: str) -> None:
    file = Path(release(output).path)
    change, message = ALTERED[name]
    edit(file, change)
    with pytest.raises(UserError, match=message) as caught:
        open_release(str(file))
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_what_is_no_release_at_all(tmp_path: Path, settings: dict[str, Any]) -> None:
    (tmp_path / "text.json").write_text("{]")
    for path, message in (
        (tmp_path / "text.json", "is not JSON"),
        (tmp_path / "gone.json", "does not exist"),
        (tmp_path, r"release\.json does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            open_release(str(path))
    for given, message in ((["a"], "name a release"), ("", "is empty"), ("gone.json", "not exist")):
        with pytest.raises(UserError, match=rf"'old\.release'.*{message}"):
            load(tmp_path, {**settings, "old": {"release": given}})
