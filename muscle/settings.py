"""What settings are made of, and those that say how an experiment runs and is judged.

Nothing here changes a number of an artifact: what sits under `resources`, `hardware`,
`tracking`, `gate` and `report` is part of no key, nor is `tuning` (`muscle.tuning_config`). The
rest is in `muscle.config`.
(`ServerConfig` alone mixes both: two of its fields are part of keys, see there.)
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MaskName = Literal[
    "student-wrong",
    "old-right",
    "token-likelihood",
    "sequence-likelihood",
    "always-old",
    "never-old",
]

BackendName = Literal["transformers", "continuous", "vllm", "openai"]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
# As Ray takes them, or none of its nodes would ever match.
_WORD = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
LabelKey = Annotated[str, Field(pattern=rf"^(?:[a-zA-Z0-9.-]+/)?{_WORD}$")]
LabelCondition = Annotated[str, Field(pattern=rf"^!?(?:{_WORD}|in\({_WORD}(?:, ?{_WORD})*\))$")]
Selectors = dict[LabelKey, LabelCondition]

Interpolation = Annotated[float, Field(gt=0.0, le=2.0)]


class Part(BaseModel):
    """Base of all parts: immutable, unknown keys are errors, and so are inf and nan."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ResourcesConfig(Part):
    """What a run may use; nothing here changes a number beyond rounding.

    A token budget bounds one forward: a batch is filled with sequences until their
    number times the longest one reaches it. By default it is large on a GPU and small
    on a CPU, where big batches fall out of the cache.

    Labels are Ray's label selectors for the nodes that training workers, and scoring and
    teacher actors, are placed on; a Ray started on this machine ignores them.
    """

    workers: Positive = 1
    cpus_per_worker: Positive | None = None  # default: the local cores, shared
    gpus_per_worker: Annotated[float, Field(ge=0.0)] | Literal["auto"] = "auto"
    deepspeed: str = "zero2"
    gradient_checkpointing: bool = False
    training_tokens: Positive | None = None
    teachers: Literal["auto", "cached", "online"] = "auto"
    min_workers: Positive | None = None  # default: exactly `workers`
    max_failures: Annotated[int, Field(ge=0)] = 3
    checkpoint_seconds: Annotated[float, Field(ge=0.0)] = 300.0
    scoring_tokens: Positive | None = None
    min_actors: Positive = 1
    max_actors: Positive = 1
    cpus_per_actor: Annotated[float, Field(gt=0.0)] = 1.0
    gpus_per_actor: Annotated[float, Field(ge=0.0)] | Literal["auto"] = "auto"
    training_labels: Selectors = {}
    scoring_labels: Selectors = {}

    @model_validator(mode="after")
    def _actor_range(self) -> "ResourcesConfig":
        if self.max_actors < self.min_actors:
            raise ValueError("'max_actors' is smaller than 'min_actors'")
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError("'min_workers' is more than 'workers'")
        return self


KEY_VARIABLE = "OPENAI_API_KEY"
"""Where the key of a server is looked for, unless a setting names another variable."""

RESERVED = ("model", "messages", "prompt", "tools", "stream", "n", "best_of", "echo", "logprobs")
"""Fields of a request that are ours: with another value an answer would mean something else."""


class ServerConfig(Part):
    """The OpenAI-compatible server that answers where `backend` is openai.

    base_url     up to and with /v1; or one for each model's name
    concurrency  requests at once, for each server
    timeout_s    how long one request may take
    retries      of a request that met a busy, silent or failing server, with backoff
    extra_body   fields put into each request (guided decoding, …); null takes one of ours out
    api_key_env  the environment variable with the key; without one, none is sent
    endpoint     auto: chats to chat/completions, plain text to completions; chat: plain text
                 too, as one message of the user; completions: no chats

    `extra_body` and `endpoint` change answers and are part of keys, as is the URL of a model.
    """

    base_url: str | dict[str, str] | None = None
    concurrency: Positive = 16
    timeout_s: Annotated[float, Field(gt=0.0)] = 120.0
    retries: Annotated[int, Field(ge=0, le=100)] = 4
    extra_body: dict[str, Any] = {}
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = KEY_VARIABLE
    endpoint: Literal["auto", "chat", "completions"] = "auto"

    @field_validator("base_url")
    @classmethod
    def _addresses(cls, value: str | dict[str, str] | None) -> str | dict[str, str] | None:
        for url in value.values() if isinstance(value, dict) else [value]:
            if url is not None and not re.match(r"https?://[^/\s]+", url):
                raise ValueError("write it as http://HOST:PORT/v1")
        return value

    @field_validator("extra_body")
    @classmethod
    def _not_ours(cls, body: dict[str, Any]) -> dict[str, Any]:
        for name in RESERVED:
            if name in body:
                raise ValueError(f"'{name}' is set by us in each request: leave it out")
        return body

    def url(self, name: str) -> str | None:
        """The server of a model, by the model's name among ours; None where none is given."""
        given = self.base_url.get(name) if isinstance(self.base_url, dict) else self.base_url
        return None if given is None else given.rstrip("/")


