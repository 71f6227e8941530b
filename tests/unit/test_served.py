"""`muscle evaluate --backend openai`: what a server is asked, and what its failures mean."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_server import Fake, Reply, chat, error, serving, text

from muscle.cli import main
from muscle.errors import UserError
from muscle.evaluate import Evaluated, Evaluating, plan_evaluation, served_evaluator
from muscle.evaluation.units import PASSING
from muscle.experiment import build_evaluation, given_settings
from muscle.served import asking
from muscle.tables import read_about, read_answers, read_predictions
from muscle.training.job import Progress
from muscle.types import Prediction

ROWS = 40
KEY = "a-key-that-nobody-may-see"


def silent(progress: Progress) -> None:
    pass


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    # Backoff of half a second and more would make these tests slow and show nothing else.
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows whose right answer is yes for even numbers, no for odd ones."""
    folder = tmp_path_factory.mktemp("served")
    rows = [
        {"id": f"r{i}", "q": f"is {i:03d} even?", "a": "no" if i % 2 else "yes"}
        for i in range(ROWS)
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "even.yaml").write_text(
        "name: even\ntest: test.jsonl\nprompt: '{{q}}'\ntarget: a\nmetric: exact_match\n"
        "max_gen_toks: 8\n"
    )
    return str(folder / "even.yaml")


def number(body: dict[str, Any]) -> int:
    """The number that a request asks about."""
    prompt = body.get("prompt") or body["messages"][-1]["content"]
    return int("".join(c for c in prompt if c.isdigit())[:3])


def right(fake: Fake, path: str, body: dict[str, Any]) -> Reply:
    words = "no" if number(body) % 2 else "yes"
    return chat(words) if path.endswith("chat/completions") else text(f" {words}\nmore")


def config(task: str, urls: Any, models: list[str] | None = None, **more: Any) -> Any:
    settings = given_settings([task], models or ["old=m1"])
    server = {"base_url": urls, "retries": 1, "timeout_s": 5, **more.pop("server", {})}
    settings["evaluation"] = {"backend": "openai", "server": server}
    return build_evaluation(settings | more)


def run(
    task: str, urls: Any, output: Path, models: list[str] | None = None, **more: Any
) -> Evaluated:
    plan = plan_evaluation(config(task, urls, models, **more))
    return Evaluating(plan, str(output), served_evaluator(plan), silent).run()


def rows_of(output: Path, name: str = "old") -> list[Prediction]:
    return read_predictions(output / name / "even.parquet")


def test_plain_text_goes_to_completions(task: str, tmp_path: Path) -> None:
    with serving(right, owned_by="vllm") as fake:
        fake.pages["/version"] = {"version": "0.29.0"}
        run(task, fake.url, tmp_path)
        rows = rows_of(tmp_path)
        assert [row.id for row in rows] == [f"r{i}" for i in range(ROWS)]
        assert all(row.score == 1.0 for row in rows)
        assert rows[0].response == " yes"  # cut at the task's stop string, which the server left
        assert {path for path, *_ in fake.asked} == {"/v1/models", "/v1/completions"}
        body = next(b for b in fake.bodies() if number(b) == 7)
        assert body == {
            "model": "m1",
            "prompt": "is 007 even?",
            "max_tokens": 8,
            "temperature": 0.0,
            "stop": ["\n"],
        }
    about = read_about(tmp_path / "old" / "even.parquet")
    assert about["backend"] == "openai: vllm 0.29.0" and about["model"] == "m1"
    assert "dtype" not in about and "torch" not in about["software"]


def test_what_is_there_is_not_asked_again(task: str, tmp_path: Path) -> None:
    with serving(right) as fake:
        run(task, fake.url, tmp_path)
        before = len(fake.bodies())
        assert before == ROWS
        # Settings that change no answer change no key.
        run(task, fake.url, tmp_path, server={"concurrency": 3, "timeout_s": 7, "retries": 2})
        assert len(fake.bodies()) == before
        with pytest.raises(UserError, match=r"already holds old's answers.*extra_body"):
            run(task, fake.url, tmp_path, server={"extra_body": {"min_p": 0.1}})


