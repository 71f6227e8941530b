"""Generated answers by vLLM, through `ray.data.llm`; given answers stay with our own engine,
since vLLM's prompt log-probabilities ignore its prefix cache and have depended on the order
of requests (vllm #42019).

Written against the sources of Ray 2.60.0 and vLLM 0.29.0, which is the one it pins. All but
vLLM itself is tested: a run with the real vLLM on a GPU has not been made. Known
differences to the other backends: adapters have the base's dtype (not fp32), a text can
depend by rounding on what else is in the batch, sampled texts are other draws, and logits
that are NaN are not noticed.
"""

import importlib.util
import json
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from muscle import storage
from muscle.config import ResourcesConfig
from muscle.errors import UserError
from muscle.evaluation.job import BaseJob, EvaluateJob
from muscle.evaluation.loose import assemble, kinds, read_loose, write_loose
from muscle.evaluation.requests import (
    Loose,
    Prompted,
    Requests,
    generation_defaults,
)
from muscle.evaluation.units import Unit, part
from muscle.evaluation.vllm_settings import EngineSettings, engine_settings
from muscle.launch import cluster
from muscle.launch.streams import MAX_RESTARTS, explain, restarts_bounded, set_context
from muscle.models import check_adapter, chosen_window, load_config, load_tokenizer
from muscle.tables import read_query_group

MISSING = "backend 'vllm' needs vLLM on a GPU machine: pip install 'muscle-llm[vllm]'"

ENGINE_RESTARTS = 3
"""Deaths of one engine. Ray's default is endless, and a start takes a minute or more."""

BATCH = 128
"""Requests given to an engine at once; it has eight such batches in flight."""

Units = dict[int, dict[Unit, int]]
"""base -> unit -> how many answers it lacks."""

_SAMPLING = pa.struct(
    [
        *(
            pa.field(name, pa.float64())
            for name in ("temperature", "top_p", "min_p", "repetition_penalty")
        ),
        *(pa.field(name, pa.float64()) for name in ("presence_penalty", "frequency_penalty")),
        *(pa.field(name, pa.int64()) for name in ("top_k", "min_tokens", "max_tokens", "seed")),
        pa.field("stop", pa.list_(pa.string())),
        pa.field("stop_token_ids", pa.list_(pa.int64())),
    ]
)
_PLACE = ("set", "ask", "group", "row", "request")
_READ = ("until", "limit", "shortened")
PROMPT_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.int64()) for name in _PLACE),
        pa.field("until", pa.string()),
        pa.field("limit", pa.int64()),
        pa.field("shortened", pa.bool_()),
        pa.field("model", pa.string()),
        pa.field("tokenized_prompt", pa.list_(pa.int64())),
        pa.field("sampling_params", _SAMPLING),
    ]
)


