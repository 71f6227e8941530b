"""Generated answers through `ray.data.llm`: with an echo in its place, and with all of it but
vLLM, for which a small package of the same names stands in. There is no vLLM here."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muscle.config import AdapterConfig, ResourcesConfig, VersionConfig
from muscle.errors import UserError
from muscle.evaluation.job import Ask, BaseJob, EvaluateJob, QuerySet
from muscle.evaluation.loose import write_loose
from muscle.evaluation.requests import Loose
from muscle.evaluation.units import collect
from muscle.models.adapters import new_adapter, save_adapter
from muscle.models.load import load_base, load_tokenizer
from muscle.tables import write_queries
from muscle.training.job import Progress
from muscle.types import Answer, Query, Request

pytestmark = pytest.mark.slow

VLLM = '''
"""Has the names of vLLM 0.29 that ray.data.llm uses; "generates" the prompt's last tokens."""

import dataclasses
import os
import types


@dataclasses.dataclass
class SamplingParams:
    temperature: float
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    top_k: int
    min_tokens: int
    max_tokens: int
    seed: int
    stop: list
    stop_token_ids: list
    structured_outputs: object = None

    def __post_init__(self):
        for field in dataclasses.fields(self)[:-1]:
            value, kind = getattr(self, field.name), field.type
            assert type(value) is kind, f"{field.name} is {value!r}"
        assert all(type(one) is str for one in self.stop)
        assert all(type(one) is int for one in self.stop_token_ids)


@dataclasses.dataclass
class AsyncEngineArgs:
    model: str
    runner: str
    distributed_executor_backend: str
    enable_log_requests: bool
    dtype: str
    max_model_len: int
    tensor_parallel_size: int
    trust_remote_code: bool
    load_format: str
    enable_lora: bool = False
    max_loras: int = 1
    max_cpu_loras: int = 1
    max_lora_rank: int = 16

    def create_engine_config(self):
        return types.SimpleNamespace(
            scheduler_config=types.SimpleNamespace(max_num_seqs=8),
            parallel_config=types.SimpleNamespace(pipeline_parallel_size=1),
        )


class RequestOutput:
    finished, metrics, prompt_logprobs = True, None, None


class AsyncLLMEngine:
    @classmethod
    def from_engine_args(cls, args, stat_loggers):
        engine = cls()
        engine.args = args
        return engine

    async def generate(self, request_id, prompt, sampling_params, lora_request):
        tokens = prompt["prompt_token_ids"]
        if sampling_params.max_tokens == 3 and os.path.exists(os.environ["DIE"]):
            if not open(os.environ["DIE"]).read():
                os.remove(os.environ["DIE"])
            os._exit(1)
        assert all(type(token) is int for token in tokens)
        assert len(tokens) + sampling_params.max_tokens <= self.args.max_model_len
        if sampling_params.max_tokens == 13:
            raise ValueError("an unlucky\\nnumber")
        made = tokens[-sampling_params.max_tokens:]
        if lora_request is not None:
            assert self.args.enable_lora and lora_request.lora_int_id <= self.args.max_loras
            made = made[::-1]
        output = RequestOutput()
        output.prompt_token_ids = tokens
        output.outputs = [types.SimpleNamespace(token_ids=made, text="not read", logprobs=None)]
        yield output

    async def do_log_stats(self):
        pass

    def shutdown(self):
        pass


class PoolingRequestOutput:
    pass


class LoRARequest:
    def __init__(self, lora_name, lora_int_id, lora_path):
        open(lora_path + "/adapter_config.json").close()
        self.lora_int_id = lora_int_id