def test_chats_are_sent_as_messages(task: str, tmp_path: Path) -> None:
    with serving(right) as fake:
        more = {"prompting": {"apply_chat_template": True, "system_instruction": "Be brief."}}
        run(task, fake.url, tmp_path, **more)
        assert all(row.score == 1.0 for row in rows_of(tmp_path))
        body = next(b for b in fake.bodies() if number(b) == 7)
        assert body["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "is 007 even?"},
        ]
        assert {path for path, *_ in fake.asked} == {"/v1/models", "/v1/chat/completions"}
    assert read_about(tmp_path / "old" / "even.parquet")["chat_template"] == "the server's own"


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A task of chats: the label is the gold answer; tools and several turns."""
    folder = tmp_path_factory.mktemp("chats")
    rows = [
        {
            "id": f"c{i}",
            "messages": [
                {"role": "system", "content": "Say yes or no."},
                {"role": "user", "content": "ready?"},
                {"role": "assistant", "content": "Ask."},
                {"role": "user", "content": f"is {i:03d} even?"},
            ],
            "tools": [{"type": "function", "function": {"name": "divide"}}],
            "gold": "no" if i % 2 else "yes",
        }
        for i in range(6)
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "even.yaml").write_text(
        "name: even\nformat: chat\ntest: test.jsonl\nlabels: ['yes', 'no']\n"
    )
    return str(folder / "even.yaml")


def test_a_task_of_chats_is_rendered_by_the_server(chats: str, tmp_path: Path) -> None:
    def wrong_once(fake: Fake, path: str, body: dict[str, Any]) -> Reply:
        return chat("perhaps") if number(body) == 3 else right(fake, path, body)

    with serving(wrong_once) as fake:
        run(chats, fake.url, tmp_path)
        assert {path for path, *_ in fake.asked} == {"/v1/models", "/v1/chat/completions"}
        body = next(b for b in fake.bodies() if number(b) == 2)
        assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"]
        assert body["tools"] == [{"type": "function", "function": {"name": "divide"}}]
        assert "stop" not in body  # the server ends the turn
    rows = rows_of(tmp_path)
    assert [row.score for row in rows] == [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    assert rows[3].reason and rows[3].prompt is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"server": {"endpoint": "completions"}}, "asks in chats and"),
        ({"prompting": {"system_instruction": "Be brief."}}, "bring their own messages"),
    ],
)
def test_what_chats_cant_have(more: Any, words: str, chats: str, tmp_path: Path) -> None:
    with serving(right) as fake, pytest.raises(UserError, match=words):
        run(chats, fake.url, tmp_path, **more)


def test_choices_in_chats_are_refused(chats: str, tmp_path: Path) -> None:
    text_of = Path(chats).read_text().replace("labels", "choices")
    (Path(chats).parent / "choices.yaml").write_text(text_of)
    with serving(right) as fake, pytest.raises(UserError, match="give 'labels'"):
        run(str(Path(chats).parent / "choices.yaml"), fake.url, tmp_path)


def test_tool_calls_without_words_are_the_answer(chats: str, tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "divide", "arguments": "{}"}}
    with serving(lambda *_: chat(None, "tool_calls", tool_calls=[call])) as fake:
        run(chats, fake.url, tmp_path)
    assert json.loads(rows_of(tmp_path)[0].response or "") == [call["function"]]


def test_text_as_one_message_where_asked(task: str, tmp_path: Path) -> None:
    with serving(right) as fake:
        run(task, fake.url, tmp_path, server={"endpoint": "chat"})
        assert fake.bodies()[0]["messages"][0]["role"] == "user"
        assert len(fake.bodies()[0]["messages"]) == 1


def test_extra_body_is_sent_and_is_part_of_the_key(task: str, tmp_path: Path) -> None:
    with serving(right) as fake:
        extra = {"guided_choice": ["yes", "no"], "stop": None}
        run(task, fake.url, tmp_path, server={"extra_body": extra}, storage=str(tmp_path / "store"))
        assert fake.bodies()[0]["guided_choice"] == ["yes", "no"]
        assert "stop" not in fake.bodies()[0]  # null takes a field out
        run(task, fake.url, tmp_path / "b", storage=str(tmp_path / "store"))
        assert len(fake.bodies()) == 2 * ROWS
    assert read_about(tmp_path / "old" / "even.parquet")["extra_body"] == extra


def test_the_bound_on_requests_at_once_is_kept(task: str, tmp_path: Path) -> None:
    def slow(fake: Fake, path: str, body: dict[str, Any]) -> Reply:
        return Reply(right(fake, path, body).body, wait=0.02)

    with serving(slow) as fake:
        run(task, fake.url, tmp_path, server={"concurrency": 5})
        assert fake.most == 5


def test_cut_answers_are_named_truncated(task: str, tmp_path: Path) -> None:
    with serving(lambda fake, path, body: text(" yes and", "length")) as fake:
        run(task, fake.url, tmp_path)
        assert all(row.truncated == "answer" for row in rows_of(tmp_path))


def test_two_servers(task: str, tmp_path: Path) -> None:
    with serving(right) as one, serving(right, owned_by="llamacpp") as two:
        urls = {"old": one.url, "new": two.url}
        run(task, urls, tmp_path, ["old=m1", "new=m1"])
        assert len(one.bodies()) == len(two.bodies()) == ROWS  # one name, two engines
    assert read_about(tmp_path / "new" / "even.parquet")["backend"].startswith("openai: llama.cpp")


def test_models_of_one_server_are_told_apart(task: str, tmp_path: Path) -> None:
    def by_name(fake: Fake, path: str, body: dict[str, Any]) -> Reply:
        return right(fake, path, body) if body["model"] == "m1" else text(" no")

    with serving(by_name) as fake:
        done = run(task, fake.url, tmp_path, ["old=m1", "new=m2"])
    versions = done.result["versions"]
    assert versions["old"]["tasks"]["even"]["score"] == 1.0
    assert versions["new"]["tasks"]["even"]["score"] == 0.5


# --- failures -----------------------------------------------------------------------------------


def flaky(reply: Reply, times: int, which: int = 7) -> Any:
    """One row is answered so, `times` times."""
    seen = [0]

    def behave(fake: Fake, path: str, body: dict[str, Any]) -> Reply:
        if path.endswith("completions") and body["max_tokens"] > 1 and number(body) == which:
            seen[0] += 1
            if seen[0] <= times:
                return reply
        return right(fake, path, body)

    return behave


BAD = {
    "429": error(429, "slow down", Retry_After="0.01"),
    "500": error(500, "out of memory"),
    "garbage": Reply(b"<html>gateway</html>"),
    "no choices": Reply({"choices": []}),
    "no text": Reply({"choices": [{"index": 0, "text": None}]}),
    "cut": Reply({"choices": []}, cut=True),
    "silent": Reply({}, wait=1.2),
}
WORDS = {
    "429": "answered 429: slow down",
    "500": "answered 500: out of memory",
    "garbage": "no JSON object: '<html>",
    "no choices": "without choices",
    "no text": "has no text",
    "cut": "the connection failed",
    "silent": "silent for 0.4 s",
}


@pytest.mark.parametrize("bad", BAD)
def test_a_failure_that_passes_costs_nothing(bad: str, task: str, tmp_path: Path) -> None:
    with serving(flaky(BAD[bad], 1)) as fake:
        done = run(task, fake.url, tmp_path, server={"timeout_s": 0.4})
    assert all(row.score == 1.0 for row in rows_of(tmp_path))
    assert not done.notes


@pytest.mark.parametrize("bad", BAD)
def test_a_failure_that_stays_is_an_error_row(bad: str, task: str, tmp_path: Path) -> None:
    with serving(flaky(BAD[bad], 99)) as fake:
        done = run(task, fake.url, tmp_path, server={"timeout_s": 0.4})
    rows = rows_of(tmp_path)
    assert len(rows) == ROWS
    assert [row.id for row in rows if row.score is None] == ["r7"]
    assert WORDS[bad] in (rows[7].error or "")
    assert rows[7].error and rows[7].error.startswith(PASSING)
    assert done.notes


def test_the_next_run_asks_what_a_server_failed_to_answer(task: str, tmp_path: Path) -> None:
    with serving(flaky(BAD["500"], 99)) as fake:
        run(task, fake.url, tmp_path)
        assert rows_of(tmp_path)[7].score is None
        fake.behave = right
        fake.asked.clear()
        done = run(task, fake.url, tmp_path)
        assert [number(body) for body in fake.bodies()] == [7]
        assert all(row.score == 1.0 for row in rows_of(tmp_path))
        assert done.result["versions"]["old"]["tasks"]["even"]["unscored"] == 0
        fake.asked.clear()
        run(task, fake.url, tmp_path)
        assert not fake.bodies()


def test_a_row_that_is_too_long_is_an_error_row_and_not_tried_again(
    task: str, tmp_path: Path
) -> None:
    with serving(flaky(error(400, "maximum context length is 8"), 99)) as fake:
        run(task, fake.url, tmp_path)
        assert sum(number(body) == 7 for body in fake.bodies()) == 1
    assert rows_of(tmp_path)[7].error == "the server answered 400: maximum context length is 8"


def test_retry_after_is_waited_for(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    waited: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        await real(0)

    monkeypatch.setattr("anyio.sleep", sleep)
    with serving(flaky(error(429, "wait", Retry_After="17"), 1)) as fake:
        run(task, fake.url, tmp_path)
    assert 17.0 in waited, waited


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_not_taken_stops_at_once(status: int, task: str, tmp_path: Path) -> None:
    with serving(lambda *_: error(status, f"bad key {KEY}"), models=()) as fake:
        with pytest.raises(UserError, match=f"OPENAI_API_KEY.*{status}") as caught:
            run(task, fake.url, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "old").exists()


def test_the_key_is_sent_and_is_nowhere_else(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "our-organisation")

    def echoes(fake: Fake, path: str, body: dict[str, Any]) -> Reply:
        bad = flaky(error(400, f"what is {KEY}?"), 99)
        return bad(fake, path, body)

    with serving(echoes) as fake:
        main_evaluate(task, fake.url, tmp_path, "--set", "evaluation.server.api_key_env=MY_KEY")
        headers = [headers for *_, headers in fake.asked]
        assert {h["authorization"] for h in headers} == {f"Bearer {KEY}"}
        assert not any("our-organisation" in h.values() for h in headers)
    out = capsys.readouterr()
    assert "what is ***?" in out.out and KEY not in out.out + out.err
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path
        assert path.is_dir() or fake.url.encode() not in path.read_bytes(), path


def test_without_a_key_none_is_sent(task: str, tmp_path: Path) -> None:
    with serving(right) as fake:
        run(task, fake.url, tmp_path)
        assert not any("authorization" in headers for *_, headers in fake.asked)


def main_evaluate(task: str, url: str, output: Path, *more: str) -> None:
    given = ["--task", task, "--backend", "openai", "--base-url", url, "--model", "old=m1"]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *given, "--output", str(output), *more])
    assert ended.value.code == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that is refused."""
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *arguments])
    assert ended.value.code == 2
    err = capsys.readouterr().err.strip()
    assert err.count("\n") == 0
    return err


