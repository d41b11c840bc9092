"""llama.cpp's types of blocks: weights into a file's bytes and back, by llama.cpp's own functions.

They come with the library that the engine runs (engine.llama.library), so no compiler is needed.
Source: ggml.h, ggml_quantize_chunk and ggml_get_type_traits.
"""

import ctypes as c
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mofang.engine.llama.library import Library
from mofang.models.formats.gguf import GGML_TYPES
from mofang.platform import n_cores

NUMBERS = {name: number for number, (name, _, _) in GGML_TYPES.items()}
SIZES = {name: (block, n_bytes) for name, block, n_bytes in GGML_TYPES.values()}
TYPES = (
    "Q2_K", "Q3_K", "IQ3_S", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0", "F16",
)  # fmt: skip
"""What a matrix may become. Left out: types that need three times as long to be found for little (IQ2, IQ3_XXS), and those
of models that were trained for them (TQ, MXFP4)."""
PLAIN: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
CHUNKS = 4
"""Parts of a matrix for each thread: they do not all take the same time."""


def n_bytes(type: str, shape: tuple[int, int]) -> int:
    """Bytes of a matrix (rows, columns)."""
    block, each = SIZES[type]
    return shape[0] * (shape[1] // block) * each


def fits(type: str, n_columns: int) -> bool:
    """Whether rows of that length divide into the type's blocks."""
    return n_columns % SIZES[type][0] == 0


class _Traits(c.Structure):
    """ggml_type_traits, up to the function that gives the values back."""

    _fields_ = (
        ("type_name", c.c_char_p),
        ("blck_size", c.c_int64),
        ("blck_size_interleave", c.c_int64),
        ("type_size", c.c_size_t),
        ("is_quantized", c.c_bool),
        ("to_float", c.CFUNCTYPE(None, c.c_void_p, c.c_void_p, c.c_int64)),
    )


class Blocks:
    """The functions of a loaded library."""

    def __init__(self, library: Library) -> None:
        self._quantize = library.c.ggml_quantize_chunk
        self._quantize.restype = c.c_size_t
        self._quantize.argtypes = [c.c_int, c.c_void_p, c.c_void_p, c.c_int64, c.c_int64, c.c_int64, c.c_void_p]
        self._traits = library.c.ggml_get_type_traits
        self._traits.restype, self._traits.argtypes = c.POINTER(_Traits), [c.c_int]

    def encode(
        self, type: str, weights: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """(rows, columns) → (rows, bytes of a row). `importance` (columns,): how much an error at that input counts."""
        if type in PLAIN:
            return weights.astype(PLAIN[type]).view(np.uint8)
        block, size = SIZES[type]
        weights = np.ascontiguousarray(weights, np.float32)
        rows, columns = weights.shape
        made = np.empty((rows, columns // block * size), np.uint8)
        weighed = None if importance is None else np.ascontiguousarray(importance, np.float32)

        def part(span: tuple[int, int]) -> None:
            begin, end = span
            self._quantize(
                NUMBERS[type], weights.ctypes.data, made.ctypes.data, begin * columns, end - begin, columns,
                None if weighed is None else weighed.ctypes.data,
            )  # fmt: skip

        with ThreadPoolExecutor(n_cores()) as pool:  # C code: it holds no lock of Python's
            list(pool.map(part, _spans(rows, CHUNKS * n_cores())))
        return made

    def decode(self, type: str, data: NDArray[np.uint8], n_columns: int) -> NDArray[np.float32]:
        """(rows, bytes of a row) → (rows, columns): the values that llama.cpp computes with."""
        if type in PLAIN:
            return np.ascontiguousarray(data).view(PLAIN[type]).astype(np.float32)
        data = np.ascontiguousarray(data)
        values = np.empty((len(data), n_columns), np.float32)
        self._traits(NUMBERS[type]).contents.to_float(data.ctypes.data, values.ctypes.data, values.size)
        return values


def _spans(n: int, parts: int) -> Iterator[tuple[int, int]]:
    size = max(1, -(-n // parts))
    yield from ((begin, min(n, begin + size)) for begin in range(0, n, size))
