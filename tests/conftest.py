"""What all tests share: quiet, offline, few threads, and tiny real models made on the spot."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Read at the first import of Ray, which may be a test module's: it stays on the loopback.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from s3_server import S3Server, serve

if TYPE_CHECKING:
    from muscle.training.job import TrainJob

TEXTS = [
    "the cat sat on the mat and looked at the dog",
    "question: what colour is the sky? answer: blue",
    "three plus four is seven, and two more is nine.\n",
    "Sentence: a short one.\nThe sentence is objective subjective",
]


def make_model(folder: Path, hidden: int, seed: int, vocabulary: int = 300) -> str:
    """A random Llama with its own small tokenizer, in plain Hugging Face format."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TEXTS, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():  # livelier than the default 0.02
            if parameter.dim() > 1:
                parameter.data.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`old` and `new`: two sizes with one tokenizer; `other`: another tokenizer."""
    root = tmp_path_factory.mktemp("models")
    return {
        "old": make_model(root / "old", 16, 1),
        "new": make_model(root / "new", 32, 2),
        "other": make_model(root / "other", 32, 3, vocabulary=280),
    }


WORDS = ["red", "blue", "green", "one", "two", "seven"]


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with 20 training and 4 validation examples of ragged lengths."""
    from muscle.tables import write_examples
    from muscle.types import TrainingExample

    folder = tmp_path_factory.mktemp("examples")
    rows = [
        TrainingExample(str(i), f"item {'x' * (i % 5)} {i}:", f" {WORDS[i % len(WORDS)]}")
        for i in range(24)
    ]
    write_examples(folder / "train.parquet", rows[:20])
    write_examples(folder / "validation.parquet", rows[20:])
    return str(folder)


@pytest.fixture(scope="session")
def make_job(tiny_models: dict[str, str], examples: str) -> Callable[..., "TrainJob"]:
    """`make_job(folder, role="new", **changes)`: a short training on a tiny model."""
    from muscle.config import AdapterConfig, TrainingConfig, VersionConfig
    from muscle.training.job import TrainJob
    from muscle.training.settings import read_deepspeed

    def make(folder: Path, role: str = "new", **changes: Any) -> TrainJob:
        job = TrainJob(
            role=role,  # type: ignore[arg-type]
            title=f"train {role}",
            base=VersionConfig(model=tiny_models["old" if role == "old" else "new"]),
            base_fingerprint="f",
            adapter=AdapterConfig(r=4, alpha=8),
            start=None,
            old=None,
            teachers={},
            loss=None,
            training=TrainingConfig(
                learning_rate=5e-3,
                warmup_steps=2,
                epochs=2,
                batch_size=2,
                accumulation=2,
                dtype="float32",
            ),
            deepspeed=read_deepspeed("zero2"),
            gradient_checkpointing=False,
            training_tokens=64,
            examples=examples,
            seed=0,
            output=str(folder / "out"),
            checkpoints=str(folder / "checkpoints"),
        )
        return dataclasses.replace(job, **changes)

    return make


@pytest.fixture(scope="session")
def trained(
    make_job: Callable[..., "TrainJob"], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Task adapters of the old and the new tiny model: version -> directory."""
    from muscle.training.loop import train_alone

    result = {}
    for role in ("old", "new"):
        folder = tmp_path_factory.mktemp(role)
        train_alone(make_job(folder, role), lambda progress: None, "cpu")
        result[role] = str(folder / "out")
    return result


@pytest.fixture(scope="session")
def make_compat(
    make_job: Callable[..., "TrainJob"], tiny_models: dict[str, str], trained: dict[str, str]
) -> Callable[..., "TrainJob"]:
    """`make_compat(folder, **loss)`: the compatibility adapter's job on the trained ones."""
    from muscle.config import CompatibilityConfig, VersionConfig

    def make(folder: Path, **loss: Any) -> "TrainJob":
        return make_job(
            folder,
            "compat",
            start=trained["new"],
            old=VersionConfig(model=tiny_models["old"], adapter=trained["old"]),
            loss=CompatibilityConfig.model_validate({"level": "token", **loss}),
        )

    return make


@pytest.fixture(scope="session")
def cached() -> Callable[["TrainJob", Path], "TrainJob"]:
    """`cached(job, folder)`: the same compat job, with its teachers cached in the folder."""
    from muscle.alone import Alone
    from muscle.teachers.job import TeacherAsk, TeacherBase, TeacherJob
    from muscle.teachers.shards import finish
    from muscle.training.job import CachedTeacher

    def make(job: "TrainJob", folder: Path) -> "TrainJob":
        assert job.old is not None and job.old.adapter is not None and job.start is not None
        models = {"old": (job.old, job.old.adapter), "new": (job.base, job.start)}
        asks = {
            name: TeacherAsk(name, adapter, str(folder / name), {"teacher": name})
            for name, (_, adapter) in models.items()
        }
        bases = tuple(
            TeacherBase(base.model_copy(update={"adapter": None}), (asks[name],))
            for name, (base, _) in models.items()
        )
        settings = job.training
        teachers = TeacherJob(
            bases, job.examples, settings.dtype, settings.max_length, settings.loss_on, 64
        )
        Alone("cpu").cache(teachers, lambda progress: None)
        for ask in asks.values():
            finish(teachers, ask)
        found = {name: CachedTeacher(ask.folder, ask.identity) for name, ask in asks.items()}
        return dataclasses.replace(job, old=None, teachers=found)

    return make


S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",  # a failure is told at once
}


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One server for the session; `s3` is what tests take."""
    server, stop = serve()
    yield server
    stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Server]:
    """An S3-compatible server that the environment leads to; copies go under the test's folder."""
    import s3fs

    for name, value in {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": s3_server.url}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    s3fs.S3FileSystem.clear_instance_cache()
    s3_server.calm()
    yield s3_server
    s3_server.calm()
    s3fs.S3FileSystem.clear_instance_cache()