def test_an_unknown_model_is_told_what_there_is(task: str, tmp_path: Path) -> None:
    def unknown(fake: Fake, path: str, body: dict[str, Any]) -> Reply:
        return error(404, "The model `m3` does not exist.")

    with serving(unknown) as fake, pytest.raises(UserError, match=r"no model 'm3'.*m1, m2"):
        run(task, fake.url, tmp_path, ["old=m3"])


def test_no_completions_there(task: str, tmp_path: Path) -> None:
    def chats_only(fake: Fake, path: str, body: dict[str, Any]) -> Reply:
        return Reply({"detail": "Not Found"}, 404)

    with serving(chats_only) as fake, pytest.raises(UserError, match="--apply-chat-template"):
        run(task, fake.url, tmp_path)


def test_nobody_there(task: str, tmp_path: Path) -> None:
    with serving(right) as fake:
        url = fake.url
    with pytest.raises(UserError, match=f"no server answers at {url}"):
        run(task, url, tmp_path)


def test_who_is_silent_from_the_start_is_told_so(task: str, tmp_path: Path) -> None:
    with serving(lambda *_: Reply({}, wait=0.6)) as fake:
        with pytest.raises(UserError, match=r"did not answer the first request.*within 0.2 s"):
            run(task, fake.url, tmp_path, server={"timeout_s": 0.2, "retries": 9})


