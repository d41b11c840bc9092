"""GGUF headers: metadata and tensor descriptions, read fast and without trust. Nothing is loaded.

A file may lie about every count and length, so nothing is allocated on its word: each number is held against the size
of the file or a stated limit before it is used, and whatever does not fit raises Unreadable. Token lists are walked
over (they must be, their strings have no common length) and read only on request. The file is read through a window
of 1 MiB, not mapped: a mapped file that is cut while we read it would kill the process.

It knows versions 2 and 3, little-endian, and split models (NAME-00001-of-0000N.gguf). It knows nothing of engines.
Source: ggml docs/gguf.md; ggml-common.h for block sizes; llama.h for file types.
"""

import re
import struct
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

from mofang.errors import Unreadable
from mofang.models.base import FormatReader, Kind, ModelFacts

MAGIC = b"GGUF"
VERSIONS = (2, 3)

MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_KEY_BYTES = (1 << 16) - 1
"""The specification's own limit."""
MAX_STRING_BYTES = 1 << 24
"""Longest text that is kept, 16 MiB; the longest known chat templates are below 100 kB."""
MAX_ARRAY = 1 << 24
"""Most elements of one list; the largest vocabularies have about 300,000 tokens, and as many merges."""
MAX_DIMENSIONS = 4
KEPT_ARRAY = 256
"""Longest list of numbers that is always read, such as the heads of each layer."""

GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
"""Number in the file → name, weights in a block, bytes of a block."""

FILE_TYPES: dict[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
    39: "NVFP4",
    40: "Q1_0",
}
"""general.file_type → the name that people use."""

ENCODERS = frozenset(
    {
        "bert",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "eurobert",
        "gemma-embedding",
        "t5encoder",
    }
)
"""Architectures that only read: they embed or score, and keep no key-value cache (llama.cpp src/llama-arch.cpp)."""
POOLING_RANK = 4
"""The pooling_type of rerankers; 1 to 3 (mean, cls, last) are embedders, 0 is none."""
CLASSIFIERS = frozenset({"cls.weight", "cls.output.weight"})
"""Tensors of a scoring head: rerankers converted before pooling_type had a value for them."""

_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, struct.Struct] = {
    number: struct.Struct("<" + code) for number, code in enumerate("BbHhIif?") if number != _STRING
} | {10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d")}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_WINDOW = 1 << 20
_PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class Array:
    """A list that was walked over and not read: how many elements it has."""

    length: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor's description. `shape` as GGUF orders it: the fastest dimension first. `offset` within the data."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    n_bytes: int
    """0 when the type is unknown to us."""

    @property
    def n_elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the weights of one file."""

    version: int
    metadata: dict[str, Any]
    tensors: list[Tensor]
    data_offset: int
    """Byte at which the weights begin."""
    file_bytes: int
    tensors_offset: int
    """Byte at which the tensors' descriptions begin."""

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def of_architecture(self, key: str) -> Any:
        """The value of "<architecture>.<key>", None when there is none."""
        return self.metadata.get(f"{self.architecture}.{key}")


def read(path: Path, *, arrays: Collection[str] = ()) -> Header:
    """The header of one file. Lists named in `arrays` are read whole; long lists otherwise become `Array`.

    Raises Unreadable when it is not GGUF, is cut off, or contradicts itself; FileNotFoundError as usual.
    """
    with _Reader(path) as reader:
        try:
            return _header(reader, frozenset(arrays))
        except UnicodeDecodeError as error:
            raise reader.bad("a name is not UTF-8") from error


def parts(path: Path) -> list[Path]:
    """Every file of a model in order: the path alone, or all parts of a split model. Raises Unreadable for a gap."""
    match = _PART.match(path.name)
    if not match:
        return [path]
    count = int(match["count"])
    names = [f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, min(count, 99_999) + 1)]
    found = [path.with_name(name) for name in names]
    for part in found:
        if not part.is_file():
            raise Unreadable("models.part_missing", path=path, missing=part.name, count=count)
    return found


def is_later_part(path: Path) -> bool:
    """Whether this is a split model's second file or a later one: never a model by itself."""
    match = _PART.match(path.name)
    return bool(match) and int(match["number"]) != 1  # type: ignore[index]


def size_bytes(path: Path) -> int:
    """Bytes of all files of the model."""
    return sum(part.stat().st_size for part in parts(path))


def facts(path: Path) -> ModelFacts:
    """What the file says of itself, all parts together."""
    return _facts(_headers(path))


def kind(path: Path) -> Kind:
    """What the model is for, as its metadata says."""
    return _kind(_headers(path))


def _headers(path: Path) -> list[Header]:
    return [read(part) for part in parts(path)]


def _kind(headers: list[Header]) -> Kind:
    first = headers[0]
    pooling = first.of_architecture("pooling_type")
    if pooling == POOLING_RANK:
        return "reranker"
    if first.architecture in ENCODERS:
        scores = any(tensor.name in CLASSIFIERS for header in headers for tensor in header.tensors)
        return "reranker" if scores else "embedding"
    if isinstance(pooling, int) and pooling > 0:
        return "embedding"
    return "chat" if first.metadata.get("tokenizer.chat_template") else "base"


