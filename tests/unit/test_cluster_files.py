"""The files around the package: DeepSpeed stages, cluster, image, Makefile, lock, licence.

All are checked as far as that goes without a cluster, a registry or a network.
"""

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
STAGES = {"zero1": 1, "zero2": 2, "zero3": 3, "zero3-offload": 3}


# --- cluster/deepspeed ------------------------------------------------------------------


def stage_file(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "cluster" / "deepspeed" / f"{name}.json").read_text("utf-8"))


def test_the_stages_are_all_there() -> None:
    assert {f.stem for f in (ROOT / "cluster" / "deepspeed").glob("*.json")} == set(STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_deepspeed_accepts_the_stage(name: str) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    # What muscle.training fills in at run time.
    run_time = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 8}
    config = DeepSpeedConfig({**stage_file(name), **run_time, "bf16": {"enabled": True}})
    assert config.zero_config.stage == STAGES[name]
    assert config.zero_allow_untested_optimizer and not config.zero_force_ds_cpu_optimizer
    assert config.grad_accum_dtype == "fp32"
    # DeepSpeed's own default is 1.0: unless told otherwise it clips without a word.
    assert config.gradient_clipping == 0.0
    offload = config.zero_config.offload_param, config.zero_config.offload_optimizer
    if name == "zero3-offload":
        assert [str(part.device) for part in offload if part] == ["cpu", "cpu"]
    else:
        assert offload == (None, None)


def test_deepspeed_refuses_a_misspelt_stage() -> None:
    """So that the test above means something."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    wrong = copy.deepcopy(stage_file("zero2"))
    wrong["zero_optimization"]["reduce_bucket_sise"] = 1
    with pytest.raises(ValidationError):
        DeepSpeedConfig({**wrong, "train_micro_batch_size_per_gpu": 1})


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_leaves_the_experiments_settings_alone(name: str) -> None:
    stage = stage_file(name)
    assert set(stage) == {
        "zero_optimization",
        "gradient_clipping",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "data_types",
    }
    # HfDeepSpeedConfig outside the HF Trainer can't resolve "auto".
    assert '"auto"' not in json.dumps(stage)


# --- cluster.yaml -----------------------------------------------------------------------


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))


def prepared(cluster: dict[str, Any]) -> dict[str, Any]:
    """The configuration as `ray up` would use it, after Ray's own validation."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(cluster))
    validate_config(config)
    return config


def test_ray_accepts_the_cluster(cluster: dict[str, Any]) -> None:
    prepared(cluster)
    import jsonschema

    cluster["available_node_types"]["cpu"]["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError):
        prepared(cluster)


def test_the_head_does_no_work_and_workers_come_from_zero(cluster: dict[str, Any]) -> None:
    config = prepared(cluster)
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0, "GPU": 0} and head["max_workers"] == 0
    for name, node in types.items():
        assert node["min_workers"] == 0 < node["max_workers"], name
        assert node["resources"]["CPU"] > 0 and "GPU" in node["resources"], name
        assert node["node_config"]["InstanceType"], name
    gpus = sorted(node["resources"]["GPU"] for node in types.values())
    assert gpus == [0, 1, 8], "CPU workers, one-GPU scoring, eight-GPU training"
    assert sum(node["max_workers"] for node in types.values()) <= config["max_workers"]
    assert 0 < config["idle_timeout_minutes"] <= 30
    roles = {name: node["labels"]["muscle-role"] for name, node in types.items()}
    assert roles == {"cpu": "cpu", "gpu-scoring": "scoring", "gpu-training": "training"}
    assert "InstanceMarketOptions" in types["gpu-scoring"]["node_config"], "spot"
    assert "InstanceMarketOptions" not in types["gpu-training"]["node_config"]


def test_each_type_has_its_own_idle_time_out(cluster: dict[str, Any]) -> None:
    """As the autoscaler v2 reads it, which `ray up` starts by itself."""
    from ray_autoscaler import node_types

    read = node_types(cluster)
    waits = {name: node.idle_timeout_s for name, node in read.items() if name != "head"}
    assert waits == {"cpu": 600, "gpu-scoring": 300, "gpu-training": 300}


