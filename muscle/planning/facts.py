"""What an experiment is made of, read once: models without memory, tokens, the machine.

Reckoning again under other resources only asks for other shapes, and those are kept.
"""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muscle import storage
from muscle.config import AdapterConfig, Experiment, ResourcesConfig, VersionConfig
from muscle.errors import UserError
from muscle.losses.needs import different_tokenizers, needed_teachers
from muscle.models.compatibility import check_adapter
from muscle.models.fingerprint import same_tokenizer
from muscle.models.load import chosen_window, load_config, load_tokenizer
from muscle.models.sequences import Sequences, tokenise
from muscle.plan import training_split
from muscle.planning.hardware import Hardware, find_hardware
from muscle.planning.meta import (
    ForwardPeak,
    MetaModel,
    Peaks,
    meta_model,
    trace_forward,
    trace_training,
)
from muscle.planning.work import Asked, Work, evaluation_work, forward_work, training_work
from muscle.tasks import Task, load_task


@dataclass
class Wing:
    """One base of the experiment: as it is trained and as it is asked, and its tokens."""

    name: str
    trained: MetaModel
    asked_model: MetaModel
    train: Sequences
    validation: Sequences
    asked: Asked


@dataclass
class Facts:
    """All that doesn't change with resources, and what was reckoned for some of them."""

    experiment: Experiment
    hardware: Hardware
    old: Wing
    new: Wing
    examples: int
    disk_free: int | None
    _kept: dict[Any, Any] = field(default_factory=dict)

    def wing(self, version: str) -> Wing:
        """The base of a version or teacher; new and compat share theirs."""
        return self.old if version == "old" else self.new

    def given(self, version: str) -> VersionConfig:
        """The experiment's own word on a version."""
        return self.experiment.old if version == "old" else self.experiment.new

    def training_budget(self, resources: ResourcesConfig) -> int:
        """Tokens of one micro-batch."""
        from muscle.training.loop import TOKENS

        return resources.training_tokens or TOKENS[self.hardware.kind]

    def scoring_budget(self, resources: ResourcesConfig) -> int:
        """Tokens of one forward of an actor."""
        from muscle.evaluation.engine import BATCH_TOKENS

        return resources.scoring_tokens or BATCH_TOKENS[self.hardware.kind]

    @property
    def held_tokens(self) -> int:
        """Tokens whose keys and values a generation holds."""
        from muscle.evaluation.generation import HELD_TOKENS

        return HELD_TOKENS

    @property
    def head_elements(self) -> int:
        """Logits that scoring holds at once."""
        from muscle.evaluation.scoring import HEAD_ELEMENTS

        return HEAD_ELEMENTS[self.hardware.kind]

    def training_work(self, wing: Wing, budget: int, workers: int) -> Work:
        """One epoch's updates."""
        key = ("train", wing.name, budget, workers)
        if key not in self._kept:
            seed = self.experiment.seeds[0]
            self._kept[key] = training_work(
                wing.train, self.experiment.training, seed, budget, workers
            )
        return self._kept[key]

    def validation_work(self, wing: Wing, budget: int, workers: int) -> Work:
        """One pass over the validation split."""
        key = ("validate", wing.name, budget, workers)
        if key not in self._kept:
            self._kept[key] = forward_work(wing.validation, budget, workers)
        return self._kept[key]

    def caching_work(self, wing: Wing, budget: int) -> Work:
        """One pass over the training split."""
        key = ("cache", wing.name, budget)
        if key not in self._kept:
            self._kept[key] = forward_work(wing.train, budget)
        return self._kept[key]

    def training_peaks(self, wing: Wing, work: Work, checkpointing: bool) -> Peaks:
        """Of the largest micro-batch of `work`."""
        model = wing.trained
        key = ("peaks", id(model), work.length, checkpointing)
        if key not in self._kept:
            self._kept[key] = _followed(
                wing, lambda: trace_training(model, 1, work.length, checkpointing)
            )
        one: Peaks = self._kept[key]  # rows are alike, so one row is run
        return Peaks(work.rows * one.kept, work.rows * one.backward, one.operations)

    def forward_peak(self, wing: Wing, model: MetaModel, rows: int, length: int) -> ForwardPeak:
        """Of one forward without gradient; `model` is one of the wing's."""
        key = ("forward", id(model), length)
        if key not in self._kept:
            self._kept[key] = _followed(wing, lambda: trace_forward(model, 1, length))
        one: ForwardPeak = self._kept[key]
        return ForwardPeak(rows * one.most, one.operations)


