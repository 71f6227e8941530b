"""Log-likelihoods of given answers from a server's echoed prompts."""

import json
from pathlib import Path
from typing import Any

import pytest
from echo_server import Echo
from fake_server import Fake, Reply, serving, text
from test_served import rows_of, run, silent

from muscle.alone import Alone
from muscle.errors import UserError
from muscle.evaluate import Evaluating, plan_evaluation
from muscle.experiment import build_evaluation, given_settings
from muscle.served.failures import RowError
from muscle.served.scores import score_of
from muscle.tables import read_predictions
from muscle.types import Request

COLOURS = ["red", "blue", "seven green"]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("scored")
    rows = [{"q": f"thing {i}", "a": COLOURS[i % 3]} for i in range(9)]
    (folder / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "even.yaml").write_text(
        "name: even\ntest: test.jsonl\nprompt: '{{q}} is'\n"
        f"choices: {json.dumps(COLOURS)}\ntarget: a\n"
    )
    return str(folder / "even.yaml")


def test_a_servers_log_likelihoods_are_our_engines(
    task: str, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    config = build_evaluation(given_settings([task], [f"old={tiny_models['new']}"]))
    Evaluating(plan_evaluation(config), str(tmp_path / "own"), Alone("cpu"), silent).run()
    with serving(Echo(tiny_models["new"])) as fake:
        run(task, fake.url, tmp_path / "served")
        assert len(fake.bodies()) == 9 * 3 + 1  # and the probe
    own, served = (
        read_predictions(tmp_path / d / "old" / "even.parquet") for d in ("own", "served")
    )
    for a, b in zip(own, served, strict=True):
        assert a.id == b.id and a.error is None and b.error is None
        assert b.loglikelihoods == pytest.approx(a.loglikelihoods, abs=1e-4)
        assert a.score == b.score


def test_without_logprobs_the_task_is_refused(task: str, tmp_path: Path) -> None:
    with serving(lambda *_: text("red")) as fake:
        with pytest.raises(UserError, match="gives no log-probabilities of a prompt"):
            run(task, fake.url, tmp_path)
    assert not (tmp_path / "old").exists()


def test_chats_cant_be_scored(task: str, tmp_path: Path) -> None:
    with serving(lambda *_: text("red")) as fake:
        with pytest.raises(UserError, match="servers do for plain text only"):
            run(task, fake.url, tmp_path, prompting={"apply_chat_template": True})


def answered(tokens: list[str], logprobs: list[Any], top: list[Any] | None = None) -> Any:
    """Echoed tokens and one that was generated."""
    offsets = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
    best = top or [{token: value} for token, value in zip(tokens, logprobs, strict=True)]
    found = {
        "tokens": tokens,
        "token_logprobs": logprobs,
        "text_offset": offsets,
        "top_logprobs": best,
    }
    return {"choices": [{"text": "", "logprobs": found}]}


def test_the_sum_over_the_answers_tokens() -> None:
    request = Request("loglikelihood", "the sky is ", "deep blue")
    tokens = ["<s>", "the", " sky", " is", " deep", " blue", "!"]
    values = [None, -1.0, -2.0, -3.0, -0.25, -0.5, -9.0]
    found = score_of(answered(tokens, values), request)  # the space goes to the answer
    assert found.loglikelihood == -0.75 and found.is_greedy is True
    top = [None, *({"x": -0.1} for _ in tokens[1:])]
    assert score_of(answered(tokens, values, top), request).is_greedy is False


@pytest.mark.parametrize(
    ("tokens", "values", "words"),
    [
        (["the", " sky", " is deep", " blue", "!"], [-1.0] * 5, "don't split where the context"),
        (["the", " sky", " is", " dee", " blue", "!"], [-1.0] * 6, "don't split where"),
        (["the", " sky", " is", " deep", " blue", "!"], [-1.0] * 4 + [None, -1.0], "no log-prob"),
        (["the", " sky", " is", " deep", " blue", "!"], [float("-inf")] * 6, "no log-prob"),
    ],
)
def test_what_cant_be_summed_is_an_error(tokens: list[str], values: Any, words: str) -> None:
    with pytest.raises(RowError, match=words):
        score_of(answered(tokens, values), Request("loglikelihood", "the sky is", " deep blue"))


def test_a_row_that_cant_be_scored_is_an_error_row(
    task: str, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    echo = Echo(tiny_models["new"])

    def spanning(fake: Fake, path: str, body: dict[str, Any]) -> Reply:
        reply = echo(fake, path, body)
        if body["prompt"].startswith("thing 4 is blue"):
            found = reply.body["choices"][0]["logprobs"]
            joined = "".join(found["tokens"][:-1])
            found["tokens"] = [joined, found["tokens"][-1]]
            for name in ("token_logprobs", "top_logprobs"):
                found[name] = found[name][-2:]
            found["text_offset"] = [0, len(joined)]
            reply.body["usage"]["prompt_tokens"] = 1
        return reply

    with serving(spanning) as fake:
        run(task, fake.url, tmp_path)
    bad = [row for row in rows_of(tmp_path) if row.error is not None]
    assert len(bad) == 1 and bad[0].question == "thing 4 is"
    assert "request 1: the server's tokens don't split where the context ends" in bad[0].error


def test_a_loop_that_runs_already_is_no_hindrance() -> None:
    """A notebook runs one, and so does a browser driver."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from muscle.served.loops import finished

    async def four() -> int:
        await asyncio.sleep(0)
        return 4

    async def inside() -> int:
        return finished(four())

    # In a thread, which has no loop: this one's may be a browser driver's already.
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(asyncio.run, inside()).result()
    assert finished(four()) == running == 4


@pytest.mark.parametrize(
    ("choice", "more"),
    [
        ({"message": {"content": ""}, "finish_reason": "error"}, {"error": {"message": "busy"}}),
        ({"message": {"content": "po"}, "finish_reason": "abort"}, {}),
        ({"message": {"content": "po"}, "finish_reason": "stop"}, {"error": "overloaded"}),
    ],
)
def test_an_answer_that_the_server_broke_off_is_none(choice: Any, more: Any) -> None:
    from muscle.evaluation.plan import make_plan
    from muscle.served.failures import RowError
    from muscle.served.requests import output_of

    plan = make_plan('{"until": [], "max_gen_toks": 8}', None, 0)
    with pytest.raises(RowError, match="broke the answer off") as caught:
        output_of({"choices": [choice], **more}, "chat", plan)
    assert caught.value.passing
    whole = {"message": {"content": "a\ud800b"}, "finish_reason": "stop"}
    assert output_of({"choices": [whole]}, "chat", plan).text == "a?b"
