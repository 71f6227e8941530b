"""What a benchmark records beside its numbers: machine, versions, command, commit.

Imports nothing heavy: the process that starts a benchmark's sides stays small.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"

PACKAGES = ("torch", "transformers", "lm_eval", "peft", "ray", "tokenizers", "trl")


def say(text: str) -> None:
    """To the terminal at once."""
    print(text, flush=True)


def machine() -> dict[str, Any]:
    """The processor, its cores, the memory and the GPUs; no names of hosts."""
    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cores_of_machine": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpus": _gpus(),
    }
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["memory_gib"] = round(memory / 2**30, 1)
    except (ValueError, OSError):
        found["memory_gib"] = None
    return found


def versions() -> dict[str, str | None]:
    """Python's version and those of the libraries that do the work; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """The git commit, with "+changes" when files differ from it; None outside of git."""
    try:
        name = _output(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
        changed = _output(["git", "-C", str(ROOT), "status", "--porcelain", "-uno"])
    except (OSError, subprocess.CalledProcessError):
        return None
    return name + ("+changes" if changed else "")


def command(argv: Sequence[str] | None = None) -> str:
    """The command as another machine can run it: folders of data and models by variable."""
    given = list(sys.argv if argv is None else argv)
    script = Path(given[0]).resolve()
    given[0] = str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else script.name
    words = ["python", *given]
    for variable in ("MUSCLE_DATA", "MUSCLE_MODELS"):
        folder = os.environ.get(variable, "").rstrip("/")
        if folder:
            words = [word.replace(folder, f"${variable}") for word in words]
    return " ".join(words)


def load_average() -> float | None:
    """Of the last minute: above the threads in use, others were at work too."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and most of the repeats, and all of them in order."""
    return {
        "median": median(values),
        "min": min(values),
        "max": max(values),
        "all": list(values),
    }


def write_result(name: str, result: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Put `result`, with all that this module knows, into `<folder>/<name>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    record = {
        "name": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        **result,
    }
    path.write_text(json.dumps(_rounded(record), indent=1) + "\n", encoding="utf-8")
    return path


def _rounded(value: Any) -> Any:
    """Floats with five figures: no more is known of a time."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return _output(query).splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def _output(words: Sequence[str]) -> str:
    run = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    return run.stdout.strip()
