"""What vLLM is asked and what is made of its tokens, without vLLM and without Ray."""

import dataclasses
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import make_tokenizer, save_model, save_random_adapter

from muscle.config import VersionConfig
from muscle.errors import UserError
from muscle.evaluation import Engine
from muscle.evaluation.job import Ask, BaseJob, QuerySet
from muscle.evaluation.loose import assemble, kinds, read_loose, write_loose
from muscle.evaluation.requests import (
    Loose,
    Prompted,
    Requests,
    generation_defaults,
)
from muscle.evaluation.sampling import seed_number
from muscle.evaluation.units import collect, part, pending
from muscle.evaluation.vllm_settings import engine_settings
from muscle.tables import write_queries
from muscle.types import Answer, Output, Query, Request

ROOT = Path(__file__).parents[2]


def ask(id: str, *contexts: str, **settings: Any) -> Query:
    generation = json.dumps(settings)
    return Query(id, tuple(Request("generate_until", c, generation=generation) for c in contexts))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def requests() -> Requests:
    return Requests(make_tokenizer(), 64, {})


def sampling(requests: Requests, **settings: Any) -> dict[str, Any]:
    (one,) = requests.of([ask("q", "The fox", **settings)])
    assert isinstance(one, Prompted)
    return one.sampling


def test_greedy_has_temperature_zero_and_nothing_that_only_sampling_reads(
    requests: Requests,
) -> None:
    params = sampling(requests, until=["\n"], max_gen_toks=7, do_sample=False, top_p=0, top_k=3)
    assert params["temperature"] == 0.0 and params["top_p"] == 1.0 and params["top_k"] == 0
    assert params["max_tokens"] == 7
    assert params["stop"] == ["\n", "</s>"]
    assert params["stop_token_ids"] == [requests.tokenizer.eos_token_id]


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens"])
def test_the_harness_names_for_limits(requests: Requests, name: str) -> None:
    assert sampling(requests, **{name: 5})["max_tokens"] == 5
    assert Requests(make_tokenizer(), 300, {}).of([ask("q", "a")])[0].sampling["max_tokens"] == 256  # type: ignore[union-attr]


def test_sampling_takes_the_requests_then_the_models_then_transformers_settings() -> None:
    own = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
    params = sampling(Requests(make_tokenizer(), 64, own), do_sample=True, top_p=0.5, max_tokens=4)
    assert params["temperature"] == 0.6 and params["top_p"] == 0.5
    assert params["top_k"] == 50  # transformers' own default
    assert params["repetition_penalty"] == 1.1
    greedy = sampling(Requests(make_tokenizer(), 64, own), max_tokens=4)
    assert greedy["temperature"] == 0.0 and greedy["repetition_penalty"] == 1.1


def test_a_row_s_seed_is_its_own(requests: Requests) -> None:
    queries = [ask("a", "x", "x", temperature=1.0, max_tokens=4), ask("b", "x", max_tokens=4)]
    seeds = [one.sampling["seed"] for one in requests.of(queries)]  # type: ignore[union-attr]
    assert len(set(seeds)) == 3 and all(0 <= seed < 2**63 for seed in seeds)
    assert seeds[1] == seed_number("0\0a\0" + "1")
    assert requests.of(queries[:1])[1].sampling["seed"] == seeds[1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "settings",
    [
        {"no_repeat_ngram_size": 2},
        {"num_beams": 3},
        {"do_sample": True, "typical_p": 0.9},
        {"x": 1},
    ],
)
def test_what_vllm_does_not_know_is_refused_by_name(
    requests: Requests, settings: dict[str, Any]
) -> None:
    name = list(settings)[-1]
    with pytest.raises(UserError, match=f"{name}.*use --backend transformers"):
        sampling(requests, max_tokens=4, **settings)


def test_what_does_nothing_is_let_through(requests: Requests) -> None:
    sampling(
        requests,
        max_tokens=4,
        num_beams=1,
        no_repeat_ngram_size=0,
        typical_p=0.9,  # read in sampling only
        use_cache=True,
        length_penalty=2.0,
        num_return_sequences=1,
    )


