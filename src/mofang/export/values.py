"""Bytes of a safetensors file as a tensor, and back."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mofang.models.formats.hf import Stored

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I16": torch.int16, "F16": torch.float16, "BF16": torch.bfloat16,
    "I32": torch.int32, "F32": torch.float32, "I64": torch.int64, "F64": torch.float64,
}  # fmt: skip
"""By safetensors' names."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def tensor(raw: NDArray[np.uint8], stored: Stored) -> torch.Tensor:
    """The tensor that bytes hold; it shares their memory."""
    if not len(raw):  # which cannot be seen as another type
        return torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
    return torch.from_numpy(raw).view(DTYPES[stored.dtype]).reshape(stored.shape)


def raw(values: torch.Tensor) -> NDArray[Any]:
    """The bytes that a file holds of a tensor."""
    flat = values.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if len(flat) else np.empty(0, np.uint8)
