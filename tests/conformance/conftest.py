"""Tiny models of several architectures, each with its oracle, made once for the whole suite."""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# The helpers of the unit tests (`tiny`) and of this folder (`oracle`) are plain modules.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from oracle import ARCHITECTURES, WINDOW, make_engine, make_hflm
from tiny import make_tokenizer, save_model

from muscle.evaluation import Engine


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`model_of(name)`: the directory of a tiny model of `ARCHITECTURES`."""

    @cache
    def make(name: str) -> str:
        folder = tmp_path_factory.mktemp(name)
        kind, changes = ARCHITECTURES[name]
        save_model(folder, kind, window=WINDOW, **changes)
        if name == "Llama-no-bos":
            make_tokenizer(bos=False).save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture(scope="session")
def hflm_of(model_of: Callable[[str], str]) -> Callable[[str], Any]:
    """`hflm_of(name)`: the oracle on a model of `ARCHITECTURES`."""
    return cache(lambda name: make_hflm(model_of(name)))


@pytest.fixture(scope="session")
def engine_of(model_of: Callable[[str], str]) -> Callable[..., Engine]:
    """`engine_of(name, batch_tokens)`: our engine on a model of `ARCHITECTURES`."""
    return cache(lambda name, batch_tokens: make_engine(model_of(name), batch_tokens=batch_tokens))
