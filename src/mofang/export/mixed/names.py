"""What llama.cpp calls the matrices of a Hugging Face folder. Source: gguf-py, tensor_mapping.py."""

from collections.abc import Sequence
from pathlib import Path

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

from mofang.errors import Unreadable
from mofang.export.mixed.sensitivity import Matrix
from mofang.models.formats import gguf


def tensors(matrices: Sequence[Matrix], converted: Path) -> dict[str, Matrix]:
    """Tensor of the converted file → the matrix that it is. Raises Unreadable for an architecture without names."""
    header = gguf.read(converted)
    arch = next((key for key, name in MODEL_ARCH_NAMES.items() if name == header.architecture), None)
    if not isinstance(arch, MODEL_ARCH):
        raise Unreadable("export.mixed_family", path=converted, architecture=header.architecture)
    names = get_tensor_name_map(arch, int(header.of_architecture("block_count") or 0))
    there = {tensor.name for tensor in header.tensors}
    found = {f"{names.get_name(matrix.name)}.weight": matrix for matrix in matrices}
    return {name: matrix for name, matrix in found.items() if name in there}