def check_vllm(engines: int) -> None:
    """Refuse early what would only fail once engines start, or wait for ever.

    Args:
        engines: how many there are at least, with a GPU each.

    Raises:
        UserError: no vLLM here, or no GPUs and no cluster that could get them.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(MISSING)
    if not cluster.is_local():
        return
    there = ray.cluster_resources().get("GPU", 0.0)
    if there < 1:
        raise UserError(MISSING)
    if there < engines:
        raise UserError(
            f"resources.min_actors asks for {engines} vLLM engines of one GPU each and Ray has "
            f"{there:g} GPUs here: ask for less, or name a cluster with --address"
        )


def build_processor(
    settings: EngineSettings, labels: Mapping[str, str] | None = None
) -> Callable[[Dataset], Dataset]:
    """`ray.data.llm`'s processor: rows of `PROMPT_SCHEMA` in, the same rows out with
    `generated_tokens` and `__inference_error__` ("" for none). Its engines are on nodes with
    the labels."""
    from ray.data.llm import build_processor as build
    from ray.data.llm import vLLMEngineProcessorConfig

    # Tokens go in and tokens are read: none of its stages but the engine. Without a
    # postprocess of ours, failed rows have the columns of the others.
    processor = build(
        vLLMEngineProcessorConfig(
            model_source=settings.model,
            engine_kwargs=dict(settings.engine),
            concurrency=settings.concurrency,
            batch_size=BATCH,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            should_continue_on_error=True,
            log_engine_metrics=False,
        )
    )
    stage = processor.get_stage_by_name("vLLMEngineStage")
    stage.map_batches_kwargs.update(max_restarts=ENGINE_RESTARTS, max_task_retries=ENGINE_RESTARTS)
    if labels:
        stage.map_batches_kwargs["label_selector"] = dict(labels)

    def process(data: Dataset) -> Dataset:
        with restarts_bounded():
            return processor(data)

    return process


class Asking:
    """Units to rows of requests; those that are kept already, or can't be asked, are left out."""

    def __init__(self, base: BaseJob, adapters: dict[str, str], window: int, tell: "Tell"):
        self.base, self.adapters, self.tell = base, adapters, tell
        self.requests = _requests(base, window)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row for each request."""
        rows: list[dict[str, Any]] = []
        for unit in batch.to_pylist():
            rows += self._unit(unit)
        return pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA)

    def _unit(self, unit: dict[str, int]) -> list[dict[str, Any]]:
        queries = self.base.sets[unit["set"]]
        ask = queries.asks[unit["ask"]]
        kept = read_loose(ask, unit["group"])
        self.tell(kept.values())
        found = self.requests.of(read_query_group(queries.queries, unit["group"]))
        wanted = [one for one in found if (one.row, one.request) not in kept]
        refused = [one for one in wanted if isinstance(one, Loose)]
        if refused:
            write_loose(ask, unit["group"], refused)
            self.tell(refused)
        prompts = [one for one in wanted if isinstance(one, Prompted)]
        if ask.repeat:  # the same in another order and so in other batches
            random.Random(ask.repeat).shuffle(prompts)
        model = self.adapters[ask.version]
        return [
            {
                **unit,
                "row": one.row,
                "request": one.request,
                "until": json.dumps(one.until),
                "limit": one.sampling["max_tokens"],
                "shortened": one.shortened,
                "model": model,
                "tokenized_prompt": one.tokens,
                "sampling_params": one.sampling,
            }
            for one in prompts
        ]


class Keeping:
    """Generated tokens to kept texts; what comes back is only how many."""

    def __init__(self, base: BaseJob, window: int, tell: "Tell"):
        self.base, self.tell = base, tell
        self.requests = _requests(base, window)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Write what was generated, by ask and group."""
        if batch.num_rows:
            columns = [*_PLACE, *_READ, "generated_tokens", "__inference_error__"]
            found: dict[tuple[int, int, int], list[Loose]] = {}
            for row in batch.select(columns).to_pylist():
                place = (row["set"], row["ask"], row["group"])
                found.setdefault(place, []).append(self._loose(row))
            for (s, a, group), loose in found.items():
                write_loose(self.base.sets[s].asks[a], group, loose)
                self.tell(loose)
        return pa.table({"rows": pa.array([batch.num_rows], pa.int64())})

    def _loose(self, row: dict[str, Any]) -> Loose:
        error = row["__inference_error__"]
        if error:
            return Loose(row["row"], row["request"], None, f"vLLM failed: {_line(error)}")
        until, limit = json.loads(row["until"]), row["limit"]
        output = self.requests.output(row["generated_tokens"], until, limit, row["shortened"])
        return Loose(row["row"], row["request"], output.text, truncated=output.truncated)


class Tell:
    """Counts answers on the board: a query by its first request."""

    def __init__(self, board: Any, stage: str, total: int):
        self.board, self.stage, self.total = board, stage, total

    def __call__(self, found: Iterable[Loose]) -> None:
        count = sum(one.request == 0 for one in found)
        if count:
            self.board.add.remote(self.stage, count, self.total, "answers")


def write_generated(
    job: EvaluateJob,
    units: Units,
    resources: ResourcesConfig,
    tell: Tell,
) -> Units:
    """Write the parts of all units that only generate; returns the other units.

    Raises:
        UserError: no vLLM or GPU; a setting or an adapter that vLLM does not know; an engine
            that can't start, or dies again and again.
    """
    left: Units = {}
    for number, missing in units.items():
        base = job.bases[number]
        ours, left[number] = _split(base, missing, tell)
        if ours:
            check_vllm(resources.min_actors)
            _generate(job, base, ours, resources, tell)
    return left