def test_answers_are_kept_now_and_then(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever kills the process loses little: no stop in an orderly way is needed."""
    monkeypatch.setattr(asking, "KEEP_S", 0.0)
    kept: list[int] = []

    def looking(fake: Fake, path: str, body: dict[str, Any]) -> Reply:
        found = list(tmp_path.rglob("kept/*.parquet"))
        kept.append(len(read_answers(found[0])) if found else 0)
        return right(fake, path, body)

    with serving(looking) as fake:
        run(task, fake.url, tmp_path, server={"concurrency": 1})
    assert kept[1:] == list(range(ROWS))  # the first was the probe
    assert not list(tmp_path.rglob("kept/*.parquet"))


def test_a_redirect_is_not_followed_with_the_key(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(right) as other:
        away = Reply({}, 307, {"Location": other.url + "/models"})
        with serving(lambda *_: away, models=()) as fake:
            with pytest.raises(UserError, match="sends requests on to"):
                run(task, fake.url, tmp_path)
        assert not other.asked


def test_a_server_that_fails_row_after_row_stops_the_run_and_keeps_what_it_had(
    task: str, tmp_path: Path
) -> None:
    dead = threading.Event()

    def dying(fake: Fake, path: str, body: dict[str, Any]) -> Reply:
        if len(fake.bodies()) > 10:
            dead.set()
        return error(503, "no more") if dead.is_set() else right(fake, path, body)

    with serving(dying) as fake:
        with pytest.raises(UserError, match=r"20 rows in a row.*503: no more.*run again"):
            run(task, fake.url, tmp_path, server={"concurrency": 1, "retries": 0})
        answered = [number(body) for body in fake.bodies()[:10]]
        assert not (tmp_path / "old").exists()
        dead.clear()
        fake.asked.clear()
        fake.behave = right
        run(task, fake.url, tmp_path)
        assert sorted(number(body) for body in fake.bodies()) == sorted(
            set(range(ROWS)) - set(answered)
        )
    assert all(row.score == 1.0 for row in rows_of(tmp_path))


def test_many_rows_that_are_too_much_for_a_live_server_dont_stop_the_run(
    task: str, tmp_path: Path
) -> None:
    def weak(fake: Fake, path: str, body: dict[str, Any]) -> Reply:
        if path.endswith("completions") and body["max_tokens"] > 1 and number(body) < 30:
            return error(500, "too much")
        return right(fake, path, body)

    with serving(weak) as fake:
        run(task, fake.url, tmp_path, server={"concurrency": 1, "retries": 0})
    assert sum(row.score is None for row in rows_of(tmp_path)) == 30


@pytest.fixture
def stopped_early(task: str, tmp_path: Path) -> Iterator[tuple[Fake, set[int]]]:
    """A run that Ctrl-C has ended after a few answers."""
    count = [0]

    def stopping(progress: Progress) -> None:
        if progress.stage == asking.STAGE and progress.done >= 9:
            raise KeyboardInterrupt

    with serving(right) as fake:
        plan = plan_evaluation(config(task, fake.url, server={"concurrency": 1}))
        with pytest.raises(KeyboardInterrupt):
            Evaluating(plan, str(tmp_path), served_evaluator(plan), stopping).run()
        answered = {number(body) for body in fake.bodies()}
        fake.asked.clear()
        count[0] = len(answered)
        yield fake, answered


def test_a_stop_loses_no_answer(
    stopped_early: tuple[Fake, set[int]], task: str, tmp_path: Path
) -> None:
    fake, answered = stopped_early
    assert 0 < len(answered) < ROWS
    run(task, fake.url, tmp_path)
    assert {number(body) for body in fake.bodies()} == set(range(ROWS)) - answered


def test_repeats_ask_the_same_in_another_order_and_show_flips(task: str, tmp_path: Path) -> None:
    seen: dict[int, int] = {}

    def fickle(fake: Fake, path: str, body: dict[str, Any]) -> Reply:
        if body["max_tokens"] > 1 and number(body) == 4:
            seen[4] = seen.get(4, 0) + 1
            if seen[4] == 2:
                return text(" no")
        return right(fake, path, body)

    with serving(fickle) as fake:
        done = run(task, fake.url, tmp_path, repeat=2)
        first, second = fake.bodies()[:ROWS], fake.bodies()[ROWS:]
    key = lambda body: json.dumps(body, sort_keys=True)  # noqa: E731
    assert sorted(map(key, first)) == sorted(map(key, second))
    assert [number(b) for b in first] != [number(b) for b in second]
    (noise,) = done.result["versions"]["old"]["tasks"]["even"]["repeats"]
    assert noise["changed"] == 1 if "changed" in noise else noise


# --- settings that are refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "old=m1+adapter"], "a server has names for its adapters"),
        (["--model", "old=m1", "--dtype", "bfloat16"], "leave dtype out"),
        (["--model", "old=m1", "--set", "evaluation.max_length=9"], "the server's own"),
        (["--model", "old=m1", "--chat-template", "x"], "own template"),
        (["--model", "old=m1", "--set", "evaluation.server.extra_body={n: 2}"], "'n' is set by us"),
        (["--model", "old=m1", "--address", "auto"], "backend 'openai' uses none"),
        (["--model", "old=m1", "--set", "evaluation.server.api_key_env=NOT_SET"], "NOT_SET"),
        (["--model", "old=m1", "--base-url", "http://h/v1"], "write each as NAME=URL"),
    ],
)
def test_settings_that_a_server_cant_have(
    more: list[str], words: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(right) as fake:
        given = ["--task", task, "--backend", "openai", "--base-url", fake.url]
        err = refused(capsys, *given, "--output", str(tmp_path / "out"), *more)
    assert words in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://me:secret@host/v1", "a URL with a password"),
        ("http://host/v1?api_key=sk-123", "a signed URL"),
        ("host:8000", "write it as http://HOST:PORT/v1"),
        ("new=http://127.0.0.1:1/v1", "add --base-url old=URL"),
    ],
)
def test_addresses_that_are_refused(
    url: str, words: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--task", task, "--backend", "openai", "--base-url", url, "--model", "old=m1"]
    err = refused(capsys, *given, "--output", str(tmp_path / "out"))
    assert words in err and "secret" not in err.replace("a secret", "") and "sk-123" not in err


def test_a_key_in_a_setting_is_refused(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    given = ["--task", task, "--backend", "openai", "--base-url", "http://h/v1", "--model", "old=m"]
    more = ["--set", "evaluation.server.api_key_env=MY_KEY"]
    body = f"evaluation.server.extra_body={{k: {KEY}}}"
    err = refused(capsys, *given, *more, "--set", body, "--output", str(tmp_path / "out"))
    assert "the value of MY_KEY" in err and KEY not in err


def test_needs_an_address(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--task", task, "--model", "old=m1", "--output", str(tmp_path / "out")]
    assert "give --base-url URL" in refused(capsys, *given, "--backend", "openai")
    assert "set --backend openai" in refused(capsys, *given, "--base-url", "http://h/v1")


def test_runs_and_searches_refuse_servers(tmp_path: Path) -> None:
    from muscle.experiment import load_experiment

    file = tmp_path / "e.yaml"
    file.write_text(
        "name: e\ntask: piqa\nold: {model: 'testbed:v1'}\nnew: {model: 'testbed:v2'}\n"
        "evaluation: {backend: openai, server: {base_url: 'http://h/v1'}}\n"
    )
    with pytest.raises(UserError, match=r"is for `muscle evaluate`.*muscle compare"):
        load_experiment(file)


def test_beams_are_refused(task: str, tmp_path: Path) -> None:
    from muscle.served.requests import decoding, plan_of

    with pytest.raises(UserError, match=r"'num_beams'.*not known to OpenAI-compatible"):
        decoding(plan_of('{"num_beams": 4}'), "")
    body = decoding(plan_of('{"do_sample": true, "temperature": 0.7, "top_p": 0.9}'), "row 1")
    assert body["temperature"] == 0.7 and body["top_p"] == 0.9 and body["seed"] >= 0
    assert body["seed"] != decoding(plan_of('{"do_sample": true}'), "row 2")["seed"]
