"""A cluster with a token lets nobody in without it, and `muscle` says so in one line."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from heads import head
from updates import update

pytestmark = pytest.mark.slow

TOKEN = "0123456789abcdef" * 4


def test_without_its_token_a_cluster_is_closed(tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(update("closed", evaluated=20, limit=20)))

    def run(address: str, env: dict[str, str]) -> str:
        arguments = ["run", str(file), "--output", str(tmp_path / "out"), "--address", address]
        result = subprocess.run(
            [sys.executable, "-m", "muscle.cli", *arguments],
            env={**env, "HOME": str(tmp_path)},  # no token of this machine's user
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert result.returncode == 2, result.stdout + result.stderr
        assert "Traceback" not in result.stderr and "0123456789" not in result.stderr
        return " ".join(result.stderr.split())

    with head(tmp_path / "head", dashboard=False, num_cpus=1, token=TOKEN) as cluster:
        none = {**cluster.env, "RAY_AUTH_MODE": "disabled"}
        none.pop("RAY_AUTH_TOKEN")
        assert "asks for a token and none was sent" in run(cluster.address, none)
        lost = {**none, "RAY_AUTH_MODE": "token"}
        assert "RAY_AUTH_MODE is token and no token is here" in run(cluster.address, lost)
        wrong = {**lost, "RAY_AUTH_TOKEN": "b" * 64}
        assert "refuses the token" in run(cluster.address, wrong)