def _facts(headers: list[Header]) -> ModelFacts:
    first = headers[0]
    tensors = [tensor for header in headers for tensor in header.tensors]
    short = {key: value for key, value in first.metadata.items() if not isinstance(value, Array | list)}
    template = short.pop("tokenizer.chat_template", None)
    heads = first.of_architecture("attention.head_count")
    heads_kv = first.of_architecture("attention.head_count_kv")
    return ModelFacts(
        architecture=first.architecture,
        parameters=sum(tensor.n_elements for tensor in tensors),
        n_layers=_whole(first.of_architecture("block_count")),
        n_ctx_train=_whole(first.of_architecture("context_length")),
        n_embd=_whole(first.of_architecture("embedding_length")),
        n_head=_largest(heads),
        n_head_kv=_largest(heads_kv) if heads_kv is not None else _largest(heads),
        n_vocab=_vocabulary(first),
        quantization=_quantization(first, tensors),
        tokenizer=_tokenizer(first),
        chat_template=str(template) if template else None,
        kv_bytes_per_token=_kv_bytes(first),
        metadata=short,
    )


def _kv_bytes(header: Header) -> int | None:
    """Key and value of one token in all layers, 2 bytes a number. None when the file does not say enough.

    Layers whose cache does not grow with the context (a recurrent layer, or those between the full-attention layers
    of a hybrid) count nothing. Sliding windows are not taken into account: for them this is an upper bound.
    """
    if header.architecture in ENCODERS:
        return 0
    layers = _whole(header.of_architecture("block_count"))
    heads = header.of_architecture("attention.head_count")
    n_embd = _whole(header.of_architecture("embedding_length"))
    n_head = _largest(heads)
    if not layers or layers > MAX_KEYS or not n_head or not n_embd:
        return None
    kv_heads = header.of_architecture("attention.head_count_kv")
    of_layer = kv_heads if isinstance(kv_heads, list) else [_whole(kv_heads) or n_head] * layers
    interval = _whole(header.of_architecture("full_attention_interval")) or 1
    counted = [count for layer, count in enumerate(of_layer[:layers]) if (layer + 1) % interval == 0]
    key = _whole(header.of_architecture("attention.key_length")) or n_embd // n_head
    value = _whole(header.of_architecture("attention.value_length")) or n_embd // n_head
    return sum(count for count in counted if isinstance(count, int)) * (key + value) * 2


def _quantization(header: Header, tensors: list[Tensor]) -> str:
    """The file's own word for it; without one, the type that most bytes have."""
    stated = FILE_TYPES.get(header.metadata.get("general.file_type", -1))
    if stated:
        return stated
    weight: Counter[str] = Counter()
    for tensor in tensors:
        weight[tensor.type] += tensor.n_bytes
    return weight.most_common(1)[0][0] if weight else ""


def _tokenizer(header: Header) -> str:
    model = str(header.metadata.get("tokenizer.ggml.model", ""))
    pre = header.metadata.get("tokenizer.ggml.pre")
    return f"{model} ({pre})" if pre else model


def _vocabulary(header: Header) -> int | None:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Array):
        return tokens.length
    return len(tokens) if isinstance(tokens, list) else _whole(header.of_architecture("vocab_size"))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _largest(value: Any) -> int | None:
    """Of a number, or of a list with a number for each layer."""
    numbers = [item for item in (value if isinstance(value, list) else [value]) if _whole(item) is not None]
    return max(numbers, default=None)


# ---- reading ----


