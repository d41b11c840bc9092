"""Which models this engine knows, by their header alone."""

from pathlib import Path
from typing import Literal

from mofang.errors import MofangError
from mofang.models.formats import gguf

POOLING: dict[int, Literal["mean", "cls"]] = {1: "mean", 2: "cls"}
"""GGUF's numbers (gguf.PoolingType) of the ways that are known here."""
TOKENIZERS = ("t5", "bert")
"""llama.cpp's names of SentencePiece unigram and WordPiece."""
_NEEDED = ("position_embd", "token_types", "token_embd_norm", "blk.0.attn_q", "blk.0.attn_output_norm", "blk.0.ffn_up")


def knows(path: Path) -> bool:
    """Whether graph.py and vocabulary.py can hold the model. False for a damaged file: llama.cpp's engine says why."""
    try:
        header = gguf.read(path)
    except (MofangError, OSError):
        return False
    held = {tensor.name for tensor in header.tensors}
    return (
        header.architecture == "bert"
        and header.of_architecture("pooling_type") in POOLING
        and header.metadata.get("tokenizer.ggml.model") in TOKENIZERS
        and {f"{name}.weight" for name in _NEEDED} <= held
    )
