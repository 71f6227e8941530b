"""cluster/kuberay: strictly against the custom resources' schemas, and what the files promise."""

import copy
import json
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from crd import faults, schema
from ray_autoscaler import Answer, answer, demand, node_types

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster" / "kuberay"
CLUSTERS = ["raycluster", "rayjob-run", "rayjob-tune"]
JOBS = ["run", "tune"]
NOT_ON_GPUS = {"!muscle-role": ["scoring", "training"]}


@cache
def _read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text("utf-8")))


def documents(name: str) -> list[dict[str, Any]]:
    return copy.deepcopy(_read(name))


def main(name: str) -> dict[str, Any]:
    """The RayCluster or RayJob of a file."""
    return documents(name)[0]


def cluster_of(name: str) -> dict[str, Any]:
    """The RayCluster's spec, a RayJob's own included."""
    spec = main(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(name: str) -> dict[str, dict[str, Any]]:
    """All pod specs of a file by group, the job's submitter included."""
    spec, cluster = main(name)["spec"], cluster_of(name)
    found = {group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]}
    found["head"] = cluster["headGroupSpec"]["template"]["spec"]
    if "submitterPodTemplate" in spec:
        found["submitter"] = spec["submitterPodTemplate"]["spec"]
    return found


def autoscaling(name: str) -> dict[str, Any]:
    """What the autoscaler beside the head makes of the cluster, by Ray's own code."""
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _derive_autoscaling_config_from_ray_cr,
    )

    cluster = {"metadata": main(name)["metadata"], "spec": copy.deepcopy(cluster_of(name))}
    return _derive_autoscaling_config_from_ray_cr(cluster)


# --- the schemas ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_field_is_one_of_the_custom_resource(name: str) -> None:
    body = main(name)
    assert body["apiVersion"] == "ray.io/v1"
    assert faults(body, schema(f"{body['kind'].lower()}s")) == []


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("spec.backoffLimit", "backOffLimit"),
        ("spec.rayClusterSpec.authOptions", "authOption"),
        ("spec.rayClusterSpec.autoscalerOptions.idleTimeoutSeconds", "idleTimeoutS"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.labels", "label"),
        ("spec.submitterPodTemplate.spec.containers.0.securityContext", "securitycontext"),
    ],
)
def test_the_check_finds_a_misspelt_field(path: str, wrong: str) -> None:
    """So that the test above means something."""
    body = main("rayjob-run")
    *way, last = path.split(".")
    parent = body
    for step in way:
        parent = parent[int(step) if step.isdigit() else step]
    parent[wrong] = parent.pop(last)
    place = re.sub(r"\.(\d)", r"[\1]", ".".join(["", *way]))
    assert faults(body, schema("rayjobs")) == [f"{place}.{wrong}: unknown"]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("backoffLimit", "3", "'3' is no integer"),
        ("backoffLimit", True, "True is no integer"),
        ("entrypoint", None, "null"),
        ("submissionMode", 1, "1 is no string"),
        ("preRunningDeadlineSeconds", 0, "0 is below 1"),
        ("managedBy", {}, "{} is no string"),
        ("rayClusterSpec", {}, "headGroupSpec is missing"),
        ("submitterConfig", [], "[] is no object"),
    ],
)
def test_the_check_finds_a_wrong_value(key: str, value: Any, reason: str) -> None:
    body = main("rayjob-run")
    body["spec"][key] = value
    assert faults(body, schema("rayjobs")) == [f".spec.{key}: {reason}"]


