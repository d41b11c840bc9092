"""Packed rows in which no example sees another: causal attention example by example.

transformers' models hand unknown keyword arguments down to the attention function, so the lengths travel with the
call and nothing is patched. No mask is built over the row, and cost grows with the sum of squares of the lengths, not
with the square of the row. Source: transformers' attention interface documentation.

On a CPU, torch's fused kernel needs 4 times as long for its backward pass as the same products by themselves. There,
queries are taken in blocks against all keys up to them, each a few matrix products and a softmax whose probabilities
are kept (docs/log.md, 2026-11-26: 1.5 to 3 times as fast from 100 to 1,024 tokens). Elsewhere torch's kernels are taken.

Examples of one row often begin alike, with a template's system message. On a CPU such a beginning lies in the row once,
and every example sees it: what is computed is the same, and a tenth of a short example's tokens need not be.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

NAME = "mofang_packed"
BLOCK = 128
"""Queries at a time."""
KEPT = 1024
"""Keys up to which a block's probabilities are kept for the backward pass; they are computed again beyond."""


class Unknown(Exception):
    """A model's attention does more than attend."""


def packed_attention(
    module, query, key, value, attention_mask, segments: Sequence[int], shared: int = 0, scaling=None, **kwargs
):
    """query (1, heads, tokens, width), key and value (1, kv heads, tokens, width); `segments` sum up to tokens.

    Returns (1, tokens, heads, width), and None for the weights that nobody asks for. Raises Unknown.
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise Unknown
    scale = scaling or query.shape[-1] ** -0.5
    return attend(query[0], key[0], value[0], segments, scale, shared)[None], None


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Sequence[int], scale: float, shared: int = 0
) -> torch.Tensor:
    """q (heads, tokens, width), k and v (kv heads, tokens, width) → (tokens, heads, width).

    `shared`: tokens of the first segment where it is the common beginning of all others, which see it; else 0.
    """
    if q.device.type == "cpu":
        attended: torch.Tensor = _Blocks.apply(q, k, v, tuple(segments), scale, shared)
        return attended
    assert not shared, "the kernels of other devices have segments only"
    split = zip(*(x.split(list(segments), dim=1) for x in (q, k, v)), strict=True)
    grouped = q.shape[0] != k.shape[0]
    pieces = [
        F.scaled_dot_product_attention(a[None], b[None], c[None], is_causal=True, scale=scale, enable_gqa=grouped)[0]
        for a, b, c in split
    ]
    return torch.cat(pieces, dim=1).transpose(0, 1)


class _Blocks(torch.autograd.Function):
    """q is laid out as (kv heads, heads of each, tokens, width), so that one product serves the heads that share keys."""

    @staticmethod
    def forward(ctx: Any, q, k, v, segments, scale, shared):
        heads, n, width = q.shape
        q = (q * scale).view(k.shape[0], -1, n, width)
        out = q.new_empty(n, *q.shape[:2], width)
        hidden = torch.full((BLOCK, BLOCK), float("-inf"), dtype=q.dtype).triu_(1)
        kept: list[torch.Tensor | None] = []
        for start, end, before in _spans(segments, shared):
            keys, values = _seen(k, start, end, before), _seen(v, start, end, before)
            for block in _blocks(start, end):
                p = _probabilities(q, keys, block, start - before, hidden)
                attended = torch.bmm(p, values[:, : block.stop - start + before])
                out[block] = attended.view(*q.shape[:2], -1, width).permute(2, 0, 1, 3)
                kept.append(p if p.shape[2] <= KEPT else None)
        ctx.save_for_backward(q, k, v, hidden)
        ctx.kept, ctx.segments, ctx.scale, ctx.shared = kept, segments, scale, shared
        return out.view(n, heads, width)

    @staticmethod
    def backward(ctx: Any, upstream):
        q, k, v, hidden = ctx.saved_tensors
        width = q.shape[3]
        upstream = upstream.reshape(-1, *q.shape[:2], width).permute(1, 2, 0, 3)
        of_q = torch.empty_like(q)
        exact = torch.promote_types(k.dtype, torch.float32)  # many blocks are summed
        of_k, of_v = torch.zeros_like(k, dtype=exact), torch.zeros_like(v, dtype=exact)
        kept = iter(ctx.kept)
        for start, end, before in _spans(ctx.segments, ctx.shared):
            keys, values = _seen(k, start, end, before), _seen(v, start, end, before)
            to_k, to_v = (torch.zeros(k.shape[0], before + end - start, width, dtype=exact) for _ in range(2))
            for block in _blocks(start, end):
                p = next(kept)
                if p is None:
                    p = _probabilities(q, keys, block, start - before, hidden)
                seen = p.shape[2]
                slope = upstream[:, :, block].reshape(k.shape[0], -1, width)
                of_p = torch.bmm(slope, values[:, :seen].transpose(1, 2))
                of_scores = torch._softmax_backward_data(of_p, p, -1, p.dtype)
                of_q[:, :, block] = torch.bmm(of_scores, keys[:, :seen]).view(*q.shape[:2], -1, width)
                to_k[:, :seen] += torch.bmm(of_scores.transpose(1, 2), q[:, :, block].reshape(k.shape[0], -1, width))
                to_v[:, :seen] += torch.bmm(p.transpose(1, 2), slope)
            for of, to in ((of_k, to_k), (of_v, to_v)):
                of[:, :before] += to[:, :before]
                of[:, start:end] += to[:, before:]
        return (of_q * ctx.scale).view(-1, *q.shape[2:]), of_k.to(k.dtype), of_v.to(v.dtype), None, None, None


def _probabilities(q, keys, block: slice, origin: int, hidden: torch.Tensor) -> torch.Tensor:
    """(kv heads, heads of each · queries of the block, keys up to its last). `origin`: where key 0 would stand in the row
    if what is shared stood before its segment."""
    n = block.stop - block.start
    asked = q[:, :, block].reshape(keys.shape[0], -1, keys.shape[2])
    scores = torch.bmm(asked, keys[:, : block.stop - origin].transpose(1, 2))
    scores.view(*q.shape[:2], n, -1)[..., block.start - origin :].add_(hidden[:n, :n])
    return F.softmax(scores, dim=-1)


def _seen(x: torch.Tensor, start: int, end: int, before: int) -> torch.Tensor:
    """Keys or values of a segment, behind those of the `before` tokens that it shares."""
    return torch.cat([x[:, :before], x[:, start:end]], dim=1) if before else x[:, start:end]


def _spans(segments: Sequence[int], shared: int) -> Iterator[tuple[int, int, int]]:
    """Where each segment starts and ends in its row, and how many of the row's first tokens it sees besides."""
    start = 0
    for length in segments:
        yield start, start + length, shared if start else 0
        start += length


def _blocks(start: int, end: int) -> Iterator[slice]:
    for first in range(start, end, BLOCK):
        yield slice(first, min(first + BLOCK, end))


def install() -> str:
    """Make it known to transformers; returns the name for `attn_implementation`."""
    AttentionInterface.register(NAME, packed_attention)
    return NAME


def positions(segments: Sequence[int], shared: int = 0) -> torch.Tensor:
    """(1, tokens): each example counts as if it were alone."""
    spans = _spans(segments, shared)
    return torch.cat([torch.arange(before, before + end - start) for start, end, before in spans])[None]