class _Reader:
    """A position in a file that never goes beyond its end, over a window of what lies there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("rb", buffering=0)
        self.size = self.file.seek(0, 2)
        self.window = b""
        self.start = 0
        self.at = 0

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def bad(self, why: str) -> Unreadable:
        return Unreadable("models.gguf_broken", path=self.path, why=why, at=self.at)

    def truncated(self, needed: int) -> Unreadable:
        return Unreadable("models.gguf_truncated", path=self.path, size=self.size, needed=needed)

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        offset = self.at - self.start
        if not 0 <= offset <= len(self.window) - count:
            self._move(count)
            offset = 0
        self.at += count
        return self.window[offset : offset + count]

    def skip(self, count: int) -> None:
        if count > self.size - self.at:
            raise self.truncated(self.at + count)
        self.at += count

    def _move(self, count: int) -> None:
        """Put the window where we are, at least `count` bytes wide."""
        if count > self.size - self.at:
            raise self.truncated(self.at + count)
        self.file.seek(self.at)
        wanted = min(max(count, _WINDOW), self.size - self.at)
        pieces = []
        while wanted and (piece := self.file.read(wanted)):
            pieces.append(piece)
            wanted -= len(piece)
        self.window, self.start = b"".join(pieces), self.at
        if count > len(self.window):  # cut while we read it
            raise self.truncated(self.at + count)

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def text(self, limit: int, *, errors: str = "strict") -> str:
        length = self.u64()
        if length > limit:
            raise self.bad(f"a text of {length} bytes, at most {limit} are allowed")
        return self.take(length).decode(errors=errors)

    def skip_texts(self, count: int) -> None:
        """Walk over `count` strings: the hot loop of a header with a vocabulary."""
        unpack = _U64.unpack_from
        while count:
            window, offset = self.window, self.at - self.start
            try:
                while count:
                    offset += 8 + unpack(window, offset)[0]
                    count -= 1
            except (struct.error, OverflowError):  # the window ends here
                pass
            self.at = self.start + offset
            if count:
                self._move(8)
        self.skip(0)


def _header(reader: _Reader, arrays: frozenset[str]) -> Header:
    if reader.size == 0:
        raise Unreadable("models.file_empty", path=reader.path)
    if reader.size < len(MAGIC) or reader.take(4) != MAGIC:
        raise Unreadable("models.not_gguf", path=reader.path)
    version = reader.u32()
    if version not in VERSIONS:
        raise Unreadable("models.gguf_version", path=reader.path, version=version)
    n_tensors, n_keys = reader.u64(), reader.u64()
    if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
        raise reader.bad(f"{n_tensors} tensors and {n_keys} keys")
    metadata = _metadata(reader, n_keys, arrays)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
        raise reader.bad(f"general.alignment {alignment!r}")
    tensors_offset = reader.at
    tensors = _tensors(reader, n_tensors, alignment)
    data_offset = reader.at + -reader.at % alignment
    end = max((data_offset + tensor.offset + tensor.n_bytes for tensor in tensors), default=reader.at)
    if end > reader.size:
        raise reader.truncated(end)
    return Header(version, metadata, tensors, data_offset, reader.size, tensors_offset)


def _metadata(reader: _Reader, n_keys: int, arrays: frozenset[str]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):
        key = reader.text(MAX_KEY_BYTES)
        if key in metadata:
            raise reader.bad(f"the key {key!r} twice")
        number = reader.u32()
        metadata[key] = _array(reader, whole=key in arrays) if number == _ARRAY else _value(reader, number)
    return metadata


def _value(reader: _Reader, number: int) -> Any:
    if number == _STRING:
        return reader.text(MAX_STRING_BYTES, errors="replace")
    form = _SCALARS.get(number)
    if form is None:
        raise reader.bad(f"a value of the unknown type {number}")
    return form.unpack(reader.take(form.size))[0]


def _array(reader: _Reader, *, whole: bool) -> Any:
    number, length = reader.u32(), reader.u64()
    form = _SCALARS.get(number)
    if form is None and number != _STRING:
        raise reader.bad(f"a list of the unknown type {number}")
    smallest = form.size if form else 8
    if length > MAX_ARRAY:
        raise reader.bad(f"a list of {length} elements, at most {MAX_ARRAY} are allowed")
    if length * smallest > reader.size - reader.at:
        raise reader.truncated(reader.at + length * smallest)
    if form and (whole or length <= KEPT_ARRAY):
        return [item for (item,) in form.iter_unpack(reader.take(length * form.size))]
    if whole:
        return [reader.text(MAX_STRING_BYTES, errors="replace") for _ in range(length)]
    if form:
        reader.skip(length * form.size)
    else:
        reader.skip_texts(length)
    return Array(length)


def _tensors(reader: _Reader, count: int, alignment: int) -> list[Tensor]:
    tensors: dict[str, Tensor] = {}
    for _ in range(count):
        tensor = _tensor(reader, alignment)
        if tensor.name in tensors:
            raise reader.bad(f"the tensor {tensor.name!r} twice")
        tensors[tensor.name] = tensor
    return list(tensors.values())


def _tensor(reader: _Reader, alignment: int) -> Tensor:
    name = reader.text(MAX_KEY_BYTES)
    n_dimensions = reader.u32()
    if n_dimensions > MAX_DIMENSIONS:
        raise reader.bad(f"the tensor {name!r} has {n_dimensions} dimensions")
    shape = tuple(reader.u64() for _ in range(n_dimensions))
    number, offset = reader.u32(), reader.u64()
    if offset % alignment or offset > reader.size:
        raise reader.bad(f"the tensor {name!r} at {offset}")
    known = GGML_TYPES.get(number)
    if known is None:
        # A newer llama.cpp may know the type, so the file may be right: its size is left unchecked.
        return Tensor(name, shape, f"type {number}", offset, 0)
    label, block, block_bytes = known
    if shape and shape[0] % block:
        raise reader.bad(f"rows of {shape[0]} in the tensor {name!r} do not divide into blocks of {block}")
    return Tensor(name, shape, label, offset, prod(shape) // block * block_bytes)


FORMAT = FormatReader(facts, kind, size_bytes)
