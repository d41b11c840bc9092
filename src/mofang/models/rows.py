"""The rows of a model's embedding matrix, one a token, read from its file a few megabytes at a time.

Read, not mapped: a mapped file that is cut while we read it would kill the process (formats/gguf.py). The file's own
cache in the system's memory makes a second look fast; nothing is kept here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mofang.errors import Unreadable
from mofang.models.formats import gguf, hf

Floats = NDArray[np.float32]

BLOCK_BYTES: Final = 1 << 24
"""Of float32 numbers that are held at a time."""
IN_GGUF: Final = "token_embd.weight"
IN_FOLDERS: Final = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
)
"""How names of the matrix end: Llama and its kin, GPT-2, BERT and BLOOM, GPT-NeoX, Meta's own."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the matrix lies: `n_rows` rows of `n_columns` numbers of a GGUF type, from byte `start` of a file."""

    path: Path
    start: int
    n_rows: int
    n_columns: int
    type: str
    """By gguf's names: "F16", "BF16", "Q8_0"…"""
    row_bytes: int

    def row(self, number: int) -> Floats:
        """One of them, (n_columns,)."""
        row: Floats = self._read(number, 1)[0]
        return row

    def blocks(self, n_rows: int | None = None) -> Iterator[Floats]:
        """The first `n_rows` (None: all), some rows at a time."""
        end = self.n_rows if n_rows is None else min(n_rows, self.n_rows)
        step = max(1, BLOCK_BYTES // (4 * self.n_columns))
        for first in range(0, end, step):
            yield self._read(first, min(step, end - first))

    def _read(self, first: int, count: int) -> Floats:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        with self.path.open("rb") as file:
            file.seek(self.start + first * self.row_bytes)
            data = file.read(count * self.row_bytes)
        if len(data) < count * self.row_bytes:
            needed = self.start + self.n_rows * self.row_bytes
            raise Unreadable("models.gguf_truncated", path=self.path, size=self.path.stat().st_size, needed=needed)
        stored = np.frombuffer(data, np.uint8).reshape(count, self.row_bytes)
        try:
            return np.asarray(dequantize(stored, GGMLQuantizationType[self.type]), np.float32)
        except (KeyError, NotImplementedError) as error:
            raise Unreadable("models.embedding_type", path=self.path, type=self.type) from error


def open_rows(path: Path) -> Rows:
    """The embedding matrix of a GGUF file or a Hugging Face folder. Raises Unreadable where there is none."""
    found = _in_folder(path) if path.is_dir() else _in_gguf(path)
    if found is None or not found.n_rows or not found.n_columns:
        raise Unreadable("models.no_embedding", path=path)
    return found


def _in_gguf(path: Path) -> Rows | None:
    for part in gguf.parts(path):
        header = gguf.read(part)
        for tensor in header.tensors:
            if tensor.name == IN_GGUF and len(tensor.shape) == 2:
                n_columns, n_rows = tensor.shape
                row_bytes = tensor.n_bytes // n_rows if n_rows else 0
                return Rows(part, header.data_offset + tensor.offset, n_rows, n_columns, tensor.type, row_bytes)
    return None


def _in_folder(folder: Path) -> Rows | None:
    if not any(folder.glob("*.safetensors")):
        return None
    for path in hf.weights(folder):
        for name, stored in hf.layout(path).items():
            if name.endswith(IN_FOLDERS) and len(stored.shape) == 2:
                n_rows, n_columns = stored.shape
                row_bytes = (stored.end - stored.begin) // n_rows if n_rows else 0
                return Rows(path, stored.begin, n_rows, n_columns, stored.dtype, row_bytes)
    return None


def nearest(rows: Rows, number: int, n: int, n_rows: int | None = None) -> list[tuple[int, float]]:
    """The `n` rows most like row `number`, itself left out, by the cosine of their angle: (row, cosine), best first.

    Of the first `n_rows` alone: those that only fill up the matrix are no tokens. A row of zeros has cosine 0.
    """
    wanted = rows.row(number)
    parts = []
    for block in rows.blocks(n_rows):
        lengths = np.sqrt(np.einsum("ij,ij->i", block, block)) * np.linalg.norm(wanted)
        parts.append(block @ wanted / np.maximum(lengths, np.finfo(np.float32).tiny))
    likeness = np.concatenate(parts)
    likeness[number] = -np.inf
    order = np.argsort(-likeness, kind="stable")[: min(n, likeness.size - 1)]
    return [(int(row), float(likeness[row])) for row in order]
