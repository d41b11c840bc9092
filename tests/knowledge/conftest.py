"""Fixtures of this room."""

from collections.abc import Callable
from pathlib import Path

import pytest
from killed_writer import FILES_FROM, GRAPH_FROM
from knowledge_bench import Bench, TokenCounter

from mofang.knowledge.stores import builtin

SAMPLES = Path(__file__).parent / "samples"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def counter() -> TokenCounter:
    return TokenCounter()


@pytest.fixture
def sample() -> Callable[[str], Path]:
    return lambda name: SAMPLES / name


@pytest.fixture
def small_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in killed_writer.py: an index in files, with a graph, for few chunks."""
    monkeypatch.setattr(builtin, "FILES_FROM", FILES_FROM)
    monkeypatch.setattr(builtin, "GRAPH_FROM", GRAPH_FROM)
