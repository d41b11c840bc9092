"""Bases, adapters and runs for the exporters, small enough to be made in a test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny_llama
from mofang.engine.llama import library
from mofang.models.store import ModelStore
from mofang.recipes import parse, recipe_class
from mofang.runs import Run, Runs
from mofang.settings import Settings


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporters are called here as a run's own process would call them (launch/worker.py)."""
    monkeypatch.setattr(library, "_alone", True)


@pytest.fixture
def store(home: Path) -> ModelStore:
    return ModelStore(Settings(home=home))


@pytest.fixture
def start(home: Path) -> Callable[..., Run]:
    """start("merge", model=…) → a run, not started."""

    def make(kind: str, **fields: Any) -> Run:
        return Runs(home).create(parse(recipe_class(kind), fields))

    return make


@pytest.fixture
def base(store: ModelStore, tmp_path: Path) -> Path:
    """A tied tiny Llama, registered as "tiny"."""
    folder = tiny_llama.make(tmp_path / "tiny")
    store.add(folder, "tiny")
    return folder
