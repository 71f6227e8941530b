"""The teachers that the tests of their cache share."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from teacher_jobs import MAX_LENGTH, MakeTeachers, identity, make_cache

from muscle import storage
from muscle.config import VersionConfig
from muscle.models.load import load_tokenizer
from muscle.models.sequences import Sequences, tokenise
from muscle.tables import read_examples
from muscle.teachers.job import TeacherAsk, TeacherBase, TeacherJob


@pytest.fixture(scope="session")
def make_teachers(
    tiny_models: dict[str, str], trained: dict[str, str], examples: str
) -> MakeTeachers:
    """`make_teachers(folder)`: the old and the new teacher, four shards each."""

    def make(folder: Path | str, dtype: str = "float32", loss_on: str = "all") -> TeacherJob:
        bases = tuple(
            TeacherBase(
                VersionConfig(model=tiny_models[name]),
                (
                    TeacherAsk(
                        name,
                        trained[name],
                        storage.join(str(folder), name),
                        identity(name, dtype, loss_on),
                    ),
                ),
            )
            for name in ("old", "new")
        )
        return TeacherJob(bases, examples, dtype, MAX_LENGTH, loss_on, 64, shard_sequences=6)

    return make


@pytest.fixture(scope="session")
def sequences(tiny_models: dict[str, str], examples: str) -> Sequences:
    rows = read_examples(f"{examples}/train.parquet")
    return tokenise(rows, load_tokenizer(tiny_models["new"]), MAX_LENGTH, "all")


@pytest.fixture(scope="session")
def made_teachers(
    make_teachers: MakeTeachers, tmp_path_factory: pytest.TempPathFactory
) -> TeacherJob:
    """A finished fp32 cache; tests that harm it work on a copy."""
    return make_cache(make_teachers(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def copied_teachers(
    made_teachers: TeacherJob, make_teachers: MakeTeachers, tmp_path: Path
) -> TeacherJob:
    job = make_teachers(tmp_path / "copy")
    for base, other in zip(made_teachers.bases, job.bases, strict=True):
        storage.upload(Path(base.asks[0].folder), other.asks[0].folder)
    return job


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store that isn't a disk; copies go under the test's folder."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    url = f"memory://teachers-{os.getpid()}-{tmp_path.name}"
    yield url
    storage.remove(url)
