"""llama.cpp's blocks through its library: the bytes that its own package reads back, and what importance does."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from mofang import settings
from mofang.engine.llama import library
from mofang.export.mixed import blocks
from mofang.export.mixed.blocks import TYPES, Blocks


@pytest.fixture
def own(home: object) -> Blocks:
    return Blocks(library.load(library.find(settings.load())[0]))


@pytest.mark.parametrize("type", TYPES)
def test_values_are_those_that_llama_cpps_own_reader_finds(own: Blocks, type: str) -> None:
    weights = np.random.default_rng(0).normal(size=(7, 512)).astype(np.float32)
    data = own.encode(type, weights)
    assert data.shape == (7, blocks.n_bytes(type, (1, 512)))
    values = own.decode(type, data, 512)
    assert np.array_equal(values, quants.dequantize(data, GGMLQuantizationType[type]))
    relative = np.linalg.norm(values - weights) / np.linalg.norm(weights)
    block, size = blocks.SIZES[type]
    assert relative < 1.2 * 2.0 ** -(min(10, 8 * size / block) - 1.1)  # each bit halves the error; float16 has 11


def test_errors_go_where_they_count_least(own: Blocks) -> None:
    weights = np.random.default_rng(1).normal(size=(64, 256)).astype(np.float32)
    importance = np.where(np.arange(256) % 4, 0.01, 100).astype(np.float32)

    def missed(given: np.ndarray | None) -> float:
        error = own.decode("Q4_K", own.encode("Q4_K", weights, given), 256) - weights
        return float((error**2 * importance).sum())

    assert missed(importance) < 0.8 * missed(None)


def test_only_whole_blocks_fit() -> None:
    assert blocks.fits("Q4_K", 512) and not blocks.fits("Q4_K", 576)
    assert blocks.fits("Q5_1", 576) and not blocks.fits("Q8_0", 100)