def test_a_special_stop_string_stops_by_its_token(requests: Requests) -> None:
    pad = requests.tokenizer.convert_tokens_to_ids("<pad>")
    params = sampling(requests, until=["<pad>", "", "\n\n"], max_tokens=4)
    assert params["stop"] == ["<pad>", "\n\n", "</s>"]
    assert params["stop_token_ids"] == sorted({pad, requests.tokenizer.eos_token_id})


def test_every_row_names_the_same_settings(requests: Requests) -> None:
    settings: list[dict[str, Any]] = [{"max_tokens": 4}, {"temperature": 1.0, "max_tokens": 4}]
    first, second = (sampling(requests, **one) for one in settings)
    assert set(first) == set(second) and None not in first.values()


def test_what_cannot_be_asked_says_why(requests: Requests) -> None:
    found = requests.of([ask("q", "The fox", "", max_tokens=64), ask("r", "x", max_tokens=4)])
    assert isinstance(found[2], Prompted)
    first = found[0]
    assert isinstance(first, Loose) and first.error is not None
    assert "leaves no room for a prompt" in first.error


def test_the_models_generation_settings_are_read(model: str, tmp_path: Path) -> None:
    assert "top_k" not in generation_defaults(model, None)
    folder = Path(model)
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink()
    assert generation_defaults(str(tmp_path), None)["eos_token_id"] == 1  # of config.json
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [1, 5], "top_k": 7, "do_sample": True})
    )
    own = generation_defaults(str(tmp_path), None)
    requests = Requests(make_tokenizer(), 64, own)
    assert sampling(requests, do_sample=True, max_tokens=4)["top_k"] == 7
    assert sampling(requests, max_tokens=4)["stop_token_ids"] == [1, 5]
    assert sampling(requests, max_tokens=4)["temperature"] == 0.0


def greedy(model: Any, one: Prompted) -> list[int]:
    """The tokens that vLLM would return: up to a stop token, or to where a stop string is."""
    import torch

    tokens: list[int] = []
    while len(tokens) < one.sampling["max_tokens"]:
        logits = model(torch.tensor([one.tokens + tokens])).logits
        tokens.append(int(logits[0, -1].argmax()))
        text = make_tokenizer().decode(tokens, skip_special_tokens=True)
        if tokens[-1] in one.sampling["stop_token_ids"]:
            break
        if any(stop in text for stop in one.sampling["stop"]):
            break
    return tokens


def test_the_text_is_our_own_engines(model: str) -> None:
    engine = Engine(model, None, {"v": None}, "float32", None, device="cpu")
    requests = Requests(engine.tokenizer, engine.max_length, generation_defaults(model, None))
    contexts = ["The quick brown fox", "Question: what? " * 20, "To open a jar, turn", " "]
    settings: Sequence[dict[str, Any]] = [
        {"max_gen_toks": 12},
        {"max_gen_toks": 30, "until": ["a", "the ", "\n"]},
        {"max_gen_toks": 8, "until": "e", "temperature": 0.0},
    ]
    queries = [
        ask(f"{c}-{i}", context, **one)
        for c, context in enumerate(contexts)
        for i, one in enumerate(settings)
    ]
    expected, lost = engine.answer("v", queries), set()
    for one in requests.of(queries):
        assert isinstance(one, Prompted)
        limit = one.sampling["max_tokens"]
        made = requests.output(greedy(engine.model, one), one.until, limit, one.shortened)
        assert made == expected[one.row].outputs[0]
        lost.add(made.truncated)
    assert lost == {None, "prompt", "answer", "prompt and answer"}


def make_set(folder: Path, *queries: Query, rows: int = 2) -> tuple[QuerySet, Ask]:
    path = str(folder / "queries.parquet")
    write_queries(path, queries, group_rows=rows)
    one = Ask("new", str(folder / "answers"))
    return QuerySet(path, (one,)), one


def test_a_group_is_assembled_when_it_is_whole(tmp_path: Path) -> None:
    queries, one = make_set(tmp_path, ask("a", "x", "x", "x"), ask("b", "y"), ask("c", "z"))
    base = BaseJob(VersionConfig(model="m"), {"new": None}, (queries,))
    third = Loose(0, 2, "third", truncated="answer")
    write_loose(one, 0, [third, Loose(1, 0, None, "vLLM failed: no")])
    assert not assemble(queries, one, 0)
    write_loose(one, 0, [Loose(0, 0, "first")])
    assert not assemble(queries, one, 0)
    assert pending(base) == {(0, 0): 2, (0, 1): 1}
    write_loose(one, 0, [Loose(0, 1, "second")])
    write_loose(one, 1, [Loose(0, 0, "")])
    assert assemble(queries, one, 0) and assemble(queries, one, 1)
    assert assemble(queries, one, 0)  # once more does nothing
    assert pending(base) == {}
    assert collect(queries, one) == [
        Answer(
            "a",
            (
                Output(text="first"),
                Output(text="second"),
                Output(text="third", truncated="answer"),
            ),
        ),
        Answer("b", (), "vLLM failed: no"),
        Answer("c", (Output(text=""),)),
    ]