def test_nothing_listens_in_public(cluster: dict[str, Any]) -> None:
    config = prepared(cluster)
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])
    assert "0.0.0.0" not in json.dumps(config)
    for name, node in config["available_node_types"].items():
        # Without a group of the user's, Ray opens port 22 to the world.
        assert node["node_config"]["SecurityGroupIds"], name
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required", name
        assert node["node_config"]["MetadataOptions"]["HttpPutResponseHopLimit"] == 1, name
    assert {"--cap-drop ALL", "--security-opt no-new-privileges"} <= set(
        config["docker"]["run_options"]
    )


def test_the_cluster_asks_for_a_token(cluster: dict[str, Any]) -> None:
    config = prepared(cluster)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert not re.search(r"RAY_AUTH_TOKEN=|HF_TOKEN=|AWS_SECRET", json.dumps(config))


def test_workers_get_the_secrets_of_the_mounted_file(
    cluster: dict[str, Any], tmp_path: Path
) -> None:
    """The start commands, run with a `ray` that shows what reaches it."""
    assert cluster["file_mounts"]["~/.muscle/secrets.env"] == "~/.muscle/secrets.env"
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "ray"
    fake.write_text('#!/bin/bash\n[ "$1" = stop ] || echo "token=$HF_TOKEN $*"\n')
    fake.chmod(0o755)
    (tmp_path / ".muscle").mkdir()
    (tmp_path / ".muscle" / "secrets.env").write_text("# hub\nHF_TOKEN=hf_example\n")
    env = {"HOME": str(tmp_path), "PATH": f"{fake.parent}:/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1"}

    def shown(commands: list[str]) -> str:
        run = ["bash", "-ec", "; ".join(commands)]
        return subprocess.run(run, env=env, capture_output=True, text=True, check=True).stdout

    workers = shown(cluster["worker_start_ray_commands"])
    assert workers.startswith("token=hf_example start --address=10.0.0.1:6379 ")
    # The head does no work, so it needs none of them.
    assert shown(cluster["head_start_ray_commands"]).startswith("token= start --head ")
    # An empty file will do.
    (tmp_path / ".muscle" / "secrets.env").write_text("")
    assert shown(cluster["worker_start_ray_commands"]).startswith("token= start --address=")


def test_only_the_image_brings_software(cluster: dict[str, Any]) -> None:
    """Ray's defaults for AWS would install a nightly wheel on every node."""
    config = prepared(cluster)
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert config[key] == []


def test_ray_start_knows_every_option(cluster: dict[str, Any]) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    lines = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    starts = [line for line in lines if "ray start" in line]
    assert len(starts) == 2
    for line in starts:
        line = line[line.index("ray start") :]
        used = {word.split("=")[0] for word in shlex.split(line) if word.startswith("--")}
        assert used and used <= known


def test_values_to_fill_in_are_few_and_on_top(cluster: dict[str, Any]) -> None:
    text = (ROOT / "cluster.yaml").read_text("utf-8")
    code = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    top, rest = code[: code.index("provider:")], code[code.index("provider:") :]
    assert 0 < sum("FILL-IN" in line for line in top) <= 6
    assert not any("FILL-IN" in line for line in rest)
    # ... and each of them is used.
    used = json.dumps({key: value for key, value in cluster.items() if key != "metadata"})
    for key, value in cluster["metadata"].items():
        assert json.dumps(value) in used, key


# --- cluster/Dockerfile -----------------------------------------------------------------


@pytest.fixture
def dockerfile() -> list[list[str]]:
    """Instructions and their words, continued lines joined."""
    text = (ROOT / "cluster" / "Dockerfile").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [line.split() for line in joined if line.strip()]


def test_the_image_is_pinned_and_not_root(dockerfile: list[list[str]]) -> None:
    (image,) = [words[1].split("=")[1] for words in dockerfile if words[0] == "ARG"]
    assert re.fullmatch(r"python:3\.1[1-3]\.\d+-slim-\w+", image)
    assert [words[1] for words in dockerfile if words[0] == "FROM"] == ["${PYTHON_IMAGE}"]
    assert [words[1] for words in dockerfile if words[0] == "USER"][-1] not in ("root", "0")
    installs = [" ".join(words) for words in dockerfile if "pip install" in " ".join(words)]
    assert "-r requirements.lock" in installs[0] and "--no-deps" in installs[1]
    for word in shlex.split(installs[0])[4:]:
        assert word in ("-r", "requirements.lock") or "==" in word, f"{word} is not pinned"


