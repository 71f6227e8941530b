"""What an experiment is made of, read once: models without memory, tokens, the machine.

Reckoning again under other resources only asks for other shapes, and those are kept.
"""

from dataclasses import dataclass, field
from typing import Any

from muscle import copies, storage
from muscle.answers import Reader, settled
from muscle.chats import Chats, chat_split, chats_of
from muscle.config import AdapterConfig, Experiment, ResourcesConfig, VersionConfig
from muscle.errors import UserError
from muscle.evaluation.attention import known_windows
from muscle.losses.needs import aligns_tokens, different_tokenizers
from muscle.models.compatibility import check_adapter
from muscle.models.fingerprint import same_ids
from muscle.models.load import chosen_window, context_window, load_config, load_tokenizer
from muscle.models.sequences import Sequences, tokenise
from muscle.planning.distilled import Distilled, read_distilled
from muscle.planning.hardware import Hardware, find_hardware
from muscle.planning.meta import (
    ForwardPeak,
    MetaModel,
    Peaks,
    meta_model,
    trace_forward,
    trace_training,
)
from muscle.planning.work import (
    Asked,
    Trees,
    Work,
    evaluation_work,
    forward_work,
    training_work,
)
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
    distilled: Distilled | None = None  # of level choice
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

    def training_work(
        self, wing: Wing, budget: int, workers: int, trees: Trees | None = None
    ) -> Work:
        """One epoch's updates; of trees where answers are distilled."""
        key = ("train", wing.name, budget, workers, trees is None)
        if key not in self._kept:
            seed, rows = self.experiment.seeds[0], wing.train if trees is None else trees
            self._kept[key] = training_work(rows, self.experiment.training, seed, budget, workers)
        return self._kept[key]

    def validation_work(
        self, wing: Wing, budget: int, workers: int, trees: Trees | None = None
    ) -> Work:
        """One pass over the validation split."""
        key = ("validate", wing.name, budget, workers, trees is None)
        if key not in self._kept:
            rows = wing.validation if trees is None else trees
            self._kept[key] = forward_work(rows, budget, workers)
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
        length, times = _unit(model, work.rows, work.length)
        key = ("peaks", id(model), length, checkpointing)
        if key not in self._kept:
            self._kept[key] = _followed(
                wing, lambda: trace_training(model, 1, length, checkpointing)
            )
        one: Peaks = self._kept[key]
        return Peaks(int(times * one.kept), int(times * one.backward), one.operations)

    def forward_peak(self, wing: Wing, model: MetaModel, rows: int, length: int) -> ForwardPeak:
        """Of one forward without gradient; `model` is one of the wing's."""
        unit, times = _unit(model, rows, length)
        key = ("forward", id(model), unit)
        if key not in self._kept:
            self._kept[key] = _followed(wing, lambda: trace_forward(model, 1, unit))
        one: ForwardPeak = self._kept[key]
        return ForwardPeak(int(times * one.most), one.operations)


UNIT = 64
"""Tokens of the row that is followed in place of any other."""


def _unit(model: MetaModel, rows: int, length: int) -> tuple[int, float]:
    """The length of one row to follow, and how many times its memory [rows, length] takes.

    Rows are alike, and with a fused attention so are tokens; without one, scores grow with
    the square of the length, which is then followed itself.
    """
    return (UNIT, rows * length / UNIT) if model.fused else (length, float(rows))


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
    task = load_task(experiment.task)
    experiment = settled(experiment, task)
    versions = {"old": experiment.old, "new": experiment.new}
    tokenizers = {name: _named(name, _tokenizer, version) for name, version in versions.items()}
    reason = same_ids(tokenizers["old"], tokenizers["new"])
    if reason is not None and aligns_tokens(experiment.compatibility):
        raise UserError(different_tokenizers(reason))
    configs = {
        name: _named(name, lambda v: load_config(v.model, v.revision, weights=False), version)
        for name, version in versions.items()
    }
    models: dict[Any, MetaModel] = {}
    old, new = (
        _named(name, _models, version, experiment, configs[name], models)
        for name, version in versions.items()
    )
    chats = chats_of(experiment, task)
    asked = chats.prompting_of("new") if chats else None

    def tokens(name: str) -> Any:
        given = (experiment, task, chats, name, configs[name], tokenizers[name])
        return _named(name, _tokens, *given)

    read = [tokens("old")]
    # One tokenizer, template and window: one reading.
    if (
        reason is None
        and chats is None
        and context_window(configs["old"]) == context_window(configs["new"])
    ):
        read *= 2
    else:
        read.append(tokens("new"))
    distilled = None
    if experiment.compatibility.by_choice:
        reader = Reader(experiment, task, chats)
        distilled = _distilled(experiment, reader, tokenizers, configs, new[0])
    return Facts(
        experiment=experiment,
        hardware=hardware,
        old=Wing("old", *old, *read[0]),
        new=Wing("new", *new, *read[1]),
        examples=len(task.queries(experiment.evaluation.limit, asked)),
        disk_free=storage.disk_free(experiment.storage or output),
        distilled=distilled,
    )


def _distilled(
    experiment: Experiment,
    reader: Reader,
    tokenizers: dict[str, Any],
    configs: dict[str, Any],
    student: MetaModel,
) -> Distilled:
    """The inputs of answer-level distillation; trees where the student is known to take them."""
    limit = experiment.evaluation.max_length
    windows = {
        name: chosen_window("its base", config, tokenizers[name], limit)
        for name, config in configs.items()
    }
    masks = known_windows(student.config) or {}
    return read_distilled(experiment, reader, tokenizers, windows, len(masks))


def _named(name: str, call: Any, *arguments: Any) -> Any:
    """A call whose errors say whose they are."""
    try:
        return call(*arguments)
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(f"{name}: ") else f"{name}: {text}") from error


def _tokenizer(version: VersionConfig) -> Any:
    return load_tokenizer(version.model, version.revision, weights=False)


def _models(
    version: VersionConfig, experiment: Experiment, config: Any, known: dict[Any, MetaModel]
) -> tuple[MetaModel, MetaModel]:
    """A version's base as it is trained and as it is asked; equal shapes are built once."""
    adapter: AdapterConfig | str = experiment.adapter
    if version.adapter is not None:
        adapter = copies.fetch(version.adapter)
        check_adapter(adapter, version.model, None, config)

    def model(dtype: str, fp32_adapter: bool) -> MetaModel:
        shape = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
        fp32 = fp32_adapter or dtype == "float32"
        key = (str(sorted(shape.items(), key=lambda item: item[0])), str(adapter), dtype, fp32)
        if key not in known:
            known[key] = meta_model(config, adapter, dtype, fp32_adapter, version.model)
        return known[key]

    training = experiment.training.dtype
    # DeepSpeed trains the adapter in the base's dtype, with fp32 copies of its own.
    return model(training, False), model(experiment.evaluation.dtype or training, True)


def _tokens(
    experiment: Experiment, task: Task, chats: Chats | None, name: str, config: Any, tokenizer: Any
) -> tuple[Sequences, Sequences, Asked]:
    """(training, validation, evaluation) in tokens, as a version reads them."""
    settings, evaluation = experiment.training, experiment.evaluation
    train, validation = (
        tokenise(part, tokenizer, settings.max_length, settings.loss_on)
        for part in chat_split(experiment, task, chats, name)
    )
    window = chosen_window("its base", config, tokenizer, evaluation.max_length)
    queries = task.queries(evaluation.limit, chats.prompting_of(name) if chats else None)
    return train, validation, evaluation_work(queries, tokenizer, window)
