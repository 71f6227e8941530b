"""Teachers in a whole run: cached once for all that share them, and the same adapter as online."""

from pathlib import Path
from typing import Any

import pytest
import torch
from colours import colour_settings, write_data
from safetensors.torch import load_file

from muscle import storage
from muscle.alone import Alone
from muscle.artifacts import Store
from muscle.config import Experiment
from muscle.errors import UserError
from muscle.pipeline import Pipeline
from muscle.plan import make_plan
from muscle.teachers.job import TeacherJob
from muscle.teaching import Teaching
from muscle.training.job import OnProgress, Progress


class Watching(Alone):
    """Runs here, and remembers which teachers it was told to cache."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.cached: list[str] = []

    def cache(self, job: TeacherJob, on_progress: OnProgress) -> None:
        super().cache(job, on_progress)
        self.cached += [ask.name for base in job.bases for ask in base.asks]


@pytest.fixture(scope="module")
def base(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An experiment of two epochs on the tiny models, as settings."""
    settings = colour_settings(tiny_models, write_data(tmp_path_factory.mktemp("data"), test=6))
    training = {**settings["training"], "epochs": 2}
    return {**settings, "training": training, "storage": str(tmp_path_factory.mktemp("storage"))}


def make(base: dict[str, Any], teachers: str = "auto", **changes: Any) -> Experiment:
    changed = {**base, "resources": {"teachers": teachers}, **changes}
    return Experiment.model_validate(changed)


def run(experiment: Experiment, output: Path) -> tuple[list[str], list[Progress]]:
    """Which teachers were cached by a run, and what it said."""
    launcher, said = Watching(), list[Progress]()
    Pipeline(make_plan(experiment), str(output), launcher, said.append).run()
    return launcher.cached, said


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "compat" / "adapter" / "adapter_model.safetensors")


def how(said: list[Progress]) -> list[str]:
    return [p.remark for p in said if p.stage == "teachers"]


def test_cached_and_online_give_the_same_adapter(base: dict[str, Any], tmp_path: Path) -> None:
    apart = {**base, "storage": None}
    cached, said = run(make(apart, "cached"), tmp_path / "cached")
    assert sorted(cached) == ["new-0", "old-0"] and how(said)[0].startswith("cached")
    online, said = run(make(apart, "online"), tmp_path / "online")
    assert online == [] and how(said)[0].startswith("online")
    a, b = adapter(tmp_path / "cached"), adapter(tmp_path / "online")
    assert a.keys() == b.keys()
    for name in a:
        # Adam turns rounding into steps where a gradient is nearly 0.
        assert (a[name] - b[name]).norm() <= 1e-3 * b[name].norm(), name


def test_a_cache_serves_every_mask_temperature_and_compat_seed(
    base: dict[str, Any], tmp_path: Path
) -> None:
    first, _ = run(make(base), tmp_path / "a")
    assert sorted(first) == ["new-0", "old-0"]
    again, said = run(
        make(base, compatibility={"mask": "old-right", "temperature": 1.0}, compat_seeds=[3, 4]),
        tmp_path / "b",
    )
    assert again == [] and how(said) == ["cached: the cache is there"]
    assert len(list(Path(base["storage"]).glob("teacher/*/manifest.json"))) == 2


def test_whats_in_the_key(base: dict[str, Any]) -> None:
    def keys(**changes: Any) -> set[str]:
        return {step.key for step in make_plan(make(base, **changes)).teachers.values()}

    plain = keys()
    assert len(plain) == 2
    for same in (
        {"compatibility": {"mask": "token-likelihood", "ce_weight": 0.5}},
        {"compat_seeds": [1, 2]},
        {"teachers": "online"},
    ):
        assert keys(**same) == plain
    for part, value in (("max_length", 50), ("loss_on", "answer"), ("dtype", "bfloat16")):
        changed = keys(training={**base["training"], part: value})
        assert not changed & plain, part
    assert not keys(data_seed=1) & plain
    assert len(keys(seeds=[0, 1])) == 4 and keys(seeds=[0, 1]) > plain


def test_only_the_teachers_that_are_read(base: dict[str, Any]) -> None:
    for loss, names in (
        ({"mask": "always-old"}, {"old"}),
        ({"mask": "never-old"}, {"new"}),
        ({"ce_weight": 1.0}, set()),
    ):
        plan = make_plan(make(base, compatibility=loss))
        assert {version for version, _ in plan.teachers} == names


def choice(experiment: Experiment, root: Path) -> tuple[bool, str]:
    return tuple(Teaching(make_plan(experiment), Store(str(root))).choice)  # type: ignore[return-value]


def test_auto_caches_what_is_read_twice(base: dict[str, Any], tmp_path: Path) -> None:
    once = {**base["training"], "epochs": 1}
    assert choice(make(base), tmp_path)[0]
    assert not choice(make(base, training=once), tmp_path)[0]
    # Two compat seeds are two passes over one cache; two seeds are two pairs of teachers.
    assert choice(make(base, training=once, compat_seeds=[0, 1]), tmp_path)[0]
    assert not choice(make(base, training=once, seeds=[0, 1]), tmp_path)[0]


def test_a_disk_too_small_for_the_cache(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "disk_free", lambda path: 1000)
    cached, reason = choice(make(base), tmp_path)
    assert not cached and "free" in reason
    with pytest.raises(UserError, match=r"cache takes .* GB .*resources.teachers: online"):
        run(make({**base, "storage": None}, "cached"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_cache_is_made_again(base: dict[str, Any], tmp_path: Path) -> None:
    apart = {**base, "storage": str(tmp_path / "storage")}
    run(make(apart), tmp_path / "a")
    shard = next((tmp_path / "storage" / "teacher").glob("*/*/000000.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    other = make(apart, compatibility={"level": "token", "temperature": 1.0})
    cached, _ = run(other, tmp_path / "b")
    assert len(cached) == 1
    assert (tmp_path / "b" / "report.json").exists()
    assert shard.read_bytes() != bytes(data)


def test_the_adapter_comes_with_its_card(base: dict[str, Any], tmp_path: Path) -> None:
    run(make(base), tmp_path / "a")
    card = (tmp_path / "a" / "compat" / "adapter" / "README.md").read_text()
    assert card.startswith("---\nbase_model:") and "NFR %" in card
