"""A GGUF file again, with other types: everything before the tensors' descriptions stays as it is, byte for byte.

Tensors go through one after another, in slabs of rows, so memory holds a slab. Source: ggml docs/gguf.md.
"""

import struct
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mofang.export.mixed.blocks import NUMBERS, Blocks, n_bytes
from mofang.models.formats import gguf

SLAB_BYTES = 64 << 20
"""Of float32 weights at a time."""
_FILE_TYPE = b"general.file_type"
_U32 = 4
_WIDE: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def matrices(path: Path) -> dict[str, gguf.Tensor]:
    """The matrices of a converted file that may get another type, by name."""
    return {
        tensor.name: tensor for tensor in gguf.read(path).tensors if len(tensor.shape) == 2 and tensor.type in _WIDE
    }


def write(
    source: Path, target: Path, types: Mapping[str, str], importance: Mapping[str, NDArray[np.float32]], blocks: Blocks,
    tell: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Write `source` (F32, F16 or BF16) as `target`, with the named matrices in their types. `tell(done, total)` bytes."""
    header = gguf.read(source)
    alignment = int(header.metadata.get("general.alignment", 32))
    sizes = {tensor.name: _size(tensor, types) for tensor in header.tensors}
    total, done = sum(sizes.values()), 0
    with source.open("rb") as read, target.open("wb") as out:
        out.write(_metadata(read, header, types))
        offset = 0
        for tensor in header.tensors:
            out.write(_description(tensor, types.get(tensor.name, tensor.type), offset))
            offset += sizes[tensor.name] + -sizes[tensor.name] % alignment
        out.write(bytes(-out.tell() % alignment))
        for tensor in header.tensors:
            tell(done, total)
            read.seek(header.data_offset + tensor.offset)
            if tensor.name in types and types[tensor.name] != tensor.type:
                _requantize(read, out, tensor, types[tensor.name], importance.get(tensor.name), blocks)
            else:
                _copy(read, out, tensor.n_bytes)
            out.write(bytes(-sizes[tensor.name] % alignment))
            done += sizes[tensor.name]
        tell(total, total)


def file_bytes(source: Path, types: Mapping[str, str]) -> int:
    """Bytes of the file that `write` would make."""
    header = gguf.read(source)
    alignment = int(header.metadata.get("general.alignment", 32))
    sizes = [_size(tensor, types) for tensor in header.tensors]
    return header.data_offset + sum(size + -size % alignment for size in sizes)


def average_bytes(source: Path, bits: float) -> int:
    """Bytes of a file whose weights have so many bits on average."""
    header = gguf.read(source)
    return int(bits * sum(tensor.n_elements for tensor in header.tensors) / 8) + header.data_offset


def _size(tensor: gguf.Tensor, types: Mapping[str, str]) -> int:
    if tensor.name not in types:
        return tensor.n_bytes
    return n_bytes(types[tensor.name], (tensor.shape[1], tensor.shape[0]))


def _metadata(read: BinaryIO, header: gguf.Header, types: Mapping[str, str]) -> bytes:
    """What stands before the descriptions; only general.file_type says what most of the weights are now."""
    read.seek(0)
    kept = bytearray(read.read(header.tensors_offset))
    weights: Counter[str] = Counter()
    for tensor in header.tensors:
        weights[types.get(tensor.name, tensor.type)] += tensor.n_elements
    most = weights.most_common(1)[0][0]
    number = next((number for number, name in gguf.FILE_TYPES.items() if name in (most, f"{most}_M")), None)
    at = kept.find(struct.pack("<Q", len(_FILE_TYPE)) + _FILE_TYPE)
    if at >= 0 and number is not None:
        at += 8 + len(_FILE_TYPE)
        kept[at : at + 8] = struct.pack("<II", _U32, number)
    return bytes(kept)


def _description(tensor: gguf.Tensor, type: str, offset: int) -> bytes:
    name = tensor.name.encode()
    dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
    return struct.pack("<Q", len(name)) + name + dimensions + struct.pack("<IQ", NUMBERS[type], offset)


def _requantize(
    read: BinaryIO,
    out: BinaryIO,
    tensor: gguf.Tensor,
    type: str,
    importance: NDArray[np.float32] | None,
    blocks: Blocks,
) -> None:
    columns, rows = tensor.shape
    slab = max(1, SLAB_BYTES // (4 * columns))
    for begin in range(0, rows, slab):
        weights = _rows(read, tensor, min(slab, rows - begin))
        out.write(blocks.encode(type, weights, importance).tobytes())


def _rows(read: BinaryIO, tensor: gguf.Tensor, n: int) -> NDArray[np.float32]:
    """The next n rows of a matrix, float32."""
    dtype = _WIDE[tensor.type]
    raw = np.frombuffer(read.read(n * tensor.shape[0] * dtype.itemsize), dtype).reshape(n, tensor.shape[0])
    if tensor.type == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32)


def _copy(read: BinaryIO, out: BinaryIO, n: int) -> None:
    while n:
        piece = read.read(min(n, SLAB_BYTES))
        out.write(piece)
        n -= len(piece)
