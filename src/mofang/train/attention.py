"""Packed rows in which no example sees another: causal attention example by example.

transformers' models hand unknown keyword arguments down to the attention function, so the lengths travel with the
call and nothing is patched. No mask is built over the row, and cost grows with the sum of squares of the lengths, not
with the square of the row. Source: transformers' attention interface documentation.

On a CPU, torch's fused kernel needs 4 times as long for its backward pass as the same products by themselves. There,
queries are taken in blocks against all keys up to them, each a few matrix products and a softmax whose probabilities
are kept (docs/log.md, 2026-11-26: 1.5 to 3 times as fast from 100 to 1,024 tokens). Elsewhere torch's kernels are taken.

Examples of one row often begin alike: all with a template's system message, the two of a pair with their question. On
a CPU such a beginning lies in the row once, as a segment that others continue: what is computed is the same, and a tenth
of a short example's tokens, or nearly half of a pair's, need not be.
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
    module,
    query,
    key,
    value,
    attention_mask,
    segments: Sequence[int],
    parents: Sequence[int] = (),
    scaling=None,
    **kwargs,
):
    """query (1, heads, tokens, width), key and value (1, kv heads, tokens, width); `segments` sum up to tokens.

    Returns (1, tokens, heads, width), and None for the weights that nobody asks for. Raises Unknown.
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise Unknown
    scale = scaling or query.shape[-1] ** -0.5
    return attend(query[0], key[0], value[0], segments, scale, parents)[None], None


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segments: Sequence[int],
    scale: float,
    parents: Sequence[int] = (),
) -> torch.Tensor:
    """q (heads, tokens, width), k and v (kv heads, tokens, width) → (tokens, heads, width).

    `parents`: for each segment the number of the one before it that it continues, which it sees with all that one sees;
    -1 where there is none; () where there are none at all.
    """
    if q.device.type == "cpu":
        attended: torch.Tensor = _Blocks.apply(q, k, v, tuple(segments), scale, tuple(parents))
        return attended
    assert max(parents, default=-1) < 0, "the kernels of other devices have segments only"
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
    def forward(ctx: Any, q, k, v, segments, scale, parents):
        heads, n, width = q.shape
        q = (q * scale).view(k.shape[0], -1, n, width)
        out = q.new_empty(n, *q.shape[:2], width)
        hidden = torch.full((BLOCK, BLOCK), float("-inf"), dtype=q.dtype).triu_(1)
        kept: list[torch.Tensor | None] = []
        for spans in _spans(segments, parents):
            keys, values = _seen(k, spans), _seen(v, spans)
            for block in _blocks(spans[-1]):
                p = _probabilities(q, keys, block, spans[-1].stop - keys.shape[1], hidden)
                attended = torch.bmm(p, values[:, : p.shape[2]])
                out[block] = attended.view(*q.shape[:2], -1, width).permute(2, 0, 1, 3)
                kept.append(p if p.shape[2] <= KEPT else None)
        ctx.save_for_backward(q, k, v, hidden)
        ctx.kept, ctx.segments, ctx.scale, ctx.parents = kept, segments, scale, parents
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
        for spans in _spans(ctx.segments, ctx.parents):
            keys, values = _seen(k, spans), _seen(v, spans)
            to_k, to_v = (torch.zeros(keys.shape, dtype=exact) for _ in range(2))
            for block in _blocks(spans[-1]):
                p = next(kept)
                if p is None:
                    p = _probabilities(q, keys, block, spans[-1].stop - keys.shape[1], hidden)
                seen = p.shape[2]
                slope = upstream[:, :, block].reshape(k.shape[0], -1, width)
                of_p = torch.bmm(slope, values[:, :seen].transpose(1, 2))
                of_scores = torch._softmax_backward_data(of_p, p, -1, p.dtype)
                of_q[:, :, block] = torch.bmm(of_scores, keys[:, :seen]).view(*q.shape[:2], -1, width)
                to_k[:, :seen] += torch.bmm(of_scores.transpose(1, 2), q[:, :, block].reshape(k.shape[0], -1, width))
                to_v[:, :seen] += torch.bmm(p.transpose(1, 2), slope)
            for of, to in ((of_k, to_k), (of_v, to_v)):
                for span, part in zip(spans, to.split([span.stop - span.start for span in spans], dim=1), strict=True):
                    of[:, span] += part
        return (of_q * ctx.scale).view(-1, *q.shape[2:]), of_k.to(k.dtype), of_v.to(v.dtype), None, None, None


def _probabilities(q, keys, block: slice, origin: int, hidden: torch.Tensor) -> torch.Tensor:
    """(kv heads, heads of each · queries of the block, keys up to its last). `origin`: where key 0 would stand in the row
    if what is shared stood before its segment."""
    n = block.stop - block.start
    asked = q[:, :, block].reshape(keys.shape[0], -1, keys.shape[2])
    scores = torch.bmm(asked, keys[:, : block.stop - origin].transpose(1, 2))
    scores.view(*q.shape[:2], n, -1)[..., block.start - origin :].add_(hidden[:n, :n])
    return F.softmax(scores, dim=-1)


def _seen(x: torch.Tensor, spans: Sequence[slice]) -> torch.Tensor:
    """Keys or values of a segment, behind those that it sees besides."""
    return x[:, spans[0]] if len(spans) == 1 else torch.cat([x[:, span] for span in spans], dim=1)


def _spans(segments: Sequence[int], parents: Sequence[int]) -> Iterator[list[slice]]:
    """Where each segment lies in its row: last itself, before it what it continues, from the beginning on."""
    found: list[list[slice]] = []
    start = 0
    for number, length in enumerate(segments):
        parent = parents[number] if parents else -1
        found.append([*(found[parent] if parent >= 0 else ()), slice(start, start + length)])
        yield found[-1]
        start += length


def _blocks(segment: slice) -> Iterator[slice]:
    for first in range(segment.start, segment.stop, BLOCK):
        yield slice(first, min(first + BLOCK, segment.stop))


def install() -> str:
    """Make it known to transformers; returns the name for `attn_implementation`."""
    AttentionInterface.register(NAME, packed_attention)
    return NAME


def positions(segments: Sequence[int], parents: Sequence[int] = ()) -> torch.Tensor:
    """(1, tokens): each example counts as if it were alone."""
    counted = []
    for *before, own in _spans(segments, parents):
        first = sum(span.stop - span.start for span in before)
        counted.append(torch.arange(first, first + own.stop - own.start))
    return torch.cat(counted)[None]
