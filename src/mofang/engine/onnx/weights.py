"""A BERT's weights in a GGUF, and the numbers that describe it. Pure reading."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

from mofang.engine.onnx.known import POOLING

Floats = NDArray[np.float32]


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
    """An open file: tensors lie in it until they are asked for."""

    def __init__(self, path: Path) -> None:
        self._reader = GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def field(self, name: str, default: Any = None) -> Any:
        found = self._reader.get_field(name)
        return default if found is None else found.contents()

    def raw(self, name: str) -> bytes:
        """An array of bytes, as they lie there."""
        found = self._reader.get_field(name)
        if found is None:
            return b""
        return bytes(np.concatenate([found.parts[index] for index in found.data]))

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
        tensor = self._tensors[name]
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)

    def rows(self, name: str, rows: list[int]) -> Floats:
        """(len(rows), columns) of a matrix, without reading the others."""
        tensor = self._tensors[name]
        return np.asarray(dequantize(tensor.data[rows], tensor.tensor_type), np.float32)