def test_the_image_has_what_the_nodes_mount_and_start(dockerfile: list[list[str]]) -> None:
    """Folders of mounted files must be the user's, or docker makes them root's."""
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))
    (made,) = [words for words in dockerfile if "install -d" in " ".join(words)]
    for target in cluster["file_mounts"]:
        folder = str(Path(target.replace("~", "/home/muscle")).parent)
        assert folder in made, folder
    packages = {word for words in dockerfile for word in words}
    assert {"rsync", "openssh-client", "gcc"} <= packages
    environment = " ".join(word for words in dockerfile if words[0] == "ENV" for word in words)
    assert "RAY_AUTH_MODE=token" in environment


def test_the_image_has_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))
    assert cluster["docker"]["image"].rpartition(":")[2] == project["version"]
    built = (ROOT / "cluster" / "Dockerfile").read_text("utf-8")
    assert re.findall(r"muscle:([\d.]+)", built) == [project["version"]]


def test_the_image_is_made_of_files_that_exist_and_travel(dockerfile: list[list[str]]) -> None:
    ignore = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text("utf-8").split()
    for words in dockerfile:
        for source in words[1:-1] if words[0] == "COPY" else []:
            assert (ROOT / source).exists(), f"COPY {source}"
            assert f"!{source}" in ignore, f"{source} is left out of the build context"


# --- installing -------------------------------------------------------------------------


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    for pin in pins:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin), f"{pin}: name==version only"
    names = [re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins]
    assert len(set(names)) == len(names)
    return dict(zip(names, (pin.split("==")[1] for pin in pins), strict=True))


def test_the_lock_holds_what_pyproject_asks_for() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pins = locked()
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        wanted = Requirement(text)
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        assert pins[name] in wanted.specifier, f"{text}: the lock has {pins[name]}"


def test_the_lock_is_what_the_tests_run_on() -> None:
    """A lock that nobody ran is a guess. Torch's build (+cpu, +cu130) is the machine's."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str:
        try:
            return version(name).split("+")[0]
        except PackageNotFoundError:
            return "missing"

    wrong = {n: (pin, installed(n)) for n, pin in locked().items() if installed(n) != pin}
    assert not wrong, f"(locked, installed): {wrong}; run `make install`"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("install", "-r requirements.lock"),
        ("demo", "muscle run jobs/experiments/demo.yaml --output runs/demo"),
        ("test", "HF_HUB_OFFLINE=1"),
        ("test-fast", '-m "not slow"'),
        ("lint", "ruff check"),
        ("check", "mypy"),
        ("testbed", "jobs/pretrain_testbed.py"),
        ("clean", "rm -rf"),
    ],
)
def test_make_target_does(target: str, command: str) -> None:
    # -B: as on a fresh machine, where nothing is installed yet.
    run = ["make", "--no-print-directory", "-n", "-B", target]
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    out = subprocess.run(run, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    assert command in out
    if target != "clean":
        assert "pip install" in out, "installs first"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_says_that_a_python_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    run = ["make", f"PYTHON={old}", "install"]
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr and "Python 3.8.1" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_the_tests_and_the_linter() -> None:
    script = ROOT / ".ci" / "run"
    lines = script.read_text("utf-8").splitlines()
    assert os.access(script, os.X_OK)
    assert lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines
    assert "make test" in lines and "make check" in lines


@pytest.mark.parametrize(
    "file",
    [
        "Makefile",
        ".ci/run",
        "requirements.lock",
        "cluster.yaml",
        "cluster/Dockerfile",
        "cluster/kuberay/namespace.yaml",
        "cluster/kuberay/raycluster.yaml",
        "cluster/kuberay/rayjob-run.yaml",
        "cluster/kuberay/rayjob-tune.yaml",
    ],
)
def test_no_registry_host_and_no_path_of_one_machine(file: str) -> None:
    text = (ROOT / file).read_text("utf-8").replace("http://127.0.0.1:8265", "")
    text = text.replace("s3://FILL-IN", "")
    assert not re.search(r"https?://|://|--(extra-)?index-url|/root/|/work/|/opt/pypi", text)


def test_the_licence_is_the_whole_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert re.findall(r"^   (\d)\. ", text, re.MULTILINE) == list("123456789")
    assert "END OF TERMS AND CONDITIONS" in text
    assert text.rstrip().endswith("limitations under the License.")
    assert len(text.split()) == 1581
