"""Matrices whose values are a whole number times a scale, as llama.cpp's blocks of 32 hold them: the same values.

A block of Q4_0, Q5_0 or Q8_0 is a float16 d and 32 whole numbers of 4, 5 or 8 bits; its values are their products. A
quantized matrix whose neighbours by 32 share a scale is such blocks already, whatever made it: GPTQ's w = s · (q - z) is
Q4_0 when all q - z lie in -8…7. So a matrix is taken by its values alone, whatever a converter did to its rows. Source:
ggml-common.h, ggml-quants.c.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 32


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of blocks, and the whole numbers that it holds."""

    name: str
    low: int
    high: int


KINDS = (Kind("Q4_0", -8, 7), Kind("Q5_0", -16, 15), Kind("Q8_0", -128, 127))
"""Smallest first."""


def fitting(low: int, high: int) -> Kind | None:
    """The smallest type that holds whole numbers from `low` to `high`; None for none."""
    return next((kind for kind in KINDS if kind.low <= low and high <= kind.high), None)


def encode(values: NDArray[np.float32]) -> tuple[Kind, NDArray[np.uint8]] | None:
    """The smallest type and the bytes (rows, bytes of a row) that mean exactly these values (rows, n); None for none.

    The largest value of a block is d times some whole number m: each m is tried for which float16 holds that d.
    """
    if values.ndim < 2 or values.shape[-1] % BLOCK:
        return None
    if len(values) > 1 and encode(values[:1]) is None:
        return None  # most matrices that are no blocks are known by their first row
    blocks = np.ascontiguousarray(values).reshape(-1, BLOCK)
    at = np.abs(blocks).argmax(1)
    largest = blocks[np.arange(len(blocks)), at]
    scales, numbers = np.zeros(len(blocks), np.float16), np.zeros(blocks.shape, np.int16)
    left = np.flatnonzero(largest)  # zeros are zeros under any scale
    for kind in KINDS:
        for m in range(-kind.low, 0, -1):
            # A type reaches one further below than above: there a negative scale may have to turn the block around.
            share = np.abs(largest[left]) if m <= kind.high else -largest[left]
            with np.errstate(over="ignore"):
                scale = (share / np.float32(m)).astype(np.float16)
            wide = scale.astype(np.float32)
            tried = np.flatnonzero(wide * np.float32(m) == share)
            found = blocks[left[tried]] / wide[tried, None]
            whole = np.rint(found)
            fits = (whole * wide[tried, None] == blocks[left[tried]]).all(1)
            fits &= (whole <= kind.high).all(1)
            solved = left[tried[fits]]
            scales[solved], numbers[solved] = scale[tried[fits]], whole[fits]
            unsolved = np.ones(len(left), bool)
            unsolved[tried[fits]] = False
            left = left[unsolved]
            if not len(left):
                return kind, _WRITERS[kind.name](scales, numbers).reshape(*values.shape[:-1], -1)
    return None


def _nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, 16): the first half of a block in the low bits, the second in the high ones."""
    packed: NDArray[np.uint8] = codes[:, :16] & np.uint8(15) | codes[:, 16:] << np.uint8(4)
    return packed


def _q4_0(scales: NDArray[np.float16], numbers: NDArray[np.int16]) -> NDArray[np.uint8]:
    codes = (numbers + 8).astype(np.uint8)
    return np.concatenate([scales[:, None].view(np.uint8), _nibbles(codes)], 1)


def _q5_0(scales: NDArray[np.float16], numbers: NDArray[np.int16]) -> NDArray[np.uint8]:
    codes = (numbers + 16).astype(np.uint8)
    fifths = np.packbits(codes >> 4, axis=1, bitorder="little")
    return np.concatenate([scales[:, None].view(np.uint8), fifths, _nibbles(codes)], 1)


def _q8_0(scales: NDArray[np.float16], numbers: NDArray[np.int16]) -> NDArray[np.uint8]:
    return np.concatenate([scales[:, None].view(np.uint8), numbers.astype(np.int8).view(np.uint8)], 1)


_WRITERS = {"Q4_0": _q4_0, "Q5_0": _q5_0, "Q8_0": _q8_0}


def kept(values: NDArray[np.float32]) -> str:
    """The smallest of F16, BF16, F32 that holds exactly these values."""
    with np.errstate(over="ignore"):
        if np.array_equal(values.astype(np.float16).astype(np.float32), values):
            return "F16"
    return "F32" if np.any(np.ascontiguousarray(values).view(np.uint32) & 0xFFFF) else "BF16"