def _followed(wing: Wing, trace: Any) -> Any:
    """A trace; an architecture that needs its tensors' contents can't be followed."""
    try:
        return trace()
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
        name = type(wing.trained.model.get_base_model()).__name__
        text = " ".join(str(error).split())[:160]
        raise UserError(f"{wing.name}: the memory of {name} can't be reckoned: {text}") from error


def gather_facts(experiment: Experiment, output: str) -> Facts:
    """Read config, tokenizers and task of an experiment; no weights.

    Args:
        output: where results would go, for the free space of its disk.

    Raises:
        UserError: whatever is wrong with task, data, models, adapters or hardware.
    """
    hardware = find_hardware(experiment.hardware)  # first: it is quick to be wrong about
    versions = {"old": experiment.old, "new": experiment.new}
    tokenizers = {name: _named(name, _tokenizer, version) for name, version in versions.items()}
    if "old" in needed_teachers(experiment.compatibility):
        reason = same_tokenizer(tokenizers["old"], tokenizers["new"])
        if reason is not None:
            raise UserError(different_tokenizers(reason))
    configs = {
        name: _named(name, lambda v: load_config(v.model, v.revision, weights=False), version)
        for name, version in versions.items()
    }
    task = load_task(experiment.task)
    models: dict[Any, MetaModel] = {}
    wings = {
        name: _named(name, _wing, name, experiment, task, configs[name], tokenizers[name], models)
        for name in versions
    }
    return Facts(
        experiment=experiment,
        hardware=hardware,
        old=wings["old"],
        new=wings["new"],
        examples=len(task.queries(experiment.evaluation.limit)),
        disk_free=_free(experiment.storage or output),
    )


def _named(name: str, call: Any, *arguments: Any) -> Any:
    """A call whose errors say whose they are."""
    try:
        return call(*arguments)
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(f"{name}: ") else f"{name}: {text}") from error


def _tokenizer(version: VersionConfig) -> Any:
    return load_tokenizer(version.model, version.revision, weights=False)


def _wing(
    name: str,
    experiment: Experiment,
    task: Task,
    config: Any,
    tokenizer: Any,
    models: dict[Any, MetaModel],
) -> Wing:
    version = experiment.old if name == "old" else experiment.new
    settings = experiment.training
    adapter: AdapterConfig | str = experiment.adapter
    if version.adapter is not None:
        adapter = storage.fetch(version.adapter)
        check_adapter(adapter, version.model, None, config)
    train, validation = training_split(experiment, task)
    window = chosen_window(version.model, config, tokenizer, experiment.evaluation.max_length)

    def model(dtype: str, fp32_adapter: bool) -> MetaModel:
        key = (config.to_json_string(), str(adapter), dtype, fp32_adapter or dtype == "float32")
        if key not in models:  # old and new often have one shape
            models[key] = meta_model(config, adapter, dtype, fp32_adapter, version.model)
        return models[key]

    return Wing(
        name=name,
        # DeepSpeed trains the adapter in the base's dtype, with fp32 copies of its own.
        trained=model(settings.dtype, False),
        asked_model=model(experiment.evaluation.dtype or settings.dtype, True),
        train=tokenise(train, tokenizer, settings.max_length, settings.loss_on),
        validation=tokenise(validation, tokenizer, settings.max_length, settings.loss_on),
        asked=evaluation_work(task.queries(experiment.evaluation.limit), tokenizer, window),
    )


def _free(place: str) -> int | None:
    """Free bytes of the disk that holds a local path; None for a remote store."""
    if storage.is_remote(place):
        return None
    path = Path(os.path.abspath(place))
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
