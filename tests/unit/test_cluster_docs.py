"""docs/cluster.md: its commands parse, its files exist, its numbers add up."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "cluster.md").read_text("utf-8")
BLOCKS = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", TEXT, re.MULTILINE | re.DOTALL)
INLINE = re.findall(r"`([^`]+)`", re.sub(r"^ *```.*?^ *```$", "", TEXT, flags=re.M | re.S))


def commands() -> list[list[str]]:
    """Every command of the page's blocks and of its running text, as words."""
    lines = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]
    lines += [" ".join(code.split()) for code in INLINE]
    found = []
    for line in lines:
        for part in re.split(r"\||&&", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # a piece of YAML or prose
                continue
            if words:
                found.append(words)
    return found


def those_of(program: str) -> list[list[str]]:
    return [words[1:] for words in commands() if words[0] == program and len(words) > 1]


def click_commands() -> dict[str, Any]:
    import typer.main
    from ray.scripts.scripts import cli as ray

    from muscle.cli import app

    return {"muscle": typer.main.get_command(app), "ray": ray}


@pytest.mark.parametrize("program", ["muscle", "ray"])
def test_commands_and_their_options_exist(program: str) -> None:
    root = click_commands()[program]
    asked = those_of(program)
    assert len(asked) >= 6
    for words in asked:
        command, rest = root, list(words)
        while rest and getattr(command, "commands", None):
            assert rest[0] in command.commands, f"{program} {' '.join(words)}"
            command = command.commands[rest.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        rest = rest[: rest.index("--")] if "--" in rest else rest
        for word in rest:
            if word.startswith("-"):
                assert word.split("=")[0] in known | {"--help"}, f"{program} {' '.join(words)}"


def test_files_that_commands_and_text_name_exist() -> None:
    words = {word for line in commands() for word in line} | set(INLINE)
    named = {word.removeprefix("file://") for word in words}
    paths = {
        word
        for word in named
        if re.fullmatch(r"(cluster|jobs|docs|tests|muscle)/[\w./-]+", word)
        or word in ("cluster.yaml", "requirements.lock")
    }
    assert len(paths) >= 12
    for path in paths:
        assert (ROOT / path).exists(), path


def test_names_in_commands_are_those_of_the_manifests() -> None:
    cluster = yaml.safe_load((ROOT / "cluster/kuberay/raycluster.yaml").read_text("utf-8"))
    name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
    lines = [" ".join(words) for words in those_of("kubectl")]
    for line in lines:
        if " " in line:  # else only named in the text
            assert re.match(rf"-n {namespace} |apply -f ", line), line
    assert f"-n {namespace} port-forward service/{name}-head-svc 8265:8265" in lines
    # KubeRay's Secret has the cluster's name.
    assert f"kubectl -n {namespace} get secret {name} -o" in TEXT
    assert f"create secret generic {name}-secrets --from-env-file" in TEXT
    (helm,) = [line for line in those_of("helm") if line[0] == "install"]
    operator = helm[helm.index("--namespace") + 1]
    assert f"kubernetes.io/metadata.name: {operator}" in (
        ROOT / "cluster/kuberay/namespace.yaml"
    ).read_text("utf-8")


def test_the_example_is_made_of_settings() -> None:
    from muscle.settings import ResourcesConfig

    (example,) = [yaml.safe_load(block) for kind, block in BLOCKS if kind == "yaml"]
    resources = ResourcesConfig(**example["resources"])
    assert resources.training_labels == {"muscle-role": "training"}
    assert resources.scoring_labels == {"muscle-role": "scoring"}
    assert example["storage"] == "${MUSCLE_STORAGE}"


def rows(heading: str) -> list[list[str]]:
    """Cells of the table whose head has this text."""
    table = TEXT[TEXT.index(heading) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def test_the_table_of_nodes_is_that_of_cluster_yaml() -> None:
    types = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))["available_node_types"]
    by_role = {node["labels"]["muscle-role"]: node for node in types.values()}
    for role, _does, machine, number, goes in rows("| kind of node"):
        node = by_role.pop(role.strip("`"))
        assert machine.startswith(node["node_config"]["InstanceType"])
        assert number == (f"0–{node['max_workers']}" if node["max_workers"] else "1")
        if "idle_timeout_s" in node:
            assert goes == f"{node['idle_timeout_s'] // 60} min idle"
            assert ("spot" in machine) is ("InstanceMarketOptions" in node["node_config"])
    assert not by_role


def test_the_costs_add_up() -> None:
    text = re.sub(r"\s+", " ", TEXT)
    prices = dict(re.findall(r"\b(head|cpu|scoring|training) (?:\([^)]*\) )?(\d+\.\d\d)\b", text))
    (spot,) = re.findall(r"scoring (\d+\.\d\d) \(spot\)", text)
    assert prices["scoring"] == spot and set(prices) == {"head", "cpu", "scoring", "training"}
    for _, running, total in rows("| | running"):
        sums = 0.0
        for part in running.split(", "):
            count, _, kind = part.rpartition(" ")
            sums += int(count or 1) * float(prices[kind])
        assert f"{sums:.2f}" == total, running


# --- cluster/aws --------------------------------------------------------------------------


def policy(name: str) -> list[dict[str, Any]]:
    statements = json.loads((ROOT / "cluster" / "aws" / f"{name}.json").read_text("utf-8"))
    assert statements["Version"] == "2012-10-17"
    return statements["Statement"]


def actions(statement: dict[str, Any]) -> list[str]:
    action = statement["Action"]
    return [action] if isinstance(action, str) else action


def test_nodes_may_do_what_they_need_and_no_more() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))
    for name in ("head", "worker"):
        for statement in policy(name):
            assert statement["Effect"] == "Allow"
            assert not any("*" in action for action in actions(statement)), statement["Sid"]
    for statement in policy("head"):
        tags = statement.get("Condition", {}).get("StringEquals", {})
        ends = {"ec2:StopInstances", "ec2:TerminateInstances"} & set(actions(statement))
        if ends:
            assert tags == {"ec2:ResourceTag/ray-cluster-name": cluster["cluster_name"]}
        if statement["Resource"] == "*":
            assert all(action.startswith("ec2:Describe") for action in actions(statement))
    (passed,) = [s for s in policy("head") if "iam:PassRole" in actions(s)]
    profile = cluster["metadata"]["worker_profile"]["Name"]
    assert passed["Resource"].endswith(f":role/{profile}")
    bucket = cluster["metadata"]["storage"].rpartition("s3://")[2]
    places = {statement["Resource"] for statement in policy("worker")}
    assert places == {f"arn:aws:s3:::{bucket.partition('/')[0]}", f"arn:aws:s3:::{bucket}/*"}


def test_the_head_may_do_what_rays_provider_asks() -> None:
    """Calls of `ray.autoscaler._private.aws.node_provider`, by the API's names."""
    import ray.autoscaler._private.aws.node_provider as provider

    source = Path(str(provider.__file__)).read_text("utf-8")
    may = {action for statement in policy("head") for action in actions(statement)}
    needs = {
        "instances.filter(": "ec2:DescribeInstances",
        "describe_images(": "ec2:DescribeImages",
        "create_instances(": "ec2:RunInstances",
        "create_tags(": "ec2:CreateTags",
        "terminate_instances": "ec2:TerminateInstances",
        "stop_instances": "ec2:StopInstances",
    }
    for call, action in needs.items():
        assert call in source and action in may, action
    asked = set(re.findall(r"meta\.client\.(\w+)", source))
    # Only stopped nodes are started again, and `cache_stopped_nodes: false` has none.
    assert asked - {"start_instances"} <= {call.strip("(") for call in needs}
