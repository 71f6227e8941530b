"""Made-up secrets for the environment, and a search for them in whatever a run leaves."""

import gzip
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq

NAMES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "RAY_AUTH_TOKEN",
)

SECRETS = {name: f"canary-{number}-3f9a" + "x" * 28 for number, name in enumerate(NAMES)}
"""Name -> value; long enough for what asks for 40 characters."""


def found_in(folder: Path, secrets: Mapping[str, str] = SECRETS) -> list[tuple[str, str]]:
    """(file, name) of every secret in a folder's files, compressed or not, and in their names."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        contents = [str(path.relative_to(folder)).encode(), *_contents(path)]
        for name, value in secrets.items():
            if any(value.encode() in content for content in contents):
                found.append((str(path.relative_to(folder)), name))
    return found


def _contents(path: Path) -> Iterator[bytes]:
    """A file as it lies there, and as its readers see it."""
    raw = path.read_bytes()
    yield raw
    if path.suffix == ".parquet":
        file = pq.ParquetFile(io.BytesIO(raw))
        yield json.dumps(file.read().to_pylist(), default=str).encode()
        for key, value in (file.schema_arrow.metadata or {}).items():
            yield key + b"=" + value
    elif path.suffix == ".gz":
        yield gzip.decompress(raw)
    elif path.suffix in (".zip", ".npz"):
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            yield from (archive.read(name) for name in archive.namelist())
