"""What this machine trains with: device, the number format of the frozen base, and the memory that it takes."""

from collections.abc import Callable

import torch

from mofang.errors import TooLarge
from mofang.platform import has_fast_bfloat16, memory, peak_memory
from mofang.train import attention


def device(number: int = 0) -> torch.device:
    """The GPU of that number, or the CPU. (CUDA was not at hand where this was written: only the CPU has been run.)"""
    return torch.device("cuda", number) if torch.cuda.is_available() else torch.device("cpu")


def dtype(wanted: str, on: torch.device) -> torch.dtype:
    """The base's number format: as the recipe says, or the fastest that trains well here."""
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]
    if on.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if has_fast_bfloat16() else torch.float32


def needed_bytes(
    config, n_parameters: int, lora_rank: int, row_tokens: int, longest: int, item: int, n_whole: int = 0, *, fast: bool,
    parts: int = 1,
) -> int:  # fmt: skip
    """Bytes that a training takes at its peak: weights, what the backward pass keeps of one row, optimizer.

    `lora_rank` 0: no adapter. Of the parameters `n_whole` are trained whole: float32, a gradient, Adam's two moments.
    `longest`: tokens of the longest example. `fast`: whether the layers go the fast path (decoder.py). `parts`: among how
    many processes weights, gradients and moments are shared out (sharded.py); each has at hand, whole, those that are
    outside of the layers and two layers'.

    Kept of each token in each layer: the inputs of projections and attention, and off the fast path those of norms and
    SwiGLU; and the probabilities of attention.BLOCK queries at a time. The factors were fitted to measured peaks
    (bench/training_memory.py).
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * width  # as GPT-2's descendants, which do not say
    kept = layers * ((8 * width + 2.7 * inner) if fast else (22 * width + 4 * inner)) * item
    seen = min(longest, attention.KEPT)
    probabilities = row_tokens / longest * seen * (seen + attention.BLOCK) / 2
    head = 3 * 256 * config.vocab_size * 4 + config.vocab_size * width * item
    trained = layers * lora_rank * (9 * width + 3 * inner)  # all linear layers, at most
    whole = n_whole * (4 * 4 - item)
    of_row = row_tokens * kept + layers * config.num_attention_heads * probabilities * item
    lasting = n_parameters * item + whole + trained * 4 * 4
    if parts > 1:
        outside = 2 * config.vocab_size * width
        lasting = lasting / parts + 2 * item * (outside + 2 * max(0, n_parameters - outside) / layers)
    return int(lasting + of_row + head + (580 << 20))


def peak(on: torch.device) -> int:
    """Most bytes that this process ever held in the memory that it trains in."""
    return torch.cuda.max_memory_allocated(on) if on.type == "cuda" else peak_memory()


def fitting_row(row_tokens: int, least: int, base: str, on: torch.device, needed: Callable[[int], int]) -> int:
    """Tokens of a row, at most `row_tokens` and at least `least`, with which a training fits into the memory that is
    free. Raises TooLarge before anything is loaded.

    needed: bytes that a training takes with rows of so many tokens.
    """
    available = torch.cuda.mem_get_info(on)[0] if on.type == "cuda" else memory().available
    while needed(row_tokens) > available and row_tokens > least:
        row_tokens = max(least, row_tokens * 3 // 4)
    if needed(row_tokens) > available:
        raise TooLarge(
            "train.too_little_memory",
            base=base,
            needed=f"{needed(row_tokens) / 1e9:.1f}",
            available=f"{available / 1e9:.1f}",
            row_tokens=row_tokens,
        )
    return row_tokens