class HardwareConfig(Part):
    """The GPUs that `muscle plan` reckons with; nothing else reads it.

    `gpu` is a name of `muscle.planning.hardware` and fills in what isn't given: memory in
    GiB, dense bf16 rate in TFLOP/s. `utilisation` is the share of that rate a training
    reaches. Without any of it, the machine that plans is reckoned with.
    """

    gpu: str | None = None
    memory_gib: Annotated[float, Field(gt=0.0)] | None = None
    tflops: Annotated[float, Field(gt=0.0)] | None = None
    utilisation: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    price_per_hour: Annotated[float, Field(ge=0.0)] | None = None


class TrackingConfig(Part):
    """Where training curves go besides OUTPUT/curves/*/curve.jsonl.

    `mlflow` is a tracking URI, `wandb` a project's name; each needs its extra.
    """

    tensorboard: bool = True
    mlflow: str | None = None
    wandb: str | None = None


class RangeConfig(Part):
    """An interval of a search space, both ends included; `log` draws evenly by ratio."""

    min: float
    max: float
    log: bool = False


Values = list[float] | RangeConfig


PairName = Literal["old->new", "old->compat", "new->compat"]

# 1 would be a limit that nothing breaks; who writes 2 means 2 percent.
Limit = Annotated[float, Field(ge=0.0, lt=1.0)]


class GateConfig(Part):
    """What `muscle run` holds its report against, as `muscle gate` does; fractions.

    max_nfr           the negative flip rate, at most
    max_excess_nfr    NFR less that between two seeds of old (`noise_floor`), at most
    max_relative_nfr  at most
    min_gain          score(after) - score(before), at least; may be negative
    must_keep         a file of ids that may not flip
    waive             a file of flips that somebody allowed: id, reason, until
    slices            COLUMN (each of its values) or COLUMN=VALUE, judged like tasks
    pair              default: old->compat
    """

    max_nfr: Limit | None = None
    max_excess_nfr: Limit | None = None
    max_relative_nfr: Fraction | None = None
    min_gain: Annotated[float, Field(gt=-1.0, lt=1.0)] | None = None
    must_keep: str | None = None
    waive: str | None = None
    slices: list[str] = []
    pair: PairName | None = None

    @property
    def asked(self) -> bool:
        """Whether there is anything to hold a report against."""
        rates = (self.max_nfr, self.max_excess_nfr, self.max_relative_nfr, self.min_gain)
        return any(rate is not None for rate in rates) or self.must_keep is not None

    @model_validator(mode="after")
    def _limits_first(self) -> "GateConfig":
        if self.slices and self.max_nfr is None and self.min_gain is None:
            raise ValueError("'slices' are held against 'max_nfr' or 'min_gain': give one")
        if self.waive is not None and not self.asked:
            raise ValueError("'waive' allows flips that no limit forbids: give a limit")
        return self


class ReportConfig(Part):
    """How the report is written; nothing here changes a number of a whole task.

    text       examples' texts on the page ("page"), also in report.md ("all"), nowhere ("none")
    slices     columns of the task; default: all with few values
    min_slice  examples that a slice must have
    """

    text: Literal["page", "all", "none"] = "page"
    slices: list[str] | None = None
    min_slice: Positive = 50