def _split(
    base: BaseJob, missing: dict[Unit, int], tell: Tell
) -> tuple[list[Unit], dict[Unit, int]]:
    """The units that only generate, and the others."""
    ours, left = [], {}
    for s, queries in enumerate(base.sets):
        found = kinds(queries, [group for set_, group in missing if set_ == s])
        for group, asked in found.items():
            if asked == {"generate_until"}:
                ours.append((s, group))
                continue
            left[s, group] = missing[s, group]
            if "generate_until" in asked:
                tell.board.note.remote(
                    "queries that stand among given answers were generated by transformers, "
                    "not by vLLM"
                )
    return ours, left


def _generate(
    job: EvaluateJob,
    base: BaseJob,
    units: list[Unit],
    resources: ResourcesConfig,
    tell: Tell,
) -> None:
    """One stream through the engines of one base, then its parts."""
    window = _window(base, job.max_length)
    actors = (resources.min_actors, resources.max_actors)
    settings = engine_settings(base, job.dtype, window, actors, cluster.is_local())
    config = load_config(base.base.model, base.base.revision)
    for path in sorted(set(settings.adapters.values()) - {settings.model}):
        check_adapter(path, base.base.model, None, config)
    rows = [
        {"set": s, "ask": a, "group": group}
        for s, group in units
        for a, ask in enumerate(base.sets[s].asks)
        if not storage.exists(part(ask, group))
    ]
    # What an earlier run kept may be whole already: then no engine has to start for it.
    rows = [row for row in rows if not _assembled(base, row, tell)]
    if not rows:
        return
    _stream(base, settings, window, rows, tell, cluster.labels(resources.scoring_labels))
    for row in rows:
        if not assemble(base.sets[row["set"]], _ask(base, row), row["group"]):
            raise UserError(
                f"vLLM left requests of {_ask(base, row).answers} without an answer: "
                "run again, the others are kept"
            )


def _stream(
    base: BaseJob,
    settings: EngineSettings,
    window: int,
    rows: list[dict[str, int]],
    tell: Tell,
    labels: Mapping[str, str],
) -> None:
    set_context(DataContext.get_current())
    one: dict[str, Any] = {
        "batch_size": None,
        "batch_format": "pyarrow",
        "compute": ActorPoolStrategy(size=1),
        "max_restarts": MAX_RESTARTS,
        "max_task_retries": MAX_RESTARTS,
    }
    arguments = {"base": base, "window": window, "tell": tell}
    with restarts_bounded():
        data: Dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        asked = {**arguments, "adapters": settings.adapters}
        data = data.map_batches(Asking, fn_constructor_kwargs=asked, **one)
        data = build_processor(settings, labels)(data)
        data = data.map_batches(Keeping, fn_constructor_kwargs=arguments, **one)
    try:
        for _ in data.iter_batches(batch_size=None, batch_format="pyarrow"):
            pass
    except ray.exceptions.RayError as error:
        raise explain(error) from error


def _assembled(base: BaseJob, row: dict[str, int], tell: Tell) -> bool:
    queries, ask, group = base.sets[row["set"]], _ask(base, row), row["group"]
    kept = read_loose(ask, group)
    if not kept or not assemble(queries, ask, group):
        return False
    tell(kept.values())
    return True


def _ask(base: BaseJob, row: dict[str, int]) -> Any:
    return base.sets[row["set"]].asks[row["ask"]]


def _requests(base: BaseJob, window: int) -> Requests:
    model, revision = base.base.model, base.base.revision
    defaults = generation_defaults(model, revision)
    return Requests(load_tokenizer(model, revision), window, defaults)


def _window(base: BaseJob, max_length: int | None) -> int:
    """The context window, as `Engine` has it."""
    model, revision = base.base.model, base.base.revision
    config, tokenizer = load_config(model, revision), load_tokenizer(model, revision)
    return chosen_window(model, config, tokenizer, max_length)


def _line(text: str) -> str:
    return " ".join(str(text).split())[:300]
