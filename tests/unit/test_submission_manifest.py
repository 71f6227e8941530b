"""A run as a Kubernetes manifest."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from submitting import write

from muscle import __version__, credentials
from muscle.cli import main
from muscle.errors import UserError
from muscle.submission import manifest
from muscle.submission.manifest import TEMPLATES, rayjob
from muscle.submission.packing import ENTRY, EXPERIMENT, Package, pack

KINDS = ["run", "tune"]
MOUNT = "/etc/muscle/job"


def filled(kind: str, folder: Path) -> Path:
    """A user's copy of a template, with names of their own."""
    file = folder / f"mine-{kind}.yaml"
    text = (TEMPLATES / f"rayjob-{kind}.yaml").read_text("utf-8")
    file.write_text(text.replace("FILL-IN/", "mine.example/").replace("FILL-IN", "mine"))
    return file


def parts(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The RayJob and the ConfigMap of a manifest."""
    found = {document["kind"]: document for document in yaml.safe_load_all(text)}
    assert set(found) == {"RayJob", "ConfigMap"}
    return found["RayJob"], found["ConfigMap"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_template_is_filled(kind: str, tmp_path: Path) -> None:
    package = pack(write(tmp_path), tune=kind == "tune")
    text = rayjob(package, filled(kind, tmp_path))
    job, config = parts(text)
    name = job["metadata"]["name"]
    assert re.fullmatch(r"muscle-tiny-[0-9a-f]{10}", name) and config["metadata"]["name"] == name
    assert job["metadata"]["namespace"] == config["metadata"]["namespace"]
    assert {key: value.encode() for key, value in config["data"].items()} == package.files
    assert shlex.split(job["spec"]["entrypoint"]) == [
        "python",
        f"{MOUNT}/{ENTRY}",
        kind,
        __version__,
        EXPERIMENT,
        "--output",
        package.output,
    ]
    # What the head and every worker mount is this ConfigMap.
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        volumes = group["template"]["spec"]["volumes"]
        assert {"name": "job", "configMap": {"name": name}} in volumes
    # All else is as the template has it.
    template, _ = parts(filled(kind, tmp_path).read_text())
    given = json.loads(json.dumps(job).replace(name, template["metadata"]["name"]))
    given["spec"]["entrypoint"] = template["spec"]["entrypoint"]
    assert given == template
    assert "&id" not in text and "*id" not in text, "for people too"


@pytest.mark.parametrize("kind", KINDS)
def test_the_custom_resources_schema_takes_it(kind: str, tmp_path: Path) -> None:
    from crd import faults, schema

    job, _ = parts(rayjob(pack(write(tmp_path), tune=kind == "tune"), filled(kind, tmp_path)))
    assert faults(job, schema("rayjobs")) == []
    nested = rayjob(nested_package(tmp_path, kind), filled(kind, tmp_path))
    assert faults(parts(nested)[0], schema("rayjobs")) == []


def nested_package(folder: Path, kind: str = "run") -> Package:
    (folder / "t" / "deep").mkdir(parents=True)
    (folder / "t" / "a.yaml").write_text("task: a")
    (folder / "t" / "deep" / "b.yaml").write_bytes(b"# \xff no UTF-8")
    file = write(folder, task={"name": "a", "include_path": "t"})
    return pack(file, tune=kind == "tune")


def test_folders_and_bytes_survive_a_config_map(tmp_path: Path) -> None:
    import base64

    package = nested_package(tmp_path)
    job, config = parts(rayjob(package, filled("run", tmp_path)))
    volumes = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    (items,) = [v["configMap"]["items"] for v in volumes if "configMap" in v]
    data = {key: value.encode() for key, value in config["data"].items()}
    data |= {key: base64.b64decode(value) for key, value in config["binaryData"].items()}
    assert all(re.fullmatch(r"[-._a-zA-Z0-9]+", key) for key in data)
    assert {item["path"]: data[item["key"]] for item in items} == package.files


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_refused_while_something_is_to_be_filled_in(kind: str, tmp_path: Path) -> None:
    package = pack(write(tmp_path), tune=kind == "tune")
    with pytest.raises(UserError, match="FILL-IN") as error:
        rayjob(package)
    assert f"rayjob-{kind}.yaml" in str(error.value) and "--template" in str(error.value)
    # One of them is enough.
    half = tmp_path / "half.yaml"
    text = (TEMPLATES / f"rayjob-{kind}.yaml").read_text("utf-8")
    half.write_text(text.replace("s3://FILL-IN", "s3://mine"))
    with pytest.raises(UserError, match="muscle/image is 'FILL-IN"):
        rayjob(package, half)


def test_no_secret_of_the_environment_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in credentials.NAMES:
        monkeypatch.setenv(name, f"canary-{name.lower()}")
    assert "canary" not in rayjob(pack(write(tmp_path)), filled("run", tmp_path))


BAD = {
    "nothing there": (None, "can't be read"),
    "no YAML": ("a: [", "is not YAML"),
    "another kind": ("kind: RayCluster\n", "needs one RayJob and one ConfigMap"),
    "not mounted": (
        "kind: RayJob\nmetadata: {name: a}\nspec: {}\n---\nkind: ConfigMap\nmetadata: {name: b}\n",
        "must mount the ConfigMap 'b'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_template_of_another_shape_is_one_line(case: str, tmp_path: Path) -> None:
    text, named = BAD[case]
    file = tmp_path / "template.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=named) as error:
        rayjob(pack(write(tmp_path)), file)
    assert "\n" not in str(error.value)


def test_a_config_map_has_its_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "LIMIT", 100)
    with pytest.raises(UserError, match="a ConfigMap holds"):
        rayjob(pack(write(tmp_path)), filled("run", tmp_path))


def test_other_content_has_another_name_and_all_names_fit(tmp_path: Path) -> None:
    template = filled("run", tmp_path)
    file = write(tmp_path, name="A_very.Long-name" + "x" * 60)
    names = set()
    for changes in ([], ["training.epochs=2"]):
        job, _ = parts(rayjob(pack(file, changes), template))
        names.add(job["metadata"]["name"])
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])", job["metadata"]["name"])
    assert len(names) == 2


def test_emit_prints_what_kubectl_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    template = ["--template", str(filled("run", tmp_path))]
    file = str(write(tmp_path, new={"model": "owner/name"}))
    main_ends(["submit", file, "--emit", "rayjob", *template], 0)
    said = capsys.readouterr()
    job, _ = parts(said.out)  # notes are elsewhere
    assert job["kind"] == "RayJob" and "no revision" in said.err
    for wrong, named in (
        (["--emit", "helm"], "--emit is 'helm'"),
        (template, "--emit is missing"),
        (["--emit", "rayjob"], "FILL-IN"),
    ):
        main_ends(["submit", file, *wrong], 2)
        error = capsys.readouterr().err.splitlines()[-1]
        assert named in error


def main_ends(arguments: list[str], code: int) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert (stopped.value.code or 0) == code
