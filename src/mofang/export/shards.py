"""Safetensors one tensor at a time: read and found sound, or written when shapes are known before values. No torch.

The library maps files into memory, and writes a file only from memory, all at once; here memory holds one tensor. The
format: 8 bytes of length, a JSON header, then the data (https://huggingface.co/docs/safetensors).
"""

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mofang.errors import Unreadable
from mofang.models.formats import hf
from mofang.models.formats.hf import Stored
from mofang.tokenizer import load as load_tokenizer

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
    "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
"""Bytes of one number by safetensors' name of its type."""
EXPONENTS: dict[str, tuple[Any, int]] = {
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F32": (np.uint32, 0x7F800000),
    "F64": (np.uint64, 0x7FF0000000000000),
}
"""How a type's numbers are looked at as whole ones, and the bits that are all set in NaN and infinity alone."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
"""Ends of the names that families give the matrix with a row for each token."""
CHUNK = 1 << 20
"""Numbers that are looked at together: what lies in the processor's cache is looked at once."""

Plan = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensors of a file in their order: name → (type, shape)."""


def places(folder: Path) -> dict[str, tuple[Path, Stored]]:
    """Where each tensor of a model lies. Raises Unreadable for a file that is missing, broken or cut off."""
    return {name: (file, stored) for file in hf.weights(folder) for name, stored in hf.layout(file).items()}


def read(path: Path, name: str, stored: Stored) -> NDArray[np.uint8]:
    """A tensor's bytes. Raises Unreadable for one that is not what its header says, or holds NaN or infinity."""
    size = stored.end - stored.begin
    if stored.dtype not in ITEM_BYTES or size != math.prod(stored.shape) * ITEM_BYTES[stored.dtype]:
        why = f"{name}: {stored.dtype} {list(stored.shape)}, {size} bytes"
        raise Unreadable("models.safetensors_broken", path=path, why=why)
    raw = np.fromfile(path, np.uint8, size, offset=stored.begin)
    if not is_finite(raw, stored.dtype):
        raise Unreadable("export.not_finite", path=path, tensor=name)
    return raw


def is_finite(raw: NDArray[np.uint8], dtype: str) -> bool:
    """Whether the numbers of a type hold neither NaN nor infinity."""
    if dtype not in EXPONENTS:
        return True
    kind, mask = EXPONENTS[dtype]
    numbers = raw.view(kind)
    bits = kind(mask)
    return not any(((numbers[at : at + CHUNK] & bits) == bits).any() for at in range(0, len(numbers), CHUNK))


def check(folder: Path) -> Iterator[tuple[str, int]]:
    """Read every tensor of a model once: (name, bytes) as they come. Raises Unreadable as `places` and `read`."""
    for name, (path, stored) in places(folder).items():
        read(path, name, stored)
        yield name, stored.end - stored.begin


def check_rows(folder: Path) -> None:
    """Raises Unreadable for a tokenizer with ids beyond the embedding's rows. More rows than ids only fill it up."""
    shapes = (stored.shape for name, (_, stored) in places(folder).items() if name.endswith(EMBEDDINGS))
    rows = next(shapes, (0,))[0]
    n_vocab = load_tokenizer(folder).n_vocab
    if rows and n_vocab > rows:
        raise Unreadable("export.ids_beyond_rows", path=folder, n_vocab=n_vocab, rows=rows)


def n_bytes(plan: Plan) -> int:
    return sum(math.prod(shape) * ITEM_BYTES[dtype] for dtype, shape in plan.values())


def split(plan: Plan, most: int) -> dict[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """File names, and the tensors of each: at most `most` bytes, or one tensor."""
    files: list[dict[str, tuple[str, tuple[int, ...]]]] = [{}]
    for name, entry in plan.items():
        if files[-1] and n_bytes({**files[-1], name: entry}) > most:
            files.append({})
        files[-1][name] = entry
    return dict(zip(names(len(files)), files, strict=True))


def names(count: int) -> list[str]:
    """Names of so many files, as transformers gives them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


class Writer:
    """The files of a model, each written tensor by tensor in the order of its plan; the index at the end."""

    def __init__(self, target: Path, files: Mapping[str, Plan]) -> None:
        self.target = target
        self.files = {name: file for file, plan in files.items() for name in plan}
        self.total = sum(n_bytes(plan) for plan in files.values())
        self._headers = {file: _header(plan) for file, plan in files.items()}
        self._left = {file: list(plan) for file, plan in files.items()}
        self._open: tuple[str, Any] | None = None

    def __enter__(self) -> "Writer":
        return self

    def write(self, name: str, values: NDArray[Any]) -> None:
        file = self.files[name]
        assert self._left[file][0] == name, f"{name} is not next in {file}"
        if self._open is None or self._open[0] != file:
            self._close()
            stream = (self.target / file).open("wb")
            stream.write(self._headers[file])
            self._open = (file, stream)
        self._left[file].pop(0)
        self._open[1].write(np.ascontiguousarray(values).data)

    def _close(self) -> None:
        if self._open:
            stream, self._open = self._open[1], None
            stream.close()

    def __exit__(self, kind: object, *_: object) -> None:
        self._close()
        if kind is None:
            write_index(self.target, self.files, self.total)


def write_index(folder: Path, files: Mapping[str, str], total: int) -> None:
    """What says which tensor lies in which file, where there is more than one."""
    if len(set(files.values())) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(files)}
        (folder / hf.INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _header(plan: Plan) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in plan.items():
        end = offset + n_bytes({name: (dtype, shape)})
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def beside(folder: Path, *, but: Iterable[str] = ()) -> list[Path]:
    """What lies beside the weights and belongs to the model: configuration, tokenizer, template."""
    left = {"manifest.json", hf.INDEX, *but}
    kinds = (".json", ".jinja", ".model", ".txt")
    return [path for path in folder.iterdir() if path.is_file() and path.suffix in kinds and path.name not in left]
