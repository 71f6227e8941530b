"""Tokens of the environment stay there, and nothing from outside is ever run."""

import ast
import gzip
import hashlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from canaries import NAMES, SECRETS, found_in
from colours import colour_settings, write_data
from rich.console import Console
from safetensors.torch import save_file

import muscle
from muscle.alone import Alone
from muscle.commands import show_outcome
from muscle.config import Experiment
from muscle.errors import UserError
from muscle.overrides import Loader
from muscle.pipeline import Pipeline
from muscle.plan import make_plan
from muscle.teachers.cache import open_cache
from muscle.teachers.job import TeacherJob
from muscle.training.checkpoint import load_state

SOURCES = sorted(Path(muscle.__file__).parent.rglob("*.py"))

# --- tokens ---------------------------------------------------------------------------


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def test_the_search_finds_what_is_planted(tmp_path: Path) -> None:
    """As text, in a name, and where a search of raw bytes would miss it."""
    text = " ".join([SECRETS["HF_TOKEN"]] * 40)
    pq.write_table(pa.table({"a": [text, "b"]}), tmp_path / "cell.parquet", compression="zstd")
    schema = pa.schema([("a", pa.int8())], metadata={"about": SECRETS["WANDB_API_KEY"]})
    pq.write_table(pa.table({"a": [1]}, schema=schema), tmp_path / "about.parquet")
    tensors = {"w": torch.zeros(2)}
    save_file(tensors, tmp_path / "w.safetensors", {"token": SECRETS["AWS_SESSION_TOKEN"]})
    (tmp_path / "page.json.gz").write_bytes(gzip.compress(SECRETS["RAY_AUTH_TOKEN"].encode()))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / SECRETS["HUGGING_FACE_HUB_TOKEN"]).touch()
    (tmp_path / "clean.txt").write_text("HF_TOKEN AWS_SECRET_ACCESS_KEY canary-")
    assert SECRETS["HF_TOKEN"].encode() not in (tmp_path / "cell.parquet").read_bytes()[:64]
    assert set(found_in(tmp_path)) == {
        ("cell.parquet", "HF_TOKEN"),
        ("about.parquet", "WANDB_API_KEY"),
        ("w.safetensors", "AWS_SESSION_TOKEN"),
        ("page.json.gz", "RAY_AUTH_TOKEN"),
        (f"deep/{SECRETS['HUGGING_FACE_HUB_TOKEN']}", "HUGGING_FACE_HUB_TOKEN"),
    }


def test_an_update_leaves_no_token_anywhere(
    tiny_models: dict[str, str],
    tmp_path: Path,
    canaries: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data, output = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    settings = colour_settings(tiny_models, write_data(data, test=6))
    settings |= {"gate": {"max_nfr": 0.5}, "resources": {"teachers": "cached"}}
    experiment = Experiment.model_validate(settings)
    pipeline = Pipeline(make_plan(experiment), str(output), Alone("cpu"), print)
    show_outcome(pipeline.run(), Console())
    printed = "".join(capfd.readouterr())
    assert "train compat" in printed and "report.json" in printed  # it was listened to
    kinds = {path.suffix for path in output.rglob("*") if path.is_file()}
    assert kinds >= {".json", ".jsonl", ".parquet", ".safetensors", ".html", ".md", ".csv"}
    assert list(output.rglob("events.out.tfevents.*"))
    assert found_in(output) == []
    assert [name for name in NAMES if SECRETS[name] in printed] == []


# --- code from outside ----------------------------------------------------------------


class Bomb:
    """Pickled, it writes a file when it is read back."""

    def __init__(self, fuse: Path):
        self.fuse = fuse

    def __reduce__(self) -> Any:
        return Path.touch, (self.fuse,)


@pytest.fixture
def bomb(tmp_path: Path) -> tuple[bytes, Path]:
    fuse = tmp_path / "went-off"
    pickle.loads(pickle.dumps(Bomb(fuse)))
    assert fuse.exists()  # it would
    fuse.unlink()
    return pickle.dumps(Bomb(fuse)), fuse


def test_a_checkpoint_that_is_a_pickle_is_not_run(bomb: tuple[bytes, Path], tmp_path: Path) -> None:
    """Whoever can write to the storage can make the checksums right, too."""
    content, fuse = bomb
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    files = {"state-0000-00000001.safetensors": content, "updates-0000-00000001.jsonl": b""}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "state-0000-00000001.pt").write_bytes(content)  # and one that nobody asks for
    latest = {
        "format": 2,
        "epoch": 0,
        "updates": 1,
        "position": 4,
        "sums": [],
        "tokens": 0,
        "curve": [],
        "best": None,
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for name, data in files.items()
        },
    }
    (folder / "latest.json").write_text(json.dumps(latest))
    with pytest.raises(Exception, match=r"(?i)header"):
        load_state(str(folder))
    assert not fuse.exists()


