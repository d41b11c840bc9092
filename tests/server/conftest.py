"""A gateway with fakes behind it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Gateway, serving

from fakes import FakeLibrary, FakePool, HashEmbedder, ScriptedEngine, SharedLetters, install_model
from mofang.server.backend import LocalBackend
from mofang.settings import Settings


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def pool(engine: ScriptedEngine) -> FakePool:
    return FakePool(engine, HashEmbedder(), SharedLetters())


@pytest.fixture
def library(tmp_path: Path) -> FakeLibrary:
    return FakeLibrary(originals=tmp_path / "originals")


@pytest.fixture
def settings(home: Path) -> Settings:
    install_model(home, "echo")
    install_model(home, "hash", kind="embedding", engine="hash")
    return Settings(home=home, port=0, ui_port=8643, upload_limit_mb=1)


@pytest.fixture
def backend(settings: Settings, pool: FakePool, library: FakeLibrary) -> LocalBackend:
    return LocalBackend(settings, engines=pool, library=library)


@pytest.fixture
def gateway(backend: LocalBackend) -> Iterator[Gateway]:
    with serving(backend) as running:
        yield running
