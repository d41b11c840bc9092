"""What stands between the matrix products: small functions that each read and write a tensor or two.

As they are, torch runs them operation by operation, each a pass through memory. Compiled (torch.compile, which needs a
C++ compiler), each is one pass. That takes half a minute once a machine, so it is done for trainings that are long
enough to win it back; both ways compute the same, up to rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm (Zhang and Sennrich, arXiv 1910.07467), in float32 as transformers computes it. x (n, H), weight (H,)."""
    exact = x.float()
    normed = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
    return weight.to(x.dtype) * normed.to(x.dtype)


def norm_back(x: Tensor, weight: Tensor, eps: float, slope: Tensor) -> Tensor:
    """The gradient for x from that of the output."""
    exact, slope = x.float(), slope.float() * weight.float()
    rate = torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
    normed = exact * rate
    return ((slope - normed * (slope * normed).mean(-1, keepdim=True)) * rate).to(x.dtype)


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) · up (Shazeer, arXiv 2002.05202). x (n, 2·I): gate and up in one row."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_back(x: Tensor, slope: Tensor) -> Tensor:
    """The gradient for x from that of the output, (n, I)."""
    gate, up = x.chunk(2, dim=-1)
    return torch.cat([torch.ops.aten.silu_backward(slope * up, gate), slope * F.silu(gate)], dim=-1)


def turn(x: Tensor, cos: Tensor, sin: Tensor, n_turned: int) -> Tensor:
    """Rotary position embedding (Su et al., arXiv 2104.09864) of the first heads, and heads first.

    x (n, heads, width), cos and sin (n, width) → (heads, n, width).
    """
    turned, rest = x.transpose(0, 1).split([n_turned, x.shape[1] - n_turned])
    return torch.cat([turned * cos + _half(turned) * sin, rest])


def turn_back(slope: Tensor, cos: Tensor, sin: Tensor, n_turned: int) -> Tensor:
    """The gradient for x, (n, heads, width), from that of the output."""
    turned, rest = slope.split([n_turned, slope.shape[0] - n_turned])
    return torch.cat([turned * cos - _half(turned * sin), rest]).transpose(0, 1).contiguous()


def _half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def slope(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """-log p of the wanted tokens, float32 (n, 1), and its gradient for the logits (n, V), in their type.

    wanted (n, 1).
    """
    exact = logits.to(torch.float32, copy=True)  # the largest tensor of a small model: changed in place
    norm = torch.logsumexp(exact, dim=-1, keepdim=True)
    lost = norm - exact.gather(1, wanted)
    found = exact.sub_(norm).exp_()
    if torch.compiler.is_compiling():
        found = found - (torch.arange(found.shape[1], device=found.device) == wanted).float()
    else:
        found.scatter_add_(1, wanted, torch.full_like(lost, -1))
    return lost, found.to(logits.dtype)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The functions above, as they are or compiled."""

    norm: Callable[..., Tensor] = norm
    norm_back: Callable[..., Tensor] = norm_back
    swiglu: Callable[..., Tensor] = swiglu
    swiglu_back: Callable[..., Tensor] = swiglu_back
    turn: Callable[..., Tensor] = turn
    turn_back: Callable[..., Tensor] = turn_back
    slope: Callable[..., tuple[Tensor, Tensor]] = slope


PLAIN = Kernels()


def compiled() -> Kernels:
    """Compiled for rows of any length. The first call of each raises what torch raises where there is no compiler."""
    return Kernels(*(torch.compile(getattr(PLAIN, field.name), dynamic=True) for field in fields(PLAIN)))