def test_a_teachers_shard_that_is_a_pickle_is_not_run(
    bomb: tuple[bytes, Path], copied_teachers: TeacherJob, sequences: Any
) -> None:
    content, fuse = bomb
    ask = copied_teachers.bases[0].asks[0]
    folder = Path(ask.folder)
    index = json.loads((folder / "index.json").read_text())
    shard = index["shards"][0]
    (folder / shard["file"]).write_bytes(content)
    shard |= {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / "index.json").write_text(json.dumps(index))
    with (
        open_cache(ask.folder, ask.identity, sequences, "float32") as cache,
        pytest.raises((RuntimeError, ValueError)),
    ):
        cache.read([0])
    assert not fuse.exists()


def test_code_beside_a_model_is_not_run(
    bomb: tuple[bytes, Path], tiny_models: dict[str, str], tmp_path: Path
) -> None:
    """A config that names a class of its own (`auto_map`), and that class in a file."""
    from muscle.models.load import load_base, load_config, load_tokenizer

    _, fuse = bomb
    folder = tmp_path / "model"
    shutil.copytree(tiny_models["new"], folder)
    code = f"from pathlib import Path\nPath({str(fuse)!r}).touch()\nclass C: pass\n"
    (folder / "own.py").write_text(code)
    mapped = {
        "AutoConfig": "own.C",
        "AutoModelForCausalLM": "own.C",
        "AutoTokenizer": ["own.C", None],
    }
    for file, model_type in (("config.json", "own"), ("tokenizer_config.json", None)):
        settings = json.loads((folder / file).read_text()) | {"auto_map": mapped}
        settings |= {"model_type": model_type} if model_type else {}
        (folder / file).write_text(json.dumps(settings))
    for load in (load_config, load_base, load_tokenizer):
        try:
            load(str(folder))
        except UserError as error:
            assert "\n" not in str(error)
        assert not fuse.exists(), load.__name__


FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "_pickle"}

SAFE_LOADERS = {"yaml.SafeLoader", "yaml.BaseLoader", "Loader"}


def reaches_for(source: str) -> list[str]:
    """What in a module could run code that came as data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[-1] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = {node.module or "", *(a.name for a in node.names)}
            found += [n for n in names if n.split(".")[-1] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.Call):
            found += _calls(node)
        elif isinstance(node, ast.Dict):
            found += [
                "trust_remote_code"
                for key, value in zip(node.keys, node.values, strict=True)
                if _is(key, "trust_remote_code") and not _is(value, False)
            ]
    return found


def _calls(node: ast.Call) -> list[str]:
    name = ast.unparse(node.func)
    given = {k.arg: k.value for k in node.keywords}
    found = [name] if name in {"eval", "exec", "compile", "__import__", "os.system"} else []
    if name in {"torch.load", "torch.jit.load"} and not _is(given.get("weights_only"), True):
        found.append(name)
    loader = [ast.unparse(argument) for argument in (*node.args[1:2], *given.values())]
    unsafe = name == "yaml.load" and not set(loader) & SAFE_LOADERS
    if unsafe or name.endswith((".unsafe_load", ".full_load")):
        found.append(name)
    for keyword, harmless in (
        ("trust_remote_code", False),
        ("allow_pickle", False),
        ("shell", False),
    ):
        if keyword in given and not _is(given[keyword], harmless):
            found.append(keyword)
    return found


def _is(node: ast.AST | None, value: bool | str) -> bool:
    return isinstance(node, ast.Constant) and (type(node.value), node.value) == (type(value), value)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from ray import cloudpickle",
        "import ray.cloudpickle",
        "x = torch.load(path)",
        "x = torch.load(path, weights_only=flag)",
        "eval(text)",
        "exec(text)",
        "AutoModel.from_pretrained(n, trust_remote_code=True)",
        "AutoModel.from_pretrained(n, trust_remote_code=setting)",
        "f(**{'trust_remote_code': True})",
        "np.load(p, allow_pickle=True)",
        "yaml.load(text)",
        "yaml.load(text, yaml.UnsafeLoader)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_what_must_not_stand_in_the_source_is_seen(line: str) -> None:
    assert len(reaches_for(f"def f():\n    {line}\n")) == 1


def test_nothing_in_the_source_runs_what_came_as_data() -> None:
    harmless = "torch.load(p, weights_only=True)\nmodel.eval()\nf(trust_remote_code=False)"
    assert reaches_for(harmless) == []
    assert len(SOURCES) > 100
    assert issubclass(Loader, yaml.SafeLoader)
    assert {str(p): found for p in SOURCES if (found := reaches_for(p.read_text("utf-8")))} == {}


def test_somewhere_remote_code_is_refused_by_name() -> None:
    """Libraries whose default would ask, or believe an environment variable, are told."""
    text = "".join(path.read_text("utf-8") for path in SOURCES)
    for call in ("AutoConfig.from_pretrained(", "AutoTokenizer.from_pretrained("):
        for rest in text.split(call)[1:]:
            assert "trust_remote_code=False" in rest[:200], call
