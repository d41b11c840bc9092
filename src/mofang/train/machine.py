"""What this machine trains with: device, the number format of the frozen base, and the memory that it takes."""

import torch

from mofang.errors import TooLarge
from mofang.platform import has_fast_bfloat16, memory


def device() -> torch.device:
    """The first GPU, or the CPU. (CUDA was not at hand where this was written: only the CPU has been run.)"""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype(wanted: str, on: torch.device) -> torch.dtype:
    """The base's number format: as the recipe says, or the fastest that trains well here."""
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]
    if on.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if has_fast_bfloat16() else torch.float32


def needed_bytes(config, n_parameters: int, lora_rank: int, row_tokens: int, item: int, n_whole: int = 0) -> int:
    """Bytes that a training takes at its peak: weights, what the backward pass keeps of one row, optimizer.

    `lora_rank` 0: no adapter. Of the parameters `n_whole` are trained whole: float32, a gradient, Adam's two moments.

    Kept of each token in each layer: the inputs of norms, projections, attention and SwiGLU, and the float32 norms;
    the factors were fitted to measured peaks (bench/training_memory.py).
    """
    width, inner = config.hidden_size, config.intermediate_size
    kept = config.num_hidden_layers * (22 * width + 4 * inner) * item
    head = 2 * 256 * config.vocab_size * 4
    trained = config.num_hidden_layers * lora_rank * (9 * width + 3 * inner)  # all linear layers, at most
    whole = n_whole * (4 * 4 - item)
    return n_parameters * item + whole + trained * 4 * 4 + row_tokens * kept + head + (450 << 20)


def check_memory(needed: int, base: str, row_tokens: int) -> None:
    """Raises TooLarge before anything is loaded."""
    available = memory().available
    if needed > available:
        raise TooLarge(
            "train.too_little_memory",
            base=base,
            needed=f"{needed / 1e9:.1f}",
            available=f"{available / 1e9:.1f}",
            row_tokens=row_tokens,
        )