outputs = types.SimpleNamespace(
    RequestOutput=RequestOutput, PoolingRequestOutput=PoolingRequestOutput
)
lora = types.SimpleNamespace(request=types.SimpleNamespace(LoRARequest=LoRARequest))
'''


@pytest.fixture(scope="module")
def adapter(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("adapter") / "a")
    model = load_base(tiny_models["new"], dtype="float32", device="cpu")
    save_adapter(new_adapter(model, AdapterConfig(r=4, alpha=8), 0, "new"), "new", path, "f")
    return path


def generated(i: int, requests: int = 1, **settings: Any) -> Query:
    settings = {"until": ["\n"], "max_gen_toks": 1 + i % 5, **settings}
    made = Request("generate_until", f"question {i}: what?", generation=json.dumps(settings))
    return Query(f"q{i}", (made,) * requests)


def given(i: int) -> Query:
    return Query(f"g{i}", (Request("loglikelihood", f"the {i}", " cat"),))


def make_job(model: str, adapter: str, folder: Path, *sets: list[Query]) -> EvaluateJob:
    """Two versions of one base answer all sets; the second one twice."""
    made = []
    for number, queries in enumerate(sets):
        path = str(folder / f"queries{number}.parquet")
        write_queries(path, queries, group_rows=4)
        names = (("bare", 0), ("tuned", 0), ("tuned", 1))
        asks = tuple(Ask(n, str(folder / f"{number}-{n}-{r}"), r) for n, r in names)
        made.append(QuerySet(path, asks))
    base = BaseJob(VersionConfig(model=model), {"bare": None, "tuned": adapter}, tuple(made))
    return EvaluateJob((base,), "bfloat16", None, 2048, "vllm")


def texts(job: EvaluateJob, number: int) -> list[list[Answer]]:
    queries = job.bases[0].sets[number]
    return [collect(queries, ask) for ask in queries.asks]


def echo(settings: Any) -> Callable[[Any], Any]:
    """A processor that answers with the end of the prompt, backwards for an adapter."""
    import pyarrow as pa

    def answer(batch: pa.Table) -> pa.Table:
        tokens, errors = [], []
        for row in batch.to_pylist():
            made = row["tokenized_prompt"][-row["sampling_params"]["max_tokens"] :]
            tokens.append(made if row["model"] == settings.model else made[::-1])
            errors.append("ValueError: no" if row["sampling_params"]["max_tokens"] == 13 else "")
        batch = batch.append_column("generated_tokens", pa.array(tokens, pa.list_(pa.int64())))
        return batch.append_column("__inference_error__", pa.array(errors, pa.string()))

    # Other blocks than those that go in, as an engine makes them.
    return lambda data: data.map_batches(answer, batch_format="pyarrow", batch_size=7)


@pytest.fixture
def echoing(monkeypatch: pytest.MonkeyPatch, ray_local: None) -> list[Any]:
    """Puts the echo in vLLM's place; returns the settings of the engines that were built."""
    import ray

    from muscle.launch import vllm

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    built: list[Any] = []
    monkeypatch.setattr(vllm, "check_vllm", lambda engines: None)
    monkeypatch.setattr(vllm, "build_processor", lambda one, labels: built.append(one) or echo(one))
    return built


def expected(model: str, query: Query, tuned: bool) -> list[str]:
    tokenizer = load_tokenizer(model)
    found = []
    for request in query.requests:
        count = json.loads(request.generation)["max_gen_toks"]
        tokens = tokenizer(request.context)["input_ids"][-count:]
        text = tokenizer.decode(tokens[::-1] if tuned else tokens, skip_special_tokens=True)
        found.append(text.split("\n")[0])
    return found


def assert_texts(job: EvaluateJob, number: int, queries: list[Query]) -> None:
    """Every query once, in order, with the text that its tokens make."""
    model = job.bases[0].base.model
    for version, got in enumerate(texts(job, number)):
        assert [a.id for a in got] == [q.id for q in queries]
        for query, answer in zip(queries, got, strict=True):
            assert answer.error is None
            wanted = expected(model, query, tuned=version > 0)
            assert [output.text for output in answer.outputs] == wanted


def test_generated_sets_go_through_vllm_and_given_ones_through_scorers(
    tiny_models: dict[str, str], adapter: str, tmp_path: Path, echoing: list[Any]
) -> None:
    from muscle.launch.evaluation import evaluate

    queries = [generated(i, requests=1 + i % 3) for i in range(18)]
    mixed = [given(0), generated(1), given(2)]
    job = make_job(tiny_models["new"], adapter, tmp_path, queries, [given(1)], mixed)
    seen: list[Progress] = []
    notes = evaluate(job, ResourcesConfig(), seen.append)
    assert_texts(job, 0, queries)
    for answers in texts(job, 1):
        assert answers[0].outputs[0].loglikelihood is not None
    assert [a.error for answers in texts(job, 2) for a in answers] == [None] * 9
    assert len(notes) == 1 and "were generated by transformers" in notes[0]
    assert seen[-1].done == seen[-1].total == 3 * (18 + 1 + 3)
    assert [one.adapters["tuned"] for one in echoing] == [adapter]
    assert not list(tmp_path.rglob("loose/*/*"))


def test_a_stopped_run_goes_on_with_what_is_missing(
    tiny_models: dict[str, str], adapter: str, tmp_path: Path, echoing: list[Any]
) -> None:
    from muscle.launch.evaluation import evaluate

    queries = [generated(i, requests=2) for i in range(10)]
    job = make_job(tiny_models["new"], adapter, tmp_path, queries)
    ask = job.bases[0].sets[0].asks[0]
    # A whole group, one that lacks a request, and one with a request that is answered twice.
    write_loose(ask, 0, [Loose(q, r, "kept") for q in range(4) for r in range(2)])
    write_loose(ask, 1, [Loose(q, r, "kept") for q in range(4) for r in range(2)][:-1])
    write_loose(ask, 2, [Loose(0, 0, "kept")])
    write_loose(ask, 2, [Loose(0, 0, "kept")])
    seen: list[Progress] = []
    evaluate(job, ResourcesConfig(), seen.append)
    bare, tuned, again = texts(job, 0)
    found = [output.text for answer in bare for output in answer.outputs]
    wanted = [text for q in queries for text in expected(tiny_models["new"], q, False)]
    assert found == ["kept"] * 15 + [wanted[15]] + ["kept"] + wanted[17:]
    assert tuned == again
    assert seen[-1].done == seen[-1].total == 30
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")}
    echoing.clear()
    evaluate(job, ResourcesConfig(), seen.append)
    assert not echoing and {p: p.stat().st_mtime_ns for p in before} == before


def test_whole_groups_start_no_engine(
    tiny_models: dict[str, str], adapter: str, tmp_path: Path, echoing: list[Any]
) -> None:
    from muscle.launch.evaluation import evaluate

    job = make_job(tiny_models["new"], adapter, tmp_path, [generated(0)])
    for ask in job.bases[0].sets[0].asks:
        write_loose(ask, 0, [Loose(0, 0, "kept")])
    evaluate(job, ResourcesConfig(), lambda progress: None)
    assert not echoing
    assert [answers[0].outputs[0].text for answers in texts(job, 0)] == ["kept"] * 3


def test_an_errored_row_is_an_answer_and_costs_no_other(
    tiny_models: dict[str, str], adapter: str, tmp_path: Path, echoing: list[Any]
) -> None:
    from muscle.launch.evaluation import evaluate

    queries = [generated(i) for i in range(6)]
    queries[1] = generated(1, max_gen_toks=13)  # the engine fails
    queries[4] = generated(4, max_gen_toks=4000)  # no room: never asked
    job = make_job(tiny_models["new"], adapter, tmp_path, queries)
    evaluate(job, ResourcesConfig(), lambda progress: None)
    for answers in texts(job, 0):
        assert [a.id for a in answers if a.error is None] == ["q0", "q2", "q3", "q5"]
        assert answers[1].error == "vLLM failed: ValueError: no"
        assert "leaves no room" in str(answers[4].error)


def test_a_setting_that_vllm_lacks_is_named(
    tiny_models: dict[str, str], adapter: str, tmp_path: Path, echoing: list[Any]
) -> None:
    from muscle.launch.evaluation import evaluate

    job = make_job(tiny_models["new"], adapter, tmp_path, [generated(0, no_repeat_ngram_size=2)])
    with pytest.raises(UserError, match=r"'no_repeat_ngram_size'.*use --backend transformers"):
        evaluate(job, ResourcesConfig(), lambda progress: None)


def test_without_vllm_it_says_so_before_any_model_is_loaded(
    tiny_models: dict[str, str],
    adapter: str,
    tmp_path: Path,
    ray_local: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib.util

    from muscle.launch import vllm
    from muscle.launch.evaluation import evaluate

    def refuse(*_: Any) -> None:
        raise AssertionError("a model was looked at")

    monkeypatch.setattr(vllm, "load_config", refuse)
    job = make_job(tiny_models["new"], adapter, tmp_path, [given(0)], [generated(0)])
    found = None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(UserError, match=r"needs vLLM on a GPU machine.*muscle-llm\[vllm\]"):
        evaluate(job, ResourcesConfig(), lambda progress: None)
    found = object()  # vLLM, but no GPU
    with pytest.raises(UserError, match="needs vLLM on a GPU machine"):
        evaluate(job, ResourcesConfig(), lambda progress: None)
    monkeypatch.setattr(vllm.ray, "cluster_resources", lambda: {"GPU": 1.0})
    with pytest.raises(UserError, match="min_actors asks for 2 vLLM engines"):
        vllm.check_vllm(2)
    assert not list(tmp_path.rglob("0-*"))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ray_local: None) -> Path:
    """The stand-in on a CPU. While the returned file is there an engine dies on its way: once,
    or always if something is written in the file."""
    import ray.data.llm

    from muscle.launch import vllm

    package = tmp_path / "package" / "vllm"
    (package / "inputs").mkdir(parents=True)
    (package / "__init__.py").write_text(VLLM)
    (package / "inputs" / "__init__.py").write_text("")
    (package / "inputs" / "llm.py").write_text("TokensPrompt = TextPrompt = dict\n")
    paths = [str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    die = tmp_path / "die"
    die.touch()
    real = ray.data.llm.vLLMEngineProcessorConfig

    def on_cpu(**settings: Any) -> Any:
        return real(
            **settings,
            placement_group_config={"bundles": [{"CPU": 1}]},
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths), "DIE": str(die)}},
        )

    monkeypatch.setattr(ray.data.llm, "vLLMEngineProcessorConfig", on_cpu)
    monkeypatch.setattr(vllm, "check_vllm", lambda engines: None)
    return die


def test_all_of_ray_data_llm_around_a_stand_in_for_vllm(
    tiny_models: dict[str, str], adapter: str, tmp_path: Path, stand_in: Path
) -> None:
    from muscle.launch.evaluation import evaluate

    queries = [generated(i, requests=1 + i % 2) for i in range(12)]
    bad = [generated(i, max_gen_toks=13 if i == 2 else 4000) for i in range(1, 6)]
    job = make_job(tiny_models["new"], adapter, tmp_path, queries, bad)
    # The last of the bad is a group of its own: nothing of it can be asked, an empty block.
    evaluate(job, ResourcesConfig(), lambda progress: None)
    assert not stand_in.exists()
    assert_texts(job, 0, queries)
    for answers in texts(job, 1):
        assert answers[1].error == "vLLM failed: ValueError: an unlucky number"
        assert sum("leaves no room" in str(a.error) for a in answers) == 4


def test_an_engine_that_dies_again_and_again_ends_the_run(
    tiny_models: dict[str, str], adapter: str, tmp_path: Path, stand_in: Path
) -> None:
    from muscle.launch.evaluation import evaluate

    stand_in.write_text("always")
    job = make_job(tiny_models["new"], adapter, tmp_path, [generated(2)])
    with pytest.raises(UserError, match="evaluation failed"):
        evaluate(job, ResourcesConfig(), lambda progress: None)


def test_an_engine_that_cannot_start_says_why(
    tiny_models: dict[str, str], adapter: str, tmp_path: Path, stand_in: Path
) -> None:
    from muscle.launch.evaluation import evaluate

    (tmp_path / "package" / "vllm" / "__init__.py").write_text("raise ImportError('no libcuda')")
    job = make_job(tiny_models["new"], adapter, tmp_path, [generated(0)])
    with pytest.raises(UserError, match="vLLM is not installed or failed to import"):
        evaluate(job, ResourcesConfig(), lambda progress: None)
