"""A BERT's weights in a GGUF, and the numbers that describe it. Pure reading."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from mofang.engine.onnx.known import POOLING
from mofang.models.formats import gguf

Floats = NDArray[np.float32]
_ARRAYS = tuple(f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type", "precompiled_charsmap"))
_PLAIN = {GGMLQuantizationType.F32: "<f4", GGMLQuantizationType.F16: "<f2"}


@dataclass(frozen=True, slots=True)
class Shape:
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_ctx: int
    eps: float
    pooling: Literal["mean", "cls"]


class Weights:
    """An open file: tensors lie in it until they are asked for. Read by the models room's own reader: gguf's walks over
    every word of a vocabulary in Python, ten seconds for 250,000."""

    def __init__(self, path: Path) -> None:
        self._header = gguf.read(path, arrays=_ARRAYS)
        self._tensors = {tensor.name: tensor for tensor in self._header.tensors}
        self._file = np.memmap(path, np.uint8, "r")

    def field(self, name: str, default: Any = None) -> Any:
        return self._header.metadata.get(name, default)

    def raw(self, name: str) -> bytes:
        """An array of bytes, as they lie there; empty where there is none."""
        return bytes(byte & 255 for byte in self.field(name, ()))

    def shape(self) -> Shape:
        return Shape(
            n_layers=self.field("bert.block_count"),
            n_embd=self.field("bert.embedding_length"),
            n_ff=self.field("bert.feed_forward_length"),
            n_heads=self.field("bert.attention.head_count"),
            n_ctx=self.field("bert.context_length"),
            eps=float(self.field("bert.attention.layer_norm_epsilon")),
            pooling=POOLING[self.field("bert.pooling_type")],
        )

    def tensor(self, name: str) -> Floats:
        """All of a tensor in float32."""
        stored, kind = self._stored(name)
        return np.asarray(dequantize(stored, kind), np.float32)

    def rows(self, name: str, rows: list[int]) -> Floats:
        """(len(rows), columns) of a matrix, without reading the others."""
        stored, kind = self._stored(name)
        return np.asarray(dequantize(stored[rows], kind), np.float32)

    def _stored(self, name: str) -> tuple[NDArray[Any], GGMLQuantizationType]:
        """A tensor as it lies in the file: a row of bytes a row where it is quantized."""
        tensor = self._tensors[name]
        start = self._header.data_offset + tensor.offset
        data = self._file[start : start + tensor.n_bytes]
        kind, shape = GGMLQuantizationType[tensor.type], tensor.shape[::-1]
        if kind in _PLAIN:
            return data.view(_PLAIN[kind]).reshape(shape), kind
        return data.reshape(*shape[:-1], -1), kind