def test_what_is_kept_twice_counts_once_and_half_a_file_not_at_all(tmp_path: Path) -> None:
    queries, one = make_set(tmp_path, ask("a", "x", "x"))
    write_loose(one, 0, [Loose(0, 0, "t")])
    write_loose(one, 0, [Loose(0, 0, "t"), Loose(0, 1, "u")])
    assert set(read_loose(one, 0)) == {(0, 0), (0, 1)}
    (tmp_path / "answers" / "loose" / "000000" / "half.parquet").write_bytes(b"PAR1")
    assert assemble(queries, one, 0)
    assert [len(a.outputs) for a in collect(queries, one)] == [2]
    assert Path(part(one, 0)).exists() and not (tmp_path / "answers/loose/000000").exists()


def test_kinds_of_each_group(tmp_path: Path) -> None:
    given = Query("g", (Request("loglikelihood", "a", " b"),))
    queries, _ = make_set(tmp_path, ask("a", "x"), ask("b", "y"), given, ask("c", "x"), given)
    assert kinds(queries, [0, 1, 2]) == {
        0: {"generate_until"},
        1: {"generate_until", "loglikelihood"},
        2: {"loglikelihood"},
    }


def settings_of(base: BaseJob, dtype: str = "bfloat16", one_machine: bool = True) -> Any:
    return engine_settings(base, dtype, 64, (1, 2), one_machine)


def test_adapters_of_one_base_share_an_engine(model: str, tmp_path: Path) -> None:
    first = save_random_adapter(tmp_path / "one", model, 1)
    second = save_random_adapter(tmp_path / "two", model, 2)
    config = VersionConfig(model=model, revision="abc")
    base = BaseJob(config, {"bare": None, "v1.5": first, "b": second, "again": first}, ())
    found = settings_of(base)
    assert found.adapters == {"bare": model, "v1.5": first, "b": second, "again": first}
    assert found.engine == {
        "dtype": "bfloat16",
        "max_model_len": 64,
        "tensor_parallel_size": 1,
        "trust_remote_code": False,
        "load_format": "safetensors",
        "revision": "abc",
        "tokenizer_revision": "abc",
        "enable_lora": True,
        "max_loras": 2,
        "max_cpu_loras": 2,
        "max_lora_rank": 8,  # rank 2, and vLLM takes 1, 8, 16, ...
    }
    assert found.concurrency == (1, 2)
    bare = settings_of(dataclasses.replace(base, adapters={"bare": None}), "float32")
    assert "enable_lora" not in bare.engine


def test_adapters_that_vllm_would_run_otherwise_are_refused(model: str, tmp_path: Path) -> None:
    path = Path(save_random_adapter(tmp_path / "one", model, 1))
    base = BaseJob(VersionConfig(model=model), {"a": str(path)}, ())
    with pytest.raises(UserError, match="--dtype bfloat16"):
        settings_of(base, "float32")
    file = path / "adapter_config.json"
    config = json.loads(file.read_text())
    for change, says in (
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"use_dora": True}, "use_dora"),
        ({"r": 1024}, "rank 1024"),
    ):
        file.write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=f"{says}.*--backend transformers"):
            settings_of(base)


def test_adapters_on_a_store_need_this_machine(model: str) -> None:
    base = BaseJob(VersionConfig(model=model), {"a": "s3://bucket/adapter"}, ())
    with pytest.raises(UserError, match="s3://bucket/adapter"):
        settings_of(base, one_machine=False)


def test_the_extra_pins_the_ray_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ray,) = [one for one in project["dependencies"] if one.startswith("ray[")]
    assert project["optional-dependencies"]["vllm"] == [f"ray[llm]=={ray.split('==')[1]}"]
