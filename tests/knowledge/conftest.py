"""Fixtures of this room."""

from collections.abc import Callable
from pathlib import Path

import pytest
from knowledge_bench import Bench, TokenCounter

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