def test_the_check_knows_the_values_of_a_field() -> None:
    body = main("raycluster")
    body["spec"]["authOptions"] = {"mode": "none"}
    limits = body["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]
    limits["limits"] = {"cpu": 4, "memory": "16 Gi"}
    found = faults(body, schema("rayclusters"))
    assert found[0] == ".spec.authOptions.mode: 'none' is none of ['disabled', 'token']"
    assert len(found) == 2 and ".limits.memory: '16 Gi' is not like" in found[1]


# --- one cluster, three files -----------------------------------------------------------


def _without_job(cluster: dict[str, Any]) -> dict[str, Any]:
    bare = copy.deepcopy(cluster)
    groups = [bare["headGroupSpec"], *bare["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        pod["volumes"] = [v for v in pod["volumes"] if v["name"] != "job"]
        for container in pod["containers"]:
            container["volumeMounts"] = [
                mount for mount in container["volumeMounts"] if mount["name"] != "job"
            ]
    return bare


@pytest.mark.parametrize("command", JOBS)
def test_a_jobs_cluster_is_that_of_raycluster_yaml(command: str) -> None:
    assert _without_job(cluster_of(f"rayjob-{command}")) == cluster_of("raycluster")
    assert _without_job(cluster_of("raycluster")) == cluster_of("raycluster")


def test_the_versions_are_the_locks() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    assert f"\nray=={cluster_of('raycluster')['rayVersion']}\n" in lock
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    for name in CLUSTERS:
        image = main(name)["metadata"]["annotations"]["muscle/image"]
        assert f'\nversion = "{image.rpartition(":")[2]}"\n' in project


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_operator_takes_names_and_combinations(name: str) -> None:
    """What KubeRay refuses beyond its schema: `ValidateRayJobSpec`, `ValidateRayClusterSpec`."""
    body, cluster = main(name), cluster_of(name)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", body["metadata"]["name"])
    assert len(body["metadata"]["name"]) <= 47
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert group["template"]["spec"]["restartPolicy"] == "Never", "the autoscaler v2 wants it"
        assert "labels" not in group["rayStartParams"]
        sized = {"num-cpus", "num-gpus", "memory", "resources"} & set(group["rayStartParams"])
        assert not (sized and group.get("resources")), "one place for a group's resources"


def test_ray_start_knows_every_parameter() -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    cluster = cluster_of("raycluster")
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert {f"--{name}" for name in group["rayStartParams"]} <= known


# --- scaling and placement --------------------------------------------------------------


def _roles(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["labels"]["muscle-role"]: node for node in config["available_node_types"].values()}


def test_the_groups_are_the_node_types_of_cluster_yaml() -> None:
    aws = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))
    there, here = _roles(aws), _roles(autoscaling("raycluster"))
    assert set(here) == set(there) == {"head", "cpu", "scoring", "training"}
    for role, node in here.items():
        other = there[role]
        assert node["max_workers"] == other["max_workers"], role
        assert node.get("idle_timeout_s") == other.get("idle_timeout_s"), role
        assert node["resources"].get("GPU", 0) == other["resources"]["GPU"], role
        # Kubernetes keeps some of each machine for itself.
        cpus, theirs = node["resources"]["CPU"], other["resources"]["CPU"]
        assert cpus == theirs == 0 if role == "head" else 0.8 * theirs < cpus < theirs, role


@pytest.mark.parametrize("name", CLUSTERS)
def test_workers_come_from_zero_and_each_group_has_its_time_out(name: str) -> None:
    cluster = cluster_of(name)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
        assert 60 <= group["idleTimeoutSeconds"] <= 1800
        read = node_types(autoscaling(name))[group["groupName"]]
        assert read.idle_timeout_s == group["idleTimeoutSeconds"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def _driver(command: str) -> list:
    spec = main(f"rayjob-{command}")["spec"]
    resources = {"CPU": spec["entrypointNumCpus"], **json.loads(spec["entrypointResources"])}
    return demand(1, resources)


@pytest.mark.parametrize("command", JOBS)
def test_a_driver_starts_a_cpu_node_and_none_with_gpus(command: str) -> None:
    config = autoscaling(f"rayjob-{command}")
    assert answer(config, _driver(command)) == Answer({"cpu": 1}, 0)
    # More of them than the CPU group holds wait: they don't start GPU nodes.
    assert set(answer(config, 200 * _driver(command)).started) == {"cpu"}
    # Without the group's resource a GPU node would do.
    assert set(answer(config, demand(200, {"CPU": 1})).started) > {"cpu"}


def _config(cluster: str) -> dict[str, Any]:
    if cluster == "kuberay":
        return autoscaling("raycluster")
    return yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))


