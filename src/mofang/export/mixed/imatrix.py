"""Importance matrices as llama.cpp's files hold them. Source: tools/imatrix/imatrix.cpp, save_imatrix."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter
from numpy.typing import NDArray

from mofang.errors import Unreadable

SUM, COUNT = ".in_sum2", ".counts"


def write(
    path: Path, importance: Mapping[str, NDArray[np.float32]], *, n_tokens: int, length: int, texts: Sequence[str]
) -> None:
    """Tensor → mean square of each input, over `n_tokens` tokens in sequences of `length`."""
    writer = GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(texts))
    writer.add_uint32("imatrix.chunk_count", n_tokens // length)
    writer.add_uint32("imatrix.chunk_size", length)
    for name, mean in importance.items():
        writer.add_tensor(name + SUM, (mean * n_tokens).astype(np.float32)[None])
        writer.add_tensor(name + COUNT, np.array([[n_tokens]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path) -> dict[str, NDArray[np.float32]]:
    """What `write`, or llama-imatrix, wrote; matrices of several experts are left out. Raises Unreadable."""
    try:
        tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    except (ValueError, KeyError, OSError) as error:
        raise Unreadable("export.not_imatrix", path=path, why=error) from error
    return {
        name.removesuffix(SUM): np.asarray(sums, np.float32).ravel() / max(1.0, float(tensors[count].ravel()[0]))
        for name, sums in tensors.items()
        if name.endswith(SUM) and (count := name.removesuffix(SUM) + COUNT) in tensors and tensors[count].size == 1
    }
