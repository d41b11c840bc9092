"""Cross entropy of a frozen output head, and its gradient, without ever holding all logits.

A small model's head is a quarter of its arithmetic, and the logits of one row (tokens × vocabulary) are its largest
tensor. So only the positions that are learned reach the head, a few at a time, and the gradient for the hidden states
is computed on the way (4·V·H operations a position, where recomputing the logits in the backward pass would take
6·V·H). Idea: Liger's fused linear cross entropy.
"""

from typing import Any

import torch

CHUNK = 256
"""Positions at a time: 256 × 152k logits are 156 MB in float32."""


class _FrozenHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets):
        needed = hidden.requires_grad
        gradient: Any = torch.empty_like(hidden) if needed else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            logits = (hidden[part] @ weight.t()).float()
            wanted = targets[part, None]
            norm = torch.logsumexp(logits, dim=-1, keepdim=True)
            total += (norm - logits.gather(1, wanted)).sum()
            if needed:
                logits.sub_(norm).exp_().scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=logits.dtype))
                gradient[part] = logits.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None


def frozen_head_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over positions of -log p(target), float32. hidden (n, H), weight (V, H) frozen, targets (n,). 0 for n = 0."""
    return _FrozenHeadLoss.apply(hidden, weight, targets)
