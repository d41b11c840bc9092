"""Blocks that mean exactly the values they were made from, read back by gguf's own dequantization; or none at all."""

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mofang.export import lossless


def back(kind: str, data: np.ndarray) -> np.ndarray:
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])


SCALES = st.floats(-1000, 1000, width=16).filter(lambda value: value != 0)


@given(
    st.sampled_from(lossless.KINDS),
    st.lists(SCALES, min_size=2, max_size=6),
    st.booleans(),
    st.data(),
)
def test_every_grid_of_a_type_is_written_in_it_or_a_smaller_one(
    kind: lossless.Kind, scales: list[float], turned: bool, data: st.DataObject
) -> None:
    wholes = arrays(np.int16, (len(scales), 32), elements=st.integers(kind.low, kind.high))
    numbers = data.draw(wholes) * (-1 if turned else 1)
    values = np.float32(scales)[:, None] * numbers.astype(np.float32)
    found = lossless.encode(values)
    assert found is not None
    assert [each.name for each in lossless.KINDS].index(found[0].name) <= lossless.KINDS.index(kind)
    assert np.array_equal(back(found[0].name, found[1]), values)


@given(arrays(np.float32, (2, 64), elements=st.floats(-10, 10, width=32)))
def test_whatever_is_written_means_the_same(values: np.ndarray) -> None:
    found = lossless.encode(values)
    if found:
        assert np.array_equal(back(found[0].name, found[1]), values)
    kept = {"F16": np.float16, "F32": np.float32}.get(lossless.kept(values))
    if kept:
        assert np.array_equal(values.astype(kept).astype(np.float32), values)
    else:
        assert not np.any(values.view(np.uint32) & 0xFFFF)


def test_what_is_no_block_is_none() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((4, 64)).astype(np.float32)
    assert lossless.encode(values) is None and lossless.encode(values[0]) is None
    assert lossless.encode(np.zeros((4, 48), np.float32)) is None
    scales = np.repeat(np.float16([[0.5, 0.3]]), 16, 1).astype(np.float32)  # two scales in one block
    assert lossless.encode(scales * rng.integers(-7, 8, (4, 32))) is None


@pytest.mark.parametrize("low, high, name", [(-8, 7, "Q4_0"), (-8, 8, "Q5_0"), (-15, 15, "Q5_0"), (-128, 127, "Q8_0")])
def test_the_smallest_type_is_chosen(low: int, high: int, name: str) -> None:
    found = lossless.fitting(low, high)
    assert found and found.name == name
    assert lossless.fitting(-255, 0) is None
