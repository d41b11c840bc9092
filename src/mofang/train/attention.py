"""Packed rows in which no example sees another: causal attention example by example.

transformers' models hand unknown keyword arguments down to the attention function, so the lengths travel with the
call and nothing is patched. No mask is built, and cost grows with the sum of squares of the lengths, not with the
square of the row. Source: transformers' attention interface documentation.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

NAME = "mofang_packed"


def packed_attention(module, query, key, value, attention_mask, segments: Sequence[int], scaling=None, **kwargs):
    """query (1, heads, tokens, width), key and value (1, kv heads, tokens, width); `segments` sum up to tokens.

    Returns (1, tokens, heads, width), and None for the weights that nobody asks for.
    """
    grouped = query.shape[1] != key.shape[1]
    pieces = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        for q, k, v in zip(
            query.split(segments, dim=2), key.split(segments, dim=2), value.split(segments, dim=2), strict=True
        )
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2), None


def install() -> str:
    """Make it known to transformers; returns the name for `attn_implementation`."""
    AttentionInterface.register(NAME, packed_attention)
    return NAME


def positions(segments: Sequence[int]) -> torch.Tensor:
    """(1, tokens): each example counts from 0, as if it were alone."""
    return torch.cat([torch.arange(length) for length in segments])[None]
