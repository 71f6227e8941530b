"""One experiment as one frozen, validated value.

The defaults are the paper's (arXiv 2407.09435, §5, A.1, A.4). What it does not
publish is marked "assumed". Every field that changes a number is part of some
artifact's key (`muscle.plan`); what sits under `resources`, `hardware`, `tracking`,
`tuning`, `gate`, `report` and `storage` never is.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from muscle.compatibility_config import CompatibilityConfig, InputsConfig
from muscle.settings import (
    BackendName,
    GateConfig,
    HardwareConfig,
    MaskName,
    Part,
    Positive,
    RangeConfig,
    ReportConfig,
    ResourcesConfig,
    ServerConfig,
    TrackingConfig,
)
from muscle.task_config import DataFiles, TaskConfig
from muscle.tuning_config import TUNING_FRACTION, SpaceConfig, TuningConfig

__all__ = [
    "TUNING_FRACTION",
    "AdapterConfig",
    "BackendName",
    "CompatibilityConfig",
    "DataFiles",
    "Evaluation",
    "EvaluationConfig",
    "Experiment",
    "GateConfig",
    "HardwareConfig",
    "InputsConfig",
    "MaskName",
    "PromptingConfig",
    "RangeConfig",
    "ReportConfig",
    "ResourcesConfig",
    "ServerConfig",
    "SpaceConfig",
    "TaskConfig",
    "TrackingConfig",
    "TrainingConfig",
    "TuningConfig",
    "VersionConfig",
]


class VersionConfig(Part):
    """One base model, and optionally a task adapter that already exists.

    `model` is a directory, a hub id, or `testbed:v1` / `testbed:v2`. `chat_template` is a Jinja
    file that chats are rendered by; default: the tokenizer's own. `release` is the release.json
    that the others were taken from (`muscle.released`), whose base they must find.
    """

    model: str
    revision: str | None = None
    adapter: str | None = None
    chat_template: str | None = None
    release: str | None = None


class AdapterConfig(Part):
    """LoRA (A.1): on all linear layers, rank 128, alpha 256, no dropout."""

    r: Positive = 128
    alpha: Positive = 256
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    targets: list[str] | str = "all-linear"


class TrainingConfig(Part):
    """Task-adapter training (A.1). One update is batch_size x accumulation examples.

    The number of examples in an update does not depend on the number of workers.
    """

    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # assumed
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    epochs: Positive = 10
    batch_size: Positive = 4  # assumed
    accumulation: Positive = 8
    max_length: Annotated[int, Field(ge=2)] = 1024  # assumed
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None  # assumed
    loss_on: Literal["all", "answer"] = "all"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # assumed
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    limit: Positive | None = None  # examples of the training split, before any split
    # Held out before the 80/20 split, for `muscle tune` to compare trials on; it takes
    # `TUNING_FRACTION` where nothing is given, and a plain run holds nothing out then.
    tuning_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None

    @property
    def update_size(self) -> int:
        """Examples per optimizer update."""
        return self.batch_size * self.accumulation


class EvaluationConfig(Part):
    """How models are scored.

    `backend` says what writes generated answers: transformers in batches, transformers'
    continuous batching (GPU), or vLLM (the extra `muscle-llm[vllm]`). Given answers are always
    scored by our own engine. With `openai` all of it is a server's work (`muscle evaluate`).
    """

    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # default: the training dtype
    limit: Positive | None = None
    max_length: Positive | None = None  # default: the model's context window
    backend: BackendName = "transformers"
    server: ServerConfig = ServerConfig()

    @model_validator(mode="after")
    def _server_is_asked(self) -> "EvaluationConfig":
        if self.backend == "openai":
            if not self.server.base_url:
                raise ValueError("backend 'openai' needs the server's address: give --base-url URL")
            if self.max_length is not None:
                raise ValueError("'max_length' is the server's own with backend 'openai'")
            if self.dtype not in (None, "float32"):
                raise ValueError(
                    "the server has its own number format: leave dtype out with backend 'openai'"
                )
        elif self.server != ServerConfig():
            raise ValueError("'server' is for backend 'openai': set --backend openai")
        return self


class Experiment(Part):
    """A whole update: two base versions, a task, and how compat is trained and judged.

    `noise_floor` says whether NFR between two seeds of old is measured too: true has old
    trained with a second seed (the next of `seeds`; seed + 1 where there is one), a text is the
    directory of such an adapter. `also` are older releases, PATH or NAME=PATH, that answer too, so
    that the report says what is lost since.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    task: TaskConfig
    old: VersionConfig
    new: VersionConfig
    adapter: AdapterConfig = AdapterConfig()
    training: TrainingConfig = TrainingConfig()
    compatibility: CompatibilityConfig = CompatibilityConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    resources: ResourcesConfig = ResourcesConfig()
    hardware: HardwareConfig = HardwareConfig()
    tracking: TrackingConfig = TrackingConfig()
    tuning: TuningConfig = TuningConfig()
    gate: GateConfig = GateConfig()
    report: ReportConfig = ReportConfig()
    noise_floor: bool | str = False
    also: list[str] = Field(default=[])
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(default=[0])
    compat_seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    data_seed: Annotated[int, Field(ge=0)] = 0
    storage: str | None = None  # where artifacts live; default: OUTPUT/artifacts
    assumed: dict[str, Any] = Field(default={})  # notes: what the paper does not publish

    @field_validator("task", mode="before")
    @classmethod
    def _task_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("seeds", "compat_seeds")
    @classmethod
    def _distinct(cls, seeds: list[int] | None) -> list[int] | None:
        if seeds is not None and len(set(seeds)) != len(seeds):
            raise ValueError("a seed occurs twice")
        return seeds

    @model_validator(mode="after")
    def _compat_seeds_vary_one_seed(self) -> "Experiment":
        if self.compat_seeds is not None and len(self.seeds) != 1:
            raise ValueError(
                "'compat_seeds' varies only the compat adapter: give one seed in 'seeds'"
            )
        return self

    @model_validator(mode="after")
    def _answers_itself(self) -> "Experiment":
        if self.evaluation.backend == "openai":
            raise ValueError(
                "backend 'openai' is for `muscle evaluate`: let this run train with another "
                "backend, serve its adapters, ask them with `muscle evaluate --backend openai "
                "--base-url URL --model old=NAME …` and compare with `muscle compare`"
            )
        return self

    @model_validator(mode="after")
    def _noise_floor_can_be_had(self) -> "Experiment":
        if self.noise_floor == "":
            raise ValueError("'noise_floor' is empty: give true, false or an adapter's directory")
        if self.noise_floor is True and self.old.adapter is not None:
            raise ValueError(
                "'noise_floor: true' trains old's adapter with a second seed, but 'old.adapter' "
                "brings one: give the directory of one that was trained with another seed "
                "(noise_floor: DIR)"
            )
        if self.gate.max_excess_nfr is not None and self.noise_floor is False:
            raise ValueError("'gate.max_excess_nfr' needs a noise floor: set 'noise_floor: true'")
        return self

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(task seed, compat seed) of every run of the update."""
        if self.compat_seeds is not None:
            return [(self.seeds[0], seed) for seed in self.compat_seeds]
        return [(seed, seed) for seed in self.seeds]

    @property
    def scoring_dtype(self) -> Literal["float32", "bfloat16", "float16"]:
        """The dtype in which models answer: the training's unless given."""
        return self.evaluation.dtype or self.training.dtype

    @property
    def compat_training(self) -> TrainingConfig:
        """The task adapters' training settings with the compatibility overrides applied."""
        names = ("learning_rate", "epochs", "warmup_steps")
        given = {name: getattr(self.compatibility, name) for name in names}
        return self.training.model_copy(update={k: v for k, v in given.items() if v is not None})


class PromptingConfig(Part):
    """How a model is spoken to, as lm-evaluation-harness's options of the same names.

    `apply_chat_template` is true, or the name of one of a tokenizer's templates.
    """

    apply_chat_template: bool | str = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = False


class Evaluation(Part):
    """`muscle evaluate`: any models, by names of their own, on any tasks.

    `repeat` asks every model so often, to see how much of a difference is rounding.
    """

    tasks: Annotated[list[TaskConfig], Field(min_length=1)]
    models: Annotated[dict[str, VersionConfig], Field(min_length=1)]
    prompting: PromptingConfig = PromptingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    resources: ResourcesConfig = ResourcesConfig()
    repeat: Positive = 1
    storage: str | None = None  # where artifacts live; default: OUTPUT/artifacts

    @field_validator("models")
    @classmethod
    def _names_are_folders(cls, models: dict[str, VersionConfig]) -> dict[str, VersionConfig]:
        for name in models:
            if name == "artifacts":
                raise ValueError("'artifacts' can't be a model's name: it is a folder of ours")
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"{name!r} can't be a model's name: use letters, digits and ._-")
        return models