@pytest.mark.parametrize("cluster", ["aws", "kuberay"])
def test_the_autoscaler_starts_what_a_step_asks_for(cluster: str) -> None:
    """By Ray's own scheduler, for both files: node type, number, and what can't be."""
    config = _config(cluster)
    named = {"aws": "gpu-{}", "kuberay": "{}"}[cluster]
    scoring, training = named.format("scoring"), named.format("training")
    actor, worker = {"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}
    on = {role: {"muscle-role": [role]} for role in ("scoring", "training")}
    assert answer(config, demand(1, {"CPU": 1}, NOT_ON_GPUS)) == Answer({"cpu": 1}, 0)
    assert answer(config, demand(1, actor)) == Answer({scoring: 1}, 0)
    assert answer(config, demand(8, worker, on["training"])) == Answer({training: 1}, 0)
    assert answer(config, demand(8, actor, on["scoring"])) == Answer({scoring: 8}, 0)
    # Why the docs tell to set `scoring_labels`: alike without, and many times the price.
    assert answer(config, demand(8, actor)) == Answer({training: 1}, 0)
    # No node has 16 GPUs, and none is started in vain.
    assert answer(config, demand(1, {"GPU": 16})) == Answer({}, 1)


@pytest.mark.parametrize("cluster", ["aws", "kuberay"])
def test_labels_are_ones_that_ray_takes(cluster: str) -> None:
    from ray._private.label_utils import validate_label_selector, validate_node_label_syntax

    for node in _config(cluster)["available_node_types"].values():
        validate_node_label_syntax(node["labels"])
    for value in ("!in(scoring,training)", "scoring", "training"):
        assert validate_label_selector({"muscle-role": value}) is None


# --- security ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_cluster_asks_for_a_token_and_has_no_public_service(name: str) -> None:
    cluster = cluster_of(name)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    text = "\n".join(line.split("#")[0] for line in (FOLDER / f"{name}.yaml").open())
    for word in ("LoadBalancer", "NodePort", "ingress", "hostNetwork", "hostPort", "privileged:"):
        assert word.lower() not in text.lower(), word


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_pod_passes_the_restricted_standard(name: str) -> None:
    for group, pod in pods(name).items():
        assert pod["securityContext"]["runAsNonRoot"] is True, group
        assert pod["securityContext"]["runAsUser"] == 1000, group
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, group
        for volume in pod.get("volumes", []):
            assert set(volume) - {"name"} <= {"emptyDir", "configMap"}, group
        for container in pod["containers"]:
            confined = container["securityContext"]
            assert confined["allowPrivilegeEscalation"] is False, group
            assert confined["capabilities"] == {"drop": ["ALL"]}, group
    beside = cluster_of(name)["autoscalerOptions"]["securityContext"]
    assert beside["allowPrivilegeEscalation"] is False and beside["runAsNonRoot"] is True
    assert beside["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", CLUSTERS)
def test_only_the_head_holds_a_kubernetes_token(name: str) -> None:
    """The autoscaler needs it. Who submits runs code on workers, and must find none there."""
    for group, pod in pods(name).items():
        assert pod["serviceAccountName"] == "muscle"
        mounted = pod.get("automountServiceAccountToken", True)
        assert mounted is (group == "head"), group


@pytest.mark.parametrize("name", CLUSTERS)
def test_secrets_come_from_a_secret_that_need_not_exist(name: str) -> None:
    assert "Secret" not in [document["kind"] for document in documents(name)]
    for group, pod in pods(name).items():
        for container in pod["containers"]:
            values = {entry["name"] for entry in container.get("env", [])}
            assert values <= {"MUSCLE_STORAGE"}, "nothing else is written into the file"
            secret = [{"secretRef": {"name": "muscle-secrets", "optional": True}}]
            worker = group not in ("head", "submitter")
            assert container.get("envFrom") == (secret if worker else None), group


@pytest.mark.parametrize("name", CLUSTERS)
def test_resources_are_explicit_and_shared_memory_is_memory(name: str) -> None:
    for group, pod in pods(name).items():
        for container in pod["containers"]:
            resources = container["resources"]
            assert resources["requests"] == resources["limits"], group
            assert {"cpu", "memory"} <= set(resources["limits"]), group
            mounts = {m["mountPath"]: m["name"] for m in container.get("volumeMounts", [])}
            if group == "submitter":
                continue
            assert {"cpu", "memory", "ephemeral-storage"} <= set(resources["limits"]), group
            (shm,) = [v for v in pod["volumes"] if v["name"] == mounts["/dev/shm"]]
            assert shm["emptyDir"]["medium"] == "Memory"
            # It counts against the container's memory.
            assert int(shm["emptyDir"]["sizeLimit"][:-2]) < int(resources["limits"]["memory"][:-2])


def test_gpu_pods_go_to_nodes_of_their_role() -> None:
    for group, pod in pods("raycluster").items():
        gpus = pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        role = {"muscle-role": group} if group in ("scoring", "training") else None
        assert pod.get("nodeSelector") == role, group
        assert gpus == {"scoring": "1", "training": "8"}.get(group), group
        tolerated = {t["key"] for t in pod.get("tolerations", [])}
        assert ("nvidia.com/gpu" in tolerated) is (gpus is not None), group
        # Training on a spot node would lose hours, scoring loses minutes.
        assert ("cloud.google.com/gke-spot" in tolerated) is (group == "scoring"), group


def test_the_namespace_lets_nobody_in_but_the_operator() -> None:
    namespace, account, policy = documents("namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert account["kind"] == "ServiceAccount"
    assert account["metadata"]["name"] == pods("raycluster")["head"]["serviceAccountName"]
    assert policy["kind"] == "NetworkPolicy"
    assert policy["spec"]["podSelector"] == {} and policy["spec"]["policyTypes"] == ["Ingress"]
    inside, operator = policy["spec"]["ingress"]
    assert inside == {"from": [{"podSelector": {}}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert [set(peer) for peer in operator["from"]] == [{"namespaceSelector", "podSelector"}]
    names = {document["metadata"].get("namespace", "muscle") for document in documents("namespace")}
    names |= {d["metadata"]["namespace"] for name in CLUSTERS for d in documents(name)}
    assert names == {namespace["metadata"]["name"]}


# --- values to fill in ------------------------------------------------------------------


@pytest.mark.parametrize("name", CLUSTERS)
def test_values_to_fill_in_are_two_and_on_top(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text("utf-8")
    code = [line.split("#")[0] for line in text.splitlines()]
    top, rest = code[: code.index("spec:")], code[code.index("spec:") :]
    assert sum("FILL-IN" in line for line in top) == 2
    assert not any("FILL-IN" in line for line in rest)
    annotations = main(name)["metadata"]["annotations"]
    used = json.dumps(main(name)["spec"])
    for key in ("muscle/image", "muscle/storage"):
        assert annotations[key] in used, key
    for pod in pods(name).values():
        for container in pod["containers"]:
            assert container["image"] == annotations["muscle/image"]
    assert all(isinstance(value, str) for value in annotations.values())


# --- the job ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", JOBS)
def test_a_job_is_created_again_and_ends(command: str) -> None:
    body = main(f"rayjob-{command}")
    spec = body["spec"]
    assert spec["backoffLimit"] >= 1, "created again after its head was lost"
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode")
    assert spec["shutdownAfterJobFinishes"] is True and spec["ttlSecondsAfterFinished"] > 0
    assert spec["activeDeadlineSeconds"] > 24 * 3600
    assert body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    # Kueue admits an autoscaling cluster only as an elastic job.
    assert body["metadata"]["annotations"]["kueue.x-k8s.io/elastic-job"] == "true"


def _as_the_driver_gets_it(entrypoint: str, env: dict[str, str]) -> list[str]:
    """Through the submitter's shell, `ray job submit` and the driver's shell, as KubeRay does."""
    show = 'show() { printf "%s\\n" "$@"; }; show '
    run = {"text": True, "capture_output": True, "check": True}
    submitter = subprocess.run(["bash", "-ec", show + entrypoint], env={}, **run)  # type: ignore[call-overload]
    sent = subprocess.list2cmdline(submitter.stdout.splitlines())  # what the command line sends
    driver = subprocess.run(["bash", "-c", show + sent], env=env, **run)  # type: ignore[call-overload]
    return driver.stdout.splitlines()


@pytest.mark.parametrize("command", JOBS)
def test_the_entrypoint_is_a_command_of_the_image(command: str) -> None:
    from typer.main import get_command

    from muscle.cli import app

    entry = main(f"rayjob-{command}")["spec"]["entrypoint"]
    words = _as_the_driver_gets_it(entry, {"MUSCLE_STORAGE": "s3://bucket/muscle"})
    assert words[0] == "python"
    # Where cluster/Dockerfile puts the repository's files.
    assert "WORKDIR /opt/muscle\n" in (ROOT / "cluster" / "Dockerfile").read_text("utf-8")
    assert words[1].startswith("/opt/muscle/")
    script = ROOT / words[1].removeprefix("/opt/muscle/")
    assert script == ROOT / "jobs" / f"{command}.py" and script.is_file()
    click = get_command(app).commands[command]  # type: ignore[attr-defined]
    parsed = click.make_context(command, words[2:]).params
    assert str(parsed["experiment"]) == "/etc/muscle/job/experiment.yaml"
    assert parsed["output"] == f"s3://bucket/muscle/runs/muscle-{command}"
    assert shlex.split(entry)[0:2] == words[0:2]


@pytest.mark.parametrize("command", JOBS)
def test_the_experiment_is_mounted_where_the_entrypoint_looks(command: str) -> None:
    name = f"rayjob-{command}"
    (config,) = [d for d in documents(name) if d["kind"] == "ConfigMap"]
    assert config["metadata"]["name"] == main(name)["metadata"]["name"]
    assert set(config["data"]) == {"experiment.yaml"}
    for group, pod in pods(name).items():
        if group == "submitter":
            continue
        (volume,) = [v for v in pod["volumes"] if v["name"] == "job"]
        assert volume["configMap"] == {"name": config["metadata"]["name"]}
        (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "job"]
        assert mount["mountPath"] == "/etc/muscle/job" and mount["readOnly"] is True


@pytest.mark.parametrize("command", JOBS)
def test_the_example_is_an_experiment_that_stores_on_the_bucket(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from muscle.experiment import load_experiment

    (config,) = [d for d in documents(f"rayjob-{command}") if d["kind"] == "ConfigMap"]
    file = tmp_path / "experiment.yaml"
    file.write_text(config["data"]["experiment.yaml"])
    monkeypatch.setenv("MUSCLE_STORAGE", "s3://bucket/muscle")
    experiment = load_experiment(file)
    assert experiment.storage == "s3://bucket/muscle"
    largest = autoscaling("raycluster")["available_node_types"]
    scoring = largest["scoring"]["max_workers"]
    training = largest["training"]["max_workers"] * largest["training"]["resources"]["GPU"]
    assert experiment.resources.workers <= training
    assert experiment.resources.max_actors <= scoring
    assert experiment.resources.training_labels == {"muscle-role": "training"}
    assert experiment.resources.scoring_labels == {"muscle-role": "scoring"}


@pytest.mark.parametrize("command", JOBS)
def test_what_submit_emits_is_a_valid_job_on_the_same_cluster(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from muscle import __version__
    from muscle.cli import app

    (config,) = [d for d in documents(f"rayjob-{command}") if d["kind"] == "ConfigMap"]
    experiment = tmp_path / "mine.yaml"
    experiment.write_text(config["data"]["experiment.yaml"])
    template = tmp_path / "filled.yaml"
    text = (FOLDER / f"rayjob-{command}.yaml").read_text("utf-8")
    template.write_text(text.replace("FILL-IN/", "registry.example/").replace("FILL-IN", "mine"))
    words = ["submit", str(experiment), "--emit", "rayjob", "--template", str(template)]
    done = CliRunner().invoke(app, words + ["--tune"] * (command == "tune"))
    assert done.exit_code == 0, done.output
    emitted = {d["kind"]: d for d in yaml.safe_load_all(done.stdout)}
    job, data = emitted["RayJob"], emitted["ConfigMap"]["data"]
    assert faults(job, schema("rayjobs")) == []
    assert len(job["metadata"]["name"]) <= 47
    before = _without_job(cluster_of(f"rayjob-{command}"))
    after = _without_job(job["spec"]["rayClusterSpec"])
    shown = json.dumps(before).replace("FILL-IN/", "registry.example/")
    assert json.loads(shown.replace("FILL-IN", "mine")) == after
    env = {"MUSCLE_STORAGE": "s3://bucket/muscle"}
    python, entry, kind, version, file, *rest = _as_the_driver_gets_it(
        job["spec"]["entrypoint"], env
    )
    assert (python, kind, version) == ("python", command, __version__)
    assert {Path(entry).name, Path(file).name} <= set(data)
    assert Path(entry).parent == Path("/etc/muscle/job")
    name = yaml.safe_load(config["data"]["experiment.yaml"])["name"]
    output = f"s3://bucket/muscle/runs/{name}" + "-tune" * (command == "tune")
    assert rest == ["--output", output]
