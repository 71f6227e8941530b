"""A real OpenAI-compatible server (transformers' own) serves the testbed's models."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_served import silent

import muscle.testbed
from muscle.alone import Alone
from muscle.cli import main
from muscle.evaluate import Evaluating, plan_evaluation
from muscle.experiment import build_evaluation, given_settings
from muscle.tables import read_about, read_predictions

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
ROWS = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The testbed's two bases, with a chat template."""
    found = {}
    for name in ("v1", "v2"):
        folder = tmp_path_factory.mktemp("models") / name
        shutil.copytree(Path(muscle.testbed.__file__).parent / "models" / name, folder)
        file = folder / "tokenizer_config.json"
        settings = json.loads(file.read_text())
        file.write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
        found[name] = str(folder)
    return found


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`transformers serve` on a port of its own, for as long as this module's tests run."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from transformers.cli.transformers import main; main()"
    given = ["serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)}
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", code, *given, "--dtype", "float32"],
            stdout=log,
            stderr=log,
            env=environment,
        )
    try:
        for _ in range(600):
            assert server.poll() is None, (folder / "log").read_text()[-2000:]
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("task")
    things = ["lamp", "rope", "drum", "coat", "boat", "bell"]
    rows = [{"q": f"the {things[i % 6]} costs {i} and", "a": "five"} for i in range(ROWS)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prices.yaml").write_text(
        "name: prices\ntest: test.jsonl\nprompt: '{{q}}'\ntarget: a\nmetric: exact_match\n"
        "max_gen_toks: 12\nuntil: ['.', \"\\n\"]\n"
    )
    return str(folder / "prices.yaml")


@pytest.mark.parametrize("chat", [False, True])
def test_a_served_model_says_what_our_engine_says(
    chat: bool, url: str, models: dict[str, str], task: str, tmp_path: Path
) -> None:
    more = {"prompting": {"apply_chat_template": chat}}
    given = given_settings([task], [f"old={models['v1']}", f"new={models['v2']}"])
    plan = plan_evaluation(build_evaluation(given | more))
    Evaluating(plan, str(tmp_path / "own"), Alone("cpu"), silent).run()
    arguments = ["--task", task, "--backend", "openai", "--base-url", url]
    for name, model in (("old", models["v1"]), ("new", models["v2"])):
        arguments += ["--model", f"{name}={model}"]
    arguments += ["--apply-chat-template"] * chat
    run(["evaluate", *arguments, "--output", str(tmp_path / "served")])
    for name in ("old", "new"):
        own = read_predictions(tmp_path / "own" / name / "prices.parquet")
        served = read_predictions(tmp_path / "served" / name / "prices.parquet")
        assert [row.error for row in served] == [None] * ROWS
        assert [row.response for row in served] == [row.response for row in own]
        assert [row.truncated for row in served] == [row.truncated for row in own]
    assert any(row.response for row in own)


def run(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (0, None)


def test_a_comparison_names_the_engines_and_warns(
    url: str, models: dict[str, str], task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_evaluation(build_evaluation(given_settings([task], [f"old={models['v1']}"])))
    Evaluating(plan, str(tmp_path / "own"), Alone("cpu"), silent).run()
    arguments = ["--task", task, "--backend", "openai", "--base-url", url]
    arguments += ["--model", f"new={models['v2']}", "--output", str(tmp_path / "served")]
    run(["evaluate", *arguments, "--repeat", "2"])
    assert "repeat" in capsys.readouterr().out
    engine = read_about(tmp_path / "served" / "new" / "prices.parquet")["backend"]
    assert engine.startswith("openai: uvicorn")  # it tells nothing else about itself
    sides = [str(tmp_path / "own" / "old"), str(tmp_path / "served" / "new")]
    run(["compare", *sides, "--output", str(tmp_path / "report")])
    assert f"engine; old: transformers, new: {engine}" in capsys.readouterr().out
    for name in ("report.md", "report.html"):
        assert engine in (tmp_path / "report" / name).read_text()


def test_one_engine_for_all_sides_is_named_too(
    url: str, models: dict[str, str], task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--task", task, "--backend", "openai", "--base-url", url]
    for name, model in (("old", models["v1"]), ("new", models["v2"])):
        arguments += ["--model", f"{name}={model}"]
    run(["evaluate", *arguments, "--output", str(tmp_path / "served")])
    sides = [str(tmp_path / "served" / name) for name in ("old", "new")]
    run(["compare", *sides, "--output", str(tmp_path / "report")])
    assert "note: prices: engine" not in capsys.readouterr().out
    assert "Engine of all versions: openai: uvicorn" in (tmp_path / "report/report.md").read_text()
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Engine of all versions: <code>openai: uvicorn" in page
