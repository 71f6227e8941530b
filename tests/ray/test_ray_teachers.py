"""Teachers cached on Ray are those cached in this process, whoever dies on the way."""

import dataclasses
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muscle.alone import Alone
from muscle.config import ResourcesConfig, VersionConfig
from muscle.errors import UserError
from muscle.tables import write_examples
from muscle.teachers.job import TeacherAsk, TeacherBase, TeacherJob
from muscle.teachers.shards import finish, missing
from muscle.training.job import OnProgress, Progress
from muscle.types import TrainingExample

pytestmark = pytest.mark.slow

SEQUENCES = 600


def silent(progress: Progress) -> None:
    pass


@pytest.fixture(scope="module")
def job(
    tiny_models: dict[str, str],
    trained: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> TeacherJob:
    """Both teachers of 600 sequences: 38 shards each."""
    root = tmp_path_factory.mktemp("teachers")
    rows = [
        TrainingExample(str(i), f"item {'x ' * (i % 13)} {i}:", f" {'red blue'[i % 5 :]}")
        for i in range(SEQUENCES)
    ]
    write_examples(root / "train.parquet", rows)
    bases = tuple(
        TeacherBase(
            VersionConfig(model=tiny_models[name]),
            (TeacherAsk(name, trained[name], str(root / "cache" / name), {"base": name}),),
        )
        for name in ("old", "new")
    )
    return TeacherJob(bases, str(root), "float32", 100, "all", 256, shard_sequences=16)


def into(job: TeacherJob, folder: Path) -> TeacherJob:
    """The same job with its caches under another folder."""
    bases = tuple(
        dataclasses.replace(
            base,
            asks=tuple(dataclasses.replace(a, folder=str(folder / a.name)) for a in base.asks),
        )
        for base in job.bases
    )
    return dataclasses.replace(job, bases=bases)


def content(job: TeacherJob) -> dict[str, bytes]:
    """Every byte of all caches of a job, once they are finished."""
    found = {}
    for base in job.bases:
        for ask in base.asks:
            finish(job, ask)
            for path in Path(ask.folder).iterdir():
                found[f"{ask.name}/{path.name}"] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def alone(job: TeacherJob) -> dict[str, bytes]:
    Alone("cpu").cache(job, silent)
    found = content(job)
    assert len(found) == 2 * (2 * (38 + 1) + 1)
    return found


@pytest.mark.parametrize("actors", [pytest.param(1, marks=pytest.mark.long), 2])
def test_two_bases_side_by_side_give_the_same_bits(
    actors: int, job: TeacherJob, alone: dict[str, bytes], tmp_path: Path, ray_local: None
) -> None:
    from muscle.launch.teachers import cache_all

    here = into(job, tmp_path)
    seen: list[Progress] = []
    cache_all(here, ResourcesConfig(min_actors=actors, max_actors=actors), seen.append)
    assert content(here) == alone
    assert {p.stage for p in seen} == {"cache teachers"}
    assert seen[0].done == 0 and seen[-1].done == seen[-1].total == 2 * SEQUENCES


def test_a_killed_actor_changes_nothing(
    job: TeacherJob,
    alone: dict[str, bytes],
    tmp_path: Path,
    ray_local: None,
    losing_an_actor: Callable[[Callable[[OnProgress], object]], None],
) -> None:
    from muscle.launch.teachers import cache_all

    here = into(job, tmp_path)
    losing_an_actor(lambda on_progress: cache_all(here, ResourcesConfig(), on_progress))
    assert content(here) == alone


def test_what_is_there_is_not_computed_again(
    job: TeacherJob, alone: dict[str, bytes], tmp_path: Path, ray_local: None
) -> None:
    from muscle.launch.ray_launcher import RayLauncher

    for name, raw in alone.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(raw)
    gone = {tmp_path / "old" / "000007.json", tmp_path / "old" / "head.safetensors"}
    for path in gone:
        path.unlink()
    remade = {tmp_path / "old" / f"{s}.{k}" for s in ("000007", "head") for k in _KINDS}
    kept = {
        p: p.stat().st_mtime_ns
        for p in tmp_path.rglob("*.*")
        if p not in remade and p.name != "index.json"
    }
    here = into(job, tmp_path)
    assert missing(here).units == {0: {(0, -1): 0, (0, 7): 16}}
    seen: list[Progress] = []
    RayLauncher(ResourcesConfig()).cache(here, seen.append)
    assert seen[0].done == 2 * SEQUENCES - 16 and seen[-1].done == 2 * SEQUENCES
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert content(here) == alone
    RayLauncher(ResourcesConfig()).cache(here, seen.append)  # nothing is left to do


_KINDS = ("json", "safetensors")


def test_a_teacher_that_cannot_be_had_is_one_line(
    job: TeacherJob, tmp_path: Path, ray_local: None
) -> None:
    from muscle.launch.teachers import cache_all

    here = into(job, tmp_path)
    nothing = dataclasses.replace(here.bases[1].asks[0], adapter=str(tmp_path))
    bases = (here.bases[0], dataclasses.replace(here.bases[1], asks=(nothing,)))
    with pytest.raises(UserError, match=r"adapter .*has no adapter_config.json") as caught:
        cache_all(dataclasses.replace(here, bases=bases), ResourcesConfig(), silent)
    assert "\n" not in str(caught.value)


def test_a_unit_that_kills_every_actor_ends_the_work(tmp_path: Path, ray_local: None) -> None:
    """Bounded, in one line, and the other units are done."""
    import ray

    from muscle.launch.pools import work_off

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    units = {0: [{"shard": shard} for shard in range(6)]}
    with pytest.raises(UserError, match="caching the teachers failed: ") as caught:
        work_off(
            units, Mortal, {"folder": str(tmp_path)}, ResourcesConfig(), "caching the teachers", 2
        )
    assert "\n" not in str(caught.value)
    deaths = len(list(tmp_path.glob("3-*")))
    assert deaths == 3  # the first try and two more


class Mortal:
    """An actor that unit 3 always kills."""

    def __init__(self, folder: str, base: int):
        self.folder = Path(folder)

    def __call__(self, batch: Any) -> Any:
        for row in batch.to_pylist():
            (self.folder / f"{row['shard']}-{uuid.uuid4().hex}").touch()
            if row["shard"] == 3:
                os._exit(1)
        return batch
